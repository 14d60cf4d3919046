"""States every claim on accuracy as data: what is compared, the test, the margins.

First what claims compare (accuracies, distances to a curve), then the main table and
its order, then the hypotheses on radius, rivals and controls; ``claims`` judges them.
They stand in the docstrings of the studies too, and were written before any *reported*
run. Accuracies are test accuracies after the last epoch, in percent, differences in
points. Margins: 3 points for the tail and 1.5 overall, as everywhere in the book, and
1.5 points for the tail in (v), where no change is expected.

References:
    Holm 1979 (correction over a family).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from statistics import fmean
from typing import Any

import numpy as np

from saddlebook import studies
from saddlebook.experiment import Experiment
from saddlebook.findings.claims import (
    Claim,
    Contrast,
    Family,
    Runs,
    Sides,
    by_seed,
    signed,
)  # fmt: skip
from saddlebook.findings.report import BASES, CELL, MARGINS, paper
from saddlebook.record import Record
from saddlebook.scales import at_scale

Arm = Sequence[Experiment]  # a setting, or candidates of which tuning picks one


@dataclass(frozen=True, kw_only=True)
class AccuracyContrast(Contrast):
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
    name: str, group: str, other: Arm, base: Arm, **bounds: Any
) -> AccuracyContrast:
    """``other`` minus ``base``; ``bounds`` as in ``Contrast``."""
    terms = ((1.0, tuple(other)), (-1.0, tuple(base)))
    return AccuracyContrast(name=name, group=group, terms=terms, **bounds)


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
    """One per setting that is not SGD with DRW, to the line of those; no bounds.

    Args:
        runs: Settings of ``studies.one_curve`` and further knobs, of one seed.
        seeds: Whose runs are looked at.
    """
    plain = ("sgd", "drw")
    line = tuple(exp for exp in runs if (exp.optimizer, exp.reweight) == plain)
    return [
        Distance(name=exp.method, setting=exp, line=line, seeds=tuple(seeds))
        for exp in runs
        if exp not in line
    ]


_SPOKEN = {
    "CE": "plain cross-entropy (CE)", "CE+DRW": "re-weighted cross-entropy (CE+DRW)",
    "LDAM+DRW": "re-weighted margins (LDAM+DRW)", "VS": "scaled logits (VS)",
}  # fmt: skip


def spoken(method: str) -> str:
    """A method's name as English; what it is with, after it."""
    loss, decay = (*method.split(" wd="), "")[:2]
    base = loss.removesuffix("+SAM")
    more = ["SAM"] * (base != loss) + [f"weight decay {decay}"] * bool(decay)
    words = _SPOKEN.get(base, base)
    return f"{words} with {' and '.join(more)}" if more else words


@cache
def settings(dataset: str = "cifar10") -> dict[str, Experiment]:
    """The methods of the main table and the control, by name, seed 0."""
    runs = studies.table1(dataset, seeds=(0,)) + studies.control((0,), dataset)
    return {exp.method: exp for exp in runs}


def of_main_table(experiment: Experiment) -> bool:
    """Whether it trains a network of the main table or its control, of any seed."""
    run = replace(studies.in_study(experiment).training, seed=0)
    return run in _trained(run.scale)


@cache
def _trained(scale: str) -> frozenset[Experiment]:
    return frozenset(at_scale(exp, scale).training for exp in settings().values())


def _compared(
    base: str, other: str, group: str, dataset: str = "cifar10", **bounds: Any
) -> Claim:
    """That ``other`` is above ``base``, or what ``bounds`` say."""
    known, name = settings(dataset), f"{other} − {base}"
    bounds = bounds or {"low": 0.0, "two_sided": True}
    part = difference(name, group, [known[other]], [known[base]], **bounds)
    if other == f"{base}+SAM":
        words = f"SAM raises the {group} accuracy of {spoken(base)}"
    elif part.unlike:
        words = f"{spoken(other)} and {spoken(base)} differ in {group} accuracy"
    else:
        words = f"{spoken(other)} has a higher {group} accuracy than {spoken(base)}"
    where = ("CIFAR-100: ", " on CIFAR-100-LT") if dataset == "cifar100" else ("", "")
    return Claim(
        f"{where[0]}{other} − {base}, {group}",
        words[0].upper() + words[1:] + where[1],
        ((part,),),
        printed_gain(base, other, group, dataset),
    )


def printed_gain(base: str, other: str, group: str, dataset: str = "cifar10") -> float:
    """The paper's ``other`` minus ``base``, points; NaN where it lacks one of them."""
    means = paper("table1", dataset).set_index(CELL)["mean"].to_dict()
    pair = (means.get((name, group), math.nan) for name in (other, base))
    return round(-np.subtract(*reversed([*pair])), 6)


