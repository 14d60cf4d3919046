"""Workers: they share runs out, tell how far they are, and die with their parent."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from saddlebook import runner, studies, workers
from saddlebook.__main__ import main
from saddlebook.disk.files import locked
from saddlebook.errors import ResourceError, Stopped
from saddlebook.experiment import Experiment
from saddlebook.runner import Progress
from saddlebook.scales import at_scale
from saddlebook.store import Store

RUN = ["run", "control", "--scale", "quick", "--seeds", "0,1", "--workers=2"]
CONTROL = studies.named("control", "quick", [0, 1])


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def results(records):
    return [(r.experiment, r.curves, r.per_class, r.best_epoch) for r in records]


def children(pid):
    """Workers of a process, by their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = path.joinpath("stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == pid and b"spawn_main" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except (OSError, ValueError):
            continue
    return found


def started(*more):
    """The command in a process of its own, once its first record is there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "saddlebook", *RUN, *more],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(Path().glob("results/quick/*.json")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    return process, children(process.pid)


def test_no_worker_outlives_its_parent_and_the_command_goes_on_to_the_same_bits():
    process, crew = started()
    assert crew
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}/cmdline").exists() for pid in crew):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for run in CONTROL:  # no lock outlives its owner
        with locked(Path(runner.WORK) / f"{run.slug}.lock", "test"):
            pass
    assert main(RUN[:-1]) == 0
    whole = runner.run_all(CONTROL, work="alone")
    assert results(Store("results/quick").records(CONTROL)) == results(whole)


def test_a_stop_reaches_the_workers():
    process, crew = started("--quiet")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    if process.returncode:  # 0: the last run had just ended
        assert process.returncode == 130
        assert "kept" in errors.splitlines()[-1]
    assert not [pid for pid in crew if Path(f"/proc/{pid}/cmdline").exists()]
    assert Store("results/quick").verify()


def shared_until(number, lines):
    """One worker trains ``CONTROL`` and gets a signal after its first epoch."""
    hit: list[int] = []

    def hit_it(*told):
        if not hit:
            hit.extend(children(os.getpid()))
            for pid in hit:
                os.kill(pid, number)

    watcher = Progress(1, show=False)
    watcher.epoch_done = hit_it
    if number == signal.SIGSTOP:
        watcher.stopped = lambda: bool(hit)
    places = {"results": "results", "data_root": None, "work": runner.WORK}
    try:
        workers.share(CONTROL, ["cpu"], watcher=watcher, note=lines.append, **places)
    finally:
        assert len(hit) == 1
        assert not [pid for pid in hit if Path(f"/proc/{pid}/cmdline").exists()]


def test_a_worker_that_is_killed_is_named_and_nothing_is_lost():
    with pytest.raises(ResourceError, match=r"without a word \(exit code -9\)"):
        shared_until(signal.SIGKILL, [])
    whole = runner.run_all(CONTROL[:1], work="alone")
    assert results(runner.run_all(CONTROL[:1])) == results(whole)


def test_workers_that_die_together_are_an_error_and_not_a_closed_pipe():
    process, crew = started("--quiet")
    process.send_signal(signal.SIGSTOP)
    for pid in crew:
        os.kill(pid, signal.SIGKILL)
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == ResourceError.exit_code
    assert "without a word" in errors


def test_a_worker_that_waits_for_another_is_not_called_silent(monkeypatch):
    monkeypatch.setattr(workers, "_SILENCE", 0)
    crew = workers._Crew([], Progress(1, show=False), lambda line: None)
    crew.busy["pipe"], crew.heard["pipe"] = [], 0.0
    crew._name_silent()
    assert crew.heard["pipe"] == 0.0


def test_a_worker_that_hangs_holds_up_no_stop(monkeypatch):
    monkeypatch.setattr(workers, "_PATIENCE", 1)
    lines: list[str] = []
    with pytest.raises(Stopped, match="the same command continues"):
        shared_until(signal.SIGSTOP, lines)
    assert any(f"a worker that hung in {CONTROL[0].slug}" in line for line in lines)
    whole = runner.run_all(CONTROL[:1], work="alone")
    assert results(runner.run_all(CONTROL[:1])) == results(whole)


def test_runs_that_share_a_training_are_not_in_two_hands_and_a_foreign_one_is_left(
    capsys,
):
    words = ["run", "curvature", "--scale", "quick", "--seeds", "0", "--workers=2"]
    only = ["--only", "CE+DRW,CE+DRW wd=0.001", "--quiet"]
    runs = studies.named("curvature", "quick", [0])
    held = next(e for e in runs if e.rho == 0)
    with locked(Path(runner.WORK) / f"{held.training.slug}.lock", "test"):
        assert main([*words, *only]) == 8
    assert f"pid {os.getpid()}" in capsys.readouterr().err
    assert len(list(Path("results/quick").iterdir())) == 1


def test_the_bar_ends_at_its_end_also_after_a_resume_and_with_spectra():
    run = at_scale(Experiment(reweight="drw", spectra_at=(200,)), "quick")
    screen = io.StringIO()
    bar = Progress.over([run], file=screen)
    for epoch in range(4, run.epochs + 1):  # three epochs were done before
        bar.epoch_done(run.training, {"epoch": epoch, "train_loss": 1.0})
    before = bar.worked
    bar.measuring(run, 0, 8, "class 0")
    bar.measuring(run, 8, 8, "class 9")
    bar.close()
    assert bar.worked - before == pytest.approx(runner.measuring_work(run))
    assert before == pytest.approx(runner.training_work(run) * 7 / 10)
    assert "100%" in screen.getvalue().splitlines()[-1].rpartition("\r")[2]


def test_a_run_with_sam_is_twice_the_work_and_one_training_counts_once():
    sgd, sam = studies.control([0])
    ratio = runner.training_work(sam) / runner.training_work(sgd)
    assert 1.9 < ratio < 2
    timing = [runner.training_work(e) for e in studies.sam_timing([0])]
    plain = runner.training_work(studies.table1(seeds=[0])[0])
    assert sum(timing) == pytest.approx(3 * plain, rel=0.03)
    measured = studies.dynamics([0])
    both = [*measured, *(e.training for e in measured)]
    assert runner.total_work(both) == pytest.approx(runner.total_work(measured))
    assert runner.total_work(measured) > runner.total_work(
        [e.training for e in measured]
    )


def test_a_worker_without_a_word_is_named_once(monkeypatch):
    monkeypatch.setattr(workers, "_SILENCE", 60)
    lines = []
    crew = workers._Crew([], Progress(1, show=False), lines.append)
    crew.busy, crew.processes = {"pipe": CONTROL[:1]}, {"pipe": os}
    monkeypatch.setattr(os, "pid", 7, raising=False)
    for ago, told in ((0, 0), (59, 0), (61, 1)):
        crew.heard["pipe"] = time.monotonic() - ago
        crew._name_silent()
        crew._name_silent()
        assert len(lines) == told
    assert f"{CONTROL[0].slug} (pid 7) has said nothing for 1 minutes" in lines[0]
