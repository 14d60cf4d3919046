"""Trains experiments epoch by epoch: the only training loop.

Takes Experiments and a Dataset, gives Outcomes. The arithmetic of a step is in
``engine.py``, what the device does unattended in ``graphs.py``, a run's schedule and
files in ``run.py``.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from saddlebook import data
from saddlebook.errors import Stopped, UsageError
from saddlebook.experiment import Experiment
from saddlebook.train.graphs import CudaGraphs, SideBySide, arithmetic
from saddlebook.train.run import Outcome as Outcome
from saddlebook.train.run import Run, prepare

# What runs trained together must share
ALIKE = (
    "dataset", "images_digest", "largest_class", "imbalance_factor", "imbalance",
    "image_size", "batch_size", "precision",
)  # fmt: skip

# Runs of one shape cost the same and differ in tensors and numbers only
_SHAPE = (*ALIKE, "model", "width", "optimizer", "epochs")


class Watcher(Protocol):
    """Who follows a training: told of every epoch, asked at every step."""

    def stopped(self) -> bool:
        """Whether to stop now, leaving a resumable state."""

    def epoch_done(self, experiment: Experiment, row: dict[str, Any]) -> None:
        """Called after each epoch with ``epoch`` and ``train_loss``, tested or not."""


def alike(experiments: Sequence[Experiment], size: int) -> list[list[Experiment]]:
    """Groups of at most ``size`` runs of equal shape, in the order of the first one.

    Experiments that share a training are put apart: the second one finds it done.
    """
    if size == 1:
        return [[experiment] for experiment in experiments]
    groups: dict[tuple[object, ...], list[Experiment]] = {}
    trained: Counter[Experiment] = Counter()
    for experiment in experiments:
        shape = [getattr(experiment, name) for name in _SHAPE]
        groups.setdefault((*shape, trained[experiment.training]), []).append(experiment)
        trained[experiment.training] += 1
    return [
        group[start : start + size]
        for group in groups.values()
        for start in range(0, len(group), size)
    ]


def train(
    experiments: Sequence[Experiment],
    dataset: data.Dataset,
    folder: Path,
    *,
    device: str = "cpu",
    watcher: Watcher | None = None,
    save_every: float = 20.0,
) -> list[Outcome]:
    """Train experiments that share a dataset setting, epoch by epoch together.

    Each run's result is its own: it depends on its experiment only, not on its
    companions, nor on how often it was stopped.

    Args:
        experiments: Alike in what shapes images and batches (``ALIKE``).
        dataset: As ``data.load`` gives it.
        folder: For checkpoints and exported weights.
        device: Torch device.
        watcher: Is told of epochs and can stop the training.
        save_every: Seconds between two checkpoints of a run.

    Raises:
        Stopped: On the watcher's word; the same call continues.
        NumericalError: A tensor is not finite; the last good state is kept.
        CorruptError: A checkpoint is damaged or of other data.
        UsageError: The experiments are not alike.
    """
    _check_alike(experiments)
    task = prepare(experiments[0], dataset, device)
    runs = [Run(e.training, task, folder, device, e.spectra_at) for e in experiments]
    graphs = CudaGraphs() if torch.device(device).type == "cuda" else None
    together = SideBySide(graphs)
    try:
        with arithmetic(experiments[0].precision):
            for epoch in range(1, max(e.epochs for e in experiments) + 1):
                due = [run for run in runs if run.next_epoch == epoch]
                if due:
                    _advance(together, due, watcher, save_every)
            return [run.outcome(len(runs)) for run in runs]
    finally:
        for run in runs:
            run.save()


def profile(
    experiment: Experiment, dataset: data.Dataset, device: str = "cpu", steps: int = 20
) -> str:
    """Where the time of a training step goes: operations by their own time, a table.

    Args:
        experiment: Of its first epoch the first batches are trained; nothing is kept.
        dataset: As ``data.load`` gives it.
        device: Torch device.
        steps: As many at most, after one that warms up.
    """
    cuda, known = "cuda" in device, torch.profiler.ProfilerActivity
    kinds = [known.CPU, known.CUDA][: 1 + cuda]
    with tempfile.TemporaryDirectory() as folder, arithmetic(experiment.precision):
        task = prepare(experiment, dataset, device)
        run = Run(experiment.training, task, Path(folder), device)
        run.begin()
        size = min(experiment.batch_size, run.lane.count)
        run.lane.step(size)
        with torch.profiler.profile(activities=kinds, acc_events=True) as seen:
            for _ in range(min(steps, run.lane.count // size - 1)):
                run.lane.step(size)
    by = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    return str(seen.key_averages().table(sort_by=by, row_limit=12))


def _advance(
    together: SideBySide, runs: list[Run], watcher: Watcher | None, save_every: float
) -> None:
    """One epoch of runs that are equally far."""
    started, lanes = time.perf_counter(), [run.lane for run in runs]
    for run in runs:
        run.begin()
    count, batch_size = lanes[0].count, runs[0].experiment.batch_size
    for start in range(0, count, batch_size):
        if watcher and watcher.stopped():
            raise _stopped(runs)
        together.step(lanes, min(batch_size, count - start))
    if tested := [run.lane for run in runs if run.is_tested]:
        together.test(tested)
    reports = together.reports(lanes)
    seconds = (time.perf_counter() - started) / len(runs)
    for run, report in zip(runs, reports, strict=True):
        row = run.end(report, seconds, save_every)
        if watcher:
            watcher.epoch_done(run.experiment, row)


def _check_alike(experiments: Sequence[Experiment]) -> None:
    for name in ALIKE:
        values = {getattr(e, name) for e in experiments}
        if len(values) > 1:
            raise UsageError(f"runs trained together differ in {name}: {values}")


def _stopped(runs: Sequence[Run]) -> Stopped:
    first, more = runs[0], f" and {len(runs) - 1} more" if len(runs) > 1 else ""
    return Stopped(
        f"stopped {first.experiment.slug}{more} in epoch {first.epoch + 1} of "
        f"{first.experiment.epochs}; the same command continues after epoch "
        f"{first.epoch}"
    )
