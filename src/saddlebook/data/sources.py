"""Finds and reads images: CIFAR archives, parquet, class folders, digits, download."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saddlebook.data.batches import RELEASES, Split, Splits, refuse_web_page
from saddlebook.disk.files import locked, read_whole
from saddlebook.errors import (
    DataError,
    MachineError,
    ResourceError,
    explained,
    lacks,
)

if TYPE_CHECKING:
    from PIL import Image

_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach
couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster
house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket
rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip
turtle wardrobe whale willow_tree wolf woman worm
"""
CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "cifar10": tuple(_CIFAR10.split()),
    "cifar100": tuple(_CIFAR100.split()),
    "digits": tuple(str(digit) for digit in range(10)),
}
# ``contents`` of the 50,000 training and 10,000 test images as released
_CONTENTS = {
    "cifar10": "abf4b167a135b062ef28f7f742091acaf0d93435cacacaa70137c477b4a499cb",
    "cifar100": "34a73562c333c3f38088a2a09d18abd6d04eacc4d045680dcbdc10f3a665e06b",
}
_SIZE = 32
_LOSSLESS = (".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
_LOSSY = (".jpg", ".jpeg")
IMAGES = (*_LOSSLESS, *_LOSSY)
# What Pillow may try: others of its readers start programs (EPS: Ghostscript)
_FORMATS = ("PNG", "WEBP", "BMP", "PPM", "TIFF", "JPEG")
_MOST, _MOST_ROWS = 2**28, 100_000  # bytes of an image or parquet file, its rows


@dataclass(frozen=True)
class Source:
    """Files found on disk and how to read them.

    Attributes:
        fingerprint: Changes when a file is replaced (places, sizes, times of change).
        read: Returns the training and the test split.
        class_names: One name per class, in label order.
    """

    fingerprint: str
    read: Callable[[], Splits]
    class_names: tuple[str, ...] = ()


def digits() -> Splits:
    """Scikit-learn's bundled 8×8 digits as grey RGB.

    Every fifth image of a class tests, 34 a class: balanced, as CIFAR's test sets are.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise MachineError(lacks(error)) from error
    bunch = load_digits()
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey[:, None], 3, axis=1)
    labels = bunch.target.astype(np.int64)
    rank = np.zeros(len(labels), np.int64)
    for label in range(10):
        rank[labels == label] = np.arange((labels == label).sum())
    test = (rank % 5 == 4) & (rank < 170)
    return (images[~test], labels[~test]), (images[test], labels[test])


def find_source(name: str, root: Path, download: bool = False) -> Source:
    """Find CIFAR under ``root``, or in a folder of its name there.

    First the original archive or batches, then parquet files in the public hub layout,
    then class folders of images.

    Raises:
        DataError: Nothing there; the message says what to run.
    """
    with explained(f"cannot read {root}", "get a whole copy", DataError):
        source = _search(name, root, whole=download)
        if source is None and download:
            _download(name, root)
            source = _search(name, root)
    if source is None:
        raise DataError(
            f"no {name} at {root}; run data.load({name!r}, download=True), or name the "
            "folder that has it: data_root= (data.load: root=) in Python; on the "
            "command line, which alone reads SADDLEBOOK_DATA, --data"
        )
    names = CLASS_NAMES[name]
    return Source(source.fingerprint, lambda: _checked(name, source.read()), names)


def _search(name: str, root: Path, whole: bool = False) -> Source | None:
    folders = [root / name, root]
    for find_in in (_released, _parquet, _class_folders):
        for folder in folders:
            if source := find_in(name, folder, whole):
                return source
    return None


def _released(name: str, folder: Path, whole: bool) -> Source | None:
    """The archive (if ``whole``, only of the right size), else its folder."""
    for release in RELEASES[name]:
        archive, unpacked = folder / release.archive, folder / release.folder
        sized = archive.is_file() and archive.stat().st_size == release.size
        if sized or (archive.is_file() and not whole):
            return Source(fingerprint([archive]), partial(release.read, name, archive))
        if unpacked.is_dir():
            files = [unpacked / file for file in release.files]
            if absent := [path.name for path in files if not path.is_file()]:
                raise DataError(f"{unpacked} lacks {', '.join(absent)}")
            return Source(fingerprint(files), partial(release.read, name, unpacked))
    return None


def fingerprint(paths: list[Path]) -> str:
    """16 hex digits of the places, sizes and times of change of files."""
    facts = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
    return sha256(repr(facts).encode()).hexdigest()[:16]


def _parquet(name: str, folder: Path, whole: bool) -> Source | None:
    for part in ("", "data", "plain_text", name):
        train, test = (
            sorted((folder / part).glob(f"{split}-*.parquet"))
            for split in ("train", "test")
        )
        if train and test:
            read = partial(_parquet_splits, name, train, test)
            return Source(fingerprint([*train, *test]), read)
    return None


def _parquet_splits(name: str, train: list[Path], test: list[Path]) -> Splits:
    parts = [[_parquet_file(name, path) for path in paths] for paths in (train, test)]
    return _joined(parts[0]), _joined(parts[1])


def _joined(parts: list[Split]) -> Split:
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _parquet_file(name: str, path: Path) -> Split:
    """Images and labels of one file in row order.

    A few rows at a time: a small file can repeat one large image very often.
    """
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    labels: list[int] = []
    images: list[NDArray[np.uint8]] = []
    with explained(f"{path} cannot be read as {name}", "get a whole copy", DataError):
        content = read_whole(path, _MOST)
        refuse_web_page(path, content)
        file = parquet.ParquetFile(arrow.BufferReader(content))
        if file.metadata.num_rows > _MOST_ROWS:
            raise ValueError(f"{file.metadata.num_rows} rows, at most {_MOST_ROWS}")
        column = _label_column(name, file.schema_arrow)
        wanted = ["img.bytes", column]
        for batch in file.iter_batches(16, columns=wanted, use_threads=False):
            labels += batch.column(column).to_pylist()
            for row in batch.column("img").to_pylist():
                where = f"{path}, row {len(images)}"
                images.append(_pixels((row or {}).get("bytes"), where))
        return np.array(images).reshape(-1, 3, _SIZE, _SIZE), np.array(labels, np.int64)


def _label_column(name: str, schema: Any) -> str:
    columns = ("label", "labels") if name == "cifar10" else ("fine_label", "label")
    known = [column for column in columns if column in schema.names]
    if not known or (name == "cifar10" and "fine_label" in schema.names):
        raise KeyError(f"no column {columns[0]} among {', '.join(schema.names)}")
    if not str(schema.field(known[0]).type).startswith(("int", "uint")):
        raise TypeError(f"{known[0]} holds {schema.field(known[0]).type}")
    return known[0]


def _pixels(encoded: bytes | None, where: str) -> NDArray[np.uint8]:
    """Decode one image to uint8 [3, 32, 32], refusing what is no plain CIFAR image."""
    if not encoded:
        raise DataError(f"{where}: no image")
    with (
        explained(f"{where}: no 32x32 RGB image", "get a whole copy", DataError),
        picture(encoded) as image,
    ):
        if image.size != (_SIZE, _SIZE) or image.mode != "RGB":
            raise ValueError(f"{image.size} pixels, mode {image.mode}")
        return np.asarray(image).transpose(2, 0, 1)


def picture(file: bytes | Path) -> Image.Image:
    """Open an image of a plain format, whatever its name says; nothing is decoded yet.

    Raises:
        Exception: Anything that Pillow raises.
    """
    from PIL import Image

    content = file if isinstance(file, bytes) else read_whole(file, _MOST)
    return Image.open(BytesIO(content), formats=_FORMATS)


def _class_folders(name: str, folder: Path, whole: bool) -> Source | None:
    """``train/<class>/*`` and ``test/<class>/*``; within a class by file name."""
    train, test = folder / "train", folder / "test"
    if not (train.is_dir() and test.is_dir()):
        return None
    listed = [_listed(name, split) for split in (train, test)]
    paths = [path for split in listed for path, _ in split]
    return Source(fingerprint(paths), lambda: (_images(listed[0]), _images(listed[1])))


def _listed(name: str, split: Path) -> list[tuple[Path, int]]:
    classes = CLASS_NAMES[name]
    found = sorted(path.name for path in split.iterdir() if path.is_dir())
    if found != list(classes):
        odd = sorted(set(found) ^ set(classes))
        raise DataError(f"{split} is not {name}: class folders differ in {odd[:10]}")
    listed = []
    for label, class_name in enumerate(classes):
        for path in sorted((split / class_name).iterdir()):
            if path.suffix.lower() in _LOSSY:
                raise DataError(
                    f"{path} is JPEG: a lossy copy, not {name}; use a lossless one"
                )
            if path.suffix.lower() in _LOSSLESS:
                listed.append((path, label))
    return listed


def _images(listed: list[tuple[Path, int]]) -> Split:
    images = np.empty((len(listed), 3, _SIZE, _SIZE), np.uint8)
    for row, (path, _) in enumerate(listed):
        images[row] = _pixels(_content(path), str(path))
    return images, np.array([label for _, label in listed], np.int64)


def _content(path: Path) -> bytes:
    with explained(f"cannot read {path}", "get a whole copy", DataError):
        return read_whole(path, _MOST)


def _checked(name: str, splits: Splits) -> Splits:
    """Refuse another dataset, other labels, and images that are missing or changed.

    A smaller copy with equal classes is let through; its digest tells it apart.
    """
    for what, (_, labels) in zip(("training", "test"), splits, strict=True):
        _check_labels(name, what, labels)
    whole = [len(labels) for _, labels in splits] == [50_000, 10_000]
    if whole and contents(splits) != _CONTENTS[name]:
        raise DataError(
            f"these 60,000 images are not the released {name}: a pixel or a label "
            "differs (a lossy copy, or damage); get a lossless copy"
        )
    return splits


def _check_labels(name: str, what: str, labels: NDArray[np.int64]) -> None:
    classes = CLASS_NAMES[name]
    present = np.unique(labels).tolist()
    if present != list(range(len(classes))):
        raise DataError(
            f"the {what} labels have {len(present)} values ({present[:1]} to "
            f"{present[-1:]}), {name} has {len(classes)} classes: another dataset, or "
            "coarse labels?"
        )
    counts = np.bincount(labels)
    odd = int(counts.argmin())
    if counts[odd] != counts.max():
        raise DataError(
            f"class {odd} ({classes[odd]}) has {counts[odd]} {what} images, others "
            f"{counts.max()}: {name} has equal classes, so images are missing or "
            "misplaced; get a whole copy"
        )


def contents(splits: Splits) -> str:
    """SHA-256 of the images with their labels, whatever their order in a split."""
    digest = sha256()
    for images, labels in splits:
        each = zip(images, labels, strict=True)
        digest.update(b"".join(sorted(_image_digest(*pair) for pair in each)))
    return digest.hexdigest()


def _image_digest(image: NDArray[np.uint8], label: int) -> bytes:
    return sha256(bytes([label]) + image.tobytes()).digest()


def _download(name: str, root: Path) -> None:
    """Fetch the archive with torchvision, which checks its MD5."""
    from torchvision import datasets

    fetch = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    try:
        with locked(root / f".{name}.lock", f"the download of {name}"):
            fetch(root, download=True)
    except (OSError, RuntimeError, EOFError) as error:
        number = getattr(error, "errno", None)
        if number in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR):
            raise MachineError(f"cannot write {root} ({error}); use another") from error
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"disk full: {root} needs 360 MB for {name}") from error
        raise DataError(
            f"{name} could not be downloaded ({error}); get {fetch.url} by other means "
            f"and put it into {root}"
        ) from error
