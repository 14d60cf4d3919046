"""Whose spectra the ``spectra`` command measures: network, loss and images together.

Joins ``foreign`` and ``folders``, or takes all of it from an export of our own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saddlebook import data, measure, models
from saddlebook.command import foreign
from saddlebook.curvature.problem import Loss
from saddlebook.data import folders, sources
from saddlebook.data.folders import Images
from saddlebook.disk import checkpoint
from saddlebook.disk.files import read_whole, sha256
from saddlebook.errors import UsageError, explained, one_of
from saddlebook.losses import LDAMLoss, VSLoss

# Mean and standard deviation of the colours a network was trained with
COLOURS: dict[str, tuple[tuple[float, ...], tuple[float, ...]] | None] = {
    "cifar": None,  # data.normalise
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
LOSSES: dict[str, Callable[[tuple[int, ...]], nn.Module]] = {
    "ce": lambda counts: nn.CrossEntropyLoss(),
    "ldam": LDAMLoss,
    "vs": VSLoss,
}
_CUT = ("imbalance_factor", "max_count", "image_size")
_OURS = ("model", "loss", "normalise", *_CUT)  # an export says these itself
_MOST = 2**34  # bytes of a checkpoint
_SHARED = ("held_out", "limit", "seed", "rtol", "precision")


class Subject(NamedTuple):
    """Whose spectra.

    Attributes:
        model: With its weights, in eval mode.
        loss: Without class weights, which cancel on a single class.
        images: By class.
        colours: Of ``COLOURS``, how images are normalised.
        told: What a record says about all of these, JSON values.
    """

    model: nn.Module
    loss: Loss
    images: Images
    colours: str
    told: dict[str, Any]

    def inputs(self, class_: int, rows: Tensor) -> Tensor:
        """Images of a class as the model takes them. [N, 3, H, W]"""
        images = self.images.read(class_, rows)
        colours = COLOURS[self.colours]
        if colours is None:
            return data.normalise(images)
        mean, std = (torch.tensor(values)[:, None, None] for values in colours)
        return (images.float() / 255 - mean) / std


def build(options: argparse.Namespace) -> Subject:
    """From the options of the command.

    Raises:
        UsageError: Options that do not fit; CorruptError: a checkpoint that cannot be
        used; DataError: images that cannot be read.
    """
    path = Path(options.checkpoint)
    with explained(f"cannot read {path}", "name a checkpoint"):
        content = read_whole(path, _MOST)  # once: what is measured is what is hashed
    made = _exported if path.suffix == ".weights" else _foreign
    subject = made(path.name, content, options)
    told = {name: getattr(options, name) for name in _SHARED}
    told |= {"checkpoint": path.name, "weights": sha256(content)}
    told |= {"data": subject.images.name, "images": subject.images.digest}
    subject.model.to(options.device)
    return subject._replace(told=told | subject.told)


def _exported(file: str, content: bytes, options: argparse.Namespace) -> Subject:
    """Weights of a run of ours, which say how they were trained."""
    if given := [name for name in _OURS if getattr(options, name) is not None]:
        raise UsageError(
            f"{file} says its own {given[0].replace('_', ' ')}; leave out "
            f"--{given[0].replace('_', '-')}"
        )
    meta, tensors = checkpoint.decoded(content, file)
    exp = measure.trained(meta, file)
    named = options.data in sources.CLASS_NAMES
    if named and options.data != exp.dataset:
        raise UsageError(f"{file} was trained on {exp.dataset}, not {options.data}")
    dataset = data.load(exp.dataset, options.root if named else options.data)
    images = folders.of_dataset(
        dataset,
        exp.imbalance_factor,
        exp.largest_class,
        imbalance=exp.imbalance,
        held_out=options.held_out,
        image_size=exp.image_size,
    )
    model = measure.network(exp, tensors, file)
    loss = measure.class_loss(exp, images.counts)
    return Subject(model, loss, images, "cifar", {"experiment": exp.to_dict()})


def _foreign(file: str, content: bytes, options: argparse.Namespace) -> Subject:
    """Weights from anywhere else."""
    name = options.model
    if not name:
        known = f"{', '.join(models.MODELS)}, a name of torchvision, or module:function"
        raise UsageError(f"--model is missing: {known}")
    ours = name in models.MODELS or ":" in name
    colours = options.normalise or ("cifar" if ours else "imagenet")
    loss = options.loss or "ce"
    one_of("normalise", colours, COLOURS)
    one_of("loss", loss, LOSSES)
    tensors = foreign.state_dict(content, file)
    with explained(f"{file} does not fit {name}", "name the model that it is of"):
        model = foreign.network(name, tensors)
        foreign.fit(model, tensors, f"{file} as {name}")
    cut = {name: getattr(options, name) for name in _CUT}
    images = folders.find(
        options.data, options.root, held_out=options.held_out,
        class_order=options.class_order, **cut,
    )  # fmt: skip
    told = {"model": name, "loss": loss, "normalise": colours} | cut
    return Subject(model, _sized(loss, images), images, colours, told)


def _sized(name: str, images: Images) -> Loss:
    """The named loss, of a model with one output a class of the data."""
    made, classes = LOSSES[name](images.counts), len(images.counts)

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        if logits.shape[1] != classes:
            raise UsageError(
                f"the model has {logits.shape[1]} outputs, {images.name} {classes} "
                "classes: labels would be wrong; class folders need one, if empty, for "
                "every output"
            )
        return made(logits, targets)

    return loss
