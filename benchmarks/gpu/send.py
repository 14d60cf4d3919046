"""Make ready what one call on a GPU machine needs: one folder that travels.

    python benchmarks/gpu/send.py table1 --seeds 0,1,2 --methods CE,CE+DRW

Into ``.gpu``: the dataset in one file (made once), ``item.json`` with the experiments
that have no record yet, and what earlier calls left of them, as far as there is room;
runs whose state does not fit stay here and are left out of the item. Then, there,

    PYTHONPATH=src python3 benchmarks/gpu/run.py --out FOLDER

and, here, ``python benchmarks/gpu/fetch.py FOLDER``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pack
from bundle import Bundle, Unit, networks, run_unit

from saddlebook import runner, studies
from saddlebook.disk.files import dump_json, read_checkpoint, write_whole
from saddlebook.disk.provenance import numerics_digest
from saddlebook.errors import SaddlebookError, UsageError, one_of
from saddlebook.experiment import SCALES, Experiment
from saddlebook.store import Store

TRAVELS = 56 * 2**20  # of 64 MiB; the checkout takes the rest


def chosen(options: argparse.Namespace) -> list[Experiment]:
    """Experiments of the studies that have no record, SGD before SAM."""
    seeds = [int(s) for s in options.seeds.split(",")] if options.seeds else None
    one_of("scale", options.scale, SCALES)
    runs = [e for s in options.study for e in studies.named(s, options.scale, seeds)]
    if options.methods:
        known = {e.method for e in runs}
        wanted = {one_of("method", m, known) for m in options.methods.split(",")}
        runs = [e for e in runs if e.method in wanted]
    if options.precision:
        runs = [replace(e, precision=options.precision) for e in runs]
    missing = Store(options.results / options.scale).missing(dict.fromkeys(runs))
    if len({e.dataset for e in missing}) != 1:
        raise UsageError(
            f"{len(runs)} runs, {len(missing)} without a record, on "
            f"{sorted({e.dataset for e in missing})}; one call carries one dataset"
        )
    return missing


def carried(experiments: list[Experiment], work: Path) -> dict[str, dict[str, Unit]]:
    """What earlier calls left, by run, the most advanced first."""
    found: dict[str, tuple[int, dict[str, Unit]]] = {}
    for slug in dict.fromkeys(e.training.slug for e in experiments):
        folder = work / slug
        if (folder / "latest.ckpt").exists():
            epoch = read_checkpoint(folder / "latest.ckpt")[0]["epoch"]
            units = {slug: run_unit(folder, [], finished=False, keep=True)}
            mine = [e for e in experiments if e.training.slug == slug]
            units |= networks(folder, [at for e in mine for at in e.spectra_at])
            found[slug] = (epoch, units)
    ordered = sorted(found, key=lambda slug: -found[slug][0])
    return {slug: found[slug][1] for slug in ordered}


def fill(
    folder: Path, experiments: list[Experiment], options: argparse.Namespace
) -> list[str]:
    """Write item and state; returns the runs that stay here for want of room."""
    states = carried(experiments, options.work)
    room = options.room - sum(p.stat().st_size for p in folder.glob("*.pack"))
    there: dict[str, Unit] = {}
    behind = []
    for slug, units in states.items():
        size = sum(len(data) for unit in units.values() for data in unit.values())
        if size <= room:
            there |= units
            room -= size
        else:
            behind.append(slug)
    going = [e for e in experiments if e.training.slug not in behind]
    item = _item(going, options.keep)
    left = Bundle(folder, item).save(there)
    if left or not going:
        raise UsageError(f"no room for {left or behind}; send fewer seeds or methods")
    write_whole(folder / "item.json", item)
    return behind


def _item(experiments: list[Experiment], keep: str) -> bytes:
    commit, dirty = (_git("rev-parse", "HEAD"), _git("status", "--porcelain", "src"))
    kept = [e.training.slug for e in experiments if e.method in keep.split(",")]
    return dump_json({
        "experiments": [e.to_dict() for e in experiments], "keep": sorted(set(kept)),
        "commit": commit or "unknown", "dirty": bool(dirty),
        "numerics": numerics_digest(),
    })  # fmt: skip


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parents[2]), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip()


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", nargs="+", help=", ".join(studies.STUDIES))
    parser.add_argument("--scale", default="full")
    parser.add_argument("--seeds", help="such as 0,1,2; default: the study's")
    parser.add_argument("--methods", help="such as CE,CE+DRW+SAM; default: all")
    parser.add_argument("--precision", help="instead of the study's: tf32, bf16")
    parser.add_argument("--keep", default="", help="methods to measure in a later call")
    parser.add_argument("--data", default=os.environ.get("SADDLEBOOK_DATA"))
    parser.add_argument("--to", type=Path, default=Path(".gpu"))
    parser.add_argument("--room", type=int, default=TRAVELS, help="bytes that travel")
    parser.add_argument("--work", type=Path, default=Path(runner.WORK))
    parser.add_argument("--results", type=Path, default=Path("results"))
    return parser


def main() -> int:
    options = parser().parse_args()
    try:
        experiments = chosen(options)
        name = experiments[0].dataset
        packed = options.to / f"{name}-{options.scale}.pack"
        for other in set(options.to.glob("*.pack")) - {packed}:
            other.unlink()
        if not packed.exists():
            print(pack.make(packed, name, options.scale, options.data))
        behind = fill(options.to, experiments, options)
    except SaddlebookError as error:
        print(f"send: {error}", file=sys.stderr)
        return error.exit_code
    size = sum(p.stat().st_size for p in options.to.iterdir()) / 2**20
    runs = len({e.training for e in experiments}) - len(behind)
    print(f"{options.to} is ready: {runs} runs, {size:.1f} MiB")
    for slug in behind:
        print(f"stays here, no room: {slug}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
