"""Made-up outcomes of every run that the hypotheses need, for tests."""

import random

from saddlebook import data
from saddlebook.experiment import at_scale
from saddlebook.findings import hypotheses
from saddlebook.record import _PROVENANCE, Record

NOISE = 0.3  # points, spread of made-up runs
FAMILY = {claim.name: claim for claim in hypotheses.five().claims}


def made(exp, overall, tail):
    """A record with these accuracies, percent."""
    others = (10 * overall - 3 * tail) / 7
    last = [others] * 7 + [tail] * 3
    curves = {name: [50.0] for name in ("train_loss", "head", "mid", "tail", "lr")}
    counts = data.class_counts(exp.largest_class, 10, exp.imbalance_factor)
    return Record(
        experiment=exp,
        curves=curves | {"epoch": [exp.epochs], "accuracy": [overall]},
        per_class={
            "class_counts": counts,
            "last_accuracy": last,
            "best_accuracy": last,
            "train_loss": [0.1] * 10,
        },
        best_epoch=exp.epochs,
        timing={"seconds": 1.0, "device": "cpu", "threads": 1},
        provenance=dict.fromkeys(_PROVENANCE, "x"),
    )


def world(overall=lambda e: 70.0, tail=lambda e: 60.0, scale="lite"):
    """Every run that the five hypotheses and the main table need, with these means."""
    families = (hypotheses.five(), hypotheses.main_table())
    needed = {e for family in families for e in family.experiments("full")}
    runs = []
    for full in sorted(needed, key=lambda e: e.key):
        noise = random.Random(full.key)
        values = (
            of(full) + noise.gauss(0, NOISE)
            for of in (overall, tail)
        )  # fmt: skip
        runs.append(made(at_scale(full, scale), *values))
    return runs


def as_the_poster(exp):
    """Overall accuracy that peaks at the paper's radius."""
    return 70 + 5 * min(exp.rho, 1 - exp.rho)
