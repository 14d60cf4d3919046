"""The live panel, driven through its widget objects, on digits at quick scale."""

import json
import signal
import subprocess
import sys
import time

import pytest

from saddlebook import runner
from saddlebook.book.panel import Panel, Trial, trial_setting
from saddlebook.errors import DataError, UsageError
from saddlebook.store import Store

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
    return Panel(results, work=tmp_path)


def wait(panel):
    panel.trial.wait(120)
    assert not panel.running


def stop_at(panel, epoch):
    """Press Stop, twice, as soon as the bar reaches ``epoch``; when it was pressed."""
    pressed = []

    def press(change):
        if change["new"] == epoch:
            pressed.append(time.monotonic())
            panel.stop_button.click()
            panel.stop_button.click()

    panel.bar.observe(press, "value")
    return pressed


def test_a_run_falls_exactly_onto_the_stored_one(panel, results):
    panel.controls["rho"].value = RHO
    panel.run_button.click()
    wait(panel)
    (stored,) = Store(results / "quick").records()
    assert panel.trial.record.curves == stored.curves
    live = panel.box.children[-1]
    (mine,), (theirs,) = live.yours, live.runs
    assert {name: mine[name] for name in theirs} == theirs
    assert mine["words"] == "ρ = 0.1, weight decay 0.0002, seed 0"
    assert panel.bar.value == panel.bar.max == 10
    assert f"tail {theirs['tail']:.1f} %" in panel.status.value


def test_controls_are_disabled_exactly_while_it_runs(panel):
    seen = []

    def look(_):
        controls = {c.disabled for c in panel.controls.values()}
        seen.append((panel.run_button.disabled, panel.stop_button.disabled, controls))

    panel.bar.observe(look, "value")
    panel.run_button.click()
    wait(panel)
    assert set(map(str, seen[1:])) == {str((True, False, {True}))}
    look(None)
    assert seen[-1] == (False, True, {False})


def test_run_pressed_twice_is_one_run(panel):
    panel.run_button.click()
    first = panel.trial
    panel.run_button.click()
    assert panel.trial is first
    wait(panel)


def test_stop_comes_before_the_next_epoch_and_the_run_goes_on(panel, results):
    pressed = stop_at(panel, 4)
    panel.controls["rho"].value = RHO
    panel.run_button.click()
    wait(panel)
    assert len(pressed) == 1
    assert (panel.trial.state, panel.trial.epoch) == ("stopped", 4)
    assert "goes on" in panel.status.value
    assert not panel.run_button.disabled

    epochs = []
    panel.bar.observe(lambda change: epochs.append(change["new"]), "value")
    panel.run_button.click()
    wait(panel)
    assert epochs == [0, 5, 6, 7, 8, 9, 10]
    assert panel.trial.record.timing["resumes"] == 1
    (stored,) = Store(results / "quick").records()
    assert panel.trial.record.curves == stored.curves


def test_stop_before_and_after_a_run_changes_nothing(panel):
    panel.stop_button.click()
    panel.run_button.click()
    wait(panel)
    panel.stop_button.click()
    assert panel.trial.state == "done"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rho", -0.1, "rho -0.1 must be at least 0"),
        ("rho", float("nan"), "rho nan must be a finite float"),
        ("weight_decay", -1.0, "weight_decay -1.0 must be at least 0"),
        ("weight_decay", float("inf"), "weight_decay inf must be a finite float"),
        ("seed", -1, "seed -1 must be at least 0"),
    ],
)
def test_bad_values_are_told_in_the_panel_and_start_nothing(
    panel, name, value, message
):
    panel.controls[name].value = value
    panel.run_button.click()
    assert message in panel.status.value
    assert panel.trial is None
    assert not panel.run_button.disabled
    with pytest.raises(UsageError, match=message):
        panel.run()


def test_missing_images_are_told_in_the_panel(panel, tmp_path):
    panel.controls["scale"].value = "lite"
    panel.controls["data"].value = str(tmp_path)
    panel.run_button.click()
    wait(panel)
    assert "CIFAR" in panel.status.value or "cifar" in panel.status.value
    assert panel.trial.state == "failed"
    assert not panel.run_button.disabled
    with pytest.raises(DataError):
        panel.run()


def test_numbers_that_blow_up_are_told_in_the_panel(panel):
    panel.controls["rho"].value = 1e30
    panel.run_button.click()
    wait(panel)
    assert "lower lr or rho" in panel.status.value
    assert panel.trial.state == "failed"


def test_a_work_folder_that_is_a_file_is_told_too(results, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    panel = Panel(results, work=tmp_path / "file")
    panel.run_button.click()
    wait(panel)
    assert panel.trial.state == "failed"
    assert "cannot lock" in panel.status.value


def test_a_message_cannot_hold_markup(panel):
    panel._say("<script>alert(1)</script>")
    assert "<script>" not in panel.status.value


def test_a_killed_kernel_loses_no_more_than_the_run_itself(results, tmp_path):
    code = """if True:
        import os, signal, sys
        from saddlebook.book.panel import Panel
        panel = Panel(sys.argv[1], work=sys.argv[2])
        die = lambda c: c["new"] == 4 and os.kill(os.getpid(), signal.SIGKILL)
        panel.bar.observe(die, "value")
        panel.run(rho=0.1)
    """
    arguments = [sys.executable, "-c", code, str(results), str(tmp_path)]
    done = subprocess.run(arguments, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    record = Panel(results, work=tmp_path).run(rho=0.1)
    (stored,) = Store(results / "quick").records()
    assert record.curves == stored.curves


def test_the_same_settings_again_are_read_not_trained(panel):
    first = panel.run(rho=0.0)
    assert first.experiment.optimizer == "sgd"
    seen = []
    panel.bar.observe(lambda change: seen.append(change["new"]), "value")
    assert panel.run() == first
    assert set(seen) <= {0}
    assert len(panel.box.children[-1].yours) == 1


def test_a_control_that_is_not_there_is_named(panel):
    with pytest.raises(UsageError, match="did you mean 'rho'"):
        panel.run(roh=0.1)


def test_the_scale_chooses_the_stored_runs(panel):
    live = panel.box.children[-1]
    assert [run["rho"] for run in live.runs] == [RHO]
    panel.controls["scale"].value = "lite"
    assert (live.runs, live.scale) == ([], "lite")


def test_a_page_without_a_kernel_shows_what_was_run(panel, tmp_path):
    panel.run(rho=RHO)
    shown, _ = panel._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in shown
    assert "ρ = 0.1, weight decay 0.0002, seed 0" in shown["text/html"]
    assert str(tmp_path) not in json.dumps(shown)
    assert shown["text/html"] == panel.to_html()


def test_time_left_is_that_of_the_epochs_seen(monkeypatch):
    clock = iter([100.0, 103.0, 106.0])
    monkeypatch.setattr("saddlebook.book.panel.time.monotonic", lambda: next(clock))
    told = []
    trial = Trial(
        trial_setting("quick", rho=0, weight_decay=0, seed=0),
        lambda: told.append(trial.message),
    )
    for epoch in (5, 6, 7):  # resumed at 5 of 10
        trial.epoch_done(trial.experiment, {"epoch": epoch, "train_loss": 1.5})
    assert told == [
        "epoch 5 of 10, loss 1.500",
        "epoch 6 of 10, loss 1.500, 12 s left",
        "epoch 7 of 10, loss 1.500, 9 s left",
    ]
