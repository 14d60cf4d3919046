"""Tabulates and draws accuracy over a swept setting, and beside printed numbers.

Tables have one row per run. Accuracies are test accuracies after the last epoch, in
percent; printed numbers come from ``report``. Last, how sharp the loss is over radii.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from saddlebook import studies
from saddlebook.figures.spectra import empty, legend_once
from saddlebook.figures.style import (
    BLUE,
    COLOURS,
    GREY,
    INK,
    ORANGE,
    TEAL,
    log_axis,
    panels,
    styled,
)
from saddlebook.figures.widgets import Widget
from saddlebook.findings import report, sharpness
from saddlebook.scales import at_scale

if TYPE_CHECKING:
    from saddlebook.record import Record

GROUPS = ("overall", "head", "mid", "tail")
_SETTINGS = (
    "scale", "method", "optimizer", "rho", "weight_decay", "noise", "lpf_samples",
    "seed",
)  # fmt: skip
_COLUMNS = [*_SETTINGS, *GROUPS, "tail_train_loss"]
_MARKERS = "osD^vPX*"  # more than colours: the sixth curve is not the first again
_GROUP_STYLES = {"overall": (INK, "o"), "head": (BLUE, "s"), "mid": (TEAL, "D")}
_GROUP_STYLES |= {"tail": (ORANGE, "^")}


def runs(records: Iterable[Record]) -> pd.DataFrame:
    """One row per run: its settings, accuracies and the tail's training loss (nats)."""
    return pd.DataFrame([_row(record) for record in records], columns=_COLUMNS)


def _row(record: Record) -> dict[str, Any]:
    row = {name: getattr(record.experiment, name) for name in _SETTINGS}
    row |= record.accuracy._asdict()
    return row | {"tail_train_loss": record.tail_train_loss}


def by_group(table: pd.DataFrame, groups: Sequence[str] = GROUPS) -> pd.DataFrame:
    """The table of ``runs`` with one row per run and group: ``group``, ``accuracy``."""
    kept = [name for name in table.columns if name not in GROUPS]
    return table.melt(kept, list(groups), "group", "accuracy")


def from_to(table: pd.DataFrame, column: str, x: str = "rho") -> str:
    """A column's means at the least and the greatest ``x``, in words."""
    means = table.groupby(x)[column].mean()
    return f"{means.iloc[0]:.3g} to {means.iloc[-1]:.3g}" if len(means) else "–"


