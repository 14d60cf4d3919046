"""Defines the colours, and turns figures into SVG that follows the reader's theme.

Text and axes take the page's own text colour and font; the colours of the data keep a
contrast of 3 on white and on the book's dark page, and differ for colour-blind readers.
Knows matplotlib figures; no table.
"""

from __future__ import annotations

import hashlib
import html
import io
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, ParamSpec
from urllib.parse import quote

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from saddlebook.findings.claims import typeset

_P = ParamSpec("_P")
BLUE, ORANGE, TEAL, PURPLE = "#2f7fd0", "#d0661b", "#1f9080", "#a867c4"
GREY = "#7d7d7d"  # the paper's numbers
INK = "#787878"  # text and axes; the page's own text colour once shown
COLOURS = (BLUE, ORANGE, TEAL, PURPLE, GREY)
_FONT = "var(--pst-font-family-base, sans-serif)"
_FIT = "width:100%;height:auto;stroke-linejoin:round;stroke-linecap:butt"
_PHONE, _ROW = 3.8, 2.6  # inches: width of a figure on a phone, most height of a panel
_NAME = 18  # letters of a name at the left of a narrow panel, before it breaks
_BEARS = 12_000  # bytes of a figure's data in a page
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


def log_axis(ax: Axes, axis: str) -> None:
    """Make ``x`` or ``y`` logarithmic, in plain numbers; short ones with 2 and 5."""
    getattr(ax, f"set_{axis}scale")("log")
    low, high = getattr(ax, f"get_{axis}lim")()
    one = ax.xaxis if axis == "x" else ax.yaxis
    one.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
    one.set_major_formatter(FuncFormatter(lambda value, _: typeset(f"{value:g}")))
    one.set_minor_locator(NullLocator())


def figure_of(axes: Axes) -> Figure:
    """The figure that holds these axes."""
    assert isinstance(axes.figure, Figure)
    return axes.figure


