"""What others may hand over: names of classes on a page, parts of a bundle.

A name is text wherever it stands; a part holds files of its own runs and no others.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import damage
import fuzz
import pandas as pd

from saddlebook.book import sheets
from saddlebook.errors import CorruptError
from saddlebook.figures import accuracy, style, widgets
from saddlebook.findings import report

_NAMES = (
    "<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "<!--", "]]>",
    "<svg onload=alert(1)>", "' onmouseover='alert(1)", '" autofocus onfocus="alert(1)',
    "</title><iframe src=javascript:alert(1)>", "&lt;b&gt;", "javascript:alert(1)",
    "{{config}}", "{glue:text}`x`", "$\\bad$", "a\u202eb", "\x1b[31mred", "| a | b |",
    "[x](javascript:alert(1))", "a" * 10_000, "\ud800", "\x00",
)  # fmt: skip


class _Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[Any] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, sorted(name for name, _ in attrs)))


def names() -> Iterator[bool]:
    """Each name as folders give it to a table, a widget and a figure of a chapter."""
    truth = [_Tags(page).found for page in _pages("cat")]
    for name in _NAMES:
        yield [_Tags(page).found for page in _pages(name)] == truth and _drawn(name)


def _classes(name: str) -> pd.DataFrame:
    return report.classes([9, 5], [name, "dog"], {"head": [0], "tail": [1]})


def _pages(name: str) -> tuple[str, str]:
    table = _classes(name)
    (shown, _) = table.pop("name")
    widget = widgets.Widget(("plot.js",), {"name": shown}, shown)
    page = sheets.markup(table.set_axis([shown, "bird"]), shown)
    return page, widget.to_html()


def _drawn(name: str) -> bool:
    """Whether the figure of such classes is whole, and nothing in it acts."""
    figure = style.figure_of(accuracy.plot_class_counts(_classes(name)))
    acts = {"script", "foreignObject", "iframe", "a"}
    return not any(
        one.tag.rpartition("}")[2] in acts or any(key[:2] == "on" for key in one.attrib)
        for picture in (style.standalone(figure), style.inline(figure))
        for one in ElementTree.fromstring(picture).iter()
    )


Files = dict[str, bytes]
_PARTS: dict[str, Callable[[Files], Files]] = {
    "no item": lambda f: {n: f[n] for n in f if n != "item.json"},
    "an item that is a list": lambda f: {**f, "item.json": b"[]"},
    "a deep item": lambda f: {**f, "item.json": 9999 * b"["},
    "an item of no runs": lambda f: {**f, "item.json": b'{"experiments": []}'},
    "outside": lambda f: {**f, "work/../canary": b"x"},
    "further outside": lambda f: {**f, "../../canary": b"x"},
    "absolute": lambda f: {**f, "/canary": b"x"},
    "another drive": lambda f: {**f, "C:\\canary": b"x"},
    "a home": lambda f: {**f, "~/canary": b"x"},
    "a bomb": lambda f: {**f, next(n for n in f if n != "item.json"): bytes(2**29)},
    "a lock": lambda f: {**f, "work/x.lock/latest.ckpt": b"x"},
    "another run": lambda f: {**f, "work/x/latest.ckpt": b"x"},
    "code": lambda f: {**f, "work/sitecustomize.py": b"x"},
    "a folder": lambda f: {**f, "work/": b""},
}


def parts() -> Iterator[bool]:
    """Each part is refused in a line, whatever else is in it."""
    with tempfile.TemporaryDirectory() as name:
        path, read = damage._laid("part of a bundle", Path(name))
        with zipfile.ZipFile(path) as archive:
            files = {n: archive.read(n) for n in archive.namelist()}
        for change in _PARTS.values():
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                for member, content in change(files).items():
                    archive.writestr(member, content)
            yield fuzz.refused_or_read(read) and _refused(read)


def _refused(read: Callable[[], Any]) -> bool:
    try:
        read()
    except CorruptError:
        return True
    return False