def within_seeds(
    others: Sequence[str], runs: Runs, base: str = "CE+DRW", scale: str = "full"
) -> str:
    """Changes of the tail by several methods over the seeds that have all, in words."""
    known = settings()
    pairs = [difference("", "tail", [known[one]], [known[base]]) for one in others]
    parts = [pair.sides(runs, scale) for pair in pairs]
    seeds = set.intersection(*(set(values) for part in parts for _, values in part))
    if not seeds:
        return "no seed has all of them"
    same = [[(f, {s: v[s] for s in seeds}) for f, v in part] for part in parts]
    told = " and ".join(signed(fmean(by_seed(sides)), 1) for sides in same)
    which = ", ".join(map(str, sorted(seeds)))
    return f"on the seeds that have all of them ({which}) {told}"


def main_table() -> Family:
    """SAM against its base, eight claims, and the control that the paper lacks, four.

    The paper's table shows no gain of the tail where nothing is re-weighted (CE): that
    claim is hypothesis (ii), that a gain of the margin or more is rejected. The control
    asks whether SGD with a larger weight decay differs from SAM as published, and
    whether SAM still adds to it.
    """
    gains = [
        _compared(base, f"{base}+SAM", group) for base in BASES for group in MARGINS
    ]
    none = _compared("CE", "CE+SAM", "tail", high=MARGINS["tail"])
    words = "Without re-weighting SAM does not help the tail"
    gains[1] = none._replace(name="ii", statement=words, alone=True)
    return Family("main table", (*gains, *_control()))


def second_table() -> Family:
    """The main table's claims on CIFAR-100-LT, written before any of its runs ended.

    Eight gains of SAM, (ii) not among them: what the paper prints for plain CE there is
    a loss of .2 points on the tail. And the control, four. Twelve.
    """
    data = "cifar100"
    gains = [
        _compared(base, f"{base}+SAM", group, data)
        for base in BASES
        for group in MARGINS
    ]
    return Family("CIFAR-100-LT", (*gains, *_control(data)))


def _control(dataset: str = "cifar10") -> list[Claim]:
    """SGD with more weight decay against SAM, and SAM with it against SGD with it."""
    tuned, tuned_sam = [name for name in settings(dataset) if "wd=" in name]
    return [
        _compared(base, other, group, dataset, unlike=margin)
        for base, other in (("CE+DRW+SAM", tuned), (tuned, tuned_sam))
        for group, margin in MARGINS.items()
    ]


def baselines() -> Family:
    """The baselines against plain cross-entropy, all with SGD. Six claims."""
    found = [_compared("CE", other, group) for other in BASES[1:] for group in MARGINS]
    return Family("baselines", tuple(found))


def gap() -> Family:
    """What plain cross-entropy loses from the head to the tail. One claim."""
    group = "head − tail"
    part = AccuracyContrast(
        name=group, group=group, terms=((1.0, (settings()["CE"],)),), low=0.0,
        two_sided=True,
    )  # fmt: skip
    means = paper("table1", "cifar10").set_index(CELL)["mean"]
    printed = float(means["CE", "head"] - means["CE", "tail"])
    words = "Plain cross-entropy is worse on the tail than on the head"
    return Family("gap", (Claim("CE, head − tail", words, ((part,),), printed),))


def five() -> Family:
    """The five, of which (ii) is judged in the main table and counts here all the same.

    The correction is over five.
    """
    return Family("hypotheses", (_radius(), _tuned(), _timing(), _statistics()), more=1)


def _arms() -> tuple[Arm, Arm]:
    known = settings()
    return (known["CE+DRW"],), (known["CE+DRW+SAM"],)


def within_the_papers_radii() -> dict[str, AccuracyContrast]:
    """Looked at after (i) was seen: without the largest radius, and where it turns."""
    runs = sorted(studies.rho_ablation(seeds=(0,)), key=lambda exp: exp.rho)
    turn = difference("", "tail", runs[5:6], runs[4:5])
    return {"slope": slope(runs[:-1], ""), "all": slope(runs, ""), "turn": turn}


def slope(runs: list[Experiment], name: str) -> AccuracyContrast:
    """Least-squares slope of the tail over equally spaced settings, above 0."""
    middle = (len(runs) - 1) / 2
    squares = sum((i - middle) ** 2 for i in range(len(runs)))
    terms = tuple(((i - middle) / squares, (run,)) for i, run in enumerate(runs))
    return AccuracyContrast(name=name, group="tail", terms=terms, low=0, digits=2)


def _radius() -> Claim:
    _, sam = _arms()
    runs = sorted(studies.rho_ablation(seeds=(0,)), key=lambda exp: exp.rho)
    parts = (
        slope(runs, "tail, points per step to the next radius"),
        difference("the paper's ρ − none", "overall", sam, runs[:1], low=0),
        difference("the paper's ρ − largest", "overall", sam, runs[-1:], low=0),
    )
    words = (
        "With re-weighting, tail accuracy rises with ρ while overall peaks and falls"
    )
    return Claim("i", words, (parts,))


