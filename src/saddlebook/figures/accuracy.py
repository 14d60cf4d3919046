"""Draws accuracies: a table in, matplotlib Axes out; ``show`` puts them on the page.

Every run is a point; a mean never stands alone. Markers and dashes repeat what colours
say. Each Axes carries a description in words for readers who do not see it.

Knows tables from ``report`` and ``claims``; no record, no file.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from saddlebook.figures.style import (
    BLUE,
    COLOURS,
    GREY,
    INK,
    ORANGE,
    TEAL,
    log_axis,
    styled,
)
from saddlebook.figures.style import panels as panels
from saddlebook.figures.style import show as show
from saddlebook.findings import claims

if TYPE_CHECKING:
    from matplotlib.lines import Line2D

    from saddlebook.findings.readme import Card

_GROUPS = {"head": BLUE, "mid": TEAL, "tail": ORANGE}
_MARKERS, _DASHES = "osD^v", ("-", "--", "-.", ":", (0, (1, 1)))


@styled
def plot_class_counts(classes: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Training images per class on a logarithmic axis, by group.

    Args:
        classes: ``name count group``, one row per class.
        ax: To draw on; a new one otherwise, here and below.
    """
    ax = ax or panels()[0]
    for group, part in classes.groupby("group", sort=False):
        bars = ax.bar(part.index, part["count"], color=_GROUPS[str(group)], width=0.8)
        bars.set_label(str(group))
        if len(classes) <= 20:
            labels = ax.bar_label(bars, padding=2)
            for label in labels:
                label.set_color(INK)
    _name_classes(ax, classes.index, classes["name"])
    ax.set_yscale("log")
    ax.set_ylim(bottom=classes["count"].min() / 2)
    counts = classes["count"]
    told = [f"{len(classes)} classes, from {counts.max()} to {counts.min()} images"]
    return _finish(ax, "class", "training images", told)


