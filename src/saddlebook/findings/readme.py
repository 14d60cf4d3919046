"""What was found, in three cards and one long table, made from records.

The cards are the first page of the book and of the README, the table lies in
``results/findings.md``; ``make front`` writes both, and tests compare. Knows records
and the judges of claims, which every page calls too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from saddlebook import studies
from saddlebook.findings import (
    claims,
    hypotheses,
    report,
    sharpness,
    spectra_claims,
    tables,
    verdicts,
)  # fmt: skip
from saddlebook.findings.claims import Contrast, Runs, by_seed
from saddlebook.store import RESULTS, Store, find_records

if TYPE_CHECKING:
    from saddlebook.experiment import Experiment
    from saddlebook.findings.claims import Family
    from saddlebook.record import Record

FAMILIES = (
    hypotheses.main_table, hypotheses.baselines, hypotheses.gap,
    spectra_claims.curvature_family, spectra_claims.schedule_family, hypotheses.five,
    hypotheses.wider, hypotheses.curve_family, hypotheses.knobs_family,
    hypotheses.adaptive_family, hypotheses.second_table,
    spectra_claims.images_family, spectra_claims.views_family,
    spectra_claims.statistics_family, sharpness.edge_family, sharpness.outlier_family,
)  # fmt: skip
_TAIL = (7, 8, 9)
_PAIR = {"CE+DRW": "SGD", "CE+DRW+SAM": "SAM"}
_WAYS = {
    "as_published": "as published", "clean": "images fixed",
    "augmented": "all crops averaged",
}  # fmt: skip
_FINDINGS = """# All findings

Made from the records in this folder by `make front`. A claim is
supported, contradicted or undecided, a printed number reproduced, different or
undecided, by one rule ([notation](../book/notation.md)); *would show* is the smallest
difference that so many seeds find four times out of five. abs(λmin/λmax) is that of one
class's loss after the last epoch; of the tail, the mean over classes 7, 8 and 9; of
redrawing alone, over 8 and 9. *As published* redraws
crops and flips in every product. Intervals are 95 % t-intervals over seeds. Claims are
judged at laptop scale (`lite`); *Full scale* is the paper's own setting, in bf16.
"""


class Finding(NamedTuple):
    """A claim, the paper's number, ours, and what became of it."""

    claim: str
    paper: str
    here: str
    verdict: str


def present(
    family: Family,
    scale: str = "lite",
    results: str | Path = RESULTS,
    on: Callable[[list[Experiment]], list[Experiment]] = list,
    precision: str = "",
) -> list[Record]:
    """Records of a family that are there, in the paper's setting and at ``scale``.

    ``on`` puts the experiments on other images; ``precision`` as in ``find_records``.
    """
    wanted = on(family.experiments("full"))
    scales = dict.fromkeys(("full", scale)) if scale != "quick" else [scale]
    found = (find_records(wanted, results, name, precision) for name in scales)
    return [record for one in found for record in one.records]


def judged(
    family: Family, scale: str = "lite", results: str | Path = RESULTS
) -> pd.DataFrame:
    """What became of the claims of a family, from every record there is."""
    return claims.judge(family, present(family, scale, results), scale)


def findings(scale: str = "lite", results: str | Path = RESULTS) -> list[Finding]:
    """Every claim of every family, and runs at full scale."""
    parts = (judged(family(), scale, results) for family in FAMILIES)
    rows = (row for part in parts for _, row in part.iterrows())
    return [*map(_finding, rows), *_full_scale(Path(results))]


def _finding(row: Any) -> Finding:
    paper = "" if math.isnan(row["paper"]) else claims.signed(row["paper"], 1)
    name = f"({row['claim']}) " if len(row["claim"]) < 4 else ""
    why = f": {claims.why(row)}" if row["word"] == verdicts.UNDECIDED else ""
    return Finding(name + row["statement"], paper, row["here"], row["word"] + why)


