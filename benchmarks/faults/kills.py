"""Commands killed at random moments again and again, then left to end.

Afterwards every record must equal that of a run nobody killed, every file must be
whole, and of training no more may be lost than one checkpoint interval.
"""

from __future__ import annotations

import os
import random
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import small

from saddlebook import book
from saddlebook.book import notebooks
from saddlebook.disk.files import read_checkpoint
from saddlebook.errors import SaddlebookError
from saddlebook.store import Store

TOOLS = small.ROOT / "benchmarks/gpu"
sys.path.append(str(TOOLS))
import bundle  # noqa: E402

Row = dict[str, Any]
_FULL = ("--scale", "full", "--quiet")
_CHAIN = 5  # kills of one folder before the command may end
SNAKEMAKE = small.ROOT / ".venv-workflow/bin/snakemake"  # make sets it up
HAS_SNAKEMAKE = (small.ROOT / ".venv-workflow/.ready").exists()
# A word of the command lines of processes that can be killed alone
_ALONE = {"kernel": "ipykernel_launcher", "job": "saddlebook"}


@dataclass(frozen=True)
class Command:
    """What is killed.

    Attributes:
        words: A program of ``PROGRAMS`` and its words.
        mark: Glob of a file that shows that the work has begun.
        victim: ``all`` processes, the one that was started (``parent``), or the
            ``kernel`` or ``job`` that it started.
        before: Programs and words that lay the ground.
    """

    words: tuple[str, ...]
    mark: str = ".saddlebook/*/*"
    victim: str = "all"
    before: tuple[tuple[str, ...], ...] = ()


def _small(*words: str, **more: Any) -> Command:
    return Command(("small", *words, *_FULL), **more)


_CHECKOUT, _RECORDS = ("checkout",), ("small", "run", "few", *_FULL)
_PAGES = ("small", "book", "--scale", "full")
_CHAPTER = ("papermill", "in.ipynb", "out.ipynb", "--no-progress-bar")
_CHAPTER += ("-p", "scale", "full", "-p", "train", "True")
_SEND = ("gpu", "send.py", "control", "--scale", "quick", "--seeds", "0")
_GPU = ("gpu", "run.py", "--out", "out", "--device", "cpu", "--every", "0.1")
_MARK = ".saddlebook/*.lock"
COMMANDS = {
    "training, SGD": _small("run", "sgd"),
    "training, SAM": _small("run", "sam"),
    "training side by side": _small("run", "both", "--group", "4"),
    "training by two workers": _small("run", "both", "--workers", "2", mark=_MARK),
    "measuring": _small("run", "spectra", mark=".saddlebook/*/spectra.json"),
    "storing": _small("run", "many", mark="results/full/*"),
    "GPU bundle": Command(_GPU, before=(_SEND,)),
    "papermill train=True": Command(_CHAPTER, _MARK, before=(_CHECKOUT,)),
    "papermill alone": Command(_CHAPTER, _MARK, "parent", (_CHECKOUT,)),
    "kernel alone": Command(_CHAPTER, _MARK, "kernel", (_CHECKOUT,)),
    "reproduce": _small("reproduce", mark=_MARK, before=(_CHECKOUT,)),
    "book": Command(_PAGES, "_build/*", before=(_CHECKOUT, _RECORDS)),
    "Snakemake": Command(
        ("snakemake", "machine", "control", "0,1,2", "--quiet", "all"),
        "_build/workflow/quick/*",
        before=(_CHECKOUT,),
    ),
}


def kills(count: int, seed: int) -> Iterator[tuple[str, Callable]]:
    """As many kills as asked for, shared out among the commands, each a row."""
    known = [what for what in COMMANDS if HAS_SNAKEMAKE or what != "Snakemake"]
    # those that start a kernel take ten times as long: half as many
    weights = [1 if _CHECKOUT in COMMANDS[what].before else 2 for what in known]
    for place, what in enumerate(known):
        before, now = sum(weights[:place]), sum(weights[: place + 1])
        share = count * now // sum(weights) - count * before // sum(weights)
        if share:
            yield what, lambda what=what, share=share: killed(what, share, seed)


