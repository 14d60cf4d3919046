"""Trains experiments epoch by epoch, one or many side by side: the only training loop.

Takes Experiments and a Dataset, gives Outcomes. A ``Run`` holds an experiment's history
and files; ``SideBySide`` does a step of several runs, on CUDA as a graph that is
recorded once and replayed, so that the host reads one tensor an epoch. The arithmetic
of a step is in ``optimizers.py``, what an experiment means in tensors in ``run.py``.

Legend: N images, C classes.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from saddlebook import data
from saddlebook.disk.files import read_checkpoint, save_checkpoint
from saddlebook.disk.provenance import device_name, numerics_digest
from saddlebook.errors import NumericalError, Stopped, UsageError, explained
from saddlebook.experiment import Experiment
from saddlebook.models import arithmetic
from saddlebook.train.optimizers import Hyper, State
from saddlebook.train.run import (
    Lane,
    Report,
    Task,
    build_replica,
    check_same,
    class_means,
    epoch_images,
    epoch_weights,
    normalised,
    prepare,
    scheduled,
)
from saddlebook.train.run import Outcome as Outcome

# What runs trained together must share
ALIKE = (
    "dataset", "images_digest", "largest_class", "imbalance_factor", "imbalance",
    "image_size", "batch_size", "precision",
)  # fmt: skip

# Runs of one shape differ in tensors, numbers and passes a step. SGD and SAM share a
# group at no cost: 5 and 5, or 11 and 11, were as fast as apart (bf16, one H200)
_SHAPE = (*ALIKE, "model", "width", "epochs")


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
    together = SideBySide(CudaGraphs() if "cuda" in device else None)
    try:
        with arithmetic(experiments[0].precision):
            for epoch in range(1, max(e.epochs for e in experiments) + 1):
                if due := [run for run in runs if run.next_epoch == epoch]:
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


class Run:
    """One experiment in training: its replica, its history, its files.

    Args:
        experiment: What is trained; nothing is measured in it.
        task: Its images.
        folder: Of all runs.
        device: Torch device.
        exports: Epochs whose weights are kept besides the milestones.
    """

    def __init__(
        self,
        experiment: Experiment,
        task: Task,
        folder: Path,
        device: str,
        exports: Sequence[int] = (),
    ) -> None:
        self.experiment, self.task = experiment, task
        self._exports = exports
        self.folder = folder / f"{experiment.slug}"
        self.replica = build_replica(experiment, task.class_counts, device)
        self.lane = Lane(
            self.replica, len(task.labels), task.test_images, task.test_labels
        )
        self.history: list[dict[str, Any]] = []
        self.epoch, self.seconds, self.resumes = 0, 0.0, 0
        self.trained_on = device_name(torch.device(device))
        self.numerics = numerics_digest()
        self._saved_at, self._saved_epoch = time.monotonic(), 0
        self._resume()
        self._good = self._copy()

    @property
    def next_epoch(self) -> int | None:
        """The epoch to train, or None after the last."""
        return self.epoch + 1 if self.epoch < self.experiment.epochs else None

    @property
    def is_tested(self) -> bool:
        """Whether the epoch to train ends with a test pass."""
        exp, epoch = self.experiment, self.epoch + 1
        return epoch % exp.test_every == 0 or epoch in (exp.epochs, *exp.milestones)

    def begin(self) -> None:
        """Bring the next epoch's images and hyper-parameters to the device."""
        epoch = self.epoch + 1
        self.replica.model.train()
        self.replica.begin_epoch(epoch)
        images, labels = epoch_images(self.experiment, self.task, epoch)
        self.lane.begin(images, labels, self._hyper(epoch))

    def end(self, report: Report, seconds: float, save_every: float) -> dict[str, Any]:
        """Take over a trained epoch; export and save if due."""
        self._check_finite(report)
        exp, tested, epoch = self.experiment, self.is_tested, self.epoch + 1
        row: dict[str, Any] = {"epoch": epoch, "train_loss": report.loss}
        if tested:
            row |= {"lr": scheduled(exp, epoch)[0], "per_class": report.accuracy}
            self.history.append(row)
        self.epoch, self._good = epoch, self._copy()
        self.seconds += seconds
        if epoch in (*exp.milestones, *self._exports):
            save_checkpoint(self.weights_file(epoch), self._meta(), self._exported())
        if epoch == exp.epochs or time.monotonic() - self._saved_at > save_every:
            self.save()
        return row

    def _hyper(self, epoch: int) -> Hyper:
        like = self.replica.weights
        lr, rho, _ = scheduled(self.experiment, epoch)
        weight = epoch_weights(self.experiment, self.task.class_counts, epoch)
        return Hyper(
            torch.tensor(lr, dtype=like.dtype, device=like.device),
            torch.tensor(rho, dtype=like.dtype, device=like.device),
            weight.to(like),
            ascend=rho > 0,
        )

    def class_losses(self) -> list[float]:
        """Training loss without class weights on clean training images, nats [C]."""
        images = normalised(self.experiment, self.task.images)
        logits, labels = self.replica.logits(images).double(), self.task.labels
        adjusted = self.replica.objective.adjust(logits, labels)
        nats = F.cross_entropy(adjusted, labels, reduction="none")
        return class_means(nats, labels).tolist()

    def outcome(self, side_by_side: int) -> Outcome:
        """Everything a record needs, after the last epoch."""
        kept = sorted({*self.experiment.milestones, *self._exports})
        files = {epoch: self.weights_file(epoch) for epoch in kept}
        return Outcome(
            self.history,
            self.class_losses(),
            self.task.class_counts,
            self.seconds,
            side_by_side,
            self.resumes,
            {epoch: path for epoch, path in files.items() if path.exists()},
            self.numerics,
            device=self.trained_on,
        )

    def weights_file(self, epoch: int) -> Path:
        """Where the weights after ``epoch`` are exported."""
        return self.folder / f"epoch{epoch:04d}.weights"

    def _exported(self) -> dict[str, Tensor]:
        model = self.replica.model
        return {name: t.contiguous() for name, t in model.state_dict().items()}

    def _copy(self) -> State:
        return State(*(tensor.clone() for tensor in self.replica.state))

    def _meta(self) -> dict[str, Any]:
        return {
            "experiment": self.experiment.to_dict(),
            "digest": self.task.digest,
            "epoch": self.epoch,
            "history": self.history,
            "seconds": self.seconds,
            "resumes": self.resumes,
            "device": self.trained_on,
            "numerics": self.numerics,
        }

    def save(self) -> None:
        """Write the state of the last whole epoch, unless it is on disk already."""
        if self.epoch > self._saved_epoch:
            save_checkpoint(self._file, self._meta(), self._good._asdict())
            self._saved_at, self._saved_epoch = time.monotonic(), self.epoch

    @property
    def _file(self) -> Path:
        return self.folder / "latest.ckpt"

    def _resume(self) -> None:
        if not self._file.exists():
            return
        meta, tensors = read_checkpoint(self._file)
        with explained(f"{self._file} is no state of a run", "delete it and run again"):
            check_same(meta, self._meta(), self._file)
            if self._lacks_exports(meta["epoch"]):
                return  # trained before anyone asked for them: once more
            self.replica.load(State(**tensors))
            self.history, self.epoch = meta["history"], meta["epoch"]
            self.seconds, self.resumes = meta["seconds"], meta["resumes"]
            self.numerics = meta.get("numerics", "")
        self._saved_epoch = self.epoch
        if self.epoch < self.experiment.epochs:
            self.resumes += 1
        else:  # elsewhere, if its networks were brought here to be measured
            self.trained_on = meta.get("device", "not noted")

    def _lacks_exports(self, epoch: int) -> bool:
        due = [e for e in self._exports if 0 < e <= epoch]
        return not all(self.weights_file(e).exists() for e in due)

    def _check_finite(self, report: Report) -> None:
        if report.finite and math.isfinite(report.loss):
            return
        raise NumericalError(
            f"{self.experiment.slug}: epoch {self.epoch + 1}, first non-finite tensor "
            f"{self.replica.first_nonfinite() or 'loss'}; lower lr or rho; the state "
            f"of epoch {self.epoch} is kept in {self._file}"
        )


