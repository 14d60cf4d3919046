"""The rooms of the package: arrows between them go one way, and none is crowded."""

import ast
from itertools import combinations
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src/saddlebook"
CORE = {"errors", "losses", "models", "optim", "schedules", "experiment", "scales"}
RUNS = set("studies record store measure workers runner".split())
# Room: what it may import besides itself
MAY = {
    "core": set(),
    "disk": {"core"},
    "data": {"core", "disk"},
    "train": {"core", "disk", "data"},
    "curvature": {"core", "disk", "data"},
    "runs": {"core", "disk", "data", "train", "curvature"},
    "theory": {"core", "curvature"},
    "findings": {"core", "disk", "data", "curvature", "runs", "theory"},
}
MAY["figures"] = MAY["findings"] | {"findings", "theory"}
MAY["book"] = MAY["command"] = MAY["figures"] | {"train", "figures"}


def room(name: str) -> str:
    """Of a module or folder directly in the package."""
    return "core" if name in CORE else "runs" if name in RUNS else name


def imported(path: Path) -> set[str]:
    """Rooms that a module names in an import, wherever it stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "saddlebook":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module.split(".")[1]} if _ours(node.module) else set()
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if _ours(a.name)}
    return {room(name) for name in found if name != "__version__"}


def _ours(name: str | None) -> bool:
    return str(name).startswith("saddlebook.")


def arrows() -> dict[tuple[str, str], list[str]]:
    """Pairs of rooms, with the modules that make them."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).parts
        if parts[0] in ("__init__.py", "__main__.py"):
            continue
        source = room(path.stem if len(parts) == 1 else parts[0])
        for target in imported(path) - {source}:
            found.setdefault((source, target), []).append("/".join(parts))
    return found


def test_every_arrow_between_rooms_points_the_agreed_way():
    wrong = {p: files for p, files in arrows().items() if p[1] not in MAY[p[0]]}
    assert wrong == {}
    assert len(arrows()) > 20  # it looked


def test_no_two_rooms_import_each_other():
    pairs = set(arrows())
    both = [p for p in combinations(MAY, 2) if p in pairs and p[::-1] in pairs]
    assert both == []


@pytest.mark.parametrize("name", sorted(set(MAY) - {"core", "runs"}))
def test_a_room_holds_at_most_fifteen_modules(name):
    modules = [p for p in (PACKAGE / name).glob("*.py") if p.stem != "__init__"]
    assert 2 <= len(modules) <= 15


def test_a_public_name_means_one_thing():
    places: dict[str, list[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_":
                places.setdefault(node.name, []).append(path.stem)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}
    assert len(places) > 300  # it looked


def test_the_package_stays_within_the_agreed_number_of_modules():
    assert len([p for p in PACKAGE.rglob("*.py") if p.stem != "__init__"]) <= 60
