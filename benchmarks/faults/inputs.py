"""Bad input of every kind: each with its exit code, in one line that says what to do.

Command line, experiments, library calls, papermill's parameters, image folders,
archives, checkpoints, class names, bundles (``foreign``), and random ones (``fuzz``).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import foreign
import fuzz
import torch
from PIL import Image

from saddlebook import data, hessian, losses, optim, studies
from saddlebook.__main__ import main as command
from saddlebook.book import notebooks
from saddlebook.data import class_counts, long_tail_indices
from saddlebook.data.batches import RELEASES
from saddlebook.data.sources import CLASS_NAMES
from saddlebook.errors import SaddlebookError
from saddlebook.experiment import Experiment
from saddlebook.scales import at_scale

Row = dict[str, Any]
_NO_NUMBERS = (float("nan"), float("inf"), "0,5", None, [], 10**400, True)
_ODD = {
    "imbalance_factor": (0, -1, 0.01, *_NO_NUMBERS), "rho": (-1, *_NO_NUMBERS),
    "epochs": (0, -1, 1.5, *_NO_NUMBERS), "batch_size": (0, 1, -8, *_NO_NUMBERS),
    "lr": (0, -0.1, *_NO_NUMBERS), "seed": (-1, 0.5, "a", 10**3000),
    "dataset": ("cifar", "", 3, "../x"), "loss": ("cee", None), "optimizer": ("adan",),
    "reweight": ("dwr",), "precision": ("fp16",), "model": ("resnet33",),
    "imbalance": ("stp",), "spectra_at": ((-1,), (201,), 3, "x", None),
    "width": (0, *_NO_NUMBERS), "momentum": (1, -0.1, float("nan")),
    "beta": (1, -0.1), "drw_epoch": (-1,), "vs_gamma": (-1,), "noise": (-1,),
    "image_size": (3, 0), "sam_bn": ("second",), "sam_epochs": ("never",),
    "max_count": (0, "x"), "weight_decay": (-1, *_NO_NUMBERS), "rhoo": (1,),
    "eval": ("__import__('os')",), "__class__": (1,), "rho = 1\nimport os": (1,),
}  # fmt: skip
_WORDS = [
    ([], 2), (["rum"], 2), (["run"], 2), (["run", "tabel1"], 2), (["run", ""], 2),
    (["run", "table1", "--scale", "lit"], 2), (["run", "table1", "--seeds", "a"], 2),
    (["run", "table1", "--seeds", "-1"], 2), (["run", "table1", "--seeds", "1e9"], 2),
    (["run", "table1", "--only", "Adam"], 2), (["run", "table1", "--nothing"], 2),
    (["run", "table1", "--workers", "x"], 2), (["run", "table1", "--device", "gpu"], 6),
    (["run", "table1", "--precision", "fp8"], 2), (["status", "tabel1"], 2),
    (["status", "--scale", "x"], 2), (["verify", "nowhere.json"], 9),
    (["book", "x"], 2),
    (["book", "--scale", "quick"], 2), (["book", "--scale", "x"], 2), (["spectra"], 2),
    (["run", "table1", "--scale", "lite", "--data", "nowhere", "--quiet"], 3),
    (["spectra", "nowhere.pth", "--data", "digits", "--model", "resnet8"], 4),
    (["spectra", "/dev/zero", "--data", "digits", "--model", "resnet8"], 4),
    (["spectra", ".", "--data", "digits", "--model", "resnet8"], 4),
    (["spectra", "x.pth", "--data", "digits", "--steps", "0"], 2),
    (["spectra", "x.pth", "--data", "digits", "--rtol", "nan"], 2),
    (["spectra", "x.pth", "--data", "digits", "--device", "cuda:9"], 6),
    (["spectra", "x.pth", "--data", "digits", "--precision", "half"], 2),
]  # fmt: skip
_ONE, _TWO = torch.tensor([1.0]), [torch.nn.Parameter(torch.ones(2))]
_CALLS: list[Callable[[], Any]] = [
    *(lambda n=n: class_counts(n, 10, 100) for n in (0, -1, 1.5, True)),
    *(lambda c=c: class_counts(50, c, 10) for c in (1, 0, 2.5)),
    *(lambda f=f: class_counts(50, 10, f) for f in (0.5, float("nan"), "x", 1e9)),
    lambda: class_counts(50, 9, 10, "step"),
    *(lambda c=c: long_tail_indices([0, 1], c) for c in ([], [2, 1], [0, 1], [-1, 1])),
    *(lambda s=s: long_tail_indices([0, 1], [1, 1], s) for s in (-1, 2**32, 0.5)),
    *(lambda r=r: optim.SAM(_TWO, torch.optim.SGD, rho=r, lr=0.1) for r in (-1, "x")),
    *(lambda b=b: losses.class_weights([5, 1], b) for b in (1, -1, float("nan"))),
    *(lambda c=c: losses.LDAMLoss(c) for c in ([], [0, 1], [-1, 2])),
    *(lambda n=n: studies.named(n) for n in ("", "tabel1", "__init__")),
    *(lambda s=s: at_scale(Experiment(), s) for s in ("", "fulll", None)),
    lambda: at_scale(at_scale(Experiment(), "lite"), "quick"),
    lambda: hessian.class_spectra(torch.nn.Linear(2, 2), None, _ONE, _ONE, [9]),
]


_DECLARED = "\n".join(f"{n} = {v!r}" for n, v in notebooks.PARAMETERS.items())
_PARAMETERS: list[dict[str, Any]] = [
    {"scael": "lite"}, {"scale": 3}, {"scale": "ful"}, {"scale": ""}, {"scale": None},
    {"device": "gpu9"}, {"device": ""}, {"device": ["cpu"]}, {"precision": "fp8"},
    {"precision": 16}, {"seeds": "0;1"}, {"seeds": 77}, {"seeds": True}, {"seeds": "a"},
    {"seeds": [-1]}, {"seeds": ["x"]}, {"seeds": 0.5}, {"train": "yes"}, {"train": 1},
    {"workers": 0}, {"workers": -3}, {"workers": "2"}, {"workers": 1.5},
    {"results": None}, {"results": 3}, {"data": True}, {"data": b"x"},
    {"rho = 1\nimport os": 1}, {"__class__": 1}, {"os": "x"}, {"": 1}, {"page": 1},
    {"sc\u0430le": 1}, {"scale": float("nan")}, {"workers": 10**400},
]  # fmt: skip


class _Code:
    """Pickles to code that leaves a canary, as a malicious file would."""

    def __reduce__(self) -> Any:
        return os.system, ("touch canary",)


def inputs(examples: int) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Rows to make, by what they try."""
    yield "command line", lambda: _row(_answers(w, code) for w, code in _WORDS)
    yield (
        "experiment fields",
        lambda: _row(
            _refused(lambda f=f: Experiment.from_dict(dict([f])), 2)
            for f in [
                (name, value) for name, values in _ODD.items() for value in values
            ]
        ),
    )
    yield "library calls", lambda: _row(_refused(call, 2) for call in _CALLS)
    yield (
        "papermill parameters",
        lambda: _row(
            _refused(lambda p=p: notebooks.check_parameters(_DECLARED, p), 2)
            for p in _PARAMETERS
        ),
    )
    yield "image folders", lambda: _row(map(_folder, _FOLDERS.values()))
    yield "archives", lambda: _row(map(_archive, _ARCHIVES.values()))
    yield "checkpoints", lambda: _row(map(_checkpoint, _CHECKPOINTS))
    yield "names on pages", lambda: _row(foreign.names())
    yield "bundles", lambda: _row(foreign.parts())
    yield "random experiments", lambda: fuzz.experiments_row(examples)
    yield "random records", lambda: fuzz.records_row(examples)
    yield "random checkpoints", lambda: fuzz.checkpoints_row(examples)


