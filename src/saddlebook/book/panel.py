"""Trains one small run under the reader's hand: set it, press Run, stop it, compare.

``Trial`` is the run, in a thread of its own; it knows no widget. ``Panel`` puts
ipywidgets on it and drops what comes out onto stored runs; ``Panel.run`` serves a
chapter that runs without a reader. Trials are kept apart from the committed records:
the same settings again are read, and a stopped run goes on.
"""

from __future__ import annotations

import html
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from saddlebook import runner, studies
from saddlebook.errors import SaddlebookError, Stopped, UsageError, one_of
from saddlebook.experiment import Experiment, at_scale
from saddlebook.figures import sweeps
from saddlebook.figures.widgets import Widget
from saddlebook.findings import report
from saddlebook.store import find_records

if TYPE_CHECKING:
    from saddlebook.record import Record


def trial_setting(
    scale: str, *, rho: float, weight_decay: float, seed: int
) -> Experiment:
    """CE+DRW with SAM at ``rho`` (in the scale's own units; 0 is SGD).

    Raises:
        UsageError: A value that is negative, not finite or not a whole seed.
    """
    base = at_scale(Experiment(reweight="drw"), scale)
    optimizer = "sgd" if rho == 0 else "sam"
    return replace(
        base, optimizer=optimizer, rho=rho, weight_decay=weight_decay, seed=seed
    )


class Trial:
    """A run in a thread of its own; it follows itself and can be stopped.

    Args:
        experiment: What to run.
        told: Called from the thread whenever something changed.
        **where: ``data_root``, ``device``, ``work``, ``results`` of ``runner.run``.

    Attributes:
        state: ``running``, ``done``, ``stopped`` or ``failed``.
        epoch: Last finished one.
        message: Where it stands, in a line.
        record: Once it is done.
        error: What stopped it otherwise.
    """

    def __init__(
        self, experiment: Experiment, told: Callable[[], None], **where: Any
    ) -> None:
        self.experiment = experiment
        self.state, self.epoch, self.message = "running", 0, "preparing the images …"
        self.record: Record | None = None
        self.error: Exception | None = None
        self._told, self._where = told, where
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
        self._first = self._first or (self.epoch, now)
        epoch, then = self._first
        self.message = f"epoch {self.epoch} of {total}, loss {row['train_loss']:.3f}"
        if self.epoch > epoch:
            left = (total - self.epoch) * (now - then) / (self.epoch - epoch)
            self.message += f", {_duration(left)} left"
        self._told()

    def measuring(
        self, experiment: Experiment, done: float, total: float, what: str
    ) -> None:
        """Say which share of the spectra is measured."""
        self.message = f"measuring curvature, {100 * done / total:.0f} %"
        self._told()

    def _work(self) -> None:
        # Small networks: one thread is fastest; flags as on the command line, so that
        # a trial equals the stored run bit for bit
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        try:
            self.record = runner.run(self.experiment, watcher=self, **self._where)
            self.state, self.message = "done", _outcome(self.record)
        except Stopped as error:
            self._ended("stopped", error, "stopped; Run with the same settings goes on")
        except SaddlebookError as error:
            self._ended("failed", error, str(error))
        except Exception as error:  # readers look at the panel, not into a log
            self._ended("failed", error, f"{type(error).__name__}: {error}")
        finally:
            torch.set_flush_denormal(False)
        self._told()

    def _ended(self, state: str, error: Exception, message: str) -> None:
        self.state, self.error, self.message = state, error, message


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _outcome(record: Record) -> str:
    found = record.accuracy._asdict().items()
    told = ", ".join(f"{name} {value:.1f} %" for name, value in found)
    return f"{told}; trained in {record.timing['seconds']:.0f} s"


_SCALES = {
    "digits, seconds; no evidence (quick)": "quick",
    "CIFAR-10-LT, minutes (lite)": "lite",
}


