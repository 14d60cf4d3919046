"""Builds pictures to play with, one JavaScript module each, for Jupyter and pages.

A widget is a module that draws from a small state. In Jupyter anywidget shows it, state
and kernel in step; in the built book, without any kernel, server or outside file, a
few lines of script hand it the same state. The mathematics is done in JavaScript and
held to the Python functions by tests, so a page is as exact as the library.
"""

from __future__ import annotations

import html
import json
import uuid
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from saddlebook.errors import UsageError, one_of
from saddlebook.findings import tables

if TYPE_CHECKING:
    from saddlebook.record import Record

MAX_STATE = 100_000  # bytes of records in one page
_SPECTRUM = {
    "class", "epoch", "mode", "lambda_min", "lambda_max", "lambda_min_bound",
    "lambda_max_bound",
}  # fmt: skip

# A module cannot be imported from a file:// page, so it travels as text and is imported
# as a blob. `model` is the part of anywidget's model that our modules use.
_PAGE = """<style>{css}</style>
<div class="afm-static" id="{uid}"><noscript>{text} (This picture needs JavaScript; \
it loads nothing from outside.)</noscript></div>
<script type="module">
const state = {state};
const heard = {{}};
const model = {{
  get: (name) => state[name],
  set: (name, value) => {{
    if (Object.is(state[name], value)) return;
    state[name] = value;
    (heard["change:" + name] || []).forEach((call) => call());
  }},
  save_changes() {{}},
  on: (event, call) => (heard[event] ||= []).push(call),
  off: (event, call) => {{
    heard[event] = (heard[event] || []).filter((other) => other !== call);
  }},
}};
const url = URL.createObjectURL(new Blob([{source}], {{ type: "text/javascript" }}));
const module = await import(url);
URL.revokeObjectURL(url);
module.default.render({{ model, el: document.getElementById("{uid}") }});
</script>"""


def asset(*names: str) -> str:
    """Text of this package's files, one after the other."""
    folder = resources.files("saddlebook.figures")
    return "\n".join((folder / name).read_text("utf-8") for name in names)


class Widget:
    """A module and its state; shows itself wherever a notebook is shown.

    Args:
        modules: Files of this package that make the module, in order.
        state: JSON values the module reads and, where it has controls, writes.
        text: What the picture is, for readers without it.
        limits: By name of a value: a tuple of its least and greatest number, or a
            list of all it may be. In Jupyter anything else is refused.

    Raises:
        UsageError: State that is not JSON, or a value beyond its limits.
    """

    def __init__(
        self,
        modules: tuple[str, ...],
        state: Mapping[str, Any],
        text: str,
        limits: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        for name, limit in (limits or {}).items():
            _check(name, state[name], limit)
        try:
            self._json = _compact(state)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"a widget's state must be finite JSON: {error}"
            ) from error
        self.modules, self.state, self.text = modules, dict(state), text
        self._limits = limits or {}
        self._live: Any = None
        self._saved: Any = None

    def to_html(self) -> str:
        """The widget for a page without a kernel: no outside file, no id by chance."""
        name = "|".join([*self.modules, self._json])
        return _PAGE.format(
            css=_lean(asset("widget.css")),
            uid=f"sb-{uuid.uuid5(uuid.NAMESPACE_URL, name).hex[:12]}",
            text=html.escape(self.text),
            state=_in_script(self._json),
            source=_in_script(json.dumps(_lean(asset(*self.modules)))),
        )

    @property
    def live(self) -> Any:
        """The anywidget of this state: its traits follow the controls, and lead them.

        Raises:
            UsageError: anywidget is not installed.
        """
        if self._live is None:
            try:
                import anywidget
            except ImportError as error:
                raise UsageError(
                    "live widgets need anywidget: pip install anywidget"
                ) from error
            source, css = asset(*self.modules), asset("widget.css")
            traits = {
                name: _trait(value, self._limits.get(name)).tag(sync=True)
                for name, value in self.state.items()
            }
            kind = type("Live", (anywidget.AnyWidget,), {"_esm": source, "_css": css})
            self._live = kind(_dom_classes=("sb-live",))
            self._live.add_traits(**traits)
        return self._live

    def display(self, saved: str = "") -> None:
        """Show the live widget, and before it a picture for a notebook opened later.

        Where the kernel is gone the first is what a reader sees; else it is hidden.

        Args:
            saved: HTML of the picture; ``to_html()`` if none is given.
        """
        from IPython.display import display

        try:
            live = self.live
        except UsageError:
            live = None
        self._saved = display(self._kept(saved), raw=True, display_id=True)
        if live is not None:
            display(live)

    def keep(self, saved: str) -> None:
        """Put another picture where ``display`` put the first."""
        if self._saved is not None:
            self._saved.update(self._kept(saved), raw=True)

    def _kept(self, saved: str) -> dict[str, str]:
        shown = f'<style>{_SAVED}</style><div class="sb-saved">{_AGAIN}'
        shown += f"{saved or self.to_html()}</div>"
        return {"text/html": shown, "text/plain": self.text}

    def _ipython_display_(self) -> None:
        self.display()


