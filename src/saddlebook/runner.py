"""Makes records of experiments: trains, measures and stores what is missing.

The only module that joins training, measuring and the store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from saddlebook import data, measure
from saddlebook.data.large import Lists, counted_large
from saddlebook.disk.files import locked
from saddlebook.disk.provenance import Provenance
from saddlebook.errors import (
    LockedError,
    MachineError,
    NumericalError,
    ResourceError,
    SaddlebookError,
)
from saddlebook.experiment import Experiment
from saddlebook.progress import Progress as Progress
from saddlebook.record import Record
from saddlebook.store import Store
from saddlebook.train import ALIKE, Outcome, Watcher, train
from saddlebook.train.graphs import arithmetic
from saddlebook.train.large import gathered, told_once, train_large

WORK = ".saddlebook"  # checkpoints and exported weights; not kept in git
SIDE_BY_SIDE = 12  # a group's checkpoints fit a transfer of 48 MiB
# Runs of one shape cost the same and differ in tensors and numbers only
_SHAPE = (*ALIKE, "model", "width", "optimizer", "epochs")


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
) -> Record:
    """Train one experiment, measure it, return its Record.

    Continues after any interruption; a record found in ``results`` is returned as is.

    Args:
        experiment: What to run.
        data_root: Where CIFAR, or the folder of your own images, lies; None is the
            user's cache folder.
        device: Torch device.
        work: Folder for checkpoints.
        results: Folder of stores (``<results>/<scale>``) to read from and write to, or
            None to keep the record in memory only.
        watcher: Follows and can stop the training.

    Raises:
        SaddlebookError: One line that says what to do.
    """
    return run_all(
        [experiment],
        data_root=data_root,
        device=device,
        work=work,
        results=results,
        watcher=watcher,
    )[0]


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
    reported and the others go on. Both are raised at the end. A run's result does not
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
    check_device(device)
    size = group or (1 if device == "cpu" else SIDE_BY_SIDE)
    folder = None if results is None else Path(results)
    job = _Job(data_root, dataset, device, Path(work), folder, watcher, note)
    experiments = [job.counted(experiment) for experiment in experiments]
    for together in alike(list(dict.fromkeys(experiments)), size):
        job.run(together)
    if job.troubles:
        raise job.troubles[0]
    return [job.done[experiment] for experiment in experiments]


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
        record = assemble(experiment, outcome, (), origin.after(outcome.seconds), names)
        if store:
            store.add(record)
        return record


def alike(experiments: Sequence[Experiment], size: int) -> list[list[Experiment]]:
    """Groups of at most ``size`` runs of equal shape, in the order of the first one.

    Experiments that share a training are put apart: the second one finds it done.
    """
    if size == 1:
        return [[experiment] for experiment in experiments]
    groups: dict[tuple[object, ...], list[Experiment]] = {}
    trained: Counter[Experiment] = Counter()
    for experiment in experiments:
        shape = [getattr(experiment, name) for name in _SHAPE]
        groups.setdefault((*shape, trained[experiment.training]), []).append(experiment)
        trained[experiment.training] += 1
    return [
        group[start : start + size]
        for group in groups.values()
        for start in range(0, len(group), size)
    ]


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
    troubles: list[SaddlebookError] = field(default_factory=list)

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
            self._report(trouble)
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
        origin = origin.after(outcome.seconds)
        names = dataset.class_names if experiment.is_own else None
        record = assemble(experiment, outcome, spectra, origin, names)
        if store := self._store(experiment):
            store.add(record)
        self.done[experiment] = record


def assemble(
    experiment: Experiment,
    outcome: Outcome,
    spectra: Sequence[dict[str, Any]],
    provenance: Provenance,
    class_names: Sequence[str] | None = None,
) -> Record:
    """Bring an outcome into a record's form."""
    history = outcome.history
    best = max(history, key=lambda row: sum(row["per_class"]))
    return Record(
        experiment=experiment,
        curves=_curves(history, data.groups(experiment, outcome.class_counts)),
        per_class={
            "class_counts": list(outcome.class_counts),
            "last_accuracy": history[-1]["per_class"],
            "best_accuracy": best["per_class"],
            "train_loss": outcome.train_loss,
        }
        | ({"class_names": list(class_names)} if class_names else {}),
        best_epoch=best["epoch"],
        spectra=tuple(spectra),
        timing={
            "seconds": outcome.seconds,
            "resumes": outcome.resumes,
            "side_by_side": outcome.side_by_side,
            "threads": provenance.threads,
            "device": provenance.device,
        }
        | ({"processes": outcome.processes} if experiment.is_large else {}),
        provenance=provenance.to_dict(),
    )


def _curves(
    history: Sequence[dict[str, Any]], groups: dict[str, Sequence[int]]
) -> dict[str, list[Any]]:
    """All tested epochs; the record thins them."""
    curves: dict[str, list[Any]] = {
        name: [row[name] for row in history]
        for name in ("epoch", "train_loss", "lr", "per_class")
    }
    curves["accuracy"] = [_mean(row["per_class"]) for row in history]
    for name, group in groups.items():
        curves[name] = [_mean([row["per_class"][c] for c in group]) for row in history]
    return curves


def _mean(values: Sequence[float]) -> float:
    # the mean over classes: of a balanced test set, the accuracy
    return sum(values) / len(values)


def check_device(device: str) -> None:
    """Refuse a device that is not there.

    Raises:
        MachineError: With the devices that are.
    """
    have = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if device not in have and not (device == "cuda" and len(have) > 1):
        raise MachineError(f"no device {device!r} here; available: {', '.join(have)}")
