"""The whole paper in one command: the plan is the chapters', and it stops in time."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from saddlebook import runner, studies
from saddlebook.book import notebooks, reproduce
from saddlebook.errors import Stopped, UsageError
from saddlebook.store import Store, find_records

ROOT = Path(__file__).parents[2]
CALLS = {"records", "gather", "second_set"}


def asked(path):
    """Names of studies that a chapter's source asks for."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in CALLS:
                found |= {a.value for a in node.args if isinstance(a, ast.Constant)}
            if ast.unparse(node.func) == "gather.with_spectra":
                found.add("dynamics")
    return found & set(studies.STUDIES)


def test_the_plan_has_what_the_chapters_ask_for():
    needs = {p.stem: asked(p) for p in notebooks.chapters(ROOT)}
    for chapter, names in reproduce.NEEDS.items():
        assert set(names) == needs.pop(chapter), chapter
    planned = {name for names in reproduce.NEEDS.values() for name in names}
    assert set().union(*needs.values()) <= planned  # the others read parts


@pytest.mark.parametrize("scale", ["lite", "full"])
def test_what_two_chapters_share_is_planned_once(scale):
    parts = reproduce.plan(scale, ROOT / "results")
    todo = [e for part in parts for e in part.todo]
    assert len(todo) == len(set(todo))
    names = {name for names in reproduce.NEEDS.values() for name in names}
    wanted = [e for name in names for e in studies.named(name)]
    assert set(todo) == set(find_records(wanted, ROOT / "results", scale).missing)
    for share, more in ((1.0, 0), (0.92, 0), (0.5, 1)):
        lines = list(reproduce.told_plan(parts, reproduce.Pace(1000.0, share)))
        assert len({len(line) for line in lines}) == 1
        assert "hours, as busy as now" in lines[0]
        assert lines[0].count("on free cores") == more
        _, count, *hours = lines[-1].split()
        now = sum(part.work for part in parts) / 1000.0 / 3600
        assert count == str(len(todo))
        expected = [now, now * share][: 1 + more]
        assert [float(h) for h in hours] == pytest.approx(expected, abs=0.005)


def test_it_stops_in_time_goes_on_and_builds_no_quick_book(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "NEEDS", {"intro": ("vs_tuning",)})
    places = {"results": str(tmp_path), "work": tmp_path / "work", "data_root": None}
    lines: list[str] = []
    options = places | {"say": lines.append, "show": False}
    with pytest.raises(Stopped, match="same command continues"):
        reproduce.reproduce(ROOT, "quick", limit=0.0, **options)
    assert not Store(tmp_path / "quick").records()
    monkeypatch.setattr(reproduce, "_execute", lambda *words: lines.append(words[1]))
    with pytest.raises(UsageError, match="no evidence"):
        reproduce.reproduce(ROOT, "quick", **options)
    assert len(Store(tmp_path / "quick").records()) == 4
    assert lines[-2:] == ["intro", "intro is done"]


@pytest.fixture
def busy_core():
    """The only core for this process and its children, one of them always at work."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system binds no process to a core")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        yield
        other.kill()
    os.sched_setaffinity(0, before)


def test_what_others_take_of_a_core_is_no_part_of_the_hours_on_free_cores(
    busy_core, tmp_path, monkeypatch
):
    monkeypatch.setattr(reproduce, "NEEDS", {"intro": ("vs_tuning",)})
    places = {"results": str(tmp_path), "work": tmp_path / "work", "data_root": None}
    parts = reproduce.plan("quick", tmp_path)
    asked = (60.0, False, print, ("cpu",), places)
    pace = reproduce._measured(parts, *asked)
    assert pace.rate > 0
    assert 0 < pace.share < 0.8
    assert "on free cores" in next(reproduce.told_plan(parts, pace))


def test_epochs_that_two_workers_end_at_once_tell_the_pace_of_one():
    timed = reproduce._Timed(1.0, 60, False)
    runs = studies.named("control", "full", [0, 1])[::2]
    for run in runs:
        row = {"epoch": 1, "train_loss": 1.0, "wall": 10.0, "cpu": 5.0}
        timed.epoch_done(run, row)
    epoch = runner.training_work(runs[0]) / runs[0].epochs
    assert timed.pace.rate == pytest.approx(epoch / 10)
    assert timed.pace.share == 0.5
