"""Holds what one experiment gave: curves, results per class, spectra, provenance.

A record is one JSON file of at most 320 KiB, checked when made and when read, so that a
number taken from it is the number that was measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from saddlebook import data
from saddlebook.disk.files import sha256
from saddlebook.disk.provenance import Provenance, is_current
from saddlebook.errors import CorruptError, UsageError
from saddlebook.experiment import Experiment

if TYPE_CHECKING:
    from saddlebook.train import Outcome

SCHEMA = 1
MAX_BYTES = 320 * 1024  # room for the 8,142 classes of iNaturalist 2018
MAX_EPOCHS = 41
CURVES = ("epoch", "train_loss", "accuracy", "head", "mid", "tail", "lr")
PER_CLASS = ("class_counts", "last_accuracy", "best_accuracy", "train_loss")
TIMING = ("seconds", "device", "threads")
# records from before digests of curvature code were kept lack theirs
_PROVENANCE = tuple(f.name for f in fields(Provenance) if f.name != "curvature")


class Accuracy(NamedTuple):
    """Test accuracy in percent; groups are means over their classes."""

    overall: float
    head: float
    mid: float
    tail: float


@dataclass(frozen=True)
class Record:
    """What one experiment gave, in normal form: equal after writing and reading.

    Floats are rounded to 6 significant digits, curves thinned to 41 epochs (the first,
    the last, the best, those around the switch and those with spectra stay).

    Attributes:
        experiment: What was run.
        curves: Lists of one length: ``epoch`` (from 1), ``train_loss`` (nats/example),
            ``accuracy``, ``head``, ``mid``, ``tail`` (percent, test), ``lr``.
        per_class: Lists ``[C]``: ``class_counts``, ``last_accuracy``,
            ``best_accuracy`` (percent, at ``best_epoch``), ``train_loss`` (last
            epoch); of own images also ``class_names``.
        best_epoch: Of the highest overall test accuracy, the released code's choice.
        timing: ``seconds``, ``device``, ``threads`` and more.
        provenance: ``Provenance.to_dict()``.
        spectra: One mapping a class, epoch and mode of measurement: ``class``,
            ``epoch``, ``mode`` and finite numbers.

    Raises:
        UsageError: A part is missing, of the wrong length or impossible.
    """

    experiment: Experiment
    curves: dict[str, list[Any]]
    per_class: dict[str, list[Any]]
    best_epoch: int
    timing: dict[str, Any]
    provenance: dict[str, Any]
    spectra: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        for name in ("curves", "per_class", "timing", "provenance", "spectra"):
            object.__setattr__(self, name, _rounded(getattr(self, name), name))
        object.__setattr__(self, "spectra", tuple(self.spectra))
        self._check_parts()
        self._check_curves()
        self._check_classes()
        self._check_spectra()
        object.__setattr__(self, "curves", self._thinned())

    def _check_parts(self) -> None:
        for part, names in (
            ("curves", CURVES),
            ("per_class", PER_CLASS),
            ("timing", TIMING),
            ("provenance", _PROVENANCE),
        ):
            missing = [name for name in names if name not in getattr(self, part)]
            _require(not missing, f"{part} lacks {', '.join(missing)}")
        _require(not _paths(self.provenance), "provenance names a path")
        _require(not _paths(self.timing), "timing names a path")

    def _check_curves(self) -> None:
        epochs = self.curves["epoch"]
        _require(
            all(isinstance(v, list) for v in self.curves.values())
            and len({len(values) for values in self.curves.values()}) == 1,
            "curves differ in length",
        )
        _require(
            epochs == sorted(set(epochs)) and epochs[-1:] == [self.experiment.epochs],
            f"curves do not end at epoch {self.experiment.epochs}",
        )
        _require(self.best_epoch in range(1, epochs[-1] + 1), "best_epoch out of range")
        for name in ("accuracy", *self.groups):
            _require(_percentages(self.curves[name]), f"{name} is no percentage")

    def _check_classes(self) -> None:
        exp = self.experiment
        for name in PER_CLASS:
            values = self.per_class[name]
            _require(
                isinstance(values, list)
                and len(values) == exp.num_classes
                and all(isinstance(value, int | float) for value in values),
                f"{name} is not {exp.num_classes} numbers",
            )
        if exp.imbalance != "as_is":
            counts = data.class_counts(
                exp.largest_class, exp.num_classes, exp.imbalance_factor, exp.imbalance
            )
            _require(
                self.per_class["class_counts"] == counts, "class_counts are others"
            )
        for name in ("last_accuracy", "best_accuracy"):
            _require(_percentages(self.per_class[name]), f"{name} is no percentage")
        last = self.curves["accuracy"][-1]
        ours = self.accuracy.overall
        _require(abs(ours - last) < 0.01, "curves and classes disagree")
        _require(self.best.overall > ours - 0.01, "the best epoch is not the best")

    def _check_spectra(self) -> None:
        for spectrum in self.spectra:
            _require(
                spectrum.get("class", -1) in (None, *range(self.experiment.num_classes))
                and spectrum.get("epoch") in self.experiment.spectra_at
                and isinstance(spectrum.get("mode"), str),
                "a spectrum is of no class, epoch or mode of this experiment",
            )

    def _thinned(self) -> dict[str, list[Any]]:
        epochs, exp = self.curves["epoch"], self.experiment
        wanted = {epochs[0], epochs[-1], self.best_epoch, *exp.spectra_at}
        wanted |= {exp.drw_epoch, exp.drw_epoch + 1}
        kept = {i for i, epoch in enumerate(epochs) if epoch in wanted}
        others = [i for i in range(len(epochs)) if i not in kept]
        room = MAX_EPOCHS - len(kept)
        if 0 <= room < len(others):
            others = [others[int((i + 0.5) * len(others) / room)] for i in range(room)]
        rows = sorted(kept.union(others) if room >= 0 else kept)
        return {name: [values[i] for i in rows] for name, values in self.curves.items()}

    @property
    def key(self) -> str:
        """Of the experiment."""
        return self.experiment.key

    @property
    def groups(self) -> dict[str, Sequence[int]]:
        """Head, mid and tail classes."""
        return data.groups(self.experiment, self.per_class["class_counts"])

    @property
    def accuracy(self) -> Accuracy:
        """Of the last epoch, our primary number."""
        return self._grouped("last_accuracy")

    @property
    def best(self) -> Accuracy:
        """Of the epoch with the best overall test accuracy, the released code's."""
        return self._grouped("best_accuracy")

    @property
    def tail_train_loss(self) -> float:
        """Last training loss, mean over the tail classes, nats/example."""
        losses = self.per_class["train_loss"]
        return _mean([losses[label] for label in self.groups["tail"]])

    @property
    def stale(self) -> bool:
        """True if the code that decides curves, or the spectra here, is another now."""
        curvature = self.measured_with if self.spectra else ""
        large = self.experiment.is_large
        return not is_current(self.provenance["numerics"], curvature, large)

    @property
    def measured_with(self) -> str:
        """Digest of the code that measured the spectra.

        Empty if they were measured before such digests were kept.
        """
        return str(self.provenance.get("curvature", ""))

    def _grouped(self, name: str) -> Accuracy:
        # each class counts alike: the built-in test sets are balanced, own need not be
        values = self.per_class[name]
        groups = (_mean([values[y] for y in group]) for group in self.groups.values())
        return Accuracy(_mean(values), *groups)

    def spectrum(self, class_: int, epoch: int, mode: str = "clean") -> Any:
        """The stored spectrum's numbers as attributes, e.g. ``lambda_min``.

        Raises:
            UsageError: Not measured; the message lists what was.
        """
        for item in self.spectra:
            if (item["class"], item["epoch"], item["mode"]) == (class_, epoch, mode):
                return SimpleNamespace(**item)
        known = sorted({(s["class"], s["epoch"], s["mode"]) for s in self.spectra})
        raise UsageError(
            f"{self.experiment.slug} has no spectrum of class {class_} at epoch "
            f"{epoch}, mode {mode!r}; it has (class, epoch, mode): {known}"
        )

    def to_dict(self) -> dict[str, Any]:
        """All content as JSON values, with schema, key, slug and digest."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        content["experiment"] = self.experiment.to_dict()
        content["spectra"] = list(self.spectra)
        content |= {"schema": SCHEMA, "key": self.key, "slug": self.experiment.slug}
        return content | {"digest": _digest(content)}

    @classmethod
    def from_dict(cls, content: Any) -> Record:
        """Build from JSON values, refusing anything unknown, edited or foreign.

        Raises:
            CorruptError: With the reason; nothing is repaired.
        """
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            raise CorruptError(f"not a saddlebook record of schema {SCHEMA}")
        parts = dict(content)
        try:
            if parts.pop("digest", None) != _digest(parts):
                raise ValueError("digest mismatch: the content was edited or damaged")
            key, slug, _ = (parts.pop(name) for name in ("key", "slug", "schema"))
            experiment = Experiment.from_dict(parts.pop("experiment"))
            record = cls(experiment, **parts)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CorruptError(str(error)) from error
        if record.key != key:
            raise CorruptError(f"key {key} of {slug} is not that of its experiment")
        return record

    def to_bytes(self) -> bytes:
        """JSON, one part a line, sorted.

        Raises:
            UsageError: Larger than MAX_BYTES.
        """
        items = sorted(self.to_dict().items())
        lines = [f"{json.dumps(name)}: {_compact(part)}" for name, part in items]
        encoded = ("{\n" + ",\n".join(lines) + "\n}\n").encode()
        if len(encoded) > MAX_BYTES:
            raise UsageError(
                f"record of {len(encoded) / 1024:.0f} KiB, at most "
                f"{MAX_BYTES // 1024}: keep fewer spectra or nodes"
            )
        return encoded


def assemble(
    experiment: Experiment,
    outcome: Outcome,
    spectra: Sequence[dict[str, Any]],
    provenance: Provenance,
    class_names: Sequence[str] | None = None,
) -> Record:
    """Bring an outcome into a record's form."""
    history = outcome.history
    best = max(history, key=lambda row: sum(row["per_class"]))
    return Record(
        experiment=experiment,
        curves=_curves(history, data.groups(experiment, outcome.class_counts)),
        per_class={
            "class_counts": list(outcome.class_counts),
            "last_accuracy": history[-1]["per_class"],
            "best_accuracy": best["per_class"],
            "train_loss": outcome.train_loss,
        }
        | ({"class_names": list(class_names)} if class_names else {}),
        best_epoch=best["epoch"],
        spectra=tuple(spectra),
        timing={
            "seconds": outcome.seconds,
            "resumes": outcome.resumes,
            "side_by_side": outcome.side_by_side,
            "threads": provenance.threads,
            "device": outcome.device or provenance.device,
        }
        | ({"processes": outcome.processes} if experiment.is_large else {}),
        provenance=provenance.to_dict(),
    )