@styled
def plot_curves(
    table: pd.DataFrame,
    x: str,
    y: str,
    by: str,
    *,
    log: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Lines of ``y`` over ``x``, one for each value of ``by``.

    Args:
        table: Columns ``x``, ``y`` and ``by``, which also name axes and lines.
        x: Horizontal.
        y: Vertical.
        by: Tells lines apart.
        log: Logarithmic axes: ``"x"``, ``"y"``, ``"xy"`` or none.
        ax: To draw on.
    """
    ax = ax or panels()[0]
    told = []
    for i, (name, part) in enumerate(table.groupby(by, sort=False)):
        few = len(part) <= 20
        ax.plot(
            part[x], part[y], color=_at(COLOURS, i), linestyle=_at(_DASHES, i),
            marker=_at(_MARKERS, i) if few else "", label=str(name),
        )  # fmt: skip
        told.append(f"{name} {_path(part[x], part[y])}")
    for axis in log:
        log_axis(ax, axis)
    return _finish(ax, x, y, told, legend_title=by)


@styled
def plot_class_accuracy(
    classes: pd.DataFrame, methods: Sequence[str], ax: Axes | None = None
) -> Axes:
    """Test accuracy of every class for two or more methods, every run a point.

    Args:
        classes: From ``report.per_class``.
        methods: To compare, base first.
        ax: To draw on.
    """
    ax = ax or panels()[0]
    shown = classes.drop_duplicates("label").sort_values("label")
    told = []
    for i, method in enumerate(methods):
        part = classes[classes["method"] == method]
        places = part["label"] + 0.3 * (i - (len(methods) - 1) / 2)
        _points(ax, places, part["accuracy"], i)
        means = part.groupby("label")["accuracy"].mean()
        ax.plot(
            sorted(set(places)), means, linestyle="", markersize=7, label=method,
            marker=_at(_MARKERS, i), color=_at(COLOURS, i),
        )  # fmt: skip
        told.append(f"{method} {_path(shown['name'], means)}")
    names = [f"{n}\n{c}" for n, c in zip(shown["name"], shown["count"], strict=True)]
    _name_classes(ax, shown["label"], names)
    label = "class and its training images"
    return _finish(ax, label, "test accuracy (%)", told)


@styled
def plot_through_training(
    table: pd.DataFrame,
    methods: Sequence[str],
    y: str = "tail",
    names: Sequence[str] = (),
    ax: Axes | None = None,
) -> Axes:
    """Accuracy, or a loss, over epochs: runs thin, their mean bold, DRW's start marked.

    Args:
        table: From ``report.through_training``.
        methods: To compare, base first.
        y: ``overall``, ``head``, ``mid``, ``tail`` or ``train_loss``.
        names: For the legend; the methods' own otherwise.
        ax: To draw on.
    """
    ax = ax or panels()[0]
    told = []
    for i, method in enumerate(methods):
        part = table[table["method"] == method]
        style: dict[str, Any] = {"color": _at(COLOURS, i), "linestyle": _at(_DASHES, i)}
        for _, run in part.groupby("seed"):
            ax.plot(run["epoch"], run[y], linewidth=0.6, alpha=0.6, **style)
        # runs keep their own best epoch too: average where all were tested
        mean = part.groupby("epoch")[y].agg(["mean", "count"])
        mean = mean[mean["count"] == mean["count"].max()]["mean"]
        ax.plot(mean.index, mean, linewidth=2, label=_at(names or methods, i), **style)
        told.append(f"{method} {_path(mean.index, mean)}")
    if "DRW" in "".join(methods):
        ax.axvline(table["drw_epoch"].iloc[0], color=INK, linewidth=1, linestyle=":")
    unit = "training loss (nats)" if y == "train_loss" else f"{y} test accuracy (%)"
    _finish(ax, "epoch", unit, told)
    ax.label_outer()
    return ax


@styled
def plot_methods(
    cells: pd.DataFrame,
    group: str = "tail",
    best: pd.DataFrame | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Ours and the paper's accuracy of each method, every run a point.

    Ours: mean and 95 % t-interval; the paper's: a diamond with its printed spread.

    Args:
        cells: From ``report.cells``, of one dataset.
        group: ``overall``, ``head``, ``mid`` or ``tail``.
        best: The same cells at the epoch best on the test set; hollow squares.
        ax: To draw on.
    """
    part = cells[(cells["group"] == group) & (cells["n"] > 0)]
    ax = ax or panels(height=0.8 + 0.32 * len(part))[0]
    places = np.arange(len(part))
    _rows(ax, part, part["mean"], part["method"])
    ax.errorbar(
        part["paper"], places + 0.22, xerr=part["spread"].fillna(0), fmt="D",
        color=GREY, markerfacecolor="none", capsize=2, label="the paper",
    )  # fmt: skip
    if best is not None:
        same = best.set_index(["method", "group"])["mean"]
        tops = [same[method, group] for method in part["method"]]
        ax.plot(
            tops, places - 0.12, "s", color=BLUE, markerfacecolor="none", markersize=7,
            label="ours, best on test",
        )  # fmt: skip
    told = (
        f"{row['method']} {row['mean']:.1f}, paper {row['paper']:.1f}"
        for _, row in part.iterrows()
    )
    return _finish(ax, f"{group} test accuracy (%)", "", told)


@styled
def plot_effects(judged: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Paired differences, every seed a point, with 95 % t-intervals and a line at none.

    Args:
        judged: From ``claims.judge``, of one contrast per claim.
        ax: To draw on.
    """
    names = claims.names(judged)
    most = max(2, *(math.ceil(len(name) / 16) for name in names))  # lines, on a phone
    ax = ax or panels(height=0.9 + 0.16 * most * len(names))[0]
    _rows(ax, judged, judged["difference"], names)
    ax.axvline(0, color=INK, linewidth=1)
    if judged["paper"].notna().any():
        ax.plot(
            judged["paper"], np.arange(len(judged)) + 0.22, "D", color=GREY,
            markerfacecolor="none", label="the paper",
        )  # fmt: skip
    told = (
        f"{name}: {row['difference']:+.1f}"
        + f" ({row['low']:+.1f} to {row['high']:+.1f})" * (not math.isnan(row["low"]))
        if row["n"]
        else f"{name}: not run yet"
        for name, (_, row) in zip(names, judged.iterrows(), strict=True)
    )
    return _finish(ax, "difference (points)", "", told)


@styled
def plot_cards(cards: Sequence[Card]) -> Axes:
    """Cards of the first page, a panel each: every number with its interval.

    Args:
        cards: From ``findings.readme``; a single one is drawn for half a column.
    """
    row = panels(len(cards), height=2.4, share=False)
    figure: Any = row[0].figure
    # a name may take two lines
    height = 0.8 + 0.4 * max(4, *(len(card.rows) for card in cards))
    alone = len(cards) == 1
    figure.set_size_inches((3.8, height) if alone else (9.6, height + 0.5))
    for ax, card in zip(row, cards, strict=True):
        _card(ax, card)
        if len(cards) > 1:
            ax.set_title(textwrap.fill(card.question, 24), loc="left")
    marks = row[0].get_legend_handles_labels()
    figure.legend(*marks, loc="outside lower center", ncols=3, handletextpad=0.3)
    return row[0]


def _card(ax: Axes, card: Card) -> None:
    names, *rows = card.numbers()
    places = np.arange(len(rows))
    paper = [row.paper for row in card.rows]
    ax.plot(
        paper, places - 0.22, "D", color=GREY, label=names[1], markerfacecolor="none"
    )
    for i, (name, colour) in enumerate(zip(names[2:], (ORANGE, BLUE), strict=True)):
        found = [(row.full, row.lite)[i] for row in card.rows]
        means, low, high = (np.array([e[k] for e in found]) for k in range(3))
        reach = np.nan_to_num(np.array([means - low, high - means]))
        ax.errorbar(
            means, places + 0.22 * i, xerr=reach, fmt="os"[i], color=colour,
            capsize=2, label=name,
        )  # fmt: skip
    ax.axvline(0, color=INK, linewidth=1)
    ax.set_yticks(places, [row[0].replace(", ", ",\n") for row in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(textwrap.fill(card.unit, 30))
    told = ("; ".join(f"{n} {v}" for n, v in zip(names, row, strict=True) if v)
            for row in rows)  # fmt: skip
    ax.set_label(f"{card.unit}. {'. '.join(told)}.")


def _rows(ax: Axes, table: pd.DataFrame, means: Any, names: Iterable[str]) -> None:
    """Rows from the top: runs as points, mean with interval, names at the left."""
    places = np.arange(len(table))
    for place, values in zip(places, table["values"], strict=True):
        _points(ax, values, np.full(len(values), place - 0.12), 0)
    reach = np.nan_to_num(np.array([means - table["low"], table["high"] - means]))
    ax.errorbar(means, places - 0.12, xerr=reach, fmt="o", color=BLUE, capsize=3)
    ax.containers[-1].set_label("ours")
    ax.set_yticks(places, list(names))
    ax.set_ylim(len(table) - 0.5, -0.6)
    ax.grid(axis="y", visible=False)


def _name_classes(ax: Axes, places: Iterable[int], names: Iterable[str]) -> None:
    """Names below the axis, where there is room for them."""
    names = list(names)
    if len(names) <= 20:
        ax.set_xticks(list(places), names, fontsize=8, parse_math=False)
    ax.grid(axis="x", visible=False)


def _at(options: Sequence[Any], i: int) -> Any:
    return options[i % len(options)]


def _points(ax: Axes, x: Any, y: Any, i: int) -> list[Line2D]:
    return ax.plot(
        x, y, marker=_at(_MARKERS, i), linestyle="", markersize=3.5, alpha=0.7,
        color=_at(COLOURS, i), markeredgewidth=0,
    )  # fmt: skip


def _path(x: Iterable[Hashable], y: Iterable[float]) -> str:
    places, values = list(x), list(y)
    first, last = (f"{value + 0.0:.3g}" for value in (values[0], values[-1]))
    return f"{first} at {places[0]} to {last} at {places[-1]}"


def _finish(
    ax: Axes, x: str, y: str, told: Iterable[str], legend_title: str = ""
) -> Axes:
    """Name the axes, explain the marks once a figure, describe what is drawn."""
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    if ax.get_yscale() == "log":
        log_axis(ax, "y")
    first = ax.get_figure().axes[0]  # type: ignore[union-attr]
    names, known = (a.get_legend_handles_labels()[1] for a in (ax, first))
    if ax is first or names != known:
        ax.legend(handlelength=2.2, title=legend_title, alignment="left")
    ax.set_label(f"{y or 'rows'} against {x}: {'; '.join(told)}.")
    return ax
