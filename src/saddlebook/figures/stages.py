"""Computes pictures for every choice of a few controls, to be shown without a kernel.

Long tails and their batches (chapter 1), weights and margins (2), Lanczos step by step
(4), the ends of a class's spectrum through training (5). All is computed here, by the
functions that experiments call; ``stages.js`` only looks up. Points, texts and numbers
are nested lists with a level for each control that they depend on.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from saddlebook import losses
from saddlebook.data import class_counts, long_tail_indices
from saddlebook.data.augmentation import epoch_plan, padding
from saddlebook.data.sources import CLASS_NAMES
from saddlebook.errors import UsageError
from saddlebook.figures.widgets import Widget
from saddlebook.findings.tables import ENDS
from saddlebook.theory.known import (
    ByStep,
    boundary_toy,
    plane_points,
    recurrence_by_step,
)

if TYPE_CHECKING:
    from saddlebook.data import Dataset
    from saddlebook.record import Record

Part = dict[str, Any]
_CLASSES = ("class", -0.8, 9.8)  # an axis: label, least, greatest


def _staged(
    text: str, legend: Mapping[str, str], sheet: str = "", **parts: Any
) -> Widget:
    """A widget of ``controls``, ``views``, ``layers`` and ``story``.

    Args:
        text: What it is, for readers without it.
        legend: Words by colour.
        sheet: Address of the images that tiles are cut from.
        **parts: Made by the functions below.
    """
    state = parts | {"legend": list(legend.items()), "sheet": sheet}
    known = {c["name"]: c["values"] for c in parts["controls"]}
    first = {c["name"]: c["first"] for c in parts["controls"]}
    return Widget(("plot.js", "stages.js"), state | first, text, known)


def _control(
    name: str, label: str, values: Iterable[Any], first: Any, **more: Any
) -> Part:
    """A slider, or with ``words`` a list; ``pause`` (ms) adds a button to play it."""
    return {"name": name, "label": label, "values": list(values), "first": first} | more


def _view(title: str, x: Sequence[Any], y: Sequence[Any], **more: Any) -> Part:
    """A picture. An axis has a label, least and greatest value, and perhaps ``log``."""
    axes = [{"domain": a[1:3], "kind": (*a[3:], "linear")[0]} for a in (x, y)]
    labels = {"title": title, "xLabel": x[0], "yLabel": y[0]}
    return labels | {"x": axes[0], "y": axes[1]} | more


def _layer(
    view: int, mark: str, kind: str, by: Sequence[str], points: Any, **more: Any
) -> Part:
    """Marks in a view. ``axis``: the coordinate that is a step; later ones wait."""
    what = {"view": view, "mark": mark, "kind": f"sb-{kind}"}
    return what | {"by": by, "points": _shorter(points)} | more


def _sentence(
    text: Any, by: Sequence[str], values: Any, of: Sequence[str] = ()
) -> Part:
    """A text, which may depend on the controls ``of``, with numbers for {0}, {1}, …"""
    return {"of": of, "text": text, "by": by, "values": _shorter(values)}


def _shorter(value: Any) -> Any:
    """Floats at 3 significant digits, in lists too."""
    if isinstance(value, list):
        return [_shorter(part) for part in value]
    return float(f"{value:.3g}") if isinstance(value, float) else value


def _bars(rows: Iterable[Iterable[float]]) -> list[list[list[float]]]:
    """Points (class, value) of each row of values."""
    return [[[i, value] for i, value in enumerate(row)] for row in rows]


# --- chapter 4


def lanczos_stepper(steps: int = 24, seeds: Sequence[int] = (0, 1, 2)) -> Widget:
    """The released recurrence step by step, on an operator that is kept or redrawn.

    Args:
        steps: Products to show.
        seeds: Of the start vector and of the operator.
    """
    runs = [
        [_points(recurrence_by_step(seed, steps, fixed=fixed)) for seed in seeds]
        for fixed in (True, False)
    ]
    by, up = ["operator", "start"], ("step", 0, steps + 1)

    def part(name: str) -> list[Any]:
        return [[run[name] for run in row] for row in runs]

    def layer(view: int, mark: str, kind: str, name: str, **more: Any) -> Part:
        return _layer(view, mark, kind, by, part(name), **more)

    operators, told = ["fixed", "redrawn"], [f"seed {seed}" for seed in seeds]
    words = ["always the same", "drawn anew"]
    return _staged(
        "Lanczos step by step, on an operator that is kept or drawn anew.",
        {"sam": "Ritz values; off-diagonal β of T", "sgd": "true smallest and largest",
         "drift": "diagonal α of T"},
        controls=[
            _control("operator", "Operator", operators, "fixed", words=words),
            _control("start", "Start", seeds, seeds[0], words=told),
            _control("step", "Step", range(1, steps + 1), 3 * steps // 4, pause=350),
        ],
        views=[
            _view("Ritz values and true ends, by step", ("eigenvalue", -10, 10), up),
            _view("|λmin/λmax| as reported", up, ("ratio", 0, 1.05)),
            _view("The small matrix T", up, ("entry", -1, 8)),
        ],
        layers=[
            layer(0, "upright", "tick", "kept"),
            layer(0, "dot", "sgd", "ends", axis=1),
            layer(0, "dot", "sam", "ritz", axis=1, size=4),
            layer(1, "line", "sam", "ratio", axis=0),
            layer(1, "dot", "sam", "ratio", axis=0, size=4),
            layer(2, "dot", "drift", "alpha", axis=0),
            layer(2, "dot", "sam", "beta", axis=0),
        ],
        story=[_sentence(_TOLD_STEPS, [*by, "step"], part("numbers"), by[:1])],
    )  # fmt: skip


_TOLD_STEPS = [
    "After {0} products the Ritz values reach from {1} to {2}, so |λmin/λmax| = {3}. "
    + rest
    for rest in (
        "The operator stayed the same: its eigenvalues lie between {4} and {5}. Ritz "
        "values come near them from within, so none is negative.",
        "Each product saw another operator, with eigenvalues of at least {4}; the "
        "largest was between {5} and {6}. Nothing curves down: the recurrence makes "
        "the mirror.",
    )
]


def _points(run: ByStep) -> Part:
    """Points and numbers of one run, by what they show."""
    low, top = run.truth[:, [0, -1]].T.tolist()
    same = low[0] == low[-1]
    ratio = [abs(ritz[0] / ritz[-1]) for ritz in run.ritz]
    count = range(1, len(ratio) + 1)
    return {
        "kept": [[v] for v in run.truth[0].tolist() if v > 0.1] if same else [],
        "ends": [[end, k] for ends in (low, top) for k, end in enumerate(ends, 1)],
        "ritz": [[v, k] for k, ritz in enumerate(run.ritz, 1) for v in ritz],
        "ratio": list(map(list, zip(count, ratio, strict=True))),
        "alpha": list(map(list, zip(count, run.alpha, strict=True))),
        "beta": list(map(list, zip(count, run.beta, strict=True))),
        "numbers": [
            [
                k,
                ritz[0],
                ritz[-1],
                ratio[k - 1],
                min(low[:k]),
                min(top[:k]),
                max(top[:k]),
            ]
            for k, ritz, part in zip(count, run.ritz, ratio, strict=True)
        ],
    }


# --- chapter 1

SHEET = "cifar10.webp"  # some training images of each class, see ``image_sheet``
_SIDE, _SHOWN, _BATCH = 32, 6, 64  # pixels, images of a class, images of a batch


def image_sheet(images: Dataset) -> bytes:
    """The first images of each class in the published draw, a row a class, as WebP.

    Args:
        images: CIFAR-10 (Krizhevsky 2009), the whole training set.
    """
    from PIL import Image

    kept = long_tail_indices(images.train_labels, [_SHOWN] * images.num_classes)
    rows = images.train_images[torch.from_numpy(kept)].permute(0, 2, 3, 1)
    cells = rows.reshape(images.num_classes, _SHOWN, _SIDE, _SIDE, 3)
    whole = cells.transpose(1, 2).reshape(-1, _SHOWN * _SIDE, 3).numpy()
    buffer = io.BytesIO()
    Image.fromarray(whole).save(buffer, "webp", quality=85, method=6)
    return buffer.getvalue()


def tail_explorer(factors: Sequence[int] = (1, 2, 5, 10, 20, 50, 100, 200)) -> Widget:
    """Class counts under an imbalance factor, and batches as training cuts them.

    Order, crops and flips are those of the first epochs of a run with seed 0; of each
    class the sheet has a few images, which stand for the others.
    """
    counts, batches = [class_counts(5000, 10, f) for f in factors], [1, 2, 3]
    drawn = [[_batch(some, number) for number in batches] for some in counts]
    numbers = [
        [[factor, sum(some), some[0], some[-1], *groups] for groups, _ in row]
        for factor, some, row in zip(factors, counts, drawn, strict=True)
    ]
    by = ["imbalance", "batch"]
    names = [f"{i} {name}" for i, name in enumerate(CLASS_NAMES["cifar10"])]
    images = ("images", 10, 12_000, "log")
    tops = [[[i, 1.35 * n, 0, i] for i, n in enumerate(some)] for some in counts]
    tiles = [[tile for _, tile in row] for row in drawn]
    content = (resources.files("saddlebook.figures") / SHEET).read_bytes()
    return _staged(
        "Class counts and a batch of CIFAR-10 under an imbalance factor.",
        {"sgd": "classes: " + ", ".join(names)},
        "data:image/webp;base64," + base64.b64encode(content).decode(),
        controls=[
            _control("imbalance", "Imbalance IF", factors, 100, pause=900),
            _control("batch", "Batch", batches, 1),
        ],
        views=[
            _view("Training images of each class", _CLASSES, images),
            _view("A batch as the network sees it", ("", -0.5, 7.5), ("", -0.5, 7.5),
                  bare=True, height=364),
        ],
        layers=[
            _layer(0, "bar", "sgd", by[:1], _bars(counts)),
            _layer(0, "tile", "tile", by[:1], tops, size=26),
            _layer(1, "tile", "tile", by, tiles, size=35),
        ],
        story=[_sentence(_TOLD_TAIL, by, numbers)],
    )  # fmt: skip


_TOLD_TAIL = (
    "At IF {0} the training set has {1} images: {2} of the largest class and {3} of "
    f"the rarest. Of this batch of {_BATCH}, {{4}} are of the three largest classes, "
    "{5} of the four between and {6} of the three rarest."
)


def _batch(counts: Sequence[int], number: int) -> tuple[list[int], list[list[int]]]:
    """An epoch's first batch: head, mid, tail; tiles of place, cell, crop, flip."""
    plan = epoch_plan(0, number, sum(counts), _SIDE)
    chosen = plan.order[:_BATCH]
    starts = np.cumsum([0, *counts[:-1]])
    labels = np.repeat(np.arange(len(counts)), counts)[chosen]
    cells = (chosen.numpy() - starts[labels]) % _SHOWN
    place = np.arange(_BATCH)
    moves = (plan.offsets[chosen] - padding(_SIDE)).numpy().T
    flips = plan.flips[chosen].numpy().astype(int)
    tiles = np.stack([place % 8, 7 - place // 8, cells, labels, *moves, flips], 1)
    groups = np.histogram(labels, [0, 3, 7, 10])[0]
    return groups.tolist(), tiles.tolist()


# --- chapter 2


def weight_explorer(
    betas: Sequence[float] = (0, 0.9, 0.99, 0.999, 0.9999),
    margins: Sequence[float] = (0, 0.25, 0.5),
    counts: Sequence[int] = (400, 12),
) -> Widget:
    """Class-balanced weights, LDAM's margins, and their line between two classes.

    Args:
        betas: β of the weights, to choose from.
        margins: Of the rarest class, to choose from; 0 is cross-entropy.
        counts: Training points of the two classes in the plane.
    """
    tail, by = class_counts(5000, 10, 100), ["beta", "margin"]
    weights = [losses.class_weights(tail, beta).tolist() for beta in betas]
    scaled = [(m * losses.ldam_margins(tail, 1.0)).tolist() for m in margins]
    found = [[boundary_toy(counts, beta, m) for m in margins] for beta in betas]
    lines = [[_across(toy.boundary.tolist()) for toy in row] for row in found]
    right = [[toy.right.tolist() for toy in row] for row in found]
    points, labels = plane_points(counts)
    frequent, rare = (points[labels == y].tolist() for y in (0, 1))
    size = ("weight", 0.003, 5, "log")
    return _staged(
        "Class weights, margins, and the boundary of two classes in the plane.",
        {"sgd": f"frequent class, {counts[0]} points",
         "sam": f"rare class, {counts[1]} points, and the boundary",
         "here": "boundary of plain cross-entropy"},
        controls=[
            _control("beta", "Weights' β", betas, betas[-1], pause=900),
            _control("margin", "Largest margin", margins, margins[-1]),
        ],
        views=[
            _view("Weight of each class, mean 1", _CLASSES, size),
            _view("Margin of each class", _CLASSES, ("margin", 0, 0.55)),
            _view("Two classes in the plane", ("x", -4, 4), ("y", -3, 3)),
        ],
        layers=[
            _layer(0, "bar", "sgd", by[:1], _bars(weights)),
            _layer(1, "bar", "drift", by[1:], _bars(scaled)),
            _layer(2, "dot", "sgd sb-faint", [], frequent, size=2),
            _layer(2, "dot", "sam", [], rare, size=3.5),
            _layer(2, "line", "here", [], lines[0][0]),
            _layer(2, "line", "sam", by, lines),
        ],
        story=[
            _sentence("The rarest class weighs {0} times as much as the largest.",
                      by[:1], [[w[-1] / w[0]] for w in weights]),
            _sentence("Margins go from {0} to {1}, in units of a cosine.", by[1:],
                      [[m[0], m[-1]] for m in scaled]),
            _sentence("In the plane {0} % of new points of the frequent class and {1} %"
                      " of the rare one lie on their side.", by, right),
        ],
    )  # fmt: skip


def _across(boundary: Sequence[float]) -> list[list[float]]:
    """Ends of the line a·x + b·y + c = 0 in the plane's window."""
    a, b, c = boundary
    return [[-(b * y + c) / a, y] for y in (-3.0, 3.0)]


# --- chapter 5

_MODES = ("clean", "as_published")


def class_stepper(records: Sequence[Record]) -> Widget:
    """Both ends of one class's spectrum through training, fixed and as published.

    Of classes and epochs only those that every record has with images fixed.

    Args:
        records: Such as the runs whose networks are shipped; told apart by method.

    Raises:
        UsageError: No class was measured at every epoch of every record.
    """
    runs = [
        {(s["mode"], s["class"], s["epoch"]): s for s in r.spectra} for r in records
    ]
    epochs = sorted(
        {epoch for run in runs for mode, _, epoch in run if mode == _MODES[0]}
    )
    counts = records[0].per_class["class_counts"]
    classes = [
        y for y in range(len(counts))
        if epochs and all((_MODES[0], y, e) in run for run in runs for e in epochs)
    ]  # fmt: skip
    if not classes:
        raise UsageError("no class was measured at every epoch; pass other records")

    def ends(mode: str) -> list[Any]:
        return [[[[e, run[mode, y, e][end]] for e in epochs if (mode, y, e) in run
                  for end in ENDS] for y in classes] for run in runs]  # fmt: skip

    def ratios(mode: str) -> list[Any]:
        return [[[[y, _ratio(run[mode, y, e])] for y in classes if (mode, y, e) in run]
                 for e in epochs] for run in runs]  # fmt: skip

    methods = [record.experiment.method for record in records]
    fixed, published = map(ends, _MODES)
    here = [[[e]] for e in epochs]
    by, time = ["network", "label", "epoch"], ("epoch", 0, epochs[-1] * 1.03)
    numbers = [[[_numbers(run, counts, y, e) for e in epochs] for y in classes]
               for run in runs]  # fmt: skip
    return _staged(
        "Ends of one class's spectrum, by network, class and epoch.",
        {"sgd": "images fixed", "sam": "as published"},
        controls=[
            _control("network", "Network", methods, methods[0], words=methods),
            _control("label", "Class", classes, classes[-1],
                     words=[f"{y} ({counts[y]} images)" for y in classes]),
            _control("epoch", "Epoch", epochs, epochs[-1], pause=900),
        ],
        views=[
            _view("Images fixed: λmin and λmax", time, ("eigenvalue", *_span(fixed))),
            _view("As published: what is reported", time, ("value", *_span(published))),
            _view("|λmin/λmax| of each class", _CLASSES, ("ratio", 0, 1.05)),
        ],
        layers=[
            *(_layer(i, "upright", "here", by[2:], here) for i in (0, 1)),
            *(_layer(i, "line", "zero", [], [[0, 0], [time[2], 0]]) for i in (0, 1)),
            _layer(0, "dot", "sgd", by[:2], fixed, size=4),
            _layer(1, "dot", "sam", by[:2], published, size=4),
            _layer(2, "upright", "here", by[1:2], [[[y]] for y in classes]),
            _layer(2, "dot", "sgd", by[::2], ratios(_MODES[0]), size=4),
            _layer(2, "dot", "sam", by[::2], ratios(_MODES[1]), size=4),
        ],
        story=[_sentence(_TOLD_ENDS, by, numbers)],
    )  # fmt: skip


_TOLD_ENDS = (
    "Class {0}, {1} training images, epoch {2}. Images fixed: λmin = {3}, λmax = {4}, "
    "|λmin/λmax| = {5}. As published, with new crops in every product: {6}."
)


def _ratio(spectrum: Mapping[str, Any]) -> float:
    return float(abs(spectrum["lambda_min"] / spectrum["lambda_max"]))


def _numbers(
    run: Mapping[Any, Any], counts: Sequence[int], y: int, e: int
) -> list[Any]:
    """What is told of a class at an epoch; None: not measured as published."""
    here, other = run[_MODES[0], y, e], run.get((_MODES[1], y, e))
    ends = [here[end] for end in ENDS]
    return [y, counts[y], e, *ends, _ratio(here), _ratio(other) if other else None]


def _span(nested: Any) -> tuple[float, float]:
    """Least and greatest second coordinate with some room, 0 among them."""
    values = [y for row in nested for part in row for _, y in part] or [1.0]
    return 1.05 * min(0, *values), 1.05 * max(0, *values)
