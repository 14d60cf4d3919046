"""Fetches what a chapter shows: records that are there, runs made now, shipped weights.

Where records arrive one by one, a chapter shows those that exist and names the command
for the rest. Told to train, it makes them while the reader watches. Trained networks
(CE+DRW with SGD and with SAM, last epoch) lie in ``results/weights``; their images are
the reader's own copy, and without it the chapter shows the stored spectrum.
"""

from __future__ import annotations

import io
import itertools
import math
import os
import shlex
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from saddlebook import data, measure, studies
from saddlebook.curvature import hessian
from saddlebook.curvature.spectrum import Spectrum
from saddlebook.data.large import counted_large, find_large
from saddlebook.disk.files import (
    dump_json,
    load_json,
    sha256,
    wait_for_others,
    write_whole,
)
from saddlebook.errors import DataError, VerifyError
from saddlebook.experiment import LARGE, LISTED, Experiment
from saddlebook.findings import claims, hypotheses, readme, tables
from saddlebook.scales import at_scale
from saddlebook.store import RESULTS, Found, Store, find_records
from saddlebook.train import run
from saddlebook.train.large import Crew, shared_batches

if TYPE_CHECKING:
    from saddlebook.book.page import Page
    from saddlebook.findings.claims import Family
    from saddlebook.record import Record


def gather(
    page: Page, *names: str, scale: str | None = None
) -> dict[str, list[Record]]:
    """Records of studies that are there, by study; a note on the page for the rest.

    At ``full`` where a study is complete there, else ``lite``, unless ``scale`` says
    which. At ``quick`` seed 0 is trained, without spectra.

    Args:
        page: Shows the notes and counts the records in its footer.
        names: Of ``saddlebook.studies``.
        scale: Where to look for them; not heeded at ``quick``.
    """
    if page.scale == "quick":
        return {name: _smoke(page, studies.named(name)) for name in names}
    found = page.found({name: studies.named(name) for name in names}, scale)
    _tell(found, page.dataset)
    page.show_records([r for some in found.values() for r in some.records])
    return {name: some.records for name, some in found.items()}


def second_set(page: Page, *names: str) -> list[Record]:
    """Runs on CIFAR-100-LT that are there; none on a page with one set.

    That is a page at ``quick``, or of own images.
    """
    if page.scale == "quick" or page.dataset:
        return []
    return [record for some in gather(page, *names).values() for record in some]


def second_verdicts(page: Page) -> pd.DataFrame:
    """What became of the claims on CIFAR-100-LT, from what ``second_set`` may see."""
    family = hypotheses.second_table()
    if page.scale == "quick" or page.dataset:
        return claims.judge(family, [])
    return verdicts(page, family)


def with_spectra(page: Page) -> list[Record]:
    """Records with spectra that are there; at ``quick`` the first seed is trained."""
    if page.scale == "quick":
        return page.records(studies.dynamics(seeds=(0,)))
    return gather(page, "dynamics")["dynamics"]


def every(
    page: Page, scale: str, choose: Callable[[list[Record]], list[Record]] = list
) -> list[Record]:
    """The main table's and its control's records of one scale, or some of them.

    Of the page's own images, or of CIFAR-10; none at ``quick``.
    """
    if page.scale == "quick":
        return []
    there = [r for r in Store(page.results / scale).records() if page.is_of(r)]
    there = [r for r in there if hypotheses.of_main_table(r.experiment)]
    reported = [r for r in there if r.experiment.seed in studies.SEEDS]
    found = choose(reported)
    page.cite(found)
    return found


def verdicts(page: Page, *families: Family) -> pd.DataFrame:
    """What became of all claims of some families, from every record there is.

    The same families give the same verdicts on every page.
    """
    parts = []
    for family in families:
        runs = readme.present(family, page.scale, page.results, page.on, page.precision)
        page.cite(runs)
        parts.append(claims.judge(family, map(_as_usual, runs), page.scale))
    return pd.concat(parts, ignore_index=True)


def _as_usual(record: Record) -> Record:
    """The record as if of its scale's own precision, which claims name."""
    usual = at_scale(Experiment(), record.experiment.scale).precision
    return replace(record, experiment=replace(record.experiment, precision=usual))


def _smoke(page: Page, experiments: Sequence[Experiment]) -> list[Record]:
    """Records of seed 0, or of the page's, trained now; none with spectra."""
    seeds = page.seeds or [0]
    chosen = [e for e in experiments if e.seed in seeds and not e.spectra_at]
    return page.records(chosen) if chosen else []


def _tell(found: Mapping[str, Found], dataset: str) -> None:
    from IPython.display import display

    parts = [
        f"- {len(records)} of {len(records) + len(missing)} runs of `{name}` are here; "
        f"the rest: `{studies.command(name, scale, dataset)}`"
        for name, (scale, records, missing) in found.items()
        if missing
    ]
    if parts:
        text = "\n".join(["**Not all is run yet.**", "", *parts])
        display({"text/markdown": text, "text/plain": text}, raw=True)


