"""What the machine can do to a run besides a kill: each told in a line, nothing lost.

Full disks, writes that fail, folders that cannot be written, files that shrink while
they are read, clocks that jump, rivals, workers that hang. After the hurdle is gone the
same command must end with the records of a run that met none.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import damage
import kills
import psutil

Row = dict[str, Any]
Case = Callable[[], bool]
_RUN = kills.COMMANDS["training, SGD"].words
_BOTH = kills.COMMANDS["training by two workers"].words
_BOOK = kills.COMMANDS["book"]
_CHAPTER = kills.COMMANDS["papermill train=True"]


def hurdles(seed: int, whole: bool) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Rows to make, by what they try; every write only where there is time for it."""
    places = range(1, 21) if whole else (1, 2, 3, 5, 8, 13)
    yield "full disk", lambda: _row(lambda s=s: full_disk(s) for s in _SIZES)
    yield (
        "a write fails",
        lambda: _row(
            lambda n=n, k=k: write_fails(n, k) for n in _ERRORS for k in places
        ),
    )
    yield (
        "read-only folder",
        lambda: _row(lambda n=n, w=w: read_only(n, w) for n, w in _READ_ONLY),
    )
    yield (
        "a file shrinks",
        lambda: _row(
            lambda k=k: shrinks(k, seed) for k in damage.KINDS if k != "image"
        ),
    )
    yield "clock jumps", lambda: _row(lambda t=t: clock(t) for t in (0, 4e9, None))
    yield "a worker hangs", lambda: _row([lambda: hangs(True), lambda: hangs(False)])


def rivals() -> Iterator[tuple[str, Callable[[], Row]]]:
    """Two at once on what one can hold."""
    yield "two on one run", lambda: _row(lambda: both(_RUN) for _ in range(3))
    yield "two on one book", lambda: _row([lambda: both(_BOOK.words, _BOOK)])
    yield "two on one chapter", lambda: _row([lambda: chapters(2)])


def again() -> Iterator[tuple[str, Callable[[], Row]]]:
    """Nothing happens: the same command in another folder, to the same bits."""
    words = [
        c.words for c in kills.COMMANDS.values() if c.words[:2] == ("small", "run")
    ]
    yield "the same again", lambda: _row(lambda w=w: same(w) for w in words)


def _row(cases: Any) -> Row:
    found = [bool(case()) for case in cases]
    lost = [place for place, well in enumerate(found) if not well]
    return {"tried": len(found), "survived": sum(found), "lost_at": lost}


_truths: dict[tuple[str, ...], Any] = {}


def _truth(words: tuple[str, ...], command: kills.Command | None = None) -> Any:
    """Records of a command that met no hurdle."""
    if words not in _truths:
        with kills.ground(command or kills.Command(words)) as here:
            assert _ended(words, here) == 0, kills.said(here)
            _truths[words] = kills.results(here)
    return _truths[words]


def _ended(words: tuple[str, ...], here: Path) -> int:
    process = kills.started(words, here)
    process.join()
    return int(process.exitcode)


def _one_line(here: Path) -> bool:
    lines = [line for line in kills.said(here) if line.startswith("saddlebook: ")]
    return len(lines) == 1 and not any("Traceback" in line for line in kills.said(here))


def _goes_on(words: tuple[str, ...], here: Path) -> bool:
    """With the hurdle gone the same command ends as if there had been none."""
    return _ended(words, here) == 0 and kills.results(here) == _truth(words)


_SIZES = (4, 8, 16, 32, 64, 100, 150, 220, 300, 420)  # KiB of the whole disk


def full_disk(size: int) -> bool:
    """A file system of ``size`` KiB; without the right to mount, files of that size."""
    if os.geteuid():
        return _refused(("limited", str(size), *_RUN), {7})
    with _mounted(f"size={size}k") as here:
        code = _ended(_RUN, here)
        told = code == 0 or (code in (6, 7) and _one_line(here))
        _mount(here, "remount,size=64m")
        return told and not kills.torn_files(here) and _goes_on(_RUN, here)


def _refused(words: tuple[str, ...], codes: set[int]) -> bool:
    with kills.folder() as here:
        code = _ended(words, here)
        told = code == 0 or (code in codes and _one_line(here))
        return told and not kills.torn_files(here) and _goes_on(_RUN, here)


@contextmanager
def _mounted(options: str) -> Iterator[Path]:
    with kills.folder() as here:
        _mount(here, options)
        try:
            yield here
        finally:
            subprocess.run(["umount", "--lazy", str(here)], check=True)


def _mount(here: Path, options: str) -> None:
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(here)]
    subprocess.run(words, check=True)


_ERRORS = ("ENOSPC", "EIO", "EACCES")


def write_fails(name: str, place: int) -> bool:
    """The ``place``-th opening for writing, or renaming, fails."""
    return _refused(("failing", name, str(place), *_RUN), {6, 7})


