"""Gives a chapter what it calls: records, boxes, tables, values in prose, provenance.

Knows IPython's display and the store. A page reads records; only at ``quick`` scale,
whose runs take a second and carry a banner, does asking for records train.
"""

from __future__ import annotations

import html
import inspect
import math
import os
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saddlebook.book.gather import make
from saddlebook.book.notebooks import PARAMETERS, check_injected, check_types
from saddlebook.book.sheets import (
    badge,
    card,
    fitting,
    markup,
    sources,
    without_docstring,
    word_of,
)
from saddlebook.disk.files import wait_for_others
from saddlebook.errors import UsageError
from saddlebook.experiment import OWN, Experiment
from saddlebook.findings import claims
from saddlebook.findings.claims import typeset
from saddlebook.scales import at_scale
from saddlebook.store import RESULTS, Found, find_records, lacking
from saddlebook.studies import chosen_seeds, on_images

if TYPE_CHECKING:
    from saddlebook.data import Dataset
    from saddlebook.findings.readme import Card
    from saddlebook.record import Record

_SHORT = ("Records", "Measured", "Cost")  # of the provenance; the rest folds
_FOLDED = "Identifiers, families, p-values, and the verdicts as registered"
SMOKE = "smoke scale: shows the machinery, is not evidence"
_SCALE_NOTES = {
    "full": "the paper's own setting",
    "lite": "real images, but fewer, and a smaller network; not the paper's setting",
    "quick": SMOKE,
}


