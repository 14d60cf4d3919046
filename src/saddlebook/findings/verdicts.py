"""Defines the words of verdicts, and the statistics of few runs they rest on.

Knows numbers only; no record, no table. Accuracies and differences are in percent
points. Fewer than three runs carry no interval and no verdict.

Intervals, differences, equivalence, correction, power. A claim is supported,
contradicted or undecided; a printed number is reproduced, different or undecided.
*Undecided* says why.

References:
    Schuirmann 1987 (two one-sided tests); Welch 1947; Satterthwaite 1946; Holm 1979.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy.special import nctdtrinc, stdtr, stdtrit

from saddlebook.errors import UsageError

ALPHA = 0.05
FEWEST = 3  # runs that carry an interval

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"
REPRODUCED, DIFFERENT = "reproduced", "different"
WORDS = (SUPPORTED, CONTRADICTED, UNDECIDED, REPRODUCED, DIFFERENT)
TOO_FEW = "too few runs"
TOO_WIDE = "interval too wide to tell"


class Sample(NamedTuple):
    """Mean, standard deviation (n − 1) and number of runs."""

    mean: float
    sd: float
    n: int


class Interval(NamedTuple):
    """A confidence interval; both ends are NaN where there are too few runs."""

    low: float
    high: float


class Verdict(NamedTuple):
    """One of ``WORDS``, why where it is *undecided*, and what else to know."""

    word: str
    reason: str = ""
    note: str = ""


class Difference(NamedTuple):
    """An estimated difference with its standard error and degrees of freedom."""

    mean: float
    error: float
    df: float

    def interval(self, level: float = 0.95) -> Interval:
        """Two-sided t-interval."""
        half = self.error * float(stdtrit(self.df, (1 + level) / 2))
        return Interval(self.mean - half, self.mean + half)

    def p_zero(self) -> float:
        """Two-sided p-value of no difference."""
        return min(1.0, 2 * self._p_tail(abs(self.mean)))

    def p_below(self, margin: float) -> float:
        """One-sided p-value of a difference of ``margin`` or more."""
        return self._p_tail(margin - self.mean)

    def p_above(self, margin: float) -> float:
        """One-sided p-value of a difference of ``margin`` or less."""
        return self._p_tail(self.mean - margin)

    def p_equivalent(self, margin: float) -> float:
        """The larger p-value of the two one-sided tests (TOST) against ±margin."""
        return max(
            self._p_tail(margin - self.mean),
            self._p_tail(margin + self.mean),
        )

    def detectable(self, alpha: float = ALPHA, power: float = 0.8) -> float:
        """Smallest true difference from a bound that a one-sided test finds so often.

        Of runs that spread as these do; ``alpha / 2`` makes it two-sided.
        """
        limit = float(stdtrit(self.df, 1 - alpha))
        return self.error * float(nctdtrinc(self.df, 1 - power, limit))

    def _p_tail(self, distance: float) -> float:
        """P(T ≥ distance/error); runs without any spread leave no doubt."""
        if self.error == 0:
            return 0.5 if distance == 0 else float(distance < 0)
        return float(stdtr(self.df, -distance / self.error))


def sample(values: Sequence[float]) -> Sample:
    """Mean and standard deviation of the values; the latter is NaN for one value."""
    n = len(values)
    if n == 0 or not all(math.isfinite(value) for value in values):
        raise UsageError(f"a mean needs finite values, got {list(values)}")
    mean = math.fsum(values) / n
    squares = math.fsum((value - mean) ** 2 for value in values)
    return Sample(mean, math.sqrt(squares / (n - 1)) if n > 1 else math.nan, n)


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """t-interval of the mean; NaN for fewer than three values."""
    if len(values) < FEWEST:
        return Interval(math.nan, math.nan)
    found = sample(values)
    error = found.sd / math.sqrt(found.n)
    return Difference(found.mean, error, found.n - 1).interval(level)


def welch(ours: Sample, theirs: Sample) -> Difference:
    """Difference of two means, ours minus theirs, of unequal variances (Welch 1947)."""
    return combined([(1.0, ours), (-1.0, theirs)])


def combined(terms: Sequence[tuple[float, Sample]]) -> Difference:
    """Sum of factors times means of independent samples of unequal variances.

    References:
        Satterthwaite 1946: degrees of freedom by his approximation.
    """
    mean = math.fsum(factor * part.mean for factor, part in terms)
    parts = [(f**2 * part.sd**2 / part.n, part.n - 1) for f, part in terms]
    total = math.fsum(part for part, _ in parts)
    if total == 0:
        return Difference(mean, 0.0, sum(df for _, df in parts))
    df = total**2 / math.fsum(part**2 / df for part, df in parts)
    return Difference(mean, math.sqrt(total), df)


def paired(differences: Sequence[float]) -> Difference:
    """Mean of differences between runs of one seed.

    Raises:
        UsageError: Fewer than three.
    """
    if len(differences) < FEWEST:
        raise UsageError(
            f"{len(differences)} pairs of runs carry no test; {FEWEST} are the fewest"
        )
    found = sample(differences)
    return Difference(found.mean, found.sd / math.sqrt(found.n), found.n - 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the given order, at most 1 (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(order), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, (len(order) - rank) * p_values[i])
        adjusted[i] = min(1.0, largest)
    return adjusted


def equivalence(ours: Sample, theirs: Sample, margin: float) -> Verdict:
    """Verdict on one printed number: Welch's TOST against a margin fixed in advance.

    Reproduced: the 90 % interval of the difference lies inside ±margin. Different: the
    95 % interval lies wholly beyond it. Undecided otherwise, and always for fewer than
    three runs or a number printed without a usable spread.

    Args:
        ours: Of our runs.
        theirs: As printed; ``sd`` NaN where no spread is printed.
        margin: Percent points, positive.

    Raises:
        UsageError: A margin that is not positive or a mean that is not finite.
    """
    if not margin > 0 or not math.isfinite(ours.mean + theirs.mean):
        raise UsageError(f"no verdict from margin {margin}, {ours} and {theirs}")
    if ours.n < FEWEST:
        return Verdict(UNDECIDED, f"{TOO_FEW}: {ours.n} of at least {FEWEST}")
    if math.isnan(theirs.sd):
        return Verdict(UNDECIDED, "no usable spread is printed")
    difference = welch(ours, theirs)
    low, high = difference.interval()
    shifted = low > 0 or high < 0
    if difference.p_equivalent(margin) <= ALPHA:
        return Verdict(REPRODUCED, note="small but real shift" if shifted else "")
    if low > margin or high < -margin:
        return Verdict(DIFFERENT, note="higher" if low > 0 else "lower")
    return Verdict(UNDECIDED, "shifted, size unclear" if shifted else TOO_WIDE)


def in_runs(counts: Sequence[int]) -> str:
    """Numbers of runs in words, such as ``1 to 2 runs``."""
    low, high = (int(end(counts, default=0)) for end in (min, max))
    return f"{low} run{'s' * (low != 1)}" if low == high else f"{low} to {high} runs"
