"""Checks the values that papermill puts into a chapter before anything runs.

Knows source text and IPython's cells.
"""

from __future__ import annotations

import ast
import itertools
import math
from collections.abc import Mapping
from typing import Any

from saddlebook.errors import UsageError, one_of


def check_parameters(declared: str, given: Mapping[str, Any]) -> None:
    """Refuse parameters that a chapter does not declare, or of another type.

    Args:
        declared: Source of the chapter's ``parameters`` cell; its values set the types.
        given: Names and values to run it with.

    Raises:
        UsageError: Names the parameter, and the nearest one there is.
    """
    defaults = _assigned(declared)
    for name, value in given.items():
        one_of("parameter", name, defaults)
        kind = type(defaults[name])
        number = kind is float and type(value) in (int, float)
        if not (number or type(value) is kind):
            raise UsageError(
                f"parameter {name}={value!r} must be a {kind.__name__}, such as "
                f"{defaults[name]!r}"
            )
        if number and not math.isfinite(value):
            raise UsageError(f"parameter {name}={value!r} must be finite")


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
