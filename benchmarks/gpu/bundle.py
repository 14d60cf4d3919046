"""Files of runs in few parts of limited size: what travels to a machine and back.

A part is a zip, written whole, with files ``records/<scale>/*.json`` and
``work/<run>/*``. A unit (what belongs together of one run, or one exported network)
keeps its part from the first save to the last. So a save that is killed half way leaves
new parts beside old ones, with every unit whole in one of them.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from saddlebook.disk.files import (
    decoded_checkpoint,
    encoded_checkpoint,
    parse_json,
    read_checkpoint,
    read_whole,
    unsealed,
    write_whole,
)
from saddlebook.disk.provenance import numerics_digest
from saddlebook.errors import CorruptError, VerifyError, explained
from saddlebook.experiment import Experiment
from saddlebook.record import Record
from saddlebook.store import Store
from saddlebook.train.run import trained

PARTS, ROOM = 4, 15 * 2**20  # a part may grow to 16 MiB, all of them to 64
_PART, _UNPACKED = 2**24, 2**28  # bytes of a part, and of the files in it at most
_WORK = re.compile(r"work/([\w.=+-]+)/(latest\.ckpt|spectra\.json|epoch\d{4}\.weights)")

Unit = Mapping[str, bytes]


class Bundle:
    """The parts in a folder.

    Args:
        folder: Where the parts lie.
        item: Is put into every part.
        total: Bytes of all parts together.
    """

    def __init__(self, folder: Path, item: bytes, total: int = PARTS * ROOM) -> None:
        self.folder, self.item = folder, item
        self.total = min(total, PARTS * ROOM)
        self._places: dict[str, int] = {}

    def save(self, units: Mapping[str, Unit]) -> list[str]:
        """Write all units that fit, first come first served; returns the others."""
        self._places = {n: part for n, part in self._places.items() if n in units}
        loads = [0] * PARTS
        for name, part in self._places.items():
            loads[part] += _size(units[name])
        for name, unit in units.items():
            if name not in self._places:
                self._place(name, _size(unit), loads)
        for part in range(PARTS):
            files = [units[n] for n, place in self._places.items() if place == part]
            self._write(part, files)
        return [name for name in units if name not in self._places]

    def _place(self, name: str, size: int, loads: list[int]) -> None:
        part = min(range(PARTS), key=lambda i: (loads[i] + size > ROOM, i))
        if loads[part] + size <= ROOM and sum(loads) + size <= self.total:
            self._places[name] = part
            loads[part] += size

    def _write(self, part: int, units: list[Unit]) -> None:
        path = self.folder / f"part{part}.zip"
        if not units:
            path.unlink(missing_ok=True)
            return
        content = io.BytesIO()
        with zipfile.ZipFile(
            content, "w", zipfile.ZIP_DEFLATED, compresslevel=1
        ) as archive:
            archive.writestr("item.json", self.item)
            for unit in units:
                for name, data in unit.items():
                    archive.writestr(name, data)
        write_whole(path, content.getvalue())


def _size(unit: Unit) -> int:
    return sum(len(data) + 300 for data in unit.values())


def run_unit(folder: Path, records: list[Path], finished: bool, keep: bool) -> Unit:
    """A run's records, and what it needs to go on or to be measured later."""
    files = {f"records/{p.parent.name}/{p.name}": p for p in records}
    if keep or not finished:
        names = ("latest.ckpt", "spectra.json")
        files |= {f"work/{folder.name}/{name}": folder / name for name in names}
    return {name: path.read_bytes() for name, path in files.items() if path.exists()}


def networks(folder: Path, epochs: Iterable[int] | None) -> dict[str, Unit]:
    """A run's exported networks, of these epochs or all, each a unit."""
    wanted = None if epochs is None else {f"epoch{epoch:04d}" for epoch in epochs}
    return {
        f"{folder.name}/{path.name}": _halved(path)
        for path in sorted(folder.glob("*.weights"))
        if wanted is None or path.stem in wanted
    }


@cache
def _halved(path: Path) -> Unit:
    """An exported network with filters and matrices in half precision.

    Vectors, batch-norm statistics among them, stay: they are few and small numbers.
    """
    meta, tensors = read_checkpoint(path)
    small = {n: t.half() if t.ndim > 1 else t for n, t in tensors.items()}
    return {f"work/{path.parent.name}/{path.name}": encoded_checkpoint(meta, small)}


def parts(folder: Path) -> Iterator[tuple[Any, dict[str, bytes]]]:
    """Item and files of every part of a folder.

    Raises:
        CorruptError: A part is cut short, changed, or holds what it should not.
    """
    for path in sorted(folder.glob("part*.zip")):
        todo = "fetch it again, or move it away: the other parts are of use without it"
        with explained(f"{path} is not a whole part", todo):
            content = io.BytesIO(read_whole(path, _PART))
            with zipfile.ZipFile(content) as archive:
                if sum(m.file_size for m in archive.infolist()) > _UNPACKED:
                    raise ValueError("it unpacks to more than a call gives")
                item = parse_json(archive.read("item.json"))
                names = set(archive.namelist()) - {"item.json"}
                if odd := sorted(names - _wanted(item, names)):
                    raise ValueError(f"{odd[0]!r} is no file of its runs")
                files = {name: archive.read(name) for name in sorted(names)}
        yield item, files


def _wanted(item: Mapping[str, Any], names: Iterable[str]) -> set[str]:
    """Those names that files of the item's experiments have."""
    experiments = [Experiment.from_dict(e) for e in item["experiments"]]
    records = {f"records/{e.scale}/{e.slug}.json" for e in experiments}
    runs = {e.training.slug for e in experiments}
    found = {name: _WORK.fullmatch(name) for name in names}
    return records | {n for n, match in found.items() if match and match[1] in runs}


def install(
    files: Mapping[str, bytes], item: Mapping[str, Any], work: Path, results: Path
) -> None:
    """Put files in their places; nothing that is further on is replaced.

    Raises:
        CorruptError: A file is damaged.
        VerifyError: A record was made by other code than this.
        UsageError: Another record of the same experiment is there.
    """
    for name, content in files.items():
        kind, folder, file = name.split("/")
        if kind == "records":
            _add(Store(results / folder), name, content, item)
        else:
            _advance(work / folder / file, content)


def _add(store: Store, name: str, content: bytes, item: Mapping[str, Any]) -> None:
    with explained(f"{name} is no record", "fetch it again"):
        record = Record.from_dict(parse_json(content))
    if record.provenance["numerics"] != numerics_digest():
        raise VerifyError(
            f"{name} was made by code {record.provenance['numerics']}, this is "
            f"{numerics_digest()}; check out commit {item['commit']} to take it in"
        )
    if record.provenance["commit"] == "unknown":  # no repository was there
        origin = {"commit": item["commit"], "dirty": item["dirty"]}
        record = replace(record, provenance=record.provenance | origin)
    store.add(record)


def _advance(path: Path, content: bytes) -> None:
    """Write a file of a run unless the one that is there is as far."""
    reached = _reached(path, content)
    if reached > (_reached(path, path.read_bytes()) if path.exists() else -1):
        write_whole(path, content)


def _reached(path: Path, content: bytes) -> int:
    """Epoch of a checkpoint or network of the run that its folder names, or spectra."""
    if path.name == "spectra.json":
        with explained(f"{path} holds no spectra", "fetch it again"):
            return len([dict(item) for item in unsealed(content)])
    meta, _ = decoded_checkpoint(content, str(path))
    if trained(meta, str(path)).slug != path.parent.name:
        raise CorruptError(f"{path} would be of another run than its folder's")
    return int(meta["epoch"])
