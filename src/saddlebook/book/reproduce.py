"""Makes the book: ``build`` its pages, or ``reproduce`` the records behind them first.

``build`` runs the chapters, then Jupyter Book; any warning is an error, and the build
itself runs no code and no network. ``reproduce`` is the whole paper in one command: a
plan, then every chapter's evidence, then the book. Runs are made in the order in which
chapters need them, most telling chapter first; what two chapters share is trained once.
How one chapter is run is in ``notebooks``.
"""

from __future__ import annotations

import html.parser
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saddlebook import runner, studies, workers
from saddlebook.book.notebooks import (
    SCALES,
    entries,
    execute,
    execute_all,
    sentinel,
    tidy,
)
from saddlebook.book.sheets import OTHERS
from saddlebook.disk.files import locked, write_whole
from saddlebook.errors import SaddlebookError, Stopped, UsageError, VerifyError, one_of
from saddlebook.experiment import Experiment
from saddlebook.runner import Progress
from saddlebook.store import find_records

# What each chapter reads, in order of value; the others read parts of these
NEEDS = {
    "ch07_table": ("table1", "control", "table1_cifar100", "control_cifar100"),
    "ch06_dynamics": ("dynamics",),
    "ch05_spectra": ("dynamics",),
    "ch11_as_published": (
        "dynamics", "table1", "bn_statistics", "views", "mixed_batches",
    ),
    "ch08_rho": ("rho_ablation", "curvature"),
    "ch09_rivals": (
        "table1", "rho_ablation", "weight_decay", "tuning", "sam_timing",
        "bn_statistics", "optimizers", "wider_decay", "wider_tuning",
        "tuning_cifar100", "table1_cifar100", "control_cifar100",
    ),
    "ch10_what_explains_the_gain": (
        "weight_decay", "optimizers", "sam_timing", "rho_ablation", "dynamics",
        "curvature", "one_curve", "two_more_knobs", "adaptive", "head_images", "edge",
    ),
}  # fmt: skip
_SOURCES = ("_config.yml", "_toc.yml", "CITATION.cff")
_MINUTE = 60.0
_TELLING = 1.1  # times the hours on free cores: then these are told, too
Say = Callable[[str], None]


def build(
    root: str | os.PathLike[str] = ".",
    *,
    scale: str = "lite",
    results: str = "results",
    device: str = "cpu",
) -> Path:
    """Execute all chapters and build the book into ``_build/html``.

    The old pages are replaced only by a whole, checked new book.

    Raises:
        UsageError: ``quick``, which is never published.
        VerifyError: A chapter failed, a warning, or a page or figure is missing.
    """
    if one_of("scale", scale, SCALES) == "quick":
        raise UsageError("a quick book is no evidence; build it at lite or full scale")
    root = Path(root).resolve()
    final = root / "_build" / "html"
    with locked(root / "_build" / "book.lock", "the book"):
        _restore(final)
        pages = execute_all(root, scale=scale, results=results, device=device)
        stage = _stage(root, pages, Path(results))
        made = _sphinx(root, stage)
        check_pages(made, entries(root))
        _publish(made, final)
    return final


def _publish(made: Path, final: Path) -> None:
    """Put new pages in the place of the old ones; never a part of either.

    A kill between the two renames leaves the old ones beside, see ``_restore``.
    """
    old = final.with_name("old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.replace(old)
    made.replace(final)
    shutil.rmtree(old, ignore_errors=True)


def _restore(final: Path) -> None:
    old = final.with_name("old")
    if old.exists() and not final.exists():
        old.replace(final)


def _stage(root: Path, pages: Mapping[str, Any], results: Path) -> Path:
    """Lay out what Jupyter Book reads: settings, text, executed notebooks, records."""
    import nbformat

    stage = root / "_build" / "src"
    shutil.rmtree(stage, ignore_errors=True)
    shutil.copytree(
        root / "book", stage / "book", ignore=shutil.ignore_patterns("*.py")
    )
    for name in _SOURCES:
        shutil.copy2(root / name, stage / name)
    for pattern in OTHERS.values():
        for path in (root / results).glob(pattern):
            place = stage / "book/_static/results" / path.relative_to(root / results)
            write_whole(place, path.read_bytes())
    for stem, notebook in pages.items():
        _copy_records(notebook, root / results, stage / "book/_static/results")
        text = nbformat.writes(tidy(notebook, stem))
        write_whole(stage / "book" / f"{stem}.ipynb", text.encode())
    return stage


def _copy_records(notebook: Any, results: Path, target: Path) -> None:
    """Put the records a page shows beside it, so that its footer's links lead there."""
    mark = sentinel(notebook.cells[-1].outputs) or {}
    for slug, scale in mark.get("records", {}).items():
        source = results / scale / f"{slug}.json"
        (target / scale).mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target / scale / source.name)


