"""Keeps decoded images in one whole file with its digest, without pickle."""

from __future__ import annotations

import json
import math
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from saddlebook.data.batches import Splits
from saddlebook.disk.files import read_whole, write_whole

_MAGIC = b"saddlebook images 4 "


def write(path: Path, splits: Splits, digest: str) -> None:
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


def read(path: Path) -> tuple[Splits, str] | None:
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
