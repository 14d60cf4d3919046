"""One bar over all the work of some runs, and the request to stop them."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from saddlebook import effort
from saddlebook.experiment import Experiment


class Progress:
    """A progress bar and the request to stop.

    Args:
        total: Units of work in all.
        show: Draw the bar.
        unit: Name of what is counted; none: only the share of the whole is shown.
        file: Where to draw; None: stderr.
    """

    def __init__(
        self,
        total: float,
        show: bool = True,
        unit: str = "",
        file: TextIO | None = None,
    ) -> None:
        self._stop = threading.Event()
        self.signal = 0
        self._bar: Any = _bar(total, unit, file or sys.stderr) if show else None
        self._parts: dict[tuple[str, str], float] = {}

    @classmethod
    def over(cls, experiments: Sequence[Experiment], **options: Any) -> Progress:
        """Of the training and measuring of these runs."""
        return cls(effort.total(experiments), **options)

    def stop(self) -> None:
        """Ask for a stop after the current step; asking twice changes nothing."""
        self._stop.set()

    def stopped(self) -> bool:
        """Whether a stop was asked for."""
        return self._stop.is_set()

    def epoch_done(self, experiment: Experiment, row: dict[str, Any]) -> None:
        """Move on by one epoch and show the newest loss."""
        if self._bar is not None:
            share, step = row["epoch"] / experiment.epochs, 1 / experiment.epochs
            told = f"epoch {row['epoch']}, loss {row['train_loss']:.3f}"
            work = effort.training(experiment)
            self._reach("train", experiment.training, share * work, step * work, told)

    def measuring(
        self, experiment: Experiment, done: float, total: float, what: str
    ) -> None:
        """Move to the share ``done / total`` of a run's spectra."""
        if self._bar is not None and total:
            before = effort.training(experiment)
            self._reach("train", experiment.training, before, 0, what)
            work = effort.measuring(experiment) * done / total
            self._reach("measure", experiment, work, work, what)

    def _reach(
        self, what: str, run: Experiment, work: float, step: float, told: str
    ) -> None:
        """Count ``work`` of a run as done, all but ``step`` of it from before."""
        key, bar = (what, run.key), self._bar
        assert bar is not None
        if key not in self._parts:
            self._parts[key] = work - step
            bar.n += work - step
            bar.initial += work - step  # not in the rate, which gives the time left
        bar.set_description(f"{run.method} seed {run.seed}", refresh=False)
        bar.set_postfix_str(told, refresh=False)
        bar.update(work - self._parts[key])
        self._parts[key] = work

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


_SHARE = "{desc}{percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}{postfix}"


def _bar(total: float, unit: str, file: TextIO) -> Any:
    """A bar, or None where tqdm is not installed: it is a comfort, no need."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    form = {"unit": unit} if unit else {"bar_format": _SHARE}
    return tqdm(total=total, file=file, mininterval=1, smoothing=0, **form)
