"""What is there of a study whose runs are still being made, and what makes the rest.

For chapters whose records arrive one by one: they show what exists and say what does
not, with the command, instead of failing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

import pandas as pd

from saddlebook import studies
from saddlebook.experiment import Experiment, at_scale
from saddlebook.findings import claims
from saddlebook.store import Store

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
    wanted = {name: studies.named(name) for name in names}
    if page.scale == "quick":
        there = {name: _smoke(runs) for name, runs in wanted.items()}
        scales = dict.fromkeys(names, "quick")
    else:
        scales = {name: scale or _scale(page, runs) for name, runs in wanted.items()}
        there = {n: _present(page, runs, scales[n]) for n, runs in wanted.items()}
        _tell(wanted, there, scales)
    found = {}
    for one in dict.fromkeys(scales.values()):
        runs = [e for n in names if scales[n] == one for e in there[n]]
        for record in page.records(list(dict.fromkeys(runs))) if runs else ():
            found[record.experiment] = record
    return {n: [found[at_scale(e, scales[n])] for e in there[n]] for n in names}


def dynamics(page: Page) -> list[Record]:
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
    found = {r.experiment: r for r in choose(reported)}
    page.present(list(found))
    return list(found.values())


def verdicts(page: Page, *families: Family) -> pd.DataFrame:
    """What became of all claims of some families, from every record there is.

    The same families give the same verdicts on every page.
    """
    parts = []
    for family in families:
        wanted = [at_scale(e, page.scale) for e in family.experiments("full")]
        better = family.experiments("full") if page.scale == "lite" else []
        some = page.present([*better, *wanted])
        parts.append(claims.judge(family, some, page.scale))
    return pd.concat(parts, ignore_index=True)


def _smoke(experiments: Sequence[Experiment]) -> list[Experiment]:
    return [exp for exp in experiments if exp.seed == 0 and not exp.spectra_at]


def _scale(page: Page, experiments: Sequence[Experiment]) -> str:
    missing = Store(page.results / "full").missing(experiments)
    return page.scale if missing else "full"


def _present(
    page: Page, experiments: Sequence[Experiment], scale: str
) -> list[Experiment]:
    store = Store(page.results / scale)
    return [exp for exp in experiments if not store.missing([at_scale(exp, scale)])]


def _tell(
    wanted: Mapping[str, Sequence[Experiment]],
    there: Mapping[str, Sequence[Experiment]],
    scales: Mapping[str, str],
) -> None:
    from IPython.display import display

    parts = [
        f"- {len(there[name])} of {len(runs)} runs of `{name}` are here; the rest: "
        f"`{command(name, scales[name])}`"
        for name, runs in wanted.items()
        if len(there[name]) < len(runs)
    ]
    if parts:
        text = "\n".join(["**Not all is run yet.**", "", *parts])
        display({"text/markdown": text, "text/plain": text}, raw=True)


def command(study: str, scale: str) -> str:
    """The command that makes the records of a study."""
    return f"python -m saddlebook run {study} --scale {scale}"


def commands(experiments: Sequence[Experiment]) -> list[str]:
    """Commands that make the records of ``experiments``, of one scale; few of them."""
    left, found = set(experiments), []
    while left:
        scale = next(iter(left)).scale
        covers = {name: left & _members(name, scale) for name in studies.STUDIES}
        name = max(covers, key=lambda name: len(covers[name]))
        if not covers[name]:
            break
        found.append(command(name, scale))
        left -= covers[name]
    return found


@cache
def _members(study: str, scale: str) -> frozenset[Experiment]:
    return frozenset(studies.named(study, scale))
