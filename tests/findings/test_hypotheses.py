"""The registered hypotheses: what they compare and what upholds or refutes them."""

import re
from pathlib import Path

import numpy as np
import pytest
from worlds import FAMILY, as_the_poster, world

from saddlebook import studies
from saddlebook.findings import hypotheses
from saddlebook.store import Store


def verdicts(records):
    return hypotheses.judge(records).set_index("hypothesis")["verdict"].to_dict()


def test_a_world_like_the_paper_upholds_the_radius():
    records = world(as_the_poster, lambda e: 50 + 10 * e.rho)
    assert verdicts(records)["i"] == "yes"


@pytest.mark.parametrize(
    ("overall", "tail"),
    [
        (as_the_poster, lambda e: 60 - 10 * e.rho),  # the tail falls
        (lambda e: 70 - 5 * e.rho, lambda e: 50 + 10 * e.rho),  # no rise before
        (lambda e: 70 + 5 * e.rho, lambda e: 50 + 10 * e.rho),  # no fall after
    ],
)
def test_the_radius_is_refuted_by_any_of_its_parts(overall, tail):
    assert verdicts(world(overall, tail))["i"] == "no"


def test_a_flat_world_leaves_the_radius_open():
    assert verdicts(world())["i"] == "open"


@pytest.mark.parametrize(("gain", "verdict"), [(0, "yes"), (-5, "yes"), (6, "no")])
def test_sam_without_reweighting(gain, verdict):
    def tail(exp):
        return 50 + gain * (exp.reweight == "none" and exp.optimizer == "sam")

    assert verdicts(world(tail=tail))["ii"] == verdict


def tuned_world(sgd_best, gain):
    """SGD best at ``sgd_best``, SAM at the paper's decay, ``gain`` points above it."""

    def overall(exp):
        if exp.optimizer == "sam":
            return 74 + gain - 4 * (exp.weight_decay != 2e-4)
        return 74 - 4 * (exp.weight_decay != sgd_best)

    return world(overall)


@pytest.mark.parametrize(
    ("gain", "verdict"), [(0.0, "yes"), (4.0, "no"), (1.5, "open")]
)
def test_sams_gain_is_that_over_tuned_sgd(gain, verdict):
    row = hypotheses.judge(tuned_world(1e-3, gain)).set_index("hypothesis").loc["iii"]
    assert row["verdict"] == verdict
    assert row["note"] == "tuned: SAM weight decay 0.0002, SGD weight decay 0.001"


def test_tuning_looks_at_tuning_seeds_only():
    def overall(exp):
        tuning = exp.seed in studies.TUNING_SEEDS
        best = 1e-3 if tuning else 5e-4
        return 70 + 4 * (exp.weight_decay == best)

    note = hypotheses.judge(world(overall)).set_index("hypothesis").loc["iii", "note"]
    assert note == "tuned: SAM weight decay 0.001, SGD weight decay 0.001"


def timed(before, after):
    """Tail gains of 10 points with SAM throughout, and these shares of it."""
    share = {"all": 1.0, "before": before, "after": after}

    def tail(exp):
        return 50 + 10 * share[exp.sam_epochs] * (exp.optimizer == "sam")

    return verdicts(world(tail=tail))["iv"]


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (0.9, 0.1, "yes"),
        (0.1, 0.9, "yes"),
        (0.9, 0.9, "no"),
        (0.1, 0.1, "no"),
        (0.5, 0.1, "open"),
    ],
)
def test_timing_asks_which_half_gives_the_gain(before, after, verdict):
    assert timed(before, after) == verdict


@pytest.mark.parametrize(
    ("change", "verdict"),
    [(0, "yes"), (4, "no"), (-4, "no"), (1.5, "open")],
)
def test_frozen_statistics_must_change_little_either_way(change, verdict):
    records = world(tail=lambda e: 50 + change * (e.sam_bn == "first"))
    assert verdicts(records)["v"] == verdict


def test_the_slope_is_that_of_least_squares_over_the_radii():
    slope = FAMILY["i"].contrasts["slope of the tail per radius"][0]
    factors = [factor for factor, _ in slope.terms]
    values = np.array([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0])
    expected = np.polyfit(range(7), values, 1)[0]
    assert np.dot(factors, values) == pytest.approx(expected)
    assert [arm[0].rho for _, arm in slope.terms] == list(studies.RADII)


def test_every_hypothesis_stands_in_the_docstring_of_a_study():
    texts = " ".join(str(study.__doc__) for study in studies.STUDIES.values())
    stated = re.findall(r"Hypothesis \((\w+)\)", texts)
    later = ["vi", "a1", "a2", "a3"]  # families of their own
    assert sorted(stated) == sorted([*FAMILY, *later])


def test_each_hypothesis_has_commands_that_make_all_it_needs():
    for hypothesis in hypotheses.HYPOTHESES:
        runs = hypothesis.experiments("lite")
        names = [c.split()[4] for c in studies.commands(runs)]
        made_there = {e for name in names for e in studies.named(name, "lite")}
        assert set(runs) <= made_there


def test_tuning_and_reported_runs_share_no_seed():
    reported = {
        e.seed
        for name, study in studies.STUDIES.items()
        if "tuning" not in name
        for e in study()
    }
    assert reported == {*studies.SEEDS, *studies.FRESH_SEEDS}
    assert not reported & set(studies.TUNING_SEEDS)


def test_the_rivals_noise_is_one_that_tuning_tries():
    tried = {(e.optimizer, e.noise, e.lpf_samples) for e in studies.tuning()}
    rivals = [e for e in studies.optimizers() if e.optimizer in ("pgd", "lpf")]
    assert rivals
    assert {(e.optimizer, e.noise, e.lpf_samples) for e in rivals} <= tried


@pytest.mark.parametrize("name", ["pgd", "lpf"])
def test_the_rivals_noise_is_the_best_on_the_tuning_seeds(name):
    store = Store(Path(__file__).parents[2] / "results/lite")
    runs = store.records(studies.named("tuning", "lite"))
    scores: dict[tuple[float, int], list[float]] = {}
    for run in runs:
        exp = run.experiment
        if exp.optimizer == name:
            setting = (exp.noise, exp.lpf_samples)
            scores.setdefault(setting, []).append(run.accuracy.overall)
    best = max(scores, key=lambda setting: sum(scores[setting]))
    (chosen,) = {
        (e.noise, e.lpf_samples) for e in studies.optimizers() if e.optimizer == name
    }
    assert chosen == best


def test_verdicts_are_told_in_words_with_their_numbers():
    records = [r for r in world(as_the_poster) if r.experiment.sam_bn == "both"]
    judged = hypotheses.judge(records)
    assert hypotheses.answer(judged, "v").name == "not run yet"
    assert (
        hypotheses.headline(judged).name == "1 hold, 1 refuted, 2 open, 1 not run yet"
    )
    told = "holds: (ii); refuted: (iii); open: (i), (iv); not run yet: (v)"
    assert hypotheses.tell(judged) == told
    lines = hypotheses.listing(judged).splitlines()
    assert len(lines) == 5
    assert lines[4].endswith("`python -m saddlebook run bn_statistics --scale lite`")
    assert re.search(r"\*\*holds\*\*, adjusted p [\d.e-]+, against", lines[1])
    numbers = hypotheses.numbers(hypotheses.estimates(records), judged)
    row = numbers.loc["ii"]
    assert (row["contrast"], row["verdict"]) == ("CE+SAM − CE", "holds")
    number = r"[+−]\d\.\d\d"
    assert re.fullmatch(rf"{number} \({number} to {number}\)", row["points"])
    assert numbers.loc["v", "points"] == "–"
