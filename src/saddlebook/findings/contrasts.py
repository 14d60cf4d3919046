"""Hypotheses as data, and the one rule that judges them.

A hypothesis is made of contrasts, each a linear combination of the accuracies of one
seed, and the bounds they must keep:

- A contrast keeps a bound if a one-sided t-test over the seeds rejects the other side.
- A hypothesis holds if all contrasts of one of its alternatives do: the largest p of
  an alternative counts, the smallest of k alternatives k times. It is refuted if, in
  every alternative, one of m contrasts breaks a bound: the smallest p counts m times.
- Both are Holm-adjusted over the whole family, whether run or not.
- All registered seeds must be there; before that the verdict is N, not run yet.

Accuracies are test accuracies after the last epoch, in percent; differences in points.

References:
    Berger 1982 (all parts must be significant: no correction inside an alternative);
    Holm 1979.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from saddlebook import studies
from saddlebook.experiment import SCALES, Experiment, at_scale
from saddlebook.findings import inference
from saddlebook.record import Record
from saddlebook.studies import SEEDS, TUNING_SEEDS

Arm = tuple[Experiment, ...]  # a setting, or candidates of which tuning picks one
Runs = Mapping[Experiment, Record]


@dataclass(frozen=True)
class Contrast:
    """A linear combination of accuracies, and the bounds it should keep.

    Attributes:
        name: What it is, in words.
        group: ``overall``, ``head``, ``mid`` or ``tail``.
        terms: Factors and settings, at full scale and seed 0.
        low: It should be above this, points.
        high: And below this.
    """

    name: str
    group: str
    terms: tuple[tuple[float, Arm], ...]
    low: float = -math.inf
    high: float = math.inf

    @property
    def bound(self) -> str:
        """The bounds in words."""
        parts = [f"above {self.low:g}"] if self.low > -math.inf else []
        parts += [f"below {self.high:g}"] if self.high < math.inf else []
        return " and ".join(parts)


@dataclass(frozen=True)
class Hypothesis:
    """A statement and its alternatives: the contrasts of one of them must all hold."""

    name: str
    statement: str
    alternatives: tuple[tuple[Contrast, ...], ...]

    @property
    def contrasts(self) -> dict[str, list[Contrast]]:
        """By name; those of one name differ in their bounds only."""
        found: dict[str, list[Contrast]] = {}
        for parts in self.alternatives:
            for contrast in parts:
                found.setdefault(contrast.name, []).append(contrast)
        return found

    @property
    def arms(self) -> list[Arm]:
        """All settings that are compared."""
        arms = [arm for same in self.contrasts.values() for _, arm in same[0].terms]
        return list(dict.fromkeys(arms))

    def experiments(self, scale: str) -> list[Experiment]:
        """All runs it needs, those of tuning included."""
        seeds: list[tuple[Arm, Sequence[int]]] = [(arm, SEEDS) for arm in self.arms]
        seeds += [(arm, TUNING_SEEDS) for arm in self.arms if len(arm) > 1]
        runs = [replace(e, seed=s) for arm, some in seeds for s in some for e in arm]
        return [at_scale(run, scale) for run in dict.fromkeys(runs)]


def judge(
    family: Sequence[Hypothesis], records: Iterable[Record], scale: str = "lite"
) -> pd.DataFrame:
    """A verdict on each hypothesis: yes, no, open, or N where runs are missing.

    Args:
        family: All that were registered: leaving one out changes the correction.
        records: Of any studies and scales, more than needed or fewer.
        scale: Named in the commands where there is nothing yet.

    Returns:
        One row per hypothesis: ``hypothesis statement scale missing p p_against
        verdict note``, the p-values Holm-adjusted, NaN where not tested. ``note`` says
        what tuning chose, or which commands make what is missing.
    """
    runs = {record.experiment.training: record for record in records}
    rows = [_row(hypothesis, runs, scale) for hypothesis in family]
    for name in ("p", "p_against"):
        # what was not run counts in the correction all the same
        adjusted = inference.holm(
            [1.0 if row["missing"] else row[name] for row in rows]
        )
        for row, p in zip(rows, adjusted, strict=True):
            row[name] = math.nan if row["missing"] else p
    return pd.DataFrame([row | {"verdict": _verdict(row)} for row in rows])


def _row(hypothesis: Hypothesis, runs: Runs, scale: str) -> dict[str, Any]:
    scale, missing = _coverage(hypothesis, runs, scale)
    row: dict[str, Any] = {
        "hypothesis": hypothesis.name,
        "statement": hypothesis.statement,
        "scale": scale,
        "missing": len(missing),
    }
    if missing:
        note = f"{len(missing)} runs missing: " + "; ".join(studies.commands(missing))
        return row | {"p": math.nan, "p_against": math.nan, "note": note}
    tests = [
        [_p_values(c, tuple(_values(c, runs, scale).values())) for c in parts]
        for parts in hypothesis.alternatives
    ]
    holds = min(max(keeps for keeps, _ in parts) for parts in tests)
    fails = max(len(parts) * min(breaks for _, breaks in parts) for parts in tests)
    p = min(1.0, len(tests) * holds)
    return row | {
        "p": p,
        "p_against": min(1.0, fails),
        "note": _choices(hypothesis, runs, scale),
    }


def _coverage(
    hypothesis: Hypothesis, runs: Runs, scale: str
) -> tuple[str, list[Experiment]]:
    """The most faithful scale that is complete, else the fullest; what it lacks."""
    present = {exp.scale for exp in runs} or {scale}
    lacks = {
        known: [exp for exp in hypothesis.experiments(known) if exp not in runs]
        for known in SCALES
        if known in present
    }
    best = min(lacks, key=lambda known: len(lacks[known]))
    return best, lacks[best]


def _verdict(row: Mapping[str, Any]) -> str:
    if row["missing"]:
        return "N"
    if row["p"] < inference.ALPHA:
        return "yes"
    return "no" if row["p_against"] < inference.ALPHA else "open"


def _p_values(contrast: Contrast, values: Sequence[float]) -> tuple[float, float]:
    """The p-values of keeping all bounds, and of breaking one of them."""
    up = inference.paired(values)
    down = inference.paired([-value for value in values])
    keeps = [down.p_below(-contrast.low)] if contrast.low > -math.inf else []
    keeps += [up.p_below(contrast.high)] if contrast.high < math.inf else []
    breaks = [up.p_below(contrast.low)] if contrast.low > -math.inf else []
    breaks += [down.p_below(-contrast.high)] if contrast.high < math.inf else []
    return max(keeps), min(1.0, len(breaks) * min(breaks))


def _values(contrast: Contrast, runs: Runs, scale: str) -> dict[int, float]:
    """The contrast of each registered seed whose runs are there."""
    terms = [(factor, _chosen(arm, runs, scale)) for factor, arm in contrast.terms]
    found = {}
    for seed in SEEDS:
        parts = [
            factor * getattr(runs[exp].accuracy, contrast.group)
            for factor, setting in terms
            if setting and (exp := at_scale(replace(setting, seed=seed), scale)) in runs
        ]
        if len(parts) == len(terms):
            found[seed] = math.fsum(parts)
    return found


def _chosen(arm: Arm, runs: Runs, scale: str) -> Experiment | None:
    """The arm's setting: the one there is, or the best overall on the tuning seeds."""
    if len(arm) == 1:
        return arm[0]
    scores = {}
    for setting in arm:
        tried = [at_scale(replace(setting, seed=seed), scale) for seed in TUNING_SEEDS]
        if any(exp not in runs for exp in tried):
            return None
        scores[setting] = math.fsum(runs[exp].accuracy.overall for exp in tried)
    return max(scores, key=lambda setting: scores[setting])


