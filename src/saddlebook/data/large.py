"""Reads the large sets: split files, images one by one or from one map of pixels.

ImageNet-LT and iNaturalist 2018 as they are published: two text files of lines ``path
label`` and the images below one folder. Labels are ranked by the number of training
images, largest first, as the released code does it. A view of an image is a function of
(seed, epoch, image), a batch of (seed, epoch, step): neither the number of processes
nor a resume changes one.

Legend: N training and M test images, B images of a batch, C classes, S pixels.

References:
    Liu et al. 2019 (ImageNet-LT); Van Horn et al. 2018 (iNaturalist); split files and
    transforms as in the released code of Rangwani et al. 2022.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from saddlebook.data import augmentation
from saddlebook.data.sources import picture
from saddlebook.disk.files import dump_json, load_json, read_whole, sha256, write_whole
from saddlebook.errors import DataError, MachineError, ResourceError, explained
from saddlebook.experiment import LARGE, LISTED, Experiment

# Training and test list as published, and how many images they name
_PUBLISHED = {
    "imagenet-lt": ("ImageNet_LT_train", "ImageNet_LT_test", 115_846, 50_000),
    "inaturalist18": ("iNaturalist18_train", "iNaturalist18_val", 437_513, 24_426),
}
_STATISTICS = {"inaturalist18": ((0.466, 0.471, 0.380), (0.195, 0.194, 0.192))}
_USUAL = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of ImageNet
Keys = Iterator[list[tuple[int, int]]]  # (epoch, row) of each image of each batch


class Split(NamedTuple):
    """The training or the test images.

    Attributes:
        paths: Below ``root``.
        labels: Ranked by class size. int64 [N]
        root: Folder of the images.
        pixels: Images that were brought to one size before. uint8 [N, 3, S, S]
    """

    paths: list[str]
    labels: Tensor
    root: Path
    pixels: np.ndarray[Any, np.dtype[np.uint8]] | None = None


@dataclass(frozen=True, eq=False)
class Lists:
    """One of the large sets, checked.

    Attributes:
        name: As in the experiment.
        train: 115,846 images of ImageNet-LT, 437,513 of iNaturalist 2018.
        test: 50,000 and 24,426.
        class_names: The labels of the files, by rank. [C]
        class_counts: Training images, descending. [C]
        digest: SHA-256 of every path, label and file size.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    digest: str = ""

    def map_file(self, stored: int) -> Path:
        """Where all images at ``stored`` pixels lie, training images first."""
        return self.train.root / f"{self.name.rpartition(':')[2]}-{stored}.map"


def find_large(
    experiment: Experiment, folder: str | Path, images: str | Path | None = None
) -> Lists:
    """Read the split files and look at every image file they name, or at their map.

    Args:
        experiment: Its dataset, and whether its pipeline is ``mapped``.
        folder: Of the split files.
        images: Folder their paths start from, and of the map; None: the same.

    Raises:
        DataError: A file is missing, malformed or of another set; names the first
            missing images.
    """
    name, root = experiment.dataset, Path(images or folder)
    short = name.removeprefix(LISTED)
    files = _PUBLISHED.get(name, (f"{short}_train", f"{short}_test"))[:2]
    (train, labels), (test, others) = (_parsed(Path(folder, f"{f}.txt")) for f in files)
    sizes = _checked_sizes(name, labels, others)
    order = sizes.argsort(descending=True, stable=True)
    rank = order.argsort()
    found = Lists(
        name, Split(train, rank[labels], root), Split(test, rank[others], root),
        tuple(map(str, order.tolist())), tuple(sizes[order].tolist()),
    )  # fmt: skip
    if experiment.pipeline == "mapped":
        return _with_map(found, stored_size(experiment.image_size))
    return replace(found, digest=_looked_at(found))


def _parsed(path: Path) -> tuple[list[str], Tensor]:
    with explained(f"cannot read {path}", "put the split file there", DataError):
        lines = read_whole(path).decode().splitlines()
    for number, line in enumerate(lines, 1):
        if not re.fullmatch(r"\S.* \d{1,6}", line.strip()):
            raise DataError(f"{path}, line {number}: {line[:80]!r} is not 'path label'")
    parts = [line.strip().rpartition(" ") for line in lines]
    return [part[0] for part in parts], torch.tensor([int(part[2]) for part in parts])


