"""Checks the values that papermill puts into a chapter before anything runs.

Knows source text and IPython's cells; what a value may be, ``studies.check_values``.
"""

from __future__ import annotations

import ast
import itertools
import math
from collections.abc import Mapping
from typing import Any

from saddlebook.errors import UsageError, one_of
from saddlebook.studies import check_values

# Of every chapter, with their defaults, which set the types
PARAMETERS: dict[str, Any] = {
    "scale": "lite", "device": "cpu", "results": "results", "data": "", "train": False,
    "seeds": "", "precision": "", "workers": 1,
}  # fmt: skip


def check_parameters(declared: str, given: Mapping[str, Any]) -> None:
    """Refuse parameters that a chapter does not declare, or of another type.

    Args:
        declared: Source of the chapter's ``parameters`` cell; its values set the types.
        given: Names and values to run it with.

    Raises:
        UsageError: Names the parameter, and the nearest one there is.
    """
    check_types(_assigned(declared), given)


def check_types(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse names without a default, other types, and values that cannot be.

    Raises:
        UsageError: Names the parameter, and the nearest one there is.
    """
    for name, value in given.items():
        one_of("parameter", name, defaults)
        kind = type(defaults[name])
        number = kind is float and type(value) in (int, float)
        kinds = (str, int, list) if name == "seeds" else (kind,)
        if not (number or type(value) in kinds):
            raise UsageError(
                f"parameter {name}={value!r} must be a {kind.__name__}, such as "
                f"{defaults[name]!r}"
            )
        if number and not math.isfinite(value):
            raise UsageError(f"parameter {name}={value!r} must be finite")
    check_values(given)


def _assigned(source: str) -> dict[str, Any]:
    """Names and literal values of a cell that holds assignments only."""
    found: dict[str, Any] = {}
    for node in ast.parse(source).body:
        if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)):
            raise UsageError(
                "a parameters cell holds only lines such as scale = 'lite'"
            )
        found[node.targets[0].id] = _literal(node.value)
    return found


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call):  # papermill writes float('nan') and float('inf')
        return float(ast.literal_eval(node.args[0]))
    return ast.literal_eval(node)


def check_injected() -> None:
    """Check what papermill put in; its own command line only warns of unknown names."""
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    cells: list[str] = shell.user_ns.get("In", []) if shell else []
    for before, cell in itertools.pairwise(cells):
        if cell.startswith("# Parameters\n"):
            check_parameters(before, _assigned(cell))