class Page:
    """One chapter of the book while it runs.

    Args:
        chapter: File stem of the chapter, such as ``ch07_table``.
        given: The chapter's variables; its parameters are taken from them.
        **more: Parameters by name: ``scale``: ``lite`` and ``full`` show records,
            ``quick`` trains tiny ones; ``results``: folder with one folder of records
            per scale; ``device`` to train on: ``cpu``, ``cuda`` (all GPUs there are) or
            ``cuda:N``; ``data``: folder with CIFAR, if none that of SADDLEBOOK_DATA,
            else the cache folder; ``train``: make what is missing at ``scale``;
            ``seeds`` such as ``0,1``: only these, of studies that have them;
            ``precision`` instead of the scale's own; ``workers``: processes that train
            side by side on the CPU; ``dataset``: ``folder:NAME`` makes the page of your
            own images, in the folder NAME of ``data``; of the large sets one, or
            ``lists:NAME``.

    Raises:
        UsageError: A parameter that there is not, or of another type, or a value that
            it cannot have.
    """

    def __init__(
        self, chapter: str, given: Mapping[str, Any] | None = None, **more: Any
    ) -> None:
        check_injected()
        values = {n: v for n, v in (given or {}).items() if n in PARAMETERS}
        check_types(PARAMETERS, values | more)
        p = PARAMETERS | values | more
        self.chapter, self.scale, self.device = chapter, p["scale"], p["device"]
        results = Path(p["results"])
        self.results = results if self.scale == "quick" else _results(results)
        self.train, self.workers, self.precision = (
            p["train"],
            p["workers"],
            p["precision"],
        )
        self.seeds = chosen_seeds(p["seeds"])
        self.data = p["data"] or os.environ.get("SADDLEBOOK_DATA") or None
        self.dataset = p["dataset"]
        self._shown: dict[Experiment, Record] = {}
        if self.scale == "quick":
            _show(f'<p class="sb-banner" role="note">{SMOKE}</p>', SMOKE)
        if self.dataset.startswith(OWN):
            note = self._told_images()
            _show(f'<p class="sb-banner" role="note">{html.escape(note)}</p>', note)

    @cached_property
    def _images(self) -> Dataset:
        from saddlebook import data

        return data.load(self.dataset, self.data)

    def _told_images(self) -> str:
        images = self._images
        of = f"{len(images.train_images)} training and {len(images.test_images)} test"
        return (
            f"made of your own images: {self.dataset}, {images.num_classes} classes, "
            f"{of} images. Tables, figures and verdicts are of these; the text and the "
            "paper's numbers are of CIFAR-10-LT"
        )

    def on(self, experiments: Sequence[Experiment]) -> list[Experiment]:
        """Experiments at full scale, on the page's own images where it has some."""
        if not self.dataset:
            return list(experiments)
        from saddlebook import data

        own = (on_images(exp, self.dataset) for exp in experiments)
        return list(dict.fromkeys(data.counted(exp, self._images) for exp in own))

    def is_of(self, record: Record) -> bool:
        """Whether a record is of the page's images."""
        exp = record.experiment
        if not self.dataset:
            return not exp.is_own
        named = (exp.dataset, exp.images_digest)
        return named == (self.dataset, self._images.digest[:16])

    def source(self, thing: Any, *, docstring: bool = False) -> None:
        """Show the library's own source of ``thing``, so text and code cannot drift."""
        text = textwrap.dedent(inspect.getsource(thing)).rstrip()
        if not docstring:
            text = without_docstring(text)
        where = f"{thing.__module__}.{thing.__qualname__}"
        shown = f"```python\n{text}\n```\n*Source: `{where}`*"
        _display({"text/markdown": shown, "text/plain": text})

    def snippet(self, name: str) -> None:
        """Show lines for a user's own loop: a file of the book that tests run, too."""
        path = RESULTS.parent / "book/snippets" / f"{name}.py"
        text = path.read_text(encoding="utf-8").rstrip()
        shown = f"```python\n{text}\n```"
        _display({"text/markdown": shown, "text/plain": text})

    def records(
        self, *wanted: str | Callable[[], Sequence[Experiment]] | Sequence[Experiment]
    ) -> list[Record]:
        """Records of studies: ``full`` where all its records exist, else ``lite``.

        Args:
            wanted: Names or functions of ``saddlebook.studies``, or experiments at full
                scale.

        Returns:
            In the studies' order; at ``quick`` of the first three seeds only.

        Raises:
            UsageError: Records are missing; names the ways to make them.
        """
        groups = dict(_named(study) for study in wanted)
        if self.scale == "quick":
            found = self._smoke([e for group in groups.values() for e in group])
        else:
            found = [r for some in self._whole(groups) for r in some.records]
        self.show_records(found)
        return found

    def show_records(self, found: Sequence[Record]) -> None:
        """Name records in the footer, and say their number and scales in a line."""
        self.cite(found)
        by_scale = Counter(record.experiment.scale for record in found)
        for scale, count in by_scale.items():
            note = f"{count} records at {scale} scale: {_SCALE_NOTES[scale]}."
            _show(f'<p class="sb-note">{html.escape(note)}</p>', note)

    def cite(self, found: Sequence[Record]) -> None:
        """Name records in the footer."""
        self._shown |= {record.experiment: record for record in found}

    def found(
        self, groups: Mapping[str, Sequence[Experiment]], scale: str | None = None
    ) -> dict[str, Found]:
        """What is there of each group, after ``train`` has made what it may.

        Args:
            groups: Experiments at full scale.
            scale: Where to look, see ``store.find_records``; only at the page's own
                scale is anything trained.
        """
        where = scale or ("full" if self.scale == "full" else None)

        def look() -> dict[str, Found]:
            return {
                name: find_records(
                    self.on(self._of_seeds(group)), self.results, where, self.precision
                )
                for name, group in groups.items()
            }

        found = look()
        if len({some.scale for some in found.values()}) > 1:  # runs of one scale only
            where = "lite"
            found = look()
        todo = [e for some in found.values() for e in some.missing]
        todo = [e for e in dict.fromkeys(todo) if e.scale == self.scale]
        if self.train and todo:
            make(
                todo, self.results, data_root=self.data, device=self.device,
                workers=self.workers,
            )  # fmt: skip
            found = look()
        return found

    def _of_seeds(self, group: Sequence[Experiment]) -> list[Experiment]:
        """Those of the chosen seeds; all of a study that has none of them."""
        chosen = [exp for exp in group if exp.seed in self.seeds]
        return chosen or list(group)

    def _whole(self, groups: Mapping[str, Sequence[Experiment]]) -> Iterator[Found]:
        for name, found in self.found(groups).items():
            if found.missing:
                there = len(found.records)
                told = lacking(self.results / found.scale, found.missing, there, name)
                raise UsageError(f"{told}; or run this chapter with train=True")
            yield found

    def _smoke(self, experiments: Sequence[Experiment]) -> list[Record]:
        import torch

        from saddlebook import runner

        # Networks of this size train many times faster on one thread than on all
        torch.set_num_threads(1)
        seeds = self.seeds or sorted({exp.seed for exp in experiments})[:3]
        full = self.on([exp for exp in experiments if exp.seed in seeds])
        chosen = [at_scale(exp, "quick") for exp in full]
        run = partial(
            runner.run_all,
            list(dict.fromkeys(chosen)),
            results=self.results,
            work=self.results / "quick" / "work",
            device=self.device,
            data_root=self.data,
        )
        # another chapter may have one in hand
        return wait_for_others(run, runner.PATIENCE)

    def value(self, name: str, x: Any, fmt: str = "") -> None:
        """Publish a number for the prose: ``{glue:text}`name``` shows it.

        Written in MyST-NB's glue format, without its two seconds of import.

        Raises:
            UsageError: Not finite, so nothing that prose could quote.
        """
        if isinstance(x, float) and not math.isfinite(x):
            raise UsageError(f"value {name!r} is {x}; prose cannot quote it")
        _display(
            {"application/papermill.record/text/plain": repr(typeset(format(x, fmt)))},
            scrapbook={"name": name, "mime_prefix": "application/papermill.record/"},
        )

    def claim(
        self, paper: str, where: str, ours: str, verdict: Any = "", cost: str = ""
    ) -> None:
        """Show the box on top: what the paper says and where, what we find, the cost.

        Args:
            paper: The claim, in our words.
            where: Table, figure or section.
            ours: What the records say; build it from them.
            verdict: A ``Verdict``, or words.
            cost: Such as ``50 runs of 80 s on one core``.
        """
        rows = {f"The paper ({where})": paper, "Here": ours, "Cost": cost}
        rows = {name: text for name, text in rows.items() if text}
        word = f"<dt>Verdict</dt><dd>{badge(verdict)}</dd>" if verdict else ""
        _show(
            f'<div class="sb-claim"><dl>{_pairs(rows)}{word}</dl></div>', _lines(rows)
        )

    def verdict(self, verdict: Any, text: str) -> None:
        """Show a computed verdict and publish its word as the value ``verdict``."""
        word = word_of(verdict)
        self.value("verdict", word)
        _show(
            f'<p class="sb-verdict">{badge(verdict)} {html.escape(typeset(text))}</p>',
            f"{word}: {text}",
        )

    def closing(self, text: str) -> None:
        """Show the box below a chapter that tests no claim: what it comes to."""
        _show(f'<p class="sb-verdict">{html.escape(typeset(text))}</p>', text)

    def table(self, frame: Any, caption: str = "") -> None:
        """Show a pandas table, escaped, with a caption readers and machines can find.

        Raises:
            UsageError: No rows.
        """
        if not len(frame):
            raise UsageError("the table has no rows; read the records it needs first")
        shown, folded = fitting(frame)
        body = markup(shown, caption)
        if folded:
            body += (
                f"<details><summary>All {folded} columns</summary>"
                f"{markup(frame, '', 'sb-table sb-cards')}</details>"
            )
        _show(f'<div class="sb-tables">{body}</div>', frame.to_string())

    def fold(self, title: str, frame: Any) -> None:
        """Show a table behind a title that opens it."""
        head = f"<summary>{html.escape(title)}</summary>"
        body = markup(frame, "", "sb-table sb-cards")
        _show(
            f'<details class="sb-tables">{head}{body}</details>',
            f"{title}\n{frame.to_string()}",
        )

    def cards(self, found: Sequence[Card]) -> None:
        """Show the cards of the first page."""
        told = "\n".join(f"{one.question} {one.answer}" for one in found)
        _show(f'<div class="sb-tables">{"".join(map(card, found))}</div>', told)

    def judged(self, found: Any, caption: str) -> None:
        """Show claims with their verdicts; what only experts want is folded.

        Args:
            found: From ``gather.verdicts``.
            caption: Of the table.
        """
        self.table(claims.listing(found), caption)
        self.fold(_FOLDED, claims.details(found))

    def footer(self) -> None:
        """Show provenance, and leave the mark by which the build knows it got here."""
        rows = provenance(self._shown.values())
        short = {name: text for name, text in rows.items() if name in _SHORT}
        rest = {name: text for name, text in rows.items() if name not in _SHORT}
        more = (
            "<details><summary>Where each number comes from</summary>"
            f'<dl id="records">{_pairs(rest)}</dl>'
            f"<ul>{sources(self._shown, self.results)}</ul></details>"
        )
        keys = {r.experiment.slug: r.experiment.scale for r in self._shown.values()}
        _show(
            f'<div class="sb-footer"><dl>{_pairs(short)}</dl>{more}</div>',
            _lines(rows),
            chapter=self.chapter,
            records=keys,
        )


