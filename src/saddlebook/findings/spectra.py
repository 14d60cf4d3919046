"""Records to tables of curvature: spectra, the 2×2 of causes, controls, dynamics.

Pure functions on pandas tables; nothing here measures or draws. A value whose bound is
too wide is no result: it stays out (NaN), except what a released mode *reports*, which
is kept and marked. What the tables say about the claims is in ``curvature_claims``.

Legend: C classes, n training images of a class, P probes, K nodes.

References:
    Rangwani et al. 2022, section 3; ``results/paper/dynamics.csv``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from saddlebook import studies
from saddlebook.curvature.modes import MODES
from saddlebook.curvature.spectrum import Spectrum
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
_ENDS = ("lambda_min", "lambda_max")
COLUMNS = (
    "method", "optimizer", "rho", "seed", "scale", "label", "classes", "n", "epoch",
    "stage", "mode", "recurrence", "data", "reported", *_PLAIN, *_ENDS,
    "lambda_min_bound", "lambda_max_bound", "nonconvexity", "nonconvexity_bound",
    "slope", "fall", "item",
)  # fmt: skip


def spectra(records: Iterable[Record]) -> pd.DataFrame:
    """One row a spectrum; may be empty, with its columns.

    ``stage`` is the epoch of the paper's figure that ``epoch`` stands for; ``data`` is
    ``training``, ``held out`` or ``cut``; ``recurrence`` the mode without that.
    ``reported`` marks values of a released mode that are no eigenvalues of the fixed
    operator; other values that did not converge are NaN.

    ``slope``: nats that the class's gradient promises over the step on which the
    curvature promises ``FALL``; at a saddle it is far smaller than that. ``fall``: nats
    by which the loss falls, mean of both ends of that step, which takes the gradient
    out.
    """
    rows = [
        _row(record, item)
        for record in records
        for item in record.spectra
        if "lambda_min_bound" in item
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"reported": bool})


def _row(record: Record, item: Mapping[str, Any]) -> dict[str, Any]:
    exp = record.experiment
    recurrence, data = split(item["mode"])
    low, high = item["converged"]
    reported = bool(MODES[recurrence].beta) and not (low and high)
    row = {"method": exp.method, "optimizer": exp.optimizer, "rho": exp.rho}
    row |= {"seed": exp.seed, "scale": exp.scale, "label": item["class"]}
    row |= {"classes": exp.num_classes}
    row |= {"n": record.per_class["class_counts"][item["class"]]}
    row |= {"epoch": item["epoch"], "stage": stages(exp).get(item["epoch"], LAST)}
    row |= {"mode": item["mode"], "recurrence": recurrence, "data": data}
    row |= {"reported": reported, "item": item}
    row |= {name: _number(item.get(name)) for name in _PLAIN}
    for name, known in zip(_ENDS, (low, high), strict=True):
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
    found = re.fullmatch(r"(.*?)_(held_out|cut\d+)", mode)
    if not found:
        return mode, "training"
    return found[1], "held out" if found[2] == "held_out" else "cut"


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


def rebuilt(item: Mapping[str, Any]) -> Spectrum:
    """The stored spectrum with its nodes, for densities; its vectors are not kept."""
    values: dict[str, Any] = {
        name: torch.tensor(item[name], dtype=torch.float64)
        for name in ("nodes", "weights", "residuals")
    }
    names = (
        "size", "lambda_min", "lambda_max", "lambda_min_bound", "lambda_max_bound",
        "trace", "trace_error", "trace_method", "products", "symmetry",
    )  # fmt: skip
    none = torch.empty(0)
    values |= {name: item[name] for name in names}
    return Spectrum(**values, vector_min=none, vector_max=none)


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
    order = {"training": 0, "cut": 1, "held out": 2}
    part = part.assign(name=names, place=part["data"].map(order))
    return part.sort_values(["label", "place", "seed"])


def subject(row: Any) -> str:
    """Class and images of a row in words."""
    told = f"class {row['label']}, {row['images']:.0f}"
    if row["data"] == "held out":
        return f"{told} held out"
    return told + (f" of {row['n']:,}" if row["images"] < row["n"] else "")


def published_dynamics(printed: pd.DataFrame) -> pd.DataFrame:
    """The paper's digitised ratios: ``method label stage nonconvexity``."""
    names = {"class": "label", "epoch": "stage"}
    return printed.rename(columns=names)[["method", "label", "stage", "nonconvexity"]]