def _tuned() -> Claim:
    words = (
        "With weight decay tuned for SGD and SAM alike, SAM gains less than 1.5 points"
    )
    return _gain_when_tuned("iii", words, studies.weight_decay(seeds=(0,)))


def _gain_when_tuned(name: str, words: str, runs: list[Experiment]) -> Claim:
    gain = _tuned_gain(runs, "overall", high=MARGINS["overall"])
    return Claim(name, words, ((gain,),))


def tuned_tail() -> AccuracyContrast:
    """What (iii) does not ask: how the same two tuned settings differ on the tail."""
    return _tuned_gain(studies.weight_decay(seeds=(0,)), "tail")


def _tuned_gain(runs: list[Experiment], group: str, **bounds: Any) -> AccuracyContrast:
    sam, sgd = (
        tuple(exp for exp in runs if exp.optimizer == kind) for kind in ("sam", "sgd")
    )
    return difference("tuned SAM − tuned SGD", group, sam, sgd, **bounds)


def _timing() -> Claim:
    base, sam = _arms()
    before, after = studies.sam_timing(seeds=(0,))
    gain = difference("SAM throughout − SGD", "tail", sam, base, low=0)

    def beyond_half(run: Experiment, **bounds: float) -> AccuracyContrast:
        terms = ((1.0, (run,)), (-0.5, sam), (-0.5, base))
        name = f"SAM {run.sam_epochs} alone: its gain minus half of SAM's"
        return AccuracyContrast(name=name, group="tail", terms=terms, **bounds)  # type: ignore[arg-type]

    return Claim(
        "iv",
        "SAM before re-weighting gives most of its tail gain and SAM after gives "
        "little, or the reverse",
        (
            (gain, beyond_half(before, low=0), beyond_half(after, high=0)),
            (gain, beyond_half(before, high=0), beyond_half(after, low=0)),
        ),
    )


def _statistics() -> Claim:
    (_, sam), frozen = _arms(), studies.bn_statistics(seeds=(0,))
    change = difference(
        "statistics frozen − both passes", "tail", frozen, sam, low=-1.5, high=1.5
    )
    words = "Freezing batch-norm statistics in SAM's second pass changes the tail by "
    return Claim("v", f"{words}less than 1.5 points", ((change,),))


def wider() -> Family:
    """(iii) asked again over six weight decays, after it was seen."""
    runs = studies.weight_decay(seeds=(0,)) + studies.wider_decay(seeds=(0,))
    words = "With weight decay tuned over 2e-4 to 8e-3, SAM gains less than 1.5 points"
    return Family("wider weight decays", (_gain_when_tuned("vi", words, runs),))


def curve_family() -> Family:
    """Is the tail's accuracy a function of its training loss, whatever the knob?"""
    parts = distances(studies.one_curve(seeds=(0,)), studies.FRESH_SEEDS)
    margin = MARGINS["tail"]
    on = tuple(replace(part, low=-margin, high=margin) for part in parts[:3])
    before, after = replace(parts[3], high=0), replace(parts[4], low=0)
    words = "SAM {} re-weighting alone lies {} the curve"
    return Family(
        "one curve",
        (
            Claim("a1", "SAM, PGD and LPF-SGD lie on the curve of SGD's decays", (on,)),
            Claim("a2", words.format("after", "above"), ((after,),)),
            Claim("a3", words.format("before", "below"), ((before,),)),
        ),
    )


def knobs_family() -> Family:
    """Do two knobs that aim at rare classes lie on the same curve?"""
    runs = studies.one_curve(seeds=(0,)) + studies.two_more_knobs(seeds=(0,))
    margin = MARGINS["tail"]
    parts = distances(runs, studies.FRESH_SEEDS)[-2:]
    on = tuple(replace(part, low=-margin, high=margin) for part in parts)
    words = "SAM on the tail's loss alone and Group DRO lie on the same curve"
    return Family("two more knobs", (Claim("a4", words, (on,)),))


def adaptive_family() -> Family:
    """Does an optimizer that is not slowed by rare gradients raise the tail? Two."""
    bounds = {"high": MARGINS["tail"], "seeds": studies.FRESH_SEEDS}
    words = "Adam and SignSGD raise the tail of {} by less than 3 points over SGD"
    found, runs = [], studies.adaptive(seeds=(0,))
    for name, (sgd, *others) in (("d1", runs[3:]), ("d2", runs[:3])):
        parts = tuple(
            difference(f"{e.method.split()[0]} − SGD", "tail", (e,), (sgd,), **bounds)
            for e in others
        )
        found.append(Claim(name, words.format(spoken(sgd.method)), (parts,)))
    return Family("adaptive steps", tuple(found))
