"""Writes files that are either whole or not there, and locks and digests them.

A checkpoint is such a file of tensors, without pickle: the SHA-256 of the rest, then a
NumPy archive with the tensors and one JSON text. Knows bytes, JSON and tensors; no
experiment, no network.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import math
import os
import secrets
import stat
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saddlebook.errors import (
    CorruptError,
    LockedError,
    MachineError,
    ResourceError,
    explained,
)

T = TypeVar("T")
_META = "meta.json"  # in a checkpoint
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_whole(
    path: str | os.PathLike[str], data: bytes, replace: bool = True
) -> Path:
    """Write ``data`` so that a reader sees the old file or the new one, never a part.

    Temporary file in the same folder, fsync, rename, fsync of the folder.

    Args:
        path: Where to; its folder is made.
        data: All of it.
        replace: False: of writers at the same moment one wins, the others are told.

    Raises:
        FileExistsError: It is there and not to be replaced.
        ResourceError: The disk is full; the old file is kept.
        MachineError: The folder cannot be written; the old file is kept.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("xb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        (os.replace if replace else _place)(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        if not replace and path.exists():
            raise FileExistsError(path) from error
        raise _explained(error, path, len(data)) from error
    return path


def _place(partial: Path, path: Path) -> None:
    """Rename to a name that nobody has."""
    try:
        os.link(partial, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        os.replace(partial, path)  # a file system without second names
    else:
        partial.unlink()


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


def read_whole(path: str | os.PathLike[str], most: int = 2**30) -> bytes:
    """Read a file whose content others may have chosen.

    Raises:
        OSError: Not there, a pipe, device or folder, or larger than ``most`` bytes.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        size = _regular(handle).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"{size} bytes, at most {most}")
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read(size)
    finally:
        os.close(handle)


def _regular(handle: int) -> os.stat_result:
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return found


def sha256(data: bytes) -> str:
    """Hex SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def dump_json(value: Any) -> bytes:
    """Canonical JSON: sorted keys, finite numbers only, a final newline."""
    text = json.dumps(value, sort_keys=True, indent=1, allow_nan=False)
    return text.encode() + b"\n"


def sealed(value: Any) -> bytes:
    """JSON with its own SHA-256, for files that only this library writes."""
    return dump_json({"content": value, "digest": sha256(dump_json(value))})


def unsealed(content: bytes) -> Any:
    """What was ``sealed``.

    Raises:
        ValueError: It is not as it was written, or something else.
    """
    held = parse_json(content)
    if not isinstance(held, dict) or set(held) != {"content", "digest"}:
        raise ValueError("no digest of its own")
    if held["digest"] != sha256(dump_json(held["content"])):
        raise ValueError("digest mismatch: it was damaged or edited")
    return held["content"]


def load_json(path: str | os.PathLike[str]) -> Any:
    """Read JSON as ``parse_json`` does.

    Raises:
        CorruptError: Not readable as one whole JSON value.
    """
    with explained(f"{path} is not a whole JSON file", "delete it and run again"):
        return parse_json(read_whole(path))


def parse_json(content: bytes) -> Any:
    """JSON without a key that stands twice, NaN, or integers beyond 64 bits.

    Raises:
        ValueError: Not one whole value of that kind.
        RecursionError: Nested too deeply.
    """
    return json.loads(
        content, object_pairs_hook=_no_twice, parse_int=_integer,
        parse_constant=_finite, parse_float=_float,
    )  # fmt: skip


def _float(word: str) -> float:
    if math.isinf(value := float(word)):
        raise ValueError(f"{word} is beyond floating numbers")
    return value


def _finite(word: str) -> None:
    raise ValueError(f"{word} is no finite number")


def _integer(digits: str) -> int:
    if len(digits) > 19:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise ValueError("a key stands twice")
    return dict(pairs)


def save_checkpoint(
    path: str | os.PathLike[str], meta: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write ``meta`` (JSON values) and ``tensors`` as one whole file.

    Raises:
        ResourceError: The disk is full; an older file is kept.
        MachineError: The folder cannot be written; an older file is kept.
    """
    write_whole(path, encoded_checkpoint(meta, tensors))


def encoded_checkpoint(meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """What ``save_checkpoint`` writes."""
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
    """Read what ``save_checkpoint`` wrote.

    Raises:
        CorruptError: Not there, cut short, changed, or not such a file.
    """
    with explained(
        f"cannot read {path}", "restore it, or run the command that wrote it"
    ):
        content = read_whole(path)
    return decoded_checkpoint(content, str(path))


def decoded_checkpoint(
    content: bytes, name: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
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


@contextmanager
def locked(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Hold an exclusive lock while the block runs; the system frees it at any death.

    Raises:
        LockedError: Another process holds it.
        MachineError: The file cannot be made, or something else lies in its place.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise _not_lockable(path, error) from error
    _HELD.add(handle)
    try:
        _take(handle, path, what)
        yield
    finally:
        if handle in _HELD:  # else this is a forked child, which has let go of it
            _HELD.remove(handle)
            fcntl.flock(handle, fcntl.LOCK_UN)  # a child of just now may share it
            os.close(handle)


def wait_for_others(make: Callable[[], T], patience: float = math.inf) -> T:
    """Make something; what another process has in hand, after it has let go of it.

    Args:
        make: Makes or finds it; called again and again.
        patience: Seconds to wait in all.

    Raises:
        LockedError: The other process still has it; it is named.
    """
    give_up = time.monotonic() + patience
    while True:
        try:
            return make()
        except LockedError:  # locks end with their owner, however it dies
            if time.monotonic() > give_up:
                raise
            time.sleep(1)


_HELD: set[int] = set()


def _let_go() -> None:
    """A forked child shares its parent's locks and may outlive it."""
    while _HELD:
        os.close(_HELD.pop())


os.register_at_fork(after_in_child=_let_go)


def _take(handle: int, path: Path, what: str) -> None:
    """Lock an open file and write who holds it, if it is a lock file of ours."""
    try:
        linked = _regular(handle).st_nlink > 1
        owner = os.pread(handle, 20, 0)
        if linked or (not owner.isdigit() and owner):
            raise OSError(errno.EEXIST, "it is something else")
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise LockedError(
            f"{what} is being run by another process (pid {owner.decode() or 0}); wait "
            "for it or stop it, its progress is kept"
        ) from error
    except OSError as error:
        raise _not_lockable(path, error) from error
    os.ftruncate(handle, 0)
    os.pwrite(handle, str(os.getpid()).encode(), 0)


def _not_lockable(path: Path, error: OSError) -> MachineError:
    return MachineError(
        f"cannot lock {path} ({error.strerror}); remove what is there, or choose a "
        "folder you may write to"
    )
