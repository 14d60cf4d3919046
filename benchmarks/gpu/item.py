"""One item of the queue, from sending to taking in.

    python benchmarks/gpu/item.py                 the items, and what is left of each
    python benchmarks/gpu/item.py main-table      where this machine has the GPU
    python benchmarks/gpu/item.py main-table --there 'COMMAND'

COMMAND runs ``run.py`` on another machine, with this checkout and its folder ``.gpu``,
and brings what it wrote to ``{out}``; ``{run}`` is replaced by the command line to run
there. Called again it goes on with what is left.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import send

from saddlebook import runner, studies
from saddlebook.errors import SaddlebookError, UsageError, one_of
from saddlebook.experiment import Experiment

PASS_RUN = 28.0  # seconds, bf16, measured with nine runs side by side on an H200
_SLOWER = {"bf16": 1.0, "tf32": 2.0, "fp32": 5.8}
# In order of value: words for ``send.py``
ITEMS = {
    "main-table": "table1 --seeds 1,2"
    " --methods CE,CE+SAM,LDAM+DRW,LDAM+DRW+SAM,VS,VS+SAM",
    "five-seeds": "table1 --seeds 3,4 --methods CE+DRW,CE+DRW+SAM"
    " --keep CE+DRW,CE+DRW+SAM",
    "views": "views --seeds 5",
    "vs": "vs_tuning",
    "control": "control --seeds 0,1,2",
    "cifar100-sgd": "table1_cifar100 --seeds 0,1,2"
    " --methods CE,CE+DRW,LDAM+DRW,VS,CE+SAM",
    "cifar100-sam": "table1_cifar100 --seeds 0,1,2"
    " --methods CE+DRW+SAM,LDAM+DRW+SAM,VS+SAM",
    "rivals": "optimizers --seeds 0,1,2 --methods CE+DRW+PGD,CE+DRW+LPF-SGD",
    "rivals-cifar100": "optimizers_cifar100 --seeds 0,1,2"
    " --methods CE+DRW+PGD,CE+DRW+LPF-SGD",
    "radii": "rho_ablation --seeds 0 --methods CE+DRW+SAM",
    "radii-1": "rho_ablation --seeds 1 --methods CE+DRW+SAM",
    "radii-2": "rho_ablation --seeds 2 --methods CE+DRW+SAM",
    "decay": "weight_decay --seeds 0,1,2 --methods"
    " 'CE+DRW wd=0.0005,CE+DRW wd=0.002,CE+DRW+SAM wd=0.0005,CE+DRW+SAM wd=0.002'",
    "timing": "sam_timing bn_statistics --seeds 0,1,2",
    "spectra": "dynamics --seeds 3",
    "whole": "whole largest largest_fixed all_images --seeds 3",
    "tf32": "table1 --seeds 0,1,2 --methods CE,CE+DRW+SAM --precision tf32",
}


def left(name: str, more: Sequence[str] = ()) -> list[Experiment]:
    """Runs of an item without a record; ``more``: further words for ``send.py``."""
    words = [*shlex.split(ITEMS[one_of("item", name, ITEMS)]), *more]
    try:
        return send.chosen(send.parser().parse_args(words))
    except UsageError as error:
        if ", 0 without a record" in str(error):
            return []
        raise


def minutes(runs: Sequence[Experiment]) -> float:
    """About how long they take on one H200."""
    unit = runner.training_work(studies.table1(seeds=[0])[0])
    parts = (runner.training_work(e) / unit * _SLOWER[e.precision] for e in runs)
    return sum(parts) * PASS_RUN / 60


def show(more: Sequence[str]) -> int:
    for name in ITEMS:
        runs = left(name, more)
        print(f"{name:16}{len(runs):4} runs left, about {minutes(runs):4.1f} minutes")
    return 0


def work(options: argparse.Namespace, more: Sequence[str]) -> int:
    """Send, run, take in; once more while ``run.py`` says that its time was up."""
    here = Path(__file__).parent
    for number in range(options.calls):
        if not left(options.item, more):
            print(f"{options.item} is done")
            return 0
        words = [*shlex.split(ITEMS[options.item]), *more]
        subprocess.run([sys.executable, str(here / "send.py"), *words], check=True)
        out = Path(f".gpu/out{number}")
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        run = f"PYTHONPATH=src python3 -u benchmarks/gpu/run.py --out {out}"
        command = options.there.format(run=run, out=out) if options.there else run
        code = subprocess.run(command, shell=True, check=False).returncode
        if code not in (0, 75) and not list(out.glob("part*.zip")):
            return code
        taken = [sys.executable, str(here / "fetch.py"), str(out)]
        subprocess.run(taken, check=True)
        if code not in (0, 75):
            return code
    return 75 if left(options.item, more) else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("item", nargs="?", help=", ".join(ITEMS))
    parser.add_argument("--there", help="command that runs {run} and brings {out} back")
    parser.add_argument("--calls", type=int, default=3, help="at most")
    options, more = parser.parse_known_args()
    try:
        return work(options, more) if options.item else show(more)
    except SaddlebookError as error:
        print(f"item: {error}", file=sys.stderr)
        return error.exit_code
    except subprocess.CalledProcessError as error:
        return error.returncode


if __name__ == "__main__":
    sys.exit(main())