def _sphinx(root: Path, stage: Path) -> Path:
    """Build the staged book; any warning is an error."""
    target = root / "_build" / "new"
    shutil.rmtree(target, ignore_errors=True)
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(stage)]
    command += ["--path-output", str(target), "-n", "-W", "--keep-going", "--all"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    said = done.stdout + done.stderr
    log = write_whole(root / "_build/book.log", said.encode())
    if done.returncode:
        lines = [line for line in said.splitlines() if line.strip()]
        loud = [line for line in lines if "WARNING" in line or "ERROR" in line]
        why = "\n".join(loud[:20] or lines[-5:])
        raise VerifyError(f"the book did not build; log: {log}\n{why}")
    return target / "_build" / "html"


class _Links(html.parser.HTMLParser):
    """Collects what a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(
        self, tag: str, attrs: Iterable[tuple[str, str | None]]
    ) -> None:
        values = dict(attrs)
        if tag in {"script", "img", "iframe", "source"} and values.get("src"):
            self.loaded.append(str(values["src"]))
        relation = str(values.get("rel"))
        if tag == "link" and ("stylesheet" in relation or "preload" in relation):
            self.loaded.append(str(values.get("href")))


def check_pages(folder: Path, entries: Iterable[str]) -> None:
    """Check that every page is there and loads only whole files that lie beside it.

    Raises:
        VerifyError: Lists every fault.
    """
    faults = []
    for entry in entries:
        page = folder / f"{entry}.html"
        if not page.exists() or page.stat().st_size < 1000:
            faults.append(f"page {entry} is missing or empty")
            continue
        links = _Links()
        links.feed(page.read_text())
        faults += [f"{entry}: {why}" for why in _load_faults(page, links.loaded)]
    if faults:
        raise VerifyError("\n".join(faults))


def _load_faults(page: Path, loaded: Iterable[str]) -> list[str]:
    faults = []
    for link in loaded:
        if re.match(r"(https?:)?//", link):
            faults.append(f"loads {link} from the network")
        elif not link.startswith("data:"):
            file = page.parent / link.split("?")[0].split("#")[0]
            if not file.is_file() or not file.stat().st_size:
                faults.append(f"{link} is missing or empty")
    return faults


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
        work = runner.total_work([*before, *todo]) - runner.total_work(before)
        before |= dict.fromkeys(todo)
        here = len(found.records)
        parts.append(Part(chapter, here + len(found.missing), here, todo, work))
    return parts


@dataclass(frozen=True)
class Pace:
    """How fast the work goes.

    Attributes:
        rate: Passes over one image a second, by all workers, on the machine as busy as
            it is; 0: not measured.
        share: Seconds of its core that a worker got in a second.
    """

    rate: float = 0.0
    share: float = 1.0


def told_plan(parts: Sequence[Part], pace: Pace) -> Iterator[str]:
    """The plan as lines, with hours on free cores where those are plainly fewer."""
    rates = {"hours, as busy as now": pace.rate}
    if pace.share * _TELLING < 1:
        rates["on free cores"] = pace.rate / pace.share
    width = max(len(part.chapter) for part in parts) + 1

    def line(name: str, counts: str, work: float) -> str:
        told = (
            f"{_hours(work, rate):>{len(head) + 2}}" for head, rate in rates.items()
        )
        return f"{name:{width}}{counts}{''.join(told)}"

    heads = "".join(f"  {head}" for head in rates)
    yield f"{'chapter':{width}}{'runs':>6}{'here':>6}{'to do':>7}{heads}"
    for part in parts:
        counts = f"{part.runs:6}{part.here:6}{len(part.todo):7}"
        yield line(part.chapter, counts, part.work)
    todo, work = sum(len(p.todo) for p in parts), sum(p.work for p in parts)
    yield line("together", f"{'':12}{todo:7}", work)


def _hours(work: float, rate: float) -> str:
    return f"{work / rate / 3600:.2f}" if rate else "?"


class _Timed(Progress):
    """Stops when time is up, and knows how fast a worker is."""

    def __init__(
        self, total: float, limit: float, show: bool, patience: float = 0
    ) -> None:
        super().__init__(total, show=show)
        self._deadline = time.monotonic() + limit
        self._patience = patience  # seconds more while nothing is known of the rate
        self._wall = self._cpu = 0.0  # seconds, of all workers' epochs
        self.pace = Pace()  # of one worker

    def stopped(self) -> bool:
        late = time.monotonic() - self._deadline
        return late > (0 if self.pace.rate else self._patience) or super().stopped()

    def epoch_done(self, experiment: Experiment, row: dict[str, Any]) -> None:
        super().epoch_done(experiment, row)
        self._wall += row["wall"]
        self._cpu += row["cpu"]
        self.pace = Pace(self.worked / self._wall, min(1.0, self._cpu / self._wall))


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
    pace = _measured(parts, minute, show, say, crew, places)
    parts = plan(scale, results)
    for line in told_plan(parts, pace):
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
) -> Pace:
    """How fast it goes in the first runs' first minute, which counts."""
    todo = [e for part in parts for e in part.todo]
    if not todo:
        return Pace()
    say(f"measuring for {seconds:.0f} s how fast the first of {len(todo)} runs go …")
    timed = _Timed(runner.total_work(todo), seconds, show, patience=4 * seconds)
    try:
        with timed.signals():
            workers.share(todo, crew, watcher=timed, **places)
    except Stopped:
        if timed.signal:
            raise
    finally:
        timed.close()
    one, size = timed.pace, min(len(crew), len(todo))
    # a processor that waits for its GPU is not one that others keep busy
    return Pace(one.rate * size, one.share if crew[0] == "cpu" else 1.0)


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
    execute(root / "book" / f"{chapter}.py", output, given, root=root)
