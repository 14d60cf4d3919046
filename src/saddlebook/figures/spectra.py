"""Draws curvature: densities, dynamics, the line along a vector, the 2×2, controls.

Table from ``findings.tables`` in, matplotlib Axes out; every run is drawn. A density
stands on a symmetric-log axis, single eigenvalues as stems. What is not measured yet is
an empty panel that says so.

References:
    Rangwani et al. 2022 (symmetric-log spectra, ratios through training);
    Ghorbani et al. 2019 (density).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator
from numpy.typing import NDArray

from saddlebook.curvature.hessian import MODES
from saddlebook.curvature.spectrum import Spectrum
from saddlebook.figures.style import (
    BLUE,
    COLOURS,
    GREY,
    INK,
    ORANGE,
    log_axis,
    panels,
    styled,
)
from saddlebook.findings.tables import FALL, LAST, NONE, STAGES, pick
from saddlebook.findings.tables import label as class_number

_MODES = {
    mode: (MODES[mode].label, *drawn)
    for mode, drawn in {"as_published": (ORANGE, "s"), "clean": (BLUE, "o")}.items()
}


@styled
def plot_dynamics(
    table: pd.DataFrame,
    printed: pd.DataFrame,
    method: str,
    labels: Sequence[int] = (0, 2, 5, 7, 8),
) -> Axes:
    """Ratio through training, a panel a class: released, fixed, and the paper's.

    Args:
        table: From ``tables.spectra_table``.
        printed: From ``tables.published_dynamics``.
        method: Whose runs.
        labels: Classes; the paper's.
    """
    axes = panels(len(labels), height=2.8)
    epochs = _epochs(table)
    for ax, label in zip(axes, labels, strict=True):
        theirs = printed[(printed["method"] == method) & (printed["label"] == label)]
        ax.plot(_places(theirs["stage"]), theirs["nonconvexity"], "D:", color=GREY,
                markerfacecolor="none", linewidth=0.9, label="the paper")  # fmt: skip
        told = [f"paper {_path(theirs)}"]
        for mode, (name, colour, marker) in _MODES.items():
            part = pick(table, method=method, label=label, mode=mode)
            _runs(ax, part, colour, marker, name)
            told.append(f"{name} {_path(part)}")
        _name_epochs(ax, label, epochs)
        ax.set_label(f"ratio through training: {'; '.join(told)}.")
    axes[0].set_ylabel("|λmin/λmax|")
    axes[len(labels) // 2].set_xlabel("epoch")
    legend_once(axes)
    return axes[0]


def _runs(
    ax: Axes, part: pd.DataFrame, colour: str, marker: str, name: str, y: str = ""
) -> None:
    y = y or "nonconvexity"
    if part.empty:
        return
    ax.plot(_places(part["stage"]), part[y], linestyle="", marker=marker,
            markersize=3, color=colour, alpha=0.7, markeredgewidth=0,
            label=f"_{name}")  # fmt: skip
    mean = part.groupby("stage")[y].mean()
    ax.plot(_places(mean.index), mean, color=colour, marker=marker, label=name)


def _name_epochs(ax: Axes, label: int, epochs: Mapping[int, int]) -> None:
    """A class's panel: every second epoch named (``csv`` knows all), the switch."""
    log_axis(ax, "y")
    ax.set_title(f"class {label}")
    for first in (0, 1):
        ticks, named = range(first, len(STAGES), 2), STAGES[first::2]
        ax.set_xticks(ticks, [str(epochs[s]) for s in named], minor=bool(first))
    ax.tick_params(axis="x", which="minor", length=0, labelbottom=False)
    ax.axvline(_places([160])[0] + 0.5, color=INK, linewidth=1, linestyle=":")


def _places(stages: Iterable[int]) -> list[int]:
    return [STAGES.index(stage) for stage in stages]


def _epochs(table: pd.DataFrame) -> dict[int, int]:
    """Our epoch of each of the paper's, where measured."""
    ours = table.drop_duplicates("stage").set_index("stage")["epoch"].to_dict()
    return {stage: ours.get(stage, stage) for stage in STAGES}


def _path(part: pd.DataFrame) -> str:
    mean = part.groupby("stage")["nonconvexity"].mean().dropna()
    if mean.empty:
        return NONE
    return f"{mean.iloc[0]:.2g} at first to {mean.iloc[-1]:.2g} at last"