def _curves(
    history: Sequence[dict[str, Any]], groups: dict[str, Sequence[int]]
) -> dict[str, list[Any]]:
    """All tested epochs; the record thins them."""
    curves: dict[str, list[Any]] = {
        name: [row[name] for row in history]
        for name in ("epoch", "train_loss", "lr", "per_class")
    }
    curves["accuracy"] = [_mean(row["per_class"]) for row in history]
    for name, group in groups.items():
        curves[name] = [_mean([row["per_class"][c] for c in group]) for row in history]
    return curves


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise UsageError(otherwise)


def _rounded(value: Any, where: str) -> Any:
    """JSON values with floats at 6 significant digits, all finite."""
    if isinstance(value, dict):
        return {name: _rounded(item, f"{where}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item, where) for item in value]
    if isinstance(value, float):
        _require(math.isfinite(value), f"{where} is {value}, not a finite number")
        return float(f"{value:.6g}")
    _require(isinstance(value, int | str | None), f"{where} holds a {type(value)}")
    return value


def _paths(part: dict[str, Any]) -> list[str]:
    texts = [value for value in part.values() if isinstance(value, str)]
    return [text for text in texts if text.startswith(("/", "~")) or "\\" in text]


def _percentages(values: Sequence[Any]) -> bool:
    return all(isinstance(v, int | float) and 0 <= v <= 100 for v in values)


def _mean(values: Sequence[float]) -> float:
    # over classes: of a balanced test set, the accuracy
    return math.fsum(values) / len(values)


def _compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _digest(content: dict[str, Any]) -> str:
    return sha256(_compact(content).encode())