def make(
    experiments: Sequence[Experiment],
    results: Path,
    *,
    data_root: str | None,
    device: str,
    workers: int,
) -> None:
    """Train, measure and store runs in processes of their own, under one bar.

    The kernel only watches: should it die, its workers die with it, and the same
    chapter goes on from their checkpoints, which lie beside ``results``. What another
    process has in hand is left to it and waited for.

    Args:
        experiments: Without a record, of one scale.
        results: Folder of stores.
        data_root: Folder with the images; None: the cache folder.
        device: As ``workers.devices`` takes it.
        workers: Processes on the CPU.

    Raises:
        SaddlebookError: What a run met; what is finished is kept.
    """
    from saddlebook import workers as crew
    from saddlebook.runner import WORK, Progress

    devices = crew.devices(device, workers)
    board = Board()
    board.say(f"{len(experiments)} runs to make at {experiments[0].scale} scale")
    progress = Progress.over(experiments, file=board)
    share = partial(
        crew.share,
        experiments,
        devices,
        results=results,
        work=results.parent / WORK,
        data_root=data_root,
        watcher=progress,
        note=board.note,
    )
    try:
        wait_for_others(share)
    finally:
        progress.close()
    board.say(f"{len(experiments)} runs made")


def large_runs(page: Page) -> tuple[list[Experiment], list[Record]]:
    """Runs of the large sets, or of the page's data set alone, and their records.

    With ``train`` the missing ones are made: at ``full`` as the paper has them, at
    ``quick`` with a small network; there is no ``lite``.
    """
    scale = "quick" if page.scale == "quick" else "full"
    sets = [page.dataset] if page.dataset else list(LARGE)
    seeds = page.seeds or studies.SEEDS[:1]
    wanted = [e for name in sets for e in studies.large(name, seeds, scale)]
    if page.precision:
        wanted = [replace(e, precision=page.precision) for e in wanted]
    if page.dataset.startswith(LISTED):
        lists = find_large(wanted[0], page.data or ".")
        wanted = [counted_large(e, lists) for e in wanted]
    found = find_records(wanted, page.results, scale)
    if page.train and page.scale == scale and found.missing:
        make_large(found.missing, page)
        found = find_records(wanted, page.results, scale)
    page.cite(found.records)
    return wanted, found.records


