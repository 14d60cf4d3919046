"""Kills, damage and bad input, counted: what was tried, what survived, what was lost.

    python benchmarks/faults.py [--kills 60] [--seed 0] [--out results/faults.json]

A kill is a SIGKILL at a random moment; the same command goes on afterwards until it
ends, and its records must equal those of a run that nobody killed. Damage is one byte
changed, or the end cut off, in each kind of file: it must be named, or mean the same.
A bad input must give its exit code and one line with what to do, and no traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from saddlebook import hessian, losses, optim, runner, studies
from saddlebook.__main__ import main as command
from saddlebook.command import spectra, subject
from saddlebook.data import class_counts, long_tail_indices
from saddlebook.disk import checkpoint
from saddlebook.disk.files import dump_json, write_whole
from saddlebook.errors import SaddlebookError
from saddlebook.experiment import Experiment, at_scale
from saddlebook.store import Store

TOOLS = Path(__file__).resolve().parent / "gpu"
sys.path.append(str(TOOLS))
import pack  # noqa: E402

Row = dict[str, Any]
_RUN = ("-m", "saddlebook", "run")
_QUICK = ("--scale", "quick", "--seeds", "0", "--quiet")
_BUNDLE = (str(TOOLS / "run.py"), "--out", "out", "--device", "cpu", "--every", "0.1")
# Commands by what they do when the kill comes
KILLED = {
    "training, SGD": (*_RUN, "table1", *_QUICK, "--only", "CE,CE+DRW,LDAM+DRW,VS"),
    "training, SAM": (*_RUN, "table1", *_QUICK, "--only", "CE+SAM,CE+DRW+SAM,VS+SAM"),
    "training side by side": (*_RUN, "table1", *_QUICK, "--group", "4"),
    "measuring": (*_RUN, "dynamics", *_QUICK, "--only", "CE+DRW"),
    "storing": (*_RUN, "tuning", *_QUICK),
    "GPU bundle": _BUNDLE,
}


def kills(count: int, seed: int) -> Iterator[Row]:
    """As many kills as asked for, shared out among the commands."""
    dice = random.Random(seed)
    for place, (what, words) in enumerate(KILLED.items()):
        share = count // len(KILLED) + (place < count % len(KILLED))
        if share:
            yield _killed(what, words, share, dice)


def _killed(what: str, words: tuple[str, ...], count: int, dice: random.Random) -> Row:
    row = {"kind": "kill", "what": what, "tried": 0, "survived": 0}
    row |= {"torn": 0, "wrong": 0}
    with _folder() as whole:
        began = time.monotonic()
        _start(words, whole).wait()
        seconds = time.monotonic() - began
        truth = _results(whole)
        while row["tried"] < count:
            with _folder() as here:
                _chain(words, here, seconds, min(5, count - row["tried"]), row, dice)
                row["wrong"] += _results(here) != truth or not truth
    row["survived"] = row["tried"] - row["torn"] - row["wrong"]
    return row


def _chain(
    words: tuple[str, ...], here: Path, seconds: float, most: int, row: Row,
    dice: random.Random,
) -> None:  # fmt: skip
    """Kill the same command again and again, then let it end."""
    for _ in range(most):
        process = _start(words, here)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(dice.uniform(0.3, 1) * seconds)
        if process.poll() is not None:  # it was done before
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        row["tried"] += 1
        row["torn"] += _torn(here)
    _start(words, here).wait()


def _start(words: tuple[str, ...], here: Path) -> subprocess.Popen[bytes]:
    if words is _BUNDLE and not (here / ".gpu").exists():
        send = [str(TOOLS / "send.py"), "control", "--scale", "quick", "--seeds", "0"]
        subprocess.run(
            [sys.executable, *send], cwd=here, capture_output=True, check=True
        )
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(
        [sys.executable, "-P", *words], cwd=here, start_new_session=True, **quiet
    )


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        yield Path(name)


def _results(here: Path) -> dict[str, Any]:
    """What the records say, without when and where."""
    found = {}
    for record in Store(here / "results/quick").records():
        spectra = [
            {k: v for k, v in item.items() if k != "seconds"} for item in record.spectra
        ]
        found[record.experiment] = (record.curves, record.per_class, spectra)
    return found


def _torn(here: Path) -> int:
    """Files that are there and not whole."""
    readers: dict[str, Callable[[Path], Any]] = {
        "results/quick/*.json": lambda path: Store(path.parent).verify(),
        ".saddlebook/*/*.ckpt": checkpoint.read_checkpoint,
        ".saddlebook/*/*.weights": checkpoint.read_checkpoint,
    }
    torn = 0
    for pattern, read in readers.items():
        for path in here.glob(pattern):
            try:
                read(path)
            except SaddlebookError:
                torn += 1
    return torn


def damage(count: int, seed: int) -> Iterator[Row]:
    """Change a byte, or cut, at ``count`` places of each kind of file."""
    dice = random.Random(seed)
    with _folder() as here:
        for what, path, read in _kinds(here):
            row = {"kind": "damage", "what": what, "tried": 0, "survived": 0}
            whole, truth = path.read_bytes(), read()
            for turn in range(count):
                place = int((turn + dice.random()) / count * len(whole))
                changed = bytearray(whole)
                changed[place] ^= 1 << dice.randrange(8)
                for content in (bytes(changed), whole[:place]):
                    path.write_bytes(content)
                    row["tried"] += 1
                    row["survived"] += _named_or_same(read, truth)
            path.write_bytes(whole)
            yield row


def _kinds(here: Path) -> Iterator[tuple[str, Path, Callable[[], Any]]]:
    exp = replace(at_scale(Experiment(), "quick"), epochs=2, reweight="none")
    record = runner.run(exp, work=here / "work", results=here)
    store, run = Store(here / "quick"), here / "work" / exp.slug
    yield "record", here / f"quick/{exp.slug}.json", lambda: store.get(exp)
    for name in ("latest.ckpt", sorted(run.glob("*.weights"))[-1].name):
        path = run / name
        yield name, path, lambda path=path: _plain(checkpoint.read_checkpoint(path))
    state = here / "x.pth"
    torch.save({"w": torch.arange(9.0)}, state)
    read = lambda: _plain(({}, subject.state_dict(state.read_bytes(), "x")))  # noqa: E731
    yield "foreign state dict", state, read
    packed = here / "x.pack"
    pack.make(packed, "digits", "quick", None)
    yield "pack", packed, lambda: pack.read(packed).dataset.train_images.sum()
    told = here / "x.json"
    told.write_bytes(spectra.to_bytes({"model": record.key}, []))
    yield "spectra record", told, lambda: spectra.read_sheet(told)


def _plain(loaded: tuple[Any, dict[str, torch.Tensor]]) -> Any:
    return loaded[0], {name: t.tolist() for name, t in loaded[1].items()}


def _named_or_same(read: Callable[[], Any], truth: Any) -> bool:
    try:
        return bool(read() == truth)
    except SaddlebookError as error:
        return "\n" not in str(error)


_NO_NUMBERS = (float("nan"), float("inf"), "0,5", None, [], 10**400, True)
_ODD = {
    "imbalance_factor": (0, -1, 0.01, *_NO_NUMBERS), "rho": (-1, *_NO_NUMBERS),
    "epochs": (0, -1, 1.5, *_NO_NUMBERS), "batch_size": (0, 1, -8, *_NO_NUMBERS),
    "lr": (0, -0.1, *_NO_NUMBERS), "seed": (-1, 0.5, "a", 10**3000),
    "dataset": ("cifar", "", 3, "../x"), "loss": ("cee", None), "optimizer": ("adam",),
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


def inputs() -> Iterator[Row]:
    """Words of the command, fields of experiments, arguments of library calls."""
    here = os.getcwd()
    with _folder() as empty:
        os.chdir(empty)
        try:
            yield _row("command line", [_answers(w, code) for w, code in _WORDS])
        finally:
            os.chdir(here)
    odd = [(name, value) for name, values in _ODD.items() for value in values]
    made = [_refused(lambda f=f: Experiment.from_dict(dict([f]))) for f in odd]
    yield _row("experiment fields", made)
    yield _row("library calls", [_refused(call) for call in _CALLS])


def _row(what: str, survived: list[bool]) -> Row:
    lost = [place for place, well in enumerate(survived) if not well]
    row = {"kind": "input", "what": what, "tried": len(survived)}
    return row | {"survived": sum(survived), "lost_at": lost}


def _answers(words: list[str], code: int) -> bool:
    said = io.StringIO()
    try:
        with (
            contextlib.redirect_stderr(said),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            got = command(words)
    except BaseException:
        return False
    return got == code and len(said.getvalue().strip().splitlines()) == 1


def _refused(call: Callable[[], Any]) -> bool:
    try:
        call()
    except SaddlebookError as error:
        return "\n" not in str(error) and len(str(error)) < 500
    except Exception:
        return False
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--damage", type=int, default=40, help="places in a file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/faults.json"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    began, rows = time.monotonic(), []
    print(f"{'kind':8} {'what':24} {'tried':>6} {'survived':>9} {'lost':>5}")
    for make in (
        inputs(),
        damage(asked.damage, asked.seed),
        kills(asked.kills, asked.seed),
    ):
        for row in make:
            row["lost"] = row["tried"] - row["survived"]
            rows.append(row)
            numbers = f"{row['tried']:6} {row['survived']:9} {row['lost']:5}"
            print(f"{row['kind']:8} {row['what']:24} {numbers}", flush=True)
    told = {"seed": asked.seed, "kills": asked.kills, "damage": asked.damage}
    told |= {"seconds": round(time.monotonic() - began), "rows": rows}
    write_whole(asked.out, dump_json(told))
    return int(any(row["lost"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
