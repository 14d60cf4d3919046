"""Shows the lab: a reader sets a radius, guesses, trains a run, watches and compares.

``Panel`` joins the trials of a kernel (``trial``) with the stored runs and the picture
of both. What it shows comes from functions that a chapter may call, and ``Panel.run``
serves a chapter that runs without a reader.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saddlebook import runner, studies
from saddlebook.book.trial import (
    EXPECTED,
    GROUPS,
    METHODS,
    answered,
    compared,
    curve,
    kept_curvature,
    load_once,
    trial_setting,
    trials,
)
from saddlebook.disk.files import write_whole
from saddlebook.errors import SaddlebookError, UsageError, one_of
from saddlebook.experiment import Experiment
from saddlebook.figures.widgets import Widget
from saddlebook.scales import at_scale
from saddlebook.store import find_records

if TYPE_CHECKING:
    import pandas as pd

    from saddlebook.book.page import Page
    from saddlebook.record import Record

_SCALES = {
    "lab": "digits, 20 seconds; no evidence", "lite": "CIFAR-10-LT, minutes",
    "quick": "digits, a second; learns nothing",
}  # fmt: skip
_LOSSES = {
    "CE+DRW": "CE+DRW: weights late", "CE": "CE: plain",
    "LDAM+DRW": "LDAM+DRW: margins", "VS": "VS: scaled logits",
}  # fmt: skip
_STUDIES = ("lab", "rho_ablation", "weight_decay", "table1")
_SETTING = ("scale", "method", "rho", "weight_decay", "seed")
_TEXT = "The lab: accuracy over epochs and over SAM's radius, of stored runs and yours."


class Panel:
    """Settings, live curves and the picture onto which a run falls.

    Args:
        results: Folder with one folder of stored runs per scale.
        scale: Chosen at first: ``lab``, ``lite`` or ``quick``.
        device: Torch device.
        dataset: ``folder:NAME``, your own images instead of the scale's.
        data: Where CIFAR lies; None is the user's cache folder.
        work: Folder of checkpoints; trials are kept in its folder ``live``. A kernel
            has one registry of trials a folder, so a panel made again goes on where the
            last one was.

    Attributes:
        live: The anywidget. Its traits ``scale method rho weight_decay seed`` are the
            controls, and refuse what they cannot be.
        data: As given.
    """

    def __init__(
        self,
        results: str | Path = "results",
        *,
        scale: str = "lab",
        device: str = "cpu",
        dataset: str = "",
        data: str | None = None,
        work: str | Path = runner.WORK,
    ) -> None:
        one_of("scale", scale, _SCALES)
        self.trials = trials(work)
        # as on the command line
        self.data = data or os.environ.get("SADDLEBOOK_DATA") or None
        self._images = load_once(dataset, self.data) if dataset else None
        self._results, self._device = Path(results), device
        self._stored: list[Record] = []
        self._yours: list[Record] = []
        self._widget = self._made(scale)
        self.live = self._widget.live
        self.live.kernel = True
        self._adopt()
        self._reload()
        self.trials.follow(self)
        self.live.observe(lambda _: self._reload(fresh=True), ["scale", "method"])
        self.live.observe(lambda _: self._judge(), [*_SETTING, "pinned", "guess"])
        self.live.on_msg(lambda _, asked, __: self._asked(asked))

    @classmethod
    def of(cls, page: Page) -> Panel:
        """The panel of a chapter: with its records, and fast where the page is."""
        scale = "quick" if page.scale == "quick" else "lab"
        places = {"device": page.device, "dataset": page.dataset, "data": page.data}
        panel = cls(page.results, scale=scale, **places)
        page.cite(panel._stored)
        return panel

    def _made(self, scale: str) -> Widget:
        choices = {name: _SCALES[name] for name in _SCALES if name in ("lab", "lite")}
        state = {
            "scale": scale, "method": "CE+DRW", "rho": presets(scale)[1]["rho"],
            "seed": 0, "tables": [],
            "weight_decay": Experiment.weight_decay, "decay": Experiment.weight_decay,
            "scales": list(({scale: _SCALES[scale]} | choices).items()),
            "methods": list(_LOSSES.items()), "presets": presets(scale),
            "stored": [], "yours": [], "now": _now(None), "guess": "", "answer": "",
            "pinned": _pin(0.0, Experiment.weight_decay), "kernel": False,
        }  # fmt: skip
        limits: dict[str, Sequence[Any]] = {
            "scale": list(_SCALES), "method": list(METHODS), "rho": (0.0, inf),
            "weight_decay": (0.0, inf), "seed": (0, inf), "guess": ["", *EXPECTED],
        }  # fmt: skip
        return Widget(("plot.js", "lab.js"), state, _TEXT, limits)

    # --- what a reader does, and a chapter may do

    def press(self) -> None:
        """What Run does: start, unless a run is going on. Errors show in the panel."""
        self._start(head=False)

    def stop(self) -> None:
        """What Stop does; pressed twice or too late it changes nothing."""
        if self.trials.latest:
            self.trials.latest.stop()

    def run(self, *, again: bool = False, **settings: Any) -> Record:
        """Set controls, press Run and wait: for a chapter that runs without a reader.

        A run that is stored is read. Interrupting the kernel is the same as Stop, which
        works meanwhile.

        Args:
            again: Train even what is stored.
            **settings: Values of the controls ``scale method rho weight_decay seed``.

        Raises:
            UsageError: A bad value, or a run is going on.
            SaddlebookError: What the panel would show in red.
        """
        if self.trials.running:
            raise UsageError("a run is going on; wait for it or press Stop")
        self.choose(**settings)
        wanted = self._experiment()
        stored = [r for r in self._stored if r.experiment.training == wanted]
        if stored and not again:
            return stored[0]
        self.press()
        trial = self.trials.latest
        assert trial
        try:
            trial.wait()
        except KeyboardInterrupt:
            trial.stop()
            trial.wait()
        if trial.error:
            raise trial.error
        assert trial.record
        return trial.record

    def first(self, **settings: Any) -> None:
        """As ``run``, unless a run was started here: then go on where the reader is.

        Args:
            **settings: See ``run``.
        """
        if self.trials.latest is None:
            self.run(**settings)

    def choose(self, **settings: Any) -> None:
        """Set controls; what is stored at that setting is shown at once.

        Raises:
            UsageError: An unknown control, or a value it cannot have.
        """
        import traitlets

        for name in settings:
            one_of("control", name, _SETTING)
        # in this order: data and loss bring a radius of their own
        for name in [name for name in _SETTING if name in settings]:
            try:
                setattr(self.live, name, settings[name])
            except traitlets.TraitError as error:
                raise UsageError(f"{name} {settings[name]!r}: {error}") from error

    def pin(self) -> None:
        """Make what is chosen, the reader's run or the stored ones, side A."""
        record = self._mine()
        key = record.key if record else ""
        self.live.pinned = _pin(self.live.rho, self.live.weight_decay, key)

    def comparison(self) -> pd.DataFrame:
        """The panel's table of differences between B, what is chosen, and A."""
        import pandas as pd

        return pd.DataFrame(self._against(self._chosen()).get("rows"))

    def head(self) -> None:
        """Measure the largest class of the chosen run too."""
        self._start(head=True)

    def export(self) -> Path | None:
        """Write the record of the chosen run into the current folder."""
        record = self._mine()
        if record is None:
            self._say("there is no run of yours at this setting; press Run first")
            return None
        path = Path(f"{record.experiment.slug}.json")
        write_whole(path, record.to_bytes())
        self._say(f"written beside the notebook: {path}")
        return path

    def clear(self) -> None:
        """Forget the reader's runs of the chosen data; checkpoints stay."""
        for record in self._yours:
            self.trials.forget(record)
        self._reload()

    # --- what follows from it

    def _asked(self, asked: dict[str, Any]) -> None:
        """A button of the picture was pressed.

        It brings the setting that the reader saw: while the kernel is busy, Jupyter
        holds back what controls say and sends a press at once.
        """
        acts: dict[str, Any] = {"run": self.press, "stop": self.stop, "pin": self.pin}
        acts |= {"head": self.head, "export": self.export, "clear": self.clear}
        try:
            self.choose(**asked.get("setting", {}))
            acts.get(asked.get("do", ""), lambda: None)()
        except SaddlebookError as error:
            self._say(str(error), bad=True)

    def _start(self, head: bool) -> None:
        if self.trials.running:
            return
        images = self._images
        try:
            self.trials.start(
                self._experiment(),
                head=head,
                counts=images.train_labels.bincount().tolist() if images else (),
                data_root=self.data,
                device=self._device,
            )
        except SaddlebookError as error:
            self._say(str(error), bad=True)

    def _adopt(self) -> None:
        """Show the setting of the trial that this kernel runs, or ran last."""
        if trial := self.trials.latest:
            exp = trial.experiment
            self.live.scale = exp.scale
            self.live.method = exp.method.split("+SAM")[0].split(" ")[0]
            self.choose(rho=exp.rho, weight_decay=exp.weight_decay, seed=exp.seed)
            self.live.now = _now(trial)

    def _experiment(self) -> Experiment:
        values = {name: getattr(self.live, name) for name in _SETTING}
        return trial_setting(values.pop("scale"), **values, images=self._images)

    def _of(self, experiment: Experiment, method: str) -> bool:
        """Whether it is a trial's setting of this method on the panel's images."""
        exp = experiment.training
        values = {n: getattr(exp, n) for n in ("rho", "weight_decay", "seed")}
        return exp == trial_setting(
            exp.scale, method=method, **values, images=self._images
        )

    def refresh(self) -> None:
        """Show how the run stands; called from its thread."""
        trial = self.trials.latest
        assert trial
        ended = trial.state != "running"
        if ended:
            self._reload()
        self.live.now = _now(trial)
        if ended:
            self._widget.keep(self.to_html())

    def _reload(self, fresh: bool = False) -> None:
        """Show the runs of the chosen data and loss: the stored ones and the reader's.

        A training with and without spectra is one run. ``fresh``: A is SGD again, and
        the radius the paper's.
        """
        scale, method, live = self.live.scale, self.live.method, self.live
        live.presets = presets(scale, method)
        if fresh:
            live.pinned = _pin(0.0, Experiment.weight_decay)
            live.rho = live.presets[1]["rho"]
        names = () if self._images else _STUDIES
        wanted = [e for name in names for e in studies.named(name, scale)]
        found = {
            record.experiment.training: record
            for record in find_records(reversed(wanted), self._results, scale).records
        }
        self._stored = [r for r in found.values() if self._of(r.experiment, method)]
        every = self.trials.records(scale)
        self._yours = [r for r in every if self._of(r.experiment, method)]
        work = self.trials.work
        live.stored = [shown(r, r.spectra) for r in self._stored]
        live.yours = [shown(r, kept_curvature(r.experiment, work)) for r in self._yours]
        self._judge()

    def _judge(self) -> None:
        """Compare what is chosen with A, and with what the reader expected."""
        try:
            against = self._against(self._chosen())
        except UsageError:  # a control is half set
            against = {}
        self.live.tables = [against] if against else []
        if not self.live.now["state"]:  # words on what was chosen before
            self.live.now = _now(None)
        guess, self.live.answer = self.live.guess, ""
        if guess and against.get("key"):
            stored = self._at(self.live.rho, self.live.weight_decay)
            more = self._against(stored).get("rows", [])
            self.live.answer = answered(guess, against["rows"], more, len(stored))

    def _chosen(self) -> list[Record]:
        """B: the reader's run of the chosen setting, or the stored ones."""
        mine = self._mine()
        return [mine] if mine else self._at(self.live.rho, self.live.weight_decay)

    def _against(self, b: list[Record]) -> dict[str, Any]:
        """Differences between B and A, and which B it is; empty if one of them is."""
        pinned = self.live.pinned
        a = [r for r in self._yours if r.key == pinned["key"]]
        a = a or self._at(pinned["rho"], pinned["weight_decay"])
        if not a or not b or a == b:
            return {}
        exp, key = b[0].experiment, b[0].key if b[0] in self._yours else ""
        which = {"rho": exp.rho, "weight_decay": exp.weight_decay, "key": key}
        return which | {"rows": compared(a, b, self._stored)}

    def _at(self, rho: float, weight_decay: float) -> list[Record]:
        """Stored runs of a setting, every seed."""
        wanted = (rho, weight_decay)
        runs = [(r.experiment.rho, r.experiment.weight_decay) for r in self._stored]
        return [r for r, has in zip(self._stored, runs, strict=True) if has == wanted]

    def _mine(self) -> Record | None:
        """The reader's run of the chosen setting."""
        wanted = self._experiment()
        return next((r for r in self._yours if r.experiment == wanted), None)

    def _say(self, text: str, bad: bool = False) -> None:
        self.live.now = _now(None) | {"message": text, "bad": bad}

    # --- where it is shown

    def to_html(self) -> str:
        """For a page without a kernel: the stored runs and what was run here.

        What Python answers when there is a kernel, a page has for all stored settings.
        """
        names = self._widget.state
        state = {name: getattr(self.live, name) for name in names}
        stored = {(r.experiment.rho, r.experiment.weight_decay) for r in self._stored}
        sides = [self._at(*one) for one in sorted(stored)] + [[r] for r in self._yours]
        now = self.live.now | {"state": "done", "bad": False}
        state |= {"kernel": False, "now": now}
        state |= {"tables": [t for t in map(self._against, sides) if t]}
        return Widget(self._widget.modules, state, _TEXT).to_html()

    def _ipython_display_(self) -> None:
        self._widget.display(self.to_html())


