"""Tells how sharp losses become: the total one, and a class's where losses are equal.

Of the total loss also where rare classes' gradients point. Of a class both ends: its
curvature follows its loss, and SAM's losses are larger than those of SGD, so the two
compare only where they fit a class equally well.

SAM's edge is the curvature λ at which ηλ(1 + ρλ/‖g‖) = 2(1 + β): on a quadratic that
curved its steps with momentum β neither grow nor shrink. What is measured and claimed
stands in the docstring of ``studies.edge``.

References:
    Long and Bartlett 2024 (SAM's edge, for β = 0); Cohen et al. 2021 (SGD's edge, with
    momentum); Gur-Ari et al. 2018 (gradients in the top eigenvectors).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from saddlebook import studies
from saddlebook.experiment import Experiment
from saddlebook.findings.claims import Claim, Contrast, Family, Runs, Sides
from saddlebook.findings.tables import ENDS, NONE, SWITCH, pick
from saddlebook.findings.verdicts import t_interval
from saddlebook.scales import at_scale
from saddlebook.theory.saddles import stable_curvature

if TYPE_CHECKING:
    from saddlebook.record import Record

MARGIN = 0.5  # doublings
WITHIN = 1.25  # two losses of a class count as equal within this factor
_COLUMNS = (
    "scale", "rho", "published", "seed", "epoch", "settled", "lambda_max", "norm",
    "edge", "doublings",
)  # fmt: skip
# Mode of measurement: when that is, as figures name it
WHEN = {
    "before": "before re-weighting", "weights": "same network, class weights on",
    "after": "after the last epoch",
}  # fmt: skip


def published(experiment: Experiment) -> float:
    """The paper-scale radius of a run; its own where the ablation does not have it."""
    return _radii(experiment.scale).get(experiment.rho, experiment.rho)


@cache
def _radii(scale: str) -> dict[float, float]:
    runs = studies.rho_ablation(seeds=(0,))
    return {at_scale(full, scale).rho: full.rho for full in runs}


def edge_table(records: Iterable[Record]) -> pd.DataFrame:
    """λmax of the total loss and its edge, one row an epoch; may be empty.

    ``doublings``: binary logarithm of λmax over the edge; ``settled``: whether the
    epoch lies in the second half of those before re-weighting.
    """
    rows = [row for record in records for row in _rows(record)]
    return pd.DataFrame(rows, columns=list(_COLUMNS)).astype({"settled": bool})


def _rows(record: Record) -> list[dict[str, Any]]:
    found = [item for item in record.spectra if item["mode"] == "total"]
    return [_row(record.experiment, item) for item in found]


def _row(exp: Experiment, item: Mapping[str, Any]) -> dict[str, Any]:
    high, norm = item["lambda_max"], item["batch_gradient_norm"]
    edge = float(stable_curvature(item["lr"], item["rho"], exp.momentum, norm))
    half = 2 * item["epoch"] >= exp.drw_epoch >= item["epoch"]
    row = {"scale": exp.scale, "rho": exp.rho, "published": published(exp)}
    row |= {"seed": exp.seed, "epoch": item["epoch"], "settled": half}
    row |= {"lambda_max": high, "norm": norm, "edge": edge}
    return row | {"doublings": math.log2(high / edge)}


def above_edge(record: Record) -> float:
    """Mean doublings of λmax above its edge where it has settled."""
    return fmean(row["doublings"] for row in _rows(record) if row["settled"])


def sharpness(record: Record) -> float:
    """Mean binary logarithm of λmax there."""
    return fmean(math.log2(r["lambda_max"]) for r in _rows(record) if r["settled"])


def share_table(records: Iterable[Record]) -> pd.DataFrame:
    """Share of each class's gradient in the top eigenvectors, percent; may be empty.

    One row a class and time of ``WHEN``: ``scale method seed when class share``.
    """
    rows = [
        {"scale": exp.scale, "method": exp.method, "seed": exp.seed}
        | {"when": when, "class": class_, "share": 100 * share}
        for record in records
        for exp in [record.experiment]
        for when, shares in _shares(record).items()
        for class_, share in enumerate(shares)
    ]
    names = ["scale", "method", "seed", "when", "class", "share"]
    return pd.DataFrame(rows, columns=names)


def _shares(record: Record) -> dict[str, list[float]]:
    """By when they were measured, in the order of ``WHEN``."""
    last, found = record.experiment.epochs, {}
    for item in record.spectra:
        if item["mode"] == "outliers_reweighted":
            found["weights"] = item["shares"]
        elif item["mode"] == "outliers":
            found["after" if item["epoch"] == last else "before"] = item["shares"]
    return {when: found[when] for when in WHEN if when in found}


def tail_share(record: Record, when: str, less: str = "") -> float:
    """Mean share of the tail's classes, percent; minus that at another time."""
    found, tail = _shares(record), record.groups["tail"]

    def mean(name: str) -> float:
        return 100 * fmean(found[name][c] for c in tail)

    return mean(when) - (mean(less) if less else 0.0)


