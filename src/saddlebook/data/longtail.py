"""Draws long-tailed datasets as the paper does: class counts, the draw, loading.

Images are uint8 tensors ``[N, 3, H, W]``. Their way to the network (crops, flips,
normalisation, resizing) is in ``augmentation`` and offered here too. Decoded images are
kept in one whole file with its digest, without pickle.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saddlebook.data import folders, sources
from saddlebook.data.augmentation import EpochPlan as EpochPlan
from saddlebook.data.augmentation import augment as augment
from saddlebook.data.augmentation import crop_flip as crop_flip
from saddlebook.data.augmentation import epoch_order as epoch_order
from saddlebook.data.augmentation import epoch_plan as epoch_plan
from saddlebook.data.augmentation import normalise as normalise
from saddlebook.data.augmentation import padding as padding
from saddlebook.data.augmentation import resize as resize
from saddlebook.data.batches import Splits
from saddlebook.disk.files import read_whole, write_whole
from saddlebook.errors import DataError, MachineError, ResourceError, UsageError, one_of
from saddlebook.experiment import Experiment

_MAGIC = b"saddlebook images 4 "


def write_cache(path: Path, splits: Splits, digest: str) -> None:
    """A line with the digest of the rest, a JSON line, then labels and pixels as bytes.

    Raises:
        ResourceError: The disk is full.
        MachineError: The folder cannot be written.
    """
    header = {"digest": digest, "shapes": [images.shape for images, _ in splits]}
    parts = [json.dumps(header).encode(), b"\n"]
    for images, labels in splits:
        parts += [labels.astype("<u2").tobytes(), images.tobytes()]
    rest = b"".join(parts)
    write_whole(path, _MAGIC + sha256(rest).hexdigest().encode() + b"\n" + rest)


def read_cache(path: Path) -> tuple[Splits, str] | None:
    """The two splits and their digest, or None if the file is not what was written."""
    try:
        content = np.frombuffer(bytearray(read_whole(path)), np.uint8)
        return _decoded(content)
    except Exception:  # not there, or not ours: it can be made again
        return None


def _decoded(content: NDArray[np.uint8]) -> tuple[Splits, str] | None:
    start = len(_MAGIC) + 65
    rest = content[start:]
    first = _MAGIC + sha256(rest.data).hexdigest().encode() + b"\n"
    if content[:start].tobytes() != first:
        return None
    line = rest[:1000].tobytes().partition(b"\n")[0]
    header = json.loads(line)
    train, test = header["shapes"]
    sizes = [2 * train[0], math.prod(train), 2 * test[0], math.prod(test)]
    parts = np.split(rest[len(line) + 1 :], np.cumsum(sizes)[:-1])
    splits = (
        (parts[1].reshape(train), parts[0].view("<u2").astype(np.int64)),
        (parts[3].reshape(test), parts[2].view("<u2").astype(np.int64)),
    )
    return splits, header["digest"]


CACHE = "~/.cache/saddlebook"


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels of one dataset.

    Attributes:
        name: ``cifar10``, ``cifar100``, ``digits`` or ``folder:NAME``.
        train_images: uint8 ``[N, 3, H, W]``.
        train_labels: int64 ``[N]``.
        test_images: uint8 ``[M, 3, H, W]``.
        test_labels: int64 ``[M]``.
        class_names: One name a class, in label order.
        digest: SHA-256 of the pixels and labels as loaded, taken class by class: two
            copies of a dataset that differ only in how they interleave classes have
            the same digest, and the published draw takes the same images from both. A
            subset keeps the digest of what it was drawn from.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
    digest: str

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


def class_counts(
    max_count: int, num_classes: int, imbalance_factor: float, imbalance: str = "exp"
) -> list[int]:
    """Training images per class, head first, truncated as in the released code.

    ``exp``: n_y = ⌊n_max · IF^(−y/(C−1))⌋; ``step``: n_max for the first half of the
    classes, ⌊n_max/IF⌋ for the second (Cao et al. 2019, section 4; the formula is that
    of ``imbalance_cifar.py`` in kaidic/LDAM-DRW).

    Args:
        max_count: n_max, images of the largest class.
        num_classes: C, at least 2.
        imbalance_factor: IF = n_max/n_min, at least 1.
        imbalance: ``"exp"`` or ``"step"``.

    Raises:
        UsageError: An argument is out of range, or a class would be left empty.
    """
    for what, value, least in (
        ("max_count", max_count, 1),
        ("classes", num_classes, 2),
    ):
        if not _is_whole(value) or value < least:
            raise UsageError(f"{what} must be an integer >= {least}, got {value!r}")
    if not _is_factor(imbalance_factor):
        raise UsageError(
            f"imbalance_factor must be a finite number >= 1, got {imbalance_factor!r}; "
            "it is n_max/n_min, so 100 means 100:1"
        )
    fraction = 1.0 / float(imbalance_factor)
    if one_of("imbalance", imbalance, ("exp", "step")) == "exp":
        powers = [y / (num_classes - 1) for y in range(num_classes)]
        counts = [int(max_count * fraction**power) for power in powers]
    elif num_classes % 2:
        raise UsageError(
            f"imbalance='step' halves the classes, {num_classes} is odd; use 'exp'"
        )
    else:
        half = num_classes // 2
        counts = [max_count] * half + [int(max_count * fraction)] * half
    if 0 in counts:
        raise UsageError(
            f"class {counts.index(0)} would have 0 images at imbalance_factor="
            f"{imbalance_factor:g} from max_count={max_count}; lower the factor"
        )
    return counts


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_factor(value: Any) -> bool:
    number = isinstance(value, Real) and not isinstance(value, bool)
    return number and math.isfinite(value) and value >= 1


def long_tail_indices(
    labels: Tensor | Sequence[int] | NDArray[Any],
    class_counts: Sequence[int],
    seed: int = 0,
) -> NDArray[np.int64]:
    """The published draw of a long-tailed training set.

    NumPy's legacy generator is seeded once; classes are visited in label order; the
    positions of each class, in dataset order, are shuffled and the first n_y kept
    (``imbalance_cifar.py`` in kaidic/LDAM-DRW, whose ``rand_number`` is 0 for every
    training seed). The generator is private: the global one is left alone.

    Args:
        labels: ``[N]``, one label an image.
        class_counts: n_y, ``[C]``.
        seed: Of the draw, 0 to 2³²−1.

    Returns:
        Positions, int64 ``[Σ n_y]``, grouped by class.

    Raises:
        UsageError: A count that is no positive integer, more than the class has, or a
            bad seed.
    """
    if not _is_whole(seed) or not 0 <= seed < 2**32:
        raise UsageError(f"seed must be an integer from 0 to 2**32-1, got {seed!r}")
    if not len(class_counts):
        raise UsageError("class_counts is empty; give one count a class")
    labels = np.asarray(labels)
    generator = np.random.RandomState(seed)
    kept = []
    for label, count in enumerate(class_counts):
        positions = np.flatnonzero(labels == label)
        if int(count) != count or not 0 < count <= len(positions):
            raise UsageError(
                f"class {label} cannot give {count!r} images; it has {len(positions)}"
            )
        generator.shuffle(positions)
        kept.append(positions[: int(count)])
    return np.concatenate(kept).astype(np.int64)


def long_tail(dataset: Dataset, class_counts: Sequence[int], seed: int = 0) -> Dataset:
    """The dataset with its training images cut to the published draw.

    Raises:
        UsageError: As ``long_tail_indices``, or not one count a class.
    """
    if len(class_counts) != dataset.num_classes:
        raise UsageError(
            f"{len(class_counts)} class counts for the {dataset.num_classes} classes "
            f"of {dataset.name}; give one a class"
        )
    kept = torch.from_numpy(
        long_tail_indices(dataset.train_labels, class_counts, seed=seed)
    )
    images, labels = dataset.train_images[kept], dataset.train_labels[kept]
    return replace(dataset, train_images=images, train_labels=labels)


def class_groups(
    num_classes: int, class_counts: Sequence[int] | None = None
) -> dict[str, Sequence[int]]:
    """Head, mid and tail classes, by class index, or in thirds by count.

    3/4/3 for 10 classes and 36/35/29 for 100: the only cuts that reproduce every
    overall accuracy of the paper's main table from its groups (also dvlab-research/
    MiSLAS). 390/445/165 for the 1,000 of ImageNet-LT and 842/3,701/3,599 for the 8,142
    of iNaturalist 2018, as the released scripts. Any other number is cut in thirds.

    Args:
        num_classes: C.
        class_counts: Of a user's own images, where the index says nothing: classes are
            ranked by it, those of equal counts by index. [C]

    Raises:
        UsageError: Fewer than three classes.
    """
    if num_classes < 3:
        raise UsageError(f"head, mid and tail need 3 classes, got {num_classes}")
    ranked: Sequence[int] = range(num_classes)
    cuts = {10: (3, 7), 100: (36, 71), 1000: (390, 835), 8142: (842, 4543)}
    if class_counts is not None:
        ranked, cuts = sorted(ranked, key=lambda y: -class_counts[y]), {}
    third = num_classes // 3
    first, last = cuts.get(num_classes, (third, num_classes - third))
    return {"head": ranked[:first], "mid": ranked[first:last], "tail": ranked[last:]}


def load(
    name: str,
    root: str | Path | None = None,
    download: bool = False,
    cache: str | Path = CACHE,
) -> Dataset:
    """Load a dataset; decoding happens once, into one checked file under ``cache``.

    Args:
        name: ``cifar10``, ``cifar100``, ``digits`` (scikit-learn's bundled images,
            8×8 pixels, which need no file) or ``folder:NAME``: your own images in the
            folder NAME of ``root``, see ``saddlebook.data.folders``. These are kept at
            64 pixels, or at their own size where it is one and divides 64.
        root: Folder that holds the original archive or batches, parquet files, or
            class folders, itself or in a folder of that name; ``None``: ``cache``.
        download: Fetch missing CIFAR with torchvision into ``root``.
        cache: Folder of decoded images, made when missing; without a home folder
            images are decoded every time.

    Raises:
        UsageError: Unknown name.
        DataError: Nothing there, or what is there is damaged or another dataset.
    """
    is_own = Experiment(dataset=name).is_own
    if name == "digits":
        splits, names = sources.digits(), sources.CLASS_NAMES[name]
        return _dataset(name, names, splits, _digest(name, splits))
    place, kept = _expanded(root or cache), _expanded(cache)
    if place is None:
        raise DataError(f"no home folder to look for {name} in; name one with it")
    source = (
        folders.find_own(name, place)
        if is_own
        else sources.find_source(name, place, download)
    )
    names = source.class_names
    if kept is None:
        splits = source.read()
        return _dataset(name, names, splits, _digest(name, splits))
    path = kept / f"{name.replace(':', '-')}-{source.fingerprint}.images"
    if known := read_cache(path):
        return _dataset(name, names, *known)
    splits = source.read()
    digest = _digest(name, splits)
    try:
        write_cache(path, splits, digest)
    except (MachineError, ResourceError) as error:
        warnings.warn(f"images will be decoded again next time: {error}", stacklevel=2)
    return _dataset(name, names, splits, digest)


def _expanded(path: str | Path) -> Path | None:
    """None without a home folder: elsewhere anyone could have put a cache."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return None


def _digest(name: str, splits: Splits) -> str:
    digest = sha256(name.encode())
    for images, labels in splits:
        by_class = np.argsort(labels, kind="stable")
        digest.update(np.array([images.shape]).astype("<i8").tobytes())
        digest.update(labels[by_class].astype("<i8").tobytes())
        digest.update(images[by_class].reshape(-1).data)
    return digest.hexdigest()


def _dataset(name: str, names: tuple[str, ...], splits: Splits, digest: str) -> Dataset:
    (images, labels), (test_images, test_labels) = (
        map(torch.from_numpy, split) for split in splits
    )
    return Dataset(name, images, labels, test_images, test_labels, names, digest)
