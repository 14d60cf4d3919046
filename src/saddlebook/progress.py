"""Who follows a training at the command line: a bar, and the request to stop."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from saddlebook.experiment import Experiment


class Progress:
    """A progress bar over the epochs of all runs, and the request to stop.

    Args:
        total: Epochs of all runs, or other units of work.
        show: Draw the bar.
        unit: Name of what is counted.
    """

    def __init__(self, total: int, show: bool = True, unit: str = "epoch") -> None:
        self._stop = threading.Event()
        self.signal = 0
        self._bar = _bar(total, unit) if show else None

    def stop(self) -> None:
        """Ask for a stop after the current step; asking twice changes nothing."""
        self._stop.set()

    def stopped(self) -> bool:
        """Whether a stop was asked for."""
        return self._stop.is_set()

    def epoch_done(self, experiment: Experiment, row: dict[str, Any]) -> None:
        """Move on by one epoch and show the newest loss."""
        if self._bar is None:
            return
        name = f"{experiment.method} seed {experiment.seed}"
        self._bar.set_description(name, refresh=False)
        self._bar.set_postfix_str(f"loss {row['train_loss']:.3f}", refresh=False)
        self._bar.update()

    def at(self, done: int, text: str) -> None:
        """Move to ``done`` units in all, and say what is under way."""
        if self._bar is not None:
            self._bar.set_description(text, refresh=False)
            self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Leave the bar as it is and free the line."""
        if self._bar is not None:
            self._bar.close()

    @contextmanager
    def signals(self) -> Iterator[None]:
        """While the block runs, SIGTERM and the first Ctrl-C ask for a stop.

        The second Ctrl-C ends at once; at most one checkpoint interval is lost.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: Any) -> None:
            if number == signal.SIGINT and self.stopped():
                raise KeyboardInterrupt
            self.signal = number
            self.stop()

        before = {n: signal.signal(n, ask) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _bar(total: int, unit: str) -> Any:
    """A bar, or None where tqdm is not installed: it is a comfort, no need."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return None
    return tqdm(total=total, unit=unit, file=sys.stderr, mininterval=1)
