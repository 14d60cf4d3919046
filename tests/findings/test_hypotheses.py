"""The registered hypotheses: what they compare and what upholds or refutes them."""

import math
import random
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from worlds import FAMILY, as_the_poster, made, world

from saddlebook import studies
from saddlebook.findings import claims, hypotheses, readme, sharpness, spectra_claims
from saddlebook.scales import at_scale, lite_rho
from saddlebook.store import Store

LITE = Store(Path(__file__).parents[2] / "results/lite")


def verdicts(records):
    families = (hypotheses.five(), hypotheses.main_table())
    tables = [claims.judge(family, records) for family in families]
    return pd.concat(tables).set_index("claim")["word"].to_dict()


def test_a_world_like_the_paper_upholds_the_radius():
    records = world(as_the_poster, lambda e: 50 + 10 * e.rho)
    assert verdicts(records)["i"] == "supported"


@pytest.mark.parametrize(
    ("overall", "tail"),
    [
        (as_the_poster, lambda e: 60 - 10 * e.rho),  # the tail falls
        (lambda e: 70 - 5 * e.rho, lambda e: 50 + 10 * e.rho),  # no rise before
        (lambda e: 70 + 5 * e.rho, lambda e: 50 + 10 * e.rho),  # no fall after
    ],
)
def test_the_radius_is_refuted_by_any_of_its_parts(overall, tail):
    assert verdicts(world(overall, tail))["i"] == "contradicted"


def test_a_flat_world_leaves_the_radius_open():
    assert verdicts(world())["i"] == "undecided"


@pytest.mark.parametrize(
    ("gain", "verdict"), [(0, "supported"), (-5, "supported"), (6, "contradicted")]
)
def test_sam_without_reweighting(gain, verdict):
    def tail(exp):
        return 50 + gain * (exp.reweight == "none" and exp.optimizer == "sam")

    assert verdicts(world(tail=tail))["ii"] == verdict


def third(records):
    return claims.judge(hypotheses.five(), records).set_index("claim").loc["iii"]


def test_the_edge_of_the_grid_is_said():
    note = third(tuned_world(2e-3, 0.0))["note"]
    assert note.endswith("SGD weight decay 0.002, the largest tried")


def tuned_world(sgd_best, gain):
    """SGD best at ``sgd_best``, SAM at the paper's decay, ``gain`` points above it."""

    def overall(exp):
        if exp.optimizer == "sam":
            return 74 + gain - 4 * (exp.weight_decay != 2e-4)
        return 74 - 4 * (exp.weight_decay != sgd_best)

    return world(overall)


@pytest.mark.parametrize(
    ("gain", "verdict"), [(0.0, "supported"), (4.0, "contradicted"), (1.5, "undecided")]
)
def test_sams_gain_is_that_over_tuned_sgd(gain, verdict):
    row = third(tuned_world(1e-3, gain))
    assert row["word"] == verdict
    assert row["note"] == "tuned: SAM weight decay 0.0002; SGD weight decay 0.001"


def test_tuning_looks_at_tuning_seeds_only():
    def overall(exp):
        tuning = exp.seed in studies.TUNING_SEEDS
        best = 1e-3 if tuning else 5e-4
        return 70 + 4 * (exp.weight_decay == best)

    note = third(world(overall))["note"]
    assert note == "tuned: SAM weight decay 0.001; SGD weight decay 0.001"


def timed(before, after):
    """Tail gains of 10 points with SAM throughout, and these shares of it."""
    share = {"all": 1.0, "before": before, "after": after}

    def tail(exp):
        return 50 + 10 * share[exp.sam_epochs] * (exp.optimizer == "sam")

    return verdicts(world(tail=tail))["iv"]


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (0.9, 0.1, "supported"),
        (0.1, 0.9, "supported"),
        (0.9, 0.9, "contradicted"),
        (0.1, 0.1, "contradicted"),
        (0.5, 0.1, "undecided"),
    ],
)
def test_timing_asks_which_half_gives_the_gain(before, after, verdict):
    assert timed(before, after) == verdict


@pytest.mark.parametrize(
    ("change", "verdict"),
    [(0, "supported"), (4, "contradicted"), (-4, "contradicted"), (1.5, "undecided")],
)
def test_frozen_statistics_must_change_little_either_way(change, verdict):
    records = world(tail=lambda e: 50 + change * (e.sam_bn == "first"))
    assert verdicts(records)["v"] == verdict


def test_the_slope_is_that_of_least_squares_over_the_radii():
    slope = next(iter(FAMILY["i"].contrasts.values()))[0]
    factors = [factor for factor, _ in slope.terms]
    values = np.array([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0])
    expected = np.polyfit(range(7), values, 1)[0]
    assert np.dot(factors, values) == pytest.approx(expected)
    assert [arm[0].rho for _, arm in slope.terms] == list(studies.RADII)


