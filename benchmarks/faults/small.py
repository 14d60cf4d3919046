"""The command line on a paper of seconds: digits, tiny networks, one page.

    python benchmarks/faults/small.py run sgd --scale full

All else is the real thing. Checkpoints come every tenth of a second instead of every
twenty seconds; every epoch that ends leaves a line in the file EPOCHS_LOG, if named.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from saddlebook.book.notebooks import PARAMETERS
from saddlebook.experiment import Experiment
from saddlebook.scales import at_scale
from saddlebook.train import loop

ROOT = Path(__file__).resolve().parents[2]
INTERVAL = 0.1  # seconds between two checkpoints of a run
loop.train.__kwdefaults__["save_every"] = INTERVAL  # of workers too: they read this

_QUICK = at_scale(Experiment(reweight="drw"), "quick")
TINY = replace(_QUICK, scale="full", epochs=8, drw_epoch=6, max_count=30)
_SGD = [{}, {"loss": "vs", "reweight": "none"}]
_SAM = [{"optimizer": "sam", "rho": 0.1} | change for change in _SGD]
PAPER: dict[str, list[dict[str, Any]]] = {
    "sgd": _SGD,
    "sam": _SAM,
    "both": _SGD + _SAM,
    "spectra": [{"epochs": 3, "drw_epoch": 2, "spectra_at": (3,)}],
    "many": [{"epochs": 2, "drw_epoch": 1, "lr": n / 100} for n in range(1, 11)],
    "few": [change | {"epochs": 4, "drw_epoch": 3} for change in (_SGD[0], _SAM[0])],
}


def paper(name: str) -> list[Experiment]:
    """The runs of a study."""
    return [replace(TINY, **change) for change in PAPER[name]]


_HEAD = """# %% [markdown]
# # One page

# %% tags=["parameters", "remove-cell"]
{parameters}

# %% tags=["remove-input"]
from saddlebook.book import Page
from saddlebook.experiment import Experiment

page = Page("ch01_small", vars())

# %% tags=["remove-input"]
runs = [Experiment.from_dict(told) for told in {runs}]
found = page.records(runs)
page.value("tail", found[0].accuracy.tail, ".1f")

# %% [markdown]
# The tail has {glue:text}`tail` percent.

# %% tags=["remove-input"]
page.footer()
"""


def checkout(folder: Path) -> Path:
    """Lay out a book of one page that shows the runs of ``few``."""
    for name in ("book", "results"):
        (folder / name).mkdir()
    for name in (
        "_config.yml",
        "CITATION.cff",
        "book/references.bib",
        "book/notation.md",
    ):
        shutil.copy(ROOT / name, folder / name)
    (folder / "book/_static").symlink_to(ROOT / "book/_static")
    (folder / "_toc.yml").write_text("format: jb-book\nroot: book/ch01_small\n")
    cell = "\n".join(f"{name} = {value!r}" for name, value in PARAMETERS.items())
    runs = repr([exp.to_dict() for exp in paper("few")])
    text = _HEAD.replace("{parameters}", cell).replace("{runs}", runs)
    page = folder / "book/ch01_small.py"
    page.write_text(text)
    return page


def _study(name: str) -> Callable[..., list[Experiment]]:
    return lambda seeds=(0,): paper(name)


def main(words: Sequence[str]) -> int:
    """The command of that name, with these studies, telling of every epoch."""
    from saddlebook import runner, studies
    from saddlebook.__main__ import main as command
    from saddlebook.book import reproduce

    studies.STUDIES.clear()
    studies.STUDIES.update({name: _study(name) for name in PAPER})
    reproduce.NEEDS = {"ch01_small": ("few",)}
    told = runner.Progress.epoch_done

    def epoch_done(self: Any, experiment: Experiment, row: dict[str, Any]) -> None:
        with open(os.environ["EPOCHS_LOG"], "a") as log:
            log.write(f"{experiment.key} {row['epoch']} {time.monotonic():.3f}\n")
        told(self, experiment, row)

    if "EPOCHS_LOG" in os.environ:
        runner.Progress.epoch_done = epoch_done
    return command(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
