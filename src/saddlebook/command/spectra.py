"""Measures class spectra of a user's own network: ``python -m saddlebook spectra``.

A table, a figure and a record that can be checked; the latter two are written whole
after every class, so that a stopped measurement goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from saddlebook import data
from saddlebook.command import subject
from saddlebook.command.subject import Subject
from saddlebook.curvature.hessian import PRECISIONS, solve
from saddlebook.curvature.problem import Problem
from saddlebook.curvature.spectrum import rounded
from saddlebook.data.folders import Images
from saddlebook.disk.files import dump_json, load_json, sha256, write_whole
from saddlebook.disk.provenance import Provenance, check_device, is_current
from saddlebook.errors import (
    CorruptError,
    MachineError,
    NumericalError,
    Stopped,
    UsageError,
    explained,
    nearest,
    one_of,
    printable,
)
from saddlebook.runner import Progress

SCHEMA = "saddlebook spectra 1"
_HEAD = ("class", "images", "λmin", "λmax", "|λmin/λmax|", "trace", "loss", "‖∇loss‖")


def to_bytes(told: dict[str, Any], items: list[dict[str, Any]]) -> bytes:
    """The record: what was measured, of what, and a digest of all of it."""
    content = {"schema": SCHEMA, "of": told, "classes": items}
    return dump_json(content | {"digest": sha256(dump_json(content))})


def read_sheet(path: str | Path) -> dict[str, Any]:
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
        sheet_table(content["classes"])  # holds all that is shown
        return content | {"of": dict(content["of"])}


def resumed(path: Path, told: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Classes in the record that this code measured, by number; none without one.

    Raises:
        UsageError: It is of something else, by ``told``.
        CorruptError: As ``read_sheet``.
    """
    if not path.exists():
        return {}
    content = read_sheet(path)
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


def sheet_table(items: list[dict[str, Any]]) -> str:
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


_COLUMNS, _MOST = 2, 12  # panels of a row and of a figure; the table has every class


def densities(items: list[dict[str, Any]]) -> bytes:
    """Spectral densities on symmetric-log axes, linear below the widest bound: an SVG.

    Stems are single converged eigenvalues; the first twelve classes are drawn.
    """
    from saddlebook.figures import style

    shown = items[:_MOST]
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    axes = style.panels(columns, height=2.6 * rows, rows=rows)
    for ax, item in zip(axes, shown, strict=False):
        known = "" if all(item["converged"]) else " (ends unconverged)"
        _panel(item, ax)
        name = f"class {item['class']} {printable(item['name'])}{known}"
        ax.set_title(name, parse_math=False)
    for ax in axes[len(shown) :]:
        ax.remove()
    axes[0].set_ylabel("share of eigenvalues per decade")
    figure = axes[0].get_figure(root=True)
    assert figure is not None
    return style.standalone(figure)


def _panel(item: dict[str, Any], ax: Any) -> None:
    import pandas as pd

    from saddlebook.figures.spectra import plot_density

    bounds = item["lambda_min_bound"], item["lambda_max_bound"]
    scale = max(abs(item["lambda_min"]), abs(item["lambda_max"]))
    if scale == 0:
        ax.set_xlabel("no curvature at all")
        return
    row = {"item": item, "method": "this network", "reported": False}
    plot_density(pd.DataFrame([row]), max(*bounds, 1e-6 * scale), ax)


def _check_drawing() -> None:
    """That what the figure needs is installed, before anything is measured."""
    try:
        from saddlebook.figures import spectra  # noqa: F401
    except ImportError as error:
        raise MachineError(
            f"the figure needs {error.name}; pip install 'saddlebook[book]'"
        ) from error


_NUMERICS = ("steps", "seed", "rtol", "precision", "basis")


def add_options(command: argparse.ArgumentParser) -> None:
    """Everything the command can be told."""
    add = command.add_argument
    add("checkpoint", help="state dict (.pt, .pth) or saddlebook export (.weights)")
    add("--data", required=True, help="cifar10, cifar100, digits, or a folder")
    add("--root", default=os.environ.get("SADDLEBOOK_DATA"), help="of a named data set")
    add("--classes", help="numbers or names, such as 0,7,9; default: all with images")
    add("--model", help="resnet32, resnet8, a torchvision name, or module:function")
    add("--loss", help=f"{', '.join(subject.LOSSES)}; default: ce")
    add("--normalise", help=f"{', '.join(subject.COLOURS)}; imagenet for torchvision")
    add("--imbalance-factor", type=float, help="cut to the published long tail")
    add("--max-count", type=int, help="images of the largest class")
    add("--image-size", type=int, help="pixels")
    add("--class-order", choices=("text", "number"), help="of numbered class folders")
    add("--output", help="which of several outputs are the logits: number or name")
    add("--held-out", action="store_true", help="the test images")
    add("--views", action="store_true", help="the mean loss over all crops and flips")
    add("--limit", type=int, help="at most so many images of a class, drawn by --seed")
    add(
        "--steps",
        type=int,
        default=100,
        help="most Lanczos steps; memory is steps times parameters",
    )
    add("--basis", type=int, help="most vectors in memory; fewer than steps: restarts")
    add("--rtol", type=float, default=1e-3, help="stop at this accuracy of both ends")
    add("--seed", type=int, default=0)
    add("--batch-size", type=int, help="images at a time; fewer take less memory")
    add("--precision", default="full", help=", ".join(PRECISIONS))
    add("--device", default="cpu", help="cpu, cuda or cuda:N")
    add("--out", help="of OUT.json and OUT.svg; default: CHECKPOINT-spectra, here")
    add("--quiet", action="store_true", help="no progress bar")


