"""Builds the book of executed chapters with Jupyter Book; any warning is an error.

Knows folders; no tensor. The build itself runs no code and no network. How a chapter is
run is in ``notebooks``.

As a Sphinx extension (``setup``) it keeps the pages free of outside scripts, explains
the first use of a word on each page, and leads from numbers to their records.
"""

from __future__ import annotations

import html.parser
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from saddlebook.book.notebooks import (
    SCALES,
    entries,
    execute_all,
    sentinel,
    tidy,
)
from saddlebook.book.sheets import OTHERS
from saddlebook.disk.files import locked, write_whole
from saddlebook.errors import UsageError, VerifyError, one_of

_SOURCES = ("_config.yml", "_toc.yml", "CITATION.cff")


def build(
    root: str | os.PathLike[str] = ".",
    *,
    scale: str = "lite",
    results: str = "results",
    device: str = "cpu",
) -> Path:
    """Execute all chapters and build the book into ``_build/html``.

    The old pages are replaced only by a whole, checked new book.

    Raises:
        UsageError: ``quick``, which is never published.
        VerifyError: A chapter failed, a warning, or a page or figure is missing.
    """
    if one_of("scale", scale, SCALES) == "quick":
        raise UsageError("a quick book is no evidence; build it at lite or full scale")
    root = Path(root).resolve()
    final = root / "_build" / "html"
    with locked(root / "_build" / "book.lock", "the book"):
        _restore(final)
        pages = execute_all(root, scale=scale, results=results, device=device)
        stage = _stage(root, pages, Path(results))
        made = _sphinx(root, stage)
        check_pages(made, entries(root))
        _publish(made, final)
    return final


def _publish(made: Path, final: Path) -> None:
    """Put new pages in the place of the old ones; never a part of either.

    A kill between the two renames leaves the old ones beside, see ``_restore``.
    """
    old = final.with_name("old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.replace(old)
    made.replace(final)
    shutil.rmtree(old, ignore_errors=True)


def _restore(final: Path) -> None:
    old = final.with_name("old")
    if old.exists() and not final.exists():
        old.replace(final)


def _stage(root: Path, pages: Mapping[str, Any], results: Path) -> Path:
    """Lay out what Jupyter Book reads: settings, text, executed notebooks, records."""
    import nbformat

    stage = root / "_build" / "src"
    shutil.rmtree(stage, ignore_errors=True)
    shutil.copytree(
        root / "book", stage / "book", ignore=shutil.ignore_patterns("*.py")
    )
    for name in _SOURCES:
        shutil.copy2(root / name, stage / name)
    for pattern in OTHERS.values():
        for path in (root / results).glob(pattern):
            place = stage / "book/_static/results" / path.relative_to(root / results)
            write_whole(place, path.read_bytes())
    for stem, notebook in pages.items():
        _copy_records(notebook, root / results, stage / "book/_static/results")
        text = nbformat.writes(tidy(notebook, stem))
        write_whole(stage / "book" / f"{stem}.ipynb", text.encode())
    return stage


def _copy_records(notebook: Any, results: Path, target: Path) -> None:
    """Put the records a page shows beside it, so that its footer's links lead there."""
    mark = sentinel(notebook.cells[-1].outputs) or {}
    for slug, scale in mark.get("records", {}).items():
        source = results / scale / f"{slug}.json"
        (target / scale).mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target / scale / source.name)


def _sphinx(root: Path, stage: Path) -> Path:
    """Build the staged book; any warning is an error."""
    target = root / "_build" / "new"
    shutil.rmtree(target, ignore_errors=True)
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(stage)]
    command += ["--path-output", str(target), "-n", "-W", "--keep-going", "--all"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    said = done.stdout + done.stderr
    log = write_whole(root / "_build/book.log", said.encode())
    if done.returncode:
        lines = [line for line in said.splitlines() if line.strip()]
        loud = [line for line in lines if "WARNING" in line or "ERROR" in line]
        why = "\n".join(loud[:20] or lines[-5:])
        raise VerifyError(f"the book did not build; log: {log}\n{why}")
    return target / "_build" / "html"


class _Links(html.parser.HTMLParser):
    """Collects what a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(
        self, tag: str, attrs: Iterable[tuple[str, str | None]]
    ) -> None:
        values = dict(attrs)
        if tag in {"script", "img", "iframe", "source"} and values.get("src"):
            self.loaded.append(str(values["src"]))
        relation = str(values.get("rel"))
        if tag == "link" and ("stylesheet" in relation or "preload" in relation):
            self.loaded.append(str(values.get("href")))


def check_pages(folder: Path, entries: Iterable[str]) -> None:
    """Check that every page is there and loads only whole files that lie beside it.

    Raises:
        VerifyError: Lists every fault.
    """
    faults = []
    for entry in entries:
        page = folder / f"{entry}.html"
        if not page.exists() or page.stat().st_size < 1000:
            faults.append(f"page {entry} is missing or empty")
            continue
        links = _Links()
        links.feed(page.read_text())
        faults += [f"{entry}: {why}" for why in _load_faults(page, links.loaded)]
    if faults:
        raise VerifyError("\n".join(faults))


def _load_faults(page: Path, loaded: Iterable[str]) -> list[str]:
    faults = []
    for link in loaded:
        if re.match(r"(https?:)?//", link):
            faults.append(f"loads {link} from the network")
        elif not link.startswith("data:"):
            file = page.parent / link.split("?")[0].split("#")[0]
            if not file.is_file() or not file.stat().st_size:
                faults.append(f"{link} is missing or empty")
    return faults


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
