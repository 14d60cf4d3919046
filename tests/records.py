"""Records with made-up numbers of the right form, for tests."""

from dataclasses import replace

from saddlebook import data
from saddlebook.disk.provenance import Provenance
from saddlebook.experiment import Experiment
from saddlebook.store import Record

EXPERIMENT = Experiment(reweight="drw", spectra_at=(160, 200))
ORIGIN = Provenance.start("cpu", "fp32", "d1").after(12.5)
LAST = [90.0, 80, 70, 60, 50, 40, 30, 20, 10, 0]


def record(experiment=EXPERIMENT, data_digest="d1", **changes):
    """A record with made-up numbers of the right form."""
    epochs = list(range(1, experiment.epochs + 1))
    flat = [float(epoch) / experiment.epochs for epoch in epochs]
    curves = {name: flat for name in ("train_loss", "head", "mid", "tail", "lr")}
    counts = data.class_counts(5000, 10, experiment.imbalance_factor)
    numbers = {"lambda_min": -0.5, "lambda_max": 2.0, "nodes": [[-0.5, 2.0]]}
    parts = {
        "experiment": experiment,
        "curves": curves | {"epoch": epochs, "accuracy": [45.0] * len(epochs)},
        "per_class": {
            "class_counts": counts,
            "last_accuracy": LAST,
            "best_accuracy": [90.0] * 10,
            "train_loss": [0.1] * 7 + [0.2, 0.3, 0.4],
        },
        "best_epoch": 77,
        "timing": {"seconds": 12.5, "device": "cpu", "threads": 1},
        "provenance": replace(ORIGIN, data_digest=data_digest).to_dict(),
        "spectra": [
            {"class": 9, "epoch": epoch, "mode": "clean", **numbers}
            for epoch in experiment.spectra_at
        ],
    }
    return Record(**parts | changes)
