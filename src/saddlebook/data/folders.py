"""Reads images in class folders: a user's own, to train on and to measure spectra of.

The folder NAME of ``folder:NAME`` holds ``train`` and ``test``, each with one folder
per class; or the class folders themselves, and then a fifth of each class tests. The
``spectra`` command also takes a named data set here. Images below a class folder are
found as torchvision's ``ImageFolder`` finds them.

Legend: N images, C classes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saddlebook import data
from saddlebook.data import sources
from saddlebook.data.batches import Split, Splits
from saddlebook.disk.files import sha256, write_whole
from saddlebook.errors import DataError, UsageError, explained, printable
from saddlebook.experiment import OWN, Experiment

SIZE = 64  # pixels that are kept; images of one smaller size that divides it stay
_TESTED = 0.2  # of each class, where there is no test folder
Classes = dict[str, list[Path]]  # class name: its files


class Images(NamedTuple):
    """Images that are read class by class.

    Attributes:
        name: Of the data set or the folder, no path.
        class_names: [C], in label order.
        counts: Training images of each class, what LDAM and VS depend on. [C]
        sizes: Images of each class that can be measured. [C]
        digest: Of the data set, or of the names and sizes of the files.
        read: (class, positions [N]) to uint8 [N, 3, H, W].
    """

    name: str
    class_names: tuple[str, ...]
    counts: tuple[int, ...]
    sizes: tuple[int, ...]
    digest: str
    read: Callable[[int, Tensor], Tensor]


def find_images(
    where: str,
    root: str | None = None,
    *,
    imbalance_factor: float | None = None,
    max_count: int | None = None,
    held_out: bool = False,
    image_size: int | None = None,
    class_order: str | None = None,
) -> Images:
    """A named data set, CIFAR in a folder, or class folders of images.

    Args:
        where: ``cifar10``, ``cifar100``, ``digits``, or a folder: of one class folder
            a class (labels by sorted name), or with CIFAR as ``data.load`` knows it.
        root: Folder of a named data set.
        imbalance_factor: Cut the training images to the published long tail; not for
            class folders. None: all of them.
        max_count: Images of the largest class; None: all of them.
        held_out: The test images instead.
        image_size: Pixels; None leaves images as they are.
        class_order: Of class folders named by numbers: ``text`` or ``number``; None
            refuses names whose orders differ.

    Raises:
        UsageError: The settings do not fit the data.
        DataError: Nothing there, or an image cannot be read.
    """
    if where in sources.CLASS_NAMES:
        dataset = data.load(where, root)
    else:
        folder = Path(where).expanduser()
        with explained(f"cannot read {where}", "repair or replace it", DataError):
            if classes := _class_folders(folder):
                names = _ordered(folder, list(classes), class_order)
                classes = {name: classes[name] for name in names}
                if imbalance_factor or max_count or held_out:
                    raise UsageError(
                        "class folders are measured whole: no --imbalance-factor, "
                        "--max-count or --held-out; name the folder you mean"
                    )
                return _from_folders(folder, classes, image_size)
        dataset = data.load(_cifar_in(folder), folder)
    return of_dataset(
        dataset, imbalance_factor, max_count, held_out=held_out, image_size=image_size
    )


def of_dataset(
    dataset: data.Dataset,
    imbalance_factor: float | None = None,
    max_count: int | None = None,
    *,
    imbalance: str = "exp",
    held_out: bool = False,
    image_size: int | None = None,
) -> Images:
    """Images of a data set, long-tailed or whole; arguments as in ``find_images``."""
    if imbalance != "as_is" and (imbalance_factor or max_count):
        largest = max_count or int(torch.bincount(dataset.train_labels).min())
        tail = data.class_counts(
            largest, dataset.num_classes, imbalance_factor or 1.0, imbalance
        )
        dataset = data.long_tail(dataset, tail)
    images, labels = dataset.train_images, dataset.train_labels
    counts = torch.bincount(labels, minlength=dataset.num_classes)
    if held_out:
        images, labels = dataset.test_images, dataset.test_labels
    sizes = torch.bincount(labels, minlength=dataset.num_classes)

    def read(class_: int, rows: Tensor) -> Tensor:
        members = images[(labels == class_).nonzero().flatten()[rows]]
        return data.resize(members, image_size or members.shape[-1])

    named = dataset.name, dataset.class_names
    numbers = (tuple(counts.tolist()), tuple(sizes.tolist()))
    return Images(*named, *numbers, dataset.digest, read)


def _cifar_in(folder: Path) -> str:
    """Which CIFAR a folder holds."""
    found = []
    for name in ("cifar10", "cifar100"):
        try:
            sources.find_source(name, folder)
        except DataError as error:
            if "lacks" in str(error):  # part of it is there
                raise
        else:
            found.append(name)
    if not found:
        raise DataError(
            f"{folder} holds neither class folders with images nor CIFAR; name a "
            f"folder that does, or one of {', '.join(sources.CLASS_NAMES)}"
        )
    if len(found) > 1:
        raise UsageError(
            f"{folder} holds cifar10 and cifar100: give --data cifar10 --root {folder}"
        )
    return found[0]


def _class_folders(folder: Path) -> Classes:
    """Image files by class, empty classes included; nothing if no class has any."""
    if not folder.is_dir():
        return {}
    places = sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
    found = {
        # as torchvision's ImageFolder: whatever lies below, too
        place.name: sorted(
            f for f in place.rglob("*") if f.suffix.lower() in sources.IMAGES
        )
        for place in places
    }
    return found if any(found.values()) else {}


def _ordered(folder: Path, names: list[str], order: str | None) -> list[str]:
    """Class names by label: as text, or as numbers where that was asked for.

    Raises:
        UsageError: Both orders differ and none was asked for.
    """
    numeric = all(name.isdecimal() for name in names)
    if order == "number" and not numeric:
        raise UsageError(f"class folders of {folder.name} are no numbers: no order")
    by_number = sorted(names, key=int) if numeric else names
    if order is None and by_number != names:
        raise UsageError(
            f"class folders of {folder.name} are numbers whose order as text "
            f"({', '.join(names[:3])}, ...) is another than as numbers; which one the "
            "network was trained with decides the labels: give --class-order text "
            "(torchvision's ImageFolder) or number"
        )
    return by_number if order == "number" else names


def _from_folders(folder: Path, classes: Classes, image_size: int | None) -> Images:
    files = list(classes.values())
    facts = [
        (name, f.name, f.stat().st_size) for name, fs in classes.items() for f in fs
    ]
    sizes = tuple(map(len, files))

    def read(class_: int, rows: Tensor) -> Tensor:
        chosen = [files[class_][row] for row in rows.tolist()]
        pixels = [read_image(path, image_size) for path in chosen]
        shapes = {image.shape[1:] for image in pixels}
        if len(shapes) > 1:
            raise UsageError(
                f"images of class {class_} have {len(shapes)} sizes; give --image-size"
            )
        return torch.stack(pixels)

    digest = sha256(repr(facts).encode())
    names = tuple(map(printable, classes))
    name = printable(folder.resolve().name)
    return Images(name, names, sizes, sizes, digest, read)


def read_image(path: Path, size: int | None) -> Tensor:
    """One image as RGB, its centre square at ``size`` pixels. uint8 [3, H, W]"""
    from PIL import Image, ImageOps

    with (
        explained(f"{path} cannot be read as an image", "replace it", DataError),
        sources.picture(path) as image,
    ):
        colours = image.convert("RGB")
        if size is not None:
            colours = ImageOps.fit(colours, (size, size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(colours).transpose(2, 0, 1).copy())


def find_own(name: str, root: Path) -> sources.Source:
    """Find the class folders of ``folder:NAME`` under ``root``.

    Raises:
        DataError: Nothing there, fewer than three classes, a class without images, or
            other classes in ``test`` than in ``train``.
    """
    folder = root / name.removeprefix(OWN)
    if not folder.is_dir():
        raise DataError(
            f"no folder {folder.name} at {root}; put it there, with one folder per "
            "class, or name the folder that has it (SADDLEBOOK_DATA or --data)"
        )
    if all((folder / part).is_dir() for part in ("train", "test")):
        train, test = _listed(folder / "train"), _listed(folder / "test")
    else:
        train, test = _divided(_listed(folder))
    if odd := sorted(set(train) ^ set(test)):
        raise DataError(f"{folder}: train and test differ in the classes {odd[:10]}")
    files = _files(train, test)
    if dead := [path for path in files if not path.exists()]:
        raise DataError(f"{dead[0]} is a link to nothing; bring it back or delete it")
    return sources.Source(
        sources.fingerprint(files),
        partial(_splits, train, test),
        tuple(train),
    )


def _listed(folder: Path) -> Classes:
    """Files by class; names that are all integers in their own order: 2 before 10."""
    found = _class_folders(folder)
    names = list(found)
    if all(name.isdecimal() for name in names):
        names.sort(key=int)
    empty = [name for name in names if not found[name]]
    if empty or len(names) < 3:
        raise DataError(
            f"{folder} has {len(names)} class folders, {len(empty)} without images "
            f"{empty[:10]}; head, mid and tail need three classes with images in each"
        )
    return {name: found[name] for name in names}


def _divided(classes: Classes) -> tuple[Classes, Classes]:
    """The rest and a fifth of each class, at least one image; always the same."""
    generator = np.random.RandomState(0)
    train, test = {}, {}
    for name, files in classes.items():
        if len(files) < 2:
            raise DataError(
                f"class {name} has one image, which cannot both train and test; add "
                "some, or make the folders train and test yourself"
            )
        kept = max(1, round(_TESTED * len(files)))
        order = generator.permutation(len(files))
        test[name] = [files[i] for i in sorted(order[:kept])]
        train[name] = [files[i] for i in sorted(order[kept:])]
    return train, test


def _splits(train: Classes, test: Classes) -> Splits:
    """Decode everything at one size: the centre square, RGB."""
    size = _common_size(_files(train, test))
    return _split(train, size), _split(test, size)


def _files(*parts: Classes) -> list[Path]:
    return [path for part in parts for paths in part.values() for path in paths]


def _common_size(files: list[Path]) -> int:
    sizes = set()
    for path in files:
        with (
            explained(f"{path} cannot be read as an image", "replace it", DataError),
            sources.picture(path) as image,
        ):
            sizes.add(image.size)
    (width, height), *others = sizes
    whole = not others and width == height and SIZE % width == 0
    return width if whole else SIZE


def _split(classes: Classes, size: int) -> Split:
    files = _files(classes)
    images = np.empty((len(files), 3, size, size), np.uint8)
    for row, path in enumerate(files):
        images[row] = read_image(path, size).numpy()
    sizes = [len(paths) for paths in classes.values()]
    return images, np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)


def counted(experiment: Experiment, dataset: data.Dataset) -> Experiment:
    """The experiment with what only the images tell: classes, n_max and digest.

    Of ``cifar10``, ``cifar100`` and ``digits`` nothing is missing. Without a
    ``max_count``, a long tail is drawn from as many images as the smallest class has.

    Raises:
        UsageError: The dataset is another one than the experiment's.
        DataError: The experiment was counted on other images.
    """
    if experiment.dataset != dataset.name:
        raise UsageError(f"{experiment.dataset} cannot be counted in {dataset.name}")
    if not experiment.is_own:
        return experiment
    digest, counts = dataset.digest[:16], np.bincount(dataset.train_labels)
    if experiment.images_digest not in ("", digest):
        raise DataError(
            f"{dataset.name} has other images than the experiment was made for: digest "
            f"{digest}, not {experiment.images_digest}; bring them back, or start anew"
        )
    drawn = experiment.imbalance != "as_is"
    most = experiment.max_count or int(counts.min()) if drawn else None
    classes = dataset.num_classes
    return replace(experiment, classes=classes, images_digest=digest, max_count=most)


def groups(
    experiment: Experiment, class_counts: Sequence[int]
) -> dict[str, Sequence[int]]:
    """Head, mid and tail classes: of own images thirds by count, else by index."""
    counts = class_counts if experiment.is_own else None
    return data.class_groups(experiment.num_classes, counts)


def to_folders(dataset: data.Dataset, folder: str | Path) -> Path:
    """Write the images as ``train`` and ``test`` with one folder of PNGs per class.

    Files are written whole, and those that are there with these bytes are left alone:
    another process may be reading them.
    """
    from PIL import Image

    for part in ("train", "test"):
        images, labels = (
            getattr(dataset, f"{part}_{of}") for of in ("images", "labels")
        )
        for row, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            place = Path(folder) / part / dataset.class_names[label]
            pixels, png = Image.fromarray(image.permute(1, 2, 0).numpy()), io.BytesIO()
            pixels.save(png, "png")
            _write_new(place / f"{row:06d}.png", png.getvalue())
    return Path(folder)


def _write_new(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        write_whole(path, content)