def _row(survived: Iterator[bool]) -> Row:
    """In a folder that is empty but for what a case puts there; no code may run."""
    with small_folder() as here:
        found = list(survived)
        found.append(not (here / "canary").exists())
    lost = [place for place, well in enumerate(found) if not well]
    return {"tried": len(found), "survived": sum(found), "lost_at": lost}


@contextlib.contextmanager
def small_folder() -> Iterator[Path]:
    """An empty folder to work in, with no data folder named."""
    before, named = os.getcwd(), os.environ.pop("SADDLEBOOK_DATA", None)
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        try:
            yield Path(name)
        finally:
            os.chdir(before)
            if named is not None:
                os.environ["SADDLEBOOK_DATA"] = named


def _answers(words: Sequence[str], code: int) -> bool:
    said = io.StringIO()
    quiet = contextlib.redirect_stdout(io.StringIO())
    try:
        with contextlib.redirect_stderr(said), quiet:
            got = command(list(words))
    except BaseException:
        return False
    return got == code and len(said.getvalue().strip().splitlines()) == 1


def _refused(call: Callable[[], Any], code: int) -> bool:
    try:
        call()
    except SaddlebookError as error:
        short = "\n" not in str(error) and len(str(error)) < 500
        return short and error.exit_code == code
    except Exception:
        return False
    return False


