"""The whole paper in one command: the plan is the chapters', and it stops in time."""

import ast
from pathlib import Path

import pytest

from saddlebook import studies
from saddlebook.book import notebooks, reproduce
from saddlebook.errors import Stopped, UsageError
from saddlebook.findings import readme
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
            if "OF_HYPOTHESES" in ast.unparse(node):
                found |= set(readme.OF_HYPOTHESES)
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
    lines = list(reproduce.told_plan(parts, 1000.0))
    assert lines[-1].split()[1] == str(len(todo))
    assert len({len(line) for line in lines}) == 1


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
