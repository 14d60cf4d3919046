"""Keeps records in a folder: one file per run, written whole and checked when read."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from saddlebook.disk.files import parse_json, read_whole, write_whole
from saddlebook.disk.provenance import Provenance as Provenance
from saddlebook.errors import (
    CorruptError,
    MachineError,
    UsageError,
    VerifyError,
    reason,
)
from saddlebook.experiment import Experiment
from saddlebook.record import MAX_BYTES, Record
from saddlebook.record import Accuracy as Accuracy
from saddlebook.scales import at_scale

if TYPE_CHECKING:
    import pandas as pd

RESULTS = Path(__file__).resolve().parents[2] / "results"  # the checkout's, committed


class Found(NamedTuple):
    """What is there of some experiments at one scale.

    Attributes:
        scale: Where it was found.
        records: Those that are there, in the order of the experiments.
        missing: Experiments at ``scale`` without a record.
    """

    scale: str
    records: list[Record]
    missing: list[Experiment]


def find_records(
    experiments: Iterable[Experiment],
    results: str | Path = RESULTS,
    scale: str | None = None,
    precision: str = "",
) -> Found:
    """Records of experiments that are there; the only answer to that question.

    Args:
        experiments: At ``full`` scale, or at ``scale``; repeats count once.
        results: Folder with one folder of records per scale.
        scale: Where to look; None: ``full`` where all are there, else ``lite``.
        precision: Instead of the scale's own.
    """
    wanted = list(experiments)
    scale = scale or next((e.scale for e in wanted if e.scale != "full"), None)
    if scale is None:
        found = find_records(wanted, results, "full", precision)
        return (
            found
            if not found.missing
            else find_records(wanted, results, "lite", precision)
        )
    mapped = [at_scale(exp, scale) for exp in wanted]
    if precision:
        mapped = [replace(exp, precision=precision) for exp in mapped]
    mapped = list(dict.fromkeys(mapped))
    store = Store(Path(results) / scale)
    missing = store.missing(mapped)
    return Found(scale, store.records(e for e in mapped if e not in missing), missing)


def lacking(
    path: Path, missing: Sequence[Experiment], there: int, study: str = "STUDY"
) -> str:
    """One line: which records a folder lacks, and the command that makes them."""
    first = missing[0]
    own = f" --dataset {first.dataset}" if first.is_own else ""
    return (
        f"{path} lacks {len(missing)} of {len(missing) + there} records, first "
        f"{first.slug}; run: python -m saddlebook run {study} "
        f"--scale {first.scale}{own}"
    )


class Store:
    """A folder of records, one file per run, written whole and checked on reading."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()

    def add(self, record: Record, replace: bool = False) -> Path:
        """Write a record; a run that is there is kept unless ``replace``.

        Raises:
            UsageError: Another record of the same experiment is there.
            ResourceError: The disk is full.
            MachineError: The folder cannot be written.
        """
        exp, content = record.experiment, record.to_bytes()
        try:
            if not replace and (found := self.get(exp)) and found != record:
                raise FileExistsError
            return write_whole(self._path(exp), content, replace or found is not None)
        except FileExistsError:
            raise UsageError(
                f"{self._path(exp)} is there already; move it away to replace it"
            ) from None

    def get(self, experiment: Experiment) -> Record | None:
        """The record of an experiment, or None.

        Raises:
            CorruptError: Its file is damaged, foreign or of another experiment.
        """
        paths = self._paths(experiment)
        return _read(paths[0], experiment) if paths else None

    def records(
        self, experiments: Iterable[Experiment] | None = None, study: str = "STUDY"
    ) -> list[Record]:
        """All records by file name, or those of ``experiments`` in their order.

        Raises:
            UsageError: One is missing; the message names the command that makes it.
            CorruptError: A file is damaged.
        """
        if experiments is None:
            return [_read(path) for path in self._files()]
        wanted = list(experiments)
        if missing := self.missing(wanted):
            there = len(wanted) - len(missing)
            raise UsageError(lacking(self.path, missing, there, study))
        return [_read(self._paths(exp)[0], exp) for exp in wanted]

    def missing(self, experiments: Iterable[Experiment]) -> list[Experiment]:
        """Those without a record."""
        return [exp for exp in experiments if not self._paths(exp)]

    def verify(self) -> list[Record]:
        """Check every file: whole, unedited, in its place, once, of one data set.

        Raises:
            VerifyError: Names every damaged file and why.
        """
        records, faults = [], []
        for path in self._files():
            try:
                records.append(_read(path))
                if path != self._path(records[-1].experiment):
                    faults.append(f"{path}: not the name of its experiment")
                if len(self._paths(records[-1].experiment)) > 1:
                    faults.append(f"{path}: its key stands for another file too")
            except CorruptError as error:
                faults.append(str(error))
        faults += _mixed_data(records)
        if faults:
            raise VerifyError("; ".join(faults))
        return records

    def table(self, records: Sequence[Record] | None = None) -> pd.DataFrame:
        """One row per record: experiment, accuracies (percent), tail loss, time."""
        import pandas as pd

        chosen = self.records() if records is None else records
        return pd.DataFrame([_row(record) for record in chosen])

    def _files(self) -> list[Path]:
        return self._matching("*.json")

    def _path(self, experiment: Experiment) -> Path:
        return self.path / f"{experiment.slug}.json"

    def _paths(self, experiment: Experiment) -> list[Path]:
        return self._matching(f"*{experiment.key}.json")

    def _matching(self, pattern: str) -> list[Path]:
        try:
            names = os.listdir(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise MachineError(
                f"cannot read {self.path} ({error.strerror}); choose a folder you may "
                "read"
            ) from error
        return [self.path / name for name in sorted(fnmatch.filter(names, pattern))]


@lru_cache(maxsize=512)
def _parsed(content: bytes) -> Record:
    """The same record for the same bytes: a page asks for one again and again."""
    return Record.from_dict(parse_json(content))


def _read(path: Path, wanted: Experiment | None = None) -> Record:
    try:
        # a copy: what a user changes in one must not come back to another
        record = deepcopy(_parsed(read_whole(path, MAX_BYTES)))
        if record.key not in path.name:
            raise ValueError(f"the record of another experiment, {record.key}")
    except Exception as error:  # others may have written it
        why = f"{path}: {reason(error)}; restore it or run it again"
        raise CorruptError(why) from error
    if wanted not in (None, record.experiment):
        raise CorruptError(
            f"{path} is of another experiment with the same key, {record.key}: eight "
            "digits cannot tell them apart; give yours another seed"
        )
    return record


def _mixed_data(records: Sequence[Record]) -> list[str]:
    digests: dict[str, dict[str, str]] = {}
    for record in records:
        exp = record.experiment  # own images may change: their digest is in the key
        known = digests.setdefault(exp.dataset + exp.images_digest, {})
        known.setdefault(record.provenance["data_digest"], record.experiment.slug)
    return [
        f"records of {name} come from different images: {', '.join(known.values())}"
        for name, known in digests.items()
        if len(known) > 1
    ]


def _row(record: Record) -> dict[str, Any]:
    experiment = record.experiment
    names = {"key": record.key, "slug": experiment.slug, "method": experiment.method}
    results = record.accuracy._asdict() | {
        "best_overall": record.best.overall,
        "best_tail": record.best.tail,
        "tail_train_loss": record.tail_train_loss,
        "seconds": record.timing["seconds"],
    }
    return names | experiment.to_dict() | results