def draw_picture(
    path: str | Path, size: tuple[int, int] = (8, 8), **options: Any
) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, **options)


def _classes(*names: str, count: int = 6) -> None:
    for name in names:
        for number in range(count):
            draw_picture(f"own/{name}/{number}.png")


def _put(path: str, content: bytes) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content)


_EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(canary) (w) file\n"
# What lies in the folder that ``folder:own`` names; each is refused with exit code 3
_FOLDERS: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "empty": lambda: Path("own").mkdir(),
    "a file": lambda: _put("own", b"x"),
    "one class": lambda: _classes("a"),
    "two classes": lambda: _classes("a", "b"),
    "no image": lambda: (_classes("a", "b", "c"), _put("own/a/x.png", b"no image")),
    "cut short": lambda: (
        _classes("a", "b", "c"),
        _put("own/a/x.png", Path("own/a/0.png").read_bytes()[:45]),
    ),
    "empty image": lambda: (_classes("a", "b", "c"), _put("own/a/x.png", b"")),
    "a program": lambda: (_classes("a", "b", "c"), _put("own/a/x.png", _EPS)),
    "a pickle": lambda: (
        _classes("a", "b", "c"), _put("own/a/x.png", pickle.dumps(_Code()))
    ),
    "a pipe": lambda: (_classes("a", "b", "c"), os.mkfifo("own/a/x.png")),
    "a dead link": lambda: (_classes("a", "b", "c"), os.symlink("no", "own/a/x.png")),
    "a device": lambda: (
        _classes("a", "b", "c"), os.symlink("/dev/zero", "own/a/x.png")
    ),
    "a bomb": lambda: (_classes("a", "b", "c"), _put("own/a/x.png", _bomb())),
    "test without train": lambda: draw_picture("own/test/a/0.png"),
    "train without images": lambda: Path("own/train/a").mkdir(parents=True),
    "other test classes": lambda: (
        [draw_picture(f"own/train/{c}/{n}.png") for c in "abc" for n in range(6)],
        [draw_picture(f"own/test/{c}/{n}.png") for c in "bcd" for n in range(6)],
    ),
}  # fmt: skip