class SideBySide:
    """Does the same to several lanes, recording it where the device can.

    A recording belongs to the lanes, the batch's size and whether SAM climbs: the last,
    smaller batch and a switch of ``sam_epochs`` have their own, and a learning rate,
    radius or class weight never needs a new one.

    Args:
        graphs: Records and replays; None does everything anew each time.
    """

    def __init__(self, graphs: CudaGraphs | None = None) -> None:
        self._graphs = graphs
        self._replays: dict[tuple[object, ...], Callable[[], None]] = {}

    def step(self, lanes: Sequence[Lane], size: int) -> None:
        """One optimizer step of each lane on its next ``size`` images."""
        self._do(lanes, size, lambda lane: lane.step(size))

    def test(self, lanes: Sequence[Lane]) -> None:
        """A test pass of each lane."""
        self._do(lanes, "test", Lane.test)

    def reports(self, lanes: Sequence[Lane]) -> list[Report]:
        """Read all lanes at once: the only time the host waits."""
        rows = torch.stack([lane.summary() for lane in lanes]).tolist()
        return [Report(row[0], row[1] == 1, row[2:]) for row in rows]

    def _do(
        self, lanes: Sequence[Lane], what: object, action: Callable[[Lane], None]
    ) -> None:
        if self._graphs is None:
            _each(lanes, action)
            return
        key = (what, *((id(lane), lane.hyper.ascend) for lane in lanes))
        if key not in self._replays:
            self._replays[key] = self._recorded(self._graphs, lanes, action)
        self._replays[key]()

    def _recorded(
        self, graphs: CudaGraphs, lanes: Sequence[Lane], action: Callable[[Lane], None]
    ) -> Callable[[], None]:
        def rehearse() -> None:
            for lane in lanes:
                lane.place.zero_()
            _each(lanes, action)

        kept = [lane.snapshot() for lane in lanes]
        graphs.warm_up(rehearse)
        for lane, copies in zip(lanes, kept, strict=True):
            lane.restore(copies)
        noise = [lane.replica.generator for lane in lanes]
        return graphs.record(lambda: _each(lanes, action), noise)


