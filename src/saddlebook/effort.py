"""How much work a run is, in passes (forward and backward) over one image.

An estimate for progress bars and plans; nothing depends on it but what they say. Knows
experiments only.
"""

from __future__ import annotations

from collections.abc import Iterable

from saddlebook import data, measure
from saddlebook.experiment import Experiment

_PASSES = {"sgd": 1, "sam": 2, "pgd": 1, "lpf": 1}
_PRODUCT = 2.5  # a Hessian product costs as much, measured on a core
_STEPS = 50  # of a spectrum, about; the released recurrence does twice as many
_TEST_IMAGES = {"cifar10": 10_000, "cifar100": 10_000, "digits": 340}


def training(experiment: Experiment) -> float:
    """Of all epochs and test passes."""
    exp, images = experiment, sum(_counts(experiment))
    climbing = {"all": exp.epochs, "before": exp.drw_epoch}
    extra = climbing.get(exp.sam_epochs, exp.epochs - exp.drw_epoch)
    passes = exp.epochs + (extra if exp.optimizer == "sam" else 0)
    tests = exp.epochs / exp.test_every
    return passes * images + tests * _TEST_IMAGES.get(exp.dataset, 0) / 3


def measuring(experiment: Experiment) -> float:
    """Of all spectra of its plan."""
    counts, limit = _counts(experiment), experiment.spectra_images or 10**9
    total = 0.0
    for item in measure.plan(experiment):
        cut = limit if item["cut"] is None else counts[item["cut"]]
        images = min(counts[item["class"]], limit, cut)
        total += images * _STEPS * (1 if item["of"] == "clean" else 2)
    return _PRODUCT * total


def total(experiments: Iterable[Experiment]) -> float:
    """Of some runs; experiments of one training share it."""
    runs = list(dict.fromkeys(experiments))
    trainings = dict.fromkeys(run.training for run in runs)
    return sum(map(training, trainings)) + sum(map(measuring, runs))


def _counts(exp: Experiment) -> list[int]:
    if exp.imbalance == "as_is":  # not known before the images are read
        return [100] * max(1, exp.num_classes)
    return data.class_counts(
        exp.largest_class, exp.num_classes, exp.imbalance_factor, exp.imbalance
    )
