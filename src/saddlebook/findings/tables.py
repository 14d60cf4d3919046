"""Turns records into tables of curvature, and those into text for readers.

Pure functions on pandas tables. A value whose bound is too wide is no result: it stays
out (NaN), except what a released mode *reports* though it is no eigenvalue of a fixed
operator, which is kept and marked (brackets). What the tables say about the claims is
in ``spectra_claims``.

Legend: C classes, n training images of a class, P probes, K nodes.

References:
    Rangwani et al. 2022, section 3; ``results/paper/dynamics.csv``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from saddlebook import studies
from saddlebook.curvature.hessian import MODES
from saddlebook.data import class_groups
from saddlebook.experiment import Experiment

if TYPE_CHECKING:
    from saddlebook.record import Record


STAGES = studies.EPOCHS_OF_DYNAMICS
LAST, SWITCH, FIRST = STAGES[-1], 160, STAGES[0]  # stages, in the paper's epochs
FALL = 0.1  # nats that the reported curvature promises at both ends of the line
NONE = "not measured yet"
_PLAIN = (
    "images", "steps", "loss", "gradient_norm", "gradient_along", "rayleigh_clean",
    "rayleigh_fresh", "rayleigh_fresh_error", "diagonal_share", "trace",
)  # fmt: skip
ENDS = ("lambda_min", "lambda_max")
COLUMNS = (
    "method", "optimizer", "rho", "seed", "scale", "label", "classes", "n", "epoch",
    "stage", "mode", "recurrence", "data", "reported", *_PLAIN, *ENDS,
    "lambda_min_bound", "lambda_max_bound", "nonconvexity", "nonconvexity_bound",
    "slope", "fall", "item",
)  # fmt: skip


def spectra_table(records: Iterable[Record], of_all: bool = False) -> pd.DataFrame:
    """One row a class's spectrum; may be empty, with its columns.

    Of the loss of all images instead if ``of_all``; ``label`` is then ``all``.

    ``stage`` is the epoch of the paper's figure that ``epoch`` stands for; ``data`` is
    ``training``, ``held out``, ``whole``, ``cut`` or ``of`` so many; ``recurrence`` the
    mode without that.
    ``reported`` marks values of a released mode that are no eigenvalues of the fixed
    operator; other values that did not converge are NaN.

    ``slope``: nats that the class's gradient promises over the step on which the
    curvature promises ``FALL``; at a saddle it is far smaller than that. ``fall``: nats
    by which the loss falls, mean of both ends of that step, which takes the gradient
    out.
    """
    return items_table([(record, record.spectra) for record in records], of_all)


def items_table(
    measured: Iterable[tuple[Record, Iterable[Mapping[str, Any]]]], of_all: bool = False
) -> pd.DataFrame:
    """The same of a network's spectra that need not all stand in its record."""
    rows = [
        _row(record, item, stage)
        for record, items in measured
        for stage in [stages(record.experiment)]
        for item in items
        if "lambda_min_bound" in item
        and (item["class"] is None) == of_all
        and (item["epoch"] in stage or item["epoch"] == record.experiment.epochs)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"reported": bool})


def _row(
    record: Record, item: Mapping[str, Any], stage: Mapping[int, int]
) -> dict[str, Any]:
    exp = record.experiment
    recurrence, data = split(item["mode"])
    low, high = item["converged"]
    reported = bool(MODES[recurrence].beta) and not (low and high)
    number, counts = item["class"], record.per_class["class_counts"]
    row = {n: getattr(exp, n) for n in COLUMNS[:5]} | {"classes": exp.num_classes}
    row |= {"label": "all", "n": sum(counts)}
    row |= {} if number is None else {"label": number, "n": counts[number]}
    row |= {"epoch": item["epoch"], "stage": stage.get(item["epoch"], LAST)}
    row |= {"mode": item["mode"], "recurrence": recurrence, "data": data}
    row |= {"reported": reported, "item": item}
    row |= {name: _number(item.get(name)) for name in _PLAIN}
    for name, known in zip(ENDS, (low, high), strict=True):
        row[name] = item[name] if known or reported else math.nan
        row[f"{name}_bound"] = item[f"{name}_bound"]
    return row | _derived(row, item)


