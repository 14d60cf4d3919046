"""Says what spectra tell about the paper's claims: the whole tail, t over seeds.

A claim is that one number exceeds another in the networks of one seed; numbers of the
tail are the mean over its classes, as far as all are measured that way. Two-sided
t-tests over five seeds, Holm over the family. (Registered before was a sign test on
class 8, the paper's example: all five seeds, each beyond the bounds of both values.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from saddlebook import studies
from saddlebook.experiment import Experiment
from saddlebook.findings.claims import (
    Claim,
    Contrast,
    Family,
    P,
    Runs,
    Sides,
    Study,
    signed,
)
from saddlebook.findings.tables import ENDS, FIRST, LAST, SWITCH, pick

_SGD, _SAM = "CE+DRW", "CE+DRW+SAM"
HEAD, TAIL = (0,), (-3, -2, -1)
REDRAWN = (-2, -1)  # of the tail, class 7 is not measured in these modes
_RATIO = "abs(λmin/λmax) of the tail"
_BELOW = {"low": -math.inf, "high": 0.2, "two_sided": False}  # the paper's: above .5
_EXAMPLE = (-2,)  # class 8 of ten, the paper's


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
    study: Study = studies.dynamics

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
        table = pick(runs.spectra(self.study), scale=scale, data=data)
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
                "SGD ends with a larger abs(λmin/λmax) in the tail than in class 0, "
                f"{told}",
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
            "Drawing new crops in every product raises the ratio of classes 8 and 9",
            redrawn, part,
        ),
        _claim(
            "early norm",
            "Taking the norm β before re-orthogonalisation raises it further",
            part._replace(modes=("as_published",)), redrawn,
        ),
        _claim(
            "cut head, as published",
            "Class 0 cut to the tail's size reads higher than the whole of it, as "
            "published",
            cut("as_published"), whole._replace(modes=("as_published",)),
        ),
        _claim(
            "cut head, images fixed",
            "Class 0 cut to the tail's size reads higher than the whole of it, images "
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
                "With SGD the ratio of the tail is higher early than at the end, "
                "images fixed",
                switch._replace(stage=FIRST), tail,
            ),
            _claim(
                "λmax before the switch",
                "Before re-weighting λmax of the tail is larger with SGD than with "
                "SAM, images fixed",
                high, high._replace(method=_SAM),
            ),
        ),
        more=2,
    )  # fmt: skip


def images_family() -> Family:
    """How many images of class 0, the largest, are measured: three, fresh seeds."""

    def of(mode: str, count: int) -> Cell:
        return Cell(_SGD, HEAD, modes=(f"{mode}_of{count}",))

    where, ratio = _fresh(studies.head_images), "abs(λmin/λmax) of class 0"
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
    where, exact = _fresh(studies.views), Cell(_SGD, TAIL, modes=("augmented",))
    return Family(
        "all views",
        (
            _claim(
                "f1", f"With SGD {_RATIO} is larger as published than over all views",
                exact._replace(modes=("as_published",)), exact, **where,
            ),
            _claim(
                "f2", f"With SGD {_RATIO} is larger over all views than on fixed "
                "images",
                exact, exact._replace(modes=("clean",)), **where,
            ),
            _claim(
                "f3", f"Over all views {_RATIO} is larger with SGD than with SAM",
                exact, exact._replace(method=_SAM), **where,
            ),
            _claim(
                "f4", f"Over all views and with SGD {_RATIO} is below .2", exact,
                **where | _BELOW,
            ),
        ),
    )  # fmt: skip


def statistics_family() -> Family:
    """The tail with batch norm as in training, in mixed batches: three, fresh seeds."""
    where = _fresh(studies.mixed_batches)
    mixed = Cell(_SGD, TAIL, modes=("mixed_statistics",))
    return Family(
        "batch statistics",
        (
            _claim(
                "g1", f"In mixed batches and with SGD {_RATIO} is below .2", mixed,
                **where | _BELOW,
            ),
            _claim(
                "g2", f"In mixed batches {_RATIO} is larger with SGD than with SAM",
                mixed, mixed._replace(method=_SAM), **where,
            ),
            _claim(
                "g3", f"With SGD {_RATIO} is larger in mixed batches than with running "
                "statistics",
                mixed, mixed._replace(modes=("clean",)), **where,
            ),
        ),
    )  # fmt: skip


def _fresh(study: Study) -> dict[str, Any]:
    return {"study": study, "seeds": studies.FRESH_SEEDS}


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
