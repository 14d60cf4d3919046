"""Finds what the ``spectra`` command measures: network, loss and images together.

Weights trained elsewhere are read without running any code; an export of our own brings
all of it.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import io
import os
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from saddlebook import data, measure, models
from saddlebook.curvature.problem import Loss
from saddlebook.data import folders, sources
from saddlebook.data.folders import Images
from saddlebook.disk.files import decoded_checkpoint, read_whole, sha256
from saddlebook.errors import (
    CorruptError,
    MachineError,
    UsageError,
    explained,
    nearest,
    one_of,
    reason,
)
from saddlebook.losses import LDAMLoss, VSLoss
from saddlebook.train.run import trained, trained_network

# Where a state dict lies in the files of common training codes, and what is put before
# its names by DataParallel, torch.compile and Lightning
_WRAPPERS = (
    "state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "net",
    "network", "weights",
)  # fmt: skip
_PREFIXES = ("module.", "model.", "net.", "network.")
_COUNTERS = "num_batches_tracked"  # of batch norm; nothing measured reads them
# What common codes keep beside the weights; plain values, none of them runs code.
# NumPy moved its maker of scalars: both names stand in files
_SCALAR = np.float64(0).__reduce__()[0]
_PLAIN: list[Any] = [
    argparse.Namespace, np.dtype, _SCALAR, (_SCALAR, "numpy.core.multiarray.scalar"),
    *{type(np.dtype(kind)) for kind in "?bhilqBHILQefd"},
]  # fmt: skip


def state_dict(content: bytes, name: str) -> dict[str, Tensor]:
    """Tensors by name from the bytes of a ``.pt`` or ``.pth`` file, unwrapped.

    Only tensors and plain values are read (``weights_only=True``), NumPy's scalars and
    ``argparse.Namespace`` among them: a file that names anything else is refused, and
    nothing in it runs. Of averaged weights beside others the averaged ones are taken.

    Raises:
        CorruptError: No such file, or more than tensors in it; with ``name``.
    """
    try:
        loaded = _loaded(content)
        tensors = _unwrapped(loaded)
        _check_sizes(tensors)
    except Exception as error:  # a damaged pickle raises anything at all
        raise CorruptError(_refused(name, error)) from error
    if not tensors:
        held = sorted(map(str, loaded)) if isinstance(loaded, Mapping) else []
        raise CorruptError(
            f"{name} holds no state dict ({', '.join(held[:8]) or type(loaded)}); "
            "save model.state_dict()"
        )
    return tensors


def _loaded(content: bytes) -> Any:
    if content[:200].lstrip().startswith(b"<"):
        raise ValueError(
            "a web page: the server answered with HTML instead of the file"
        )
    file = io.BytesIO(content)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if sum(m.file_size for m in archive.infolist()) > len(content):
                raise ValueError("it claims more than it holds")
            if damaged := archive.testzip():  # PyTorch does not look
                raise ValueError(f"{damaged} is not what was written")
    file.seek(0)
    plain = torch.serialization.safe_globals(_PLAIN)
    with plain, warnings.catch_warnings(action="ignore"):
        return torch.load(file, map_location="cpu", weights_only=True)


def _check_sizes(tensors: Mapping[str, Tensor]) -> None:
    """A tensor may claim any shape on a few numbers, which a copy would fill."""
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if tensor.layout != torch.strided or tensor.untyped_storage().nbytes() < size:
            raise ValueError(f"{name[:99]} claims more numbers than it holds")


def _refused(path: str, error: Exception) -> str:
    if named := re.search(r"GLOBAL (\S+)", str(error)):
        return (
            f"{path} names code ({named[1]}), and code in a checkpoint is never run; "
            "save model.state_dict() alone"
        )
    why = reason(error)
    if isinstance(error, UnpicklingError):  # its text says how to run the rest
        why = "not tensors and plain values alone"
    return f"{path} is damaged or no PyTorch checkpoint ({why}); save it again"


def _unwrapped(content: Any) -> dict[str, Tensor]:
    """The state dict inside, or nothing."""
    if not isinstance(content, Mapping):
        return {}
    for name in _WRAPPERS:
        if inner := _unwrapped(content.get(name)):
            return inner
    # torch.compile puts its mark before a network's names, or a block's
    return {
        str(k).replace("_orig_mod.", ""): t
        for k, t in content.items()
        if isinstance(t, Tensor) and not str(k).endswith("n_averaged")
    }


def named_network(name: str, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The named network at its initial weights, as large as ``tensors`` say.

    Args:
        name: ``resnet32`` or ``resnet8`` of ours (width, classes and head are seen in
            the tensors), a classifier of torchvision (its classes are seen), or
            ``module:function``, imported and called without arguments.
        tensors: Of the checkpoint.

    Raises:
        UsageError: Unknown, or the function does not give a module.
        MachineError: torchvision is not installed.
    """
    with torch.random.fork_rng(devices=[]):
        if ":" in name:
            return _made(name)
        if name in models.MODELS:
            return _ours(name, tensors)
        return _torchvision(name, tensors)


