"""Memory of long runs: a worker's over epochs, a process's over chapters and books.

Flat means: after the first fifth, the line through the resident memory rises by less
than two percent over the rest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import kills
import numpy as np
import psutil
import small

Row = dict[str, Any]
_FLAT = 0.02


def long_runs(whole: bool) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Rows to make; books only where there is time for the whole of it."""
    yield "epochs of a worker", lambda: _flat("epochs", 500)
    yield "chapters in a process", lambda: _flat("chapters", 50 if whole else 10)
    if whole:
        yield "books in a process", lambda: _flat("books", 20)


def _flat(what: str, count: int) -> Row:
    with kills.folder() as here:
        process = kills.started(("memory", what, str(count)), here)
        process.join()
        assert process.exitcode == 0, kills.said(here)
        sizes = np.array(json.loads((here / "memory.json").read_text()))
    late = np.arange(len(sizes)) >= len(sizes) // 5
    slope = np.polyfit(np.flatnonzero(late), sizes[late], 1)[0]
    rise = slope * late.sum() / sizes[late].mean()
    return {
        "tried": count, "survived": count if rise < _FLAT else 0,
        "megabytes": round(float(sizes[-1]) / 2**20, 1),
        "bytes_each": round(float(slope)), "rise_percent": round(100 * float(rise), 2),
    }  # fmt: skip


def _memory(words: list[str]) -> int:
    """In a process of its own: do it again and again, and note the memory."""
    what, count = words
    sizes: list[int] = []
    _DO[what](int(count), lambda: sizes.append(psutil.Process().memory_info().rss))
    Path("memory.json").write_text(json.dumps(sizes))
    return 0


class _Follower:
    def __init__(self, note: Callable[[], None]) -> None:
        self._note = note

    def stopped(self) -> bool:
        return False

    def measuring(self, *told: Any) -> None:
        pass

    def epoch_done(self, *told: Any) -> None:
        self._note()


def _epochs(count: int, note: Callable[[], None]) -> None:
    from saddlebook import runner

    exp = replace(
        small.TINY, epochs=count, drw_epoch=count // 2, **small.PAPER["sam"][0]
    )
    runner.run(exp, results="results", watcher=_Follower(note))


def _chapters(count: int, note: Callable[[], None]) -> None:
    from saddlebook.book import notebooks

    page = small.checkout(Path())
    small.main(["run", "few", "--scale", "full", "--quiet"])
    for _ in range(count):
        notebooks.execute(page, Path("out.ipynb"), {"scale": "full"}, root=os.getcwd())
        note()


def _books(count: int, note: Callable[[], None]) -> None:
    from saddlebook import book

    small.checkout(Path())
    small.main(["run", "few", "--scale", "full", "--quiet"])
    for _ in range(count):
        book.build(scale="full")
        note()


_DO = {"epochs": _epochs, "chapters": _chapters, "books": _books}
kills.PROGRAMS["memory"] = _memory
