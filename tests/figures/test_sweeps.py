"""Tables, curves and the explorer over the radius; the rivals' tables."""

import json
import math
import shutil
import subprocess

import pandas as pd
import pytest
from playwright._impl._driver import compute_driver_executable
from worlds import as_the_poster, made, world

from saddlebook import studies
from saddlebook.figures import style as svg
from saddlebook.figures import sweeps, widgets
from saddlebook.findings import report
from saddlebook.scales import at_scale

NODE = shutil.which("node") or str(compute_driver_executable()[0])
PRINTED = report.paper("rho")


@pytest.fixture(scope="module")
def records():
    runs = studies.named("rho_ablation", "lite")
    every = {r.experiment: r for r in world(as_the_poster, lambda e: 50 + 10 * e.rho)}
    return [every[run] for run in runs]


def story(tmp_path, state):
    """What the explorer says of a state, through Node."""
    module = tmp_path / "sweep.mjs"
    module.write_text(widgets.asset("plot.js", "sweep.js"), "utf-8")
    code = (
        f"import {{ story }} from {json.dumps(str(module))};"
        f"console.log(JSON.stringify(story({json.dumps(state)})));"
    )
    command = [NODE, "--input-type=module", "-e", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_the_explorer_tells_every_run_of_its_radius_and_the_papers_point(
    tmp_path, records
):
    state = sweeps.explorer(records, PRINTED).state | {"rho": 0.3}
    told = story(tmp_path, state)
    here = [r for r in records if r.experiment.rho == 0.3]
    assert told[0] == (
        "ρ = 0.3 at lite scale, 0.5 at the paper's: 5 runs (seeds 0, 1, 2, 3, 4)."
    )
    mean = sum(r.accuracy.overall for r in here) / 5
    each = ", ".join(f"{r.accuracy.overall:.1f}".removesuffix(".0") for r in here)
    assert told[1].startswith("overall: ")
    assert float(told[1].split()[1]) == pytest.approx(mean, abs=0.06)
    assert told[1].endswith(f"each run {each}.")
    assert told[5] == "The paper at ρ = 0.5: overall 80.6 %, tail 72.2 %."


def test_the_explorer_says_what_the_paper_lacks_and_when_nothing_is_stored(
    tmp_path, records
):
    state = sweeps.explorer(records, PRINTED).state
    largest = story(tmp_path, state | {"rho": 0.78})
    assert largest[-1] == "The paper shows nothing at ρ = 1.3."
    empty = sweeps.explorer([], PRINTED, "quick").state
    assert story(tmp_path, empty) == ["No stored run at quick scale yet."]


def test_the_explorer_holds_measured_values_and_nothing_between(records):
    state = sweeps.explorer(records, PRINTED).state
    assert len(state["runs"]) == len(records)
    assert {run["rho"] for run in state["runs"]} == {
        at_scale(e, "lite").rho for e in studies.rho_ablation()
    }
    assert {p["rho"] for p in state["printed"]} == {0.05, 0.1, 0.2, 0.5, 0.8}


def test_the_table_of_radii_lists_all_registered_ones_run_or_not(records):
    some = [r for r in records if r.experiment.rho in (0.0, 0.3)]
    table = sweeps.plot_radii(some, PRINTED)
    assert list(table["ρ, paper's scale"]) == [f"{rho:g}" for rho in studies.RADII]
    assert list(table["runs"]) == ["5", "0", "0", "0", "5", "0", "0"]
    row = table.loc["0.3"]
    assert (row["overall, paper"], row["tail, paper"]) == ("80.6", "72.2")
    mean = sum(r.accuracy.tail for r in some if r.experiment.rho) / 5
    assert row["tail"].startswith(f"{mean:.1f} ± ")
    assert table.loc["0.78", "tail"] == table.loc["0", "tail, paper"] == "–"
    assert list(sweeps.plot_radii([], PRINTED)["runs"]) == ["0"] * 7


def test_the_papers_curve_in_words_is_that_of_the_poster():
    assert sweeps.shape(PRINTED) == (
        "tail from 62.8 at ρ = 0.05 to 72.9 at 0.8, highest 72.9 at 0.8; overall from "
        "77.0 at ρ = 0.05 to 77.2 at 0.8, highest 80.6 at 0.5"
    )
    assert sweeps.shape(sweeps.over_radius([])) == "not run yet"


def test_a_curve_draws_every_run_and_its_means(records):
    table = sweeps.by_group(sweeps.runs(records), ("overall", "tail"))
    ax = sweeps.plot_curve(table, "rho", "accuracy", "group")
    points, means = ax.lines[0], ax.lines[1]
    assert len(points.get_xdata()) == len(records)
    assert list(means.get_xdata()) == sorted({r.experiment.rho for r in records})
    first = [r.accuracy.overall for r in records if r.experiment.rho == 0]
    assert means.get_ydata()[0] == pytest.approx(sum(first) / 5)
    assert f"overall {means.get_ydata()[0]:.3g} at 0" in ax.get_label()


def test_an_empty_study_draws_as_not_run_yet():
    table = sweeps.by_group(sweeps.runs([]))
    ax = sweeps.plot_curve(table, "rho", "accuracy", "group")
    assert "not run yet" in svg.inline(ax.figure)
    assert "not run yet" in sweeps.plot_strips(table).get_label()
    assert sweeps.setting_or_none([]) == "not run yet"


def test_a_scatter_draws_the_line_of_the_runs_it_is_asked_for():
    x, other = [0.1, 0.2, 0.4], [0.8]
    rows = [{"loss": v, "tail": 50 + 10 * math.log(v), "knob": "a"} for v in x]
    rows += [{"loss": v, "tail": 0.0, "knob": "b"} for v in other]
    table = pd.DataFrame(rows)
    ax = sweeps.plot_scatter(table, "loss", "tail", "knob", log=True, line="a")
    fitted, beyond = ax.lines[-2:]
    assert fitted.get_ydata()[-1] == pytest.approx(50 + 10 * math.log(0.4))
    assert (list(beyond.get_xdata()), beyond.get_linestyle()) == ([0.1, 0.8], "--")
    assert beyond.get_ydata()[-1] == pytest.approx(50 + 10 * math.log(0.8))
    assert len(sweeps.plot_scatter(table, "loss", "tail", "knob").lines) == 2


def test_rivals_are_undecided_whatever_they_give():
    printed = report.paper("optimizers", "cifar10")
    runs = [made(at_scale(e, "full"), 77, 65) for e in studies.optimizers()]
    table = sweeps.comparison(runs, printed)
    for name in ("CE+DRW+PGD", "CE+DRW+LPF-SGD"):
        assert table.loc[name, "verdict"] == "undecided: protocol not published"
    # no spread printed
    assert table.loc["CE+DRW", "verdict"] == "overall undecided, tail undecided"
    assert table.loc["CE+DRW+PGD", "tail, paper"] == "65.0"
    empty = sweeps.comparison([], printed)
    assert list(empty["runs"]) == [0, 0, 0, 0]


def test_reruns_stand_beside_the_papers_rows_of_the_same_cell():
    table = sweeps.reruns(report.paper("reruns"), report.paper("table1"))
    row = table[(table.index == "CIFAR-100-LT") & (table["method"] == "VS")].iloc[0]
    assert list(row[1:]) == ["41.7", "42.7", "46.3", "46.6"]
    assert len(table) == 6


def test_a_scatter_draws_every_run_of_every_knob(records):
    table = sweeps.runs(records)
    ax = sweeps.plot_scatter(table, "tail_train_loss", "tail", "method", log=True)
    assert sum(len(line.get_xdata()) for line in ax.lines) == len(records)
    assert len(ax.lines) == table["method"].nunique()
