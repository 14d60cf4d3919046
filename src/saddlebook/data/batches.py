"""Reads the original CIFAR files: archives, python batches and binary batches.

Nothing here runs code from a file: archives are matched with their known digest and
read by member name, never unpacked; python batches, which are pickles, are read without
unpickling: what they would call is noted, and only numeric arrays are made of that.
"""

from __future__ import annotations

import io
import itertools
import pickletools
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saddlebook.disk.files import read_whole
from saddlebook.errors import DataError, explained

Split = tuple[NDArray[np.uint8], NDArray[np.int64]]  # images [N, 3, H, W], labels [N]
Splits = tuple[Split, Split]  # train, test
_Read = Callable[[str], bytes]

_PIXELS = 3 * 32 * 32
_MAX_MEMBER = 160_000_000  # bytes; CIFAR-100's training batch has 154 million
_MAX_STEPS = 1_000_000  # operations of a pickle; that batch takes about 300,000


@dataclass(frozen=True)
class Release:
    """One of the files at www.cs.toronto.edu/~kriz/cifar.html.

    Attributes:
        archive: File name.
        sha256: Of the archive.
        size: Of the archive, bytes.
        folder: What it unpacks to.
        train: Batch files in order.
        test: Batch file.
    """

    archive: str
    sha256: str
    size: int
    folder: str
    train: tuple[str, ...]
    test: str

    @property
    def files(self) -> tuple[str, ...]:
        """All batch files."""
        return (*self.train, self.test)

    def read(self, name: str, path: Path) -> Splits:
        """Read the archive, or the folder it unpacks to.

        Raises:
            DataError: Not the released bytes, or not batches of this dataset.
        """
        read = self._members(path).__getitem__ if path.is_file() else _folder(path)
        train = [self._batch(name, read, file) for file in self.train]
        images, labels = (np.concatenate(parts) for parts in zip(*train, strict=True))
        return (images, labels), self._batch(name, read, self.test)

    def _members(self, path: Path) -> dict[str, bytes]:
        content = read_whole(path)
        refuse_web_page(path, content)
        digest = sha256(content).hexdigest()
        if len(content) != self.size or digest != self.sha256:
            raise DataError(
                f"{path} is not the released archive: expected sha256 {self.sha256} "
                f"({self.size} bytes), got {digest} ({len(content)} bytes); delete it "
                "and download it again"
            )
        try:
            with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
                return self._allowed(path, archive)
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:
            raise DataError(
                f"{path} is damaged ({error}); download it again"
            ) from error

    def _allowed(self, path: Path, archive: tarfile.TarFile) -> dict[str, bytes]:
        wanted = {f"{self.folder}/{file}": file for file in self.files}
        found: dict[str, bytes] = {}
        for member in archive:
            file = wanted.get(member.name)
            if file is None:
                continue
            content = archive.extractfile(member) if member.isreg() else None
            if content is None or file in found or member.size > _MAX_MEMBER:
                raise DataError(f"{path}: {member.name} is no single plain file")
            found[file] = content.read()
        if len(found) < len(wanted):
            missing = sorted(set(self.files) - set(found))
            raise DataError(f"{path} lacks {', '.join(missing)}")
        return found

    def _batch(self, name: str, read: _Read, file: str) -> Split:
        decode = _binary if file.endswith(".bin") else _python
        with explained(f"{file} of {name} cannot be read", "get it again", DataError):
            return decode(name, read(file))


def _cifar(digits: str, kind: str, digest: str, size: int) -> Release:
    python = kind == "python"
    ending = "" if python else ".bin"
    batches = tuple(f"data_batch_{i}{ending}" for i in range(1, 6))
    ten = digits == "10"
    folder = f"cifar-10-batches-{'py' if python else 'bin'}"
    return Release(
        archive=f"cifar-{digits}-{kind}.tar.gz",
        sha256=digest,
        size=size,
        folder=folder if ten else f"cifar-100-{kind}",
        train=batches if ten else (f"train{ending}",),
        test=f"test_batch{ending}" if ten else f"test{ending}",
    )


RELEASES = {
    "cifar10": (
        _cifar(
            "10",
            "python",
            "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
            170_498_071,
        ),
        _cifar(
            "10",
            "binary",
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            170_052_171,
        ),
    ),
    "cifar100": (
        _cifar(
            "100",
            "python",
            "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
            169_001_437,
        ),
        _cifar(
            "100",
            "binary",
            "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            168_513_733,
        ),
    ),
}


def refuse_web_page(path: Path, content: bytes) -> None:
    """A server's error page often lands under the name of the file asked for.

    Raises:
        DataError: The content is HTML.
    """
    if content[:200].lstrip().startswith(b"<"):
        raise DataError(
            f"{path} is a web page: the server answered with HTML instead of the file; "
            "delete it and download it again"
        )


def _folder(path: Path) -> _Read:
    return lambda file: read_whole(path / file, _MAX_MEMBER)


def _binary(name: str, content: bytes) -> Split:
    """Rows of label bytes and pixels; CIFAR-100 has the coarse label first."""
    labels = 1 if name == "cifar10" else 2
    rows = np.frombuffer(content, np.uint8).reshape(-1, labels + _PIXELS)
    images = rows[:, labels:].reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(images), rows[:, labels - 1].astype(np.int64)


