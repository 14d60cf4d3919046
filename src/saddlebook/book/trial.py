"""One small training run in a thread of its own, to be watched and stopped.

Knows no widget; ``live`` puts controls on it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from saddlebook import runner
from saddlebook.errors import SaddlebookError, Stopped
from saddlebook.experiment import Experiment, at_scale

if TYPE_CHECKING:
    from saddlebook.record import Record


def setting(scale: str, *, rho: float, weight_decay: float, seed: int) -> Experiment:
    """CE+DRW with SAM at ``rho`` (in the scale's own units; 0 is SGD).

    Raises:
        UsageError: A value that is negative, not finite or not a whole seed.
    """
    base = at_scale(Experiment(reweight="drw"), scale)
    optimizer = "sgd" if rho == 0 else "sam"
    return replace(
        base, optimizer=optimizer, rho=rho, weight_decay=weight_decay, seed=seed
    )


class Trial:
    """A run in a thread of its own; it follows itself and can be stopped.

    Args:
        experiment: What to run.
        told: Called from the thread whenever something changed.
        **where: ``data_root``, ``device``, ``work``, ``results`` of ``runner.run``.

    Attributes:
        state: ``running``, ``done``, ``stopped`` or ``failed``.
        epoch: Last finished one.
        message: Where it stands, in a line.
        record: Once it is done.
        error: What stopped it otherwise.
    """

    def __init__(
        self, experiment: Experiment, told: Callable[[], None], **where: Any
    ) -> None:
        self.experiment = experiment
        self.state, self.epoch, self.message = "running", 0, "preparing the images …"
        self.record: Record | None = None
        self.error: Exception | None = None
        self._told, self._where = told, where
        self._stop = threading.Event()
        self._first: tuple[int, float] | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        """Begin, or go on where the same experiment was stopped."""
        self._thread.start()

    def stop(self) -> None:
        """Ask for a stop after this step; again, or too late, it changes nothing."""
        self._stop.set()

    def stopped(self) -> bool:
        """Whether a stop was asked for; the training asks at every step."""
        return self._stop.is_set()

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the end, or ``timeout`` seconds."""
        self._thread.join(timeout)

    def epoch_done(self, experiment: Experiment, row: dict[str, Any]) -> None:
        """Say where the run stands and how long it will take."""
        now, total = time.monotonic(), experiment.epochs
        self.epoch = row["epoch"]
        self._first = self._first or (self.epoch, now)
        epoch, then = self._first
        self.message = f"epoch {self.epoch} of {total}, loss {row['train_loss']:.3f}"
        if self.epoch > epoch:
            left = (total - self.epoch) * (now - then) / (self.epoch - epoch)
            self.message += f", {_duration(left)} left"
        self._told()

    def measuring(
        self, experiment: Experiment, done: float, total: float, what: str
    ) -> None:
        """Say which share of the spectra is measured."""
        self.message = f"measuring curvature, {100 * done / total:.0f} %"
        self._told()

    def _work(self) -> None:
        # Small networks: one thread is fastest; flags as on the command line, so that
        # a trial equals the stored run bit for bit
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        try:
            self.record = runner.run(self.experiment, watcher=self, **self._where)
            self.state, self.message = "done", _outcome(self.record)
        except Stopped as error:
            self._ended("stopped", error, "stopped; Run with the same settings goes on")
        except SaddlebookError as error:
            self._ended("failed", error, str(error))
        except Exception as error:  # readers look at the panel, not into a log
            self._ended("failed", error, f"{type(error).__name__}: {error}")
        finally:
            torch.set_flush_denormal(False)
        self._told()

    def _ended(self, state: str, error: Exception, message: str) -> None:
        self.state, self.error, self.message = state, error, message


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _outcome(record: Record) -> str:
    found = record.accuracy._asdict().items()
    told = ", ".join(f"{name} {value:.1f} %" for name, value in found)
    return f"{told}; trained in {record.timing['seconds']:.0f} s"
