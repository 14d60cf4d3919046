"""Random parameters, records and checkpoints: refused in a line, and nothing runs.

The tests take few of them, the sweep many.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import small
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from saddlebook import record
from saddlebook.disk.files import (
    decoded_checkpoint,
    dump_json,
    encoded_checkpoint,
    sha256,
)
from saddlebook.errors import SaddlebookError
from saddlebook.experiment import Experiment
from saddlebook.store import Store

Row = dict[str, Any]
Check = Callable[[Any], bool]
_RUNS = {"os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "exec"}
_watched: list[list[str]] = []  # an audit hook stays for ever, so it asks here


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched and event in _RUNS:
        _watched[-1].append(event)


@contextmanager
def watched() -> Iterator[list[str]]:
    """Events of programs that start, or code that runs, in the block."""
    if not getattr(sys, "_saddlebook_watch", False):
        sys.addaudithook(_hook)
        sys._saddlebook_watch = True  # type: ignore[attr-defined]
    _watched.append([])
    try:
        yield _watched[-1]
    finally:
        _watched.pop()


def refused_or_read(read: Callable[[], Any]) -> bool:
    """Whether a reader gave a value or one line, and ran nothing.

    What only a first reading imports does not count: it is read twice.
    """
    return _once(read)[0] and (_once(read) == (True, []))


def _once(read: Callable[[], Any]) -> tuple[bool, list[str]]:
    with watched() as ran:
        try:
            read()
        except SaddlebookError as error:
            well = "\n" not in str(error) and len(str(error)) < 2000
        except Exception:
            well = False
        else:
            well = True
    return well, ran


_CODE = [
    "__import__('os').system('touch canary')", "{rho.__class__}", "${HOME}", "0,8",
    "'; import os", "cos\nsystem\n", "../../etc", "1e999", "nan", "\x00", "\ud800",
]  # fmt: skip
_PLAIN = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from(_CODE) | st.binary(max_size=8)
)  # fmt: skip
_ANY = st.recursive(
    _PLAIN,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner)
    ),
    max_leaves=8,
)
_NAMES = st.sampled_from([f.name for f in fields(Experiment)]) | st.text(max_size=12)


_EXPERIMENTS = st.dictionaries(_NAMES | st.sampled_from(_CODE), _ANY, max_size=4) | _ANY


def _changes(whole: bytes) -> Any:
    """A file with bytes changed, left out, doubled or put in."""
    place = st.integers(0, len(whole))
    cut = st.tuples(place, place, st.binary(max_size=12))
    edited = cut.map(lambda c: whole[: min(c[:2])] + c[2] + whole[max(c[:2]) :])
    put = st.tuples(place, st.binary(max_size=12) | st.sampled_from(_CODE))
    return edited | put.map(lambda p: whole[: p[0]] + _bytes(p[1]) + whole[p[0] :])


def _bytes(value: str | bytes) -> bytes:
    is_text = isinstance(value, str)
    return value.encode(errors="surrogatepass") if is_text else value


def experiments_row(count: int, number: int = 0) -> Row:
    """Parameters of any name and value: an experiment, or refused."""
    return _counted(
        count, number, _EXPERIMENTS,
        lambda told: refused_or_read(lambda: Experiment.from_dict(told)),
    )  # fmt: skip


def records_row(count: int, number: int = 0) -> Row:
    """Files in the place of a record, some with a digest that fits."""
    committed = sorted((small.ROOT / "results/lite").glob("*.json"))[0]
    whole = committed.read_bytes()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / committed.name

        def check(content: bytes) -> bool:
            path.write_bytes(content)
            return refused_or_read(lambda: Store(path.parent).records())

        return _counted(count, number, _changes(whole) | _poisoned(whole), check)


def checkpoints_row(count: int, number: int = 0) -> Row:
    """Bytes under a digest that fits."""
    whole = encoded_checkpoint({"epoch": 1}, {"w": torch.arange(9.0)})[64:]

    def check(payload: bytes) -> bool:
        content = sha256(payload).encode() + payload
        return refused_or_read(lambda: decoded_checkpoint(content, "x"))

    check(whole)  # imports what only a first reading imports
    return _counted(count, number, _changes(whole) | _archives(), check)


def _poisoned(whole: bytes) -> Any:
    """A record with some parts of any value, and the digest of that."""
    told = json.loads(whole)
    parts = st.dictionaries(st.sampled_from(sorted(told)), _ANY, min_size=1, max_size=2)
    return parts.map(lambda changed: _resealed(told | changed))


def _resealed(content: dict[str, Any]) -> bytes:
    content.pop("digest", None)
    try:
        return json.dumps(content | {"digest": record._digest(content)}).encode()
    except (TypeError, ValueError):
        return b"{}"


def _archives() -> Any:
    """Checkpoints with members of any bytes, array headers among them."""
    header = st.sampled_from(["<f4", "|O", "<U9", "V8", "<f4,<i8", "int(1)"])
    shape = st.lists(st.integers(-2, 2**40), max_size=3).map(tuple)
    array = st.builds(_array, header, shape, st.binary(max_size=40))
    member = array | st.binary(max_size=80) | _ANY.map(_json)
    names = st.sampled_from(["meta.json.npy", "w.npy", "../w.npy", "w", "w/"])
    return st.dictionaries(names, member, max_size=4).map(_zipped)


def _json(value: Any) -> bytes:
    try:
        return _array("|u1", (len(dump_json(value)),), dump_json(value))
    except (TypeError, ValueError):
        return b"{}"


def _array(dtype: str, shape: tuple[int, ...], content: bytes) -> bytes:
    told = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    told += b" " * (-(len(told) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(told).to_bytes(2, "little") + told + content


def _zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def _counted(count: int, number: int, strategy: Any, check: Check) -> Row:
    """A row: ``count`` random cases, the seeds of those that were lost."""
    found: list[bool] = []
    relaxed = settings(
        max_examples=count, deadline=None, database=None, derandomize=False,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip

    @relaxed
    @seed(number)
    @given(strategy)
    def run(case: Any) -> None:
        found.append(check(case))

    run()
    lost = [place for place, well in enumerate(found) if not well]
    return {"tried": len(found), "survived": sum(found), "lost_at": lost[:20]}
