"""Images by class for the ``spectra`` command: a named data set, or class folders.

Knows files and uint8 tensors; no network.
Legend: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saddlebook import data
from saddlebook.data import sources
from saddlebook.disk.files import sha256
from saddlebook.errors import DataError, UsageError, explained, printable


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


def find(
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
    """Images of a data set, long-tailed or whole; arguments as in ``find``."""
    if imbalance_factor or max_count:
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
            sources.find(name, folder)
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


def _class_folders(folder: Path) -> dict[str, list[Path]]:
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


def _from_folders(
    folder: Path, classes: dict[str, list[Path]], image_size: int | None
) -> Images:
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
