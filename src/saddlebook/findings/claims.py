"""What records say about the paper's claims, and what its own numbers support.

A claim is a difference between two methods, paired by seed. Which comparisons are made,
and the margins below which a gain counts as none, were fixed before a result was seen.
Differences are in percent points.

References:
    Holm 1979 (correction over a family); LeBel et al. 2019 (verdicts on effects).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from saddlebook import studies
from saddlebook.errors import UsageError
from saddlebook.findings import inference
from saddlebook.findings.inference import Difference, Sample, Verdict
from saddlebook.findings.report import (
    CELL,
    MARGINS,
    PAPER_RUNS,
    by_method,
    cells,
    common_scale,
)

if TYPE_CHECKING:
    from saddlebook.record import Record

_ESTIMATE = ("difference", "low", "high")
BASES = ("CE", "CE+DRW", "LDAM+DRW", "VS")


class Comparison(NamedTuple):
    """A pre-registered comparison: ``other`` minus ``base``, paired by seed.

    Attributes:
        base: Method, as ``Experiment.method`` names it.
        other: Method it is compared with.
        group: ``overall`` or ``tail``.
        claim: ``gain``, ``no gain`` (less than the group's margin counts as none) or
            ``differ``.
    """

    base: str
    other: str
    group: str
    claim: str = "gain"


def sam_comparisons() -> tuple[Comparison, ...]:
    """SAM against its base, overall and tail: the paper's main claim, eight tests.

    The paper's table shows no gain of the tail where nothing is re-weighted (CE).
    """
    return tuple(
        Comparison(base, f"{base}+SAM", group, claim)
        for base in BASES
        for group in MARGINS
        for claim in ["no gain" if (base, group) == ("CE", "tail") else "gain"]
    )


def control_comparisons() -> tuple[Comparison, ...]:
    """What the paper lacks: weight decay tuned for SGD, beside SAM. Four tests.

    Does tuned SGD differ from SAM as published, and does SAM still gain when both have
    the tuned weight decay?
    """
    tuned, tuned_sam = (exp.method for exp in studies.control(seeds=(0,)))
    return tuple(
        Comparison(base, other, group, "differ")
        for base, other in (("CE+DRW+SAM", tuned), (tuned, tuned_sam))
        for group in MARGINS
    )


def loss_comparisons() -> tuple[Comparison, ...]:
    """The baselines against plain cross-entropy, all with SGD. Six tests."""
    return tuple(
        Comparison("CE", other, group) for other in BASES[1:] for group in MARGINS
    )


def judge(
    records: Iterable[Record],
    comparisons: Sequence[Comparison],
    printed: pd.DataFrame | None = None,
    choice: str = "last",
) -> pd.DataFrame:
    """Test the comparisons, paired by seed, Holm-adjusted over all of them.

    ``holds`` is ``yes`` or ``no`` only where a test settles it, else ``open``. A gain
    is settled by the adjusted p-value. ``no gain`` holds if a gain of the margin or
    more is rejected (one-sided, ``p_none``), and fails on a significant gain else.

    Args:
        records: Of both methods of each comparison, with common seeds.
        comparisons: The family, all of it: leaving one out changes the correction.
        printed: ``report.paper("table1", dataset=…)`` for its effects, or None.
        choice: ``last`` or ``best`` epoch.

    Returns:
        One row per comparison: its fields and ``n difference low high p p_holm p_none
        paper verdict holds values seeds``.

    Raises:
        UsageError: A comparison without runs, or with fewer than three common seeds.
    """
    ours = by_method(records)
    common_scale(ours, ours if printed is None else printed)
    ours = ours[ours["choice"] == choice].set_index(CELL)
    pairs = [_paired(ours, comparison) for comparison in comparisons]
    tests = [inference.paired(tuple(pair.values())) for pair in pairs]
    adjusted = inference.holm([test.p_zero() for test in tests])
    rows = []
    for comparison, pair, test, p in zip(
        comparisons, pairs, tests, adjusted, strict=True
    ):
        effect = _effect(printed, comparison)
        row = comparison._asdict() | {"n": len(pair), "difference": test.mean}
        row |= test.interval()._asdict() | {"p": test.p_zero(), "p_holm": p}
        row |= {"p_none": test.p_below(MARGINS[comparison.group]), "paper": effect}
        row |= {"verdict": inference.signal(test, p, effect)}
        row |= {"values": tuple(pair.values()), "seeds": tuple(pair)}
        rows.append(row | {"holds": _holds(row)})
    return pd.DataFrame(rows)


def _paired(ours: pd.DataFrame, comparison: Comparison) -> dict[int, float]:
    """Differences by seed, over the seeds that both methods have."""
    sides = []
    for method in (comparison.base, comparison.other):
        where = (method, comparison.group)
        if where not in ours.index:
            raise UsageError(f"no runs of {method} to compare")
        row: Any = ours.loc[[where]].iloc[0]
        sides.append(dict(zip(row["seeds"], row["values"], strict=True)))
    base, other = sides
    return {seed: other[seed] - base[seed] for seed in base if seed in other}


def _effect(printed: pd.DataFrame | None, comparison: Comparison) -> float:
    if printed is None:
        return math.nan
    means = printed.set_index(CELL)["mean"].to_dict()
    base, other = (
        means.get((method, comparison.group), math.nan)
        for method in (comparison.base, comparison.other)
    )
    return round(other - base, 6)


def _holds(row: dict[str, Any]) -> str:
    heard = row["p_holm"] < inference.ALPHA
    if row["claim"] == "differ":
        return "yes" if heard else "open"
    if row["claim"] == "no gain":
        if row["p_none"] < inference.ALPHA:
            return "yes"
        return "no" if heard and row["difference"] > 0 else "open"
    return ("yes" if row["difference"] > 0 else "no") if heard else "open"


def settled(judged: pd.DataFrame) -> Verdict:
    """How many claims hold, fail and stay open, as a verdict to show."""
    counts = [(judged["holds"] == answer).sum() for answer in ("yes", "no", "open")]
    hold, fail, stay = counts
    return Verdict("claims", f"{hold} hold, {fail} fail, {stay} open", tell(judged))


def sheet(judged: pd.DataFrame) -> pd.DataFrame:
    """The claims as readers want them: differences with 95 % intervals, verdicts."""
    ours = [
        f"{d:+.1f} ({low:+.1f} to {high:+.1f})"
        for d, low, high in zip(*(judged[c] for c in _ESTIMATE), strict=True)
    ]
    paper = [
        "" if math.isnan(effect) else f"{effect:+.1f}" for effect in judged["paper"]
    ]
    table = pd.DataFrame(
        {
            "comparison": names(judged),
            "claim": judged["claim"],
            "the paper": paper,
            "ours": ours,
            "adjusted p": [f"{p:.3g}" for p in judged["p_holm"]],
            "holds": judged["holds"],
            "effect": judged["verdict"],
        }
    )
    return table.set_index("comparison")


def names(judged: pd.DataFrame) -> list[str]:
    """What is compared, such as ``CE+SAM − CE, tail``."""
    columns = (judged[name] for name in ("other", "base", "group"))
    return [
        f"{other} − {base}, {group}"
        for other, base, group in zip(*columns, strict=True)
    ]


def tell(judged: pd.DataFrame) -> str:
    """The claims in words, grouped by what became of them, with their intervals."""
    parts = []
    for answer, word in (("yes", "Holds"), ("no", "Fails"), ("open", "Not settled")):
        rows = judged[judged["holds"] == answer]
        if len(rows):
            parts.append(f"{word}: " + "; ".join(rows.apply(_sentence, axis=1)) + ".")
    return " ".join(parts)


def _sentence(row: Any) -> str:
    interval = f"{row['difference']:+.1f}, {row['low']:+.1f} to {row['high']:+.1f}"
    claim = {"gain": "above", "no gain": "no gain over", "differ": "unlike"}
    relation = f"{row['other']} {claim[row['claim']]} {row['base']}"
    return f"{relation}, {row['group']} ({interval})"


def group_gap(
    ours: pd.DataFrame, method: str, high: str = "head", low: str = "tail"
) -> Difference:
    """How far a method's accuracy falls from one group to another, paired by run.

    Args:
        ours: From ``report.by_method``; the last epoch counts.
        method: Whose runs.
        high: Group that is subtracted from.
        low: Group that is subtracted.
    """
    rows = ours[(ours["method"] == method) & (ours["choice"] == "last")]
    values = rows.set_index("group")["values"]
    return inference.paired(
        [a - b for a, b in zip(values[high], values[low], strict=True)]
    )


def printed_effects(
    printed: pd.DataFrame, *, n: int = PAPER_RUNS, unknown_spread: float = 0.2
) -> pd.DataFrame:
    """What the paper's own table supports: SAM minus base, Welch, Holm over 16.

    Args:
        printed: ``report.paper("table1")``.
        n: Runs behind a printed mean, assumed.
        unknown_spread: Taken for the one misprinted spread (0.2 or 1.2).

    Returns:
        One row per dataset and comparison: its fields and ``difference p p_holm``.
    """
    table = printed.fillna({"spread": unknown_spread})
    columns = [table[name] for name in ("dataset", *CELL, "mean", "spread")]
    known = {
        (dataset, method, group): Sample(mean, spread, n)
        for dataset, method, group, mean, spread in zip(*columns, strict=True)
    }
    pairs = [(d, *c) for d in table["dataset"].unique() for c in sam_comparisons()]
    tests = [
        inference.welch(known[dataset, other, group], known[dataset, base, group])
        for dataset, base, other, group, _ in pairs
    ]
    p_values = [test.p_zero() for test in tests]
    return pd.DataFrame(pairs, columns=["dataset", *Comparison._fields]).assign(
        difference=[test.mean for test in tests],
        p=p_values,
        p_holm=inference.holm(p_values),
    )


class Order(NamedTuple):
    """Agreement of two orders: Kendall's τ, its one-sided p, pairs of methods."""

    tau: float
    p: float
    agreeing: int
    pairs: int


def order(ours: pd.DataFrame, printed: pd.DataFrame, group: str = "tail") -> Order:
    """Do the methods stand in the paper's order? One test against random orders.

    Args:
        ours: From ``by_method``; means of the last epoch are compared.
        printed: From ``report.paper``.
        group: ``overall`` or ``tail``.
    """
    from scipy.stats import kendalltau

    table = cells(ours, printed)
    table = table[(table["group"] == group) & table["mean"].notna()]
    left, right = table["mean"].to_numpy(), table["paper"].to_numpy()
    found = kendalltau(left, right, alternative="greater")
    products = np.subtract.outer(left, left) * np.subtract.outer(right, right)
    above = products[np.triu_indices(len(table), 1)]
    return Order(
        float(found.statistic), float(found.pvalue), int((above > 0).sum()), len(above)
    )