def _results(given: Path) -> Path:
    """``given``, or the checkout's: a downloaded chapter runs in any folder."""
    lost = given == Path("results") and not given.is_dir() and RESULTS.is_dir()
    return RESULTS if lost else given


def _named(study: Any) -> tuple[str, list[Experiment]]:
    """A study's name, for the command that makes its records, and its experiments."""
    from saddlebook import studies

    if callable(study):
        study = study.__name__
    if isinstance(study, str):
        return study, studies.named(study)
    if not study:
        raise UsageError("the study holds no experiment")
    wanted = set(study)
    names = (n for n, make in studies.STUDIES.items() if wanted <= set(make()))
    return next(names, "STUDY"), list(dict.fromkeys(study))


def provenance(records: Any) -> dict[str, str]:
    """What, when, where and how long, over the records a page shows."""
    records = list(records)
    now = datetime.now(UTC).date().isoformat()
    if not records:
        return {"Records": "none: everything on this page is computed as it renders"}
    # records of one training, with spectra and without, name its time twice
    took = {r.experiment.training: float(r.timing["seconds"]) for r in records}
    started = sorted(str(r.provenance.get("started", ""))[:10] for r in records)
    return {
        "Records": f"{len(records)}, scale "
        + ", ".join(sorted({r.experiment.scale for r in records})),
        "Measured": f"{started[0]} to {started[-1]}; page rendered {now}",
        "Code": _code_of(records),
        "Device": _distinct(r.timing.get("device") for r in records),
        "Cost": f"{sum(took.values()):,.0f} s of training in all",
    }


def _code_of(records: Any) -> str:
    commits = {str(r.provenance.get("commit")) for r in records}
    dirty = sum(bool(r.provenance.get("dirty")) for r in records)
    return (
        f"{len(commits)} commits, named in the records; {dirty} of {len(records)} "
        "records come from a tree with uncommitted changes"
    )


def _distinct(values: Any) -> str:
    return ", ".join(sorted({str(value)[:40] for value in values if value})) or "?"


def _pairs(rows: Mapping[str, str]) -> str:
    return "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(typeset(text))}</dd>"
        for name, text in rows.items()
    )


def _lines(rows: Mapping[str, str]) -> str:
    return "\n".join(f"{name}: {text}" for name, text in rows.items())


def _show(body: str, text: str, **mark: Any) -> None:
    """Show HTML of this module; the build lets no other HTML through."""
    _display({"text/html": body, "text/plain": text}, saddlebook={"page": True, **mark})


def _display(data: dict[str, str], **metadata: Any) -> None:
    from IPython.display import display

    display(data, raw=True, metadata=metadata)