def _derived(row: Mapping[str, Any], item: Mapping[str, Any]) -> dict[str, float]:
    low, high = row["lambda_min"], row["lambda_max"]
    ratio = abs(low / high) if high > 0 else math.nan
    bound = _number(item["nonconvexity_bound"])
    far = math.sqrt(2 * FALL / max(abs(item["lambda_min"]), 1e-12))
    losses = item["line_losses"]
    return {
        "nonconvexity": ratio,
        "nonconvexity_bound": math.nan if math.isnan(ratio) else bound,
        "slope": item["gradient_norm"] * far,
        "fall": losses[len(losses) // 2] - (losses[0] + losses[-1]) / 2,
    }


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def split(mode: str) -> tuple[str, str]:
    """Mode of a record's spectrum as recurrence and data it was measured on."""
    found = re.fullmatch(r"(.*?)_(?:(held_out|whole)|(cut|of)\d+)", mode)
    if not found:
        return mode, "training"
    return found[1], (found[2] or found[3]).replace("_", " ")


def stages(experiment: Experiment) -> dict[int, int]:
    """Epochs of the dynamics figure in this experiment's schedule: ours to paper's."""
    ours = experiment.milestones
    if len(ours) != len(STAGES):  # a schedule too short to tell them apart
        return {experiment.epochs: LAST, experiment.drw_epoch: SWITCH}
    return dict(zip(ours, STAGES, strict=True))


def pick(table: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """Rows whose columns have the wanted values; a list holds several.

    A negative ``label`` counts from the rarest class: −2 is class 8 of ten, the paper's
    example. Full training data unless ``data`` is given.
    """
    if "mode" not in wanted:
        wanted = {"data": "training"} | wanted
    chosen = pd.Series(True, index=table.index)
    for name, value in wanted.items():
        values: list[Any] = [value] if isinstance(value, str | int) else list(value)
        if name == "label":
            values = [label(table, one) for one in values]
        chosen &= table[name].isin(values)
    return table[chosen]


def label(table: pd.DataFrame, one: int) -> int:
    """Class number; negative ones count from the rarest."""
    return one % (int(table["classes"].iloc[0]) if len(table) else 10)


def causes(table: pd.DataFrame) -> pd.DataFrame:
    """The 2×2 table, last epoch: ratio by images (fixed, redrawn) and β.

    One row a method, class and run with all four: ``method label seed`` and ``fixed,
    after``, ``fixed, before``, ``redrawn, after``, ``redrawn, before``.
    """
    cells = {
        "clean": "fixed, after", "fixed_before": "fixed, before",
        "redrawn": "redrawn, after", "as_published": "redrawn, before",
    }  # fmt: skip
    part = pick(table, mode=list(cells), stage=LAST)
    keys = ["method", "label", "seed"]
    wide = part.pivot_table("nonconvexity", keys, "mode", aggfunc="first")
    wide = wide.reindex(columns=list(cells)).rename(columns=cells)
    return wide.dropna().reset_index().rename_axis(columns=None)


def controls(table: pd.DataFrame, method: str) -> pd.DataFrame:
    """Ratios at the last epoch: the largest class whole and cut, the tail, held out.

    Rows with ``name`` in the order to show them, clean and as released.
    """
    part = table[(table["method"] == method) & (table["stage"] == LAST)]
    part = part[part["recurrence"].isin(["clean", "as_published"])]
    part = part[part["label"].isin([0, *(label(table, one) for one in (-2, -1))])]
    names = [subject(row) for _, row in part.iterrows()]
    order = {"training": 0, "whole": 1, "cut": 2, "held out": 3}
    part = part.assign(name=names, place=part["data"].map(order))
    return part.sort_values(["label", "place", "seed"])


def subject(row: Any) -> str:
    """Class and images of a row in words."""
    told = f"class {row['label']}, {row['images']:,.0f}"
    if row["data"] == "held out":
        return f"{told} held out"
    return told + (f" of {row['n']:,}" if row["images"] < row["n"] else "")


def published_dynamics(printed: pd.DataFrame) -> pd.DataFrame:
    """The paper's digitised ratios: ``method label stage nonconvexity``."""
    names = {"class": "label", "epoch": "stage"}
    return printed.rename(columns=names)[["method", "label", "stage", "nonconvexity"]]


_BOTH = {"as_published": "as published", "clean": "images fixed"}
WAYS = _BOTH | {
    "redrawn": "new crops, β after", "fixed_before": "images fixed, β before",
    "frozen": "frozen views", "augmented": "mean over all views",
    "mixed_statistics": "mixed batches", "batch_statistics": "class alone",
}  # fmt: skip
_JUDGED = {"augmented": "all views", "mixed batches": "mixed batches"}


def sheet(table: pd.DataFrame, by: Sequence[str] = ("label",)) -> pd.DataFrame:
    """For readers: both ends, their ratio, loss and gradient, one row per ``by``.

    One run: value ± bound. More: mean and range over runs. Brackets: what a released
    mode reports though it is no eigenvalue of a fixed operator. Loss, gradient, slope
    and fall are those of the fixed images in every mode but those of all views and of
    mixed batches, and named so where another mode is shown.
    """
    names = {"label": "class", "data": "images from", "recurrence": "mode"}
    if table.empty:
        return pd.DataFrame({"spectra": [NONE]}, index=["–"])
    whose = table["item"].map(lambda i: _JUDGED.get(i.get("judged_on"), "fixed images"))
    apart = whose.ne("fixed images").any()
    fixed = "" if apart or table["recurrence"].eq("clean").all() else ", fixed images"
    rows = []
    for keys, part in table.groupby(list(by), sort=False):
        row = {names.get(k, k): WAYS.get(str(key), key)
               for k, key in zip(by, keys, strict=True)}  # fmt: skip
        row |= {
            title: text(part, name)
            for title, name in (
                ("|λmin/λmax|", "nonconvexity"), ("λmin", "lambda_min"),
                ("λmax", "lambda_max"),
            )
        }  # fmt: skip
        if apart:
            row["loss of"] = ", ".join(whose[part.index].unique())
        row |= {
            f"{title}{fixed}": dash(part[name].mean(), form)
            for title, name, form in (
                ("loss", "loss", ".2g"), ("‖g‖", "gradient_norm", ".2g"),
                ("slope", "slope", ".2g"), ("fall", "fall", "+.2g"),
            )
        }  # fmt: skip
        row |= {"images": f"{part['images'].iloc[0]:.0f}"}
        rows.append(row | {"runs": part["seed"].nunique()})
    return pd.DataFrame(rows).set_index(names.get(by[0], by[0]))


def dash(x: float, form: str) -> str:
    """A number as text; a dash where there is none."""
    return "–" if math.isnan(x) else f"{x:{form}}"


def ratios(table: pd.DataFrame) -> pd.DataFrame:
    """For readers: |λmin/λmax| after the last epoch, one row per class, as text.

    A column per method and way to measure: images fixed, or as published.
    """
    part = pick(table, stage=LAST, recurrence=_BOTH, data=["training", "whole"])
    part = part.sort_values(["label", "data", "method"])
    if part.empty:
        return sheet(part)
    part = part.assign(name=[subject(row) for _, row in part.iterrows()])
    told: dict[str, dict[str, str]] = {}
    for (name, method, mode), group in part.groupby(
        ["name", "method", "recurrence"], sort=False
    ):
        column = f"{method}, {_BOTH[str(mode)]}"
        told.setdefault(str(name), {})[column] = text(group, "nonconvexity")
    wide = pd.DataFrame.from_dict(told, orient="index")
    return wide.fillna("–").rename_axis("class, images")


def text(part: pd.DataFrame, name: str) -> str:
    """A number over runs with its bound or range; says where it is no result."""
    values = part[name].dropna()
    if values.empty:
        return "not converged" if len(part) else NONE
    if len(values) == 1:
        told = f"{values.iloc[0]:.3g}"
        bound = part.loc[values.index[0], f"{name}_bound"]
        if not part["reported"].any():
            told += f" ± {bound:.1g}"
    else:
        told = f"{values.mean():.3g} ({values.min():.3g} to {values.max():.3g})"
    lost = len(part) - len(values)
    told = f"[{told}]" if part["reported"].any() else told
    return told + (f", {lost} not converged" if lost else "")


def gaps(table: pd.DataFrame, printed: pd.DataFrame) -> pd.DataFrame:
    """Distance of our ratios to the paper's at each stage: where do they agree?

    One row per method and stage: ``points`` (classes measured in both ways), the mean
    distance of what is measured as published and with images fixed, and how many of the
    former lie more than 0.5 off. Ours is the mean over runs.
    """
    rows = []
    for (method, stage), off in _distances(table, printed).groupby(["method", "stage"]):
        row = {"method": method, "epoch": stage, "points": len(off)}
        row |= {told: f"{off[mode].mean():.2f}" for mode, told in _BOTH.items()}
        row["off by more than 0.5"] = int((off["as_published"] > 0.5).sum())
        rows.append(row)
    return pd.DataFrame(rows).set_index("method") if rows else sheet(table[:0])


def before_and_after(table: pd.DataFrame, printed: pd.DataFrame, method: str) -> str:
    """Distance to the paper's points before and after re-weighting starts, in words."""
    off = _distances(table, printed)
    off = off[off["method"] == method]
    told = [
        f"{name} it, {len(part)} points: {part['as_published'].mean():.2f} as "
        f"published ({(part['as_published'] > 0.5).sum()} off by more than 0.5), "
        f"{part['clean'].mean():.2f} with images fixed"
        for name, part in (
            ("before", off[off["stage"] <= SWITCH]),
            ("after", off[off["stage"] > SWITCH]),
        )
        if len(part)
    ]
    return "; ".join(told) or NONE


def _distances(table: pd.DataFrame, printed: pd.DataFrame) -> pd.DataFrame:
    """Of our ratios, mean over runs, to the paper's; points measured in both ways."""
    keys, modes = ["method", "label", "stage"], list(_BOTH)
    part = pick(table, mode=modes)
    wide = part.pivot_table("nonconvexity", keys, "mode").reindex(columns=modes)
    both = wide.dropna().reset_index().merge(printed, on=keys)
    return both.assign(**{m: (both[m] - both["nonconvexity"]).abs() for m in modes})


def released_at_equal_loss(table: pd.DataFrame) -> str:
    """What the released procedure reads where both optimizers' class losses overlap."""
    low, high = 0.05, 0.45  # nats
    part = pick(table, mode="as_published")
    part = part[part["loss"].between(low, high)]
    told = [
        f"{(some['nonconvexity'] >= 0.9).sum()} of {len(some)} measurements of {method}"
        for method, some in part.groupby("method")
    ]
    read = f"at class losses of {low} to {high} nats, {' and '.join(told)}"
    return f"{read} read 0.9 or more" if told else NONE


def bends(fixed: pd.DataFrame) -> dict[str, str]:
    """How all classes bend with images fixed, in words.

    Returns:
        ``negative``: in how many λmin is negative beyond its bound; ``along``: the
        gradient along the lowest direction over its norm, median, percent;
        ``by_group``: the mean ratio by method and group; ``lowest``: the tail's mean
        λmin by method.
    """
    down = fixed["lambda_min"] + fixed["lambda_min_bound"] < 0
    along = (fixed["gradient_along"] / fixed["gradient_norm"]).abs().median()
    of = {label: g for g, some in class_groups(10).items() for label in some}
    groups = fixed.assign(group=fixed["label"].map(of))
    by = groups.groupby(["method", "group"], sort=False, as_index=False)
    means = by["nonconvexity"].mean().itertuples()
    told = [f"{row.method}, {row.group} {row.nonconvexity:.3f}" for row in means]
    tail = groups[groups["group"] == "tail"].groupby("method")["lambda_min"].mean()
    return {
        "negative": f"{down.sum()} of {len(down)}",
        "along": f"{100 * along:.1f}",
        "by_group": "; ".join(told) or NONE,
        "lowest": " and ".join(f"{x:.2f} with {m}" for m, x in tail.items()) or NONE,
    }


def coverage(table: pd.DataFrame) -> str:
    """Runs and spectra behind a page, in words."""
    if table.empty:
        return NONE
    runs = table.groupby("method", sort=False)["seed"].nunique()
    told = ", ".join(f"{count} of {method}" for method, count in runs.items())
    lost = int((table["nonconvexity"].isna() & ~table["reported"]).sum())
    return f"{len(table)} spectra of networks: {told}; {lost} not converged"


def mistakes_sheet(
    found: Iterable[Mapping[str, Any]], names: Sequence[str]
) -> pd.DataFrame:
    """What the tail's test images are taken for, a row a class, a column a network.

    Args:
        found: ``scale``, ``method`` and ``counts`` of each, true class by answer.
        names: Of the classes.
    """
    rows: dict[str, dict[str, str]] = {}
    for one in found:
        for y in class_groups(len(names))["tail"]:
            row = rows.setdefault(f"{names[y]}, {one['scale']}", {})
            row[one["method"]] = _taken(one["counts"][y], y, names)
    return pd.DataFrame(rows).T


def _taken(counts: Sequence[int], y: int, names: Sequence[str]) -> str:
    """``right 31 %; cat 12, dog 9, deer 7``: of all images of the class."""
    shares = _percent(counts)
    order = sorted(set(range(len(counts))) - {y}, key=lambda k: -counts[k])[:3]
    wrong = ", ".join(f"{names[k]} {shares[k]:.0f}" for k in order)
    return f"right {shares[y]:.0f} %; {wrong}"


def _percent(counts: Iterable[int]) -> list[float]:
    parts = list(counts)
    return [100 * part / sum(parts) for part in parts]


def losses_sheet(found: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Where the tail's test images go, percent, a row a network.

    Args:
        found: As in ``mistakes_sheet``.
    """
    rows = {}
    for one in found:
        counts, groups = one["counts"], class_groups(len(one["counts"]))
        tail = groups["tail"]
        lost = [sum(counts[y][k] for y in tail for k in of if k != y)
                for of in groups.values()]  # fmt: skip
        shares = _percent([sum(counts[y][y] for y in tail), *lost])
        rows[f"{one['method']}, {one['scale']}"] = [f"{x:.0f}" for x in shares]
    columns = ["right", "to head", "to mid", "to another of the tail"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def spread(table: pd.DataFrame, name: str) -> str:
    """Least, median and greatest of a column in words."""
    values = table[name].dropna()
    if values.empty:
        return NONE
    low, middle, high = values.min(), values.median(), values.max()
    return f"{low:.2g} to {high:.2g} (median {middle:.2g})"


def kinds(table: pd.DataFrame) -> pd.Series[Any]:
    """What each point is along its lowest direction, by computed rules.

    ``bowl``: λmin not below its bound; ``slope``: the gradient promises more than the
    curvature; ``saddle``: negative curvature, the gradient promises less, and the loss
    falls; ``flat``: as a saddle, but the loss does not fall where curvature says so.
    """
    below = table["lambda_min"] < -table["lambda_min_bound"]
    steep, falls = table["slope"] >= FALL, table["fall"] > 0
    names = np.select(
        [table["lambda_min"].isna(), ~below, steep, falls],
        ["not converged", "bowl", "slope", "saddle"],
        "flat",
    )
    return pd.Series(names, index=table.index)


def count(names: pd.Series[Any]) -> str:
    """How often each name occurs, in words."""
    if names.empty:
        return NONE
    return ", ".join(f"{n} {name}" for name, n in names.value_counts().items())


def as_table(rows: Sequence[Sequence[str]]) -> str:
    """As a Markdown table; the first row is its head."""
    head, *rest = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|---" * len(rows[0]) + "|", *rest])
