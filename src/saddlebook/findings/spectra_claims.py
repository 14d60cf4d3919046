"""Says what spectra tell about the paper's claims: the whole tail, t over seeds.

A claim is that one number exceeds another in the networks of one seed; numbers of the
tail are the mean over its classes, as far as all are measured that way. Two-sided
t-tests over five seeds, Holm over the family. (Registered before was a sign test on
class 8, the paper's example: all five seeds, each beyond the bounds of both values.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from saddlebook import studies
from saddlebook.experiment import Experiment
from saddlebook.findings.claims import Claim, Contrast, Family, P, Runs, Sides, signed
from saddlebook.findings.tables import ENDS, FIRST, LAST, NONE, SWITCH, pick
from saddlebook.findings.verdicts import t_interval

_SGD, _SAM = "CE+DRW", "CE+DRW+SAM"
HEAD, TAIL = (0,), (-3, -2, -1)
REDRAWN = (-2, -1)  # of the tail, class 7 is not measured in these modes
_EXAMPLE = (-2,)  # class 8 of ten, the paper's
WITHIN = 1.25  # two losses of a class count as equal within this factor


class Cell(NamedTuple):
    """Which number of a seed's networks; the mean over labels and modes."""

    method: str
    labels: tuple[int, ...]
    stage: int = LAST
    modes: tuple[str, ...] = ("clean",)
    value: str = "nonconvexity"


@dataclass(frozen=True, kw_only=True)
class Exceeds(Contrast):
    """``more`` minus ``less``, or minus nothing; above zero, in a study's runs."""

    more: Cell
    less: Cell | None = None
    study: Callable[[Sequence[int]], list[Experiment]] = studies.dynamics

    @property
    def sign(self) -> bool:
        """Whether it is a difference; a ratio alone is a size."""
        return self.less is not None

    def experiments(self) -> list[Experiment]:
        """The study's runs, by default those of the dynamics figure."""
        names = {cell.method for cell in (self.more, self.less) if cell}
        return [e for e in self.study(self.seeds) if e.method in names]

    def sides(self, runs: Runs, scale: str) -> Sides:
        """Both cells by seed."""
        table = self._table(runs, scale)
        found = [(1.0, _means(table, self.more))]
        return found + ([(-1.0, _means(table, self.less))] if self.less else [])

    def note(self, runs: Runs, scale: str) -> str:
        """The difference in each class of the tail."""
        if len(self.more.labels) == 1:
            return ""
        table, told = self._table(runs, scale), []
        for one in self.more.labels:
            found = _differences(table, *self._of((one,)))
            if found:
                mean = math.fsum(v for v, _ in found.values()) / len(found)
                told.append(f"class {one % 10} {signed(mean, 3, self.sign)}")
        return ", ".join(told)

    def registered(self, runs: Runs, scale: str) -> P:
        """Of the dynamics figure: all five seeds of class 8 beyond its bounds."""
        if self.study is not studies.dynamics:
            return super().registered(runs, scale)
        found = _differences(self._table(runs, scale), *self._of(_EXAMPLE)).values()
        agree = all(value > bound for value, bound in found)
        against = all(value < -bound for value, bound in found)
        return float(not (found and agree)), float(not (found and against))

    def _table(self, runs: Runs, scale: str) -> pd.DataFrame:
        """Spectra of its seeds: another study may have the same numbers of others."""
        data = ("training", "cut", "of", "held out")
        table = pick(runs.spectra, scale=scale, data=data)
        return table[table["seed"].isin(self.seeds)]

    def _of(self, labels: tuple[int, ...]) -> tuple[Cell, Cell | None]:
        """Both cells with one class in place of the tail, and one draw of several."""

        def one(cell: Cell) -> Cell:
            tail = labels if len(cell.labels) > 1 else cell.labels
            return cell._replace(labels=tail, modes=cell.modes[:1])

        return one(self.more), self.less and one(self.less)


def _claim(
    name: str, statement: str, more: Cell, less: Cell | None = None, **where: Any
) -> Claim:
    digits = 1 if more.value in ENDS else 3  # an eigenvalue, or a ratio
    bounds: dict[str, Any] = {"low": 0.0, "two_sided": True, "unpaired": False}
    part = Exceeds(name=name, digits=digits, more=more, less=less, **bounds | where)
    return Claim(name, statement, ((part,),))


def curvature_family() -> Family:
    """Saddles, and what the released measurement does: ten claims."""
    return Family("curvature", (*_saddles(), *_causes()))


def _saddles() -> list[Claim]:
    """The paper's reading of its figure, under both ways to measure."""
    found = []
    for mode, told in (("as_published", "as published"), ("clean", "images fixed")):
        tail = Cell(_SGD, TAIL, modes=(mode,))
        found += [
            _claim(
                f"tail above head, {told}",
                f"SGD ends with a larger abs(λmin/λmax) in tail than head, {told}",
                tail, tail._replace(labels=HEAD),
            ),
            _claim(
                f"SGD above SAM, {told}",
                f"abs(λmin/λmax) of the tail ends larger with SGD than SAM, {told}",
                tail, tail._replace(method=_SAM),
            ),
        ]  # fmt: skip
    return found


