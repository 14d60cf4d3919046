"""Makes an experiment ready: its images on the device, its network and loss.

Where ``Experiment`` meets data, models and losses; nothing here trains.
Legend: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saddlebook import data, losses, models
from saddlebook.experiment import Experiment
from saddlebook.train.engine import Objective, Replica

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


def build_replica(
    experiment: Experiment, class_counts: Sequence[int], device: str = "cpu"
) -> Replica:
    """A freshly initialised network with the experiment's loss and optimizer."""
    exp = experiment
    model = models.build(
        exp.model, exp.num_classes, exp.width, exp.loss == "ldam", exp.seed
    )
    model = model.to(device, _DTYPES.get(exp.precision, torch.float32))
    return Replica(
        model,
        objective(exp, class_counts),
        optimizer=exp.optimizer,
        momentum=exp.momentum,
        weight_decay=exp.weight_decay,
        sam_bn=exp.sam_bn,
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


def class_means(values: Tensor, labels: Tensor) -> Tensor:
    """Mean of ``values`` [N] over the images of each class, [C]."""
    counts = torch.bincount(labels)
    return (
        torch.zeros_like(counts, dtype=values.dtype).index_add_(0, labels, values)
        / counts
    )
