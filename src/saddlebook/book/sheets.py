"""Makes the HTML of pages: tables, verdicts, cards, sources, explained words.

Tables fit a window and fold on a phone. As a Sphinx extension (``setup``) it keeps the
pages free of outside scripts, explains the first use of a word on each page, and leads
from numbers to their records. Knows tables, cards and experiments; no chapter.
"""

from __future__ import annotations

import ast
import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from saddlebook import studies
from saddlebook.disk.files import load_json, write_whole
from saddlebook.errors import UsageError
from saddlebook.experiment import Experiment
from saddlebook.figures import style
from saddlebook.figures.accuracy import plot_cards
from saddlebook.findings import readme, tables
from saddlebook.findings.claims import typeset
from saddlebook.findings.readme import Card
from saddlebook.findings.verdicts import WORDS
from saddlebook.store import RESULTS

_MOST_COLUMNS = 6  # of a table, in a window of 1280 px
# Beside the records: numbers that no run gives, files below ``results``
OTHERS = {
    "The paper's numbers, printed or digitised": "paper/*.csv",
    "Mistakes of the shipped networks, <code>gather.count_mistakes()</code>": (
        "weights/mistakes.json"
    ),
    "What the sweep of faults counted, <code>make faults</code>": "faults.json",
}


def fitting(frame: Any) -> tuple[Any, int]:
    """The columns that fit a window, few rows turned; how many, if not all do."""
    names = frame.index.nlevels if frame.index.names != [None] else 1
    room = _MOST_COLUMNS - names
    if len(frame.columns) > room and len(frame) < _MOST_COLUMNS and names == 1:
        turned = frame.T
        turned.columns = [str(name) for name in turned.columns]
        return turned, 0
    if len(frame.columns) <= room:
        return frame, 0
    return frame.iloc[:, :room], names + len(frame.columns)


_NUMBER = re.compile(r"[-−+–<≤~≈·⁻⁰¹²³⁴⁵⁶⁷⁸⁹\d.,%()±\s]*(?:to [−+\d.]+\))?")


def markup(frame: Any, caption: str = "", kind: str = "sb-table") -> str:
    """A table that folds to cards where it is narrow: each cell carries its name."""
    names = [str(n) if n is not None else "" for n in frame.index.names]
    heads = [", ".join(str(n) for n in c if n) if isinstance(c, tuple) else str(c)
             for c in frame.columns]  # fmt: skip
    if names == [""] and frame.columns.nlevels == 1 and frame.columns.name:
        names = [str(frame.columns.name)]
    index = [frame.index.get_level_values(i).tolist() for i in range(len(names))]
    body = [frame.iloc[:, i].tolist() for i in range(frame.shape[1])]
    columns = [_column(values) for values in index + body]
    rows = zip(*columns, strict=True)
    heads = [typeset(name) for name in names + heads]
    numeric = [all(map(_NUMBER.fullmatch, column)) for column in columns]
    marks = [' class="sb-n"' if yes else "" for yes in numeric]
    head = "".join(
        f'<th scope="col"{mark}>{html.escape(name)}</th>'
        for name, mark in zip(heads, marks, strict=True)
    )
    lines = "".join(f"<tr>{_row(row, heads, marks, len(names))}</tr>" for row in rows)
    title = f"<caption>{html.escape(typeset(caption))}</caption>" if caption else ""
    return (
        f'<table class="{kind}">{title}<thead><tr>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table>"
    )


def _row(
    row: Sequence[str], heads: Sequence[str], marks: Sequence[str], names: int
) -> str:
    cells = []
    for i, (cell, head, mark) in enumerate(zip(row, heads, marks, strict=True)):
        tag = 'th scope="row"' if i < names else "td"
        label = html.escape(head)
        word = badge(cell) if cell in WORDS else html.escape(cell)
        cells.append(f'<{tag}{mark} data-label="{label}">{word}</{tag.split()[0]}>')
    return "".join(cells)


def _column(values: Sequence[Any]) -> list[str]:
    """Cells of a column; plain numbers with as many decimals as one of them needs."""
    cells = [_cell(value) for value in values]
    if not all(isinstance(v, float) and math.isfinite(v) for v in values):
        return cells
    decimals = max(len(cell.partition(".")[2]) for cell in cells)
    powers = any("·" in cell for cell in cells)
    return cells if powers else [typeset(f"{v:.{decimals}f}") for v in values]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return typeset(f"{value:.6g}") if math.isfinite(value) else "–"
    return typeset(str(value)) if value is not None else "–"


