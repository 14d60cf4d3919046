"""The one rule that judges claims: against scipy, by hand, with runs missing."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from worlds import FAMILY, as_the_poster, world

from saddlebook import studies
from saddlebook.findings import claims, hypotheses, readme, verdicts
from saddlebook.findings.claims import Claim, Contrast, Family
from saddlebook.scales import at_scale

FIVE = hypotheses.five()


def judged(records, family=FIVE, **kwargs):
    return claims.judge(family, records, **kwargs).set_index("claim")


def frozen(change):
    """A world in which freezing the statistics changes the tail by this much."""
    return world(tail=lambda e: 50 + change * (e.sam_bn == "first"))


@given(
    st.lists(st.floats(-5, 5), min_size=5, max_size=5).filter(lambda v: np.ptp(v) > 0.1)
)
def test_p_values_of_two_bounds_are_scipys(values):
    contrast = Contrast(name="x", low=-1.5, high=1.5)
    keeps, breaks = contrast.p_values(verdicts.paired(values))
    above, below = (
        [
            stats.ttest_1samp(values, bound, alternative=side).pvalue
            for bound in (-1.5, 1.5)
        ]
        for side in ("greater", "less")
    )
    assert keeps == pytest.approx(max(above[0], below[1]), abs=1e-12)
    assert breaks == pytest.approx(min(1, 2 * min(below[0], above[1])), abs=1e-12)


def test_a_claim_that_two_differ_is_two_sided_and_refuted_within_the_margin():
    values = [0.2, -0.1, 0.3, 0.1, -0.2]
    contrast = Contrast(name="x", unlike=1.5)
    keeps, breaks = contrast.p_values(verdicts.paired(values))
    assert keeps == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    sides = ((-1.5, "greater"), (1.5, "less"))
    found = [stats.ttest_1samp(values, m, alternative=side).pvalue for m, side in sides]
    assert breaks == pytest.approx(max(found))


def test_both_errors_stay_below_five_percent_at_the_bound():
    """At the bound itself neither verdict may come often: 400 made-up studies."""
    generator = np.random.default_rng(0)
    contrast = Contrast(name="x", high=1.5)
    tests = [
        contrast.p_values(verdicts.paired(generator.normal(1.5, 1, 5)))
        for _ in range(400)
    ]
    for found in zip(*tests, strict=True):
        # 20 expected, standard deviation 4.4
        assert 7 <= sum(p < 0.05 for p in found) <= 33


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 12])
def test_what_runs_would_show_is_the_power_of_the_t_test(alpha):
    found = verdicts.Difference(0.0, 1.0, 4).detectable(alpha)
    limit = stats.t.ppf(1 - alpha, 4)
    assert stats.nct.sf(limit, 4, found) == pytest.approx(0.8, abs=1e-6)


def sided(base, other, **bounds):
    """A family of one claim over made-up values of two settings."""

    class Made(Contrast):
        def experiments(self):
            return []

        def sides(self, runs, scale):
            return [(1.0, dict(enumerate(other))), (-1.0, dict(enumerate(base)))]

    contrast = Made(name="x", **({"low": 0.0, "two_sided": True} | bounds))
    return Family("made", (Claim("made", "x", ((contrast,),)),))


PAIRED = [60.0, 64.0, 56.0, 62.0, 58.0]  # seeds differ far more than the gain does
GAINED = [61.5, 65.4, 57.6, 63.4, 59.5]


def test_a_gain_counts_only_if_paired_and_unpaired_tests_agree():
    row = judged([], sided(PAIRED, GAINED)).loc["made"]
    paired = stats.ttest_rel(GAINED, PAIRED).pvalue
    unpaired = stats.ttest_ind(GAINED, PAIRED, equal_var=False).pvalue
    assert paired < 0.001 < 0.05 < unpaired
    assert row["p"] == pytest.approx(unpaired)
    assert (row["word"], row["registered"]) == ("undecided", "supported")
    assert row["reason"] == "paired by seed and unpaired tests disagree"
    alone = judged([], sided(PAIRED, GAINED, unpaired=False)).loc["made"]
    assert (alone["word"], alone["p"]) == ("supported", pytest.approx(paired))


def test_an_undecided_claim_says_how_much_the_runs_would_have_shown():
    row = judged([], sided(PAIRED, GAINED)).loc["made"]
    assert f"5 seeds would show a difference of {row['detectable']:.1f}" in claims.why(
        row
    )
    sure = judged([], sided(PAIRED, [v + 20 for v in PAIRED])).loc["made"]
    assert (sure["word"], claims.why(sure)) == ("supported", "")
    less = judged([], sided(PAIRED, [v - 20 for v in PAIRED])).loc["made"]
    assert less["word"] == "contradicted"


def test_what_the_runs_would_have_shown_counts_from_the_bound():
    row = judged([], sided(PAIRED, GAINED, low=0.5)).loc["made"]
    assert claims.why(row).endswith(f"{row['detectable']:.1f} from 0.5")
    both = judged([], sided(PAIRED, GAINED, low=-1.5, high=1.5)).loc["made"]
    assert claims.why(both) == both["reason"] != ""


@pytest.mark.parametrize("name", ["i", "v"])
def test_claims_not_run_count_in_the_correction(name):
    records = world(as_the_poster, lambda e: 50 + 10 * e.rho)
    alone = [r for r in records if r.experiment.training in needed(name)]
    row = judged(alone).loc[name]
    raw = judged(alone, Family("one", (FAMILY[name],))).loc[name]
    assert row["p"] == pytest.approx(min(1, 5 * raw["p"]))
    assert row["p_against"] == pytest.approx(min(1, 5 * raw["p_against"]))


def needed(name):
    return set(FAMILY[name].experiments("lite"))


def test_alternatives_and_contrasts_cost_factors():
    (contrast,) = FAMILY["v"].contrasts["statistics frozen − both passes"]
    records = frozen(1.2)

    def p(*alternatives):
        claim = Claim("a", "", alternatives)
        return judged(records, Family("one", (claim,))).loc["a"]

    once, twice = p((contrast,)), p((contrast,), (contrast,))
    assert twice["p"] == pytest.approx(min(1, 2 * once["p"]))
    same = replace(contrast, name="again")
    both = p((contrast, same))
    assert 0 < both["p_against"] == pytest.approx(min(1, 2 * once["p_against"]))


def test_the_complete_scale_is_judged_not_the_first():
    few = world(scale="full")[:3]
    assert set(judged(few + world(scale="lite"))["scale"]) == {"lite"}
    here = judged(few, scale="full")
    assert set(here["scale"]) == {"full"}
    assert set(here["reason"].str[:12]) == {"too few runs"}


def test_smoke_runs_judge_no_claim_of_another_scale():
    lite = [r for r in world(scale="lite") if r.experiment.seed != 4]
    found = judged(lite + world(scale="quick"), scale="lite")
    assert set(found["scale"]) == {"lite"}
    assert set(judged(world(scale="full")[:1], scale="lite")["scale"]) == {"lite"}


def test_missing_runs_leave_a_claim_undecided_without_p_value():
    records = [r for r in world() if r.experiment.sam_epochs == "all"]
    row = judged(records).loc["iv"]
    assert (row["word"], row["missing"]) == ("undecided", 2 * len(studies.SEEDS))
    assert row["reason"] == "too few runs: 10 are missing"
    assert math.isnan(row["p"])
    seed = next(i for i, r in enumerate(records) if r.experiment.sam_bn == "first")
    less = judged(records[:seed] + records[seed + 1 :]).loc["v"]
    assert less["reason"] == "too few runs: 1 are missing"
    assert less["n"] == 4


def test_nothing_at_all_is_no_error():
    table = claims.judge(FIVE, [])
    assert set(table["word"]) == {"undecided"}
    assert set(table["here"].str[-1]) == {"–"}
    assert claims.counts(table) == f"{len(table)} undecided"


def test_of_a_training_measured_twice_the_plain_run_counts_in_any_order():
    records = frozen(0)
    (base,) = [
        r for r in records if r.experiment == at_scale(studies.table1()[3], "lite")
    ]
    measured = replace(base.experiment, spectra_at=(150,))
    other = replace(base, experiment=measured)
    other.per_class["last_accuracy"][:] = [0.0] * 10
    rows = [
        judged(some)["here"].tolist() for some in ([*records, other], [other, *records])
    ]
    assert rows[0] == rows[1]


def test_identifiers_are_of_one_claim_and_one_family():
    families = [family() for family in readme.FAMILIES]
    names = [claim.name for family in families for claim in family.claims]
    assert len(names) == len(set(names))
    statements = [claim.statement for family in families for claim in family.claims]
    assert len(statements) == len(set(statements))


def test_tables_say_a_verdict_in_one_vocabulary():
    found = claims.judge(hypotheses.main_table(), world())
    assert set(found["word"]) | set(found["registered"]) <= set(verdicts.WORDS)
    shown = claims.listing(found)
    undecided = shown["verdict"] == "undecided"
    assert (shown["undecided because"] != "").tolist() == undecided.tolist()
    told = claims.sentence(found)
    assert all(row["here"] in told for _, row in found.iterrows())
    row = claims.verdict(found, "ii")
    assert row.word == found.set_index("claim").loc["ii", "word"]
    assert list(claims.details(found).columns)[-2:] == ["as registered", "note"]


def test_signs_are_true_and_zero_has_none():
    assert [claims.signed(x, 1) for x in (1.25, -1.25, -0.01)] == [
        "+1.2",
        "−1.2",
        "0.0",
    ]
    assert claims.told([]) == "–"
    assert claims.told([1.0]) == "+1.0"
    assert claims.told([1.0], sign=False) == "1.0"
