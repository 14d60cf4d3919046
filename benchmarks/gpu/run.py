"""On a GPU machine: do what ``send.py`` made ready, within a time limit.

    PYTHONPATH=src python3 benchmarks/gpu/run.py --out FOLDER [--limit 540]

Needs torch and numpy. FOLDER gets at most four parts of at most 16 MiB, saved every
minute and at the end, so that even a kill loses little; ``fetch.py`` takes them in.
Exit code 0: all is done; 75: time is up, send what came back and run again; on the
same machine the same command goes on at once.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pack
import torch
from bundle import Bundle, Unit, install, networks, parts, run_unit

from saddlebook import runner
from saddlebook.disk.files import dump_json, load_json
from saddlebook.errors import DataError, SaddlebookError, UsageError, explained
from saddlebook.experiment import Experiment
from saddlebook.store import Store


class Watch(runner.Progress):
    """Stops in time, and saves and says where it is as it goes."""

    def __init__(self, limit: float, every: float, save: Callable[[], None]) -> None:
        super().__init__(0, show=False)
        self.began = time.monotonic()
        self.limit, self.every, self.save = limit, every, save
        self.saved = self.said = self.began

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self.began

    def stopped(self) -> bool:
        """Whether time is up or a signal came; saves on the way."""
        if time.monotonic() - self.saved > self.every:
            self.save()
            self.saved = time.monotonic()
        return self.seconds > self.limit or super().stopped()

    def epoch_done(self, experiment: Experiment, row: dict[str, Any]) -> None:
        """Say every ten seconds how far a run is."""
        if time.monotonic() - self.said > 10:
            self.said = time.monotonic()
            place = f"epoch {row['epoch']} of {experiment.epochs}"
            say(f"{self.seconds:5.0f} s  {experiment.slug}: {place}")


def say(text: str) -> None:
    print(text, flush=True)


class Call:
    """One call: its experiments, where their files are, and what goes back."""

    def __init__(self, options: argparse.Namespace) -> None:
        file = options.folder / "item.json"
        self.item = load_json(file)
        with explained(f"{file} says nothing to do", "run send.py again"):
            every = [Experiment.from_dict(e) for e in self.item["experiments"]]
            self.experiments, self.keep = every, set(self.item["keep"])
        if any(item != self.item for item, _ in parts(options.out)):
            raise UsageError(
                f"{options.out} holds what another call gave; name another folder"
            )
        self.work, self.results = options.work, options.results
        self.bundle = Bundle(options.out, dump_json(self.item))
        for item, files in parts(options.folder):
            install(files, item, self.work, self.results)

    def pack(self, folder: Path) -> pack.Pack:
        """The dataset that was carried, checked for these experiments."""
        found = sorted(folder.glob("*.pack"))
        if len(found) != 1:
            raise DataError(f"{folder} holds {len(found)} packs; run send.py again")
        packed = pack.read(found[0])
        pack.check(packed, self.experiments)
        return packed

    def units(self) -> dict[str, Unit]:
        """Runs in the order of the item, then exported networks."""
        runs: dict[str, Unit] = {}
        exported: dict[str, Unit] = {}
        for slug in dict.fromkeys(e.training.slug for e in self.experiments):
            mine = [e for e in self.experiments if e.training.slug == slug]
            left = [e for e in mine if not self._record(e).exists()]
            records = [self._record(e) for e in mine if e not in left]
            folder, keep = self.work / slug, slug in self.keep
            if unit := run_unit(folder, records, finished=not left, keep=keep):
                runs[slug] = unit
            epochs = None if keep else [at for e in left for at in e.spectra_at]
            exported |= networks(folder, epochs)
        return runs | exported

    def _record(self, experiment: Experiment) -> Path:
        return self.results / experiment.scale / f"{experiment.slug}.json"

    def save(self) -> None:
        """Write what goes back."""
        for name in self.bundle.save(self.units()):
            say(f"no room for {name}: it stays on this machine")

    def summary(self) -> str:
        """How much is done."""
        store = Store(self.results / self.experiments[0].scale)
        left = store.missing(self.experiments)
        size = sum(p.stat().st_size for p in self.bundle.folder.glob("part*.zip"))
        done = len(self.experiments) - len(left)
        return (
            f"{done} of {len(self.experiments)} records done; {size / 2**20:.1f} MiB "
            f"in {self.bundle.folder}"
        )


def work(call: Call, watch: Watch, options: argparse.Namespace) -> None:
    dataset = call.pack(options.folder).dataset
    say(f"{watch.seconds:5.0f} s  {len(call.experiments)} experiments, {dataset.name}")
    with watch.signals():
        runner.run_all(
            call.experiments,
            dataset=dataset,
            device=options.device,
            work=call.work,
            results=call.results,
            watcher=watch,
            group=options.group,
            note=say,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path(".gpu"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=float, default=540, help="seconds")
    parser.add_argument("--every", type=float, default=60, help="seconds between saves")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--group", type=int, help="runs side by side")
    parser.add_argument("--work", type=Path, default=Path(runner.WORK))
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    code = 0
    try:
        call = Call(options)
        watch = Watch(options.limit, options.every, call.save)
        try:
            work(call, watch, options)
        finally:
            call.save()
            say(f"{watch.seconds:5.0f} s  {call.summary()}")
    except SaddlebookError as error:
        print(f"run: {error}", file=sys.stderr)
        code = error.exit_code
    return code


if __name__ == "__main__":
    sys.exit(main())
