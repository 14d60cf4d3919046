"""The whole paper in one command: a plan, then every chapter's evidence, then the book.

Runs are made in the order in which chapters need them, most telling chapter first; what
two chapters share is trained once. Each chapter goes through papermill as soon as its
records are there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saddlebook import progress, studies, workers
from saddlebook.book import build, notebooks
from saddlebook.errors import SaddlebookError, Stopped
from saddlebook.experiment import Experiment
from saddlebook.progress import Progress
from saddlebook.store import find_records

# What each chapter reads, in order of value; the others read parts of these
NEEDS = {
    "ch07_table": ("table1", "control"),
    "ch06_dynamics": ("dynamics",),
    "ch05_spectra": ("dynamics",),
    "ch11_as_published": ("dynamics", "table1", "bn_statistics"),
    "ch08_rho": ("rho_ablation", "curvature"),
    "ch09_rivals": (
        "table1", "rho_ablation", "weight_decay", "tuning", "sam_timing",
        "bn_statistics", "optimizers", "wider_decay", "wider_tuning",
    ),
    "ch10_what_explains_the_gain": (
        "weight_decay", "optimizers", "sam_timing", "rho_ablation", "dynamics",
        "curvature", "one_curve", "two_more_knobs", "adaptive", "head_images", "edge",
    ),
}  # fmt: skip
_MINUTE = 60.0
Say = Callable[[str], None]


@dataclass(frozen=True)
class Part:
    """What a chapter adds to the chapters before it.

    Attributes:
        chapter: File stem.
        runs: How many it reads.
        here: How many of these have a record.
        todo: The others, without those that an earlier chapter makes.
        work: Of ``todo``, in passes over one image.
    """

    chapter: str
    runs: int
    here: int
    todo: tuple[Experiment, ...]
    work: float


def plan(scale: str, results: str | Path) -> list[Part]:
    """What there is to do at ``scale``, chapter by chapter."""
    parts, before = [], dict[Experiment, None]()
    for chapter, names in NEEDS.items():
        wanted = dict.fromkeys(e for name in names for e in studies.named(name))
        found = find_records(wanted, results, scale)
        todo = tuple(e for e in found.missing if e not in before)
        work = progress.total([*before, *todo]) - progress.total(before)
        before |= dict.fromkeys(todo)
        here = len(found.records)
        parts.append(Part(chapter, here + len(found.missing), here, todo, work))
    return parts


def told_plan(parts: Sequence[Part], rate: float) -> Iterator[str]:
    """The plan as lines; ``rate``: passes over one image a second, 0: not measured."""
    width = max(len(part.chapter) for part in parts) + 1
    yield f"{'chapter':{width}}{'runs':>6}{'here':>6}{'to do':>7}{'hours':>9}"
    for part in parts:
        hours = f"{part.work / rate / 3600:9.2f}" if rate else f"{'?':>9}"
        counts = f"{part.runs:6}{part.here:6}{len(part.todo):7}"
        yield f"{part.chapter:{width}}{counts}{hours}"
    todo, work = sum(len(p.todo) for p in parts), sum(p.work for p in parts)
    hours = f"{work / rate / 3600:9.2f}" if rate else f"{'?':>9}"
    yield f"{'together':{width}}{'':12}{todo:7}{hours}"


class _Timed(Progress):
    """Stops when time is up, and knows how fast the work goes."""

    def __init__(
        self, total: float, limit: float, show: bool, patience: float = 0
    ) -> None:
        super().__init__(total, show=show)
        self._deadline = time.monotonic() + limit
        self._patience = patience  # seconds more while nothing is known of the rate
        self._first = (time.monotonic(), 0.0)
        self.rate = 0.0

    def stopped(self) -> bool:
        late = time.monotonic() - self._deadline
        return late > (0 if self.rate else self._patience) or super().stopped()

    def epoch_done(self, experiment: Experiment, row: dict[str, Any]) -> None:
        super().epoch_done(experiment, row)
        (began, before), now = self._first, time.monotonic()
        self.rate = (self.worked - before) / (now - began)
        if not before:  # the first epoch's time has the preparation in it
            self._first = (now, self.worked)


def reproduce(
    root: Path,
    scale: str,
    *,
    results: str,
    limit: float | None = None,
    only_plan: bool = False,
    show: bool = True,
    say: Say = print,
    crew: Sequence[str] = ("cpu",),
    **places: Any,
) -> Path | None:
    """Make every record of a scale that is missing, run every chapter, build the book.

    Args:
        root: The checkout.
        scale: ``full`` or ``lite``.
        results: Folder of stores.
        limit: Seconds after which to stop; the same command goes on.
        only_plan: End after the plan.
        show: Draw a bar.
        say: Takes lines.
        crew: Devices, one worker each.
        **places: ``data_root``, ``work``, ``threads`` and ``group``, see
            ``workers.share``.

    Returns:
        Folder of the book's pages, or None after a plan.

    Raises:
        Stopped: Time is up, or a signal came; what is done is kept.
        SaddlebookError: The first trouble of a run or chapter, after all others were
            tried.
    """
    began = time.monotonic()
    places |= {"results": results, "note": say}
    parts = plan(scale, results)
    minute = _MINUTE if limit is None else min(_MINUTE, limit / 10)
    rate = _measured(parts, minute, show, say, crew, places)
    parts = plan(scale, results)
    for line in told_plan(parts, rate):
        say(line)
    if only_plan:
        return None
    left = float("inf") if limit is None else limit - (time.monotonic() - began)
    troubles = []
    timed = _Timed(sum(part.work for part in parts), left, show)
    with timed.signals():
        for part in parts:
            try:
                _make(part, timed, crew, places)
                _execute(root, part.chapter, scale, results)
                say(f"{part.chapter} is done")
            except Stopped:
                timed.close()
                raise
            except SaddlebookError as error:
                say(f"{part.chapter}: {error}")
                troubles.append(error)
    timed.close()
    if troubles:
        raise troubles[0]
    return build(root, scale=scale, results=results)


def _measured(
    parts: Sequence[Part],
    seconds: float,
    show: bool,
    say: Say,
    crew: Sequence[str],
    places: dict[str, Any],
) -> float:
    """Passes over one image a second, in the first runs' first minute (it counts)."""
    todo = [e for part in parts for e in part.todo]
    if not todo:
        return 0.0
    say(f"measuring for {seconds:.0f} s how fast the first of {len(todo)} runs go …")
    timed = _Timed(progress.total(todo), seconds, show, patience=4 * seconds)
    try:
        with timed.signals():
            workers.share(todo, crew, watcher=timed, **places)
    except Stopped:
        if timed.signal:
            raise
    finally:
        timed.close()
    return timed.rate


def _make(
    part: Part, timed: _Timed, crew: Sequence[str], places: dict[str, Any]
) -> None:
    if timed.stopped():
        raise Stopped(f"time is up before {part.chapter}; the same command continues")
    if part.todo:
        workers.share(part.todo, crew, watcher=timed, **places)


def _execute(root: Path, chapter: str, scale: str, results: str) -> None:
    given = {"scale": scale, "results": str(Path(results).resolve())}
    output = root / "_build" / "executed" / f"{chapter}.ipynb"
    notebooks.execute(root / "book" / f"{chapter}.py", output, given, root=root)