def _full_scale(results: Path) -> Iterator[Finding]:
    """Accuracy, and the ratio of the tail, in the paper's own setting, of few runs."""
    there = [r for r in Store(results / "full").records() if not r.experiment.is_own]
    there = [r for r in there if hypotheses.of_main_table(r.experiment)]
    runs = report.once(there)
    if not runs:
        return
    means = report.by_method(runs)
    cells = report.cells(means, report.paper("table1", "cifar10"))
    printed = cells[cells["n"] > 0].groupby("method", sort=False)
    for method, some in printed:
        rows = some.set_index("group").loc[list(report.MARGINS)]
        words = [f"{r['word']}: {r['reason']}".strip(": ") for r in _rows(rows)]
        yield Finding(
            f"Full scale, {method}: {' and '.join(rows.index)} accuracy",
            " and ".join(f"{value:.1f}" for value in rows["paper"]),
            f"{' and '.join(map(report.plus_minus, _rows(rows)))}, {_runs(rows)}",
            " and ".join(dict.fromkeys(words)),
        )
    last = means[means["choice"] == "last"]
    for method, some in last[~last["method"].isin(cells["method"])].groupby("method"):
        rows = some.set_index("group").loc[list(report.MARGINS)]
        told = " and ".join(map(report.plus_minus, _rows(rows)))
        name = f"Full scale, {method} (not in the paper): overall and tail accuracy"
        yield Finding(name, "", f"{told}, {_runs(rows)}", "")
    yield from _ratios(there)


def _rows(table: pd.DataFrame) -> list[Any]:
    return [row for _, row in table.iterrows()]


def _runs(table: pd.DataFrame) -> str:
    count = int(table["n"].iloc[0])
    return f"{count} run{'s' * (count > 1)}"


def _ratios(runs: Sequence[Record]) -> Iterator[Finding]:
    printed = tables.published_dynamics(report.paper("dynamics"))
    part = tables.pick(
        tables.spectra_table(runs),
        label=_TAIL, stage=tables.LAST, mode=["as_published", "clean"],
    )  # fmt: skip
    for (method, mode), some in part.groupby(["method", "mode"], sort=False):
        theirs = printed[
            (printed["method"] == method) & (printed["stage"] == tables.LAST)
        ]
        theirs = theirs[theirs["label"].isin(_TAIL)]
        told = {"clean": "images fixed", "as_published": "as published"}[str(mode)]
        by_class = some.groupby("label")["nonconvexity"].mean()
        seeds = some["seed"].nunique()
        few = f"{verdicts.UNDECIDED}: {verdicts.TOO_FEW}: {seeds} of 5"
        yield Finding(
            f"Full scale, {method}: abs(λmin/λmax) of classes 7, 8, 9, {told}",
            ", ".join(
                f"class {r.label} {r.nonconvexity:.2f}" for r in theirs.itertuples()
            ),
            ", ".join(f"{value:.3f}" for value in by_class),
            few if seeds < len(studies.SEEDS) else "",
        )


class Estimate(NamedTuple):
    """A mean, its 95 % interval (NaN below three runs), and both in words.

    Below three seeds with all runs that it needs, over every run there is.
    """

    mean: float
    low: float
    high: float
    runs: int
    text: str


class Row(NamedTuple):
    """One number: as printed (NaN: not printed), in the paper's setting, and small."""

    name: str
    paper: float
    printed: str
    full: Estimate
    lite: Estimate


