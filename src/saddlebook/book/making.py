"""What a chapter does that was told to train: runs made while the reader watches."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saddlebook.experiment import Experiment


def make(
    experiments: Sequence[Experiment],
    results: Path,
    *,
    data_root: str | None,
    device: str,
    workers: int,
) -> None:
    """Train, measure and store runs in processes of their own, under one bar.

    The kernel only watches: should it die, its workers die with it, and the same
    chapter goes on from their checkpoints, which lie beside ``results``.

    Args:
        experiments: Without a record, of one scale.
        results: Folder of stores.
        data_root: Folder with CIFAR; None: the cache folder.
        device: As ``workers.devices`` takes it.
        workers: Processes on the CPU.

    Raises:
        SaddlebookError: What a run met; what is finished is kept.
    """
    from saddlebook import workers as crew
    from saddlebook.progress import Progress
    from saddlebook.runner import WORK

    devices = crew.devices(device, workers)
    board = Board()
    board.say(f"{len(experiments)} runs to make at {experiments[0].scale} scale")
    progress = Progress.over(experiments, file=board)
    try:
        crew.share(
            experiments,
            devices,
            results=results,
            work=results.parent / WORK,
            data_root=data_root,
            watcher=progress,
            note=board.say,
        )
    finally:
        progress.close()
    board.say(f"{len(experiments)} runs made")


class Board(io.TextIOBase):
    """A file for a bar: one place in a notebook, and few plain lines for a log.

    A notebook in a browser shows the place. Where none is (papermill), each line is
    printed whose time has come: half a minute after the last, later less often.
    """

    encoding = "utf-8"

    def __init__(self) -> None:
        from IPython.display import display

        self._plain = "JPY_SESSION_NAME" not in os.environ  # set by Jupyter's server
        self._began = self._printed = time.monotonic()
        self._place: Any = display(self._shown(""), raw=True, display_id=True)

    def _shown(self, text: str) -> dict[str, str]:
        return {"text/plain": text}

    def write(self, text: str) -> int:
        """Take what a bar draws; carriage returns and empty lines say nothing."""
        if line := text.strip("\r\n \x1b[A"):
            self._place.update(self._shown(line), raw=True)
            now = time.monotonic()
            wait = max(30, (now - self._began) / 50)
            if self._plain and now - self._printed > wait:
                self.say(line)
        return len(text)

    def say(self, line: str) -> None:
        """Print a line at once."""
        self._printed = time.monotonic()
        print(line, flush=True)