def badge(verdict: Any) -> str:
    """A verdict as a word in a frame, with its reason."""
    word, reason = word_of(verdict), str(getattr(verdict, "reason", ""))
    kind = word if word in WORDS else "none"
    label = html.escape(typeset(f"{word} · {reason}" if reason else word))
    return f'<span class="sb-badge sb-{kind}">{label}</span>'


def word_of(verdict: Any) -> str:
    """The word of a ``Verdict``, or the words given instead of one."""
    return str(getattr(verdict, "word", verdict))


def card(one: Card) -> str:
    """A card of the first page: its words at the left, its numbers at the right."""
    head, *rows = one.numbers()
    numbers = pd.DataFrame(rows, columns=list(head)).set_index("")
    picture = style.slim(style.inline(style.figure_of(plot_cards([one]))))
    said = html.escape(typeset(one.verdict))
    said = f'<span class="sb-badge sb-{one.word}">{said}</span>'
    words = (
        f"<h3>{html.escape(one.question)}</h3><p>{said}</p>"
        f"<p>{html.escape(typeset(one.answer))}</p>"
        f'<p class="sb-sure">{html.escape(typeset(one.sure))}</p>'
        f'<p><a href="{one.page}.html">{html.escape(one.more)} →</a></p>'
    )
    return (
        f'<section class="sb-card"><div>{words}</div>'
        f"<div>{picture}{markup(numbers, kind='sb-numbers')}</div></section>"
    )


def sources(experiments: Iterable[Experiment], results: Path) -> str:
    """Where a page's numbers come from: each command, and the records it makes.

    Args:
        experiments: Of the records that the page shows.
        results: Folder of the files that are no records.
    """
    parts = [
        f"<code>{html.escape(line or 'runs of no study')}</code><ul>{_runs(made)}</ul>"
        for line, made in studies.commands(experiments).items()
    ]
    for told, pattern in OTHERS.items():
        names = [path.relative_to(results) for path in sorted(results.glob(pattern))]
        links = ", ".join(_file(name.as_posix(), name.name) for name in names)
        parts += [f"{told}: {links}"] if links else []
    parts.append(
        "All else is computed as the page is made, <code>python -m saddlebook book"
        "</code>, by the code shown or folded beside it."
    )
    return "".join(f"<li>{part}</li>" for part in parts)


def _runs(experiments: Sequence[Experiment]) -> str:
    """A line for each method and whatever else differs, with a link a seed."""
    lines: dict[str, list[str]] = {}
    for method in dict.fromkeys(exp.method for exp in experiments):
        some = [exp for exp in experiments if exp.method == method]
        rows = pd.DataFrame([e.to_dict() for e in some]).drop(columns="seed")
        differ = rows.loc[:, rows.astype(str).nunique() > 1].to_dict("records")
        for exp, row in zip(some, differ, strict=True):
            name = ", ".join([method, *(f"{k} {v}" for k, v in row.items())])
            link = _file(f"{exp.scale}/{exp.slug}.json", str(exp.seed))
            lines.setdefault(name, []).append(link)
    return "".join(
        f"<li>{html.escape(name)}: seed {', '.join(links)}</li>"
        for name, links in sorted(lines.items())
    )


def _file(name: str, told: str) -> str:
    name = html.escape(f"../_static/results/{name}")
    return f'<a href="{name}">{html.escape(told)}</a>'


def write_front(root: Path) -> None:
    """Write what the README and ``results/findings.md`` say of records and counts."""
    found, front = readme.cards(results=root / "results"), root / "README.md"
    text = inserted(front.read_text(), first_screen(found))
    counted = reliability(faults(root / "results"))
    text = inserted(text, counted, "faults")
    told = load_json(root / "results/architectures.json")
    text = inserted(text, architectures(told), "architectures")
    figure = style.figure_of(plot_cards(found))
    write_whole(front, text.encode())
    write_whole(root / "book/_static/page-one.svg", style.standalone(figure))
    every = readme.every_finding(readme.findings(results=root / "results"))
    write_whole(root / "results/findings.md", every.encode())


def without_docstring(text: str) -> str:
    """Source of a function or class without its docstring."""
    node = ast.parse(text).body[0]
    if not isinstance(node, ast.FunctionDef | ast.ClassDef) or not ast.get_docstring(
        node
    ):
        return text
    doc, lines = node.body[0], text.splitlines()
    return "\n".join(lines[: doc.lineno - 1] + lines[doc.end_lineno :])


