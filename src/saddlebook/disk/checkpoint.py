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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saddlebook.disk.files import sha256, write_whole
from saddlebook.errors import CorruptError

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


def load(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what ``save`` wrote.

    Raises:
        CorruptError: Cut short, changed, or not such a file.
    """
    content = Path(path).read_bytes()
    digest, payload = content[:64], content[64:]
    if sha256(payload).encode() != digest:
        raise CorruptError(
            f"{path} is damaged or not a saddlebook checkpoint; delete it and run the "
            "same command again to train from the start"
        )
    try:
        with np.load(io.BytesIO(payload), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, zipfile.BadZipFile) as error:
        raise CorruptError(
            f"{path} is not a saddlebook checkpoint ({error})"
        ) from error
    meta = json.loads(arrays.pop(_META).tobytes())
    return meta, {name: torch.from_numpy(a.copy()) for name, a in arrays.items()}


def halved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same for transport: filters and matrices in half precision.

    Vectors, batch-norm statistics among them, stay as they are: they are few and small
    numbers.
    """
    return {name: t.half() if t.ndim > 1 else t for name, t in tensors.items()}
