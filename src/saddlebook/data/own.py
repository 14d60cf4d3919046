"""Reads a user's own images, in class folders, and tells an Experiment what it found.

The folder NAME of ``folder:NAME`` holds ``train`` and ``test``, each with one folder
per class; or the class folders themselves, and then a fifth of each class tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from saddlebook.data.batches import Split, Splits
from saddlebook.data.sources import IMAGES, Source, fingerprint, picture
from saddlebook.errors import DataError, UsageError, explained
from saddlebook.experiment import OWN, Experiment

if TYPE_CHECKING:
    from saddlebook.data.longtail import Dataset

SIZE = 64  # pixels that are kept; images of one smaller size that divides it stay
_TESTED = 0.2  # of each class, where there is no test folder
_Listed = dict[str, list[Path]]  # class name: files


def find(name: str, root: Path) -> Source:
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
    return Source(
        fingerprint(_files(train, test)), partial(_splits, train, test), tuple(train)
    )


def _listed(folder: Path) -> _Listed:
    """Files by class, found as torchvision's ``ImageFolder`` finds them.

    Classes in text order, as there; names that are all integers in their own order, so
    that 2 comes before 10.
    """
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
    if all(name.isdecimal() for name in names):
        names.sort(key=int)
    found = {
        name: sorted(
            p for p in (folder / name).rglob("*") if p.suffix.lower() in IMAGES
        )
        for name in names
    }
    empty = [name for name in names if not found[name]]
    if empty or len(names) < 3:
        raise DataError(
            f"{folder} has {len(names)} class folders, {len(empty)} without images "
            f"{empty[:10]}; head, mid and tail need three classes with images in each"
        )
    return found


def _divided(classes: _Listed) -> tuple[_Listed, _Listed]:
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


def _splits(train: _Listed, test: _Listed) -> Splits:
    """Decode everything at one size: the centre square, RGB."""
    size = _common_size(_files(train, test))
    return _split(train, size), _split(test, size)


def _files(*parts: _Listed) -> list[Path]:
    return [path for part in parts for paths in part.values() for path in paths]


def _common_size(files: list[Path]) -> int:
    sizes = set()
    for path in files:
        with (
            explained(f"{path} cannot be read as an image", "replace it", DataError),
            picture(path) as image,
        ):
            sizes.add(image.size)
    (width, height), *others = sizes
    whole = not others and width == height and SIZE % width == 0
    return width if whole else SIZE


def _split(classes: _Listed, size: int) -> Split:
    from saddlebook.data.folders import read_image

    files = _files(classes)
    images = np.empty((len(files), 3, size, size), np.uint8)
    for row, path in enumerate(files):
        images[row] = read_image(path, size).numpy()
    sizes = [len(paths) for paths in classes.values()]
    return images, np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)


def counted(experiment: Experiment, dataset: Dataset) -> Experiment:
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
    from saddlebook.data.longtail import class_groups

    counts = class_counts if experiment.is_own else None
    return class_groups(experiment.num_classes, counts)


def to_folders(dataset: Dataset, folder: str | Path) -> Path:
    """Write the images as ``train`` and ``test`` with one folder of PNGs per class."""
    from PIL import Image

    for part in ("train", "test"):
        images, labels = (
            getattr(dataset, f"{part}_{of}") for of in ("images", "labels")
        )
        for row, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            place = Path(folder) / part / dataset.class_names[label]
            place.mkdir(parents=True, exist_ok=True)
            pixels = Image.fromarray(image.permute(1, 2, 0).numpy())
            pixels.save(place / f"{row:06d}.png")
    return Path(folder)
