"""Kills, faults, damage, bad input and long runs, counted in one table.

    python benchmarks/faults/sweep.py [--kills 60] [--seed 0] [--only 'book|image']

What was tried, what survived, what was lost. Every row is kept as it is done, in
``_build/faults``, so that the same command goes on after an interruption; the table is
written whole to ``results/faults.json`` once every row is there, or, with ``--so-far``,
of the rows there are. As many rows as there are cores are made at a time.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import damage
import hurdles
import inputs
import kills
import long_runs
import small
import torch

from saddlebook.disk.files import dump_json, load_json, write_whole
from saddlebook.disk.provenance import Provenance
from saddlebook.errors import one_of

Row = dict[str, Any]


def rows(asked: argparse.Namespace) -> Iterator[tuple[str, str, Callable[[], Row]]]:
    """Kind, what, and what makes the row."""
    parts = {
        "input": inputs.inputs(asked.damage * 25),
        "damage": damage.damage(asked.damage, asked.seed),
        "fault": hurdles.hurdles(asked.seed, asked.long),
        "rival": hurdles.rivals(),
        "again": hurdles.again(),
        "long run": long_runs.long_runs(asked.long),
        "kill": kills.kills(asked.kills, asked.seed),
    }
    for kind, some in parts.items():
        for what, make in some:
            yield kind, what, make


def row_of(asked: argparse.Namespace, wanted: str) -> Row:
    """The row as an earlier call left it, or made now, for a process of its own."""
    torch.set_num_threads(1)
    kind, _, make = next(item for item in rows(asked) if item[1] == wanted)
    file = kept(asked) / f"{kind} {wanted}.json"
    return dict(load_json(file)) if file.exists() else made(kind, wanted, make, file)


def kept(asked: argparse.Namespace) -> Path:
    """Where the rows of such a sweep lie."""
    name = f"{asked.seed}-{asked.kills}-{asked.damage}-{'long' * asked.long}"
    return small.ROOT / "_build/faults" / name


def made(kind: str, what: str, make: Callable[[], Row], file: Path) -> Row:
    """The row, made now and kept in ``file``."""
    origin = Provenance.start("cpu", "fp32", "").to_dict()
    began = time.time()
    row = {"kind": kind, "what": what} | make()
    row |= {"lost": row["tried"] - row["survived"], "began": round(began)}
    row |= {"date": str(datetime.fromtimestamp(began, UTC).date())}
    row |= {"seconds": round(time.time() - began), "commit": origin["commit"]}
    write_whole(file, dump_json(row))
    return row


def told(asked: argparse.Namespace, table: list[Row], left: list[str]) -> Row:
    """The table with all that is needed to make it again."""
    origin = Provenance.start("cpu", "fp32", "").to_dict()
    names = ("dirty", "version", "python", "torch", "device")
    settings = {name: getattr(asked, name) for name in ("seed", "kills", "damage")}
    ends = [row["began"] + row["seconds"] for row in table]
    return settings | {name: origin[name] for name in names} | {
        "long": asked.long, "system": platform.system(), "cores": os.cpu_count(),
        "date": max(row["date"] for row in table),
        "commits": sorted({row["commit"] for row in table}),
        "seconds": max(ends) - min(row["began"] for row in table),
        "rows": table, "left": left,
    }  # fmt: skip


def started(asked: argparse.Namespace, names: list[str]) -> list[Future[Row]]:
    """The rows, as many at a time as there are cores."""
    pool = ProcessPoolExecutor(os.cpu_count(), get_context("spawn"))
    found = [pool.submit(row_of, asked, what) for what in names]
    pool.shutdown(wait=False)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--damage", type=int, default=40, help="places in a file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--long", action="store_true", help="book builds too: hours")
    parser.add_argument("--only", help="rows, such as 'book|image'; no table then")
    parser.add_argument("--so-far", action="store_true", help="the rows there are")
    parser.add_argument("--out", type=Path, default=small.ROOT / "results/faults.json")
    asked = parser.parse_args()
    known = [what for _, what, _ in rows(asked)]
    chosen = [one_of("row", w, known) for w in (asked.only or "").split("|") if w]
    names, left = [what for what in known if what in (chosen or known)], []
    if asked.so_far:
        there = {load_json(path)["what"] for path in kept(asked).glob("*.json")}
        left = [what for what in names if what not in there]
        names = [what for what in names if what in there]
    print(f"seed {asked.seed}; rows are kept in {kept(asked).relative_to(small.ROOT)}")
    print(f"{'kind':9}{'what':28}{'tried':>6}{'survived':>9}{'lost':>5}{'s':>6}")
    table = []
    for future in started(asked, names):
        table.append(row := future.result())
        numbers = f"{row['tried']:6}{row['survived']:9}{row['lost']:5}"
        print(f"{row['kind']:9}{row['what']:28}{numbers}{row['seconds']:6}", flush=True)
    if not chosen:
        write_whole(asked.out, dump_json(told(asked, table, left)))
    return int(any(row["lost"] for row in table))


if __name__ == "__main__":
    sys.exit(main())
