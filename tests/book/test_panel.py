"""The lab, driven through its widget object and its messages, on digits."""

import json
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import traitlets
from records import grouped

from saddlebook import data, runner
from saddlebook.book import Page
from saddlebook.book import trial as trials
from saddlebook.book.notebooks import PARAMETERS
from saddlebook.book.panel import Panel, presets
from saddlebook.book.trial import Trial, compared, trial_setting
from saddlebook.disk.files import write_whole
from saddlebook.errors import DataError, Stopped, UsageError
from saddlebook.experiment import Experiment
from saddlebook.scales import at_scale
from saddlebook.store import RESULTS, Store

RHO = 0.1


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder of results with one stored run at RHO."""
    folder = tmp_path_factory.mktemp("results")
    exp = trial_setting("quick", rho=RHO, weight_decay=2e-4, seed=0)
    runner.run(exp, results=folder, work=folder / "work")
    return folder


@pytest.fixture
def panel(results, tmp_path):
    panel = Panel(results, scale="quick", work=tmp_path)
    panel.choose(rho=RHO)
    return panel


def ask(panel, what, **more):
    """Press a button of the picture."""
    panel.live._handle_custom_msg({"do": what, **more}, [])


def wait(panel):
    panel.trials.latest.wait(120)
    assert not panel.trials.running


def epochs(panel):
    """Epochs as the picture is told them."""
    seen = []
    panel.live.observe(lambda change: seen.append(change["new"]["epoch"]), "now")
    return seen


def stop_at(panel, epoch):
    """Press Stop, twice, as soon as the picture shows ``epoch``."""
    pressed = []

    def look(change):
        if change["new"]["epoch"] == epoch and not pressed:
            pressed.append(epoch)
            ask(panel, "stop")
            ask(panel, "stop")

    panel.live.observe(look, "now")
    return pressed


@pytest.fixture(scope="module")
def finished(results, tmp_path_factory):
    """A panel after one run, with every state it showed."""
    panel = Panel(results, scale="quick", work=tmp_path_factory.mktemp("work"))
    panel.choose(rho=RHO)
    panel.seen = []
    panel.live.observe(lambda change: panel.seen.append(change["new"]), "now")
    ask(panel, "run")
    wait(panel)
    return panel


def test_a_run_falls_exactly_onto_the_stored_one(finished, results):
    (stored,) = Store(results / "quick").records()
    assert finished.trials.latest.record.curves == stored.curves
    (mine,), (theirs,) = finished.live.yours, finished.live.stored
    assert [mine[n] for n in ("rho", "tail", "overall", "curve")] == [
        theirs[n] for n in ("rho", "tail", "overall", "curve")
    ]
    assert f"tail {theirs['tail']:.1f} %" in finished.live.now["message"]


def test_a_press_brings_what_the_reader_saw(panel):
    """Jupyter holds controls back while the kernel is busy, but not a press."""
    ask(panel, "run", setting={"rho": 0.2, "seed": 3})
    exp = panel.trials.latest.experiment
    ask(panel, "stop")
    wait(panel)
    assert (exp.rho, exp.seed) == (0.2, 3)
    ask(panel, "run", setting={"rho": -1.0})
    assert "rho -1.0" in panel.live.now["message"]
    panel.choose(rho=0.1)
    assert panel.live.now["message"] == ""  # it spoke of another setting


def test_curves_grow_with_every_test_and_end_as_the_record(finished, results):
    (stored,) = Store(results / "quick").records()
    lengths = [len(now["curve"]["tail"]) for now in finished.seen]
    assert sorted(lengths) == lengths
    assert set(lengths) == set(range(11))
    last = finished.live.now["curve"]
    assert last["head"] == pytest.approx(stored.curves["head"], abs=0.01)
    assert last["overall"] == pytest.approx(stored.curves["accuracy"], abs=0.01)


def test_the_jump_of_the_loss_at_the_switch_has_words(finished):
    told = "rare classes now weigh more"
    jumped = {now["epoch"] for now in finished.seen if told in now["message"]}
    assert jumped == {9, 10}


def test_the_rarest_class_is_measured_by_itself_both_ways(finished):
    (mine,) = finished.live.yours
    assert [(s["class"], s["mode"]) for s in mine["spectra"]] == [
        (9, "clean"), (9, "as_published"),
    ]  # fmt: skip
    assert all(s["min"] < s["max"] for s in mine["spectra"])
    told = [now["message"] for now in finished.seen]
    assert any("rarest class, images fixed: step 5 of at most" in t for t in told)


def test_a_panel_made_again_has_the_earlier_runs_and_the_setting(finished, results):
    again = Panel(results, scale="quick", work=finished.trials.work)
    assert again.trials is finished.trials
    assert again.live.rho == RHO
    assert again.live.yours == finished.live.yours


def test_a_kernel_started_again_has_the_earlier_runs(finished, results, monkeypatch):
    monkeypatch.setattr(trials, "_KERNEL", {})
    again = Panel(results, scale="quick", work=finished.trials.work)
    assert again.trials is not finished.trials
    assert again.live.yours == finished.live.yours


def test_a_panel_made_again_adopts_the_running_trial(panel, results, tmp_path):
    pressed = stop_at(panel, 3)
    ask(panel, "run")
    again = Panel(results, scale="quick", work=tmp_path)
    again.first(rho=0.05)  # as the chapter's cell does, run again
    assert again.live.rho == RHO
    assert again.trials.latest is panel.trials.latest
    assert again.live.now["state"] == "running"
    ask(again, "run")  # changes nothing
    wait(again)
    assert pressed == [3]
    assert again.live.now == panel.live.now
    assert "goes on" in again.live.now["message"]

    seen = epochs(again)
    ask(again, "run")
    wait(again)
    assert [e for e in dict.fromkeys(seen) if e > 3] == [4, 5, 6, 7, 8, 9, 10]
    (stored,) = Store(results / "quick").records()
    assert again.trials.latest.record.curves == stored.curves
    assert len(again.live.now["curve"]["tail"]) == 10  # those of before the stop too


def test_stop_works_while_a_cell_waits_for_its_run(panel):
    pressed = stop_at(panel, 2)
    with pytest.raises(Stopped):
        panel.run(again=True)
    assert pressed == [2]


def test_an_interrupted_cell_stops_its_run(panel, monkeypatch):
    once = iter([KeyboardInterrupt])

    def wait(self, timeout=None):
        for error in once:
            raise error
        self._thread.join(timeout)

    monkeypatch.setattr(Trial, "wait", wait)
    with pytest.raises(Stopped):
        panel.run(again=True)
    assert panel.live.now["state"] == "stopped"


def test_a_stored_run_is_read_and_a_trial_too(finished, results, monkeypatch):
    (stored,) = Store(results / "quick").records()
    monkeypatch.setattr(runner, "run_all", None)
    assert finished.run(rho=RHO) == stored
    ask(finished, "run")
    wait(finished)
    assert finished.trials.latest.state == "done"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rho", -0.1), ("rho", "abc"), ("weight_decay", -1.0), ("seed", -1),
        ("seed", 1.5), ("scale", "ful"), ("method", "CE+DWR"),
    ],
)  # fmt: skip
def test_controls_refuse_what_they_cannot_be(panel, name, value):
    before = getattr(panel.live, name)
    with pytest.raises(traitlets.TraitError):
        setattr(panel.live, name, value)
    with pytest.raises(UsageError, match=name):
        panel.choose(**{name: value})
    assert getattr(panel.live, name) == before


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rho", float("nan"), "rho nan must be a finite float"),
        ("weight_decay", float("inf"), "weight_decay inf must be a finite float"),
        ("seed", 10**30, "seed is beyond 64 bits"),
    ],
)
def test_what_only_an_experiment_can_tell_is_told_in_the_panel(
    panel, name, value, message
):
    setattr(panel.live, name, value)
    ask(panel, "run")
    assert message in panel.live.now["message"]
    assert panel.live.now["bad"]
    assert panel.live.now["epoch"] == 0
    assert panel.trials.latest is None


def test_missing_images_are_told_in_the_panel(panel, tmp_path):
    panel.data = str(tmp_path)
    panel.choose(scale="lite")
    with pytest.raises(DataError):
        panel.run(rho=0.05)
    assert "cifar10" in panel.live.now["message"]
    assert panel.live.now["bad"]


def test_numbers_that_blow_up_advise_what_the_panel_has(panel):
    panel.choose(rho=1e30)
    ask(panel, "run")
    wait(panel)
    assert "lower ρ or weight decay" in panel.live.now["message"]
    assert panel.live.now["bad"]


def test_a_work_folder_that_is_a_file_is_told_too(results, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    panel = Panel(results, scale="quick", work=tmp_path / "file")
    ask(panel, "run")
    wait(panel)
    assert "cannot lock" in panel.live.now["message"]


def test_a_killed_kernel_loses_no_more_than_the_run_itself(results, tmp_path):
    code = """if True:
        import os, signal, sys
        from saddlebook.book.panel import Panel
        panel = Panel(sys.argv[1], scale="quick", work=sys.argv[2])
        die = lambda c: c["new"]["epoch"] == 4 and os.kill(os.getpid(), signal.SIGKILL)
        panel.live.observe(die, "now")
        panel.run(rho=0.1, again=True)
    """
    arguments = [sys.executable, "-c", code, str(results), str(tmp_path)]
    done = subprocess.run(arguments, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    panel = Panel(results, scale="quick", work=tmp_path)
    record = panel.run(rho=0.1, again=True)
    (stored,) = Store(results / "quick").records()
    assert record.curves == stored.curves


def test_b_is_compared_with_what_is_pinned_and_the_guess_is_answered(
    results, tmp_path, finished
):
    panel = Panel(results, scale="quick", work=finished.trials.work)
    ask(panel, "pin")
    panel.run(rho=0.0)
    table = panel.comparison().set_index("group")
    (a, b) = (next(r for r in panel.live.yours if r["rho"] == rho) for rho in (RHO, 0))
    change = b["overall"] - a["overall"]
    assert table.loc["overall", "difference"] == pytest.approx(change, abs=0.06)
    assert panel.live.answer == ""
    panel.live.guess = "more"
    assert panel.live.answer.startswith("You said the tail would rise. Your run: ")
    assert "too little to tell" in panel.live.answer  # one stored run has no spread
    ask(panel, "choose", setting={"rho": a["rho"], "seed": a["seed"]})
    assert panel.live.rho == RHO


def test_a_guess_is_judged_by_stored_seeds_too_where_one_run_cannot_tell(tmp_path):
    setting = trial_setting("lab", rho=0.5, weight_decay=2e-4, seed=0)
    (stored,) = (
        r for r in Store(RESULTS / "lab").records() if r.experiment.training == setting
    )
    mine = replace(stored, experiment=setting, spectra=())
    write_whole(tmp_path / "live/lab" / f"{setting.slug}.json", mine.to_bytes())
    panel = Panel(RESULTS, scale="lab", work=tmp_path)
    panel.choose(rho=0.5)
    panel.live.guess = "less"
    one, five = panel.live.answer.split(". ")[1:]
    assert one.startswith("Your run: −4.1 points")
    assert one.endswith("too little to tell")
    assert five.startswith("5 stored seeds: −26.3 points")
    assert five.endswith("right.")


def test_a_difference_counts_beside_what_seeds_do():
    def like(seed, tail):
        return grouped(at_scale(Experiment(seed=seed), "quick"), 90, 70, tail)

    stored = [like(seed, 50 + 2 * seed) for seed in range(5)]  # sd of the mean: 3.16
    for tail, word in ((60, "within"), (70, "more"), (20, "less")):
        (row,) = (
            r for r in compared(stored, [like(9, tail)], stored) if r["group"] == "tail"
        )
        assert row["noise"] == pytest.approx(2 * 3.162 * (1 / 5 + 1) ** 0.5, abs=0.06)
        assert row["difference"] == pytest.approx(tail - 54, abs=0.06)
        assert row["word"].startswith(word)
    assert compared(stored, stored[:1], stored[:1])[3]["noise"] == 0


def test_runs_are_exported_and_cleared(results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    panel = Panel(results, scale="quick", work=tmp_path / "work")
    assert panel.export() is None
    record = panel.run(rho=0.0)
    path = panel.export()
    assert Store(tmp_path).records() == [record]
    assert path.name in panel.live.now["message"]
    ask(panel, "clear")
    assert panel.live.yours == []
    assert Panel(results, scale="quick", work=tmp_path / "work").live.yours == []


def test_a_control_that_is_not_there_is_named(panel):
    with pytest.raises(UsageError, match="did you mean 'rho'"):
        panel.run(roh=0.1)


def test_presets_stand_at_stored_radii_of_their_scale():
    assert [p["rho"] for p in presets("lab")] == [0, 0.05, 0.5, 0]
    assert [p["rho"] for p in presets("lite")] == [0, 0.3, 0.78, 0]
    assert presets("lab")[3]["weight_decay"] == 10 * presets("lab")[0]["weight_decay"]
    # Other losses have another radius in the paper
    assert [p["rho"] for p in presets("lite", "LDAM+DRW")] == [0, 0.1, 0.26, 0]


def test_other_data_or_another_loss_bring_their_radius(panel):
    panel.choose(scale="lite")
    assert (panel.live.rho, panel.live.presets) == (0.3, presets("lite"))
    panel.choose(method="CE")
    assert panel.live.rho == 0.06
    panel.choose(rho=0.2, method="VS")  # what is said counts
    assert panel.live.rho == 0.2


def test_a_chapter_hands_its_data_folder_on(tmp_path):
    given = {"scale": "quick", "data": str(tmp_path), "results": str(tmp_path)}
    page = Page("ch08_rho", PARAMETERS | given)
    assert Panel.of(page).data == str(tmp_path)


def test_a_page_without_a_kernel_shows_what_was_run(finished):
    page = finished.to_html()
    assert json.dumps("ρ 0.1, wd 0.0002, seed 0")[1:-1] in page
    assert '"kernel":false' in page
    assert str(finished.trials.work) not in page


def test_time_left_is_that_of_the_epochs_seen(monkeypatch, tmp_path):
    clock = iter([100.0, 103.0, 106.0])
    monkeypatch.setattr("saddlebook.book.trial.time.monotonic", lambda: next(clock))
    told = []
    exp = trial_setting("quick", rho=0, weight_decay=0, seed=0)
    trial = Trial(exp, lambda: told.append(trial.message), work=tmp_path)
    for epoch in (5, 6, 7):  # resumed at 5 of 10
        trial.epoch_done(trial.experiment, {"epoch": epoch, "train_loss": 1.5})
    assert told == [
        "epoch 5 of 10, loss 1.500",
        "epoch 6 of 10, loss 1.500, 12 s left",
        "epoch 7 of 10, loss 1.500, 9 s left",
    ]


def test_a_reader_s_own_images_train_in_the_panel(tmp_path, monkeypatch):
    digits, counts = data.load("digits"), list(range(30, 10, -2))
    rows = data.long_tail_indices(digits.train_labels, counts)
    few = replace(
        digits,
        train_images=digits.train_images[rows], train_labels=digits.train_labels[rows],
    )  # fmt: skip
    data.to_folders(few, tmp_path / "mine")
    monkeypatch.setenv("SADDLEBOOK_DATA", str(tmp_path))
    panel = Panel(tmp_path, scale="quick", dataset="folder:mine", work=tmp_path / "w")
    record = panel.run(rho=0.05)
    assert record.experiment.dataset == "folder:mine"
    assert record.per_class["class_counts"] == counts
    assert panel.live.now["curve"]["tail"][-1] == pytest.approx(
        record.accuracy.tail, abs=0.01
    )
    assert [run["key"] for run in panel.live.yours] == [record.key]
    again = Panel(tmp_path, scale="quick", work=tmp_path / "w")
    assert again.live.yours == []  # digits are other images