def describe(figure: Figure) -> str:
    """What the figure shows, in words, with first and last or mean values."""
    return typeset(
        " ".join(
            f"{axes.get_title()} {axes.get_label()}".strip() for axes in figure.axes
        )
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


def standalone(figure: Figure) -> bytes:
    """The figure as an SVG file of its own, its description inside."""
    out = io.BytesIO()
    about = {"Date": None, "Description": describe(figure)}
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        figure.savefig(out, format="svg", metadata=about)
    return out.getvalue()


def narrow(figure: Figure) -> str:
    """Inline SVG for a phone: panels one below the other; the figure is left so."""
    drawn = {ax: spec for ax in figure.axes if (spec := ax.get_subplotspec())}
    places = list(dict.fromkeys(drawn.values()))  # axes may share one
    high = figure.get_figheight()
    if len(places) > 1:
        high = min(high / places[0].get_gridspec().nrows, _ROW) * len(places)
        grid = GridSpec(len(places), 1, figure=figure)
        for ax, spec in drawn.items():
            ax.set_subplotspec(grid[places.index(spec)])
            ax.tick_params(labelleft=True, labelbottom=True)
        named = {ax: name for ax in drawn if (name := ax.get_xlabel())}
        if len(named) == 1:  # one name for all stands below the last
            for ax, name in named.items():
                ax.set_xlabel("")
                [*drawn][-1].set_xlabel(name)
    for ax in drawn:
        _break_names(ax)
    _legend_above(figure, _PHONE)
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        figure.set_size_inches(_PHONE, high)
    return inline(figure)


def _legend_above(figure: Figure, width: float) -> None:
    """Put one legend above the panels, where it covers nothing, in rows that fit.

    Panels whose legends say different things keep them.
    """
    inside = [legend for ax in figure.axes if (legend := ax.get_legend())]
    said = {old: [text.get_text() for text in old.get_texts()]
            for old in inside or figure.legends}  # fmt: skip
    names = max(said.values(), key=len, default=[])
    if not names or any(set(some) - set(names) for some in said.values()):
        return
    marks = {
        name: mark for ax in figure.axes
        for mark, name in zip(*ax.get_legend_handles_labels(), strict=True)
    }  # fmt: skip
    columns = int(width / (0.75 + 0.075 * max(map(len, names))))
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        figure.legend(
            [marks[name] for name in names], names, loc="outside upper left",
            handlelength=2.2, ncols=max(1, min(len(names), columns)),
            title=next(iter(said)).get_title().get_text(), alignment="left",
        )  # fmt: skip
    for old in said:
        old.remove()


def _break_names(ax: Axes) -> None:
    if isinstance(ax.yaxis.get_major_locator(), FixedLocator):
        names = [label.get_text() for label in ax.get_yticklabels()]
        ax.set_yticks(ax.get_yticks(), [textwrap.fill(n, _NAME) for n in names])
    if isinstance(ax.xaxis.get_major_locator(), FixedLocator):
        names = [label.get_text() for label in ax.get_xticklabels()]
        if len(names) > 4 and max(map(len, names)) > 4:
            ax.set_xticks(ax.get_xticks(), [n.replace("\n", ", ") for n in names])
            ax.tick_params(axis="x", labelrotation=90)


def csv(figure: Figure) -> str:
    """What is drawn, as text: panel, series, x and y of every mark.

    Places that have names, such as epochs, go by them.
    """
    rows = [
        f"{i},{label.replace(',', ';')},{_place(ax.xaxis, x)},{_place(ax.yaxis, y)}"
        for i, ax in enumerate(figure.axes, 1)
        for label, x, y in _marks(ax)
    ]
    return "\n".join(["panel,series,x,y", *rows])


def _place(axis: Axis, value: float) -> str:
    """The name of the nearest whole place if the axis names those, else the number."""
    if not isinstance(axis.get_major_locator(), FixedLocator):
        return f"{value:.5g}"
    names: dict[float, str] = {}
    for minor in (False, True):
        places = list(axis.get_ticklocs(minor=minor))
        made = axis.get_minor_formatter() if minor else axis.get_major_formatter()
        names |= dict(zip(places, made.format_ticks(places), strict=True))
    whole = sorted(names) == list(range(len(names)))
    told = names.get(round(value), "") if whole else ""
    return " ".join(told.replace(",", ";").split()) or f"{value:.5g}"


def _marks(ax: Axes) -> Iterator[tuple[str, float, float]]:
    """Series, x and y of what is data. A name behind ``_`` is not in the legend."""
    parts: list[tuple[str, Any]] = [
        (str(line.get_label()), line.get_xydata())
        for line in ax.lines
        if line.get_transform() == ax.transData  # else a line across the panel
    ]
    for part in ax.collections:
        if isinstance(part, PathCollection):
            parts.append((str(part.get_label()), part.get_offsets()))
    bars = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    ends = [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in bars]
    for name, points in [*parts, ("bars", ends)]:
        named = not name.startswith(("_child", "_nolegend_"))
        name = name.removeprefix("_") if named else ""
        for x, y in points:
            yield name, float(x), float(y)


def _more(figure: Figure) -> str:
    """Below the caption: the data as a file, and the code of the cell."""
    from IPython import get_ipython

    data, shell = csv(figure), get_ipython()
    link = ""
    if data.count("\n") and len(data) < _BEARS:
        where = "data:text/csv;charset=utf-8," + quote(data, safe=",;. ()=+")
        where = html.escape(where)
        link = f'<p><a download="figure.csv" href="{where}">Data (CSV)</a></p>'
    code = str(shell.user_ns.get("In", [""])[-1]).strip() if shell else ""
    code = f"<pre>{html.escape(code)}</pre>" if code else ""
    title = " and ".join(["data"] * bool(link) + ["code"] * bool(code))
    if not title:
        return ""
    return (
        f'<details class="sb-more"><summary>{title.capitalize()}</summary>'
        f"{link}{code}</details>"
    )


def show(axes: Axes, caption: str) -> None:
    """Put the figure of ``axes`` on the page, with its caption and description.

    A window and a phone get a drawing each; data and code fold below the caption.

    Args:
        axes: Of the figure.
        caption: Below it.
    """
    from IPython.display import display

    figure = figure_of(axes)
    for ax in figure.axes:  # chapters give titles outside of the style
        ax.title.set_fontsize(9)
    told, more = describe(figure), _more(figure)
    _legend_above(figure, figure.get_figwidth())
    wide = f'<div class="sb-wide">{slim(inline(figure))}</div>'
    phone = f'<div class="sb-narrow">{slim(narrow(figure))}</div>'
    body = f'<div class="sb-picture">{wide}{phone}</div>'
    text = f"<figcaption>{html.escape(typeset(caption))}</figcaption>{more}"
    display(
        {
            "text/html": f'<figure class="sb-figure">{body}{text}</figure>',
            "text/plain": f"{caption}\n{told}",
        },
        raw=True,
        metadata={"saddlebook": {"page": True}},
    )


def slim(picture: str) -> str:
    """Inline SVG without ids nobody points to, third decimals and layout.

    About a third of the size; coordinates are exact to a tenth of a pixel, or two
    hundredths of an inch, and the words stay as they are.
    """
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', picture))
    head, rest = picture.split(">", 1)
    rest = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", rest)
    rest = re.sub(r' d="([MLCQz\d.\s-]*)"', lambda m: f' d="{relative(m[1])}"', rest)
    rest = re.sub(r' (d|x|y|points)="[^"]*"', lambda m: _shorter(m[0]), rest)
    rest = re.sub(r' style="[^"]*"', lambda m: _plain(m[0]), rest)
    rest = re.sub(r' transform="rotate\(-?0 [^"]*"', "", rest)
    rest = re.sub(r"\s*\n\s*", " ", rest).replace("> <", "><")
    rest = re.sub(r"<g>(<(?:use|path|text)[^>]*(?:/>|>[^<]*</text>))</g>", r"\1", rest)
    return f"{head}>{_named_once(rest.replace('xlink:href', 'href'))}"


def _named_once(body: str) -> str:
    """Styles that repeat as rules for classes no other picture has, and short ids."""
    mark = "s" + hashlib.sha256(body.encode()).hexdigest()[:7]
    styles = Counter(re.findall(r' style="([^"]*)"', body))
    short = {
        style: f"{mark}{i}" for i, (style, n) in enumerate(styles.items()) if n > 2
    }
    body = re.sub(
        r' style="([^"]*)"',
        lambda m: f' class="{short[m[1]]}"' if m[1] in short else m[0],
        body,
    )
    for i, name in enumerate(re.findall(r' id="([^"]*)"', body)):
        body = re.sub(rf'(id="|#){name}(?=["\)])', rf"\g<1>{mark}{i:x}i", body)
    rules = "".join(f".{name}{{{style}}}" for style, name in short.items())
    return f"<style>{rules}</style>{body}"


def relative(path: str) -> str:
    """The same path by steps of tenths of a unit; rounding does not add up."""
    pen, start, last, out = (0, 0), (0, 0), "", ""
    for command, text in re.findall(r"([MLCQz])([^MLCQz]*)", path):
        numbers = [round(10 * float(x)) for x in text.split()]
        points = list(zip(numbers[::2], numbers[1::2], strict=True))
        base = (0, 0) if command == "M" else pen
        steps = [x - base[i] for point in points for i, x in enumerate(point)]
        letter = command if command in "Mz" else command.lower()
        told = " ".join(f"{step / 10:.5g}" for step in steps).replace(" -", "-")
        told = re.sub(r"(?<!\d)0\.", ".", told)
        out += letter if letter != last or command in "Mz" else ""
        out += " " * (not out[-1:].isalpha() and told[:1] not in ("-", "")) + told
        last, pen = letter, (*points, start)[-1 if command == "z" else len(points) - 1]
        start = pen if command == "M" else start
    return out


def _shorter(attribute: str) -> str:
    return re.sub(r"(\d+\.\d)\d+", r"\1", attribute)


def _plain(style: str) -> str:
    style = re.sub(r"font-family: [^;\"]*;? ?", "", style)
    return re.sub(r"([;:]) ", r"\1", style)