class Card(NamedTuple):
    """A question, its answer in whole sentences, and the numbers behind it.

    Attributes:
        question: Title.
        claim: What ``word`` is said of, in few words.
        word: Its verdict.
        answer: What holds, with effects and intervals.
        unit: Of the numbers.
        rows: Numbers.
        sure: What the answer rests on.
        page: Chapter that has the evidence.
        more: What it is about.
    """

    question: str
    claim: str
    word: str
    answer: str
    unit: str
    rows: tuple[Row, ...]
    sure: str
    page: str
    more: str

    @property
    def verdict(self) -> str:
        """The claim and its word."""
        return f"{self.claim[0].upper()}{self.claim[1:]}: {self.word}"

    def numbers(self) -> list[tuple[str, ...]]:
        """The rows in words below their head."""
        head = ("", "the paper", "its setting", "laptop scale")
        return [head, *((r.name, r.printed, r.full.text, r.lite.text)
                        for r in self.rows)]  # fmt: skip


def cards(scale: str = "lite", results: str | Path = RESULTS) -> list[Card]:
    """The first page: does SAM help the tail, is it saddles, is it SAM?"""
    return [make(scale, results) for make in (helps, saddles, rival)]


def helps(scale: str = "lite", results: str | Path = RESULTS) -> Card:
    """Whether SAM raises the accuracy of rare classes."""
    found, runs = _claims_and_runs(hypotheses.main_table(), scale, results)
    names = {
        "CE": "plain loss", "CE+DRW": "re-weighted", "LDAM+DRW": "with margins",
        "VS": "scaled logits",
    }  # fmt: skip
    rows = [_gain(name, base, f"{base}+SAM", runs) for base, name in names.items()]
    second, others = _claims_and_runs(hypotheses.second_table(), scale, results)
    name = "re-weighted, CIFAR-100"
    rows.append(_gain(name, "CE+DRW", "CE+DRW+SAM", others, dataset="cifar100"))
    drw = rows[1]
    head = _gain("", "VS", "VS+SAM", runs, group="head").full.text
    words = found["word"]
    answer = (
        f"{_OPENING[words['CE+DRW+SAM − CE+DRW, tail']]}, with cross-entropy that is "
        "re-weighted late in training (CE+DRW): the three rarest classes change by "
        f"{drw.lite.text} points at laptop scale and by {drw.full.text} in the paper's "
        f"own setting; it prints {drw.printed}. That SAM raises them with margins "
        f"(LDAM) is {words['LDAM+DRW+SAM − LDAM+DRW, tail']}, with scaled logits (VS) "
        f"{words['VS+SAM − VS, tail']}; where VS gains much, in the paper's own "
        f"setting, its head classes change by {head}. With a plain loss the paper's "
        f"table shows no gain: {words['ii']} here. With a hundred classes "
        "(CIFAR-100-LT), re-weighted, that SAM raises the tail is "
        f"{second['word']['CIFAR-100: CE+DRW+SAM − CE+DRW, tail']}. There SAM has the "
        "smallest radius that was tried, and the network does not learn the tail by "
        f"heart: its training loss is {tail_loss(others.values())} nats, "
        f"{tail_loss(runs.values())} on CIFAR-10-LT."
    )
    return _card(
        "Does SAM help rare classes?", "SAM helps CE+DRW's tail on CIFAR-10-LT", answer,
        found, ["CE+DRW+SAM − CE+DRW, tail"],
        "points of tail accuracy: with SAM minus without", rows,
        ("ch07_table", "The main table"),
    )  # fmt: skip


def tail_loss(records: Iterable[Record], method: str = "CE+DRW") -> str:
    """Training loss of the tail at laptop scale, nats, mean over its runs, in words."""
    small = [record for record in records if record.experiment.scale == "lite"]
    fit = report.fit_by_group(small, [method]).get("training loss, tail")
    return "–" if fit is None else f"{fit[method]:.2f}"


