"""Widgets: JavaScript against Python through Node, and what reaches the page."""

import json
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import traitlets
from playwright._impl._driver import compute_driver_executable
from records import record

from saddlebook.errors import UsageError
from saddlebook.experiment import Experiment
from saddlebook.figures import widgets
from saddlebook.record import Record
from saddlebook.scales import at_scale
from saddlebook.theory import saddles as s
from saddlebook.theory.landscapes import Rule, double_well, saddle, sam_gradient

NODE = shutil.which("node") or str(compute_driver_executable()[0])
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def js(tmp_path_factory):
    """Evaluate an expression over the module ``m`` and JSON ``data`` in Node."""
    folder = tmp_path_factory.mktemp("modules")

    def evaluate(modules, expression, data=None):
        path = folder / f"{'-'.join(modules)}.mjs"
        path.write_text(widgets.asset(*modules), "utf-8")
        code = (
            f"import * as m from {json.dumps(str(path))};"
            "import { readFileSync } from 'node:fs';"
            "const data = JSON.parse(readFileSync(0, 'utf8'));"
            f"const found = {expression};"
            "process.stdout.write(JSON.stringify(found, (k, x) =>"
            " typeof x === 'number' && !Number.isFinite(x) ? String(x) : x));"
        )
        done = subprocess.run(
            [NODE, "--input-type=module", "-e", code],
            input=json.dumps(data),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return evaluate


SADDLE = ("plot.js", "theory.js", "saddle.js")
RECORDS = ("plot.js", "records.js")


def _floats(values):
    """Node's numbers, infinities among them."""
    return np.array([float(v) for v in values])


# --- parity with Python, 1e-9


def test_the_factors_are_those_of_the_library(js) -> None:
    y, sigma = RNG.uniform(-1, 1, 300), RNG.uniform(0, 1, 300)
    rows = np.stack([y, sigma]).T.tolist()
    told = {
        "m.overshootThreshold(g)": s.overshoot_threshold(sigma),
        "m.roots(y, g).size": abs(s.roots(y, sigma)[0]),
    }
    calls = f"data.map(([y, g]) => [{', '.join(told)}])"
    seen = np.array([_floats(row) for row in js(SADDLE, calls, rows)]).T
    for call, column in zip(told, seen, strict=True):
        np.testing.assert_allclose(column, told[call], rtol=1e-9, atol=1e-9)


def test_regimes_are_named_alike(js) -> None:
    a = [0, 1e-9, 0.5, 1, 1.5, 2, 2.0001, 9]
    assert js(SADDLE, "data.map(m.regime)", a) == [s.regime(x) for x in a]


@pytest.mark.parametrize("normalised", [False, True])
def test_escape_times_are_those_of_the_library(js, normalised: bool) -> None:
    grid = np.meshgrid(
        [0.01, 0.21, 0.6], [0.01, 0.1, 1.3], [-0.3, -2.0], [0, 0.2, 0.5, 40], [0, 0.9]
    )
    start, eta, lam, rho, beta = (axis.ravel() for axis in grid)
    told = s.escape_time(start, eta, lam, rho, normalised, beta)
    call = f"m.escapeTime(y, e, l, r, {str(normalised).lower()}, b)"
    rows = np.stack([start, eta, lam, rho, beta]).T.tolist()
    seen = _floats(js(SADDLE, f"data.map(([y, e, l, r, b]) => {call})", rows))
    np.testing.assert_array_equal(seen, told)
    assert np.isfinite(seen).any()
    assert np.isinf(seen).any()


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("well", [False, True])
def test_walks_are_those_of_the_library(js, fresh, normalised, well) -> None:
    """The same noise, four normals a step, drives both."""
    rule = {
        "eta": 0.05, "rho": 0.3, "normalised": normalised, "beta": 0.5, "fresh": fresh,
        "lambda": -1.5, "quartic": 1.5 if well else 0, "sigma": 0.1, "exit": 1e9,
    }  # fmt: skip
    call = "(({rule}) => { const n = m.normals(7, 400);"
    call += " return {n: [...n], ...m.walk([0.5, 0.1], rule, 100, n)}; })(data)"
    seen = js(SADDLE, call, {"rule": rule})
    noise = 0.1 * np.array(seen["n"]).reshape(100, 2, 2, 1)
    land = replace(double_well(-1.5, 1.5) if well else saddle(-1.5), sigma=0.1)
    python = Rule(0.05, 0.3, normalised, 0.5, fresh)
    w, velocity = np.array([[0.5], [0.1]]), np.zeros((2, 1))
    path = [w]
    for first, second in noise:
        again = second if fresh else first
        g = sam_gradient(land, w, python, (first, None), (again, None))
        velocity = 0.5 * velocity + g
        w = w - 0.05 * velocity
        path.append(w)
    told = np.array(path)[:, :, 0]
    np.testing.assert_allclose(np.array(seen["path"]), told, rtol=0, atol=1e-9)


def test_the_noise_is_standard_normal_and_repeats(js) -> None:
    draws = np.array(js(SADDLE, "[...m.normals(3, 200000)]"))
    error = 1 / np.sqrt(draws.size)
    assert abs(draws.mean()) < 3 * error
    assert abs(draws.var() - 1) < 3 * np.sqrt(2) * error
    assert abs((draws**4).mean() - 3) < 3 * np.sqrt(96) * error
    assert abs((draws[1:] * draws[:-1]).mean()) < 3 * error
    assert js(SADDLE, "[...m.normals(3, 5)]") == draws[:5].tolist()
    assert js(SADDLE, "[...m.normals(4, 5)]") != draws[:5].tolist()


@pytest.mark.parametrize("batch", ["same", "fresh"])
def test_the_explorer_measures_what_theorem_1_predicts(js, batch: str) -> None:
    state = widgets.saddle_explorer(
        method="plain", rho=1.5, curvature=2.0, sigma=0.2, batch=batch
    ).state
    call = "m.look(data, m.normals(1, 4 * m.SIZE.walkers * m.SIZE.steps))"
    seen = js(SADDLE, f"(({{a, seen}}) => ({{a, seen}}))({call})", state)
    told = s.second_moment(1.5, -2.0, 0.1, 0.2, fresh=batch == "fresh")
    told = told / s.second_moment(0.0, -2.0, 0.1, 0.2)
    assert seen["a"] == 3
    # 2,000 draws of a ratio of squares: a standard error of about 3 %
    assert seen["seen"]["factor"] == pytest.approx(told, rel=0.1)
    assert seen["seen"]["drift"] == pytest.approx(1 - 3, abs=0.3)


def test_the_explorer_tells_what_it_shows(js) -> None:
    state = widgets.saddle_explorer().state
    call = "m.story(m.look(data, m.normals(1, 4 * m.SIZE.walkers * m.SIZE.steps)))"
    first, second, third = js(SADDLE, call, state)
    assert "a = ρ|λ|/‖g‖ = 2 with ‖g‖ = 0.1" in first
    assert "towards the saddle" in first
    assert "factor 1" in second
    told = s.escape_time(0.1, 0.05, -1.0)
    assert f"SGD leaves after {told:.0f} steps, SAM never" in third
    assert "100 % of the SGD walkers and 0 % of the SAM walkers" in third
    state["rho"] = 0.05
    first, _, third = js(SADDLE, call, state)
    assert "damped" in first
    told = s.escape_time(0.1, 0.05, -1.0, 0.05, normalised=True)
    assert f"SAM after {told:.0f} steps" in third


# --- records


def made_up(rho, seed=0, spectra=True, scale="quick") -> Record:
    optimizer = "sam" if rho else "sgd"
    exp = at_scale(Experiment(optimizer=optimizer, rho=rho, seed=seed), scale)
    at = (5, exp.epochs) if spectra else ()
    exp = replace(exp, spectra_at=at)
    last = [90.0 - 5 * label - seed for label in range(10)]
    found = [
        {
            "class": 9, "epoch": epoch, "mode": "clean", "lambda_min": -1.0 * epoch,
            "lambda_max": 7.5, "lambda_min_bound": 0.25, "lambda_max_bound": None,
            "nodes": [[-1.0 * epoch, 7.5]], "weights": [[0.1, 0.9]], "size": 3,
        }
        for epoch in at
    ]  # fmt: skip
    return record(exp, last, last, epochs=(5, exp.epochs), spectra=found)


def test_the_browser_shows_what_was_measured_and_nothing_else(js) -> None:
    records = [made_up(0.5, 0), made_up(0.5, 1), made_up(0.8, 1), made_up(0.0, 0)]
    state = widgets.record_browser(records).state
    told = js(RECORDS, "m.story(data)", state)
    assert "seed 0" in told[0]
    assert f"record {records[0].key}" in told[0]
    acc = records[0].accuracy
    assert f"epoch 10: overall {acc.overall:g} %, head {acc.head:g} %" in told[1]
    assert "Class 9 (8 training images): 45 %" in told[2]
    assert "λmin = −10 ± 0.25, λmax = 7.5, |λmin/λmax| = 1.33" in told[3]
    state |= {"epoch": 7}
    told = js(RECORDS, "m.story(data)", state)
    assert told[1] == "Accuracy was not measured at epoch 7."
    assert told[3] == "No spectrum of this class was measured at epoch 7."


def test_the_radius_stops_only_where_runs_exist(js) -> None:
    records = [made_up(rho, seed) for rho in (0.8, 0.5) for seed in (0, 1)]
    state = widgets.record_browser(records).state
    rhos = sorted({record.experiment.rho for record in records})
    assert js(RECORDS, "m.radii(data.records, data.method)", state) == rhos
    seeds = js(RECORDS, "m.runs(data.records, data).map((r) => r.seed)", state)
    assert seeds == [0, 1]
    call = "m.epochs(m.chosen(data), data)"
    assert js(RECORDS, call, state) == [5, 10]
    state["records"][0]["spectra"].pop(0)
    assert js(RECORDS, call, state) == [10]  # where this class was measured


def test_records_without_spectra_say_nothing_of_spectra(js) -> None:
    state = widgets.record_browser([made_up(0.5, 0, spectra=False)]).state
    assert len(js(RECORDS, "m.story(data)", state)) == 3


def test_a_browser_refuses_none_mixed_and_too_many_records() -> None:
    with pytest.raises(UsageError, match="one dataset and scale"):
        widgets.record_browser([])
    with pytest.raises(UsageError, match="one dataset and scale"):
        widgets.record_browser([made_up(0.5), made_up(0.5, scale="lite")])
    with pytest.raises(UsageError, match="fewer records"):
        widgets.record_browser([made_up(0.5)] * 250)


# --- what reaches the page


def test_html_is_the_same_every_time_and_loads_nothing() -> None:
    page = widgets.saddle_explorer().to_html()
    assert page == widgets.saddle_explorer().to_html()
    assert page != widgets.saddle_explorer(rho=0.3).to_html()
    assert "://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "src=" not in page
    assert len(page.encode()) < 40_000
    assert "\\n// " not in page


def test_state_cannot_end_its_script() -> None:
    widget = widgets.Widget(("plot.js",), {"name": "</script><b>"}, "<i>")
    page = widget.to_html()
    assert "</script><b>" not in page
    assert "<i>" not in page
    assert page.count("</script>") == 1


def test_a_widget_shows_a_picture_that_stays_and_a_live_view(monkeypatch) -> None:
    shown = []
    monkeypatch.setattr(
        "IPython.display.display", lambda what, **how: shown.append((what, how))
    )
    widget = widgets.saddle_explorer(rho=0.3)
    widget._ipython_display_()
    (saved, how), (live, _) = shown
    assert "afm-static" in saved["text/html"]
    assert "Run this cell" in saved["text/html"]
    assert "Explorer" in saved["text/plain"]
    assert how["display_id"]
    assert live is widget.live


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rho", "abc"),
        ("rho", -7),
        ("seed", "abc"),
        ("step_size", 1e9),
        ("method", "plane"),
    ],
)
def test_the_live_widget_refuses_what_it_cannot_show(name, value) -> None:
    live = widgets.saddle_explorer(rho=0.3).live
    before = getattr(live, name)
    with pytest.raises(traitlets.TraitError):
        setattr(live, name, value)
    assert getattr(live, name) == before