def _checked_sizes(name: str, train: Tensor, test: Tensor) -> Tensor:
    """Training images of each class, int64 [C].

    Raises:
        DataError: A class without images, or another number of images or classes.
    """
    most = max(len(torch.bincount(t)) for t in (train, test))
    sizes, tested = (torch.bincount(t, minlength=most) for t in (train, test))
    found = (len(train), len(test), most)
    if name in LARGE and found != (*_PUBLISHED[name][2:], LARGE[name]):
        raise DataError(
            f"the lists of {name} have {found[0]} and {found[1]} images of {most} "
            f"classes, not {_PUBLISHED[name][2]} and {_PUBLISHED[name][3]} of "
            f"{LARGE[name]}; get the published ones, or name yours lists:NAME"
        )
    empty = ((sizes == 0) | (tested == 0)).nonzero().flatten().tolist()
    if empty or most < 3:
        raise DataError(
            f"the lists of {name} have {most} classes, {len(empty)} of them without "
            f"images to train or to test {empty[:10]}; three are needed, with both"
        )
    return sizes


def _looked_at(lists: Lists) -> str:
    """Digest of paths, labels and sizes; names what is missing."""
    facts, missing = [], []
    for split in (lists.train, lists.test):
        for path, label in zip(split.paths, split.labels.tolist(), strict=True):
            try:
                facts.append(f"{path} {label} {os.stat(split.root / path).st_size}")
            except OSError:
                missing.append(path)
    if missing:
        raise DataError(
            f"{len(missing)} of {len(facts) + len(missing)} images of {lists.name} are "
            f"not below {lists.train.root}: {', '.join(missing[:3])}; name the folder "
            "that the paths of the split files start from (--images)"
        )
    return sha256("\n".join(facts).encode())


def counted_large(experiment: Experiment, lists: Lists) -> Experiment:
    """The experiment with what only the lists tell of a set that is not published.

    Raises:
        DataError: It was made for other images.
    """
    if experiment.dataset in LARGE:
        return experiment
    digest, made_for = lists.digest[:16], experiment.images_digest
    if made_for not in ("", digest):
        told = f"{lists.name} has other images than the experiment was made for"
        raise DataError(f"{told}: digest {digest}, not {made_for}; bring them back")
    return replace(experiment, classes=len(lists.class_counts), images_digest=digest)


def stored_size(size: int) -> int:
    """Pixels of the short side of which the network sees ``size``: 256 of 224."""
    return size * 8 // 7


class Views(Dataset[Tensor]):
    """Images of a split as the network's input needs them, by (epoch, row). uint8

    Epoch 0 is for tests: the short side at ``short`` pixels (0: ``stored_size``),
    then the centre. From a map come whole stored images, which ``input_of`` crops.
    """

    def __init__(self, split: Split, size: int, seed: int = 0, short: int = 0) -> None:
        from torchvision.transforms import v2

        self.split, self.seed = split, seed
        jitter = v2.ColorJitter(*[augmentation.JITTER] * 3)
        crop, flip = v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()
        self._train = v2.Compose([crop, flip, jitter, v2.PILToTensor()])
        small, centre = v2.Resize(short or stored_size(size)), v2.CenterCrop(size)
        self._test = v2.Compose([small, centre, v2.PILToTensor()])

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Tensor:
        """Views of a batch. uint8 [B, 3, S, S]"""
        if self.split.pixels is not None:
            return torch.from_numpy(self.split.pixels[[row for _, row in keys]])
        return torch.stack([self[key] for key in keys])

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        epoch, row = key
        path = self.split.root / self.split.paths[row]
        with explained(f"{path} cannot be read as an image", "replace it", DataError):
            image = picture(path).convert("RGB")
        if not epoch:
            return self._test(image)
        word = sha256(f"{self.seed} {epoch} {row}".encode())[:8]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(word, 16))
            return self._train(image)


@dataclass(frozen=True)
class Batches:
    """The batches of a run, the same for any number of processes.

    Attributes:
        seed: Of the order.
        count: N.
        size: Images of a batch; a last one with fewer than two images a piece, which
            batch norm cannot take, is left out.
        pieces: Parts of a batch, shared out over processes in order.
    """

    seed: int
    count: int
    size: int
    pieces: int

    def __len__(self) -> int:
        whole, rest = divmod(self.count, self.size)
        return whole + (rest >= 2 * self.pieces)

    def epoch(self, epoch: int) -> tuple[Tensor, ...]:
        """Rows of each batch of an epoch, from 1."""
        order = augmentation.epoch_order(self.seed, epoch, self.count)
        return order.split(self.size)[: len(self)]

    def mine(self, rows: Tensor, rank: int, world: int) -> tuple[Tensor, ...]:
        """The pieces of a batch that one of ``world`` processes takes."""
        each = self.pieces // world
        return rows.tensor_split(self.pieces)[rank * each : (rank + 1) * each]

    def keys(self, start: tuple[int, int], epochs: int, rank: int, world: int) -> Keys:
        """What a process fetches, from (epoch, step) to the end."""
        for epoch in range(start[0], epochs + 1):
            for rows in self.epoch(epoch)[start[1] if epoch == start[0] else 0 :]:
                mine = torch.cat(self.mine(rows, rank, world)).tolist()
                yield [(epoch, row) for row in mine]


