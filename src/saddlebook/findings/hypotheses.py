"""The hypotheses on radius, rivals and controls as claims: comparison, test, margins.

Data; ``claims`` judges them. They stand in the docstrings of the studies too, and were
written before any *reported* run of those studies. Margins: 3 points for the tail and
1.5 overall, as everywhere in the book, and 1.5 points for the tail in (v), where no
change is expected. Hypothesis (ii) is a claim of the main table and is judged there.
"""

from __future__ import annotations

from dataclasses import replace

from saddlebook import studies
from saddlebook.experiment import Experiment
from saddlebook.findings.claims import Claim, Family
from saddlebook.findings.contrasts import Accuracy, Arm, difference, distances
from saddlebook.findings.gains import settings
from saddlebook.findings.report import MARGINS


def five() -> Family:
    """The five, of which (ii) is judged in the main table and counts here all the same.

    The correction is over five.
    """
    return Family("hypotheses", (_radius(), _tuned(), _timing(), _statistics()), more=1)


def _arms() -> tuple[Arm, Arm]:
    known = settings()
    return (known["CE+DRW"],), (known["CE+DRW+SAM"],)


def within_the_papers_radii() -> dict[str, Accuracy]:
    """Looked at after (i) was seen: without the largest radius, and where it turns."""
    runs = sorted(studies.rho_ablation(seeds=(0,)), key=lambda exp: exp.rho)
    turn = difference("", "tail", runs[5:6], runs[4:5])
    return {"slope": slope(runs[:-1], ""), "all": slope(runs, ""), "turn": turn}


def slope(runs: list[Experiment], name: str) -> Accuracy:
    """Least-squares slope of the tail over equally spaced settings, above 0."""
    middle = (len(runs) - 1) / 2
    squares = sum((i - middle) ** 2 for i in range(len(runs)))
    terms = tuple(((i - middle) / squares, (run,)) for i, run in enumerate(runs))
    return Accuracy(name=name, group="tail", terms=terms, low=0, digits=2)


def _radius() -> Claim:
    _, sam = _arms()
    runs = sorted(studies.rho_ablation(seeds=(0,)), key=lambda exp: exp.rho)
    none, largest = runs[:1], runs[-1:]
    parts = (
        slope(runs, "tail, points per step to the next radius"),
        difference("the paper's ρ − none", "overall", sam, none, low=0),
        difference("the paper's ρ − largest", "overall", sam, largest, low=0),
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
    sam, sgd = (
        tuple(exp for exp in runs if exp.optimizer == kind) for kind in ("sam", "sgd")
    )
    gain = difference(
        "tuned SAM − tuned SGD", "overall", sam, sgd, high=MARGINS["overall"]
    )
    return Claim(name, words, ((gain,),))


def _timing() -> Claim:
    base, sam = _arms()
    before, after = studies.sam_timing(seeds=(0,))
    gain = difference("SAM throughout − SGD", "tail", sam, base, low=0)

    def beyond_half(run: Experiment, **bounds: float) -> Accuracy:
        terms = ((1.0, (run,)), (-0.5, sam), (-0.5, base))
        name = f"SAM {run.sam_epochs} alone: its gain minus half of SAM's"
        return Accuracy(name=name, group="tail", terms=terms, **bounds)  # type: ignore[arg-type]

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
    _, sam = _arms()
    frozen = studies.bn_statistics(seeds=(0,))
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