def _ours(name: str, tensors: Mapping[str, Tensor]) -> nn.Module:
    width = _shape(tensors, "conv1.weight", (16,))[0]
    cosine = not any(key.endswith("linear.bias") for key in tensors)
    classes = _shape(tensors, "linear.weight", (10, 10))[-1 if cosine else 0]
    return models.build_model(name, classes, width, cosine, 0)


def _shape(
    tensors: Mapping[str, Tensor], end: str, otherwise: tuple[int, ...]
) -> tuple[int, ...]:
    """Shape of the first matrix or filter whose name ends so."""
    found = (t.shape for key, t in tensors.items() if key.endswith(end) and t.ndim > 1)
    return tuple(next(found, otherwise))


def _torchvision(name: str, tensors: Mapping[str, Tensor]) -> nn.Module:
    try:
        from torchvision import models as theirs
    except ImportError as error:
        raise MachineError(
            f"{name!r} would be a network of torchvision, which is not installed; "
            "pip install torchvision"
        ) from error
    known = theirs.list_models(module=theirs)
    if name not in known:
        hint = nearest(name, [*models.MODELS, *known])
        raise UsageError(
            f"unknown model {name!r}: {hint}known: {', '.join(models.MODELS)}, "
            "torchvision's classifiers, and module:function"
        )
    # the last tensor of every classifier there is the bias of its last layer
    last = [t for t in tensors.values() if t.ndim][-1:]
    return theirs.get_model(
        name, weights=None, num_classes=len(last[0]) if last else 1000
    )


def _made(name: str) -> nn.Module:
    module, _, function = name.partition(":")
    try:
        with _current_folder():
            imported = importlib.import_module(module)
    except Exception as error:  # whatever the user's module does
        raise UsageError(
            f"--model {name}: {module!r} cannot be imported ({_named_error(error)}); "
            "run from the folder that holds it"
        ) from error
    make = getattr(imported, function, None)
    if not callable(make):
        there = [n for n, value in vars(imported).items() if callable(value)]
        hint = nearest(function, [n for n in there if n[0] != "_"])
        raise UsageError(
            f"--model {name}: no such function in {module}" + (hint and f"; {hint}")
        )
    try:
        made = make()
    except Exception as error:
        raise UsageError(f"--model {name} failed: {_named_error(error)}") from error
    if not isinstance(made, nn.Module):
        raise UsageError(f"--model {name} gave a {type(made).__name__}, no nn.Module")
    return made