def _tail_rows(runs: Runs, fresh: Runs) -> list[Row]:
    """abs(λmin/λmax) of the tail in three ways, with SGD and with SAM.

    ``fresh`` has the networks that were measured with all views, others' seeds.
    """
    printed = tables.published_dynamics(report.paper("dynamics"))
    ends = printed["stage"].eq(tables.LAST) & printed["label"].isin(_TAIL)
    theirs = printed[ends].groupby("method")["nonconvexity"].mean()
    own = {"study": studies.views, "seeds": studies.FRESH_SEEDS}
    rows = []
    for (mode, name), (method, optimizer) in product(_WAYS.items(), _PAIR.items()):
        cell = spectra_claims.Cell(method, spectra_claims.TAIL, modes=(mode,))
        where: Any = own if mode == "augmented" else {}
        part = spectra_claims.Exceeds(name="", digits=3, more=cell, **where)
        paper = theirs[method] if mode == "as_published" else math.nan
        row = _row(f"{optimizer}, {name}", part, paper, fresh if where else runs)
        rows.append(row)
    return rows


def saddles(scale: str = "lite", results: str | Path = RESULTS) -> Card:
    """Whether networks end at saddles of their rare classes' losses."""
    found, runs = _claims_and_runs(spectra_claims.curvature_family(), scale, results)
    averaged, fresh = _claims_and_runs(spectra_claims.views_family(), scale, results)
    rows = _tail_rows(runs, fresh)
    crops, _, fixed, _, mean, _ = rows
    last = tables.pick(runs.spectra(), stage=tables.LAST, mode="clean")
    kinds = tables.kinds(last)
    which = ", ".join(f"class {n}" for n in {*last["label"][kinds == "saddle"]})
    answer = (
        f"{_OPENING[found['word'][_SADDLES[-1]]]}, if the images are held fixed. Of "
        f"{len(kinds)} class losses measured after training "
        f"{kinds.isin(['slope', 'saddle', 'flat']).sum()} bend down somewhere, and "
        f"{kinds.eq('saddle').sum() or 'none'} of them{which and f' ({which})'} is a "
        "saddle by the rule of chapter 5, which asks for a small gradient, too. With "
        f"SGD the tail's most negative curvature is {fixed.full.text} of its largest "
        f"in the paper's own setting. The ratio of {crops.printed}, read off the "
        f"paper's figure for classes 7 and 8, comes back, as {crops.full.text}, with "
        "its own procedure, which draws new crops of the images in every product and "
        "takes a norm too early. Averaged exactly over all crops and flips, as "
        "training sees the images, it is "
        f"{mean.lite.text} at laptop scale; that it stays below .2 is "
        f"{averaged['word']['f4']}. "
        + sharpness.flattening(tables.pick(runs.spectra(), scale=scale))
    )
    return _card(
        "Is it saddles?",
        "on fixed images SAM lowers the tail's abs(λmin/λmax)",
        answer, found, _SADDLES,
        "|λmin/λmax| of a class's loss, mean over the tail (paper: classes 7, 8; all "
        "crops: other seeds)",
        rows,
        ("ch11_as_published", "The measurement, taken apart"),
    )  # fmt: skip


def rival(scale: str = "lite", results: str | Path = RESULTS) -> Card:
    """Whether a larger weight decay does what SAM does."""
    main, runs = _claims_and_runs(hypotheses.main_table(), scale, results)
    found, tuned = _claims_and_runs(hypotheses.five(), scale, results)
    tail = _estimate(hypotheses.tuned_tail(), tuned, scale)
    names = {"+SAM": "SAM", " wd=0.001": "weight decay × 5", "+SAM wd=0.001": "both"}
    rows = [_gain(n, "CE+DRW", f"CE+DRW{more}", runs) for more, n in names.items()]
    sam, decay, _ = rows
    same = hypotheses.within_seeds(("CE+DRW wd=0.001", "CE+DRW+SAM"), runs)
    adds = main.loc["CE+DRW+SAM wd=0.001 − CE+DRW wd=0.001, tail"]
    second, _ = _claims_and_runs(hypotheses.second_table(), scale, results)
    hundred = second.loc["CIFAR-100: CE+DRW wd=0.001 − CE+DRW+SAM, tail"]
    ran = [verdicts.in_runs([one.full.runs]) for one in (decay, sam)]
    answer = (
        "In the paper's own setting five times the weight decay, without SAM, changes "
        f"the tail by {decay.full.text} points ({ran[0]}), SAM by {sam.full.text} "
        f"({ran[1]}); {same}. At laptop scale, with weight decay tuned for each, SAM "
        f"changes overall accuracy by {found['here']['iii']} points: "
        f"{claims.ahead(found.loc['iii'])}; the tail, looked at afterwards, by "
        f"{tail.text}. With weight decay 0.001 for both SAM changes the tail by "
        f"{adds['here']} points: that it does is {adds['word']}. On CIFAR-100-LT, "
        "each tuned on one seed, weight "
        f"decay minus SAM is {hundred['here']} points on the tail: that they differ is "
        f"{hundred['word']}."
    )
    return _card(
        "Is it SAM, or would weight decay do?",
        "tuned weight decay does as well overall", answer, found, ["iii"],
        "points of tail accuracy over SGD as published", rows,
        ("ch09_rivals", "The controls the paper lacks"),
    )  # fmt: skip


