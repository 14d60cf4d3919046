"""One long-tailed dataset in one file that travels: the drawn training images and the
test images, without loss.

    python benchmarks/gpu/pack.py cifar10 --data ROOT --out .gpu/cifar10.pack

A pack is read back as the dataset it was drawn from: all labels, black training images
where none was carried, and the digest of the origin. ``check`` refuses an experiment
whose draw is not carried whole.

Format: a line of JSON (name, shapes, digests), then xz of labels, positions and
pixels. Pixels are differences modulo 256 along rows and columns and from green, which
cumulative sums undo.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saddlebook import data, studies
from saddlebook.disk.files import parse_json, read_whole, sha256, write_whole
from saddlebook.errors import DataError, SaddlebookError, UsageError, explained
from saddlebook.experiment import Experiment

MAX_BYTES = 48 * 2**20  # leaves room for checkpoints among the 64 MiB that travel
_UNPACKED = 2**28  # bytes; CIFAR has 184 million
_FORMAT = "saddlebook pack 1"


@dataclass(frozen=True)
class Pack:
    """A dataset with the positions of the training images that are really there."""

    dataset: data.Dataset
    kept: NDArray[np.int64]


def draw(labels: Tensor, experiment: Experiment) -> NDArray[np.int64]:
    """Positions of the experiment's training images."""
    counts = data.class_counts(
        experiment.largest_class,
        experiment.num_classes,
        experiment.imbalance_factor,
        experiment.imbalance,
    )
    return data.long_tail_indices(labels, counts)


def write(path: Path, dataset: data.Dataset, experiments: list[Experiment]) -> int:
    """Pack what ``experiments`` need of their dataset; returns the bytes written."""
    drawn = [draw(dataset.train_labels, experiment) for experiment in experiments]
    kept = np.unique(np.concatenate(drawn))
    images = torch.cat([dataset.train_images[kept], dataset.test_images]).numpy()
    labels = torch.cat([dataset.train_labels, dataset.test_labels]).numpy()
    if dataset.num_classes > 256:
        raise UsageError(f"{dataset.name} has more than 256 classes")
    parts = [labels.astype(np.uint8), kept.astype("<u4"), images]
    header = {
        "format": _FORMAT,
        "name": dataset.name,
        "counts": [len(dataset.train_labels), len(kept), len(dataset.test_labels)],
        "pixels": images.shape[-1],
        "class_names": dataset.class_names,
        "origin": dataset.digest,
        "content": sha256(b"".join(part.tobytes() for part in parts)),
    }
    body = b"".join([parts[0].tobytes(), parts[1].tobytes(), _differences(images)])
    packed = json.dumps(header).encode() + b"\n" + lzma.compress(body, preset=6)
    if len(packed) > MAX_BYTES:
        raise UsageError(f"{dataset.name} takes {len(packed)} bytes, at most 48 MiB")
    write_whole(path, packed)
    return len(packed)


def read(path: Path) -> Pack:
    """Unpack and verify.

    Raises:
        DataError: Missing, damaged, or no pack.
    """
    todo = "make it again with benchmarks/gpu/pack.py"
    with explained(f"{path} is not a whole pack", todo, DataError):
        line, _, body = read_whole(path, MAX_BYTES).partition(b"\n")
        header = parse_json(line)
        if header["format"] != _FORMAT:
            raise ValueError(f"format {header['format']!r}")
        return _unpacked(header, body)


def _unpacked(header: dict[str, Any], packed: bytes) -> Pack:
    total, carried, tests = header["counts"]
    size, start = header["pixels"], total + tests + 4 * carried
    length = start + 3 * size * size * (carried + tests)
    if max(length, 3 * size * size * total) > _UNPACKED:
        raise ValueError("it claims more than any data set here has")
    body = lzma.LZMADecompressor().decompress(packed, length + 1)
    if len(body) != length:
        raise ValueError("it does not hold what it says")
    labels = np.frombuffer(body, np.uint8, total + tests)
    kept = np.frombuffer(body, "<u4", carried, offset=len(labels))
    images = _pixels(np.frombuffer(body, np.uint8, offset=start), size)
    content = labels.tobytes() + kept.tobytes() + images.tobytes()
    if sha256(content) != header["content"]:
        raise ValueError("its content has another digest")
    train = np.zeros((total, 3, size, size), np.uint8)
    train[kept] = images[:carried]
    train_labels, test_labels = np.split(labels.astype(np.int64), [total])
    parts = (train, train_labels, images[carried:], test_labels)
    tensors = (torch.from_numpy(part) for part in parts)
    names = tuple(header["class_names"])
    dataset = data.Dataset(header["name"], *tensors, names, header["origin"])
    return Pack(dataset, kept.astype(np.int64))


def check(pack: Pack, experiments: list[Experiment]) -> None:
    """Refuse experiments on images that are not carried.

    Raises:
        DataError: Naming the first one.
    """
    for experiment in experiments:
        name = pack.dataset.name
        if experiment.dataset != name:
            raise DataError(f"{experiment.slug} needs {experiment.dataset}, not {name}")
        wanted = draw(pack.dataset.train_labels, experiment)
        if missing := len(np.setdiff1d(wanted, pack.kept)):
            raise DataError(
                f"{experiment.slug} needs {missing} training images that the pack does "
                "not carry; pack for a larger draw"
            )


def _differences(images: NDArray[np.uint8]) -> bytes:
    """Differences along both axes, red and blue less green, channel by channel."""
    planes = images.transpose(1, 0, 2, 3)
    for axis in (2, 3):
        planes = np.diff(planes, axis=axis, prepend=np.uint8(0))
    planes[[0, 2]] -= planes[1]
    return planes.tobytes()


def _pixels(flat: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    planes = flat.reshape(3, -1, size, size).copy()
    planes[[0, 2]] += planes[1]
    for axis in (2, 3):
        np.cumsum(planes, axis=axis, dtype=np.uint8, out=planes)
    return np.ascontiguousarray(planes.transpose(1, 0, 2, 3))


def settings(name: str, scale: str) -> list[Experiment]:
    """One experiment of every long tail of a dataset that a study asks for."""
    runs = [e for study in studies.STUDIES for e in studies.named(study, scale)]
    fields = ("largest_class", "imbalance_factor", "imbalance")
    tails = {tuple(getattr(e, f) for f in fields): e for e in runs if e.dataset == name}
    if not tails:
        raise UsageError(f"no study at {scale} needs {name}")
    return list(tails.values())


def make(path: Path, name: str, scale: str, root: str | None) -> str:
    """Pack a dataset, read it back and compare; returns a line that says so."""
    dataset = data.load(name, root)
    size = write(path, dataset, settings(name, scale))
    found = read(path)
    kept, back = found.kept, found.dataset
    same = torch.equal(back.train_images[kept], dataset.train_images[kept])
    if not (same and torch.equal(back.test_images, dataset.test_images)):
        raise DataError("the pack does not give back what was packed")
    return (
        f"{path.name}: {len(kept)} training and {len(dataset.test_labels)} test images "
        f"of {name} in {size / 2**20:.1f} MiB, read back and compared"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Pack one dataset for transport.")
    parser.add_argument("dataset", choices=("cifar10", "cifar100", "digits"))
    parser.add_argument("--scale", default="full", help="digits: quick")
    parser.add_argument("--data", default=os.environ.get("SADDLEBOOK_DATA"))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    try:
        print(make(options.out, options.dataset, options.scale, options.data))
    except SaddlebookError as error:
        print(f"pack: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