@contextmanager
def _current_folder() -> Iterator[None]:
    """Where the user's module lies; Python looks there for nothing else of ours."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _named_error(error: Exception) -> str:
    return f"{type(error).__name__}: {reason(error)}"


def fit(model: nn.Module, tensors: Mapping[str, Tensor], what: str) -> nn.Module:
    """Put ``tensors`` into the model, in eval mode; float64 if a tensor is.

    Args:
        model: Changed in place.
        tensors: All it needs and nothing else; a prefix before all names is dropped.
        what: Names both in errors.

    Raises:
        CorruptError: Names or shapes do not fit; says the nearest.
    """
    wanted = model.state_dict()
    found = _stripped(tensors, wanted)
    lacking = [n for n in wanted if n not in found and not n.endswith(_COUNTERS)]
    unknown = [n for n in found if n not in wanted]
    if lacking or unknown:
        parts = [_named("lacks", lacking, found), _named("holds", unknown, wanted)]
        raise CorruptError(
            f"{what}: the checkpoint {' and '.join(filter(None, parts))}"
        )
    for name, tensor in found.items():
        if tensor.shape != wanted[name].shape:
            raise CorruptError(
                f"{what}: {name} is {list(tensor.shape)} in the checkpoint and "
                f"{list(wanted[name].shape)} in the model"
            )
    if any(tensor.dtype == torch.float64 for tensor in found.values()):
        model.double()
    model.load_state_dict(dict(found), strict=False)
    return model.eval()


def _stripped(
    tensors: Mapping[str, Tensor], wanted: Iterable[str]
) -> Mapping[str, Tensor]:
    """Without what stands before every name, unless the model has such names."""
    known = set(wanted)
    for prefix in 2 * _PREFIXES:
        if not known & set(tensors) and all(n.startswith(prefix) for n in tensors):
            tensors = {n.removeprefix(prefix): t for n, t in tensors.items()}
    return tensors


def _named(verb: str, names: list[str], others: Iterable[str]) -> str:
    if not names:
        return ""
    near = difflib.get_close_matches(names[0], others, n=1, cutoff=0)
    more = f" and {len(names) - 1} more" if names[1:] else ""
    other = f" (nearest in the {'file' if verb == 'lacks' else 'model'}: {near[0]!r})"
    return f"{verb} {names[0]!r}{other if near else ''}{more}"


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
_SHARED = ("held_out", "limit", "seed", "rtol", "precision", "basis", "output")


class Subject(NamedTuple):
    """Whose spectra.

    Attributes:
        model: With its weights, in eval mode.
        loss: Without class weights, which cancel on a single class.
        images: By class.
        colours: Of ``COLOURS``, how images are normalised.
        views: All crops and flips of each image instead of itself.
        told: What a record says about all of these, JSON values.
    """

    model: nn.Module
    loss: Loss
    images: Images
    colours: str
    told: dict[str, Any]
    views: bool = False

    def inputs(self, class_: int, rows: Tensor) -> Tensor:
        """Images of a class as the model takes them, view by view. [V·N, 3, H, W]"""
        images = self.images.read(class_, rows)
        if self.views:
            images = torch.cat(data.all_views(images))
        colours = COLOURS[self.colours]
        if colours is None:
            return data.normalise(images)
        mean, std = (torch.tensor(values)[:, None, None] for values in colours)
        return (images.float() / 255 - mean) / std


def find_subject(options: argparse.Namespace) -> Subject:
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
    told |= {"views": options.views or None}  # records of before do not name it
    subject.model.to(options.device)
    return subject._replace(told=told | subject.told, views=options.views)


def _exported(file: str, content: bytes, options: argparse.Namespace) -> Subject:
    """Weights of a run of ours, which say how they were trained."""
    if given := [name for name in _OURS if getattr(options, name) is not None]:
        raise UsageError(
            f"{file} says its own {given[0].replace('_', ' ')}; leave out "
            f"--{given[0].replace('_', '-')}"
        )
    meta, tensors = decoded_checkpoint(content, file)
    exp = trained(meta, file)
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
    model = trained_network(exp, tensors, file)
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
    tensors = state_dict(content, file)
    with explained(f"{file} does not fit {name}", "name the model that it is of"):
        model = named_network(name, tensors)
        fit(model, tensors, f"{file} as {name}")
    cut = {name: getattr(options, name) for name in _CUT}
    images = folders.find_images(
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
