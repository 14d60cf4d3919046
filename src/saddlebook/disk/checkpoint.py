"""Writes and reads tensors as whole files without pickle: checkpoints and weights.

A file is the SHA-256 of the rest, then a NumPy archive with the tensors and one JSON
text. Knows names and tensors, no network.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saddlebook.disk.files import parse_json, read_whole, sha256, write_whole
from saddlebook.errors import CorruptError, explained

_META = "meta.json"


def save(
    path: str | os.PathLike[str], meta: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write ``meta`` (JSON values) and ``tensors`` as one whole file.

    Raises:
        ResourceError: The disk is full; an older file is kept.
        MachineError: The folder cannot be written; an older file is kept.
    """
    write_whole(path, encoded(meta, tensors))


def encoded(meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """What ``save`` writes."""
    arrays = {name: t.detach().cpu().numpy() for name, t in tensors.items()}
    text = json.dumps(meta, sort_keys=True).encode()
    arrays[_META] = np.frombuffer(text, dtype=np.uint8)
    archive = io.BytesIO()
    np.savez(archive, **arrays)  # type: ignore[arg-type]
    payload = archive.getvalue()
    return sha256(payload).encode() + payload


def read_checkpoint(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what ``save`` wrote.

    Raises:
        CorruptError: Not there, cut short, changed, or not such a file.
    """
    with explained(
        f"cannot read {path}", "restore it, or run the command that wrote it"
    ):
        content = read_whole(path)
    return decoded(content, str(path))


def decoded(content: bytes, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The same from bytes; nothing is larger than they are.

    Raises:
        CorruptError: With ``name``.
    """
    digest, payload = content[:64], content[64:]
    if sha256(payload).encode() != digest:
        raise CorruptError(
            f"{name} is damaged or not a saddlebook checkpoint; delete it and run the "
            "same command again to train from the start"
        )
    with (
        explained(f"{name} is not a saddlebook checkpoint", "delete it and run again"),
        zipfile.ZipFile(io.BytesIO(payload)) as archive,
    ):
        members = archive.infolist()
        if sum(member.file_size for member in members) > len(payload):
            raise ValueError("it claims more than it holds")
        arrays = {m.filename.removesuffix(".npy"): archive.read(m) for m in members}
        meta = parse_json(_array(arrays.pop(_META)).tobytes())
        tensors = {key: torch.from_numpy(_array(a).copy()) for key, a in arrays.items()}
        return dict(meta.items()), tensors


def _array(member: bytes) -> NDArray[Any]:
    """One array in NumPy's format, no larger than its bytes."""
    file = io.BytesIO(member)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("an array of another format")
    shape, by_column, dtype = np.lib.format.read_array_header_1_0(file)
    flat = np.frombuffer(member, dtype, offset=file.tell())
    return flat.reshape(shape, order="F" if by_column else "C")