# A notebook opened later has no live widget: JupyterLab says "model not found"
_SAVED = """.jp-OutputArea:has(.sb-live) .sb-saved, .sb-again { display: none; }
.jp-OutputArea .sb-again { display: block; }
.jp-OutputArea:has(.sb-saved):not(:has(.sb-live))
  .jp-OutputArea-child:has(> .jupyter-widgets.jp-OutputArea-output) {
    display: none; }"""
_AGAIN = '<p class="sb-again"><b>Run this cell</b> to use the picture.</p>'


def _check(name: str, value: Any, limit: Sequence[Any]) -> None:
    if isinstance(limit, list):
        if value not in limit:
            one_of(name, str(value), map(str, limit))
    elif not (isinstance(value, int | float) and limit[0] <= value <= limit[1]):
        raise UsageError(f"{name} {value!r} must be in {limit[0]:g} to {limit[1]:g}")


def _trait(value: Any, limit: Sequence[Any] | None) -> Any:
    """A trait that takes what the picture can show: a range, or a list of values."""
    import traitlets

    if limit is None:
        return traitlets.Any(value)
    if isinstance(limit, list):
        return traitlets.Enum(limit, value)
    kind = traitlets.Int if isinstance(limit[0], int) else traitlets.Float
    return kind(value, min=limit[0], max=limit[1])


def _lean(source: str) -> str:
    """Without comment lines and indentation, for the page; no line is joined."""
    lines = (line.strip() for line in source.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("// "))


