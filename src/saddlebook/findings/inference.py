"""Statistics of few runs: intervals, differences, equivalence, correction, verdicts.

Knows numbers only; no record, no table. Accuracies and differences are in percent
points. Fewer than three runs carry no interval and no verdict.

References:
    Schuirmann 1987 (two one-sided tests); Welch 1947; Holm 1979; LeBel et al. 2019
    (verdicts on replicated effects).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy.special import stdtr, stdtrit

from saddlebook.errors import UsageError

ALPHA = 0.05
FEWEST = 3  # runs that carry an interval

CODES = {
    "R": "reproduced",
    "r": "consistent, not established",
    "M": "shifted, size unclear",
    "H": "higher",
    "L": "lower",
    "X": "not comparable",
    "N": "fewer than three runs",
}


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
    """A code of ``CODES``, its name, and what else to know."""

    code: str
    name: str
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

    def p_equivalent(self, margin: float) -> float:
        """The larger p-value of the two one-sided tests (TOST) against ±margin."""
        return max(
            self._p_tail(margin - self.mean),
            self._p_tail(margin + self.mean),
        )

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
    """Difference of two means, ours minus theirs, of unequal variances.

    References:
        Welch 1947: degrees of freedom by his approximation.
    """
    a, b = ours.sd**2 / ours.n, theirs.sd**2 / theirs.n
    if a + b == 0:
        return Difference(ours.mean - theirs.mean, 0.0, ours.n + theirs.n - 2)
    df = (a + b) ** 2 / (a**2 / (ours.n - 1) + b**2 / (theirs.n - 1))
    return Difference(ours.mean - theirs.mean, math.sqrt(a + b), df)


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

    R: the 90 % interval of the difference lies inside ±margin. Else r: the 95 %
    interval holds 0; H or L: it lies wholly beyond the margin; M: otherwise. A number
    printed without a spread can only be r or X.

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
        return named("N")
    if math.isnan(theirs.sd):
        return _without_spread(ours, theirs.mean)
    difference = welch(ours, theirs)
    low, high = difference.interval()
    shifted = low > 0 or high < 0
    if difference.p_equivalent(margin) <= ALPHA:
        return named("R", "small but real shift" if shifted else "")
    if not shifted:
        return named("r")
    return named("H" if low > margin else "L" if high < -margin else "M")


def _without_spread(ours: Sample, printed: float) -> Verdict:
    low, high = Difference(
        ours.mean - printed, ours.sd / math.sqrt(ours.n), ours.n - 1
    ).interval()
    return named("r" if low <= 0 <= high else "X", "no usable spread is printed")


def named(code: str, note: str = "") -> Verdict:
    """The verdict of a code."""
    return Verdict(code, CODES[code], note)


def signal(found: Difference, p_adjusted: float, paper: float = math.nan) -> str:
    """Verdict on an effect, after LeBel et al.: is there a signal, and of what size.

    A signal is an adjusted p below 0.05. Its size, or that of its absence, is compared
    with the paper's effect by the unadjusted 95 % interval. Without a paper's effect
    the answer is ``signal +``, ``signal −`` or ``no signal``.
    """
    low, high = found.interval()
    heard = p_adjusted < ALPHA
    if math.isnan(paper):
        return ("signal +" if found.mean > 0 else "signal −") if heard else "no signal"
    inside = low <= paper <= high
    if not heard:
        return "no signal, " + ("inconclusive" if inside else "inconsistent")
    if found.mean * paper <= 0:
        return "signal, opposite"
    if inside:
        return "signal, consistent"
    return "signal, " + ("larger" if abs(found.mean) > abs(paper) else "smaller")