def fetched(
    views: Views, keys: Keys, readers: int = 0, pinned: bool = False
) -> Iterator[Tensor]:
    """Views of every list of keys in their order, read ahead by ``readers`` processes.

    Raises:
        DataError: An image cannot be read; one line, whichever process met it.
        MachineError: A process that reads was killed.
    """
    try:
        yield from DataLoader(
            views, batch_sampler=keys, num_workers=readers, pin_memory=pinned,
            collate_fn=torch.as_tensor,
        )  # fmt: skip
    except DataError as error:  # a reader's error comes with its traceback
        raise DataError(str(error).strip().rpartition("DataError: ")[2]) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        told = "a process that reads images was killed; the last checkpoint is kept"
        raise MachineError(f"{told}; fewer --readers take less memory") from error


def pack(lists: Lists, size: int, readers: int = 0) -> Path:
    """Write the map of all images for crops of ``size`` pixels: centre squares, uint8.

    First the pixels and then their description, each whole: 33 GB for ImageNet-LT at
    224 pixels, 91 GB for iNaturalist 2018.

    Raises:
        DataError: An image cannot be read; nothing is left behind.
        ResourceError: The disk is full; nothing is left behind.
    """
    stored = stored_size(size)
    path = lists.map_file(stored)
    partial = path.with_suffix(".part")
    full = explained(f"cannot write {path}", "free space and pack again", ResourceError)
    try:
        with full, partial.open("wb") as out:
            for split in (lists.train, lists.test):
                rows = torch.arange(len(split.paths)).split(64)
                keys = iter([[(0, row) for row in some.tolist()] for some in rows])
                for some in fetched(Views(split, stored, short=stored), keys, readers):
                    out.write(some.numpy().tobytes())
            out.flush()
            os.fsync(out.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    facts = {"digest": lists.digest, "lists": _named(lists)}
    write_whole(path.with_suffix(".json"), dump_json(facts))
    return path


def _named(lists: Lists) -> str:
    """Digest of paths and labels alone."""
    splits = (lists.train, lists.test)
    return sha256(repr([(s.paths, s.labels.tolist()) for s in splits]).encode())


def _with_map(lists: Lists, stored: int) -> Lists:
    """The lists with the map of their images instead of files.

    Raises:
        DataError: It is missing, cut short or of other lists.
    """
    path, (train, test) = lists.map_file(stored), (lists.train, lists.test)
    shape = (len(train.paths) + len(test.paths), 3, stored, stored)
    with explained(f"no whole map {path}", "make it with --pack", DataError):
        facts = load_json(path.with_suffix(".json"))
        if facts["lists"] != _named(lists):
            raise ValueError("it is of other lists")
        if path.stat().st_size != np.prod(shape):
            raise ValueError("it is cut short")
        pixels = np.memmap(path, np.uint8, "r", shape=shape)
    train = train._replace(pixels=pixels[: len(train.paths)])
    test = test._replace(pixels=pixels[len(train.paths) :])
    return replace(lists, train=train, test=test, digest=str(facts["digest"]))


def input_of(
    images: Tensor, name: str, size: int, dtype: torch.dtype, numbers: Tensor | None
) -> Tensor:
    """What the network sees: views as they are, or crops that are made here.

    Args:
        images: uint8 [B, 3, S, S] on the device.
        name: Of the dataset, whose channel statistics are taken.
        size: Pixels of the input; of larger images the centre, or a random crop.
        dtype: Of the input.
        numbers: Of ``augmentation.view_numbers``, to crop at random. [B, 8]

    Returns:
        Normalised, channels-last. [B, 3, size, size]
    """
    if numbers is not None:
        numbers = numbers.to(images.device, dtype)
        images = augmentation.random_crops(images, size, numbers)
    edge = (images.shape[-1] - size) // 2
    centre = images[..., edge : edge + size, edge : edge + size]
    normal = augmentation.normalise(centre, dtype, _STATISTICS.get(name, _USUAL))
    return normal.contiguous(memory_format=torch.channels_last)