class CudaGraphs:
    """Functions as CUDA graphs that share their memory.

    They may: they are replayed one after the other and leave nothing inside.
    """

    def __init__(self) -> None:
        self._pool: Any = torch.cuda.graph_pool_handle()

    def warm_up(self, function: Callable[[], None]) -> None:
        """Run it thrice, as PyTorch asks for before a capture."""
        main, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(main)
        with torch.cuda.stream(side):
            for _ in range(3):
                function()
        main.wait_stream(side)

    def record(
        self, function: Callable[[], None], generators: Sequence[torch.Generator]
    ) -> Callable[[], None]:
        """Capture it; its random numbers go on from replay to replay."""
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph, pool=self._pool):
            function()
        return graph.replay


def _each(lanes: Sequence[Lane], action: Callable[[Lane], None]) -> None:
    """One lane after the other; on CUDA together, each on its own stream."""
    for lane in lanes:
        with lane.apart():
            action(lane)
    for lane in lanes:
        lane.rejoin()


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
        if len(values := {getattr(e, name) for e in experiments}) > 1:
            raise UsageError(f"runs trained together differ in {name}: {values}")


def _stopped(runs: Sequence[Run]) -> Stopped:
    exp, epoch = runs[0].experiment, runs[0].epoch
    more = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
    return Stopped(
        f"stopped {exp.slug}{more} in epoch {epoch + 1} of {exp.epochs}; the same "
        f"command continues after epoch {epoch}"
    )
