"""The original CIFAR files: archives, python batches and binary batches.

Nothing here runs code from a file: archives are matched with their known digest and
read by member name, never unpacked; python batches are unpickled with nothing but dict,
list, bytes, str, int and numeric arrays allowed.
"""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saddlebook.errors import DataError

Split = tuple[NDArray[np.uint8], NDArray[np.int64]]  # images [N, 3, H, W], labels [N]
Splits = tuple[Split, Split]  # train, test
_Read = Callable[[str], bytes]

_PIXELS = 3 * 32 * 32
_MAX_MEMBER = 160_000_000  # bytes; CIFAR-100's training batch has 154 million


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
        content = path.read_bytes()
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
        binary = file.endswith(".bin")
        try:
            split = _binary(name, read(file)) if binary else _python(name, read(file))
        except DataError:
            raise
        except Exception as error:  # a damaged pickle can raise anything
            raise DataError(f"{file} of {name} cannot be read ({error})") from error
        return split


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
    return lambda file: (path / file).read_bytes()


def _binary(name: str, content: bytes) -> Split:
    """Rows of label bytes and pixels; CIFAR-100 has the coarse label first."""
    labels = 1 if name == "cifar10" else 2
    rows = np.frombuffer(content, np.uint8).reshape(-1, labels + _PIXELS)
    images = rows[:, labels:].reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(images), rows[:, labels - 1].astype(np.int64)


def _python(name: str, content: bytes) -> Split:
    """A pickled dict: ``data`` uint8 [N, 3072], ``labels`` or ``fine_labels``."""
    loaded = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    batch = {k.decode() if isinstance(k, bytes) else k: v for k, v in loaded.items()}
    key = "labels" if name == "cifar10" else "fine_labels"
    if key not in batch:
        raise DataError(f"a batch of {name} has no {key}, it has {sorted(batch)}")
    pixels, labels = np.asarray(batch["data"]), np.asarray(batch[key])
    if pixels.dtype != np.uint8 or labels.dtype.kind not in "iu":
        raise DataError(f"a batch of {name} holds {pixels.dtype} and {labels.dtype}")
    if pixels.shape != (len(labels), _PIXELS):
        raise DataError(f"a batch of {name} has pixels {pixels.shape}")
    return pixels.reshape(-1, 3, 32, 32), labels.astype(np.int64)


class _ArraysOnly(pickle.Unpickler):
    """Builds plain values and numeric arrays; any other name in the file is refused."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            "numpy.ndarray": np.ndarray,
            "numpy.dtype": np.dtype,
            "multiarray._reconstruct": _empty_array,
            "numeric._frombuffer": _from_buffer,
            "_codecs.encode": _latin1,
        }
        short = module.rpartition(".")[2] + "." + name
        if short not in allowed or module.split(".")[0] not in ("numpy", "_codecs"):
            raise DataError(
                f"a batch file asks for {module}.{name}, which CIFAR does not need: it "
                "may be malicious; delete it"
            )
        return allowed[short]


def _empty_array(subtype: type, shape: Any, dtype: Any) -> NDArray[Any]:
    """NumPy fills it afterwards from the file's bytes."""
    return np.ndarray.__new__(np.ndarray, (0,), np.uint8)


def _from_buffer(content: Any, dtype: Any, shape: Any, order: str) -> NDArray[Any]:
    return np.frombuffer(content, dtype).reshape(
        shape, order="F" if order == "F" else "C"
    )


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in the old protocols."""
    return text.encode("latin1")
