"""Notes where a record comes from: code, versions, device, data and time.

Never a host, a user or a path.
"""

from __future__ import annotations

import io
import platform
import subprocess
import tokenize
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import device as Device

import saddlebook
from saddlebook.disk.files import sha256
from saddlebook.errors import MachineError

# Modules whose code decides what a training gives.
NUMERICS = (
    "losses models optim schedules data/longtail data/augmentation data/folders "
    "data/sources train/optimizers train/loop train/run"
).split()
# The same of the large sets.
LARGE = "losses models optim schedules data/augmentation data/large train/large".split()
# Files whose code decides the spectra of given weights, besides those.
CURVATURE = [
    "measure",
    *(
        f"curvature/{name}"
        for name in "certify hessian lanczos problem products resnet spectrum".split()
    ),
]
# Digests of earlier code with the same golden curves (tests/train): a change
# that moves the curves empties this set, and older records become stale.
SAME_CURVES = frozenset(
    {"9a1a3f475e71e46f", "2b3bb3c1aae2b778", "b2f33e6d86399a12", "86b281569eaa13a0"}
    | {"693e60739b0bdbd0", "daff94b1d8b5e2ea", "0386e5194805ccc5", "a57982ca5a99ea7e"}
    | {"e20448f0bf8a4c21", "0726666a06fdf0a8", "7bd1232f11317ad8", "8fc777b9e657daab"}
    | {"e5326c43ce474279", "e5897f036d34b6a9", "dbb5c0ed0cc43620", "4faeccedd11c96fd"}
    | {"00ed2bb22795f4b9", "078917e9573399eb", "1b553f709c824ede", "6cf7ba36823d723b"}
    | {"59d809008753d97c", "7b0984d8b26e58e7", "4de01d719c608f2a", "6268896d0edbd49c"}
    | {"004cdfa179fb2338", "fbd7361b9b9ffa09", "0e6cdaa186314e02", "c54e2b0db9c01485"}
    | {"352d592cb67f7777"}
)
# The same for tests/curvature/test_golden_spectra.py.
SAME_SPECTRA = frozenset(
    {"7399c5da965aee57", "da0f68f853d2af2a", "93fb3deaa0d2987c", "80d1e9ad3283c9df"}
    | {"adacfa59dc55ead2", "cae229c0467771ee", "ed3eba89daf341a0", "d1770c4e7a716bef"}
    | {"9cf8b30a7caecf56", "dedab5fd792f7915", "2516402fcbc75c48", "87631317a7865338"}
    | {"842eecfaef6b6d3b", "fb645f094c31510b", "8d52c8a09df51df0"}
    | {"566a67b6b4df88b9", "a8c8535d028e6fe7", "c33945a8f4aa69a8", "84377454790075ee"}
    | {"11f0fd8a70aa063e", "37fcdcdf71087f4f", "c3cfb7d88db76891", "f297017865becbf5"}
)
_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Provenance:
    """What a result depends on besides its experiment.

    Attributes:
        commit: Of the checkout, or ``unknown``.
        dirty: True if the package differed from the commit.
        numerics: Digest of the code that decides training; see ``numerics_digest``.
        version: Of saddlebook.
        python: Version.
        torch: Version, with its build (``+cpu``, ``+cu130``).
        numpy: Version.
        cuda: Version of CUDA, or an empty string.
        device: Name of the GPU or processor.
        threads: CPU threads of one operation.
        precision: As in the experiment.
        data_digest: ``Dataset.digest``.
        started: UTC, ISO 8601, whole seconds.
        seconds: Wall time.
        curvature: Digest of the code that decides spectra; empty in what was measured
            before such digests were kept.
    """

    commit: str
    dirty: bool
    numerics: str
    version: str
    python: str
    torch: str
    numpy: str
    cuda: str
    device: str
    threads: int
    precision: str
    data_digest: str
    started: str
    seconds: float = 0.0
    curvature: str = ""

    @classmethod
    def start(
        cls,
        device: str | Device,
        precision: str,
        data_digest: str,
        large: bool = False,
    ) -> Provenance:
        """Note everything but the wall time, before the work begins."""
        commit, dirty = _commit()
        return cls(
            commit=commit,
            dirty=dirty,
            numerics=numerics_digest(large),
            version=saddlebook.__version__,
            python=platform.python_version(),
            torch=torch.__version__,
            numpy=np.__version__,
            cuda=torch.version.cuda or "",
            device=device_name(Device(device)),
            threads=torch.get_num_threads(),
            precision=precision,
            data_digest=data_digest,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            curvature=curvature_digest(),
        )

    def after(self, seconds: float, numerics: str = "") -> Provenance:
        """The same with its wall time, and the code that training began with."""
        return replace(self, seconds=seconds, numerics=numerics or self.numerics)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def device_name(device: Device) -> str:
    """Model of the GPU or processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return models[0] if models else platform.machine()


def check_device(device: str) -> None:
    """Refuse a device that is not there.

    Raises:
        MachineError: With the devices that are.
    """
    have = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if device not in have and not (device == "cuda" and len(have) > 1):
        raise MachineError(f"no device {device!r} here; available: {', '.join(have)}")


def _commit() -> tuple[str, bool]:
    root = _PACKAGE.parent.parent
    if not (root / ".git").exists():
        return "unknown", False
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit, bool(_git(root, "status", "--porcelain", "--", "src"))
    except (OSError, subprocess.SubprocessError):
        return "unknown", False


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def is_current(numerics: str, curvature: str = "", large: bool = False) -> bool:
    """Whether code with these digests gives the results that today's code gives.

    Args:
        numerics: Of the code that trained.
        curvature: Of the code that measured; empty where it is not known or nothing
            was measured, which makes nothing stale.
        large: It trained on one of the large sets.
    """
    trained = numerics == numerics_digest(large) or numerics in SAME_CURVES
    same = SAME_SPECTRA | {curvature_digest(), ""}
    return trained and curvature in same


def numerics_digest(large: bool = False) -> str:
    """SHA-256 of the code that decides training; see ``code_digest``."""
    return code_digest(tuple(sorted(LARGE if large else NUMERICS)))


def curvature_digest() -> str:
    """SHA-256 of the code that decides the spectra of given weights."""
    return code_digest(tuple(sorted(CURVATURE)))


@cache
def code_digest(modules: tuple[str, ...], folder: Path = _PACKAGE) -> str:
    """SHA-256 of the code of modules, 16 hex digits.

    Comments, docstrings, layout and f-strings (messages) are left out, so that better
    prose makes no record stale.

    Raises:
        MachineError: A module is missing, so nothing can be said about the code.
    """
    try:
        code = [
            f"{name}\n{essence((folder / f'{name}.py').read_text(encoding='utf-8'))}"
            for name in modules
        ]
    except OSError as error:
        raise MachineError(
            f"cannot read {error.filename}, whose code decides results; install "
            "saddlebook again"
        ) from error
    return sha256("".join(code).encode())[:16]


def essence(source: str) -> str:
    """The code's tokens, a line per statement."""
    lines: list[list[str]] = [[]]
    for kind, text in _tokens(source):
        if kind == tokenize.NEWLINE:
            lines.append([])
        else:
            lines[-1].append(text)
    return "\n".join(" ".join(line) for line in lines if not _is_docstring(line))


def _is_docstring(line: list[str]) -> bool:
    words = [word for word in line if word not in (">", "<")]
    return len(words) == 1 and words[0][-1:] in ("'", '"')


def _tokens(source: str) -> Iterator[tuple[int, str]]:
    # Python 3.12 cuts f-strings into tokens, 3.11 does not: both yield one mark
    start = getattr(tokenize, "FSTRING_START", None)
    end = getattr(tokenize, "FSTRING_END", None)
    marks = {tokenize.INDENT: ">", tokenize.DEDENT: "<"}
    silent = (tokenize.COMMENT, tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER)
    depth = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        depth += (token.type == start) - (token.type == end)
        is_f_string = token.type == tokenize.STRING and "f" in _prefix(token.string)
        if (token.type == end and not depth) or is_f_string:
            yield tokenize.STRING, "f''"
        elif not depth and token.type not in silent:
            yield token.type, marks.get(token.type, token.string)


def _prefix(literal: str) -> str:
    return literal[: min(literal.find(quote) % 99 for quote in "'\"")].lower()
