"""Figures as inline SVG that follows the reader's theme.

Text and axes take the page's own text colour and font; the colours of the data keep a
contrast of 3 on white and on the book's dark page, and differ for colour-blind readers.
Knows matplotlib figures; no table.
"""

from __future__ import annotations

import hashlib
import html
import io
import re
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_P = ParamSpec("_P")
BLUE, ORANGE, TEAL, PURPLE = "#2f7fd0", "#d0661b", "#1f9080", "#a867c4"
GREY = "#7d7d7d"  # the paper's numbers
INK = "#787878"  # text and axes; the page's own text colour once shown
COLOURS = (BLUE, ORANGE, TEAL, PURPLE, GREY)
_FONT = "var(--pst-font-family-base, sans-serif)"
_FIT = "width:100%;height:auto;stroke-linejoin:round;stroke-linecap:butt"
_PHONE, _LETTER = 4.4, 0.075  # inches: width on a phone, and about that of a letter
_STYLE = {
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "saddlebook",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "figure.constrained_layout.use": True,
    "savefig.transparent": True,
} | dict.fromkeys(
    ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"),
    INK,
)


def styled(draw: Callable[_P, Axes]) -> Callable[_P, Axes]:
    """Draw with the book's style, without touching anyone else's."""

    @wraps(draw)
    def inside(*args: _P.args, **kwargs: _P.kwargs) -> Axes:
        with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
            return draw(*args, **kwargs)

    return inside


def panels(
    columns: int = 1, height: float = 3.2, share: bool = True, rows: int = 1
) -> list[Axes]:
    """Axes side by side on one transparent figure.

    Args:
        columns: How many.
        height: Of the figure, in inches; it is 7.5 wide.
        share: Give them one vertical scale.
        rows: Of so many panels, one above the other.
    """
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(7.5, height))
        figure.patch.set_alpha(0)
        made = figure.subplots(rows, columns, sharey=share, squeeze=False).flatten()
    for axes in made:
        axes.patch.set_alpha(0)
        axes.set_axisbelow(True)
    return list(made)


def describe(figure: Figure) -> str:
    """What the figure shows, in words, with first and last or mean values."""
    return " ".join(
        f"{axes.get_title()} {axes.get_label()}".strip() for axes in figure.axes
    )


def inline(figure: Figure) -> str:
    """The figure as inline SVG: text as text, in the colour and font of the page."""
    out = io.StringIO()
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    # its style rule would reach the whole page
    for part in ("metadata", "style"):
        text = re.sub(f"<{part}.*?</{part}>", "", text, flags=re.DOTALL)
    text = text.replace(INK, "currentColor")
    text = re.sub(r"(font: [\d.]+px)[^;\"]*", rf"\1 {_FONT}", text)
    # ids must differ between the figures of a page
    mark = "f" + hashlib.sha256(text.encode()).hexdigest()[:8]
    text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{mark}-", text)
    named = f'role="img" aria-label="{html.escape(describe(figure))}" style="{_FIT}"'
    return re.sub(
        'width="[\\d.]+pt" height="[\\d.]+pt"', lambda _: named, text, count=1
    )


def stacked(figure: Figure) -> Figure:
    """The same figure laid out anew for a phone: narrow, its panels in one column."""
    specs = {a: spec for a in figure.axes if (spec := a.get_subplotspec())}
    places = list(dict.fromkeys(specs.values()))
    rows = places[0].get_gridspec().nrows if places else 1
    grid = figure.add_gridspec(len(places) or 1, 1)
    for axes, spec in specs.items():
        axes.set_subplotspec(grid[places.index(spec)])
        if len(places) > 1:
            axes.tick_params(labelbottom=True, labelleft=True)
        words = [label.get_text() for label in axes.get_xticklabels()]
        letters = sum(max(map(len, word.split("\n"))) + 1 for word in words)
        if letters * _LETTER > _PHONE:
            axes.tick_params(axis="x", rotation=60)
    figure.set_size_inches(_PHONE, figure.get_figheight() / rows * len(places or [1]))
    return figure


def standalone(figure: Figure) -> bytes:
    """The figure as an SVG file of its own, its description inside."""
    out = io.BytesIO()
    about = {"Date": None, "Description": describe(figure)}
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        figure.savefig(out, format="svg", metadata=about)
    return out.getvalue()


def show(
    axes: Axes, caption: str, shape: Callable[[str], str] = lambda picture: picture
) -> None:
    """Put the figure of ``axes`` on the page, with its caption and description.

    Args:
        axes: Of the figure.
        caption: Below it.
        shape: What becomes of the SVG text before it is shown.
    """
    from IPython.display import display

    figure = axes.figure
    assert isinstance(figure, Figure)
    body = f'<div class="sb-wide">{shape(inline(figure))}</div>'
    body += f'<div class="sb-narrow">{shape(inline(stacked(figure)))}</div>'
    text = f"<figcaption>{html.escape(caption)}</figcaption>"
    display(
        {
            "text/html": f'<figure class="sb-figure">{body}{text}</figure>',
            "text/plain": f"{caption}\n{describe(figure)}",
        },
        raw=True,
        metadata={"saddlebook": {"page": True}},
    )
