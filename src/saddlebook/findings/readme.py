"""What was found, as one table from records: the README's, checked by a test.

    python -m saddlebook.findings.readme        writes it between the marks in README.md

Knows records and the judges of claims; the book's first page calls the same judges.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from saddlebook.disk.files import write_whole
from saddlebook.errors import UsageError
from saddlebook.findings import (
    claims,
    hypotheses,
    inference,
    report,
    spectra_claims,
    tables,
)  # fmt: skip
from saddlebook.store import RESULTS, Store, find_records

if TYPE_CHECKING:
    from saddlebook.findings.claims import Family
    from saddlebook.record import Record

FAMILIES = (
    hypotheses.main_table, hypotheses.baselines, hypotheses.gap,
    spectra_claims.curvature_family, spectra_claims.schedule_family, hypotheses.five,
    hypotheses.wider, hypotheses.curve_family,
)  # fmt: skip
_TAIL = (7, 8, 9)
_SAM = [f"{base}+SAM − {base}" for base in hypotheses.BASES]
_START, _END = "<!-- found -->", "<!-- /found -->"


class Finding(NamedTuple):
    """A claim, the paper's number, ours, and what became of it."""

    claim: str
    paper: str
    here: str
    verdict: str


def present(
    family: Family, scale: str = "lite", results: str | Path = RESULTS
) -> list[Record]:
    """Records of a family that are there, in the paper's setting and at ``scale``."""
    wanted = family.experiments("full")
    scales = dict.fromkeys(("full", scale)) if scale != "quick" else [scale]
    return [r for name in scales for r in find_records(wanted, results, name).records]


def judged(
    family: Family, scale: str = "lite", results: str | Path = RESULTS
) -> pd.DataFrame:
    """What became of the claims of a family, from every record there is."""
    return claims.judge(family, present(family, scale, results), scale)


def findings(scale: str = "lite", results: str | Path = RESULTS) -> list[Finding]:
    """Tail accuracy, curvature and its causes, hypotheses, runs at full scale."""
    main = judged(hypotheses.main_table(), scale, results)
    parts = [
        main[main["contrast"].isin(_SAM) & main["group"].eq("tail")],
        *(
            judged(family(), scale, results)
            for family in (
                spectra_claims.curvature_family, hypotheses.five, hypotheses.wider,
                hypotheses.curve_family,
            )
        ),
    ]  # fmt: skip
    rows = (row for part in parts for _, row in part.iterrows())
    return [*map(_finding, rows), *_full_scale(Path(results))]


def _finding(row: Any) -> Finding:
    paper = "" if math.isnan(row["paper"]) else claims.signed(row["paper"], 1)
    name = f"({row['claim']}) " if len(row["claim"]) < 4 else ""
    why = f": {claims.why(row)}" if row["word"] == inference.UNDECIDED else ""
    return Finding(name + row["statement"], paper, row["here"], row["word"] + why)


def _full_scale(results: Path) -> Iterator[Finding]:
    """Accuracy, and the ratio of the tail, in the paper's own setting, of few runs."""
    runs = report.once(Store(results / "full").records())
    if not runs:
        return
    means = report.by_method(runs)
    cells = report.cells(means, report.paper("table1", "cifar10"))
    printed = cells[cells["n"] > 0].groupby("method", sort=False)
    for method, some in printed:
        rows = some.set_index("group").loc[list(report.MARGINS)]
        words = [
            f"{row['word']}: {row['reason']}".strip(": ") for _, row in rows.iterrows()
        ]
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
    yield from _ratios(Store(results / "full").records())


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
        yield Finding(
            f"Full scale, {method}: abs(λmin/λmax) of classes 7, 8, 9, {told}",
            ", ".join(
                f"class {r.label} {r.nonconvexity:.2f}" for r in theirs.itertuples()
            ),
            ", ".join(f"{value:.3f}" for value in by_class),
            f"{inference.UNDECIDED}: {inference.TOO_FEW}: {seeds} of 5",
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