def measure_spectra(options: argparse.Namespace, show: Callable[[str], None]) -> int:
    """Measure, write, and show a table.

    Args:
        options: As ``add_options`` has them.
        show: Called with what goes to stdout.

    Raises:
        NumericalError: An end did not converge; all is written, and marked.
        SaddlebookError: Anything else; classes finished before are kept.
    """
    _check_drawing()
    _check(options)
    chosen = subject.find_subject(options)
    numbers = _classes(options.classes, chosen.images)
    out = options.out or f"{Path(options.checkpoint).stem}-spectra"
    path = Path(f"{out}.json")
    done = resumed(path, chosen.told)
    progress = Progress(len(numbers) * options.steps, not options.quiet, "step")
    with progress.signals():
        try:
            for place, number in enumerate(numbers):
                if finished(done.get(number), options.steps):
                    continue
                tick = _ticking(progress, number, place * options.steps)
                done[number] = _measured(chosen, number, options, tick)
                items = [done[n] for n in sorted(done)]
                write_whole(path, to_bytes(chosen.told, items))
                write_whole(f"{out}.svg", densities(items))
        finally:
            progress.close()
            if progress.signal == signal.SIGINT:
                raise KeyboardInterrupt
    show(sheet_table([done[n] for n in numbers]))
    show(f"\nin {path} (record) and {out}.svg (densities)")
    _complain([n for n in numbers if not all(done[n]["converged"])], options.steps)
    return 0


def _check(options: argparse.Namespace) -> None:
    """What can be refused before anything is read."""
    check_device(options.device)
    one_of("precision", options.precision, PRECISIONS)
    for name in (
        "limit", "image_size", "max_count", "batch_size", "steps", "rtol", "basis",
        "imbalance_factor",
    ):  # fmt: skip
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise UsageError(f"--{name.replace('_', '-')} {value} must be above 0")
    if options.seed < 0:
        raise UsageError(f"--seed {options.seed} must be at least 0")


def _classes(text: str | None, images: Images) -> list[int]:
    """Class numbers from ``--classes``, each with images."""
    if text is None:
        return [number for number, size in enumerate(images.sizes) if size]
    numbers = [_class(part.strip(), images) for part in text.split(",")]
    return list(dict.fromkeys(numbers))


def _class(part: str, images: Images) -> int:
    names = images.class_names
    # a name comes first: folders may be named by other numbers than their labels
    number = int(part) if part.isdecimal() else -1
    if part in names:
        number = names.index(part)
    if not 0 <= number < len(names):
        hint = "" if part.isdecimal() else nearest(part, names)
        raise UsageError(
            f"no class {part!r} in {images.name}: {hint}give numbers from 0 "
            f"({names[0]}) to {len(names) - 1} ({names[-1]}), or names"
        )
    if not images.sizes[number]:
        raise UsageError(f"class {number} ({names[number]}) has no images")
    return number


def _ticking(
    progress: Progress, number: int, before: int
) -> Callable[[int, int], None]:
    """After every step: move the bar, and stop if that was asked for."""

    def tick(step: int, _: int) -> None:
        progress.at(before + step, f"class {number}")
        if progress.stopped():
            raise Stopped(
                f"stopped in class {number}; finished classes are kept, the same "
                "command continues"
            )

    return tick


def _measured(
    chosen: Subject,
    number: int,
    options: argparse.Namespace,
    tick: Callable[[int, int], None],
) -> dict[str, Any]:
    """One class as the record keeps it."""
    began, images = time.monotonic(), chosen.images
    source = Provenance.start(options.device, options.precision, images.digest)
    order = data.epoch_order(options.seed, 0, images.sizes[number])
    rows = order[: options.limit].sort().values
    x = chosen.inputs(number, rows)
    y = torch.full((len(x),), number)
    settings = {name: getattr(options, name) for name in _NUMERICS}
    output = options.output
    output = int(output) if output and output.isdecimal() else output
    problem = Problem(
        chosen.model, chosen.loss, x, y, options.batch_size, output=output
    )
    found, product, state = solve(problem, progress=tick, **settings)
    return (
        {"class": number, "name": images.class_names[number], "images": len(rows)}
        | {"views": len(x) // len(rows), "steps": state.steps}
        | found.to_dict()
        | {"loss": rounded(product.value())}
        | {"gradient_norm": rounded(float(product.gradient().double().norm()))}
        | {"provenance": source.after(round(time.monotonic() - began, 1)).to_dict()}
    )


def _complain(numbers: list[int], steps: int) -> None:
    if numbers:
        raise NumericalError(
            f"class {', '.join(map(str, numbers))}: an end did not converge in {steps} "
            "steps and is marked; give more --steps"
        )
