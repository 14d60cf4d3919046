"""The five hypotheses on radius, rivals and controls, registered in advance.

Data, written before any reported run with SAM; ``contrasts`` judges them. Comparison,
test and correction stand in the docstrings of the studies too. Margins: 3 points for
the tail and 1.5 overall, as everywhere in the book, and 1.5 points for the tail in (v),
where no change is expected.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from saddlebook import studies
from saddlebook.experiment import Experiment
from saddlebook.findings import contrasts
from saddlebook.findings.contrasts import Contrast, Hypothesis
from saddlebook.findings.inference import Verdict
from saddlebook.findings.report import MARGINS
from saddlebook.record import Record

Setting = Sequence[Experiment]  # one, or the candidates of a tuning
_BY_METHOD = {exp.method: exp for exp in studies.table1(seeds=(0,))}
_BASE, _SAM = ((_BY_METHOD[name],) for name in ("CE+DRW", "CE+DRW+SAM"))


def _difference(
    name: str, group: str, other: Setting, base: Setting, **bounds: float
) -> Contrast:
    terms = ((1.0, tuple(other)), (-1.0, tuple(base)))
    return Contrast(name, group, terms, **bounds)


def _radius() -> Hypothesis:
    runs = sorted(studies.rho_ablation(seeds=(0,)), key=lambda exp: exp.rho)
    middle = (len(runs) - 1) / 2
    squares = sum((i - middle) ** 2 for i in range(len(runs)))
    slope = tuple(((i - middle) / squares, (run,)) for i, run in enumerate(runs))
    none, largest = runs[:1], runs[-1:]
    return Hypothesis(
        "i",
        "With re-weighting, tail accuracy rises with ρ while overall peaks and falls",
        (
            (
                Contrast("slope of the tail per radius", "tail", slope, low=0),
                _difference("the paper's ρ − none", "overall", _SAM, none, low=0),
                _difference("the paper's ρ − largest", "overall", _SAM, largest, low=0),
            ),
        ),
    )


def _unweighted() -> Hypothesis:
    sam, sgd = ((_BY_METHOD[name],) for name in ("CE+SAM", "CE"))
    gain = _difference("CE+SAM − CE", "tail", sam, sgd, high=MARGINS["tail"])
    return Hypothesis(
        "ii", "Without re-weighting SAM does not help the tail", ((gain,),)
    )


def _tuned() -> Hypothesis:
    decays = studies.weight_decay(seeds=(0,))
    sam, sgd = (
        [exp for exp in decays if exp.optimizer == name] for name in ("sam", "sgd")
    )
    gain = _difference("tuned SAM − tuned SGD", "overall", sam, sgd, high=1.5)
    return Hypothesis(
        "iii",
        "With weight decay tuned for SGD and SAM alike, SAM gains less than 1.5 points",
        ((gain,),),
    )


def _timing() -> Hypothesis:
    before, after = studies.sam_timing(seeds=(0,))
    gain = _difference("SAM throughout − SGD", "tail", _SAM, _BASE, low=0)

    def beyond_half(run: Experiment, **bounds: float) -> Contrast:
        terms = ((1.0, (run,)), (-0.5, _SAM), (-0.5, _BASE))
        name = f"SAM {run.sam_epochs}: gain − half of it"
        return Contrast(name, "tail", terms, **bounds)

    return Hypothesis(
        "iv",
        "SAM before re-weighting gives most of its tail gain and SAM after gives "
        "little, or the reverse",
        (
            (gain, beyond_half(before, low=0), beyond_half(after, high=0)),
            (gain, beyond_half(before, high=0), beyond_half(after, low=0)),
        ),
    )


def _statistics() -> Hypothesis:
    (frozen,) = studies.bn_statistics(seeds=(0,))
    change = _difference(
        "statistics frozen − both passes", "tail", [frozen], _SAM, low=-1.5, high=1.5
    )
    return Hypothesis(
        "v",
        "Freezing batch-norm statistics in SAM's second pass changes the tail by less "
        "than 1.5 points",
        ((change,),),
    )


HYPOTHESES = (_radius(), _unweighted(), _tuned(), _timing(), _statistics())


def judge(records: Iterable[Record], scale: str = "lite") -> pd.DataFrame:
    """A verdict on each of the five; see ``contrasts.judge``."""
    return contrasts.judge(HYPOTHESES, records, scale)


def estimates(records: Iterable[Record], scale: str = "lite") -> pd.DataFrame:
    """Every contrast of the five; see ``contrasts.estimates``."""
    return contrasts.estimates(HYPOTHESES, records, scale)


_WORDS = {"yes": "holds", "no": "refuted", "open": "open", "N": "not run yet"}


def answer(judged: pd.DataFrame, name: str) -> Verdict:
    """The verdict on one hypothesis, to show."""
    code = judged.set_index("hypothesis").loc[name, "verdict"]
    return Verdict(str(code), _WORDS[str(code)])


def headline(judged: pd.DataFrame) -> Verdict:
    """How many hold, are refuted, stay open and are not run, as a verdict to show."""
    words = _WORDS | {"yes": "hold"}
    counts = [f"{(judged['verdict'] == code).sum()} {w}" for code, w in words.items()]
    return Verdict("hypotheses", ", ".join(counts))


def listing(judged: pd.DataFrame) -> str:
    """Statements and verdicts as a Markdown list."""
    return "\n".join(_item(row) for _, row in judged.iterrows())


def _item(row: Any) -> str:
    told = f"- **({row['hypothesis']})** {row['statement']}: "
    told += f"**{_WORDS[row['verdict']]}**"
    if not row["missing"]:
        told += f", adjusted p {row['p']:.2g}, against {row['p_against']:.2g}"
        told += f"; {row['scale']} scale"
    # typeset as prose, two hyphens would become a dash
    note = re.sub(r"python -m [^;]+", r"`\g<0>`", row["note"])
    return told + (f"; {note}" if note else "")


def show(judged: pd.DataFrame) -> None:
    """Put the list of statements and verdicts on the page."""
    from IPython.display import display

    text = listing(judged)
    display({"text/markdown": text, "text/plain": text}, raw=True)


def numbers(found: pd.DataFrame, judged: pd.DataFrame) -> pd.DataFrame:
    """The table of ``estimates`` as readers want it: points with 95 % t-intervals."""
    words = judged.set_index("hypothesis")["verdict"].map(_WORDS)
    shown = found[["hypothesis", "contrast", "group"]].assign(
        points=[_points(row) for _, row in found.iterrows()],
        bound=found["bound"],
        seeds=found["n"],
        verdict=found["hypothesis"].map(words),
    )
    return shown.rename(columns={"bound": "to hold"}).set_index("hypothesis")


def _points(row: Any) -> str:
    if not row["n"]:
        return "–"
    told = f"{row['mean']:+.2f}"
    if row["low"] == row["low"]:
        told += f" ({row['low']:+.2f} to {row['high']:+.2f})"
    return told.replace("-", "−")


def tell(judged: pd.DataFrame) -> str:
    """Which of them hold, are refuted, stay open and are not run, by number."""
    parts = []
    for code, words in _WORDS.items():
        names = judged[judged["verdict"] == code]["hypothesis"]
        if len(names):
            parts.append(f"{words}: " + ", ".join(f"({name})" for name in names))
    return "; ".join(parts)