def _compact(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _in_script(text: str) -> str:
    """JSON that cannot end the script element it stands in."""
    return text.replace("<", "\\u003c")


_RANGES = {
    "rho": (0.0, 4.0),
    "curvature": (0.1, 4.0),
    "step_size": (0.001, 3.0),
    "momentum": (0.0, 0.95),
    "sigma": (0.0, 0.5),
    "start": (0.001, 0.9),
    "seed": (0, 2**31),
    "time": (0, 400),
}
_CHOICES = {
    "method": ["normalised", "plain"],
    "batch": ["same", "fresh"],
    "landscape": ["saddle", "well"],
}


def saddle_explorer(
    *,
    rho: float = 0.2,
    curvature: float = 1.0,
    step_size: float = 0.05,
    momentum: float = 0.0,
    sigma: float = 0.0,
    start: float = 0.1,
    method: str = "normalised",
    batch: str = "same",
    landscape: str = "saddle",
    seed: int = 1,
    time: int = 400,
) -> Widget:
    """SGD and SAM on a saddle in the plane, with Theorem 1 beside them.

    Args:
        rho: Radius, 0 to 4.
        curvature: |λ| of the direction v, 0.1 to 4; the other direction has 1.
        step_size: η, 0.001 to 3.
        momentum: β, 0 to 0.95.
        sigma: Noise of a mini-batch gradient, 0 to 0.5.
        start: y where the walkers start, 0.001 to 0.9.
        method: SAM climbs ρ·g/‖g‖ (``normalised``) or ρ·g (``plain``).
        batch: Of the second pass: ``same`` or ``fresh``.
        landscape: ``saddle``, or ``well``: two minima at y = ±1.
        seed: Of the noise.
        time: Steps of the paths to show, to 400.

    Raises:
        UsageError: A value out of range or an unknown name.
    """
    state: dict[str, Any] = {
        "rho": rho, "curvature": curvature, "step_size": step_size,
        "momentum": momentum, "sigma": sigma, "start": start, "method": method,
        "batch": batch, "landscape": landscape, "seed": seed, "time": time,
    }  # fmt: skip
    text = "Explorer: paths of SGD and SAM on a saddle, and the factor of Theorem 1."
    limits = _RANGES | _CHOICES
    return Widget(("plot.js", "theory.js", "saddle.js"), state, text, limits)


def record_browser(records: Sequence[Record]) -> Widget:
    """Stored runs to look into: method, radius, seed, class and epoch; only measured.

    Args:
        records: At least one; one dataset and one scale.

    Raises:
        UsageError: No records, records of several datasets, or more than a page bears.
    """
    kinds = {(r.experiment.dataset, r.experiment.scale) for r in records}
    if len(kinds) != 1:
        raise UsageError(
            f"a browser shows records of one dataset and scale, not {sorted(kinds)}; "
            "read them with page.records(study)"
        )
    rows = [_row(record) for record in records]
    size = len(_compact(rows))
    if size > MAX_STATE:
        raise UsageError(
            f"{size / 1000:.0f} kB of records, a page bears {MAX_STATE / 1000:.0f}: "
            "pass fewer records"
        )
    first = rows[0]
    state = {
        "records": rows,
        "method": first["method"],
        "rho": first["rho"],
        "seed": first["seed"],
        "class_": len(first["counts"]) - 1,
        "epoch": first["epochs"],
        "mode": first["spectra"][0]["mode"] if first["spectra"] else "",
        "ways": {s["mode"]: _way(s["mode"]) for row in rows for s in row["spectra"]},
    }
    text = f"Browser of {len(rows)} records: accuracy and spectra as measured."
    limits = {
        "class_": (0, len(first["counts"]) - 1),
        "epoch": sorted(
            {s["epoch"] for row in rows for s in row["spectra"]}
            | {epoch for row in rows for epoch in row["curves"]["epoch"]}
        ),
        "mode": sorted({s["mode"] for row in rows for s in row["spectra"]} | {""}),
    } | {
        name: sorted({row[name] for row in rows}) for name in ("method", "rho", "seed")
    }
    return Widget(("plot.js", "records.js"), state, text, limits)


def _way(mode: str) -> str:
    """A mode of measurement as pages name it, and of which images."""
    recurrence, _ = tables.split(mode)
    images = mode.removeprefix(recurrence).replace("_", " ")
    return tables.WAYS.get(recurrence, recurrence) + (images and f",{images}")


def _row(record: Record) -> dict[str, Any]:
    """What the browser shows of a record."""
    exp = record.experiment
    curves = ("epoch", "accuracy", "head", "mid", "tail")
    return {
        "key": record.key,
        "method": exp.method,
        "scale": exp.scale,
        "rho": exp.rho,
        "seed": exp.seed,
        "epochs": exp.epochs,
        "counts": record.per_class["class_counts"],
        "classes": record.per_class["last_accuracy"],
        "curves": {n: [round(x, 2) for x in record.curves[n]] for n in curves},
        "spectra": [
            {name: _short(spectrum[name]) for name in _SPECTRUM if name in spectrum}
            for spectrum in record.spectra
        ],
    }


def _short(value: Any) -> Any:
    """Floats at 4 significant digits, more than a picture shows."""
    return float(f"{value:.4g}") if isinstance(value, float) else value