def first_screen(found: Sequence[Card], chapters: str = "book/") -> str:
    """The cards as Markdown, below one picture of them all."""
    told = "; ".join(f"{card.claim}: {card.word}" for card in found)
    parts = [f"![{told}](book/_static/page-one.svg)"]
    for i, card in enumerate(found, 1):
        parts += [
            f"### {i}. {card.question}", f"**{card.verdict}.** {card.answer}",
            tables.as_table([(card.unit, *card.numbers()[0][1:]), *card.numbers()[1:]]),
            f"{card.sure} [{card.more}]({chapters}{card.page}.py)",
        ]  # fmt: skip
    return "\n\n".join(part.replace("|λmin/λmax|", "abs(λmin/λmax)") for part in parts)


def inserted(text: str, shown: str, mark: str = "found") -> str:
    """``text`` with ``shown`` between its marks.

    Raises:
        UsageError: The marks are not there.
    """
    first, last = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    before, start, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not start or not end:
        raise UsageError(f"no {first} … {last} to write between")
    return f"{before}{start}\n{shown}\n{end}{after}"


def faults(results: str | Path = RESULTS) -> dict[str, Any]:
    """The counts that ``make faults`` left: settings, and rows of what was tried.

    Raises:
        UsageError: They are not there.
    """
    path = Path(results) / "faults.json"
    if not path.exists():
        raise UsageError(f"no {path}; run: make faults")
    return dict(load_json(path))


_KINDS = {  # of rows: which of the README's promises they try, and how
    "again": ("1", "the same command once more, in another folder"),
    "kill": (
        "2, 3",
        "killed at a random moment (SIGKILL), then the same command again",
    ),
    "fault": ("2, 3", "full disks, failing writes, clocks that jump, hung workers"),
    "rival": ("4", "two at once on one run, one book, one chapter"),
    "damage": ("4, 5", "a byte changed, or the end cut off, in a file of any kind"),
    "input": ("6", "wrong or hostile words, parameters, images, archives, checkpoints"),
    "long run": ("", "epochs, then chapters, in one process: memory flat"),
}


def faults_table(told: Mapping[str, Any]) -> pd.DataFrame:
    """Tried, survived and lost, by what was tried; rows not run yet stand at nought."""
    rows = pd.DataFrame([*told["rows"], *({"what": what} for what in told["left"])])
    return _summed(rows, rows["what"].rename("tried by"))


def faults_by_promise(told: Mapping[str, Any]) -> pd.DataFrame:
    """The same by promise, as the README numbers them, and what put it to the test."""
    kinds = pd.DataFrame(_KINDS, index=["promise", "what was done"]).T
    rows = pd.DataFrame(told["rows"]).join(kinds, on="kind")
    rows["place"] = rows["kind"].map([*_KINDS].index)
    return _summed(rows.sort_values("place"), [*kinds])


def _summed(rows: pd.DataFrame, by: Any) -> pd.DataFrame:
    counts = rows.groupby(by, sort=False)[["tried", "survived", "lost"]].sum()
    return counts.astype(int)


def faults_setting(told: Mapping[str, Any]) -> str:
    """When, of which code, with which seed, how long; how many rows are not run yet."""
    rows = len(told["rows"]) + len(told["left"])
    left = f"; {len(told['left'])} of {rows} rows are not run yet" * bool(told["left"])
    commits = ", ".join(commit[:9] for commit in told["commits"])
    return (
        f"Counted by make faults, seed {told['seed']}, up to {told['date']} (commit "
        f"{commits}), {told['seconds'] / 60:.0f} minutes from first to last row, "
        f"{told['cores']} at a time{left}"
    )


def reliability(told: Mapping[str, Any]) -> str:
    """What ``make faults`` counted, by promise, as Markdown."""
    table = faults_by_promise(told).reset_index()
    rows = [[*map(str, row)] for row in table.itertuples(index=False)]
    shown = tables.as_table([[*table.columns], *rows])
    return f"{faults_setting(told)}:\n\n{shown}"


