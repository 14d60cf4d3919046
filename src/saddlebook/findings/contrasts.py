"""Numbers of every seed that claims compare: accuracies, and distances to a curve.

Accuracies are test accuracies after the last epoch, in percent; differences in points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from saddlebook import studies
from saddlebook.experiment import Experiment, at_scale
from saddlebook.findings.claims import Contrast, Runs, Sides
from saddlebook.record import Record

Arm = Sequence[Experiment]  # a setting, or candidates of which tuning picks one


@dataclass(frozen=True, kw_only=True)
class Accuracy(Contrast):
    """A linear combination of accuracies.

    Attributes:
        terms: Factors and settings, at full scale and seed 0.
    """

    terms: tuple[tuple[float, Arm], ...]

    def experiments(self) -> list[Experiment]:
        """The runs of every candidate, on the tuning seeds too where there are more."""
        found = []
        for _, arm in self.terms:
            seeds = self.seeds + (studies.TUNING_SEEDS if len(arm) > 1 else ())
            found += [replace(exp, seed=seed) for seed in seeds for exp in arm]
        return found

    def sides(self, runs: Runs, scale: str) -> Sides:
        """Accuracies of each term's setting by seed."""
        return [
            (
                factor,
                _values(chosen(arm, runs, scale), self.group, self.seeds, runs, scale),
            )
            for factor, arm in self.terms
        ]

    def note(self, runs: Runs, scale: str) -> str:
        """What tuning chose, and whether that is the edge of what was tried."""
        told = []
        for _, arm in self.terms:
            exp = chosen(arm, runs, scale) if len(arm) > 1 else None
            if exp:
                edge = exp.weight_decay == max(e.weight_decay for e in arm)
                told.append(
                    f"{exp.optimizer.upper()} weight decay {exp.weight_decay:g}"
                    + ", the largest tried" * edge
                )
        return "tuned: " + "; ".join(told) if told else ""


def difference(
    name: str, group: str, other: Arm, base: Arm, **bounds: float
) -> Accuracy:
    """``other`` minus ``base``; ``bounds`` as in ``Contrast``."""
    terms = ((1.0, tuple(other)), (-1.0, tuple(base)))
    return Accuracy(name=name, group=group, terms=terms, **bounds)  # type: ignore[arg-type]


def _values(
    setting: Experiment | None,
    group: str,
    seeds: Sequence[int],
    runs: Runs,
    scale: str,
) -> dict[int, float]:
    if setting is None:
        return {}
    wanted = {s: at_scale(replace(setting, seed=s), scale) for s in seeds}
    return {s: _accuracy(runs[e], group) for s, e in wanted.items() if e in runs}


def _accuracy(record: Record, group: str) -> float:
    high, _, low = group.partition(" − ")
    of = partial(getattr, record.accuracy)
    return float(of(high) - (of(low) if low else 0.0))


def chosen(arm: Arm, runs: Runs, scale: str) -> Experiment | None:
    """The arm's setting: the one there is, or the best overall on the tuning seeds."""
    if len(arm) == 1:
        return arm[0]
    scores = {}
    for setting in arm:
        seeds = studies.TUNING_SEEDS
        tried = [at_scale(replace(setting, seed=seed), scale) for seed in seeds]
        if any(exp not in runs for exp in tried):
            return None
        scores[setting] = math.fsum(runs[exp].accuracy.overall for exp in tried)
    return max(scores, key=lambda setting: scores[setting])


@dataclass(frozen=True, kw_only=True)
class Distance(Contrast):
    """Tail accuracy minus what the tail's training loss predicts, points.

    The prediction is a line in the logarithm of that loss, fitted to other runs of the
    same seed.

    Attributes:
        setting: Whose runs, at full scale and seed 0.
        line: Settings that the line is fitted to.
    """

    setting: Experiment
    line: tuple[Experiment, ...]

    def experiments(self) -> list[Experiment]:
        """Its own runs and those of the line."""
        settings = (self.setting, *self.line)
        return [replace(exp, seed=seed) for seed in self.seeds for exp in settings]

    def sides(self, runs: Runs, scale: str) -> Sides:
        """One term: the distance to the line of each seed."""
        found = {}
        for seed in self.seeds:
            every = [
                at_scale(replace(exp, seed=seed), scale)
                for exp in (self.setting, *self.line)
            ]
            if all(exp in runs for exp in every):
                points = [
                    (math.log(runs[e].tail_train_loss), runs[e].accuracy.tail)
                    for e in every
                ]
                x, y = zip(*points[1:], strict=True)
                predicted = np.polyval(np.polyfit(x, y, 1), points[0][0])
                found[seed] = float(points[0][1] - predicted)
        return [(1.0, found)]


def distances(runs: Sequence[Experiment], seeds: Sequence[int]) -> list[Distance]:
    """One per setting that is not SGD, to the line of those that are; no bounds.

    Args:
        runs: Settings of ``studies.one_curve``, of one seed.
        seeds: Whose runs are looked at.
    """
    line = tuple(exp for exp in runs if exp.optimizer == "sgd")
    return [
        Distance(name=exp.method, setting=exp, line=line, seeds=tuple(seeds))
        for exp in runs
        if exp not in line
    ]