def _choices(hypothesis: Hypothesis, runs: Runs, scale: str) -> str:
    arms = [arm for arm in hypothesis.arms if len(arm) > 1]
    chosen = [exp for arm in arms if (exp := _chosen(arm, runs, scale))]
    parts = [f"{e.optimizer.upper()} weight decay {e.weight_decay:g}" for e in chosen]
    return "tuned: " + ", ".join(parts) if parts else ""


def estimates(
    family: Sequence[Hypothesis], records: Iterable[Record], scale: str = "lite"
) -> pd.DataFrame:
    """Every contrast as far as its runs are there, with 95 % t-intervals.

    Args:
        family: See ``judge``.
        records: See ``judge``.
        scale: See ``judge``.

    Returns:
        One row per contrast: ``hypothesis contrast group bound scale n mean low high
        values``; means and intervals NaN where too few runs are there.
    """
    runs = {record.experiment.training: record for record in records}
    rows = []
    for hypothesis in family:
        where, _ = _coverage(hypothesis, runs, scale)
        for name, same in hypothesis.contrasts.items():
            values = tuple(_values(same[0], runs, where).values())
            bounds = " or ".join(dict.fromkeys(contrast.bound for contrast in same))
            row = {"hypothesis": hypothesis.name, "contrast": name, "scale": where}
            row |= {"group": same[0].group, "bound": bounds}
            mean = math.fsum(values) / len(values) if values else math.nan
            rows.append(
                row
                | {"n": len(values), "mean": mean, "values": values}
                | inference.t_interval(values)._asdict()
            )
    return pd.DataFrame(rows)
