"""Makes records of experiments: trains, measures and stores what is missing.

The only module that joins training, measuring and the store. At the end the bar that
shows how far some runs are and takes the request to stop them. It counts passes
(forward and backward) over one image: an estimate, on which nothing else depends.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch

from saddlebook import data, measure
from saddlebook.data.large import Lists, counted_large
from saddlebook.disk.files import locked, wait_for_others
from saddlebook.disk.provenance import Provenance, check_device
from saddlebook.errors import (
    LockedError,
    NumericalError,
    ResourceError,
    SaddlebookError,
    UsageError,
)
from saddlebook.experiment import Experiment
from saddlebook.models import arithmetic
from saddlebook.record import Record, assemble
from saddlebook.store import Store
from saddlebook.train import Outcome, Watcher, alike, train
from saddlebook.train.large import gathered, told_once, train_large

WORK = ".saddlebook"  # checkpoints and exported weights; not kept in git
PATIENCE = 600  # seconds that another process may take for one small run
SIDE_BY_SIDE = 12  # a group's checkpoints fit a transfer of 48 MiB
# Of a bar and a plan, in passes (forward and backward) over one image
_PRODUCT = 2.5  # a Hessian product costs as much, measured on a core
_TEST_IMAGES = {"cifar10": 10_000, "cifar100": 10_000, "digits": 340}


class Follower(Watcher, Protocol):
    """Who follows runs: told of every epoch and of the spectra, asked at every step."""

    def measuring(
        self, experiment: Experiment, done: float, total: float, what: str
    ) -> None:
        """Called as the spectra of a run are measured, ``done`` of ``total``."""


def run(
    experiment: Experiment,
    *,
    data_root: str | Path | None = None,
    device: str = "cpu",
    work: str | Path = WORK,
    results: str | Path | None = None,
    watcher: Follower | None = None,
    patience: float = PATIENCE,
) -> Record:
    """Train one experiment, measure it, return its Record.

    Continues after any interruption; a record found in ``results`` is returned as is.
    A run that another process has in hand is waited for.

    Args:
        experiment: What to run.
        data_root: Where CIFAR, or the folder of your own images, lies; None is the
            user's cache folder.
        device: Torch device.
        work: Folder for checkpoints.
        results: Folder of stores (``<results>/<scale>``) to read from and write to, or
            None to keep the record in memory only.
        watcher: Follows and can stop the training.
        patience: Seconds to wait for another process.

    Raises:
        SaddlebookError: One line that says what to do; LockedError: the other process
            still has the run.
    """
    made = partial(
        run_all, [experiment], data_root=data_root, device=device, work=work,
        results=results, watcher=watcher,
    )  # fmt: skip
    return wait_for_others(made, patience)[0]


def run_all(
    experiments: Sequence[Experiment],
    *,
    data_root: str | Path | None = None,
    device: str = "cpu",
    work: str | Path = WORK,
    results: str | Path | None = None,
    watcher: Follower | None = None,
    note: Callable[[str], None] = lambda line: None,
    group: int | None = None,
    dataset: data.Dataset | None = None,
) -> list[Record]:
    """Train what has no record yet, runs of equal shape side by side.

    A run that another process holds is left to it; a run whose numbers blow up is
    reported and the others go on. Both are raised at the end, if the other process has
    not ended the run by then. A run's result does not
    depend on the runs beside it: where memory is short, groups are halved.

    Args:
        experiments: What to run, in this order.
        data_root: See ``run``.
        device: See ``run``.
        work: See ``run``.
        results: See ``run``.
        watcher: See ``run``.
        note: Called with a line for each run that was left out.
        group: Runs side by side at most; None: 12 on CUDA, one after the other on the
            CPU, where a second run brings nothing.
        dataset: Images to use for a dataset of this name instead of loading them.

    Returns:
        Records in the order of ``experiments``.
    """
    device = str(device)
    check_device(device)
    if large := [e.dataset for e in experiments if e.is_large]:
        raise UsageError(f"{large[0]}: run it with run_large, or the command large")
    size = group_size(group, device)
    folder = None if results is None else Path(results)
    job = _Job(data_root, dataset, device, Path(work), folder, watcher, note)
    experiments = [job.counted(experiment) for experiment in experiments]
    with torch.cuda.device(device) if "cuda" in device else nullcontext():
        for together in alike(list(dict.fromkeys(experiments)), size):
            job.run(together)
    if troubles := job.left():
        raise troubles[0]
    return [job.done[experiment] for experiment in experiments]


def group_size(group: int | None, device: str) -> int:
    """How many runs stand side by side at most.

    Raises:
        UsageError: Below one.
    """
    if group is not None and group < 1:
        raise UsageError(f"group {group} must be at least 1")
    return group or (1 if device == "cpu" else SIDE_BY_SIDE)


def run_large(
    experiment: Experiment,
    lists: Lists,
    *,
    device: str = "cpu",
    work: str | Path = WORK,
    results: str | Path | None = None,
    **how: Any,
) -> Record | None:
    """Train one of the large sets on all processes of torchrun, or on this one alone.

    Args:
        experiment: What to run.
        lists: As ``data.large.find_large`` gives them.
        device: ``cuda``: of each process its own.
        work: Folder for checkpoints, of the first process.
        results: See ``run``.
        **how: ``readers``, ``compiled``, ``watcher`` and ``save_every`` of
            ``train.large.train_large``.

    Returns:
        The record, in the first process; None in the others.

    Raises:
        SaddlebookError: See ``train_large``; LockedError: it runs already.
    """
    with told_once():
        check_device(device)
        experiment = counted_large(experiment, lists)
    store = None if results is None else Store(Path(results) / experiment.scale)
    with gathered(device) as crew, ExitStack() as held:
        found = store.get(experiment) if store and not crew.rank else None
        if crew.from_first(found is not None):
            return found
        if not crew.rank:
            name = experiment.slug
            held.enter_context(locked(Path(work) / f"{name}.lock", name))
        origin = Provenance.start(
            crew.device, experiment.precision, lists.digest, large=True
        )
        outcome = train_large(experiment, lists, crew, Path(work), **how)
        if crew.rank:
            return None
        names = lists.class_names
        origin = origin.after(outcome.seconds, outcome.numerics)
        record = assemble(experiment, outcome, (), origin, names)
        if store:
            store.add(record)
        return record


@dataclass
class _Job:
    """A call of ``run_all``: where things lie, what is done, what went wrong."""

    data_root: str | Path | None
    dataset: data.Dataset | None
    device: str
    work: Path
    results: Path | None
    watcher: Follower | None
    note: Callable[[str], None]
    done: dict[Experiment, Record] = field(default_factory=dict)
    held: dict[Experiment, SaddlebookError] = field(default_factory=dict)
    troubles: list[SaddlebookError] = field(default_factory=list)

    def left(self) -> list[SaddlebookError]:
        """Why runs have no record: one that another process held may have one now."""
        held = (why for run, why in self.held.items() if not self._found(run))
        return [*self.troubles, *held]

    def run(self, group: Sequence[Experiment]) -> None:
        """Train, measure and store what of a group is missing and free."""
        with ExitStack() as locks:
            mine = [e for e in group if not self._found(e) and self._locked(e, locks)]
            # another process may have finished one just before
            mine = [e for e in mine if not self._found(e)]
            if mine:
                self._train(mine)

    def counted(self, experiment: Experiment) -> Experiment:
        """The experiment with what only its images tell."""
        if not experiment.is_own or experiment.images_digest:
            return experiment
        return data.counted(experiment, self._images(experiment.dataset))

    def _store(self, experiment: Experiment) -> Store | None:
        return None if self.results is None else Store(self.results / experiment.scale)

    def _found(self, experiment: Experiment) -> bool:
        store = self._store(experiment)
        record = store.get(experiment) if store else None
        if record is not None:
            self.done[experiment] = record
        return record is not None

    def _locked(self, experiment: Experiment, locks: ExitStack) -> bool:
        name = experiment.training.slug
        try:
            locks.enter_context(locked(self.work / f"{name}.lock", name))
        except LockedError as trouble:
            self.held[experiment] = trouble
            self.note(str(trouble))
            return False
        return True

    def _report(self, trouble: SaddlebookError) -> None:
        self.troubles.append(trouble)
        self.note(str(trouble))

    def _train(self, group: Sequence[Experiment]) -> None:
        """Train a group; one that fails goes on as two halves from its checkpoints."""
        dataset = self._images(group[0].dataset)
        origin = Provenance.start(self.device, group[0].precision, dataset.digest)
        try:
            outcomes = train(
                group, dataset, self.work, device=self.device, watcher=self.watcher
            )
        except (torch.OutOfMemoryError, NumericalError) as error:
            failure = error.with_traceback(None)  # it would hold the group's memory
        else:
            for experiment, outcome in zip(group, outcomes, strict=True):
                self._finish(experiment, outcome, origin)
            return
        if len(group) == 1:
            self._give_up(group[0], failure)
            return
        middle = len(group) // 2
        for half in (group[:middle], group[middle:]):
            self._train(half)

    def _give_up(self, experiment: Experiment, failure: Exception) -> None:
        if isinstance(failure, NumericalError):
            self._report(failure)
            return
        raise ResourceError(
            f"{experiment.slug}: not enough memory on {self.device}; free some or take "
            "another device, the last checkpoint is kept"
        ) from failure

    def _images(self, name: str) -> data.Dataset:
        if self.dataset is None or self.dataset.name != name:
            self.dataset = data.load(name, self.data_root)
        return self.dataset

    def _finish(
        self, experiment: Experiment, outcome: Outcome, origin: Provenance
    ) -> None:
        dataset = self._images(experiment.dataset)
        told: dict[str, Any] = {}
        if self.watcher:
            told["halted"] = self.watcher.stopped
            told["progress"] = partial(self.watcher.measuring, experiment)
        with arithmetic("fp32"):  # ordered, and never TF32: bounds want every digit
            spectra = measure.class_items(
                experiment, dataset, outcome.weights, self.device, **told
            )
        origin = origin.after(outcome.seconds, outcome.numerics)
        names = dataset.class_names if experiment.is_own else None
        record = assemble(experiment, outcome, spectra, origin, names)
        if store := self._store(experiment):
            store.add(record)
        self.done[experiment] = record


def training_work(experiment: Experiment) -> float:
    """Of all epochs and test passes."""
    exp, images = experiment, sum(_counts(experiment))
    climbing = {"all": exp.epochs, "before": exp.drw_epoch}
    extra = climbing.get(exp.sam_epochs, exp.epochs - exp.drw_epoch)
    extra *= 2 if exp.sam_classes == "tail" else 1
    passes = exp.epochs + (extra if exp.optimizer == "sam" else 0)
    tests = exp.epochs / exp.test_every
    return passes * images + tests * _TEST_IMAGES.get(exp.dataset, 0) / 3


def measuring_work(experiment: Experiment) -> float:
    """Of all spectra of its plan."""
    plan, counts = measure.spectra_plan(experiment), _counts(experiment)
    sizes = (measure.image_products(experiment, counts, item) for item in plan)
    return _PRODUCT * sum(sizes)


def total_work(experiments: Iterable[Experiment]) -> float:
    """Of some runs; experiments of one training share it."""
    runs = list(dict.fromkeys(experiments))
    trainings = dict.fromkeys(run.training for run in runs)
    return sum(map(training_work, trainings)) + sum(map(measuring_work, runs))


def _counts(exp: Experiment) -> list[int]:
    if exp.imbalance == "as_is":  # not known before the images are read
        return [100] * max(1, exp.num_classes)
    return data.class_counts(
        exp.largest_class, exp.num_classes, exp.imbalance_factor, exp.imbalance
    )


class Progress:
    """A progress bar and the request to stop.

    Args:
        total: Units of work in all.
        show: Draw the bar.
        unit: Name of what is counted; none: only the share of the whole is shown.
        file: Where to draw; None: stderr.
    """

    def __init__(
        self,
        total: float,
        show: bool = True,
        unit: str = "",
        file: TextIO | None = None,
    ) -> None:
        self._stop = threading.Event()
        self.signal = 0
        self._bar: Any = _bar(total, unit, file or sys.stderr) if show else None
        self._parts: dict[tuple[str, str], float] = {}
        self.worked = 0.0  # units, without what was done before

    @classmethod
    def over(cls, experiments: Sequence[Experiment], **options: Any) -> Progress:
        """Of the training and measuring of these runs."""
        return cls(total_work(experiments), **options)

    def stop(self) -> None:
        """Ask for a stop after the current step; asking twice changes nothing."""
        self._stop.set()

    def stopped(self) -> bool:
        """Whether a stop was asked for."""
        return self._stop.is_set()

    def epoch_done(self, experiment: Experiment, row: dict[str, Any]) -> None:
        """Move on by one epoch and show the newest loss."""
        share, step = row["epoch"] / experiment.epochs, 1 / experiment.epochs
        told = f"epoch {row['epoch']}, loss {row['train_loss']:.3f}"
        work = training_work(experiment)
        self._reach("train", experiment.training, share * work, step * work, told)

    def measuring(
        self, experiment: Experiment, done: float, total: float, what: str
    ) -> None:
        """Move to the share ``done / total`` of a run's spectra."""
        if total:
            before = training_work(experiment)
            self._reach("train", experiment.training, before, 0, what)
            work = measuring_work(experiment) * done / total
            self._reach("measure", experiment, work, work, what)

    def _reach(
        self, what: str, run: Experiment, work: float, step: float, told: str
    ) -> None:
        """Count ``work`` of a run as done, all but ``step`` of it from before."""
        key, bar = (what, run.key), self._bar
        new = key not in self._parts
        before = work - step if new else self._parts[key]
        self._parts[key] = work
        self.worked += work - before
        if bar is not None:
            bar.n += before if new else 0
            bar.initial += before if new else 0  # not in the rate, so in the time left
            bar.set_description(f"{run.method} seed {run.seed}", refresh=False)
            bar.set_postfix_str(told, refresh=False)
            bar.update(min(work - before, bar.total - bar.n))  # rounding: never over

    def at(self, done: int, text: str) -> None:
        """Move to ``done`` units in all, and say what is under way."""
        if self._bar is not None:
            self._bar.set_description(text, refresh=False)
            self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Leave the bar as it is and free the line."""
        if self._bar is not None:
            self._bar.close()

    @contextmanager
    def signals(self) -> Iterator[None]:
        """While the block runs, SIGTERM and the first Ctrl-C ask for a stop.

        The second Ctrl-C ends at once; at most one checkpoint interval is lost.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: Any) -> None:
            if number == signal.SIGINT and self.stopped():
                raise KeyboardInterrupt
            self.signal = number
            self.stop()

        before = {n: signal.signal(n, ask) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


_SHARE = "{desc}{percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}{postfix}"


def _bar(total: float, unit: str, file: TextIO) -> Any:
    """A bar, or None where tqdm is not installed: it is a comfort, no need."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    form = {"unit": unit} if unit else {"bar_format": _SHARE}
    return tqdm(total=total, file=file, mininterval=1, smoothing=0, **form)