LAB = ("plot.js", "lab.js")


def test_numbers_are_read_as_people_write_them(js) -> None:
    texts = ["0,3", "0.3", " .5 ", "2e-4", "−1", "1.000,5", "abc", "", "1e", "0x10"]
    read = [0.3, 0.3, 0.5, 2e-4, -1, None, None, None, None, None]
    assert js(LAB, "data.map(m.number)", texts) == read


def test_what_a_box_refuses_has_words(js) -> None:
    calls = [["ρ", 0.3], ["ρ", None], ["ρ", -1], ["seed", 1.5], ["seed", 1e30]]
    calls += [["seed", 3]]
    told = js(LAB, "data.map(([n, v]) => m.trouble(n, v))", calls)
    assert [bool(t) for t in told] == [False, True, True, True, True, False]
    assert "0,3" in told[1]
    assert "whole" in told[3]
    assert "digits" in told[4]


def test_stored_seeds_are_averaged_point_by_point(js) -> None:
    groups = ("overall", "head", "mid", "tail")
    runs = [
        {"rho": 0.1, "weight_decay": 1e-3, "spectra": [], "words": "ρ 0.1, seed 3"}
        | {"curve": {"epoch": [1, 2], **{g: [x, 2 * x] for g in groups}}}
        | {g: 2 * x for g in groups}
        for x in (10, 20)
    ]
    found = js(LAB, "m.average(m.alike(data, {rho: .1, weight_decay: .001}))", runs)
    assert found["curve"]["tail"] == [15, 30]
    assert (found["tail"], found["words"]) == (30, "ρ 0.1, mean of 2 stored seeds")
    assert js(LAB, "m.average([])", []) is None