def killed(what: str, count: int, seed: int) -> Row:
    """A row of the table: one command, killed ``count`` times."""
    command, dice = COMMANDS[what], random.Random(f"{seed} {what}")
    row = {"tried": 0, "survived": 0, "torn": 0, "wrong": 0, "stuck": 0}
    row |= {"repeated": 0, "late": 0}
    with ground(command) as here:
        process, began = begun(command, here)
        process.join()
        seconds, truth = time.monotonic() - began, results(here)
        files = pages(here)
    while row["tried"] < count:
        with ground(command) as here:
            most = min(_CHAIN, count - row["tried"])
            _chain(command, here, seconds, most, row, dice)
            row["wrong"] += results(here) != truth or not truth
            row["torn"] += pages(here) != files
    lost = row["torn"] + row["wrong"] + row["stuck"] + row["late"]
    row["survived"] = row["tried"] - min(lost, row["tried"])
    return row


def _chain(
    command: Command, here: Path, seconds: float, most: int, row: Row,
    dice: random.Random,
) -> None:  # fmt: skip
    """Kill the same command again and again, then let it end."""
    ends = []
    for _ in range(most):
        process, began = begun(command, here)
        process.join(max(0, began + dice.random() * seconds - time.monotonic()))
        if process.exitcode is not None:  # it was done before
            break
        kill(process, command.victim)
        ends.append(time.monotonic())
        row["tried"] += 1
        row["torn"] += torn_files(here)
    process = started(command.words, here)
    process.join()
    row["stuck"] += process.exitcode != 0
    repeated, late = _lost(here.with_suffix(".epochs"), ends)
    row["repeated"] += repeated
    row["late"] += late


def kill(process: Any, victim: str) -> None:
    """SIGKILL; whoever of the family should live on does."""
    family = [process]
    with suppress(psutil.NoSuchProcess):
        family += psutil.Process(process.pid).children(recursive=True)
    if victim == "parent":
        family = family[:1]
    elif victim in _ALONE:
        family = [p for p in family[1:] if _has(p, _ALONE[victim])]
    for one in family:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.join()


def _has(process: psutil.Process, word: str) -> bool:
    with suppress(psutil.NoSuchProcess):
        return word in process.cmdline()
    return False


@contextmanager
def ground(command: Command) -> Iterator[Path]:
    """A folder in which the command can begin."""
    with folder() as here:
        for words in command.before:
            process = started(words, here)
            process.join()
            assert process.exitcode == 0, (words, said(here))
        yield here


