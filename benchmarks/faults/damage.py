"""One byte changed, or the end cut off, at many places of every kind of file.

It must be named in a line, or mean the same; and the file must be left as it is.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import small
import torch

from saddlebook import data, measure, runner
from saddlebook.command import spectra, subject
from saddlebook.disk import files
from saddlebook.disk.files import read_checkpoint
from saddlebook.errors import SaddlebookError
from saddlebook.experiment import Experiment
from saddlebook.record import Record
from saddlebook.scales import at_scale
from saddlebook.store import Store

sys.path.append(str(small.ROOT / "benchmarks/gpu"))
import bundle
import pack

Row = dict[str, Any]
Kind = tuple[Path, Callable[[], Any]]
KINDS = (
    "record", "checkpoint", "exported weights", "spectra cache", "spectra record",
    "shipped weights", "foreign state dict", "pack", "part of a bundle", "image",
)  # fmt: skip


def damage(count: int, seed: int) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Rows to make, one for each kind of file, ``count`` places of each."""
    for what in KINDS:
        yield what, lambda what=what: damaged(what, count, seed)


def damaged(what: str, count: int, seed: int) -> Row:
    """Change a byte, or cut, at ``count`` places evenly spread over a file."""
    dice = random.Random(f"{seed} {what}")
    row = {"tried": 0, "survived": 0}
    with tempfile.TemporaryDirectory() as name:
        path, read = _laid(what, Path(name))
        whole, truth = path.read_bytes(), read()
        for turn in range(count):
            place = int((turn + dice.random()) / count * len(whole))
            changed = bytearray(whole)
            changed[place] ^= 1 << dice.randrange(8)
            for content in (bytes(changed), whole[:place]):
                path.write_bytes(content)
                row["tried"] += 1
                well = _named_or_same(read, truth) and path.read_bytes() == content
                row["survived"] += well
    return row


@cache
def _trained() -> tuple[tempfile.TemporaryDirectory[str], Record]:
    """A run with spectra, trained once, in a folder that is copied."""
    exp = replace(at_scale(Experiment(), "quick"), epochs=2, reweight="none")
    folder = tempfile.TemporaryDirectory()
    places = {"work": Path(folder.name, "work"), "results": folder.name}
    return folder, runner.run(replace(exp, spectra_at=(2,)), **places)


def _laid(what: str, here: Path) -> Kind:
    """A file of that kind, and what reads it."""
    if what in ("foreign state dict", "pack", "shipped weights", "image"):
        return _FOREIGN[what](here)
    whole, record = _trained()
    shutil.copytree(whole.name, here, dirs_exist_ok=True)
    exp = record.experiment
    store, run = Store(here / "quick"), here / "work" / exp.training.slug
    weights, file = {2: run / "epoch0002.weights"}, run / "spectra.json"
    images = data.load("digits")
    sheet = here / "x.json"
    sheet.write_bytes(spectra.to_bytes({"model": record.key}, []))
    if what == "part of a bundle":
        item = {"experiments": [exp.to_dict()]}
        parts = bundle.Bundle(here, files.dump_json(item))
        parts.save({"a": bundle.run_unit(run, [], finished=False, keep=True)})
    kinds: dict[str, Kind] = {
        "record": (here / f"quick/{exp.slug}.json", lambda: store.get(exp)),
        "checkpoint": _plain(run / "latest.ckpt"),
        "exported weights": _plain(weights[2]),
        "spectra cache": (file, lambda: measure.class_items(exp, images, weights)),
        "spectra record": (sheet, lambda: spectra.read_sheet(sheet)),
        "part of a bundle": (here / "part0.zip", lambda: list(bundle.parts(here))),
    }
    return kinds[what]


def _plain(path: Path) -> Kind:
    def read() -> Any:
        meta, tensors = read_checkpoint(path)
        return meta, {name: t.tolist() for name, t in tensors.items()}

    return path, read


def _shipped(here: Path) -> Kind:
    path = here / "x.weights"
    shipped = sorted((small.ROOT / "results/weights").glob("*.weights"))[0]
    path.write_bytes(shipped.read_bytes())
    return _plain(path)


def _state(here: Path) -> Kind:
    path = here / "x.pth"
    torch.save({"w": torch.arange(9.0)}, path)

    def read() -> Any:
        return subject.state_dict(path.read_bytes(), "x")["w"].tolist()

    return path, read


def _pack(here: Path) -> Kind:
    path = here / "x.pack"
    pack.make(path, "digits", "quick", None)
    return path, lambda: pack.read(path).dataset.train_images.sum()


def _image(here: Path) -> Kind:
    from inputs import draw_picture

    for name in "abc":
        for number in range(5):
            draw_picture(here / f"own/{name}/{number}.png", (8, 8))

    def read() -> Any:
        images = data.load("folder:own", here, cache=here / "cache")
        return images.train_images.sum() >= 0  # pixels may differ: no digest is known

    return here / "own/a/0.png", read


_FOREIGN: dict[str, Callable[[Path], Kind]] = {
    "foreign state dict": _state, "pack": _pack, "shipped weights": _shipped,
    "image": _image,
}  # fmt: skip


def _named_or_same(read: Callable[[], Any], truth: Any) -> bool:
    try:
        return bool(read() == truth)
    except SaddlebookError as error:
        return "\n" not in str(error)
