"""Judges claims: the one place and the one rule, and how numbers are written.

The words of a verdict, and the statistics, are in ``verdicts.py``.

A claim has one identifier and belongs to one family. It is made of contrasts, each a
number of every seed, and the bounds that the number must keep:

- A contrast keeps a bound if a t-test over the seeds rejects the other side. What
  compares accuracies of two settings is tested paired by seed *and* unpaired (Welch),
  and the larger p-value counts: pairing by seed may bring little here, and once
  misleads. Curvature is tested paired by seed alone.
- A claim is supported if all contrasts of one of its alternatives keep their bounds:
  the largest p of an alternative counts, the smallest of k alternatives k times. It is
  contradicted if, in every alternative, one of m contrasts breaks a bound: the smallest
  p counts m times. Both are Holm-adjusted over the whole family, whether run or not.
- Otherwise it is undecided, and says why. All registered seeds must be there.

The rule that was registered before the runs tested paired by seed only; what it says
stands beside, in the column ``registered``.

References:
    Berger 1982 (all parts must be significant: no correction inside an alternative);
    Welch 1947; Holm 1979.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from saddlebook import studies
from saddlebook.experiment import SCALES, Experiment
from saddlebook.findings import tables, verdicts
from saddlebook.findings.verdicts import (
    ALPHA,
    CONTRADICTED,
    SUPPORTED,
    TOO_FEW,
    TOO_WIDE,
    UNDECIDED,
    Difference,
    Verdict,
)
from saddlebook.record import Record
from saddlebook.scales import at_scale

_PLACES = {
    "full": "the paper's own setting", "lite": "laptop scale",
    "lab": "the scale of the live panel", "quick": "smoke scale",
}  # fmt: skip
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_POWER = re.compile(r"(?<![\w.])([-+−]?\d+(?:\.\d+)?)e([-+]?\d+)(?![\w-])")
_ZERO = re.compile(r"(?<![\w.])[-−+](0(?:\.0+)?)(?![\w.])")
_HYPHEN = re.compile(r"(?<![\w.)\]-])-(?=\.?\d)")
_ABS = re.compile(r"\babs\((λ[^()]*)\)")  # a bar would end a cell of Markdown


def typeset(text: str) -> str:
    """Text with true minus signs and powers of ten, bars, and no negative zero."""
    text = _ABS.sub(r"|\1|", _POWER.sub(_power, text))
    return _HYPHEN.sub("−", _ZERO.sub(r"\1", text))


def _power(found: re.Match[str]) -> str:
    front, power = found[1], int(found[2])
    if -5 < power < 5:
        digits = len(front.partition(".")[2])
        plain = (
            f"{float(front.replace('−', '-')) * 10.0**power:.{max(0, digits - power)}f}"
        )
        return f"+{plain}" if front.startswith("+") else plain
    return f"{front}·10{str(power).translate(_RAISED)}"


Sides = Sequence[tuple[float, Mapping[int, float]]]  # factor, values by seed
Study = Callable[..., list[Experiment]]
P = tuple[float, float]  # of keeping all bounds, and of breaking one


class Runs(dict[Experiment, Record]):
    """Records by the studies' experiment, with and without what was measured in them.

    Of one training measured twice, the run without spectra counts for accuracy. A run
    on own images stands where the study's own would: give runs on one dataset.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        super().__init__()
        for record in sorted(
            records, key=lambda r: (not r.experiment.spectra_at, r.key)
        ):
            experiment = studies.in_study(record.experiment)
            self[experiment.training] = self[experiment] = record
        self._spectra: dict[Study, pd.DataFrame] = {}

    def spectra(self, study: Study = studies.dynamics) -> pd.DataFrame:
        """Of one study: others measured the same cells of the same networks, too."""
        if study not in self._spectra:
            every = [at_scale(e, scale) for e in study() for scale in SCALES]
            found = [self[exp] for exp in every if exp in self]
            self._spectra[study] = tables.spectra_table(found)
        return self._spectra[study]


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A number of every seed, and the bounds it should keep.

    Attributes:
        name: What it is, in words.
        low: It should be above this.
        high: And below this.
        unlike: A margin: it should differ from zero, and is refuted within ±margin.
        two_sided: The p-value of a bound counts twice.
        unpaired: Whether Welch's test, too, must agree.
        digits: After the point, where it is shown.
        group: Of accuracies: ``overall``, ``head``, ``mid`` or ``tail``, or two with
            `` − `` between.
        seeds: That are registered.
    """

    name: str
    low: float = -math.inf
    high: float = math.inf
    unlike: float = 0.0
    two_sided: bool = False
    unpaired: bool = True
    digits: int = 1
    group: str = ""
    seeds: tuple[int, ...] = studies.SEEDS

    @property
    def bound(self) -> float:
        """The one number that it is tested against; NaN where there are two or none."""
        if self.unlike:
            return 0.0
        found = [*filter(math.isfinite, (self.low, self.high))]
        return found[0] if len(found) == 1 else math.nan

    @property
    def sign(self) -> bool:
        """Whether it is shown with its sign; a size that is never negative is not."""
        return True

    def experiments(self) -> list[Experiment]:
        """The runs it needs, at full scale."""
        raise NotImplementedError

    def sides(self, runs: Runs, scale: str) -> Sides:
        """Its terms: a factor, and a value of every seed that is there."""
        raise NotImplementedError

    def note(self, runs: Runs, scale: str) -> str:
        """What else to say of its runs."""
        return ""

    def registered(self, runs: Runs, scale: str) -> P:
        """What was registered before the runs: the test paired by seed alone."""
        return self.p_values(verdicts.paired(by_seed(self.sides(runs, scale))))

    def tests(self, sides: Sides) -> list[Difference]:
        """Paired by seed, and unpaired where it compares settings."""
        found = [verdicts.paired(by_seed(sides))]
        if self.unpaired and len(sides) > 1:
            terms = [(f, verdicts.sample([*part.values()])) for f, part in sides]
            found.append(verdicts.combined(terms))
        return found

    def p_values(self, found: Difference) -> P:
        """Of keeping all bounds, and of breaking one of them."""
        if self.unlike:
            return found.p_zero(), found.p_equivalent(self.unlike)
        keeps, breaks = [], []
        if self.low > -math.inf:
            keeps.append(found.p_above(self.low))
            breaks.append(found.p_below(self.low))
        if self.high < math.inf:
            keeps.append(found.p_below(self.high))
            breaks.append(found.p_above(self.high))
        count = 2 if self.two_sided else 1
        return (
            min(1.0, count * max(keeps)),
            min(1.0, count * len(breaks) * min(breaks)),
        )


class Claim(NamedTuple):
    """A statement and its alternatives: the contrasts of one of them must all hold.

    Attributes:
        name: Identifier, one in all families.
        statement: In words.
        alternatives: Contrasts.
        paper: The paper's value of the first contrast; NaN where it has none.
        alone: Registered outside the correction.
    """

    name: str
    statement: str
    alternatives: tuple[tuple[Contrast, ...], ...]
    paper: float = math.nan
    alone: bool = False

    @property
    def contrasts(self) -> dict[str, list[Contrast]]:
        """By name; those of one name differ in their bounds only."""
        found: dict[str, list[Contrast]] = {}
        for parts in self.alternatives:
            for contrast in parts:
                found.setdefault(contrast.name, []).append(contrast)
        return found

    def experiments(self, scale: str) -> list[Experiment]:
        """All runs it needs, those of tuning included."""
        parts = [same[0].experiments() for same in self.contrasts.values()]
        return list(dict.fromkeys(at_scale(e, scale) for some in parts for e in some))


class Family(NamedTuple):
    """Claims that are corrected together, and how many more are judged elsewhere."""

    name: str
    claims: tuple[Claim, ...]
    more: int = 0

    def experiments(self, scale: str) -> list[Experiment]:
        """All runs that its claims need."""
        found = (e for claim in self.claims for e in claim.experiments(scale))
        return list(dict.fromkeys(found))


def by_seed(sides: Sides) -> list[float]:
    """The contrast's value of every seed that all its terms have."""
    seeds = [s for s in sides[0][1] if all(s in part for _, part in sides)]
    return [math.fsum(factor * part[s] for factor, part in sides) for s in seeds]