class Panel:
    """Controls, progress and the picture onto which a run falls.

    Args:
        results: Folder with one folder of stored runs per scale.
        scale: Chosen at first, ``quick`` or ``lite``.
        device: Torch device.
        work: Folder of checkpoints; trials are kept in its folder ``live``.

    Attributes:
        controls: ipywidgets by name: ``rho``, ``weight_decay``, ``seed``, ``scale``,
            ``data``; the last is where CIFAR lies, empty is the user's cache folder.
        trial: The latest run, or None.
    """

    def __init__(
        self,
        results: str | Path = "results",
        *,
        scale: str = "quick",
        device: str = "cpu",
        work: str | Path = runner.WORK,
    ) -> None:
        self._results, self._live = Path(results), Path(work) / "live"
        self._where = {"device": device, "work": work}
        self.trial: Trial | None = None
        self._yours: list[dict[str, Any]] = []
        self._picture = sweeps.explorer([], report.paper("rho"), scale)
        self.controls = _controls(scale)
        self._build()
        self._show_stored()

    def _build(self) -> None:
        import ipywidgets as w

        self.run_button = w.Button(description="Run", button_style="primary")
        self.stop_button = w.Button(description="Stop", disabled=True)
        self.bar = w.IntProgress(min=0, max=1, description="Epochs")
        self.status = w.HTML("Set ρ and weight decay, then press Run.")
        self.run_button.on_click(lambda _: self.press())
        self.stop_button.on_click(lambda _: self.stop())
        self.controls["scale"].observe(lambda _: self._show_stored(), "value")
        buttons = w.HBox([self.run_button, self.stop_button, self.bar])
        controls = self.controls.values()
        self.box = w.VBox([*controls, buttons, self.status, self._picture.live])

    @property
    def running(self) -> bool:
        """Whether a run is going on."""
        return self.trial is not None and self.trial.state == "running"

    def press(self) -> None:
        """What Run does: start, unless a run is going on. Errors show in the panel."""
        if self.running:
            return
        try:
            experiment = self._experiment()
        except UsageError as error:
            self._say(str(error), bad=True)
            return
        self.bar.max, self.bar.value = experiment.epochs, 0
        self._enable(running=True)
        where = {"data_root": self.controls["data"].value.strip() or None}
        where |= self._where | {"results": self._live}
        self.trial = Trial(experiment, self._refresh, **where)
        self._say(self.trial.message)
        self.trial.start()

    def stop(self) -> None:
        """What Stop does; pressed twice or too late it changes nothing."""
        if self.trial:
            self.trial.stop()

    def run(self, **settings: Any) -> Record:
        """Set controls, press Run and wait: for a chapter that runs without a reader.

        Args:
            **settings: Values of ``controls``.

        Raises:
            UsageError: A bad value, or a run is going on.
            SaddlebookError: What the panel would show in red.
        """
        if self.running:
            raise UsageError("a run is going on; wait for it or press Stop")
        for name, value in settings.items():
            self.controls[one_of("control", name, self.controls)].value = value
        self._experiment()
        self.press()
        trial = self.trial
        assert trial
        trial.wait()
        if trial.error:
            raise trial.error
        assert trial.record
        return trial.record

    def _experiment(self) -> Experiment:
        names = ("rho", "weight_decay", "seed")
        values = {name: self.controls[name].value for name in names}
        return trial_setting(self.controls["scale"].value, **values)

    def _refresh(self) -> None:
        """Show how the run stands; called from its thread."""
        trial = self.trial
        assert trial
        self.bar.value = trial.epoch
        self._say(trial.message, bad=trial.state == "failed")
        if trial.record:
            self._drop(trial.record)
        if trial.state != "running":
            self._enable(running=False)

    def _drop(self, record: Record) -> None:
        """Let a result fall onto the stored runs."""
        exp = record.experiment
        words = f"ρ = {exp.rho:g}, weight decay {exp.weight_decay:g}, seed {exp.seed}"
        point = sweeps.points([record])[0] | {"words": words, "scale": exp.scale}
        self._yours = [p for p in self._yours if p != point] + [point]
        self._show_stored()

    def _show_stored(self) -> None:
        """Show the runs of the chosen scale: the stored ones and the reader's."""
        scale, live = self.controls["scale"].value, self._picture.live
        stored = find_records(
            studies.named("rho_ablation"), self._results, scale
        ).records
        live.scale, live.runs = scale, sweeps.points(stored)
        live.yours = [point for point in self._yours if point["scale"] == scale]

    def _enable(self, running: bool) -> None:
        self.run_button.disabled = running
        self.stop_button.disabled = not running
        for control in self.controls.values():
            control.disabled = running

    def _say(self, text: str, bad: bool = False) -> None:
        style = ' style="color: var(--jp-error-color1, #b00020)"' if bad else ""
        self.status.value = f'<span role="status"{style}>{html.escape(text)}</span>'

    def to_html(self) -> str:
        """For a page without a kernel: what was run here, and the picture of it."""
        live = self._picture.live
        state = {name: getattr(live, name) for name in self._picture.state}
        shown = Widget(self._picture.modules, state, self._picture.text)
        told = f"Controls and Run need Jupyter. Run on this page: {self._told()}."
        return f'<p class="sb-note">{html.escape(told)}</p>{shown.to_html()}'

    def _told(self) -> str:
        return "; ".join(point["words"] for point in self._yours) or "nothing"

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        data = {"text/plain": f"Panel: {self._told()}", "text/html": self.to_html()}
        return self.box._repr_mimebundle_() | data, {}


def _controls(scale: str) -> dict[str, Any]:
    import ipywidgets as w

    data = os.environ.get("SADDLEBOOK_DATA", "")  # as on the command line
    style = {"description_width": "7rem"}
    controls = {
        "rho": w.FloatText(0.1, step=0.01, description="Radius ρ"),
        "weight_decay": w.FloatText(2e-4, step=1e-4, description="Weight decay"),
        "seed": w.IntText(0, description="Seed"),
        "scale": w.Dropdown(options=_SCALES, value=scale, description="Data"),
        "data": w.Text(
            data, description="CIFAR folder", placeholder="the cache folder"
        ),
    }
    for control in controls.values():
        control.style, control.layout.width = style, "26rem"
    return controls
