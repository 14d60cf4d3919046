"""Shows one bar over all the work of some runs, and takes the request to stop them.

Work is counted in passes (forward and backward) over one image: an estimate for bars
and plans, and nothing else depends on it.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from saddlebook import data, measure
from saddlebook.experiment import Experiment

_PRODUCT = 2.5  # a Hessian product costs as much, measured on a core
_STEPS = 50  # of a spectrum, about; the released recurrence does twice as many
_TEST_IMAGES = {"cifar10": 10_000, "cifar100": 10_000, "digits": 340}


def training_work(experiment: Experiment) -> float:
    """Of all epochs and test passes."""
    exp, images = experiment, sum(_counts(experiment))
    climbing = {"all": exp.epochs, "before": exp.drw_epoch}
    extra = climbing.get(exp.sam_epochs, exp.epochs - exp.drw_epoch)
    extra *= 2 if exp.sam_classes == "tail" else 1
    passes = exp.epochs + (extra if exp.optimizer == "sam" else 0)
    tests = exp.epochs / exp.test_every
    return passes * images + tests * _TEST_IMAGES.get(exp.dataset, 0) / 3


def measuring_work(experiment: Experiment) -> float:
    """Of all spectra of its plan."""
    counts, total = _counts(experiment), 0.0
    for item in measure.spectra_plan(experiment):
        whole = sum(counts) if item["class"] is None else counts[item["class"]]
        images = min(whole, measure.limit(experiment, counts, item) or whole)
        steps = _STEPS if item["mode"] != "total" else _STEPS / 10
        total += images * steps * (1 if item["of"] == "clean" else 2)
    return _PRODUCT * total


def total(experiments: Iterable[Experiment]) -> float:
    """Of some runs; experiments of one training share it."""
    runs = list(dict.fromkeys(experiments))
    trainings = dict.fromkeys(run.training for run in runs)
    return sum(map(training_work, trainings)) + sum(map(measuring_work, runs))


def _counts(exp: Experiment) -> list[int]:
    if exp.imbalance == "as_is":  # not known before the images are read
        return [100] * max(1, exp.num_classes)
    return data.class_counts(
        exp.largest_class, exp.num_classes, exp.imbalance_factor, exp.imbalance
    )


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
        self._worked = 0.0

    @classmethod
    def over(cls, experiments: Sequence[Experiment], **options: Any) -> Progress:
        """Of the training and measuring of these runs."""
        return cls(total(experiments), **options)

    def stop(self) -> None:
        """Ask for a stop after the current step; asking twice changes nothing."""
        self._stop.set()

    def stopped(self) -> bool:
        """Whether a stop was asked for."""
        return self._stop.is_set()

    @property
    def worked(self) -> float:
        """Units done since the beginning, without what was done before."""
        return self._worked

    def epoch_done(self, experiment: Experiment, row: dict[str, Any]) -> None:
        """Move on by one epoch and show the newest loss."""
        share, step = row["epoch"] / experiment.epochs, 1 / experiment.epochs
        told = f"epoch {row['epoch']}, loss {row['train_loss']:.3f}"
        work = training_work(experiment)
        self._reach("train", experiment.training, share * work, step * work, told)

    def measuring(
        self, experiment: Experiment, done: float, total: float, what: str
    ) -> None:
        """Move to the share ``done / total`` of a run's spectra."""
        if total:
            before = training_work(experiment)
            self._reach("train", experiment.training, before, 0, what)
            work = measuring_work(experiment) * done / total
            self._reach("measure", experiment, work, work, what)

    def _reach(
        self, what: str, run: Experiment, work: float, step: float, told: str
    ) -> None:
        """Count ``work`` of a run as done, all but ``step`` of it from before."""
        key, bar = (what, run.key), self._bar
        new = key not in self._parts
        before = work - step if new else self._parts[key]
        self._parts[key] = work
        self._worked += work - before
        if bar is not None:
            bar.n += before if new else 0
            bar.initial += before if new else 0  # not in the rate, so in the time left
            bar.set_description(f"{run.method} seed {run.seed}", refresh=False)
            bar.set_postfix_str(told, refresh=False)
            bar.update(min(work - before, bar.total - bar.n))  # rounding: never over

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