def judge(
    family: Family, records: Iterable[Record], scale: str = "lite"
) -> pd.DataFrame:
    """A verdict on each claim of a family.

    Args:
        family: All of it: leaving a claim out changes the correction.
        records: Of any studies and scales, more than needed or fewer.
        scale: Where a claim is judged if its runs at ``full`` scale are not complete.

    Returns:
        One row per claim: ``claim statement family scale n missing word reason
        registered p p_against detectable``; of its first contrast ``contrast group
        difference low high values paper``; ``here`` has all contrasts in words, and
        ``note`` what tuning chose. p-values are Holm-adjusted, NaN where not tested.
        ``detectable`` is what this many runs would show with a power of 80 %, corrected
        for the family: how far from ``bound`` the number must be.
    """
    runs = Runs(records)
    rows = [_row(claim, runs, scale) for claim in family.claims]
    count = len(rows) + family.more
    raw = [min(row["p"], row["p_against"]) for row in rows]
    for name in ("p", "p_against"):
        _adjust(rows, name, count, [False] * len(rows))
        _adjust(rows, f"registered_{name}", count, [c.alone for c in family.claims])
    for row, p in zip(rows, raw, strict=True):
        row["word"] = _word(row["p"], row["p_against"])
        old = [row.pop(f"registered_{name}") for name in ("p", "p_against")]
        row["registered"] = _word(*old)
        row["reason"] = _reason(row, p, count)
        row["detectable"] = row["detectable"](ALPHA / count)
        row["family"] = family.name
    return pd.DataFrame(rows)


