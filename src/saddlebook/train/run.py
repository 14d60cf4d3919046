"""Turns an experiment into what the device trains: images, network, loss, schedule.

Where ``Experiment`` meets data, models and losses. All that a step reads and writes
lies in tensors that never move (``Lane``). Knows one run, and of its files the exported
weights; ``loop`` takes one or many through their epochs.

Legend: N images, C classes, H height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saddlebook import data, losses, models, schedules
from saddlebook.disk.files import read_checkpoint
from saddlebook.errors import CorruptError, explained
from saddlebook.experiment import Experiment
from saddlebook.optim import frozen_statistics
from saddlebook.train.optimizers import Hyper, Objective, Replica

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


def trained(meta: Mapping[str, Any], name: str) -> Experiment:
    """The experiment that a checkpoint or export belongs to.

    Raises:
        CorruptError: It names none, or an epoch that the experiment has not.
    """
    with explained(f"{name} names no experiment: it is no export", "export it again"):
        if not isinstance(meta["experiment"], dict):
            raise TypeError("no experiment")
        experiment = Experiment.from_dict(meta["experiment"]).training
        if meta["epoch"] not in range(experiment.epochs + 1):
            raise ValueError(f"epoch {meta['epoch']!r} of {experiment.epochs}")
        return experiment


def load_model(experiment: Experiment, path: Path, device: str = "cpu") -> nn.Module:
    """The network with exported weights, in eval mode.

    Raises:
        CorruptError: The file is damaged, or of another experiment.
    """
    meta, tensors = read_checkpoint(path)
    if trained(meta, str(path)) != experiment.training:
        raise CorruptError(
            f"{path} is of another experiment than {experiment.slug}; delete it and "
            "run the same command again"
        )
    return trained_network(experiment, tensors, str(path)).to(device)


def trained_network(
    experiment: Experiment, tensors: Mapping[str, Tensor], name: str
) -> nn.Module:
    """The same from tensors.

    Raises:
        CorruptError: They are not those of the network; with ``name``.
    """
    model = build_network(experiment)
    with explained(f"{name} does not fit {experiment.model}", "export it again"):
        given = {key: tensor.float() for key, tensor in tensors.items()}
        lacking, unknown = model.load_state_dict(given, strict=False)
        # the step counters of batch norm are not exported: nothing reads them
        lacking = [key for key in lacking if not key.endswith("num_batches_tracked")]
        if lacking or unknown:
            raise ValueError(f"it lacks {lacking[:1]} and holds {unknown[:1]}")
    return model.eval()


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
        numerics: Digest of the code it began with; empty where none was kept.
        processes: That trained it, at the end.
        device: Name of what trained it, at the end; empty: the one at hand.
    """

    history: list[dict[str, Any]]
    train_loss: list[float]
    class_counts: tuple[int, ...]
    seconds: float
    side_by_side: int
    resumes: int
    weights: dict[int, Path]
    numerics: str
    processes: int = 1
    device: str = ""


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


class Report(NamedTuple):
    """What the host learns of an epoch."""

    loss: float  # mean, nats
    finite: bool  # weights, gradient and batch-norm statistics
    accuracy: list[float]  # per class, percent, of the last test


class Lane:
    """One replica with its epoch: images in order, hyper-parameters, sums.

    Args:
        replica: Is trained.
        count: N, training images.
        test_images: Normalised, channels-last [M, 3, H, H].
        test_labels: int64 [M].
    """

    def __init__(
        self, replica: Replica, count: int, test_images: Tensor, test_labels: Tensor
    ) -> None:
        like = replica.weights
        self.replica, self.count = replica, count
        self.test_images, self.test_labels = test_images, test_labels
        self.per_class = torch.bincount(test_labels)
        size = test_images.shape[-1]
        # rows of pixels, so that a batch is one gather and stays channels-last
        self.images = like.new_empty(count, size, size, 3)
        self.labels = test_labels.new_zeros(count)
        classes = like.new_ones(len(self.per_class))
        self.hyper = Hyper(like.new_zeros(()), like.new_zeros(()), classes)
        self.place = torch.zeros_like(self.labels[0])
        self.total = like.new_zeros((), dtype=torch.float64)
        self.hits = torch.zeros_like(self.per_class, dtype=torch.float64)
        self._stream = torch.cuda.Stream() if like.is_cuda else None

    def begin(self, images: Tensor, labels: Tensor, hyper: Hyper) -> None:
        """Take an epoch: augmented, normalised images [N, 3, H, H] in their order."""
        self.images.copy_(images.permute(0, 2, 3, 1))
        self.labels.copy_(labels)
        for ours, theirs in zip(self.hyper[:3], hyper[:3], strict=True):
            ours.copy_(theirs)
        self.hyper = self.hyper._replace(ascend=hyper.ascend)
        self.place.zero_()
        self.total.zero_()

    def step(self, size: int) -> None:
        """One optimizer step on the next ``size`` images."""
        rows = self.place + torch.arange(size, device=self.place.device)
        images = self.images.index_select(0, rows).permute(0, 3, 1, 2)
        labels = self.labels.index_select(0, rows)
        self.total += self.replica.step(images, labels, self.hyper) * size
        self.place += size

    def test(self) -> None:
        """Count the right answers of each class on the test images."""
        logits = self.replica.logits(self.test_images)
        right = (logits.argmax(1) == self.test_labels).double()
        self.hits.zero_().index_add_(0, self.test_labels, right)

    def summary(self) -> Tensor:
        """Mean loss, 1 if all is finite, accuracy of each class. [2 + C]"""
        state = (*self.replica.state, self.replica.grad)
        finite = torch.stack([t.isfinite().all() for t in state]).all()
        accuracy = 100 * (self.hits / self.per_class)
        return torch.cat([torch.stack([self.total / self.count, finite]), accuracy])

    def snapshot(self) -> list[Tensor]:
        """Copies of what a warm-up would disturb."""
        return [t.clone() for t in self._disturbed()] + [
            self.replica.generator.get_state()
        ]

    def restore(self, snapshot: Sequence[Tensor]) -> None:
        """Undo a warm-up."""
        *copies, noise = snapshot
        for live, copy in zip(self._disturbed(), copies, strict=True):
            live.copy_(copy)
        self.replica.generator.set_state(noise)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """On CUDA, on a stream of its own that forks from the current one."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield

    def rejoin(self) -> None:
        """Let the current stream wait for the lane's own."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)

    def _disturbed(self) -> tuple[Tensor, ...]:
        return (*self.replica.state, self.place, self.total)