def _failing(words: list[str]) -> Any:
    name, place, program, *rest = words
    left = [int(place)]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event in ("os.rename", "os.link") or (
            event == "open" and isinstance(arguments[2], int)
            and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )  # fmt: skip
        if writes and not str(arguments[0]).startswith(("/proc", "/dev", "/sys")):
            if str(arguments[0]).endswith(".epochs"):
                return
            left[0] -= 1
            if left[0] == 0:
                raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))

    sys.addaudithook(hook)
    return kills.PROGRAMS[program](rest)


def _limited(words: list[str]) -> Any:
    import resource

    size, program, *rest = words
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size) * 1024, -1))
    return kills.PROGRAMS[program](rest)


def _backwards(words: list[str]) -> Any:
    ahead = iter(range(10**9))
    time.time = lambda: 2e9 - 3600 * next(ahead)
    return kills.PROGRAMS[words[0]](words[1:])


kills.PROGRAMS |= {"failing": _failing, "limited": _limited, "backwards": _backwards}
_READ_ONLY = (
    ("results", _RUN), (".saddlebook", _RUN), ("results/full", _RUN), ("_build", _BOOK)
)  # fmt: skip


def read_only(name: str, what: Any) -> bool:
    """A folder that nobody may write to."""
    command = what if isinstance(what, kills.Command) else kills.Command(what)
    with kills.ground(command) as here:
        shut = here / name
        shut.mkdir(parents=True, exist_ok=True)
        if os.geteuid():
            shut.chmod(0o500)
        else:
            _mount(shut, "ro")
        try:
            well = _ended(command.words, here) == 6 and _one_line(here)
        finally:
            if os.geteuid():
                shut.chmod(0o700)
            else:
                subprocess.run(["umount", str(shut)], check=True)
        return well and _ended(command.words, here) == 0


def shrinks(what: str, seed: int, reads: int = 20) -> bool:
    """A file that is cut and restored all the time: its content, or one line."""
    dice, over = random.Random(f"{seed} {what}"), threading.Event()
    with tempfile.TemporaryDirectory() as name:
        path, read = damage._laid(what, Path(name))
        whole, truth = path.read_bytes(), read()

        def cut() -> None:
            while not over.wait(dice.random() / 1000):
                with path.open("r+b") as file:
                    file.truncate(dice.randrange(len(whole)))
                    file.seek(0)
                    file.write(whole)

        thread = threading.Thread(target=cut)
        thread.start()
        try:
            return all(damage._named_or_same(read, truth) for _ in range(reads))
        finally:
            over.set()
            thread.join()


def clock(when: float | None) -> bool:
    """Files of another time than now; None: a clock that goes back at every look."""
    if when is None:
        with kills.folder() as here:
            same = _ended(("backwards", *_RUN), here) == 0
            return same and kills.results(here) == _truth(_RUN)
    with kills.folder() as here:
        process, _ = kills.begun(kills.Command(_RUN), here)
        kills.kill(process, "all")
        for path in here.rglob("*"):
            os.utime(path, (when, when))
        return _goes_on(_RUN, here)


def both(words: tuple[str, ...], command: kills.Command | None = None) -> bool:
    """Two at once: one is told in a line, or both; together they leave all of it."""
    with kills.ground(command or kills.Command(words)) as here:
        pair = [kills.started(words, here) for _ in range(2)]
        for process in pair:
            process.join()
        codes = {process.exitcode for process in pair}
        told = not any("Traceback" in line for line in kills.said(here))
        well = codes <= {0, 8} and told and not kills.torn_files(here)
        return well and _ended(words, here) == 0


def chapters(count: int) -> bool:
    """Papermills on one chapter that trains: each shows all of it in the end."""
    words = _CHAPTER.words
    with kills.ground(_CHAPTER) as here:
        all_ = [
            kills.started((*words[:2], f"out{n}.ipynb", *words[3:]), here)
            for n in range(count)
        ]
        for process in all_:
            process.join()
        same = kills.results(here) == _truth(words, _CHAPTER)
        return same and [process.exitcode for process in all_] == [0] * count


def same(words: tuple[str, ...]) -> bool:
    """The same records, once more."""
    with kills.folder() as here:
        return _goes_on(words, here)


def hangs(wakes: bool) -> bool:
    """A worker that is stopped and wakes, or does not and is asked to end."""
    command = kills.Command(_BOTH, ".saddlebook/*.lock")
    with kills.ground(command) as here:
        process, _ = kills.begun(command, here)
        worker = _workers(process.pid)[-1]
        with suppress(psutil.NoSuchProcess):
            worker.suspend()
            time.sleep(1)
            if wakes:
                worker.resume()
        if not wakes:
            os.kill(process.pid, signal.SIGTERM)
        process.join(120)
        if process.exitcode is None:
            kills.kill(process, "all")
            return False
        code = process.exitcode
        return code in ((0,) if wakes else (0, 75)) and _goes_on(_BOTH, here)


def _workers(pid: int) -> list[psutil.Process]:
    """Of a command's children those that train; git, too, is one for a moment."""
    found = []
    for one in psutil.Process(pid).children():
        with suppress(psutil.NoSuchProcess):
            found += [one] if "spawn_main" in " ".join(one.cmdline()) else []
    return found