def _adjust(rows: Any, name: str, count: int, alone: Sequence[bool]) -> None:
    """Holm over all ``count`` claims; what was not run counts all the same."""
    known = [
        r for r, own in zip(rows, alone, strict=True) if r[name] == r[name] and not own
    ]
    values = [row[name] for row in known] + [1.0] * (count - len(known))
    for row, p in zip(known, verdicts.holm(values), strict=False):
        row[name] = p


def _row(claim: Claim, runs: Runs, scale: str) -> dict[str, Any]:
    lacks = {
        known: [exp for exp in claim.experiments(known) if exp not in runs]
        for known in ("full", scale)
    }
    scale = scale if lacks["full"] else "full"
    parts = {name: same[0] for name, same in claim.contrasts.items()}
    sides = {n: same[0].sides(runs, scale) for n, same in claim.contrasts.items()}
    values = {name: by_seed(side) for name, side in sides.items()}
    name, first = next(iter(values.items()))
    row: dict[str, Any] = {
        "claim": claim.name,
        "statement": claim.statement,
        "scale": scale,
    }
    row |= {"n": len(first), "missing": len(lacks[scale]), "contrast": name}
    row["bound"] = parts[name].bound
    row |= {"difference": math.fsum(first) / len(first) if first else math.nan}
    row |= verdicts.t_interval(first)._asdict()
    row |= {"values": tuple(first), "paper": claim.paper, "group": parts[name].group}
    each = [
        f"{f'{name} ' * (len(values) > 1)}"
        f"{told(some, parts[name].digits, parts[name].sign)}"
        for name, some in values.items()
    ]
    row["here"] = "; ".join(each)
    notes = (part.note(runs, scale) for part in parts.values())
    row["note"] = "; ".join(filter(None, notes))
    row["few"] = any(len(v) < len(parts[name].seeds) for name, v in values.items())
    if lacks[scale] or row["few"]:
        names = ("p", "p_against", "registered_p", "registered_p_against")
        row |= dict.fromkeys(names, math.nan)
        return row | {"disagree": False, "detectable": lambda alpha: math.nan}
    return row | _tested(claim, runs, scale, sides)


def _tested(
    claim: Claim, runs: Runs, scale: str, sides: Mapping[str, Sides]
) -> dict[str, Any]:
    tests = {n: same[0].tests(sides[n]) for n, same in claim.contrasts.items()}

    def larger(contrast: Contrast) -> P:
        found = [contrast.p_values(test) for test in tests[contrast.name]]
        return max(p for p, _ in found), max(p for _, p in found)

    keeps, breaks = _whole(claim, larger)
    paired = _whole(claim, lambda c: c.p_values(tests[c.name][0]))
    old, old_against = _whole(claim, lambda c: c.registered(runs, scale))
    first = next(iter(claim.contrasts.values()))[0]

    def detectable(alpha: float) -> float:
        if len(tests) > 1 or math.isnan(first.bound):
            return math.nan
        alpha /= 2 if first.two_sided or first.unlike else 1
        return max(test.detectable(alpha) for test in tests[first.name])

    disagree = (min(paired) < ALPHA) != (min(keeps, breaks) < ALPHA)
    return {
        "p": keeps, "p_against": breaks, "registered_p": old,
        "registered_p_against": old_against, "disagree": disagree,
        "detectable": detectable,
    }  # fmt: skip


def _whole(claim: Claim, of: Any) -> P:
    """p-values of the claim from those of its contrasts."""
    parts = [[of(contrast) for contrast in some] for some in claim.alternatives]
    keeps = len(parts) * min(max(p for p, _ in some) for some in parts)
    breaks = max(len(some) * min(p for _, p in some) for some in parts)
    return min(1.0, keeps), min(1.0, breaks)


def _word(p: float, p_against: float) -> str:
    if p < ALPHA:
        return SUPPORTED
    return CONTRADICTED if p_against < ALPHA else UNDECIDED


