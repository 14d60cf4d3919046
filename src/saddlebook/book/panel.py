"""A training run under the reader's hand: set it, press Run, stop it, compare.

``Panel`` puts ipywidgets on a ``Trial`` and drops what comes out onto stored runs. The
same ``Panel.run`` serves a chapter that runs without a reader. Trials are kept apart
from the committed records: the same settings again are read, and a stopped run goes on.
"""

from __future__ import annotations

import html
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saddlebook import runner, studies
from saddlebook.book.trial import Trial, setting
from saddlebook.errors import UsageError, one_of
from saddlebook.experiment import Experiment
from saddlebook.figures import sweeps
from saddlebook.figures.widgets import Widget
from saddlebook.findings import report
from saddlebook.store import find

if TYPE_CHECKING:
    from saddlebook.record import Record

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
        return setting(self.controls["scale"].value, **values)

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
        stored = find(studies.named("rho_ablation"), self._results, scale).records
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
