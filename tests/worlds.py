"""Made-up outcomes of every run that the hypotheses need, for tests."""

import random

from records import grouped

from saddlebook.findings import hypotheses
from saddlebook.scales import at_scale

NOISE = 0.3  # points, spread of made-up runs
FAMILY = {claim.name: claim for claim in hypotheses.five().claims}


def made(exp, overall, tail):
    """A record with these accuracies, percent."""
    others = (10 * overall - 3 * tail) / 7
    return grouped(exp, others, others, tail)


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