@contextmanager
def folder() -> Iterator[Path]:
    """A folder; what is said in it and the log of epochs lie beside it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        (Path(name) / "here").mkdir()
        yield Path(name) / "here"


def said(here: Path) -> list[str]:
    """Lines of all commands of a folder, stdout and stderr."""
    return here.with_suffix(".said").read_text().strip().splitlines()


def begun(command: Command, here: Path) -> tuple[Any, float]:
    """The command at its first sign of work in this call, and when that was."""
    began, process = time.time(), started(command.words, here)
    while process.exitcode is None:
        with suppress(FileNotFoundError):
            if any(p.stat().st_mtime > began for p in here.glob(command.mark)):
                break
        process.join(0.02)
    return process, time.monotonic()


_MORE = ["hurdles", "long_runs"]  # modules that add to ``PROGRAMS``


def started(words: tuple[str, ...], here: Path) -> Any:
    """A process of its own, forked where torch is imported already."""
    context = get_context("forkserver")
    context.set_forkserver_preload(_MORE)
    process = context.Process(target=_serve, args=(words, here))
    process.start()
    return process


def _serve(words: tuple[str, ...], here: Path) -> None:
    for more in _MORE:  # the server may not find them by itself
        import_module(more)
    os.setsid()
    os.chdir(here)
    mode = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    out = os.open(here.with_suffix(".said"), mode, 0o600)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ["EPOCHS_LOG"] = str(here.with_suffix(".epochs"))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(PROGRAMS[words[0]](list(words[1:])))


def _checkout(words: list[str]) -> None:
    notebooks.export(small.checkout(Path()), Path("in.ipynb"), {"results": "results"})
    Path("workflow").symlink_to(small.ROOT / "workflow")


def _gpu(words: list[str]) -> None:
    sys.argv = words
    runpy.run_path(str(TOOLS / words[0]), run_name="__main__")


def _papermill(words: list[str]) -> None:
    from papermill.__main__ import papermill

    papermill(words)


def snakemake(profile: str, studies: str, seeds: str, *more: str) -> list[str]:
    """The command for a folder with ``workflow``; ``more``: Snakemake's own words."""
    told = {"python": sys.executable, "scale": "quick"}
    told |= {"studies": studies, "seeds": seeds}
    config = [f"{name}={value}" for name, value in told.items()]
    place = ["--profile", f"workflow/profiles/{profile}"]
    return [str(SNAKEMAKE), *place, *more, "--config", *config]


def _snakemake(words: list[str]) -> None:
    command = snakemake(*words)
    os.execv(command[0], command)


PROGRAMS: dict[str, Callable[[list[str]], Any]] = {
    "small": small.main, "checkout": _checkout, "gpu": _gpu, "papermill": _papermill,
    "snakemake": _snakemake,
}  # fmt: skip


def results(here: Path) -> dict[str, Any]:
    """What the records say, without when and where."""
    found = {}
    for folder in here.glob("results/*/"):
        for record in Store(folder).records():
            spectra = [
                {k: v for k, v in item.items() if k != "seconds"}
                for item in record.spectra
            ]
            found[record.experiment] = (record.curves, record.per_class, spectra)
    return found


def pages(here: Path) -> set[str]:
    """Names of the built book's files."""
    html = here / "_build/html"
    return {str(path.relative_to(html)) for path in html.rglob("*")}


def torn_files(here: Path) -> int:
    """Files that are there and not whole."""
    readers: dict[str, Callable[[Path], Any]] = {
        "results/*/": lambda path: Store(path).verify(),
        ".saddlebook/*/*.ckpt": read_checkpoint,
        ".saddlebook/*/*.weights": read_checkpoint,
        "out/": lambda path: list(bundle.parts(path)),
        "_build/html/": lambda path: book.check_pages(path, ["book/ch01_small"]),
    }
    torn = 0
    for pattern, read in readers.items():
        for path in here.glob(pattern):
            try:
                read(path)
            except SaddlebookError:
                torn += 1
    return torn


def _lost(log: Path, ends: list[float]) -> tuple[int, int]:
    """Epochs done twice, and those of them that a checkpoint should have held.

    A run saves at the first end of an epoch after the interval is over. So what a kill
    takes had ended at most an interval and the longest pause before the last line.
    """
    told = log.read_text() if log.exists() else ""
    lines = [line.split() for line in told.splitlines()]
    repeated = late = 0
    for begin, end in zip([0.0, *ends], ends, strict=False):
        here: dict[str, list[tuple[str, float]]] = {}
        for key, epoch, when in lines:
            if begin < float(when) <= end:
                here.setdefault(key, []).append((epoch, float(when)))
        after = {(key, epoch) for key, epoch, when in lines if float(when) > end}
        for key, told in here.items():
            times = [when for _, when in told]
            pause = max((b - a for a, b in pairwise(times)), default=0)
            again = [when for epoch, when in told if (key, epoch) in after]
            repeated += len(again)
            late += sum(times[-1] - w > small.INTERVAL + pause + 0.1 for w in again)
    return repeated, late