def _python(name: str, content: bytes) -> Split:
    """A pickled dict: ``data`` uint8 [N, 3072], ``labels`` or ``fine_labels``."""
    loaded = _Pickle(content).stack[-1]
    batch = {k.decode() if isinstance(k, bytes) else k: v for k, v in loaded.items()}
    key = "labels" if name == "cifar10" else "fine_labels"
    if key not in batch:
        raise DataError(f"a batch of {name} has no {key}, it has {sorted(batch)}")
    pixels, labels = _array(batch["data"]), _array(batch[key])
    if pixels.dtype != np.uint8 or labels.dtype.kind not in "iu":
        raise DataError(f"a batch of {name} holds {pixels.dtype} and {labels.dtype}")
    if pixels.shape != (len(labels), _PIXELS):
        raise DataError(f"a batch of {name} has pixels {pixels.shape}")
    return pixels.reshape(-1, 3, 32, 32).copy(), labels.astype(np.int64)


def _array(said: Any) -> NDArray[Any]:
    """What a noted call describes, or a list of integers, as an array."""
    if isinstance(said, list):
        if odd := [item for item in said if type(item) is not int][:1]:
            raise DataError(f"a batch holds a {type(odd[0]).__name__} as label")
        return np.array(said, np.int64)
    if not isinstance(said, _Call):
        raise DataError(f"a batch holds {type(said).__name__} instead of an array")
    if said.name.endswith("_frombuffer"):
        content, dtype, shape, order = said.arguments
    else:
        _, shape, dtype, by_column, content = said.state
        order = "F" if by_column else "C"
    if isinstance(content, _Call):  # how Python 3 writes bytes in the old protocols
        content = content.arguments[0]
    if isinstance(content, str):
        content = content.encode("latin1")
    return np.frombuffer(content, _CODES[dtype.arguments[0]]).reshape(
        shape, order=order
    )


_CODES = {code: np.dtype(code) for code in "u1 u2 u4 u8 i1 i2 i4 i8 f4 f8".split()}
_CALLS = (
    "numpy.ndarray",
    "numpy.dtype",
    "multiarray._reconstruct",
    "numeric._frombuffer",
    "_codecs.encode",
)


@dataclass(eq=False)
class _Call:
    """Something that a pickle would have called, with what it gave to it."""

    name: str
    arguments: Any = ()
    state: Any = ()


def _named(module: str, name: str) -> _Call:
    short = module.rpartition(".")[2] + "." + name
    if short not in _CALLS or module.split(".")[0] not in ("numpy", "_codecs"):
        raise DataError(
            f"a batch file asks for {module}.{name}, which CIFAR does not need: it "
            "may be malicious; delete it"
        )
    return _Call(short)


class _Pickle:
    """Runs the few operations that plain values need, and calls nothing."""

    def __init__(self, content: bytes) -> None:
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        steps = pickletools.genops(content)
        for operation, argument, _ in itertools.islice(steps, _MAX_STEPS):
            self._step(operation.name, argument)
        if next(steps, None):
            raise DataError(f"a batch file takes more than {_MAX_STEPS} operations")

    def _step(self, name: str, argument: Any) -> None:
        if name in _ACTIONS:
            _ACTIONS[name](self, argument)
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name.endswith("GET"):
            self.stack.append(self._memo[argument])
        elif name.endswith("PUT") or name == "MEMOIZE":
            place = len(self._memo) if argument is None else argument
            self._memo[place] = self.stack[-1]
        elif any(word in name for word in _LITERALS):
            self.stack.append(argument)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise DataError(
                f"a batch file holds {name}: it may be malicious; delete it"
            )

    def mark(self, _: Any) -> None:
        self._marks.append(len(self.stack))

    def take(self, count: int | None = None) -> list[Any]:
        """The last ``count`` values, or those since the last mark."""
        start = self._marks.pop() if count is None else len(self.stack) - count
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def append(self, count: int | None) -> None:
        items = self.take(count)
        self.stack[-1] += items

    def put(self, count: int | None) -> None:
        items = self.take(count)
        self.stack[-1].update(_pairs(items))

    def call(self, _: Any) -> None:
        function, arguments = self.take(2)
        self.stack.append(replace(function, arguments=arguments))

    def build(self, _: Any) -> None:
        (state,) = self.take(1)
        self.stack[-1].state = state


def _pairs(items: Sequence[Any]) -> dict[str | bytes, Any]:
    if odd := [key for key in items[::2] if not isinstance(key, str | bytes)]:
        raise DataError(f"a batch file has a {type(odd[0]).__name__} as key")
    return dict(zip(items[::2], items[1::2], strict=True))


_LITERALS = ("INT", "LONG", "STRING", "UNICODE", "BYTES", "BYTEARRAY")
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
}
_ACTIONS: dict[str, Callable[[_Pickle, Any], None]] = {
    "MARK": _Pickle.mark,
    "TUPLE": lambda p, _: p.stack.append(tuple(p.take())),
    "TUPLE1": lambda p, _: p.stack.append(tuple(p.take(1))),
    "TUPLE2": lambda p, _: p.stack.append(tuple(p.take(2))),
    "TUPLE3": lambda p, _: p.stack.append(tuple(p.take(3))),
    "LIST": lambda p, _: p.stack.append(p.take()),
    "DICT": lambda p, _: p.stack.append(_pairs(p.take())),
    "APPEND": lambda p, _: p.append(1),
    "APPENDS": lambda p, _: p.append(None),
    "SETITEM": lambda p, _: p.put(2),
    "SETITEMS": lambda p, _: p.put(None),
    "GLOBAL": lambda p, name: p.stack.append(_named(*name.split(" "))),
    "STACK_GLOBAL": lambda p, _: p.stack.append(_named(*p.take(2))),
    "REDUCE": _Pickle.call,
    "BUILD": _Pickle.build,
}
