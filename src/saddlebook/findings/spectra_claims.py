"""What spectra say about the claims: sign and ordering over at least five seeds.

Claims are data, fixed before any run they judge; a claim is that one number exceeds
another in the network of one seed. A seed counts as for or against only where the
difference is larger than the bounds of both values. All five seeds must agree: by
chance alone that happens once in 32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from saddlebook.findings import inference
from saddlebook.findings.inference import Verdict
from saddlebook.findings.spectra import FALL, FIRST, LAST, NONE, SWITCH, pick

ENOUGH = 5  # seeds, below which the verdict is N
_SGD, _SAM = "CE+DRW", "CE+DRW+SAM"
_TAIL, _HEAD = -2, 0  # class 8 of ten, the paper's example, and the largest


class Cell(NamedTuple):
    """Which number of a seed's networks."""

    method: str
    label: int
    stage: int = LAST
    mode: str = "clean"
    value: str = "nonconvexity"


class Claim(NamedTuple):
    """``more`` exceeds ``less``, or zero where there is none."""

    name: str
    more: Cell
    less: Cell | None = None


def saddle_claims() -> tuple[Claim, ...]:
    """The paper's reading of its figure, under both ways to measure."""
    tail = Cell(_SGD, _TAIL)
    return tuple(
        Claim(f"{words}, {mode.replace('_', ' ')}", more, less)
        for mode in ("as_published", "clean")
        for words, more, less in (
            (
                "SGD: ratio of the tail above that of the head",
                tail._replace(mode=mode),
                tail._replace(mode=mode, label=_HEAD),
            ),
            (
                "tail: ratio with SGD above that with SAM",
                tail._replace(mode=mode),
                tail._replace(mode=mode, method=_SAM),
            ),
        )
    )


def schedule_claims() -> tuple[Claim, ...]:
    """What re-weighting does, and what chapter 3 predicts of the schedule."""
    tail = Cell(_SGD, _TAIL)
    switch = tail._replace(stage=SWITCH)
    high = switch._replace(value="lambda_max")
    claims = [
        Claim(
            f"SGD, tail: re-weighting raises the ratio, {mode.replace('_', ' ')}",
            tail._replace(mode=mode),
            switch._replace(mode=mode),
        )
        for mode in ("as_published", "clean")
    ]
    pull = Cell(_SAM, _TAIL, value="pull")
    return (
        *claims,
        Claim(
            "SGD, tail: ratio early above the end", switch._replace(stage=FIRST), tail
        ),
        Claim(
            "chapter 3: before re-weighting, λmax with SGD above SAM, tail",
            high,
            high._replace(method=_SAM),
        ),
        Claim("chapter 3: SAM's last ‖g‖ below ρ|λmin|, tail, clean", pull),
        Claim(
            "chapter 3: the same, λmin as published",
            pull._replace(mode="as_published"),
        ),
    )


def cause_claims() -> tuple[Claim, ...]:
    """Which step of the released measurement raises the ratio of the tail."""
    clean = Cell(_SGD, _TAIL)
    redrawn = clean._replace(mode="redrawn")
    released = clean._replace(mode="as_published")
    cut = released._replace(label=_HEAD, mode="as_published_cut0")
    return (
        Claim("tail: as published above clean", released, clean),
        Claim("tail: redrawing alone raises the ratio", redrawn, clean),
        Claim("tail: β before adds to redrawing", released, redrawn),
        Claim(
            "head cut to tail size above the whole head, as published",
            cut,
            released._replace(label=_HEAD),
        ),
        Claim(
            "head cut to tail size above the whole head, clean",
            cut._replace(mode="clean_cut0"),
            clean._replace(label=_HEAD),
        ),
        Claim(
            "positive curvature along the vector reported as most negative",
            released._replace(value="rayleigh_clean"),
        ),
    )


def judge(table: pd.DataFrame, claims: Sequence[Claim]) -> pd.DataFrame:
    """Every claim over the seeds that have both numbers.

    Args:
        table: From ``curvature.spectra``.
        claims: To judge.

    Returns:
        One row per claim: ``claim n agree against mean low high p values code name``.
        ``code`` is ``holds``, ``fails``, ``open``, or ``N`` below five seeds; ``p``
        the one-sided sign test's, not adjusted.
    """
    return pd.DataFrame([_judged(table, claim) for claim in claims])


