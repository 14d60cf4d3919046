"""Maps the paper's experiments to smaller scales: the only place that decides them.

What ``full``, ``lite``, ``lab`` and ``quick`` are; how ``lite`` and ``lab`` were
chosen, and what else was tried, stands in DESIGN.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from saddlebook.errors import UsageError, one_of
from saddlebook.experiment import SCALES, Experiment, mapped_epoch

_LITE = {
    "max_count": 1000, "imbalance_factor": 20.0, "image_size": 16, "model": "resnet8",
    "epochs": 150, "drw_epoch": 120, "test_every": 5,
}  # fmt: skip
_QUICK = {
    "dataset": "digits", "max_count": 80, "imbalance_factor": 10.0, "image_size": 8,
    "model": "resnet8", "width": 4, "epochs": 10, "drw_epoch": 8, "batch_size": 64,
}  # fmt: skip
_LAB = {
    "dataset": "digits", "max_count": 140, "imbalance_factor": 20.0, "image_size": 8,
    "model": "resnet8", "width": 8, "epochs": 200, "drw_epoch": 160, "batch_size": 64,
    "test_every": 5,
}  # fmt: skip
_QUICK_LARGE: dict[str, Any] = {
    "model": "resnet8", "width": 4, "image_size": 32, "epochs": 4, "drw_epoch": 2
}  # fmt: skip
_MAPS = {"lite": _LITE, "lab": _LAB, "quick": _QUICK}
# Times the paper's radius, by loss; other data and losses as CIFAR-10-LT and CE
_LITE_RHO = {
    "cifar10": {"ce": 0.6, "ldam": 0.125, "vs": 0.2},
    "cifar100": {"ce": 0.075, "ldam": 0.0625, "vs": 0.375},
}
_RHO = {"lab": 0.1, "quick": 0.2}  # the same


def at_scale(experiment: Experiment, scale: str) -> Experiment:
    """The same experiment at another scale.

    ``full`` experiments come as the studies want them; precision, epochs between tests
    and ``spectra_images`` are set anew for ``lite`` and ``quick``.

    ``lite`` keeps images real and the question alive on two CPU cores: fewer images,
    less imbalance, 16 pixels, a ResNet-8, 150 epochs and a smaller radius. ``lab`` is
    what the live panel trains while a reader waits, scikit-learn's digits until the
    rare ones are learned by heart, and ``quick`` is a second of the same; both are no
    evidence. ``spectra_at`` is mapped in
    proportion before and after the switch; at ``quick`` it is the last epoch, with the
    switch before it where several were wanted. Your own images stay, with their counts.
    A large set has no scale between, and at ``quick`` a small network on its images.

    Raises:
        UsageError: Unknown scale, or an experiment that is not ``full``.
    """
    one_of("scale", scale, SCALES)
    if scale == experiment.scale:
        return experiment
    if experiment.scale != "full":
        raise UsageError(f"at_scale maps from full, not from {experiment.scale}")
    if experiment.is_large and scale != "quick":
        raise UsageError(f"{experiment.dataset} has no scale {scale!r}: full or quick")
    changes: dict[str, Any] = {"scale": scale, "spectra_images": None}
    changes |= {"precision": "fp32", "test_every": 1}
    changes |= _QUICK_LARGE if experiment.is_large else _MAPS[scale]
    if experiment.is_own:
        for name in ("dataset", "max_count", "imbalance_factor"):
            changes.pop(name, None)
    if experiment.dataset == "cifar100" and scale == "lite":
        changes |= {"max_count": 250}
    factor = _RHO.get(scale) or lite_rho(experiment.loss, experiment.dataset)
    changes["rho"] = round(experiment.rho * factor, 6)
    if scale == "quick":
        ends = (changes["drw_epoch"], changes["epochs"])
        changes["spectra_at"] = ends[2 - min(2, len(experiment.spectra_at)) :]
    else:
        changes["spectra_at"] = tuple(
            mapped_epoch(epoch, experiment, changes) for epoch in experiment.spectra_at
        )
    return replace(experiment, **changes)


def lite_rho(loss: str, dataset: str = "cifar10") -> float:
    """Radius at ``lite`` over the paper's, as tuned for each loss and data set."""
    tuned = _LITE_RHO.get(dataset, _LITE_RHO["cifar10"])
    return tuned.get(loss, tuned["ce"])