@styled
def plot_curve(
    table: pd.DataFrame,
    x: str,
    y: str,
    by: str,
    *,
    names: tuple[str, str] = ("", ""),
    log: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """``y`` over ``x``, a colour and marker for each ``by``: runs faint, means joined.

    Args:
        table: One row per run.
        x: Swept setting.
        y: What came out.
        by: Tells curves apart.
        names: Of the axes; else ``x`` and ``y``.
        log: Whether ``x`` is logarithmic.
        ax: To draw on.
    """
    ax = ax or panels()[0]
    told = []
    if table.empty:
        ax.text(0.5, 0.5, "not run yet", ha="center", transform=ax.transAxes)
        ax.set_xticks([])
        ax.set_yticks([])
        return _named(ax, names[0] or x, names[1] or y, ["not run yet"])
    for i, (name, part) in enumerate(table.groupby(by, sort=False)):
        style = look(str(name), i)
        faint = style | {"linestyle": "", "alpha": 0.5, "label": f"_{name}"}
        ax.plot(part[x], part[y], markersize=3.5, **faint)
        means = part.groupby(x)[y].mean()
        ax.plot(means.index, means, label=str(name), **style)
        told.append(
            f"{name} " + ", ".join(f"{v:.3g} at {k:g}" for k, v in means.items())
        )
    if log:
        ax.set_xscale("log")
        swept = sorted(set(table[x]))
        apart = [
            v for last, v in zip([0, *swept], swept, strict=False) if v > 1.5 * last
        ]
        ax.set_xticks(apart, [f"{v:g}" for v in apart])
        ax.minorticks_off()
    return _named(ax, names[0] or x, names[1] or y, told)


@styled
def plot_scatter(
    table: pd.DataFrame,
    x: str,
    y: str,
    by: str,
    *,
    names: tuple[str, str] = ("", ""),
    log: bool = False,
    line: str = "",
) -> Axes:
    """``y`` against ``x``, every run a point, a colour and marker for each ``by``.

    Args: as in ``plot_curve``, and
        line: Name of runs that a line in log ``x`` is fitted to; dashed beyond them.
    """
    ax = panels(height=3.6)[0]
    told = []
    for i, (name, part) in enumerate(table.groupby(by, sort=False)):
        style = look(str(name), i)
        ax.plot(part[x], part[y], linestyle="", markersize=4, label=str(name), **style)
        told.append(f"{name} {part[y].mean():.3g} at {part[x].mean():.2g}")
    if (fitted := table[table[by] == line])[x].nunique() > 1:
        fit = np.polyfit(np.log(fitted[x]), fitted[y], 1)
        for ends, dash in ((fitted[x], "-"), (table[x], "--")):
            far = [ends.min(), ends.max()]
            ax.plot(far, np.polyval(fit, np.log(far)), dash, color=GREY, zorder=0)
    if log and told:
        log_axis(ax, "x")
    return _named(ax, names[0] or x, names[1] or y, told or ["not run yet"])


def plot_knobs(records: Iterable[Record], line: str = "") -> Axes:
    """Every run's tail accuracy against its training loss, a colour for each knob.

    Args:
        records: Runs; those that differ in weight decay alone are one knob.
        line: As in ``plot_scatter``.
    """
    table = runs(records)
    table["knob"] = table["method"].str.replace(r" wd=.*", "", regex=True)
    names = ("training loss of the tail (nats)", "test accuracy of the tail (%)")
    return plot_scatter(
        table, "tail_train_loss", "tail", "knob", names=names, log=True, line=line
    )


def look(name: str, i: int) -> dict[str, Any]:
    """Colour and marker: a group's own everywhere, else the i-th."""
    colour, marker = _GROUP_STYLES.get(name, (COLOURS[i % 5], _MARKERS[i % 8]))
    return {"color": colour, "marker": marker}


def _named(ax: Axes, x: str, y: str, told: Sequence[str]) -> Axes:
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    if len(ax.get_legend_handles_labels()[0]) > 1:
        ax.legend(handlelength=2.2)
    ax.set_label(f"{y} against {x}: {'; '.join(told)}.")
    return ax


def setting_or_none(records: Sequence[Record]) -> str:
    """What all records share, for captions; or that there are none."""
    return report.setting(records) if records else "not run yet"


def over_radius(records: Sequence[Record]) -> pd.DataFrame:
    """Mean of each group over the radius, and what ``report.by_method`` knows of it."""
    if not records:
        return pd.DataFrame(columns=["rho", "group", "mean", "n", "low", "high"])
    table = report.by_method(records, by=("rho",))
    return table[table["choice"] == "last"].drop(columns="choice")


def shape(means: pd.DataFrame) -> str:
    """In words how overall and tail accuracy go with the radius.

    Args:
        means: Columns ``rho group mean``: ``over_radius`` or ``report.paper("rho")``.
    """
    told = []
    for group in ("tail", "overall"):
        part = means[means["group"] == group].sort_values("rho")
        if part.empty:
            return "not run yet"
        rho, value = part["rho"].to_numpy(), part["mean"].to_numpy()
        best = value.argmax()
        told.append(
            f"{group} from {value[0]:.1f} at ρ = {rho[0]:g} to {value[-1]:.1f} at "
            f"{rho[-1]:g}, highest {value[best]:.1f} at {rho[best]:g}"
        )
    return "; ".join(told)


def plot_radii(
    records: Sequence[Record], printed: pd.DataFrame, scale: str = "lite"
) -> pd.DataFrame:
    """Every registered radius, ours (mean ± half the 95 % t-interval) and the paper's.

    Args:
        records: Of ``rho_ablation``, of one scale; may be empty.
        printed: ``report.paper("rho")``.
        scale: Where there are no records.
    """
    ours, theirs = (
        {(row["rho"], row["group"]): row for _, row in table.iterrows()}
        for table in (over_radius(records), printed)
    )
    scale = records[0].experiment.scale if records else scale
    rows = []
    for full in studies.rho_ablation(seeds=(0,)):
        rho = at_scale(full, scale).rho
        row = {"ρ here": f"{rho:g}", "ρ, paper's scale": f"{full.rho:g}"}
        for group in ("tail", "overall", "head", "mid"):
            seen = ours.get((rho, group))
            row[group] = "–" if seen is None else report.plus_minus(seen)
            told = theirs.get((full.rho, group))
            if group in _GROUPS:
                row[f"{group}, paper"] = "–" if told is None else f"{told['mean']:.1f}"
        row["runs"] = str(ours[rho, "tail"]["n"]) if (rho, "tail") in ours else "0"
        rows.append(row)
    return pd.DataFrame(rows).set_index("ρ here")


def explorer(
    records: Sequence[Record], printed: pd.DataFrame, scale: str = "lite"
) -> Widget:
    """Stored runs over the radius, the paper's curve beside; only measured values.

    Args:
        records: Of ``rho_ablation``, of one scale; may be empty.
        printed: ``report.paper("rho")``.
        scale: Named where there are no records.
    """
    state = {
        "runs": points(records),
        "printed": [
            {"rho": row["rho"], "group": row["group"], "value": row["mean"]}
            for _, row in printed.iterrows()
        ],
        "rho": min((r.experiment.rho for r in records), default=0.0),
        "scale": records[0].experiment.scale if records else scale,
    }
    text = f"Explorer of {len(records)} stored runs over SAM's radius."
    return Widget(("plot.js", "sweep.js"), state, text)


def points(records: Sequence[Record]) -> list[dict[str, Any]]:
    """What the explorer shows of runs: radius, seed, accuracies of the groups."""
    return [
        {"rho": r.experiment.rho, "published": sharpness.published(r.experiment)}
        | {"seed": r.experiment.seed}
        | {group: round(value, 2) for group, value in r.accuracy._asdict().items()}
        for r in records
    ]


_GROUPS = ("overall", "tail")
_UNPUBLISHED = "undecided: protocol not published"
_DATASETS = {"cifar10": "CIFAR-10-LT", "cifar100": "CIFAR-100-LT"}


def printed_tails(printed: pd.DataFrame) -> str:
    """The paper's tail accuracies in words, such as for a claim box."""
    tail = printed[printed["group"] == "tail"]
    pairs = zip(tail["method"], tail["mean"], strict=True)
    return ", ".join(f"{method} {value:.1f}" for method, value in pairs)


def comparison(records: Sequence[Record], printed: pd.DataFrame) -> pd.DataFrame:
    """Ours beside the paper's, overall and tail, one row per method it printed.

    A printed number is undecided where the paper's settings are not published; else the
    verdict is that of ``report.cells``, which gives one at ``full`` scale only.

    Args:
        records: Of one scale and data set; may be empty.
        printed: ``report.paper("optimizers", "cifar10")``, or of ``table1``.
    """
    cells = report.cells(report.by_method(records), printed) if records else None
    rows = []
    for method, part in printed.groupby("method", sort=False):
        theirs = part.set_index("group")
        row: dict[str, Any] = {"method": method, "runs": 0}
        words = []
        for group in _GROUPS:
            row[group], row[f"{group}, paper"] = "–", f"{theirs['mean'][group]:.1f}"
            if cells is not None:
                mine = cells[cells["method"].eq(method) & cells["group"].eq(group)]
                seen: Any = mine.iloc[0]
                told = report.plus_minus(seen) if seen["n"] else "–"
                row |= {"runs": seen["n"], group: told}
                words += [f"{group} {seen['word']}"] if seen["word"] else []
        published = (theirs["settings"] == "published").all()
        row["verdict"] = ", ".join(words) or "–" if published else _UNPUBLISHED
        rows.append(row)
    return pd.DataFrame(rows).set_index("method")


def reruns(tuned: pd.DataFrame, printed: pd.DataFrame) -> pd.DataFrame:
    """What weight decay alone gave another group, beside the paper's gain from SAM.

    Args:
        tuned: ``report.paper("reruns")``.
        printed: ``report.paper("table1")``.
    """
    tuned = tuned[(tuned["imbalance"] == "exp") & (tuned["imbalance_factor"] == 100)]
    names = {"no": "re-run", "yes": "re-run, weight decay tuned"}
    theirs = tuned.assign(column=tuned["tuned_weight_decay"].map(names))
    overall = printed[printed["group"] == "overall"]
    base = overall["method"].str.removesuffix("+SAM")
    sam = (
        overall["method"].str.endswith("+SAM").map({False: "paper", True: "paper, SAM"})
    )
    table = pd.concat([theirs, overall.assign(method=base, column=sam)])
    table = table[table["method"].isin(set(theirs["method"]))]
    table["dataset"] = table["dataset"].map(_DATASETS)
    wide = table.pivot(index=["dataset", "method"], columns="column", values="mean")
    flat = wide.map("{:.1f}".format).rename_axis(columns=None).reset_index()
    columns = ["method", "paper", *names.values(), "paper, SAM"]
    return flat.set_index("dataset")[columns]


@styled
def plot_strips(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Overall and tail accuracy of each method, every run a point, means marked.

    Args:
        table: From ``sweeps.by_group``: ``method group accuracy``; may be empty.
        ax: To draw on.
    """
    methods = list(dict.fromkeys(table["method"]))
    ax = ax or panels(height=1.0 + 0.35 * max(2, len(methods)))[0]
    told = []
    for i, (group, part) in enumerate(table.groupby("group", sort=False)):
        places = part["method"].map(methods.index) + 0.2 * i - 0.1
        style = look(str(group), i)
        ax.plot(
            part["accuracy"], places, linestyle="", markersize=3.5, alpha=0.5,
            label=f"_{group}", **style,
        )  # fmt: skip
        means = part.groupby("method")["accuracy"].mean().reindex(methods)
        rows = [k + 0.2 * i - 0.1 for k in range(len(methods))]
        ax.plot(means, rows, linestyle="", markersize=7, label=str(group), **style)
        told += [f"{group}, {name}: {mean:.1f}" for name, mean in means.items()]
    ax.set_yticks(range(len(methods)), methods)
    ax.set_ylim(max(1, len(methods)) - 0.5, -0.5)
    ax.set_xlabel("test accuracy (%)")
    if told:
        ax.legend(handlelength=1.5)
    ax.set_label(f"Accuracy by method: {'; '.join(told) or 'not run yet'}.")
    return ax


@styled
def plot_edges(table: pd.DataFrame, radii: Sequence[float] = (0.0, 0.5, 1.3)) -> Axes:
    """λmax of the total loss and its edge: through training, then over all radii.

    The last panel has a point per run, means over the epochs where λmax has settled.

    Args:
        table: From ``sharpness.edge_table``; may be empty.
        radii: Of the panels through training, at the paper's scale.
    """
    axes = panels(len(radii) + 1, height=2.9)
    for ax, radius in zip(axes, radii, strict=False):
        part = table[table["published"] == radius]
        here = part["rho"].max()
        ax.set_title(f"ρ = {radius:g}" + f" ({here:g} here)" * bool(here > 0))
        _draw_edge(ax, part)
    _draw_settled(axes[-1], table[table["settled"]])
    log_axis(axes[0], "y")
    axes[0].set_ylabel("λmax of the total loss")
    legend_once(axes[:-1])
    return axes[0]


def _draw_edge(ax: Axes, part: pd.DataFrame) -> None:
    if part.empty:
        empty(ax)
        return
    ax.plot(part["epoch"], part["lambda_max"], "o", color=BLUE, markersize=3, alpha=0.5)
    means = part.groupby("epoch")[["lambda_max", "edge"]].mean()
    ax.plot(means.index, means["lambda_max"], "-o", color=BLUE, label="measured")
    ax.plot(means.index, means["edge"], "--", color=ORANGE, label="edge")
    ax.set_xlabel("epoch")
    ends = means.iloc[[0, -1]]
    told = [f"{v.iloc[0]:.3g} to {v.iloc[1]:.3g}" for _, v in ends.items()]
    ax.set_label(f"through training: λmax {told[0]}, its edge {told[1]}.")


def _draw_settled(ax: Axes, table: pd.DataFrame) -> None:
    ax.set_title("all radii")
    if table.empty:
        empty(ax)
        return
    means = table.groupby(["published", "seed"])[["edge", "lambda_max"]].mean()
    ax.plot(means["edge"], means["lambda_max"], "D", color=TEAL, markersize=3.5)
    ends = [means["edge"].min(), means["edge"].max()]
    ax.plot(ends, ends, "--", color=GREY)
    log_axis(ax, "x")
    ax.set_xlabel("edge")
    told = [f"{m['lambda_max']:.3g} at {m['edge']:.3g}" for _, m in means.iterrows()]
    ax.set_label(f"λmax at each edge: {', '.join(told)}.")


@styled
def plot_shares(table: pd.DataFrame) -> Axes:
    """Share of each class's gradient in the ten top eigenvectors, a panel a method.

    Args:
        table: From ``sharpness.share_table``; may be empty.
    """
    axes = panels(2, height=3.0)
    for ax, method in zip(axes, ("CE+DRW", "CE+DRW+SAM"), strict=True):
        part = table[table["method"] == method]
        named = part.assign(when=part["when"].map(sharpness.WHEN))
        names = ("class", "gradient in ten eigenvectors (%)" if ax is axes[0] else " ")
        plot_curve(named, "class", "share", "when", names=names, ax=ax)
        ax.set_title(method)
        if legend := ax.get_legend():
            legend.remove()
    legend_once(axes)
    return axes[0]
