"""Kills, faults, damage, bad input and long runs, counted in one table.

    python benchmarks/faults/sweep.py [--kills 60] [--seed 0] [--only 'book|image']

What was tried, what survived, what was lost. Every row is kept as it is done, in
``_build/faults``, so that the same command goes on after an interruption; the table is
written whole to ``results/faults.json`` once every row is there, or, with ``--so-far``,
of the rows there are.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
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
        "kill": kills.kills(asked.kills, asked.seed, asked.snakemake),
    }
    for kind, some in parts.items():
        for what, make in some:
            yield kind, what, make


def made(kind: str, what: str, make: Callable[[], Row], file: Path) -> Row:
    """The row as an earlier call left it, or made now."""
    if file.exists():
        return dict(load_json(file))
    began, day = time.monotonic(), datetime.now(UTC).date().isoformat()
    row = {"kind": kind, "what": what} | make()
    row |= {"lost": row["tried"] - row["survived"], "date": day}
    row["seconds"] = round(time.monotonic() - began)
    write_whole(file, dump_json(row))
    return row


def told(asked: argparse.Namespace, table: list[Row], left: list[str]) -> Row:
    """The table with all that is needed to make it again."""
    origin = Provenance.start("cpu", "fp32", "").to_dict()
    names = ("commit", "dirty", "version", "python", "torch", "device")
    settings = {name: getattr(asked, name) for name in ("seed", "kills", "damage")}
    return settings | {name: origin[name] for name in names} | {
        "long": asked.long, "system": platform.system(), "cores": os.cpu_count(),
        "date": max(row["date"] for row in table),
        "seconds": sum(row["seconds"] for row in table), "rows": table, "left": left,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--damage", type=int, default=40, help="places in a file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--long", action="store_true", help="book builds too: hours")
    parser.add_argument("--only", help="rows, such as 'book|image'; no table then")
    parser.add_argument("--so-far", action="store_true", help="the rows there are")
    parser.add_argument("--snakemake", default="", help="its program, if installed")
    parser.add_argument("--out", type=Path, default=small.ROOT / "results/faults.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    name = f"{asked.seed}-{asked.kills}-{asked.damage}-{'long' * asked.long}"
    kept, table, left = small.ROOT / "_build/faults" / name, [], []
    todo = list(rows(asked))
    known = [what for _, what, _ in todo]
    chosen = [one_of("row", w, known) for w in (asked.only or "").split("|") if w]
    print(f"seed {asked.seed}; rows are kept in {kept.relative_to(small.ROOT)}")
    print(f"{'kind':9}{'what':28}{'tried':>6}{'survived':>9}{'lost':>5}{'s':>6}")
    for kind, what, make in todo:
        if chosen and what not in chosen:
            continue
        file = kept / f"{kind} {what}.json"
        if asked.so_far and not file.exists():
            left.append(what)
            continue
        row = made(kind, what, make, file)
        table.append(row)
        numbers = f"{row['tried']:6}{row['survived']:9}{row['lost']:5}"
        print(f"{kind:9}{what:28}{numbers}{row['seconds']:6}", flush=True)
    if not chosen:
        write_whole(asked.out, dump_json(told(asked, table, left)))
    return int(any(row["lost"] for row in table))


if __name__ == "__main__":
    sys.exit(main())