@dataclass(frozen=True, kw_only=True)
class NumberContrast(Contrast):
    """A linear combination of one number of runs of some settings.

    Attributes:
        number: Of a record.
        terms: Factors and settings, at full scale and seed 0.
    """

    number: Callable[[Record], float]
    terms: tuple[tuple[float, Experiment], ...]
    digits: int = 2
    seeds: tuple[int, ...] = studies.FRESH_SEEDS

    def experiments(self) -> list[Experiment]:
        """The runs of its settings."""
        return [replace(e, seed=seed) for seed in self.seeds for _, e in self.terms]

    def sides(self, runs: Runs, scale: str) -> Sides:
        """The number by seed, of each setting."""
        return [(factor, self._by_seed(e, runs, scale)) for factor, e in self.terms]

    def _by_seed(self, exp: Experiment, runs: Runs, scale: str) -> dict[int, float]:
        wanted = {s: at_scale(replace(exp, seed=s), scale) for s in self.seeds}
        return {s: self.number(runs[e]) for s, e in wanted.items() if e in runs}


def edge_family() -> Family:
    """Does the total loss settle at the edge that SAM's step predicts? Four."""
    sgd, *sam = sorted(studies.edge(seeds=(0,)), key=lambda exp: exp.rho)
    (paper,) = (exp for exp in sam if exp.spectra_plan == "outliers")
    within: dict[str, Any] = {"low": -MARGIN, "high": MARGIN, "number": above_edge}
    alone = _number("SGD", sgd, **within)
    own = tuple(_number(f"ρ = {e.rho:g}", e, **within) for e in sam)
    beside = tuple(_number(f"ρ = {e.rho:g} − SGD", e, sgd, **within) for e in sam)
    half = _number("SAM − SGD", paper, sgd, high=-1.0, number=sharpness)
    near = "λmax of the total loss settles within half a doubling of its edge"
    falls = "λmax falls with the radius as its edge does, within half a doubling"
    less = "At the paper's radius λmax settles below half of SGD's"
    return Family(
        "edge",
        (
            Claim("b1", f"With SGD {near}", ((alone,),)),
            Claim("b2", f"With SAM {near}, at every radius", (own,)),
            Claim("b3", falls, (beside,)),
            Claim("b4", less, ((half,),)),
        ),
    )


def outlier_family() -> Family:
    """Do rare classes' gradients turn to the top eigenvectors? Four."""
    runs = [e for e in studies.edge(seeds=(0,)) if e.spectra_plan == "outliers"]
    sgd, sam = sorted(runs, key=lambda exp: exp.rho)
    later = partial(tail_share, when="after", less="before")
    alone = partial(tail_share, when="weights", less="before")
    first = partial(tail_share, when="before")
    words = "more of the tail's gradients lies in the ten top eigenvectors"
    found: list[tuple[str, str, Callable[[Record], float], tuple[Experiment, ...]]] = [
        ("e1", f"With SGD {words} at the end than before re-weighting", later, (sgd,)),
        ("e2", f"With SAM {words} at the end than before re-weighting", later, (sam,)),
        (
            "e3", f"Before re-weighting {words} with SAM than with SGD", first,
            (sam, sgd),
        ),
        ("e4", f"With SGD {words} once classes are weighted", alone, (sgd,)),
    ]  # fmt: skip
    how: dict[str, Any] = {"low": 0.0, "two_sided": True, "digits": 1}
    return Family(
        "outliers",
        tuple(
            Claim(name, told, ((_number(name, *arms, number=number, **how),),))
            for name, told, number, arms in found
        ),
    )


def _number(
    name: str, exp: Experiment, less: Experiment | None = None, **how: Any
) -> NumberContrast:
    """Of one setting, or minus that of another."""
    terms = ((1.0, exp),) + (((-1.0, less),) if less else ())
    return NumberContrast(name=name, terms=terms, **how)


