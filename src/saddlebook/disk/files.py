"""Files that are either whole or not there: writing, digests and locks.

Knows bytes and JSON only; no experiment, no tensor.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from saddlebook.errors import CorruptError, LockedError, MachineError, ResourceError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_whole(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write ``data`` so that a reader sees the old file or the new one, never a part.

    Temporary file in the same folder, fsync, rename, fsync of the folder.

    Raises:
        ResourceError: The disk is full; the old file is kept.
        MachineError: The folder cannot be written; the old file is kept.
    """
    path = Path(path)
    partial = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".part"
        )
        with os.fdopen(handle, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            os.unlink(partial)
        raise _explained(error, path, len(data)) from error
    return path


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _explained(error: OSError, path: Path, size: int) -> Exception:
    if error.errno in _FULL:
        return ResourceError(
            f"disk full: {path} needs {size / 1e6:.1f} MB; free some space and run "
            "the same command again, what was written before is kept"
        )
    return MachineError(
        f"cannot write {path} ({error.strerror}); choose a folder you may write to, "
        "what was written before is kept"
    )


def sha256(data: bytes) -> str:
    """Hex SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def dump_json(value: Any) -> bytes:
    """Canonical JSON: sorted keys, finite numbers only, a final newline."""
    text = json.dumps(value, sort_keys=True, indent=1, allow_nan=False)
    return text.encode() + b"\n"


def load_json(path: str | os.PathLike[str]) -> Any:
    """Read JSON, refusing duplicate keys and anything cut short.

    Raises:
        CorruptError: Not readable as one whole JSON value.
    """
    try:
        return json.loads(Path(path).read_bytes(), object_pairs_hook=_no_twice)
    except (ValueError, OSError) as error:
        raise CorruptError(
            f"{path} is not a whole JSON file ({error}); delete it and run again"
        ) from error


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise ValueError("a key stands twice")
    return dict(pairs)


@contextmanager
def locked(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Hold an exclusive lock while the block runs; the system frees it at any death.

    Raises:
        LockedError: Another process holds it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.read(handle, 100).decode(errors="replace").strip() or "unknown"
        os.close(handle)
        raise LockedError(
            f"{what} is being run by another process (pid {owner}); wait for it or "
            "stop it, its progress is kept"
        ) from error
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        # said aloud: a child forked meanwhile shares the handle and may outlive us
        fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)
