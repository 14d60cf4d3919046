"""Trains one small run in a thread of its own, and remembers all such runs.

Knows no widget. ``Trial`` is a run that can be stopped, with the curvature of what it
trained; ``trials(work)`` are those of a kernel in one work folder: the running one and,
from files, the earlier ones. They are kept apart from the committed records: the same
settings again are read, and a stopped run goes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import torch

from saddlebook import data, measure, runner
from saddlebook.curvature import hessian
from saddlebook.data import groups
from saddlebook.disk.files import dump_json, load_json, read_checkpoint, write_whole
from saddlebook.errors import (
    CorruptError,
    NumericalError,
    SaddlebookError,
    Stopped,
    UsageError,
    one_of,
)
from saddlebook.experiment import Experiment
from saddlebook.findings.tables import WAYS
from saddlebook.record import Record
from saddlebook.scales import at_scale
from saddlebook.store import Store
from saddlebook.studies import on_images
from saddlebook.train import run

METHODS: dict[str, dict[str, str]] = {
    "CE+DRW": {"reweight": "drw"},
    "CE": {},
    "LDAM+DRW": {"loss": "ldam", "reweight": "drw"},
    "VS": {"loss": "vs"},
}
GROUPS = ("overall", "head", "mid", "tail")
# Measured side by side
SIDES = {mode: WAYS[mode] for mode in ("clean", "as_published")}
EXPECTED = {"more": "rise", "less": "fall", "same": "stay"}  # of the tail, by a reader
load_once = lru_cache(maxsize=2)(data.load)


def trial_setting(
    scale: str,
    *,
    rho: float,
    weight_decay: float,
    seed: int,
    method: str = "CE+DRW",
    images: data.Dataset | None = None,
) -> Experiment:
    """A run of ``method`` with SAM at ``rho`` (in the scale's own units; 0 is SGD).

    ``images``: Your own instead of the scale's.

    Raises:
        UsageError: A value that is negative, not finite or not a whole seed.
    """
    method = one_of("method", method, METHODS)
    base = Experiment(**METHODS[method])  # type: ignore[arg-type]
    if images:
        base = data.counted(on_images(base, images.name), images)
    base = at_scale(base, scale)
    optimizer = "sgd" if rho == 0 else "sam"
    return replace(
        base, optimizer=optimizer, rho=rho, weight_decay=weight_decay, seed=seed
    )


def curve(
    experiment: Experiment, rows: Sequence[dict[str, Any]], counts: Sequence[int] = ()
) -> dict[str, Any]:
    """Accuracy of the groups at every tested epoch, percent; as a record keeps it.

    ``counts``: Training images by class, which group your own images.
    """
    tested = [row for row in rows if "per_class" in row]
    if not tested:
        return {name: [] for name in ("epoch", *GROUPS)}
    every = np.array([row["per_class"] for row in tested])  # [T, C]
    parts = {"overall": range(every.shape[1])} | groups(experiment, counts)
    return {"epoch": [row["epoch"] for row in tested]} | {
        name: every[:, list(parts[name])].mean(1).round(2).tolist() for name in GROUPS
    }


class Trial:
    """A run in a thread of its own; it follows itself and can be stopped.

    Args:
        experiment: What to run.
        told: Called from the thread whenever something changed.
        work: Folder of checkpoints; the record is kept in its folder ``live``.
        data_root: See ``runner.run``.
        device: The same.
        head: Whether to measure the largest class too; it takes longest.
        counts: Training images by class, of your own images.

    Attributes:
        state: ``running``, ``done``, ``stopped`` or ``failed``.
        epoch: Last finished one.
        message: Where it stands, in a line.
        rows: One an epoch, as the training tells them; of a resumed run all of them.
        spectra: Of the trained network, one a class and way to measure.
        record: Once it is done.
        error: What stopped it otherwise.
    """

    def __init__(
        self,
        experiment: Experiment,
        told: Callable[[], None] = lambda: None,
        *,
        work: str | Path = runner.WORK,
        data_root: str | None = None,
        device: str = "cpu",
        head: bool = False,
        counts: Sequence[int] = (),
    ) -> None:
        self.experiment, self.counts = experiment, counts
        self.state, self.message = "running", "preparing the images …"
        self.record: Record | None = None
        self.error: Exception | None = None
        self.work, self.device, self._root = Path(work), device, data_root
        self._head = head
        self.rows = history(experiment, self.work)
        self.epoch = self.rows[-1]["epoch"] if self.rows else 0
        self.spectra: list[dict[str, Any]] = []
        self._told = told
        self._stop = threading.Event()
        self._first: tuple[int, float] | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        """Begin, or go on where the same experiment was stopped."""
        self._thread.start()

    def stop(self) -> None:
        """Ask for a stop after this step; again, or too late, it changes nothing."""
        self._stop.set()

    def stopped(self) -> bool:
        """Whether a stop was asked for; the training asks at every step."""
        return self._stop.is_set()

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the end, or ``timeout`` seconds."""
        self._thread.join(timeout)

    def epoch_done(self, experiment: Experiment, row: dict[str, Any]) -> None:
        """Say where the run stands and how long it will take."""
        now, total = time.monotonic(), experiment.epochs
        self.epoch = row["epoch"]
        self.rows.append(row)
        self._first = self._first or (self.epoch, now)
        epoch, then = self._first
        self.message = f"epoch {self.epoch} of {total}, loss {row['train_loss']:.3f}"
        if self.epoch > epoch:
            left = (total - self.epoch) * (now - then) / (self.epoch - epoch)
            self.message += f", {_duration(left)} left"
        if experiment.reweight == "drw" and self.epoch > experiment.drw_epoch:
            self.message += "; rare classes now weigh more, so the loss jumped"
        self._told()

    def measuring(
        self, experiment: Experiment, done: float, total: float, what: str
    ) -> None:
        """Say which share of the spectra is measured."""
        self._say(f"measuring curvature, {100 * done / total:.0f} %")

    def _measure(self, record: Record) -> None:
        """Measure the rarest class, images fixed and as published; the head if told."""
        images = load_once(self.experiment.dataset, self._root)
        classes = {"rarest": record.groups["tail"][-1]}
        if self._head:
            classes["largest"] = record.groups["head"][0]
        for name, class_ in classes.items():
            for mode in SIDES:
                what = f"measuring the curvature of the {name} class, {SIDES[mode]}"
                self._say(f"{what} …")
                self.spectra = class_curvature(
                    self.experiment, images, self.work, class_, mode, self._step(what)
                )

    def _step(self, what: str) -> Callable[[int, int], None]:
        """Follow a measurement, a step at a time; some take half a minute."""

        def step(done: int, most: int) -> None:
            if self.stopped():
                raise Stopped("stopped measuring")
            if done % 5 == 0:
                self._say(f"{what}: step {done} of at most {most} …")

        return step

    def _say(self, message: str) -> None:
        self.message = message
        self._told()

    def _work(self) -> None:
        # Small networks: one thread is fastest; flags as on the command line, so that
        # a trial equals the stored run bit for bit
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        try:
            self._told()
            self.record = self._train()
            self._measure(self.record)
            self.state, self.message = "done", _outcome(self.record)
        except Stopped as error:
            self._ended("stopped", error, "stopped; Run with the same settings goes on")
        except NumericalError as error:
            told = f"the numbers blew up in epoch {self.epoch + 1}: lower ρ"
            self._ended("failed", error, f"{told} or weight decay, then press Run")
        except SaddlebookError as error:
            self._ended("failed", error, str(error))
        except Exception as error:  # readers look at the panel, not into a log
            self._ended("failed", error, f"{type(error).__name__}: {error}")
        finally:
            torch.set_flush_denormal(False)
        self._told()

    def _train(self) -> Record:
        kept = Store(self.work / "live" / self.experiment.scale)
        if found := kept.get(self.experiment):
            return found
        images = load_once(self.experiment.dataset, self._root)
        self._say("building the network …")
        return runner.run_all(
            [self.experiment],
            dataset=images,
            device=self.device,
            work=self.work,
            results=self.work / "live",
            watcher=self,
        )[0]

    def _ended(self, state: str, error: Exception, message: str) -> None:
        self.state, self.error, self.message = state, error, message


def history(experiment: Experiment, work: Path) -> list[dict[str, Any]]:
    """Tests of a run that was begun, from its checkpoint; none where it is damaged."""
    try:
        meta, _ = read_checkpoint(work / experiment.training.slug / "latest.ckpt")
        return list(meta["history"])
    except (CorruptError, KeyError):  # the training itself says what is wrong
        return []


def class_curvature(
    experiment: Experiment,
    images: data.Dataset,
    work: Path,
    class_: int,
    mode: str,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Measure one class at the last epoch's weights; what was measured is kept.

    Args:
        experiment: A finished run of ``work``.
        images: Its dataset.
        work: Folder of checkpoints and exported weights.
        class_: Of the dataset.
        mode: As in ``hessian.measure``.
        progress: The same.

    Returns:
        All measurements kept of this run.
    """
    folder = work / experiment.training.slug
    weights = folder / f"epoch{experiment.epochs:04d}.weights"
    model = run.load_model(experiment, weights)  # checks the file
    found = kept_curvature(experiment, work)
    if any((s["class"], s["mode"]) == (class_, mode) for s in found):
        return found
    task = run.prepare(experiment, images)
    loss = measure.class_loss(experiment, task.class_counts)
    found.append(
        hessian.measure(
            model,
            loss,
            task.images,
            task.labels,
            mode,
            class_=class_,
            epoch=experiment.epochs,
            rtol=0.01,
            quadrature=False,
            progress=progress,
        )
    )
    write_whole(folder / "live.json", dump_json(found))
    return found


def kept_curvature(experiment: Experiment, work: Path) -> list[dict[str, Any]]:
    """What ``class_curvature`` has measured of a run."""
    file = work / experiment.training.slug / "live.json"
    try:
        return list(load_json(file)) if file.exists() else []
    except SaddlebookError:
        return []


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _outcome(record: Record) -> str:
    found = record.accuracy._asdict().items()
    told = ", ".join(f"{name} {value:.1f} %" for name, value in found)
    return f"{told}; trained in {record.timing['seconds']:.0f} s"


class Trials:
    """The trials of one kernel in one work folder; whoever shows them is told.

    Attributes:
        latest: The trial that runs or ran last in this kernel, or None.
    """

    def __init__(self, work: Path) -> None:
        self.work = work
        self.latest: Trial | None = None
        self._shown: WeakSet[Any] = WeakSet()

    @property
    def running(self) -> bool:
        """Whether a run is going on."""
        return self.latest is not None and self.latest.state == "running"

    def follow(self, panel: Any) -> None:
        """Call ``panel.refresh()`` at every change, while there is such a panel."""
        self._shown.add(panel)

    def start(self, experiment: Experiment, **where: Any) -> Trial:
        """Start a trial; ``where``: ``data_root`` and ``device``.

        Raises:
            UsageError: One is running.
        """
        if self.running:
            raise UsageError("a run is going on; wait for it or press Stop")
        self.latest = Trial(experiment, self._changed, work=self.work, **where)
        self.latest.start()
        return self.latest

    def _changed(self) -> None:
        for panel in list(self._shown):
            panel.refresh()

    def _store(self, scale: str) -> Store:
        return Store(self.work / "live" / scale)

    def records(self, scale: str) -> list[Record]:
        """Those of finished trials, of earlier kernels too, oldest first."""
        try:
            found = self._store(scale).records()
        except CorruptError:  # a file that others wrote is no reason to show nothing
            return []
        return sorted(found, key=lambda r: str(r.provenance["started"]))

    def forget(self, record: Record) -> None:
        """Delete a trial's record; its checkpoint stays, so that it comes back fast."""
        exp = record.experiment
        (self._store(exp.scale).path / f"{exp.slug}.json").unlink(missing_ok=True)


_KERNEL: dict[Path, Trials] = {}


def trials(work: str | Path = runner.WORK) -> Trials:
    """The trials of this kernel in a work folder: one object, however often asked."""
    place = Path(work).resolve()
    return _KERNEL.setdefault(place, Trials(place))


def compared(
    a: Sequence[Record], b: Sequence[Record], stored: Sequence[Record]
) -> list[dict[str, Any]]:
    """B against A in each group, beside what seeds alone do.

    A difference counts when it is twice the standard error that the spread over seeds
    gives a difference of two such means; the spread is pooled over the stored settings
    with several seeds, 4 runs each at least.

    Args:
        a: Runs of one setting, one or several seeds.
        b: The same of another.
        stored: Runs whose seeds tell the spread.

    Returns:
        A row a group: means, ``difference`` and ``noise`` (two standard errors) in
        points, and ``word``.
    """
    rows = []
    for name in GROUPS:
        left, right = ([getattr(r.accuracy, name) for r in side] for side in (a, b))
        change = float(np.mean(right) - np.mean(left))
        noise = 2 * seed_spread(stored, name) * (1 / len(a) + 1 / len(b)) ** 0.5
        word = "within the seeds' noise"
        if not noise > 0:
            word = "no stored seeds to judge by"
        elif abs(change) > noise:
            word = "more" if change > 0 else "less"
        rows.append(
            {"group": name, "a": round(float(np.mean(left)), 1)}
            | {"b": round(float(np.mean(right)), 1), "difference": round(change, 1)}
            | {"noise": round(noise, 1), "word": word}
        )
    return rows


def answered(
    guess: str,
    mine: Sequence[dict[str, Any]],
    stored: Sequence[dict[str, Any]],
    seeds: int,
) -> str:
    """What a run, and the stored seeds of its setting, say of a guess on the tail.

    Args:
        guess: Of ``EXPECTED``.
        mine: From ``compared``, of the reader's run.
        stored: The same of the stored ones; none if there are none.
        seeds: How many.
    """
    told = (
        f"You said the tail would {EXPECTED[guess]}. Your run: {_judged(mine, guess)}."
    )
    if not stored:
        return told
    return f"{told} {seeds} stored seeds: {_judged(stored, guess)}."


def _judged(rows: Sequence[dict[str, Any]], guess: str) -> str:
    """Within the noise a difference says nothing."""
    tail = next(row for row in rows if row["group"] == "tail")
    told = f"{tail['difference']:+.1f} points (noise ±{tail['noise']:.1f}), "
    said = "right" if tail["word"] == guess else "wrong"
    known = tail["word"] in EXPECTED
    return told.replace("-", "−") + (said if known else "too little to tell")


def seed_spread(stored: Sequence[Record], group: str) -> float:
    """Standard deviation over seeds in points, pooled over settings; 0 if unknown."""
    settings: dict[Experiment, list[float]] = {}
    for record in stored:
        same = replace(record.experiment.training, seed=0)
        settings.setdefault(same, []).append(getattr(record.accuracy, group))
    several = [values for values in settings.values() if len(values) >= 4]
    if not several:
        return 0.0
    return float(np.mean([np.var(values, ddof=1) for values in several]) ** 0.5)
