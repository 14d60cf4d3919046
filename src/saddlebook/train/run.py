"""Holds one experiment in training: its network, loss, schedule, history and files.

Where ``Experiment`` meets data, models and losses. Knows no other run; ``loop`` takes
one or many of these through their epochs.
Legend: N images, C classes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saddlebook import data, losses, models, schedules
from saddlebook.disk.files import read_checkpoint, save_checkpoint
from saddlebook.errors import CorruptError, NumericalError, explained
from saddlebook.experiment import Experiment
from saddlebook.optim import frozen_statistics
from saddlebook.train.engine import Hyper, Objective, Replica, State
from saddlebook.train.graphs import Lane, Report

_DTYPES = {"fp64": torch.float64}


@dataclass(frozen=True)
class Task:
    """Images and labels of an experiment, ready on the device.

    Attributes:
        images: Training images, uint8 [N, 3, H, W], not augmented.
        labels: int64 [N].
        test_images: Normalised, channels-last [M, 3, H, W].
        test_labels: int64 [M].
        class_counts: [C].
        digest: Of the dataset the images were drawn from.
    """

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_counts: tuple[int, ...]
    digest: str


def prepare(experiment: Experiment, dataset: data.Dataset, device: str = "cpu") -> Task:
    """Draw the long tail, resize and move to the device.

    Raises:
        DataError: Of own images: these are others than the experiment was made for.
    """
    tail = dataset
    data.counted(experiment, dataset)
    if experiment.imbalance != "as_is":
        counts = data.class_counts(
            experiment.largest_class,
            dataset.num_classes,
            experiment.imbalance_factor,
            experiment.imbalance,
        )
        tail = data.long_tail(dataset, counts)
    size = experiment.image_size
    test = data.resize(dataset.test_images, size).to(device)
    return Task(
        data.resize(tail.train_images, size).to(device),
        tail.train_labels.to(device),
        normalised(experiment, test),
        dataset.test_labels.to(device),
        tuple(torch.bincount(tail.train_labels).tolist()),
        dataset.digest,
    )


def normalised(experiment: Experiment, images: Tensor) -> Tensor:
    """Images as the network takes them: normalised, channels-last."""
    dtype = _DTYPES.get(experiment.precision, torch.float32)
    images = data.normalise(images, dtype)
    return images.to(memory_format=torch.channels_last)


def build_network(experiment: Experiment) -> models.CifarResNet:
    """The experiment's network at its initial weights, float32."""
    exp = experiment
    return models.build_model(
        exp.model, exp.num_classes, exp.width, exp.has_cosine_head, exp.seed
    )


def build_replica(
    experiment: Experiment, class_counts: Sequence[int], device: str = "cpu"
) -> Replica:
    """A freshly initialised network with the experiment's loss and optimizer."""
    exp, dtype = experiment, _DTYPES.get(experiment.precision, torch.float32)
    model = build_network(exp).to(device, dtype)
    return Replica(
        model,
        objective(exp, class_counts),
        optimizer=exp.optimizer,
        momentum=exp.momentum,
        weight_decay=exp.weight_decay,
        sam_bn=exp.sam_bn,
        rare=data.groups(exp, class_counts)["tail"]
        if exp.sam_classes == "tail"
        else (),
        dro_step=exp.dro_step if exp.reweight == "dro" else 0.0,
        noise=exp.noise,
        lpf_samples=exp.lpf_samples,
        noise_seed=exp.seed,
        autocast=exp.precision == "bf16",
    )


def objective(experiment: Experiment, class_counts: Sequence[int]) -> Objective:
    """The training loss of an experiment."""
    exp = experiment
    adjust = losses.adjustment(
        exp.loss,
        class_counts,
        ldam_max_margin=exp.ldam_max_margin,
        ldam_scale=exp.ldam_scale,
        vs_gamma=exp.vs_gamma,
        vs_tau=exp.vs_tau,
    )
    return Objective(adjust, exp.focal_gamma if exp.loss == "focal" else None)


def scheduled(experiment: Experiment, epoch: int) -> tuple[float, float, bool]:
    """Learning rate, SAM's radius and whether class weights are on in an epoch."""
    exp = experiment
    ends: dict[str, Any] = {"epochs": exp.epochs, "drw_epoch": exp.drw_epoch}
    when: dict[str, Any] = {"sam_epochs": exp.sam_epochs, "drw_epoch": exp.drw_epoch}
    lr = (
        schedules.cosine_rate(epoch, lr=exp.lr, epochs=exp.epochs)
        if exp.schedule == "cosine"
        else schedules.learning_rate(epoch, lr=exp.lr, **ends)
    )
    rho = (
        schedules.stepped_radius(epoch, exp.rho_steps, **ends)
        if exp.rho_steps
        else schedules.radius(epoch, rho=exp.rho, **when)
    )
    on = schedules.reweighted(epoch, reweight=exp.reweight, drw_epoch=exp.drw_epoch)
    return lr, rho, on