def _judged(table: pd.DataFrame, claim: Claim) -> dict[str, Any]:
    pairs = differences(table, claim)
    values = [value for value, _ in pairs.values()]
    agree = sum(value > bound for value, bound in pairs.values())
    against = sum(value < -bound for value, bound in pairs.values())
    n = len(pairs)
    verdict = _verdict(n, agree, against)
    p = binomtest(agree, n, alternative="greater").pvalue if n else math.nan
    mean = math.fsum(values) / n if n else math.nan
    row = {"claim": claim.name, "n": n, "agree": agree, "against": against}
    row |= {"mean": mean, **inference.t_interval(values)._asdict()}
    return row | {
        "p": p, "values": tuple(values), "code": verdict.code, "name": verdict.name,
    }  # fmt: skip


def differences(table: pd.DataFrame, claim: Claim) -> dict[int, tuple[float, float]]:
    """By seed: more minus less, and the sum of their bounds."""
    more = _numbers(table, claim.more)
    less = (
        _numbers(table, claim.less) if claim.less else dict.fromkeys(more, (0.0, 0.0))
    )
    return {
        seed: (value - less[seed][0], bound + less[seed][1])
        for seed, (value, bound) in more.items()
        if seed in less
    }


def _numbers(table: pd.DataFrame, cell: Cell) -> dict[int, tuple[float, float]]:
    wanted = cell._asdict()
    value = wanted.pop("value")
    part = pick(table, **wanted).dropna(subset=[value])
    bounds = _bounds(part, value)
    numbers, seeds = list(part[value]), list(part["seed"])
    return dict(zip(seeds, zip(numbers, bounds, strict=True), strict=True))


def _bounds(part: pd.DataFrame, value: str) -> Any:
    """What a procedure reports is exact as such; a measured value has its bound."""
    if value == "pull":
        return part["rho"] * part["lambda_min_bound"].where(~part["reported"], 0.0)
    if f"{value}_bound" not in part:
        return [0.0] * len(part)
    return part[f"{value}_bound"].where(~part["reported"], 0.0)


def _verdict(n: int, agree: int, against: int) -> Verdict:
    if n < ENOUGH:
        return Verdict("N", f"{n} of {ENOUGH} seeds")
    if agree == n:
        return Verdict("holds", "all seeds agree")
    return Verdict("fails" if against == n else "open", f"{agree} of {n} agree")


def sheet(judged: pd.DataFrame) -> pd.DataFrame:
    """For readers: difference with its interval, counts, verdict."""
    rows = []
    for _, row in judged.iterrows():
        told = "–" if math.isnan(row["mean"]) else f"{row['mean']:+.2g}"
        if not math.isnan(row["low"]):
            told += f" ({row['low']:+.2g} to {row['high']:+.2g})"
        p = "–" if math.isnan(row["p"]) else f"{row['p']:.2g}"
        rows.append(
            {"claim": row["claim"], "difference": told}
            | {"seeds": row["n"], "for": row["agree"], "against": row["against"]}
            | {"sign test p": p, "verdict": row["code"]}
        )
    return pd.DataFrame(rows).set_index("claim")


def settled(judged: pd.DataFrame) -> Verdict:
    """How many claims hold, fail, stay open, or lack seeds."""
    count = {code: int((judged["code"] == code).sum()) for code in _CODES}
    told = ", ".join(f"{n} {_CODES[code]}" for code, n in count.items() if n)
    alone = len({*judged["code"]}) == 1 and judged["code"].iloc[0] == "N"
    return Verdict("N" if alone else "claims", told, tell(judged))


_CODES = {"holds": "hold", "fails": "fail", "open": "open", "N": "with too few seeds"}


def tell(judged: pd.DataFrame) -> str:
    """Every claim that has runs in words: how many seeds are for it, how far."""
    run = judged[judged["n"] > 0]
    parts = [
        f"{row['claim']}: {row['agree']} of {row['n']} ({row['mean']:+.2g})"
        for _, row in run.iterrows()
    ]
    waiting = len(judged) - len(run)
    if waiting:
        parts.append(f"{waiting} of {len(judged)} claims: {NONE}")
    return "; ".join(parts) + ". (Seeds for it of seeds measured, mean difference.)"


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
