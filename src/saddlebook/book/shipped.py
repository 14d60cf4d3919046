"""Measures the trained networks that come with the repository.

Weights of CE+DRW with SGD and with SAM, last epoch, in ``results/weights``; the images
are the reader's own copy. What is missing is said in one line, not raised: a chapter
then shows the stored spectrum.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from saddlebook import data, measure, studies
from saddlebook.curvature import hessian
from saddlebook.curvature.spectrum import Spectrum
from saddlebook.errors import DataError
from saddlebook.experiment import Experiment, at_scale
from saddlebook.store import RESULTS
from saddlebook.train import task


def experiment(optimizer: str = "sgd", scale: str = "lite") -> Experiment:
    """What the shipped network of this optimizer and scale was trained as."""
    runs = {exp.optimizer: exp for exp in studies.dynamics(seeds=(0,))}
    return at_scale(runs[optimizer], scale)


def weights(
    optimizer: str = "sgd", results: str | Path = RESULTS, scale: str = "lite"
) -> Path:
    """Where its weights are, if they are there."""
    exp = experiment(optimizer, scale)
    return Path(results) / "weights" / f"{exp.slug.removesuffix(f'_{exp.key}')}.weights"


def spectrum(
    class_: int,
    optimizer: str = "sgd",
    root: str | None = None,
    results: str | Path = RESULTS,
    scale: str = "lite",
) -> Spectrum | str:
    """Spectrum of one class's loss at a shipped network, or why it cannot be had.

    Args:
        class_: Class to measure; the rare ones take seconds.
        optimizer: ``sgd`` or ``sam``.
        root: Folder with CIFAR-10; that of SADDLEBOOK_DATA.
        results: Folder with ``weights/``.
        scale: ``lite``, or ``full``: the paper's own setting.
    """
    path, exp = weights(optimizer, results, scale), experiment(optimizer, scale)
    if not path.is_file():
        return "the shipped weights are not here"
    try:
        with warnings.catch_warnings(action="ignore"):  # an unwritable cache
            images = data.load(exp.dataset, root or os.environ.get("SADDLEBOOK_DATA"))
    except DataError:
        return "CIFAR-10 is not here (set SADDLEBOOK_DATA to the folder that has it)"
    ready = task.prepare(exp, images)
    rows = ready.labels == class_
    return hessian.spectrum(
        measure.load_model(exp, path),
        measure.class_loss(exp, ready.class_counts),
        data.normalise(ready.images[rows]),
        ready.labels[rows],
        rtol=0.01,
    )
