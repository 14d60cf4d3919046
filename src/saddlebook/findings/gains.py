"""What SAM and the other losses gain: the claims of the main table, and its order.

Which comparisons are made, and the margins below which a gain counts as none, were
fixed before any reported run. Differences are in percent points.

References:
    Holm 1979 (correction over a family).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from saddlebook import studies
from saddlebook.experiment import Experiment
from saddlebook.findings import inference
from saddlebook.findings.claims import Claim, Family
from saddlebook.findings.contrasts import Accuracy, difference
from saddlebook.findings.inference import Sample
from saddlebook.findings.report import CELL, MARGINS, PAPER_RUNS, cells, paper

BASES = ("CE", "CE+DRW", "LDAM+DRW", "VS")


@cache
def settings() -> dict[str, Experiment]:
    """The methods of the main table and the control, by name, seed 0."""
    runs = studies.table1(seeds=(0,)) + studies.control(seeds=(0,))
    return {exp.method: exp for exp in runs}


def _compared(base: str, other: str, group: str, **bounds: Any) -> Claim:
    """That ``other`` is above ``base``, or what ``bounds`` say."""
    known, name = settings(), f"{other} − {base}"
    bounds = bounds or {"low": 0.0, "two_sided": True}
    part = difference(name, group, [known[other]], [known[base]], **bounds)
    words = "differs from" if part.unlike else "is above"
    return Claim(
        f"{other} − {base}, {group}",
        f"{other} {words} {base}, {group} accuracy",
        ((part,),),
        _printed(base, other, group),
    )


def _printed(base: str, other: str, group: str) -> float:
    """The paper's difference; NaN where it lacks one of the two."""
    means = paper("table1", "cifar10").set_index(CELL)["mean"].to_dict()
    pair = (means.get((name, group), math.nan) for name in (other, base))
    return round(-np.subtract(*reversed([*pair])), 6)


def main_table() -> Family:
    """SAM against its base, eight claims, and the control that the paper lacks, four.

    The paper's table shows no gain of the tail where nothing is re-weighted (CE): that
    claim is hypothesis (ii), that a gain of the margin or more is rejected. The control
    asks whether SGD with a larger weight decay differs from SAM as published, and
    whether SAM still adds to it.
    """
    tuned, tuned_sam = (exp.method for exp in studies.control(seeds=(0,)))
    gains = [
        _compared(base, f"{base}+SAM", group) for base in BASES for group in MARGINS
    ]
    none = _compared("CE", "CE+SAM", "tail", high=MARGINS["tail"])
    words = "Without re-weighting SAM does not help the tail"
    gains[1] = none._replace(name="ii", statement=words, alone=True)
    control = [
        _compared(base, other, group, unlike=margin)
        for base, other in (("CE+DRW+SAM", tuned), (tuned, tuned_sam))
        for group, margin in MARGINS.items()
    ]
    return Family("main table", (*gains, *control))


def baselines() -> Family:
    """The baselines against plain cross-entropy, all with SGD. Six claims."""
    found = [_compared("CE", other, group) for other in BASES[1:] for group in MARGINS]
    return Family("baselines", tuple(found))


def gap() -> Family:
    """What plain cross-entropy loses from the head to the tail. One claim."""
    group = "head − tail"
    part = Accuracy(
        name=group, group=group, terms=((1.0, (settings()["CE"],)),), low=0.0,
        two_sided=True,
    )  # fmt: skip
    means = paper("table1", "cifar10").set_index(CELL)["mean"]
    printed = float(means["CE", "head"] - means["CE", "tail"])
    words = "Plain cross-entropy is worse on the tail than on the head"
    return Family("gap", (Claim("CE, head − tail", words, ((part,),), printed),))


def printed_effects(
    printed: pd.DataFrame, *, n: int = PAPER_RUNS, unknown_spread: float = 0.2
) -> pd.DataFrame:
    """What the paper's own table supports: SAM minus base, Welch, Holm over 16.

    Args:
        printed: ``report.paper("table1")``.
        n: Runs behind a printed mean, assumed.
        unknown_spread: Taken for the one misprinted spread (0.2 or 1.2).

    Returns:
        One row per dataset and comparison: ``dataset base other group difference p
        p_holm``.
    """
    table = printed.fillna({"spread": unknown_spread})
    columns = [table[name] for name in ("dataset", *CELL, "mean", "spread")]
    known = {
        (dataset, method, group): Sample(mean, spread, n)
        for dataset, method, group, mean, spread in zip(*columns, strict=True)
    }
    pairs = [
        (dataset, base, f"{base}+SAM", group)
        for dataset in table["dataset"].unique()
        for base in BASES
        for group in MARGINS
    ]
    tests = [
        inference.welch(known[dataset, other, group], known[dataset, base, group])
        for dataset, base, other, group in pairs
    ]
    p_values = [test.p_zero() for test in tests]
    return pd.DataFrame(pairs, columns=["dataset", "base", "other", "group"]).assign(
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