def test_the_live_widget_holds_the_state_and_the_same_module() -> None:
    widget = widgets.saddle_explorer(rho=0.3, method="plain")
    live = widget.live
    assert live is widget.live
    assert (live.rho, live.method) == (0.3, "plain")
    assert live.get_state()["rho"] == 0.3
    assert live.get_state()["_esm"] == widgets.asset(*widget.modules)
    heard = []
    live.observe(heard.append, names="rho")
    live.set_state({"rho": 0.7})
    assert live.rho == 0.7
    assert len(heard) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"rho": -0.1},
        {"rho": 4.1},
        {"rho": float("nan")},
        {"curvature": 0.0},
        {"step_size": 0.0},
        {"momentum": 1.0},
        {"sigma": -1.0},
        {"start": 0.0},
        {"method": "plane"},
        {"batch": "new"},
        {"landscape": "hill"},
        {"seed": "abc"},
        {"time": 401},
    ],
)
def test_bad_states_are_refused(wrong) -> None:
    (name,) = wrong
    with pytest.raises(UsageError, match=name):
        widgets.saddle_explorer(**wrong)


def test_a_state_that_is_not_json_is_refused() -> None:
    for value in (float("nan"), object()):
        with pytest.raises(UsageError, match="JSON"):
            widgets.Widget(("plot.js",), {"x": value}, "")


def test_a_widget_made_with_whole_numbers_takes_others_too() -> None:
    explorer = widgets.saddle_explorer(rho=1)
    explorer.live.rho = 0.25
    assert explorer.live.rho == 0.25


def test_the_browser_offers_the_modes_of_the_class_and_names_them(js) -> None:
    state = widgets.record_browser([made_up(0.5, 0)]).state
    assert state["ways"] == {"clean": "images fixed"}
    state["records"][0]["spectra"][0] |= {"mode": "redrawn", "class": 3}
    call = "m.modes(data.records, 9)"
    assert js(RECORDS, call, state) == ["clean"]