def _causes() -> list[Claim]:
    """Which step of the released measurement raises the ratio of the tail."""
    clean, part = Cell(_SGD, TAIL), Cell(_SGD, REDRAWN)
    released = clean._replace(modes=("as_published",))
    redrawn = part._replace(modes=("redrawn",))
    whole, draws = Cell(_SGD, HEAD), range(3)

    def cut(mode: str) -> Cell:
        return whole._replace(modes=tuple(f"{mode}_cut{i}" for i in draws))

    return [
        _claim(
            "published above fixed",
            "In the tail the released measurement reads higher than fixed images",
            released, clean,
        ),
        _claim(
            "redrawing",
            "Drawing new crops in every product raises the ratio of the tail",
            redrawn, part,
        ),
        _claim(
            "early norm",
            "Taking the norm β before re-orthogonalisation raises it further",
            part._replace(modes=("as_published",)), redrawn,
        ),
        _claim(
            "cut head, as published",
            "The head cut to the tail's size reads higher than the whole head, as "
            "published",
            cut("as_published"), whole._replace(modes=("as_published",)),
        ),
        _claim(
            "cut head, images fixed",
            "The head cut to the tail's size reads higher than the whole head, images "
            "fixed",
            cut("clean"), whole,
        ),
        _claim(
            "positive along the vector",
            "Curvature of fixed images along the vector reported as most negative is "
            "positive in the tail",
            released._replace(value="rayleigh_clean"),
        ),
    ]  # fmt: skip


def schedule_family() -> Family:
    """What re-weighting does, and what chapter 3 predicts of the schedule: four.

    Two more were registered and withdrawn, and count in the correction: they compared
    ρ·abs(λmin) with the gradient norm of one *class*, but SAM divides by that of the
    re-weighted batch, so they said nothing about SAM's step.
    """
    tail = Cell(_SGD, TAIL)
    switch = tail._replace(stage=SWITCH)
    high = switch._replace(value="lambda_max")
    raised = [
        _claim(
            f"switch raises, {told}",
            f"Re-weighting raises the ratio of the tail, {told}",
            tail._replace(modes=(mode,)), switch._replace(modes=(mode,)),
        )
        for mode, told in (("as_published", "as published"), ("clean", "images fixed"))
    ]  # fmt: skip
    return Family(
        "schedule",
        (
            *raised,
            _claim(
                "early above end",
                "The ratio of the tail is higher early than at the end",
                switch._replace(stage=FIRST), tail,
            ),
            _claim(
                "λmax before the switch",
                "Before re-weighting λmax of the tail is larger with SGD than with SAM",
                high, high._replace(method=_SAM),
            ),
        ),
        more=2,
    )  # fmt: skip


def images_family() -> Family:
    """How many images of class 0, the largest, are measured: three, fresh seeds."""
    where = {"study": studies.head_images, "seeds": studies.FRESH_SEEDS}

    def of(mode: str, count: int) -> Cell:
        return Cell(_SGD, HEAD, modes=(f"{mode}_of{count}",))

    ratio = "abs(λmin/λmax) of class 0"
    return Family(
        "images",
        (
            _claim(
                "c1", f"With images fixed, {ratio} is larger on 25 of them than 1,000",
                of("clean", 25), of("clean", 1000), **where,
            ),
            _claim(
                "c2", f"As published, {ratio} is larger on 50 images than on 400",
                of("as_published", 50), of("as_published", 400), **where,
            ),
            _claim(
                "c3", f"On 50 images {ratio} is larger as published than averaged over "
                "all views",
                of("as_published", 50), of("augmented", 50), **where,
            ),
        ),
    )  # fmt: skip


def views_family() -> Family:
    """The tail with augmentation inside the loss, exactly: four, fresh seeds."""
    where: dict[str, Any] = {"study": studies.views, "seeds": studies.FRESH_SEEDS}
    ratio, exact = "abs(λmin/λmax) of the tail", Cell(_SGD, TAIL, modes=("augmented",))
    below = where | {"low": -math.inf, "high": 0.2, "two_sided": False}
    return Family(
        "all views",
        (
            _claim(
                "f1", f"With SGD {ratio} is larger as published than over all views",
                exact._replace(modes=("as_published",)), exact, **where,
            ),
            _claim(
                "f2", f"With SGD {ratio} is larger over all views than on fixed images",
                exact, exact._replace(modes=("clean",)), **where,
            ),
            _claim(
                "f3", f"Over all views {ratio} is larger with SGD than with SAM",
                exact, exact._replace(method=_SAM), **where,
            ),
            _claim(
                "f4", f"Over all views and with SGD {ratio} is below .2", exact, **below
            ),
        ),
    )  # fmt: skip


def _means(table: pd.DataFrame, cell: Cell) -> dict[int, float]:
    return {seed: value for seed, (value, _) in _numbers(table, cell).items()}


def _differences(
    table: pd.DataFrame, more: Cell, less: Cell | None
) -> dict[int, tuple[float, float]]:
    """By seed: more minus less, and the sum of their bounds."""
    first = _numbers(table, more)
    second = _numbers(table, less) if less else dict.fromkeys(first, (0.0, 0.0))
    return {
        seed: (value - second[seed][0], bound + second[seed][1])
        for seed, (value, bound) in first.items()
        if seed in second
    }


def _numbers(table: pd.DataFrame, cell: Cell) -> dict[int, tuple[float, float]]:
    """Mean and mean bound by seed, of the seeds that have every class and draw."""
    part = pick(
        table, method=cell.method, label=cell.labels, stage=cell.stage, mode=cell.modes
    )
    part = part.dropna(subset=[cell.value])
    part = part.assign(bound=_bounds(part, cell.value))
    full = len(cell.labels) * len(cell.modes)
    groups = [(seed, some) for seed, some in part.groupby("seed") if len(some) == full]
    return {
        int(str(seed)): (float(some[cell.value].mean()), float(some["bound"].mean()))
        for seed, some in groups
    }


def _bounds(part: pd.DataFrame, value: str) -> Any:
    """What a procedure reports is exact as such; a measured value has its bound."""
    if f"{value}_bound" not in part:
        return [0.0] * len(part)
    return part[f"{value}_bound"].where(~part["reported"], 0.0)


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
