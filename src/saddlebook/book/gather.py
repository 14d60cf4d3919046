"""What is there of a study whose runs are still being made, and what makes the rest.

For chapters whose records arrive one by one: they show what exists and say what does
not, with the command, instead of failing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from saddlebook import studies
from saddlebook.experiment import Experiment
from saddlebook.findings import claims, readme
from saddlebook.store import Found, Store

if TYPE_CHECKING:
    from saddlebook.book.page import Page
    from saddlebook.findings.claims import Family
    from saddlebook.record import Record


def gather(
    page: Page, *names: str, scale: str | None = None
) -> dict[str, list[Record]]:
    """Records of studies that are there, by study; a note on the page for the rest.

    At ``full`` where a study is complete there, else ``lite``, unless ``scale`` says
    which. At ``quick`` seed 0 is trained, without spectra.

    Args:
        page: Shows the notes and counts the records in its footer.
        names: Of ``saddlebook.studies``.
        scale: Where to look for them; not heeded at ``quick``.
    """
    if page.scale == "quick":
        return {name: _smoke(page, studies.named(name)) for name in names}
    found = page.found({name: studies.named(name) for name in names}, scale)
    _tell(found)
    page.show_records([r for some in found.values() for r in some.records])
    return {name: some.records for name, some in found.items()}


def with_spectra(page: Page) -> list[Record]:
    """Records with spectra that are there; at ``quick`` the first seed is trained."""
    if page.scale == "quick":
        return page.records(studies.dynamics(seeds=(0,)))
    return gather(page, "dynamics")["dynamics"]


def every(
    page: Page, scale: str, choose: Callable[[list[Record]], list[Record]] = list
) -> list[Record]:
    """Records of one scale and reported seeds, or some of them; none at ``quick``."""
    if page.scale == "quick":
        return []
    there = Store(page.results / scale).records()
    reported = [r for r in there if r.experiment.seed in studies.SEEDS]
    found = choose(reported)
    page.cite(found)
    return found


def verdicts(page: Page, *families: Family) -> pd.DataFrame:
    """What became of all claims of some families, from every record there is.

    The same families give the same verdicts on every page.
    """
    parts = []
    for family in families:
        runs = readme.present(family, page.scale, page.results)
        page.cite(runs)
        parts.append(claims.judge(family, runs, page.scale))
    return pd.concat(parts, ignore_index=True)


def _smoke(page: Page, experiments: Sequence[Experiment]) -> list[Record]:
    """Records of seed 0, trained now; none of a study that measures spectra."""
    chosen = [exp for exp in experiments if exp.seed == 0 and not exp.spectra_at]
    return page.records(chosen) if chosen else []


def _tell(found: Mapping[str, Found]) -> None:
    from IPython.display import display

    parts = [
        f"- {len(records)} of {len(records) + len(missing)} runs of `{name}` are here; "
        f"the rest: `{studies.command(name, scale)}`"
        for name, (scale, records, missing) in found.items()
        if missing
    ]
    if parts:
        text = "\n".join(["**Not all is run yet.**", "", *parts])
        display({"text/markdown": text, "text/plain": text}, raw=True)
