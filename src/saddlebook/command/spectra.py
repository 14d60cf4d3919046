"""``python -m saddlebook spectra``: class spectra of a user's own network.

A table, a figure and a record; the latter two are written whole after every class, so
that a stopped measurement goes on where it was.
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

from saddlebook import data, runner
from saddlebook.command import sheet as spectra_sheet
from saddlebook.command import subject
from saddlebook.command.subject import Subject
from saddlebook.curvature.hessian import PRECISIONS, solve
from saddlebook.curvature.problem import Problem
from saddlebook.curvature.spectrum import rounded
from saddlebook.data.folders import Images
from saddlebook.disk.files import write_whole
from saddlebook.disk.provenance import Provenance
from saddlebook.errors import (
    MachineError,
    NumericalError,
    Stopped,
    UsageError,
    nearest,
    one_of,
)
from saddlebook.progress import Progress

_NUMERICS = ("steps", "seed", "rtol", "precision")


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
    add("--limit", type=int, help="at most so many images of a class, drawn by --seed")
    add(
        "--steps",
        type=int,
        default=100,
        help="most Lanczos steps; memory is steps times parameters",
    )
    add("--rtol", type=float, default=1e-3, help="stop at this accuracy of both ends")
    add("--seed", type=int, default=0)
    add("--batch-size", type=int, help="images at a time; fewer take less memory")
    add("--precision", default="full", help=", ".join(PRECISIONS))
    add("--device", default="cpu", help="cpu, cuda or cuda:N")
    add("--out", help="of OUT.json and OUT.svg; default: CHECKPOINT-spectra, here")
    add("--quiet", action="store_true", help="no progress bar")


def command(options: argparse.Namespace, show: Callable[[str], None]) -> int:
    """Measure, write, and show a table.

    Args:
        options: As ``add_options`` has them.
        show: Called with what goes to stdout.

    Raises:
        NumericalError: An end did not converge; all is written, and marked.
        SaddlebookError: Anything else; classes finished before are kept.
    """
    draw = _drawing()
    _check(options)
    chosen = subject.build(options)
    numbers = _classes(options.classes, chosen.images)
    out = options.out or f"{Path(options.checkpoint).stem}-spectra"
    path = Path(f"{out}.json")
    done = spectra_sheet.resumed(path, chosen.told)
    progress = Progress(len(numbers) * options.steps, not options.quiet, "step")
    with progress.signals():
        try:
            for place, number in enumerate(numbers):
                if spectra_sheet.finished(done.get(number), options.steps):
                    continue
                tick = _ticking(progress, number, place * options.steps)
                done[number] = _measured(chosen, number, options, tick)
                items = [done[n] for n in sorted(done)]
                write_whole(path, spectra_sheet.to_bytes(chosen.told, items))
                write_whole(f"{out}.svg", draw(items))
        finally:
            progress.close()
            if progress.signal == signal.SIGINT:
                raise KeyboardInterrupt
    show(spectra_sheet.table([done[n] for n in numbers]))
    show(f"\nin {path} (record) and {out}.svg (densities)")
    _complain([n for n in numbers if not all(done[n]["converged"])], options.steps)
    return 0


def _drawing() -> Callable[[list[dict[str, Any]]], bytes]:
    try:
        from saddlebook.command.figure import densities
    except ImportError as error:
        raise MachineError(
            f"the figure needs {error.name}; pip install 'saddlebook[book]'"
        ) from error
    return densities


def _check(options: argparse.Namespace) -> None:
    """What can be refused before anything is read."""
    runner.check_device(options.device)
    one_of("precision", options.precision, PRECISIONS)
    for name in ("limit", "image_size", "max_count", "batch_size", "steps", "rtol"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise UsageError(f"--{name.replace('_', '-')} {value} must be above 0")


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
    x = chosen.inputs(number, order[: options.limit].sort().values)
    y = torch.full((len(x),), number)
    settings = {name: getattr(options, name) for name in _NUMERICS}
    output = options.output
    output = int(output) if output and output.isdecimal() else output
    problem = Problem(
        chosen.model, chosen.loss, x, y, options.batch_size, output=output
    )
    found, product, _ = solve(problem, progress=tick, **settings)
    return (
        {"class": number, "name": images.class_names[number], "images": len(x)}
        | {"steps": found.steps}
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
