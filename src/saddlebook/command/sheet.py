"""What the ``spectra`` command leaves: a record that can be checked, and a table.

Knows JSON values; no network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saddlebook.disk.files import dump_json, load_json, sha256
from saddlebook.disk.provenance import is_current
from saddlebook.errors import CorruptError, UsageError, explained

SCHEMA = "saddlebook spectra 1"
_HEAD = ("class", "images", "λmin", "λmax", "|λmin/λmax|", "trace", "loss", "‖∇loss‖")


def to_bytes(told: dict[str, Any], items: list[dict[str, Any]]) -> bytes:
    """The record: what was measured, of what, and a digest of all of it."""
    content = {"schema": SCHEMA, "of": told, "classes": items}
    return dump_json(content | {"digest": sha256(dump_json(content))})


def load(path: str | Path) -> dict[str, Any]:
    """Read a record and check that it is whole and unedited.

    Returns:
        ``of`` (checkpoint, model, data, settings) and ``classes``: a list of spectra
        as ``Spectrum.to_dict`` has them, with class, images, loss (nats), norm of its
        gradient, and provenance.

    Raises:
        CorruptError: Damaged, edited, or another kind of file.
    """
    content = load_json(path)
    with explained(f"{path} is no record of the spectra command", "move it away"):
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']!r}")
        if content.pop("digest", None) != sha256(dump_json(content)):
            raise CorruptError(f"{path}: digest mismatch, it was edited or damaged")
        table(content["classes"])  # holds all that is shown
        return content | {"of": dict(content["of"])}


def resumed(path: Path, told: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Classes in the record that this code measured, by number; none without one.

    Raises:
        UsageError: It is of something else, by ``told``.
        CorruptError: As ``load``.
    """
    if not path.exists():
        return {}
    content = load(path)
    if other := [name for name in told if content["of"].get(name) != told[name]]:
        raise UsageError(
            f"{path} holds another measurement ({', '.join(other)} differ); move it "
            "away, or give another --out"
        )
    return {item["class"]: item for item in content["classes"] if _is_current(item)}


def _is_current(item: dict[str, Any]) -> bool:
    origin = item["provenance"]  # without a digest in records of older versions
    return is_current(origin["numerics"], origin.get("curvature", ""))


def finished(item: dict[str, Any] | None, steps: int) -> bool:
    """Whether both ends converged, or ``steps`` steps were not enough for it."""
    return item is not None and (all(item["converged"]) or item["steps"] >= steps)


def table(items: list[dict[str, Any]]) -> str:
    """A line a class; a value that did not converge is no number."""
    rows = [_HEAD, *map(_row, items)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _row(item: dict[str, Any]) -> tuple[str, ...]:
    low, high = item["converged"]
    return (
        f"{item['class']} {item['name']}",
        str(item["images"]),
        _cell(item, "lambda_min", low),
        _cell(item, "lambda_max", high),
        _cell(item, "nonconvexity", low and high),
        f"{item['trace']:.4g} ± {item['trace_error']:.1g}",
        f"{item['loss']:.3g}",
        f"{item['gradient_norm']:.3g}",
    )


def _cell(item: dict[str, Any], name: str, known: bool) -> str:
    if not known:
        return "unconverged"
    if item[name] is None:  # the ratio, where no eigenvalue is above zero
        return "undefined"
    return f"{item[name]:.4g} ± {item[f'{name}_bound']:.1g}"