def _bomb() -> bytes:
    """A picture of 40,000 by 40,000 by its header."""
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "PNG")
    content = bytearray(out.getvalue())
    content[16:24] = (40_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def _folder(lay: Callable[[], Any]) -> bool:
    with tempfile.TemporaryDirectory(dir=".") as name, contextlib.chdir(name):
        lay()
        return _refused(lambda: data.load("folder:own", ".", cache=Path("cache")), 3)


_NAME = RELEASES["cifar10"][0].archive
_BATCH = "cifar-10-batches-py/data_batch_1"


def _tar(*members: tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


# What lies where CIFAR-10 is looked for; each is refused with exit code 3
_ARCHIVES: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "empty": lambda: _put(_NAME, b""),
    "a web page": lambda: _put(_NAME, b"<!DOCTYPE html><html>404</html>"),
    "cut short": lambda: _put(_NAME, b"\x1f\x8b cut short"),
    "another archive": lambda: _put(_NAME, _tar(("../canary", b"x"), (_BATCH, b"x"))),
    "a folder": lambda: Path(_NAME).mkdir(),
    "a pipe": lambda: os.mkfifo(_NAME),
    "a dead link": lambda: os.symlink("no", _NAME),
    "a link to itself": lambda: os.symlink(_NAME, _NAME),
    "malicious batch": lambda: _put(_BATCH, pickle.dumps(_Code())),
    "empty batch": lambda: _put(_BATCH, b""),
    "batch of text": lambda: _put(_BATCH, pickle.dumps("text", 2)),
    "half of the folders": lambda: draw_picture("train/airplane/0.png", (32, 32)),
    "lossy copies": lambda: [
        draw_picture(f"{part}/{name}/0.jpeg", (32, 32))
        for part in ("train", "test") for name in CLASS_NAMES["cifar10"]
    ],
    "no parquet": lambda: [
        _put(f"{part}-00000-of-00001.parquet", b"PAR1") for part in ("train", "test")
    ],
}  # fmt: skip


def _archive(lay: Callable[[], Any]) -> bool:
    with tempfile.TemporaryDirectory(dir=".") as name, contextlib.chdir(name):
        lay()
        return _refused(lambda: data.load("cifar10", ".", cache=Path("cache")), 3)


def _saved(content: Any) -> bytes:
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


def _zipped(*members: tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return out.getvalue()


def _state(**changes: Any) -> bytes:
    from saddlebook import models

    state = dict(models.build_model("resnet8", 10, 4, False, 0).state_dict())
    return _saved(state | changes)


_WIDE = torch.ones(1).as_strided((3, 10**11), (0, 0))
# What ``spectra x.pth`` is given; each is refused with exit code 4, no numbers with 5
_CHECKPOINTS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"not a checkpoint",
    "a web page": lambda: b"<!DOCTYPE html><html>404</html>",
    "code": lambda: _saved({"state_dict": {"w": _Code()}}),
    "bare pickle": lambda: pickle.dumps(_Code()),
    "old pickle": lambda: pickle.dumps({"w": _Code()}, 0),
    "a tensor": lambda: _saved(torch.zeros(3)),
    "a list": lambda: _saved([torch.zeros(3)]),
    "nothing in it": lambda: _saved({}),
    "whole model": lambda: _saved(torch.nn.Linear(2, 2)),
    "other names": lambda: _saved({"w": torch.zeros(3)}),
    "other shapes": lambda: _state(**{"linear.bias": torch.zeros(3)}),
    "no numbers": lambda: _state(**{"linear.bias": torch.full((10,), float("nan"))}),
    "stride of nought": lambda: _state(**{"linear.bias": _WIDE}),
    "sparse": lambda: _state(**{"linear.bias": torch.eye(10).to_sparse()}),
    "cut": lambda: _state()[:900],
    "zip bomb": lambda: _zipped(("x/data.pkl", bytes(2**24))),
    "path traversal": lambda: _zipped(("../canary", b"x")),
    "cut export": lambda: 64 * b"0" + b"PK",
    "safetensors": lambda: (2**63).to_bytes(8, "little") + b"{}",
    "json": lambda: json.dumps({"experiment": {}}).encode(),
}


def _checkpoint(what: str) -> bool:
    Path("x.pth").write_bytes(_CHECKPOINTS[what]())
    words = ["spectra", "x.pth", "--data", "digits", "--model", "resnet8", "--quiet"]
    return _answers(words, 5 if what == "no numbers" else 4)