def presets(scale: str, method: str = "CE+DRW") -> list[dict[str, Any]]:
    """Settings worth a guess, in the scale's own units."""
    paper = next(e for e in studies.table1() if e.method == f"{method}+SAM")
    beyond = 10 if scale == "lab" else 2.6  # times; both are stored for CE+DRW
    radii = [
        at_scale(replace(paper, rho=times * paper.rho), scale).rho
        for times in (1, beyond)
    ]
    decay = Experiment.weight_decay
    named = (
        ("SGD", 0.0, decay), ("the paper's ρ", radii[0], decay),
        ("too large", radii[1], decay), ("weight decay × 10", 0.0, 10 * decay),
    )  # fmt: skip
    return [{"name": n, "rho": rho, "weight_decay": wd} for n, rho, wd in named]


def shown(record: Record, spectra: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the picture shows of a run: setting, accuracies, curves, curvature."""
    exp = record.experiment
    names = dict(zip(GROUPS, ("accuracy", "head", "mid", "tail"), strict=True))
    ends = {record.groups["head"][0]: True, record.groups["tail"][-1]: False}
    return {
        "key": record.key, "rho": exp.rho, "weight_decay": exp.weight_decay,
        "seed": exp.seed, "epochs": exp.epochs, "switch": _switch(exp),
        "words": "SGD: " * (exp.rho == 0)
        + f"ρ {exp.rho:g}, wd {exp.weight_decay:g}, seed {exp.seed}",
        "curve": {"epoch": record.curves["epoch"]}
        | {n: [round(v, 1) for v in record.curves[of]] for n, of in names.items()},
        "spectra": [
            {"class": s["class"], "head": ends[s["class"]], "mode": s["mode"]}
            | {"min": float(f"{s['lambda_min']:.3g}")}
            | {"max": float(f"{s['lambda_max']:.3g}")}
            for s in spectra
            if s["class"] in ends and s["epoch"] == exp.epochs
        ],
    } | {n: round(v, 2) for n, v in record.accuracy._asdict().items()}  # fmt: skip


def _now(trial: Any) -> dict[str, Any]:
    """How a trial stands."""
    if trial is None:
        empty: dict[str, list[Any]] = {name: [] for name in ("epoch", *GROUPS)}
        return {
            "state": "", "message": "", "bad": False, "epoch": 0, "epochs": 1,
            "switch": 0, "curve": empty, "key": "", "rho": 0.0, "weight_decay": 0.0,
        }  # fmt: skip
    exp = trial.experiment
    return {
        "state": trial.state, "message": trial.message, "epoch": trial.epoch,
        "bad": trial.state == "failed", "epochs": exp.epochs, "switch": _switch(exp),
        "curve": curve(exp, trial.rows, trial.counts), "key": exp.key, "rho": exp.rho,
        "weight_decay": exp.weight_decay,
    }  # fmt: skip


def _switch(exp: Experiment) -> int:
    """Last epoch before re-weighting; 0 without."""
    return exp.drw_epoch if exp.reweight == "drw" else 0


def _pin(rho: float, weight_decay: float, key: str = "") -> dict[str, Any]:
    return {"rho": rho, "weight_decay": weight_decay, "key": key}