_OPENING = {
    verdicts.SUPPORTED: "Yes", verdicts.CONTRADICTED: "No",
    verdicts.UNDECIDED: "Perhaps",
}  # fmt: skip
_SADDLES = ["tail above head, images fixed", "SGD above SAM, images fixed"]


def _claims_and_runs(
    family: Family, scale: str, results: str | Path
) -> tuple[pd.DataFrame, Runs]:
    runs = present(family, scale, results)
    return claims.judge(family, runs, scale).set_index("claim"), Runs(runs)


def _card(
    question: str, claim: str, answer: str, found: pd.DataFrame, names: Sequence[str],
    unit: str, rows: Sequence[Row], more: tuple[str, str],
) -> Card:  # fmt: skip
    parts = [claims.in_words(found.loc[name]) for name in names]
    counts = sorted({row.full.runs for row in rows if row.full.runs}) or [0]
    parts.append(
        f"In the paper's own setting a number has {verdicts.in_runs(counts)}; below "
        f"{verdicts.FEWEST} there is no interval and no verdict."
    )
    word, sure = found["word"][names[-1]], " ".join(parts)
    return Card(question, claim, word, answer, unit, tuple(rows), sure, *more)


def _gain(
    name: str, base: str, other: str, runs: Runs, *,
    dataset: str = "cifar10", group: str = "tail",
) -> Row:  # fmt: skip
    """Accuracy of a method minus that of another, of a group of classes."""
    known = hypotheses.settings(dataset)
    part = hypotheses.difference(name, group, [known[other]], [known[base]])
    printed = hypotheses.printed_gain(base, other, group, dataset)
    return _row(name, part, printed, runs)


def _row(name: str, part: Contrast, paper: float, runs: Runs) -> Row:
    full, lite = (_estimate(part, runs, scale) for scale in ("full", "lite"))
    printed = "" if math.isnan(paper) else claims.signed(paper, part.digits, part.sign)
    return Row(name, paper, printed, full, lite)


def _estimate(part: Contrast, runs: Runs, scale: str) -> Estimate:
    sides = part.sides(runs, scale)
    values, count = by_seed(sides), min(len(values) for _, values in sides)
    if count and len(values) < verdicts.FEWEST:
        mean = math.fsum(f * math.fsum(v.values()) / len(v) for f, v in sides)
        text = claims.signed(mean, part.digits, part.sign)
        return Estimate(mean, math.nan, math.nan, count, text)
    mean = fmean(values) if values else math.nan
    text = claims.told(values, part.digits, part.sign)
    return Estimate(mean, *verdicts.t_interval(values), len(values), text)


def every_finding(found: Sequence[Finding]) -> str:
    """The long table as a Markdown page."""
    head = Finding("claim", "paper", "here", "verdict")
    return f"{_FINDINGS}\n{tables.as_table([head, *found])}\n"