def epoch_weights(
    experiment: Experiment, class_counts: Sequence[int], epoch: int
) -> Tensor:
    """Class weights of the training loss in an epoch; ones where it has none. [C]"""
    on = scheduled(experiment, epoch)[2]
    beta = experiment.beta if on else 0.0  # 0: all weights are 1
    return losses.class_weights(class_counts, beta, torch.float64)


def epoch_images(
    experiment: Experiment, task: Task, epoch: int
) -> tuple[Tensor, Tensor]:
    """Training images of an epoch in order, cropped, flipped, normalised; labels."""
    device, size = task.images.device, experiment.image_size
    plan = data.epoch_plan(experiment.seed, epoch, len(task.images), size)
    order = plan.order.to(device)
    offsets, flips = plan.offsets.to(device), plan.flips.to(device)
    crops = data.crop_flip(task.images[order], offsets[order], flips[order])
    return normalised(experiment, crops), task.labels[order]


def total_loss(
    experiment: Experiment, class_counts: Sequence[int], epoch: int
) -> Callable[..., Tensor]:
    """The training loss of an epoch as a mean over all images, without weight decay.

    Training divides by the sum of the weights of a *batch*; this divides by that of all
    images, so that parts of the data add up to the whole.
    """
    whole = objective(experiment, class_counts)
    weight = epoch_weights(experiment, class_counts, epoch)
    counts = torch.tensor(class_counts, dtype=weight.dtype)
    mean = float(weight @ counts / counts.sum())

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        each = weight.to(logits)
        value = whole(logits, targets, each)
        if experiment.loss == "focal":  # divides by no weights
            return value
        return value * each[targets].mean() / mean

    return loss


def batch_gradient_norms(
    experiment: Experiment, task: Task, model: torch.nn.Module, epoch: int
) -> list[float]:
    """‖g‖ by which SAM would divide in each step of the epoch after ``epoch``.

    Batches and views are those of the run, batch norm is in train mode; the weights
    stand still, and the loss is that of ``epoch``. Without weight decay, as in SAM.
    """
    params = list(model.parameters())
    whole = objective(experiment, task.class_counts).like(params[0])
    weight = epoch_weights(experiment, task.class_counts, epoch).to(params[0])
    images, labels = epoch_images(experiment, task, epoch + 1)
    size, found = experiment.batch_size, []
    model.train()
    with frozen_statistics(model):
        for some, targets in zip(images.split(size), labels.split(size), strict=True):
            loss = whole(model(some.to(params[0])), targets, weight)
            parts = torch.autograd.grad(loss, params)
            found.append(float(torch.cat([g.flatten() for g in parts]).norm()))
    model.eval()
    return found


def class_means(values: Tensor, labels: Tensor) -> Tensor:
    """Mean of ``values`` [N] over the images of each class, [C]."""
    counts = torch.bincount(labels)
    return (
        torch.zeros_like(counts, dtype=values.dtype).index_add_(0, labels, values)
        / counts
    )


@dataclass(frozen=True)
class Outcome:
    """What a finished training leaves.

    Attributes:
        history: One row per tested epoch: epoch, train_loss, lr, class accuracy [C].
        train_loss: Cross-entropy of each class on its clean training images, eval
            mode, last epoch, nats [C].
        class_counts: [C].
        seconds: Spent training and testing, over all resumes; of runs side by side
            each has its share.
        side_by_side: How many runs were trained together at the end.
        resumes: How often the run was taken up again.
        weights: Files of exported weights, by epoch.
        digest: Of the dataset.
        processes: That trained it, at the end.
    """

    history: list[dict[str, Any]]
    train_loss: list[float]
    class_counts: tuple[int, ...]
    seconds: float
    side_by_side: int
    resumes: int
    weights: dict[int, Path]
    digest: str
    processes: int = 1


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
            self.task.digest,
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
        self._saved_epoch = self.epoch
        if self.epoch < self.experiment.epochs:
            self.resumes += 1

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


def check_same(found: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Refuse to continue another experiment or on other images.

    Raises:
        CorruptError: Names what differs.
    """
    # a field younger than the checkpoint was at its default
    ours, theirs = wanted["experiment"], Experiment().to_dict() | found["experiment"]
    differing = [k for k in ours if ours[k] != theirs.get(k)]
    if found["digest"] != wanted["digest"]:
        differing.append("dataset digest")
    tested = [row["epoch"] for row in found["history"]]
    if found["epoch"] not in range(ours["epochs"] + 1) or tested[-1:] > [
        found["epoch"]
    ]:
        differing.append("epochs")
    if differing:
        raise CorruptError(
            f"{path} belongs to a run with other {', '.join(differing[:10])}; delete "
            "it to train from the start, or bring the old setting back"
        )
