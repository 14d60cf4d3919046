"""The one rule that judges hypotheses: against scipy, by hand, with runs missing."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from worlds import FAMILY, as_the_poster, world

from saddlebook import studies
from saddlebook.experiment import at_scale
from saddlebook.findings import contrasts, hypotheses
from saddlebook.findings.contrasts import Contrast, Hypothesis


def verdicts(records):
    return hypotheses.judge(records).set_index("hypothesis")["verdict"].to_dict()


@pytest.mark.parametrize("name", ["i", "v"])
def test_hypotheses_not_run_count_in_the_correction(name):
    records = world(as_the_poster, lambda e: 50 + 10 * e.rho)
    alone = [r for r in records if r.experiment.training in needed(name)]
    row = hypotheses.judge(alone).set_index("hypothesis").loc[name]
    raw = contrasts.judge([FAMILY[name]], alone).loc[0]
    assert row["p"] == pytest.approx(5 * raw["p"])
    assert row["p_against"] == pytest.approx(min(1, 5 * raw["p_against"]))


def needed(name):
    return set(FAMILY[name].experiments("lite"))


@given(
    st.lists(st.floats(-5, 5), min_size=5, max_size=5).filter(lambda v: np.ptp(v) > 0.1)
)
def test_p_values_are_scipys(values):
    contrast = Contrast("x", "tail", (), low=-1.5, high=1.5)
    keeps, breaks = contrasts._p_values(contrast, values)
    above, below = (
        [
            stats.ttest_1samp(values, bound, alternative=side).pvalue
            for bound in (-1.5, 1.5)
        ]
        for side in ("greater", "less")
    )
    assert keeps == pytest.approx(max(above[0], below[1]), abs=1e-12)
    assert breaks == pytest.approx(min(1, 2 * min(below[0], above[1])), abs=1e-12)


def test_both_errors_stay_below_five_percent_at_the_bound():
    """At the bound itself neither verdict may come often: 400 made-up studies."""
    generator = np.random.default_rng(0)
    contrast = Contrast("x", "tail", (), high=1.5)
    tests = [
        contrasts._p_values(contrast, generator.normal(1.5, 1, 5)) for _ in range(400)
    ]
    for found in zip(*tests, strict=True):
        # 20 expected, standard deviation 4.4
        assert 7 <= sum(p < 0.05 for p in found) <= 33


def test_alternatives_cost_a_factor():
    contrast = FAMILY["v"].contrasts["statistics frozen − both passes"][0]
    once = Hypothesis("a", "", ((contrast,),))
    twice = Hypothesis("b", "", ((contrast,), (contrast,)))
    records = world(tail=lambda e: 50 + 1.2 * (e.sam_bn == "first"))
    single, double = (contrasts.judge([h], records).loc[0, "p"] for h in (once, twice))
    assert double == pytest.approx(min(1, 2 * single))


def test_each_contrast_of_an_alternative_is_a_way_to_be_refuted():
    contrast = FAMILY["v"].contrasts["statistics frozen − both passes"][0]
    records = world(tail=lambda e: 50 + 2.0 * (e.sam_bn == "first"))
    same = replace(contrast, name="again")
    single, double = (
        contrasts.judge([Hypothesis("x", "", (parts,))], records).loc[0, "p_against"]
        for parts in [(contrast,), (contrast, same)]
    )
    assert 0 < double == pytest.approx(min(1, 2 * single))


def test_the_complete_scale_is_judged_not_the_first():
    few = world(scale="full")[:3]
    table = hypotheses.judge(few + world(scale="lite"))
    assert set(table["scale"]) == {"lite"}


def test_one_missing_seed_is_enough_for_n():
    records = world()
    seed = next(i for i, r in enumerate(records) if r.experiment.sam_bn == "first")
    assert verdicts(records[:seed] + records[seed + 1 :])["v"] == "N"


def test_missing_runs_give_n_and_the_command_and_no_p_value():
    records = [r for r in world() if r.experiment.sam_epochs == "all"]
    row = hypotheses.judge(records).set_index("hypothesis").loc["iv"]
    assert row["verdict"] == "N"
    assert row["note"] == (
        "10 runs missing: python -m saddlebook run sam_timing --scale lite"
    )
    assert math.isnan(row["p"])
    assert row["missing"] == 2 * len(studies.SEEDS)


def test_nothing_at_all_is_no_error():
    table = hypotheses.judge([])
    assert set(table["verdict"]) == {"N"}
    assert table["note"].str.contains("--scale lite").all()
    assert hypotheses.estimates([])["mean"].isna().all()


def test_estimates_are_hand_worked_and_use_the_seeds_that_are_there():
    records = world(tail=lambda e: 50 + 2 * (e.sam_bn == "first"))
    (exp,) = studies.bn_statistics(seeds=(3,))
    without = [r for r in records if r.experiment != at_scale(exp, "lite")]
    table = hypotheses.estimates(without).set_index("hypothesis")
    row = table.loc["v"]
    assert row["n"] == 4
    assert row["mean"] == pytest.approx(2, abs=1)
    tails = {r.experiment: r.accuracy.tail for r in records}
    (change,) = studies.bn_statistics(seeds=(0,))
    base = replace(change, sam_bn="both")
    by_hand = tails[at_scale(change, "lite")] - tails[at_scale(base, "lite")]
    assert row["values"][0] == pytest.approx(by_hand)