def at_equal_loss(
    table: pd.DataFrame, end: str, same: Sequence[str] = ("seed", "label", "stage")
) -> pd.DataFrame:
    """Spectra of SAM beside the spectrum of SGD whose class loss is nearest.

    The losses of the two methods hardly overlap in the networks of the paper's figure,
    so a fitted line alone would compare by extrapolation. Other weight decays, radii
    and epochs fill the gap.

    Args:
        table: From ``tables.spectra_table``; only clean spectra count.
        end: ``lambda_min`` or ``lambda_max``.
        same: Columns in which both must agree.

    Returns:
        The rows of SAM that have a partner within a factor of ``WITHIN`` in loss, with
        ``factor``: the end's size with SAM divided by that with SGD.
    """
    found = []
    for _, part in _clean(table, end).groupby(list(same)):
        sgd, sam = (part[part["optimizer"] == kind] for kind in ("sgd", "sam"))
        if len(sgd) and len(sam):
            ratios = np.divide.outer(sam["loss"].to_numpy(), sgd["loss"].to_numpy())
            away = np.abs(np.log(ratios))
            partner = sgd[end].to_numpy()[away.argmin(axis=1)]
            pairs = sam.assign(factor=np.abs(sam[end] / partner))
            found.append(pairs[away.min(axis=1) <= math.log(WITHIN)])
    return pd.concat(found) if found else table.assign(factor=0.0).head(0)


def on_one_line(table: pd.DataFrame, end: str) -> dict[int, float]:
    """SAM's factor on an end of the spectrum by seed, from a fitted line.

    Least squares of the logarithm of the end's size on those of the class's loss and
    its number of images, and on the method; a line per seed.
    """
    found = {}
    for seed, part in _clean(table, end).groupby("seed"):
        sam = (part["optimizer"] == "sam").astype(float)
        columns = [np.ones(len(part)), np.log(part["loss"]), np.log(part["n"]), sam]
        size = np.log(np.abs(part[end]))
        slopes = np.linalg.lstsq(np.column_stack(columns), size, rcond=None)[0]
        found[int(str(seed))] = float(np.exp(slopes[-1]))
    return found


def _clean(table: pd.DataFrame, end: str) -> pd.DataFrame:
    """Clean spectra with that end known, a network once though studies share it."""
    found = pick(table, mode="clean").dropna(subset=[end])
    return found.drop_duplicates(["scale", "method", "rho", "seed", "epoch", "label"])


def factor_by_seed(pairs: pd.DataFrame) -> dict[int, float]:
    """Geometric mean of ``factor`` by seed."""
    logs = np.log(pairs["factor"]).groupby(pairs["seed"]).mean()
    return {int(str(seed)): float(np.exp(value)) for seed, value in logs.items()}


def times(factors: Mapping[int, float]) -> str:
    """Geometric mean over seeds with its 95 % t-interval, in words."""
    return f"×{_middle(factors)}" if factors else NONE


def _middle(factors: Mapping[int, float]) -> str:
    logs = [math.log(value) for value in factors.values()]
    middle, (low, high) = math.exp(math.fsum(logs) / len(logs)), t_interval(logs)
    if math.isnan(low):
        return f"{middle:.2f} ({len(logs)} seed{'s' * (len(logs) > 1)}, no interval)"
    return f"{middle:.2f} ({math.exp(low):.2f} to {math.exp(high):.2f})"


def flattening(table: pd.DataFrame) -> str:
    """What SAM does to both ends at equal loss before the switch, as a sentence."""
    early = table[table["stage"] <= SWITCH]
    found = (factor_by_seed(at_equal_loss(early, end)) for end in ENDS)
    low, high = (f"{_middle(f)} times" if f else "" for f in found)
    return (
        "Looked at afterwards, in no registered test: where both fit a class equally "
        "well, before the switch, SAM's "
        f"most negative curvature is {f'{low} that of SGD' if low else NONE}, and its "
        f"largest {high or NONE}."
    )


def equal_loss_sheet(
    shown: pd.DataFrame, last: pd.DataFrame, early: pd.DataFrame
) -> pd.DataFrame:
    """SAM's factor on both ends of the spectrum, one row per way to equal loss.

    Args:
        shown: Spectra after the last epoch of the two runs that are compared.
        last: The same of all radii and weight decays.
        early: Of epochs before re-weighting.
    """
    rows = []
    radius = shown["rho"].max()
    for name, cells in (
        ("last epoch, any weight decay", last[last["rho"].isin([0, radius])]),
        ("same epoch before the switch", early),
    ):
        pairs = [at_equal_loss(cells, end) for end in ENDS]
        rows.append(
            [f"pairs, {name}", len(pairs[0]), *map(times, map(factor_by_seed, pairs))]
        )
    lines = [on_one_line(shown, end) for end in ENDS]
    fitted = len(_clean(shown, "lambda_min"))
    rows.append(["fitted line, last epoch", fitted, *map(times, lines)])
    names = ["compared", "spectra", "abs(λmin)", "λmax"]
    return pd.DataFrame(rows, columns=names).set_index("compared")