def architectures(told: Sequence[Mapping[str, Any]]) -> str:
    """What ``benchmarks/architectures.py`` found, as Markdown that folds out."""
    head = ["network", "parameters", "λmin (truth)", "λmax (truth)", "trace", ""]
    rows = [head, *(_architecture(row) for row in told)]
    right = sum(row["right"] for row in told)
    return (
        f"<details><summary>{right} of {len(told)} networks of torchvision: right "
        "within the bounds, or refused with the reason</summary>\n\n"
        f"{tables.as_table(rows)}\n\n</details>"
    )


def _architecture(row: Mapping[str, Any]) -> list[str]:
    first = [row["network"], f"{row['parameters'] / 1e6:.1f} M"]
    if "refused" in row:
        return [*first, f"refused: {row['refused']}", "", "", "–"]
    ends = (
        f"{row[f'lambda_{e}']:.5g} ({row[f'true_{e}']:.5g})" for e in ("min", "max")
    )
    trace = f"{row['trace']:.4g} ± {row['trace_error']:.1g} {row['trace_method']}"
    true = f" ({row['true_trace']:.4g})" if "true_trace" in row else ""
    word = "right" if row["right"] else "WRONG"
    return [*(cell.replace("-", "−") for cell in (*first, *ends, trace + true)), word]


def _clean(app: Any, pagename: str, template: str, context: Any, doctree: Any) -> None:
    """Keep the page off the network: each script once, no thebe."""
    seen, kept = set(), []
    for script in context.get("script_files", []):
        name = str(getattr(script, "filename", script) or "")
        body = getattr(script, "attributes", {}).get("body", "")
        if "thebe" in name.lower() or "THEBE" in body or (name, body) in seen:
            continue
        seen.add((name, body))
        kept.append(script)
    context["script_files"] = kept


# Where no word is explained: code, pictures, tables, links, titles and formulas
_APART = re.compile(
    r"(<(script|style|svg|pre|code|table|a|h\d|summary|button|label|noscript)\b.*?</\2>"
    r"|<(span|div) class=\"math.*?</\3>|<[^>]*>)",
    re.DOTALL,
)


def meanings(notation: str) -> dict[str, str]:
    """Words and what they mean, from the table in ``notation.md``."""
    table = notation.partition("\n## Words\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
    return {row[0]: row[1] for row in rows if len(row) == 2 and row[0] != "word"}


def with_meanings(body: str, words: Mapping[str, str]) -> str:
    """A page with the first use of every word marked with its meaning."""
    names = "|".join(sorted(map(re.escape, words), key=len, reverse=True))
    word = re.compile(rf"(?<![\w+-])({names})(?![\w+-])")
    seen: set[str] = set()

    def mark(found: re.Match[str]) -> str:
        if found[1] in seen:
            return found[1]
        seen.add(found[1])
        told = html.escape(words[found[1]])
        return f'<abbr class="sb-term" tabindex="0" title="{told}">{found[1]}</abbr>'

    parts, end = [], 0
    for apart in _APART.finditer(body):
        parts += [word.sub(mark, body[end : apart.start()]), apart[0]]
        end = apart.end()
    return "".join([*parts, word.sub(mark, body[end:])])


_SOURCE = '<a class="sb-source" href="#records" title="Records and commands">{}</a>'
_QUOTED = re.compile(r'(?<=<span class="pasted-text">)[^<]+')
# What shows numbers, to its end: captions, boxes, folded tables, pictures to move
_SHOWN = re.compile(
    r"(?=</(?:fig)?caption>|</dd></dl></div>)"
    r'|<p class="sb-(?:verdict|sure)">.*?(?=</p>)'
    r'|<details class="sb-tables">.*?</table>|<div class="afm-static".*?</div>',
    re.DOTALL,
)


def with_sources(body: str) -> str:
    """A page whose numbers lead to the records and commands named in its footer."""
    if 'id="records"' not in body:
        return body
    body = _QUOTED.sub(lambda found: _SOURCE.format(found[0]), body)
    return _SHOWN.sub(lambda found: found[0] + " " + _SOURCE.format("Source"), body)


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    words: dict[str, str] = {}

    def read(app: Any) -> None:
        words.update(meanings((Path(app.srcdir) / "book/notation.md").read_text()))

    def explain(
        app: Any, pagename: str, template: str, context: Any, tree: Any
    ) -> None:
        if pagename.startswith("book/") and "body" in context:
            context["body"] = with_meanings(with_sources(context["body"]), words)

    app.connect("builder-inited", read)
    app.connect("html-page-context", _clean, priority=900)
    app.connect("html-page-context", explain)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
