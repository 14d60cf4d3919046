"""Small balanced copies of CIFAR in every layout that is read, for tests."""

import io
import pickle
import tarfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
from PIL import Image

from saddlebook import data
from saddlebook.data.batches import RELEASES
from saddlebook.data.sources import CLASS_NAMES

PYTHON, BINARY = KINDS = 0, 1
NAMES = ("cifar10", "cifar100")


def made_up(name, each, seed):
    """Random images, ``each`` of every class, classes interleaved."""
    classes = len(CLASS_NAMES[name])
    labels = np.tile(np.arange(classes), each)
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8)
    return images, labels


def splits(name="cifar10", each=5):
    return made_up(name, each, 0), made_up(name, 2, 1)


def encoded(image, form="PNG"):
    out = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(out, form)
    return out.getvalue()


def write_parquet(folder, name="cifar10", column=None, given=None):
    column = column or {"cifar10": "label", "cifar100": "fine_label"}[name]
    folder.mkdir(parents=True, exist_ok=True)
    for part, (images, labels) in zip(
        ("train", "test"), given or splits(name), strict=True
    ):
        rows = [{"bytes": encoded(i), "path": f"{n}.png"} for n, i in enumerate(images)]
        table = arrow.table({"img": rows, column: labels})
        parquet.write_table(table, folder / f"{part}-00000-of-00001.parquet")
    return folder


def write_class_folders(folder, name="cifar10", form="PNG", given=None):
    for part, (images, labels) in zip(
        ("train", "test"), given or splits(name), strict=True
    ):
        for n, (image, label) in enumerate(zip(images, labels, strict=True)):
            place = folder / part / CLASS_NAMES[name][label]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{n:05d}.{form.lower()}").write_bytes(encoded(image, form))
    return folder


def batch_files(name="cifar10", kind=PYTHON, given=None, protocol=2):
    """File name to content, as in the released archive."""
    release = RELEASES[name][kind]
    train, test = given or splits(name)
    parts = len(release.train)
    cut = zip(np.array_split(train[0], parts), np.array_split(train[1], parts))  # noqa: B905
    batches = [*cut, test]
    pack = _python if kind == PYTHON else _binary
    return {
        file: pack(name, *batch, protocol)
        for file, batch in zip(release.files, batches, strict=True)
    }


def _python(name, images, labels, protocol):
    key = "labels" if name == "cifar10" else "fine_labels"
    batch = {"data": images.reshape(-1, 3072), key: labels.tolist()}
    return pickle.dumps(batch | {"batch_label": b"made up"}, protocol)


def _binary(name, images, labels, protocol):
    columns = [labels[:, None], images.reshape(-1, 3072)]
    if name == "cifar100":
        columns.insert(0, labels[:, None] // 5)
    return np.concatenate(columns, 1).astype(np.uint8).tobytes()


def write_batches(root, name="cifar10", kind=PYTHON, files=None):
    folder = root / RELEASES[name][kind].folder
    folder.mkdir(parents=True)
    for file, content in (files or batch_files(name, kind)).items():
        (folder / file).write_bytes(content)
    return folder


def write_archive(root, name="cifar10", kind=PYTHON, files=None, extra=()):
    """An archive and the Release that expects exactly it."""
    release = RELEASES[name][kind]
    path = Path(root) / release.archive
    with tarfile.open(path, "w:gz") as out:
        for file, content in (files or batch_files(name, kind)).items():
            member = tarfile.TarInfo(f"{release.folder}/{file}")
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
        for member in extra:
            out.addfile(member, io.BytesIO(b"x" * member.size))
    return path, expecting(release, path)


def expecting(release, path):
    content = path.read_bytes()
    return replace(release, sha256=sha256(content).hexdigest(), size=len(content))


def load(tmp_path, name="cifar10", root=None):
    return data.load(name, root or tmp_path, cache=tmp_path / "cache")


def assert_same(dataset, given):
    (images, labels), (test_images, test_labels) = given
    assert np.array_equal(dataset.train_images, images)
    assert np.array_equal(dataset.train_labels, labels)
    assert np.array_equal(dataset.test_images, test_images)
    assert np.array_equal(dataset.test_labels, test_labels)
