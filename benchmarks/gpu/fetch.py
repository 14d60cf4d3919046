"""Take in what a call on a GPU machine gave back.

    python benchmarks/gpu/fetch.py FOLDER

Records go to ``results/<scale>``, checkpoints and networks (in half precision) to the
work folder; nothing that is further on is replaced. Every file is checked, and the
store is verified. Says what is there of each run, and what to commit.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bundle import install, parts

from saddlebook import runner
from saddlebook.disk.files import read_checkpoint
from saddlebook.errors import CorruptError, SaddlebookError
from saddlebook.experiment import Experiment
from saddlebook.store import Store


def take(folder: Path, work: Path, results: Path) -> list[Experiment]:
    """Install all parts; returns the experiments of the call."""
    experiments: dict[Experiment, None] = {}
    for item, files in parts(folder):
        install(files, item, work, results)
        experiments |= {Experiment.from_dict(e): None for e in item["experiments"]}
    if not experiments:
        raise CorruptError(f"{folder} holds no part*.zip; name the folder of --out")
    return list(experiments)


def state(experiment: Experiment, work: Path, store: Store) -> str:
    """What is there of one experiment."""
    folder = work / experiment.training.slug
    networks = len(list(folder.glob("*.weights")))
    tail = f", {networks} networks" if networks else ""
    if record := store.get(experiment):
        found = record.accuracy
        spectra = f", {len(record.spectra)} spectra" if record.spectra else ""
        return f"record: {found.overall:.2f} %, tail {found.tail:.2f} %{spectra}{tail}"
    if (folder / "latest.ckpt").exists():
        epoch = read_checkpoint(folder / "latest.ckpt")[0]["epoch"]
        return f"epoch {epoch} of {experiment.epochs}{tail}"
    return "nothing yet"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path, default=Path(runner.WORK))
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    try:
        experiments = take(options.folder, options.work, options.results)
        store = Store(options.results / experiments[0].scale)
        for experiment in experiments:
            print(f"{experiment.slug:50} {state(experiment, options.work, store)}")
        verified, left = len(store.verify()), store.missing(experiments)
    except SaddlebookError as error:
        print(f"fetch: {error}", file=sys.stderr)
        return error.exit_code
    print(
        f"{verified} records verified in {store.path}; {len(left)} of the call missing"
    )
    print(f"to commit: {store.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