def make_large(experiments: Sequence[Experiment], page: Page) -> None:
    """Have torchrun make runs one after the other, all of the page's processes on each.

    Raises:
        SaddlebookError: Lists, images or processes that do not fit, before any starts;
            or what a run met. What is finished is kept.
    """
    from saddlebook import workers as crew
    from saddlebook.runner import WORK

    count = len(crew.devices(page.device, page.workers))
    readers = max(1, min(12, (os.cpu_count() or 1) // count))
    places = ["--data", page.data or ".", "--device", page.device]
    places += ["--results", str(page.results), "--readers", str(readers)]
    places += ["--work", str(page.results.parent / WORK)]
    board = Board()
    for exp in experiments:
        images = len(find_large(exp, page.data or ".").train.labels)
        shared_batches(exp, images, Crew(0, count, torch.device(page.device)))
        words = studies.large_words(exp)
        board.say(
            f"torchrun --nproc-per-node {count} -m saddlebook {shlex.join(words)}"
        )
        run = partial(crew.torchrun, [*words, *places], count, board.write)
        wait_for_others(run)


class Board(io.TextIOBase):
    """A file for a bar: one place in a notebook, and few plain lines for a log.

    A notebook in a browser shows the place. Where none is (papermill), each line is
    printed whose time has come: half a minute after the last, later less often.
    """

    encoding = "utf-8"

    def __init__(self) -> None:
        from IPython.display import display

        self._plain = "JPY_SESSION_NAME" not in os.environ  # set by Jupyter's server
        self._began = self._printed = time.monotonic()
        self._noted: set[str] = set()
        self._place: Any = display(self._shown(""), raw=True, display_id=True)

    def _shown(self, text: str) -> dict[str, str]:
        return {"text/plain": text}

    def write(self, text: str) -> int:
        """Take what a bar draws; carriage returns and empty lines say nothing."""
        if line := text.replace("\x1b[A", "").strip():
            self._place.update(self._shown(line), raw=True)
            now = time.monotonic()
            wait = max(30, (now - self._began) / 50)
            if self._plain and now - self._printed > wait:
                self.say(line)
        return len(text)

    def say(self, line: str) -> None:
        """Print a line at once."""
        self._printed = time.monotonic()
        print(line, flush=True)

    def note(self, line: str) -> None:
        """Print a line, the first time."""
        if line not in self._noted:
            self._noted.add(line)
            self.say(line)


def experiment(optimizer: str = "sgd", scale: str = "lite") -> Experiment:
    """What the shipped network of this optimizer and scale was trained as."""
    runs = {exp.optimizer: exp for exp in studies.dynamics(seeds=(0,))}
    return at_scale(runs[optimizer], scale)


def weights(
    optimizer: str = "sgd", results: str | Path = RESULTS, scale: str = "lite"
) -> Path:
    """Where its weights are, if they are there."""
    exp = experiment(optimizer, scale)
    return Path(results) / "weights" / f"{exp.slug.removesuffix(f'_{exp.key}')}.weights"


def viewed_networks(page: Page) -> pd.DataFrame:
    """Spectra of classes that the shipped full-scale networks have in all views.

    The ``spectra`` command measured those (``--views``), some with bf16 products and
    so in a file of their own (``NETWORK-views*.json``); beside them stand the record's
    spectra after the last epoch, fixed and as published. Empty without them.

    Raises:
        VerifyError: They are of other weights.
    """
    found = []
    for optimizer in ("sgd", "sam"):
        path = weights(optimizer, page.results, "full")
        sheets = sorted(path.parent.glob(f"{path.stem}-views*.json"))
        wanted = [experiment(optimizer, "full")] if sheets else []
        for record in find_records(wanted, page.results, "full").records:
            found.append((record, _with_views(record, sheets, path)))
    page.cite([record for record, _ in found])
    return tables.items_table(found)


def _with_views(
    record: Record, sheets: Sequence[Path], path: Path
) -> list[dict[str, Any]]:
    last, nowhere = record.experiment.epochs, [math.nan] * 3
    more = {"mode": "augmented", "judged_on": "augmented", "line_losses": nowhere}
    viewed, digest = [], sha256(path.read_bytes())
    for sheet in sheets:
        told = load_json(sheet)
        if told["of"]["weights"] != digest:
            raise VerifyError(f"{path.name} changed; measure {sheet.name} again")
        viewed += [item | more | {"epoch": last} for item in told["classes"]]
    classes = {item["class"] for item in viewed}
    beside = [
        item
        for item in record.spectra
        if item["epoch"] == last and item["class"] in classes
        if item["mode"] in ("clean", "as_published")
    ]
    return beside + viewed


def count_mistakes(root: str | None = None, results: str | Path = RESULTS) -> Path:
    """Classify the test images with each shipped network and store the counts.

    Args:
        root: Folder with CIFAR-10; that of SADDLEBOOK_DATA.
        results: Folder with ``weights/``.
    """
    found = []
    for scale, optimizer in itertools.product(("lite", "full"), ("sgd", "sam")):
        path, exp = weights(optimizer, results, scale), experiment(optimizer, scale)
        task = run.prepare(exp, data.load(exp.dataset, root or _data_folder()))
        model = run.load_model(exp, path)
        with torch.no_grad():
            batches = task.test_images.split(500)
            said = torch.cat([model(batch).argmax(1) for batch in batches])
        cells = exp.num_classes * task.test_labels + said
        counts = cells.bincount(minlength=exp.num_classes**2)
        found.append(
            {"record": exp.slug, "scale": scale, "method": exp.method,
             "weights_sha256": sha256(path.read_bytes()), "data_digest": task.digest,
             "counts": counts.view(exp.num_classes, -1).tolist()}
        )  # fmt: skip
    return write_whole(Path(results) / "weights" / "mistakes.json", dump_json(found))


def mistakes(results: str | Path = RESULTS) -> list[dict[str, Any]]:
    """What ``count_mistakes`` stored, of the shipped networks as they are.

    Each has ``record``, ``scale``, ``method`` and ``counts``, true class by answer.

    Raises:
        VerifyError: Weights have changed since.
    """
    found: list[dict[str, Any]] = load_json(Path(results) / "weights" / "mistakes.json")
    for one in found:
        name = one["record"].rpartition("_")[0] + ".weights"
        if (
            sha256((Path(results) / "weights" / name).read_bytes())
            != one["weights_sha256"]
        ):
            raise VerifyError(f"{name} changed; count its mistakes again")
    return found


def _data_folder() -> str | None:
    return os.environ.get("SADDLEBOOK_DATA")


def shipped_spectrum(
    class_: int,
    optimizer: str = "sgd",
    root: str | None = None,
    results: str | Path = RESULTS,
    scale: str = "lite",
) -> Spectrum | str:
    """Spectrum of one class's loss at a shipped network, or why it cannot be had.

    Args:
        class_: Class to measure; the rare ones take seconds.
        optimizer: ``sgd`` or ``sam``.
        root: Folder with CIFAR-10; that of SADDLEBOOK_DATA.
        results: Folder with ``weights/``.
        scale: ``lite``, or ``full``: the paper's own setting.
    """
    path, exp = weights(optimizer, results, scale), experiment(optimizer, scale)
    if not path.is_file():
        return "the shipped weights are not here"
    try:
        with warnings.catch_warnings(action="ignore"):  # an unwritable cache
            images = data.load(exp.dataset, root or _data_folder())
    except DataError:
        return "CIFAR-10 is not here (set SADDLEBOOK_DATA to the folder that has it)"
    ready = run.prepare(exp, images)
    rows = ready.labels == class_
    return hessian.spectrum(
        run.load_model(exp, path),
        measure.class_loss(exp, ready.class_counts),
        data.normalise(ready.images[rows]),
        ready.labels[rows],
        rtol=0.01,
    )
