"""What was found, as one table from records: the README's, checked by a test.

    python -m saddlebook.findings.readme        writes it between the marks in README.md

Knows records and the judges of claims; the book's first page calls the same judges.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from saddlebook import studies
from saddlebook.disk.files import write_whole
from saddlebook.errors import UsageError
from saddlebook.findings import claims, hypotheses, report
from saddlebook.findings import spectra as curvature
from saddlebook.findings import spectra_claims as curvature_claims
from saddlebook.findings import tables as curvature_tables
from saddlebook.store import RESULTS, find

if TYPE_CHECKING:
    from saddlebook.record import Record

OF_HYPOTHESES = (
    "table1", "rho_ablation", "weight_decay", "tuning", "sam_timing", "bn_statistics",
)  # fmt: skip
STUDIES = (*OF_HYPOTHESES, "control", "dynamics")
_TAIL = 8  # the paper's example class of CIFAR-10
_START, _END = "<!-- found -->", "<!-- /found -->"


class Finding(NamedTuple):
    """A claim, the paper's number, ours, and what became of it."""

    claim: str
    paper: str
    here: str
    verdict: str


def present(
    names: Sequence[str], scale: str = "lite", results: str | Path = RESULTS
) -> dict[str, list[Record]]:
    """Records of studies that are there, by study."""
    return {n: find(studies.named(n), results, scale).records for n in names}


def findings(scale: str = "lite", results: str | Path = RESULTS) -> list[Finding]:
    """Tail accuracy, curvature and its causes, five hypotheses, runs at full scale."""
    found = present(STUDIES, scale, results)
    runs = [record for name in OF_HYPOTHESES for record in found[name]]
    table = curvature.spectra(found["dynamics"])
    listed = curvature_claims.saddle_claims() + curvature_claims.cause_claims()
    judged = curvature_claims.judge(table, listed)
    return [
        *_gains(found["table1"] + found["control"]),
        *_curvature(judged),
        *_hypotheses(runs, scale),
        *_full_scale(results),
    ]


def _gains(records: Sequence[Record]) -> list[Finding]:
    family = claims.sam_comparisons() + claims.control_comparisons()
    judged = claims.judge(records, family, report.paper("table1", "cifar10"))
    chosen = judged[(judged["group"] == "tail") & judged["paper"].notna()]
    return [
        Finding(
            f"Tail accuracy: {row['other']} − {row['base']}",
            f"{row['paper']:+.1f} points",
            f"{row['difference']:+.1f} ({row['low']:+.1f} to {row['high']:+.1f})",
            {"yes": "holds", "no": "fails"}.get(row["holds"], row["holds"])
            + (" (nothing gained)" if row["claim"] == "no gain" else ""),
        )
        for _, row in chosen.iterrows()
    ]


def _curvature(judged: pd.DataFrame) -> Iterator[Finding]:
    shown = curvature_claims.sheet(judged)
    for name, row in shown.iterrows():
        seeds = f"{row['for']} of {row['seeds']} seeds"
        yield Finding(str(name), "", f"{row['difference']}, {seeds}", row["verdict"])


def _hypotheses(runs: Sequence[Record], scale: str) -> Iterator[Finding]:
    judged = hypotheses.judge(runs, scale)
    numbers = hypotheses.numbers(hypotheses.estimates(runs, scale), judged)
    for _, row in judged.iterrows():
        name = row["hypothesis"]
        parts = numbers.loc[[name]]
        told = "; ".join(f"{p['contrast']} {p['points']}" for _, p in parts.iterrows())
        verdict = hypotheses.answer(judged, name).name
        yield Finding(f"({name}) {row['statement']}", "", told, verdict)


def _full_scale(results: str | Path) -> Iterator[Finding]:
    """Accuracy, and the ratio of the tail, in the paper's own setting, of few runs."""
    found = present(("table1", "control", "dynamics"), "full", results)
    if trained := found["table1"] + found["control"]:
        yield from _accuracy(trained)
    yield from _ratios(found["dynamics"])


def _accuracy(runs: Sequence[Record]) -> Iterator[Finding]:
    """The paper's rows, then those that it lacks."""
    means = report.by_method(runs)
    cells = report.cells(means, report.paper("table1", "cifar10"))
    control = means[
        (means["choice"] == "last") & ~means["method"].isin(cells["method"])
    ]
    shown = pd.concat([cells[cells["n"] > 0], control])
    for _, row in shown[shown["group"].isin(report.MARGINS)].iterrows():
        printed = pd.notna(row["paper"])
        yield Finding(
            f"Full scale, {row['method']}: {row['group']} accuracy",
            f"{row['paper']:.1f}" if printed else "",
            f"{row['mean']:.1f}, {row['n']} run{'s' * (row['n'] > 1)} in bf16",
            row["code"] if printed else "control",
        )


def _ratios(runs: Sequence[Record]) -> Iterator[Finding]:
    printed = curvature.published_dynamics(report.paper("dynamics"))
    end = printed[(printed["label"] == _TAIL) & (printed["stage"] == curvature.LAST)]
    paper = {row["method"]: row["nonconvexity"] for _, row in end.iterrows()}
    spectra = curvature.pick(
        curvature.spectra(runs),
        label=_TAIL, stage=curvature.LAST, mode=["as_published", "clean"],
    )  # fmt: skip
    for (method, mode), part in spectra.groupby(["method", "mode"], sort=False):
        yield Finding(
            f"Full scale, {method}: ratio of the tail, {str(mode).replace('_', ' ')}",
            f"{paper[method]:.2f}" if method in paper else "",
            curvature_tables.text(part, "nonconvexity"),
            f"{part['seed'].nunique()} of {curvature_claims.ENOUGH} seeds",
        )


def table(found: Sequence[Finding]) -> str:
    """As a Markdown table."""
    lines = ["| claim | paper | here | verdict |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in found)])


def inserted(text: str, found: Sequence[Finding]) -> str:
    """``text`` with the table between its marks.

    Raises:
        UsageError: The marks are not there.
    """
    before, start, rest = text.partition(_START)
    _, end, after = rest.partition(_END)
    if not start or not end:
        raise UsageError(f"no {_START} … {_END} to write between")
    return f"{before}{start}\n{table(found)}\n{end}{after}"


if __name__ == "__main__":
    readme = Path(sys.argv[1] if len(sys.argv) > 1 else "README.md")
    write_whole(readme, inserted(readme.read_text(), findings()).encode())
