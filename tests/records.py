"""Records with made-up numbers of the right form, for tests."""

import math
from dataclasses import replace

from saddlebook import data
from saddlebook.disk.provenance import Provenance
from saddlebook.experiment import Experiment
from saddlebook.store import Record

EXPERIMENT = Experiment(reweight="drw", spectra_at=(160, 200))
ORIGIN = Provenance.start("cpu", "fp32", "d1").after(12.5)
LAST = [90.0, 80, 70, 60, 50, 40, 30, 20, 10, 0]
BEST = [90.0] * 10


def record(
    experiment=EXPERIMENT, last=LAST, best=BEST, epochs=(), data_digest="d1", **changes
):
    """A record with these accuracies of classes (percent), alike at all ``epochs``."""
    exp, epochs = experiment, list(epochs or range(1, experiment.epochs + 1))
    groups = {"accuracy": range(len(last)), **data.class_groups(exp.num_classes)}
    curves = {
        name: [math.fsum(last[y] for y in of) / len(of)] * len(epochs)
        for name, of in groups.items()
    }
    flat = [epoch / exp.epochs for epoch in epochs]
    numbers = {"lambda_min": -0.5, "lambda_max": 2.0, "nodes": [[-0.5, 2.0]]}
    parts = {
        "experiment": exp,
        "curves": curves | {"epoch": epochs, "train_loss": flat, "lr": flat},
        "per_class": {
            "class_counts": data.class_counts(
                exp.largest_class, exp.num_classes, exp.imbalance_factor, exp.imbalance
            ),
            "last_accuracy": last,
            "best_accuracy": best,
            "train_loss": [0.1] * (len(last) - 3) + [0.2, 0.3, 0.4],
        },
        "best_epoch": min(77, exp.epochs),
        "timing": {"seconds": 12.5, "device": "cpu", "threads": 1},
        "provenance": replace(ORIGIN, data_digest=data_digest).to_dict(),
        "spectra": [
            {"class": 9, "epoch": epoch, "mode": "clean", **numbers}
            for epoch in exp.spectra_at
        ],
    }
    return Record(**parts | changes)


def grouped(exp, head, mid, tail):
    """A record of three epochs with these accuracies of ten classes' groups."""
    last = [head] * 3 + [mid] * 4 + [tail] * 3
    return record(exp, last, last, epochs=(1, exp.epochs // 2, exp.epochs))