def _reason(row: Mapping[str, Any], raw: float, count: int) -> str:
    if row["word"] != UNDECIDED:
        return ""
    if row["missing"]:
        return f"{TOO_FEW}: {row['missing']} are missing"
    if row["few"]:
        return f"{TOO_FEW}: {row['n']} seeds measured"
    if row["disagree"]:
        return "paired by seed and unpaired tests disagree"
    return f"not after the correction for {count} claims" if raw < ALPHA else TOO_WIDE


def told(values: Sequence[float], digits: int = 1, sign: bool = True) -> str:
    """Mean over seeds with its 95 % t-interval, in words."""
    if not values:
        return "–"
    ends = (math.fsum(values) / len(values), *verdicts.t_interval(values))
    mean, low, high = (signed(x, digits, sign) for x in ends)
    return mean if math.isnan(ends[1]) else f"{mean} ({low} to {high})"


def measured(contrast: Contrast, records: Iterable[Record], scale: str = "lite") -> str:
    """Any contrast in words, judged or not."""
    values = by_seed(contrast.sides(Runs(records), scale))
    return told(values, contrast.digits, contrast.sign)


def names(judged: pd.DataFrame) -> list[str]:
    """What is compared, such as ``CE+SAM − CE, tail``."""
    return [f"{row['contrast']}, {row['group']}" for _, row in judged.iterrows()]


def signed(x: float, digits: int, plus: bool = True) -> str:
    """A number with its sign as readers see it; none on what rounds to zero."""
    told = f"{x:{'+' * plus}.{digits}f}"
    return told.lstrip("+-") if float(told) == 0 else told.replace("-", "−")


def verdict(judged: pd.DataFrame, name: str) -> Verdict:
    """The verdict on one claim, to show and to quote."""
    row: Any = judged.set_index("claim").loc[name]
    return Verdict(row["word"], why(row))


def why(row: Any) -> str:
    """Why a claim is undecided, and how much these runs would have shown."""
    if math.isnan(row["detectable"]) or row["word"] != UNDECIDED:
        return str(row["reason"])
    size = f"{row['detectable']:.{1 if row['detectable'] >= 1 else 3}f}"
    size += f" from {row['bound']:g}" if row["bound"] else ""
    return f"{row['reason']}; {row['n']} seeds would show a difference of {size}"


def in_words(row: Any) -> str:
    """A claim with its verdict and numbers as one sentence."""
    seeds = f", {row['n']} seeds at {_PLACES[row['scale']]}" if row["n"] else ""
    because = f"; {why(row)}" if row["word"] == UNDECIDED else ""
    return f"“{row['statement']}” is {row['word']}: {row['here']}{seeds}{because}."


def ahead(row: Any) -> str:
    """Which of SAM and SGD the interval of their difference favours."""
    if row["low"] > 0:
        return "SAM is ahead"
    return "plain SGD is ahead" if row["high"] < 0 else "neither is ahead"


def counts(judged: pd.DataFrame) -> str:
    """How many claims there are of each word."""
    words = judged["word"].value_counts()
    order = (SUPPORTED, CONTRADICTED, UNDECIDED)
    return ", ".join(f"{words[word]} {word}" for word in order if word in words)


def listing(judged: pd.DataFrame) -> pd.DataFrame:
    """For readers, one row per claim: the paper's value, ours, the verdict and why."""
    paper = ["" if math.isnan(p) else signed(p, 1) for p in judged["paper"]]
    shown = {"the paper": paper} if any(paper) else {}
    shown |= {"here": list(judged["here"]), "verdict": list(judged["word"])}
    shown |= {"undecided because": [why(row) for _, row in judged.iterrows()]}
    return pd.DataFrame(shown, index=pd.Index(judged["statement"], name="claim"))


def details(judged: pd.DataFrame) -> pd.DataFrame:
    """What folds: identifiers, families, adjusted p-values, the registered verdict."""
    columns = ["family", "scale", "n", "p", "p_against", "registered", "note"]
    shown = judged.set_index("claim")[columns]
    for name in ("p", "p_against"):
        shown[name] = ["–" if math.isnan(p) else f"{p:.2g}" for p in shown[name]]
    names = {"p": "adjusted p", "p_against": "p against", "n": "seeds"}
    return shown.rename(columns=names | {"registered": "as registered"})


def sentence(judged: pd.DataFrame) -> str:
    """The claims in words, grouped by their verdict, with their numbers."""
    parts = []
    for word in (SUPPORTED, CONTRADICTED, UNDECIDED):
        rows = judged[judged["word"] == word]
        if len(rows):
            each = [f"{row['statement']}, {row['here']}" for _, row in rows.iterrows()]
            parts.append(f"{word.capitalize()}: {'; '.join(each)}.")
    return " ".join(parts)