@styled
def plot_spectra_through_training(
    table: pd.DataFrame,
    y: str,
    name: str,
    labels: Sequence[int] = (0, 2, 5, 8),
    mode: str = "clean",
) -> Axes:
    """A number through training, a panel a class, SGD and SAM; logarithmic.

    Args:
        table: From ``tables.spectra_table``.
        y: Column, such as ``lambda_max`` or ``gradient_norm``; absolute value drawn.
        name: Of the axis.
        labels: Classes.
        mode: Of measurement.
    """
    axes = panels(len(labels), height=2.6)
    epochs = _epochs(table)
    for ax, label in zip(axes, labels, strict=True):
        told = []
        for i, method in enumerate(("CE+DRW", "CE+DRW+SAM")):
            part = pick(table, method=method, label=label, mode=mode)
            part = part.assign(**{y: part[y].abs()}).dropna(subset=[y])
            _runs(ax, part, COLOURS[i], "os"[i], method, y)
            told.append(f"{method} {len(part)} points")
        _name_epochs(ax, label, epochs)
        ax.set_label(f"{name} through training: {'; '.join(told)}.")
    axes[0].set_ylabel(name)
    axes[len(labels) // 2].set_xlabel("epoch")
    legend_once(axes)
    return axes[0]


@styled
def plot_along_vector(
    table: pd.DataFrame, method: str, labels: Sequence[int] = (0, 5, -2, -1)
) -> Axes:
    """The loss along ± the lowest vector, last epoch, a panel a class; all runs.

    Grey: the fall that the reported curvature alone promises.

    Args:
        table: From ``tables.spectra_table``.
        method: Whose runs.
        labels: Classes; negative ones count from the rarest.
    """
    axes = panels(len(labels), height=2.7)
    steps = np.linspace(-1, 1, 41)
    for ax, one in zip(axes, labels, strict=True):
        number = class_number(table, one)
        ax.plot(steps, -FALL * steps**2, ":", color=GREY, label="promised")
        told = []
        for mode, (name, colour, marker) in _MODES.items():
            part = pick(table, method=method, label=number, mode=mode, stage=LAST)
            for i, item in enumerate(part["item"]):
                losses = np.array(item["line_losses"])
                far = np.array(item["line_steps"]) / abs(item["line_steps"][0])
                change = losses - losses[len(losses) // 2]
                label = name if i == 0 else None
                ax.plot(far, change, color=colour, marker=marker, markersize=2.5,
                        linewidth=1, label=label)  # fmt: skip
                ends = f"{change[0]:+.2g} and {change[-1]:+.2g}"
                told.append(f"{name} changes by {ends} at the ends")
        ax.set_title(f"class {number}")
        ax.set_yscale("symlog", linthresh=FALL)
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.set_label(f"loss along the vector: {'; '.join(told) or NONE}.")
    axes[0].set_ylabel("change of the class's loss (nats)")
    axes[len(labels) // 2].set_xlabel("step along the vector")
    legend_once(axes)
    return axes[0]


@styled
def plot_causes(
    table: pd.DataFrame, method: str = "CE+DRW", labels: Sequence[int] = (5, 8, 9)
) -> Axes:
    """The 2×2 table of causes as shaded cells, a panel a class: mean and range.

    Args:
        table: From ``tables.causes``.
        method: Whose runs.
        labels: Classes.
    """
    axes = panels(len(labels), height=2.4, share=False)
    for ax, label in zip(axes, labels, strict=True):
        part = table[(table["method"] == method) & (table["label"] == label)]
        ax.set_title(f"class {label}")
        if part.empty:
            empty(ax)
            continue
        told = []
        for x, beta in enumerate(("after", "before")):
            for y, images in enumerate(("fixed", "redrawn")):
                values = part[f"{images}, {beta}"]
                shade = min(1.0, values.mean()) * 0.6
                ax.fill_between([x - 0.48, x + 0.48], y - 0.48, y + 0.48,
                                color=ORANGE, alpha=shade, linewidth=0)  # fmt: skip
                ax.text(x, y, _range(values), ha="center", va="center")
                told.append(f"images {images}, β {beta}: {values.mean():.2g}")
        ax.set_xlim(-0.5, 1.5)
        ax.set_ylim(1.5, -0.5)
        ax.set_xticks([0, 1], ["β after", "β before"])
        ax.set_yticks([0, 1], ["fixed", "redrawn"])
        ax.grid(visible=False)
        ax.set_label(f"|λmin/λmax|: {'; '.join(told)}.")
    return axes[0]


def _range(values: pd.Series[float]) -> str:
    if len(values) == 1:
        return f"{values.iloc[0]:.2g}"
    return f"{values.mean():.2g}\n{values.min():.2g} to {values.max():.2g}"


@styled
def plot_controls(table: pd.DataFrame) -> Axes:
    """Ratios of whole, cut and held-out classes, fixed and as published; all draws.

    Args:
        table: From ``tables.controls``.
    """
    names = list(dict.fromkeys(table["name"]))
    ax = panels(height=0.9 + 0.34 * max(len(names), 2))[0]
    if not names:
        return empty(ax)
    told = []
    for mode, (name, colour, marker) in _MODES.items():
        part = table[table["recurrence"] == mode].dropna(subset=["nonconvexity"])
        places = [names.index(one) for one in part["name"]]
        ax.plot(part["nonconvexity"], places, linestyle="", marker=marker,
                color=colour, alpha=0.8, label=name)  # fmt: skip
        for one, values in part.groupby("name", sort=False)["nonconvexity"]:
            told.append(f"{one}, {name}: {values.mean():.2g}")
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    log_axis(ax, "x")
    ax.set_xlabel("|λmin/λmax| at the last epoch")
    ax.legend(loc="best")
    ax.set_label(f"ratio by class and images: {'; '.join(told)}.")
    return ax


@styled
def plot_at_equal_loss(table: pd.DataFrame, pairs: Mapping[str, pd.DataFrame]) -> Axes:
    """Negative curvature against the class's loss, and SAM's factor over the radius.

    Args:
        table: From ``tables.spectra_table``; one point per clean spectrum.
        pairs: By end of the spectrum, from ``sharpness.at_equal_loss``; a seed's
            geometric mean is a faint point, the mean over seeds is joined.
    """
    left, right = panels(2, share=False)
    if table.empty:
        empty(right)
        return empty(left)
    for i, kind in enumerate(("sgd", "sam")):
        part = pick(table, optimizer=kind, mode="clean")
        left.plot(part["loss"], part["lambda_min"].abs(), "os"[i], color=COLOURS[i],
                  markersize=3, alpha=0.5, label=kind.upper())  # fmt: skip
    left.set(xlabel="loss of the class (nats)", ylabel="|λmin| of the class")
    log_axis(left, "x")
    log_axis(left, "y")
    left.set_label(f"|λmin| against the loss, {len(table)} spectra.")
    told = [
        _factors(right, part, name, COLOURS[i + 2], "Dv"[i])
        for i, (name, part) in enumerate(pairs.items())
    ]
    right.axhline(1, color=INK, linewidth=1, linestyle=":")
    right.set(xlabel="radius ρ", ylabel="SAM ÷ SGD at equal loss")
    log_axis(right, "y")
    right.set_label(f"SAM divided by SGD: {'; '.join(told)}.")
    legend_once([left, right])
    return left


def _factors(ax: Axes, pairs: pd.DataFrame, end: str, colour: str, marker: str) -> str:
    logs = np.log(pairs["factor"]).groupby([pairs["rho"], pairs["seed"]]).mean()
    means = np.exp(logs.groupby(level=0).mean())
    name = end.replace("lambda_", "λ")
    ax.plot(logs.index.get_level_values(0), np.exp(logs), marker, color=colour,
            markersize=3.5, alpha=0.5)  # fmt: skip
    ax.plot(means.index, means, color=colour, marker=marker, label=name)
    return f"{name} " + ", ".join(f"{v:.2f} at {k:g}" for k, v in means.items())


def legend_once(axes: Sequence[Axes]) -> None:
    """Put one legend above all panels."""
    handles, names = [], []
    for ax in axes:
        for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
            if name not in names:
                handles.append(handle)
                names.append(name)
    figure = axes[0].figure
    if names:
        figure.legend(handles, names, loc="outside upper left", ncols=len(names))


def empty(ax: Axes) -> Axes:
    """Say that there is nothing to draw yet."""
    ax.text(0.5, 0.5, NONE, ha="center", va="center", transform=ax.transAxes)
    ax.set_xticks([])
    ax.set_label(f"{NONE}.")
    return ax


_DASHES = ("-", "--")
WIDTH = 0.1  # of the kernel, in decades


@styled
def plot_spectra(
    table: pd.DataFrame, labels: Sequence[int] = (0, 5, -2), mode: str = "clean"
) -> Axes:
    """Densities at the last epoch: a panel a class, SGD and SAM over each other.

    Symmetric-log axis, linear below the widest bound of the fixed measurements shown;
    the curve is the share of eigenvalues a decade, Gaussian kernels of ``WIDTH``;
    stems are single converged eigenvalues, weight 1/n. First seed of each method.

    Args:
        table: From ``tables.spectra_table``.
        labels: Classes; negative ones count from the rarest.
        mode: Of measurement.
    """
    axes = panels(len(labels), height=2.9)
    for ax, one in zip(axes, labels, strict=True):
        number = class_number(table, one)
        part = pick(table, label=number, stage=LAST)
        plot_density(part[part["mode"] == mode], threshold(part), ax)
        ax.set_title(f"class {number}")
    legend_once(axes)
    axes[0].set_ylabel("share of eigenvalues a decade")
    return axes[0]


def threshold(part: pd.DataFrame) -> float:
    """Where the axis turns linear: the widest bound of a fixed measurement."""
    fixed = part[~part["reported"]]
    bounds = fixed[["lambda_min_bound", "lambda_max_bound"]].to_numpy(float)
    return float(np.max(bounds)) if bounds.size else 0.01


@styled
def plot_density(part: pd.DataFrame, linear: float, ax: Axes | None = None) -> Axes:
    """Spectral density of one class for each method, on a symmetric-log axis.

    Args:
        part: Rows of one class, stage and mode, with stored nodes.
        linear: Where the axis turns linear.
        ax: To draw on.
    """
    ax = ax or panels()[0]
    part = part[[("nodes" in item) for item in part["item"]]]
    if part.empty:
        return empty(ax)
    told, widest = [], 0.0
    for _, row in part.drop_duplicates("method").iterrows():
        spectrum, i = Spectrum.from_dict(row["item"]), int("SAM" in row["method"])
        widest = max(widest, spectrum.scale)
        reach = coordinate(spectrum.scale, linear) + 4 * WIDTH
        places = np.linspace(-reach, reach, 800)
        lines = spectrum.lines.numpy() & (not row["reported"])
        known = spectrum.weights if row["reported"] else spectrum.density_weights
        weights = np.where(lines, 0.0, known.numpy())
        centres = coordinate(spectrum.nodes.numpy(), linear)
        curve = _smooth(places, centres.ravel(), weights.ravel())
        ax.plot(_back(places, linear), curve, color=COLOURS[i], label=row["method"],
                linestyle=_DASHES[i])  # fmt: skip
        single = spectrum.nodes.numpy()[lines]
        ax.vlines(single, 1e-9, 1 / spectrum.size, color=COLOURS[i], linewidth=0.9)
        told.append(
            f"{row['method']} from {row['item']['lambda_min']:.3g} to "
            f"{row['item']['lambda_max']:.3g}, {int(lines.sum())} single lines"
        )
    ax.set_yscale("log")
    ax.set_ylim(0.1 / spectrum.size, 30)
    _symlog(ax, linear, 1.5 * widest)
    ax.set_xlabel("eigenvalue")
    ax.set_label(f"density of eigenvalues: {'; '.join(told)}.")
    return ax


def coordinate(values: Any, linear: float) -> Any:
    """Place on a symmetric-log axis, in decades, linear within ``linear``."""
    size = np.maximum(np.abs(values) / linear, 1e-300)
    return np.sign(values) * np.where(size > 1, 1 + np.log10(np.maximum(size, 1)), size)


def _back(places: NDArray[Any], linear: float) -> NDArray[Any]:
    size = np.abs(places)
    return np.sign(places) * linear * np.where(size > 1, 10 ** (size - 1), size)


def _smooth(
    places: NDArray[Any], centres: NDArray[Any], weights: NDArray[Any]
) -> NDArray[Any]:
    kernel = np.exp(-(((places[:, None] - centres) / WIDTH) ** 2) / 2)
    return np.asarray(kernel @ weights / (WIDTH * np.sqrt(2 * np.pi)))


def _symlog(ax: Axes, linear: float, reach: float) -> None:
    ax.set_xscale("symlog", linthresh=linear)
    ax.set_xlim(-reach, reach)
    top = np.floor(np.log10(reach))
    low = min(np.ceil(np.log10(linear)), top - 1)
    some = [10.0**top, 10.0 ** np.round((top + low) / 2), 10.0**low]
    some = list(dict.fromkeys(some))[:: 2 if len(some) > 2 else 1]
    ax.set_xticks([*(-t for t in some), 0, *some[::-1]])
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