def test_every_hypothesis_stands_in_the_docstring_of_a_study():
    texts = " ".join(str(study.__doc__) for study in studies.STUDIES.values())
    stated = re.findall(r"Hypothesis \((\w+)\)", texts)
    families = (
        hypotheses.wider, hypotheses.curve_family, hypotheses.knobs_family,
        hypotheses.adaptive_family, spectra_claims.images_family,
        spectra_claims.views_family, spectra_claims.statistics_family,
        sharpness.edge_family, sharpness.outlier_family,
    )  # fmt: skip
    later = [claim.name for family in families for claim in family().claims]
    assert sorted(stated) == sorted([*FAMILY, "ii", *later])


def test_each_claim_has_commands_that_make_all_it_needs():
    for family in readme.FAMILIES:
        runs = family().experiments("lite")
        made = studies.commands(runs)
        assert {e for some in made.values() for e in some} == set(runs)
        for line, some in made.items():
            assert set(some) <= set(studies.named(line.split()[4], "lite"))


def curve(**away):
    """Fresh runs on a line in the logarithm of the tail's loss, some off it."""
    runs = []
    for full in studies.one_curve():
        exp = at_scale(full, "lite")
        loss = 0.1 * (1 + 1000 * exp.weight_decay + exp.rho + exp.noise)
        loss += 0.02 * (exp.sam_epochs == "after")
        noise = random.Random(full.key).gauss(0, 0.3)
        tail = 60 + 8 * math.log(loss) + away.get(exp.sam_epochs + exp.optimizer, 0)
        run = made(exp, 50.0, tail + noise)
        run.per_class["train_loss"][:] = [loss] * 10
        runs.append(run)
    found = claims.judge(hypotheses.curve_family(), runs).set_index("claim")
    return found["word"].to_dict()


def test_one_curve_asks_for_distances_to_the_line_of_sgd():
    on = curve(aftersam=5, beforesam=-4)
    assert on == {"a1": "supported", "a2": "supported", "a3": "supported"}
    off = curve(alllpf=6)
    assert off["a1"] == "contradicted"
    assert off["a2"] == off["a3"] == "undecided"


def test_tuning_and_reported_runs_share_no_seed():
    reported = {
        e.seed
        for name, study in studies.STUDIES.items()
        if "tuning" not in name
        for e in study()
    }
    assert reported == {*studies.SEEDS, *studies.FRESH_SEEDS}
    assert not reported & set(studies.TUNING_SEEDS)


def test_radii_and_decay_of_cifar100_are_the_best_of_its_tuning():
    runs = LITE.records(studies.named("tuning_cifar100", "lite"))
    for loss, factor in (("ce", 0.075), ("ldam", 0.0625), ("vs", 0.375)):
        assert lite_rho(loss, "cifar100") == factor
        climbed = [r for r in runs if r.experiment.rho and r.experiment.loss == loss]
        best = max(climbed, key=lambda r: r.accuracy.overall)
        assert best.experiment.rho == round(0.8 * factor, 6)
    plain = [r for r in runs if (r.experiment.loss, r.experiment.rho) == ("ce", 0)]
    assert len(plain) == len(studies.WEIGHT_DECAYS)
    best = max(plain, key=lambda r: r.accuracy.overall)
    control = studies.control_cifar100()
    assert {e.weight_decay for e in control} == {best.experiment.weight_decay}


def test_the_rivals_noise_is_one_that_tuning_tries():
    tried = {(e.optimizer, e.noise, e.lpf_samples) for e in studies.tuning()}
    rivals = [e for e in studies.optimizers() if e.optimizer in ("pgd", "lpf")]
    assert rivals
    assert {(e.optimizer, e.noise, e.lpf_samples) for e in rivals} <= tried


@pytest.mark.parametrize("name", ["pgd", "lpf", "adam", "sign"])
def test_a_rivals_setting_is_the_best_on_the_tuning_seeds(name):
    tried = studies.named("tuning", "lite") + studies.named("adaptive_tuning", "lite")
    scores: dict[tuple[float, ...], list[float]] = {}
    for run in LITE.records(tried):
        if run.experiment.optimizer == name:
            scores.setdefault(knobs(run.experiment), []).append(run.accuracy.overall)
    assert {len(found) for found in scores.values()} == {len(studies.TUNING_SEEDS)}
    best = max(scores, key=lambda setting: sum(scores[setting]))
    used = studies.optimizers() + studies.adaptive()
    assert {knobs(e) for e in used if e.optimizer == name} == {best}


def knobs(exp):
    """What is tuned of a rival."""
    return exp.noise, exp.lpf_samples, exp.lr, exp.weight_decay
