"""Intervals, equivalence verdicts, claims: against scipy, by hand, as properties."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from records import grouped, record
from scipy import stats

from saddlebook import data, studies
from saddlebook.errors import UsageError
from saddlebook.experiment import Experiment
from saddlebook.findings import claims, hypotheses, report, verdicts
from saddlebook.findings.verdicts import Sample
from saddlebook.scales import at_scale

TABLE1 = report.paper("table1")
CIFAR10 = report.paper("table1", "cifar10")
FEW = st.lists(st.floats(-50, 50), min_size=3, max_size=9)
SAMPLES = st.builds(
    Sample, st.floats(-100, 100), st.floats(0.01, 10), st.integers(3, 12)
)


def study(tails: dict[str, list[float]], scale: str = "lite"):
    """Records of table 1's and the control's methods with these tail accuracies."""
    runs = studies.table1() + studies.control()
    return [
        grouped(at_scale(exp, scale), 90.0, 70.0, tails[exp.method][exp.seed])
        for exp in runs
        if exp.method in tails
    ]


def test_interval_is_scipys_and_absent_below_three_runs():
    values = [71.2, 70.4, 72.9, 71.7, 70.0]
    expected = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert verdicts.t_interval(values) == pytest.approx(expected, rel=1e-12)
    assert all(map(math.isnan, verdicts.t_interval(values[:2])))


def test_interval_of_a_hand_worked_example():
    # mean 3, sd sqrt(2.5), t(4, .975) = 2.776445: 3 ± 2.776445·sqrt(2.5/5)
    low, high = verdicts.t_interval([1, 2, 3, 4, 5])
    assert (low, high) == pytest.approx((3 - 1.963243, 3 + 1.963243), abs=1e-6)


@given(FEW, FEW, st.floats(0.1, 20))
def test_welch_and_its_equivalence_test_are_scipys(a, b, margin):
    assume(np.std(a) > 1e-3)
    assume(np.std(b) > 1e-3)
    found = verdicts.welch(verdicts.sample(a), verdicts.sample(b))
    peer = stats.ttest_ind(a, b, equal_var=False)
    assert found.df == pytest.approx(peer.df, rel=1e-6)
    assert found.p_zero() == pytest.approx(peer.pvalue, abs=1e-9)
    assert found.interval() == pytest.approx(
        tuple(peer.confidence_interval(0.95)), rel=1e-6, abs=1e-6
    )
    a = np.array(a)
    above = stats.ttest_ind(a + margin, b, equal_var=False, alternative="greater")
    below = stats.ttest_ind(a - margin, b, equal_var=False, alternative="less")
    assert found.p_equivalent(margin) == pytest.approx(
        max(above.pvalue, below.pvalue), abs=1e-9
    )


@given(FEW)
def test_paired_test_is_scipys(differences):
    assume(np.std(differences) > 1e-3)
    found = verdicts.paired(differences)
    assert found.p_zero() == pytest.approx(
        stats.ttest_1samp(differences, 0).pvalue, abs=1e-9
    )
    peer = stats.ttest_1samp(differences, 3.0, alternative="less")
    assert found.p_below(3.0) == pytest.approx(peer.pvalue, abs=1e-9)


def test_differences_without_spread_are_certain():
    assert verdicts.paired([2.0, 2.0, 2.0]).p_zero() == 0
    assert verdicts.paired([0.0, 0.0, 0.0]).p_zero() == 1
    assert verdicts.paired([2.0, 2.0, 2.0]).p_below(3.0) == 0
    assert verdicts.paired([4.0, 4.0, 4.0]).p_below(3.0) == 1


def test_holm_of_a_hand_worked_example():
    # sorted .005 .01 .03 .04 times 4 3 2 1 = .02 .03 .06 .04, then the running maximum
    assert verdicts.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx(
        [0.03, 0.06, 0.06, 0.02]
    )


@given(st.lists(st.floats(0, 1), min_size=1, max_size=16))
def test_holm_lies_between_raw_and_bonferroni_and_keeps_the_order(p_values):
    adjusted = verdicts.holm(p_values)
    for raw, new in zip(p_values, adjusted, strict=True):
        assert raw <= new <= min(1, len(p_values) * raw)
    for i, j in product(range(len(p_values)), repeat=2):
        assert not (p_values[i] < p_values[j] and adjusted[i] > adjusted[j])


@pytest.mark.parametrize(
    ("mean", "sd", "n", "word", "more"),
    [
        (80.6, 0.4, 5, "reproduced", ""),  # the printed number itself
        (80.6 + 0.8, 0.1, 5, "reproduced", "small but real shift"),
        (80.6 + 1.0, 1.5, 5, "undecided", "interval too wide to tell"),
        (80.6 - 1.6, 0.4, 5, "undecided", "shifted, size unclear"),
        (80.6 + 4.0, 0.4, 5, "different", "higher"),
        (80.6 - 4.0, 0.4, 5, "different", "lower"),
        (80.6, 0.0, 2, "undecided", "too few runs: 2 of at least 3"),
    ],
)
def test_each_verdict_on_a_number_has_its_case(mean, sd, n, word, more):
    found = verdicts.equivalence(Sample(mean, sd, n), Sample(80.6, 0.2, 3), 1.5)
    assert (found.word, found.reason or found.note) == (word, more)
    assert bool(found.reason) == (word == "undecided")


def test_the_verdicts_are_those_of_the_intervals():
    # ours 5 runs, theirs 3, both of sd .4; Welch by hand:
    # error = sqrt(.16/5 + .16/3) = .29212, df = .085333²/(.032²/4 + .053333²/2)
    df, error = 4.3457, 0.29212
    wide, narrow = stats.t.ppf(0.975, df) * error, stats.t.ppf(0.95, df) * error
    theirs = Sample(70, 0.4, 3)
    for d in np.linspace(-4, 4, 401):
        word = verdicts.equivalence(Sample(70 + d, 0.4, 5), theirs, 1.5).word
        if abs(abs(d) + narrow - 1.5) < 2e-3 or abs(abs(d) - wide - 1.5) < 2e-3:
            continue  # on an edge
        expected = "different" if abs(d) - wide > 1.5 else "undecided"
        assert word == ("reproduced" if abs(d) + narrow < 1.5 else expected)


@given(SAMPLES, SAMPLES, st.floats(0.1, 10), st.floats(1, 5))
def test_a_wider_margin_never_undoes_reproduced_nor_makes_different(a, b, margin, more):
    narrow = verdicts.equivalence(a, b, margin).word
    wide = verdicts.equivalence(a, b, margin * more).word
    assert narrow != "reproduced" or wide == "reproduced"
    assert wide != "different" or narrow == wide
    assert verdicts.equivalence(b, a, margin).word == narrow


@given(st.floats(-100, 100), st.floats(0, 5), st.integers(1, 5), st.floats(0.1, 50))
def test_without_three_runs_or_a_spread_nothing_is_decided(mean, sd, n, margin):
    spread = 0.1 if n < 3 else math.nan
    found = verdicts.equivalence(Sample(mean, sd, n), Sample(mean, spread, 3), margin)
    assert found.word == "undecided"


def test_an_impossible_margin_is_refused():
    with pytest.raises(UsageError, match="margin"):
        verdicts.equivalence(Sample(1, 1, 3), Sample(1, 1, 3), 0.0)


@given(FEW, FEW, FEW)
def test_a_combination_of_two_samples_is_welchs_and_of_three_adds_their_variances(
    a, b, c
):
    parts = [verdicts.sample(values) for values in (a, b, c)]
    found = verdicts.combined([(1.0, parts[0]), (-0.5, parts[1]), (-0.5, parts[2])])
    factors = np.array([1, -0.5, -0.5])
    assert found.mean == pytest.approx(factors @ [p.mean for p in parts], abs=1e-9)
    error = factors**2 @ [p.sd**2 / p.n for p in parts]
    assert found.error == pytest.approx(error**0.5, abs=1e-9)
    two = verdicts.combined([(1.0, parts[0]), (-1.0, parts[1])])
    assert two == verdicts.welch(*parts[:2])


def test_methods_are_pooled_over_seeds_with_every_value_kept():
    tails = {"CE": [40.0, 42.0, 44.0, 46.0, 48.0]}
    table = report.by_method(reversed(study(tails)))
    row = table[(table.choice == "last") & (table.group == "tail")].iloc[0]
    assert row["values"] == (40, 42, 44, 46, 48)
    assert row["seeds"] == (0, 1, 2, 3, 4)
    assert (row["n"], row["mean"]) == (5, pytest.approx(44))
    assert row["sd"] == pytest.approx(math.sqrt(10))
    assert (row["low"], row["high"]) == pytest.approx(
        stats.t.interval(0.95, 4, 44, math.sqrt(2)), rel=1e-9
    )
    overall = table[(table.choice == "last") & (table.group == "overall")].iloc[0]
    assert overall["mean"] == pytest.approx(0.3 * 90 + 0.4 * 70 + 0.3 * 44)


def test_last_and_best_epoch_stand_side_by_side():
    exp = at_scale(Experiment(), "lite")
    runs = [
        record(replace(exp, seed=s), [50.0 + s] * 10, [52.0 + s] * 10) for s in range(3)
    ]
    table = report.by_method(runs)
    tail = table[table.group == "tail"].set_index("choice")
    assert tail.loc["last", "mean"] == pytest.approx(51)
    assert tail.loc["best", "mean"] == pytest.approx(53)
    sheet = report.summary(table)
    assert sheet.loc["CE", ("tail", "gap")] == "+2.0"
    assert sheet.loc["CE", ("tail", "last epoch")] == "51.0 ± 2.5"
    assert sheet.loc["CE", ("", "runs")] == "3"


def test_runs_that_differ_in_more_than_the_seed_are_not_pooled():
    sam = Experiment(reweight="drw", optimizer="sam", rho=0.5)
    runs = [grouped(sam, 1, 2, 3), grouped(replace(sam, rho=0.8, seed=1), 1, 2, 3)]
    with pytest.raises(UsageError, match="rho"):
        report.by_method(runs)
    assert len(report.by_method(runs, by=("method", "rho"))) == 2 * 2 * 4


def test_a_seed_given_twice_is_refused_even_with_other_spectra():
    exp = Experiment()
    again = replace(exp, spectra_at=(200,))
    with pytest.raises(UsageError, match="twice"):
        report.by_method([grouped(exp, 1, 2, 3), grouped(again, 1, 2, 3)])


def test_no_records_and_unknown_columns_are_refused():
    with pytest.raises(UsageError, match="no records"):
        report.by_method([])
    with pytest.raises(UsageError, match="'rho'"):
        report.by_method([grouped(Experiment(), 1, 2, 3)], by=("rhoo",))
    with pytest.raises(UsageError, match="table1"):
        report.paper("tabel1")


def test_full_scale_cells_carry_verdicts_and_are_counted():
    shifts = {"CE": 0.0, "CE+DRW": 12.0, "CE+DRW+SAM": -12.0, "VS": 0.0, "VS+SAM": 0.0}
    short = ("CE", "VS+SAM")
    runs = []
    for exp in studies.table1():
        if exp.method in shifts and not (exp.method in short and exp.seed > 1):
            row = CIFAR10[CIFAR10.method == exp.method]
            means = row.set_index("group")["mean"]
            at = shifts[exp.method] + 0.1 * (exp.seed - 2)
            mid, tail = means["mid"] + at, means["tail"] + at
            runs.append(grouped(exp, means["head"], mid, tail))
    table = report.cells(report.by_method(runs), CIFAR10)
    word = table.set_index(["method", "group"])["word"]
    reason = table.set_index(["method", "group"])["reason"]
    assert word["CE+DRW", "overall"] == word["CE+DRW", "tail"] == "different"
    assert word["CE+DRW+SAM", "tail"] == "different"
    assert word["CE+DRW", "head"] == ""
    assert reason["CE", "tail"] == "too few runs: 2 of at least 3"
    assert reason["VS", "tail"] == reason["VS+SAM", "tail"] == "protocol not published"
    assert reason["LDAM+DRW", "tail"] == "not run yet"
    assert report.headline(table) == "0 reproduced, 4 different, 12 undecided of 16"


def test_the_printed_mean_itself_is_reproduced():
    runs = []
    for exp in studies.table1():
        row = CIFAR10[CIFAR10.method == exp.method]
        means = row.set_index("group")["mean"]
        at = 0.2 * (exp.seed - 2)
        runs.append(grouped(exp, *(means[g] + at for g in ("head", "mid", "tail"))))
    word = report.cells(report.by_method(runs), CIFAR10).set_index(["method", "group"])
    word = word["word"]
    assert word["CE+DRW+SAM", "overall"] == word["CE+DRW+SAM", "tail"] == "reproduced"
    # its printed tail spread of 3.7 over three runs cannot establish 3 points
    assert word["CE", "tail"] == word["VS+SAM", "tail"] == "undecided"


def test_another_scale_carries_no_cell_verdict():
    table = report.by_method(study({"CE+DRW": [60, 61, 62, 63, 64]}))
    judged = report.cells(table, CIFAR10)
    assert set(judged["word"]) == {""}
    assert report.headline(judged).startswith("no cell carries a verdict")


def test_scales_are_not_mixed_in_one_table():
    both = [*study({"CE": [1] * 5}), *study({"CE+DRW": [1] * 5}, "quick")]
    with pytest.raises(UsageError, match="scale"):
        report.cells(report.by_method(both), CIFAR10)


def test_the_papers_numbers_of_another_dataset_are_refused_at_full_scale():
    runs = [grouped(exp, 90, 70, 50) for exp in studies.table1()]
    table = report.by_method(runs)
    cifar100 = report.paper("table1", "cifar100")
    for printed in (cifar100, TABLE1):
        with pytest.raises(UsageError, match="cifar10"):
            report.cells(table, printed)
    with pytest.raises(UsageError, match="cifar100"):
        report.paper("table1", "cifar1000")


def test_the_class_groups_reproduce_every_printed_overall():
    wide = TABLE1.pivot(index=["dataset", "method"], columns="group", values="mean")
    for (dataset, _), row in wide.iterrows():
        sizes = {
            name: len(group)
            for name, group in data.class_groups(
                10 if dataset == "cifar10" else 100
            ).items()
        }
        mean = sum(row[g] * n for g, n in sizes.items()) / sum(sizes.values())
        assert mean == pytest.approx(row["overall"], abs=0.075)


def test_every_printed_number_names_its_source_and_misprints_stay_empty():
    for name in ("table1", "optimizers", "rho", "large", "spectra", "dynamics"):
        assert report.paper(name)["source"].notna().all()
    odd = TABLE1[TABLE1["spread"].isna()]
    assert odd[["dataset", "method", "group"]].to_numpy().tolist() == [
        ["cifar10", "VS+SAM", "tail"]
    ]
    assert "misprint" in odd["note"].iloc[0]
    assert len(TABLE1) == 2 * 8 * 4


def test_what_the_papers_own_numbers_support():
    found = report.printed_effects(TABLE1).set_index(["dataset", "base", "group"])
    expected = {  # adjusted p-values of reliability section E6, computed independently
        ("cifar10", "CE"): (0.055, 1.0),
        ("cifar10", "CE+DRW"): (0.004, 0.001),
        ("cifar10", "LDAM+DRW"): (0.004, 0.022),
        ("cifar10", "VS"): (0.004, 0.004),
        ("cifar100", "CE"): (0.29, 1.0),
        ("cifar100", "CE+DRW"): (0.016, 0.013),
        ("cifar100", "LDAM+DRW"): (0.016, 0.31),
        ("cifar100", "VS"): (0.004, 0.065),
    }
    for (dataset, base), pair in expected.items():
        for group, p in zip(("overall", "tail"), pair, strict=True):
            digits = 2 if p > 0.1 else 3
            assert round(found.loc[(dataset, base, group), "p_holm"], digits) == p
    assert (found.query("base == 'CE' and group == 'tail'")["difference"] < 0).all()


def test_the_other_reading_of_the_misprint_changes_no_conclusion():
    one = report.printed_effects(TABLE1)
    two = report.printed_effects(TABLE1, unknown_spread=1.2)
    assert ((one.p_holm < 0.05) == (two.p_holm < 0.05)).all()
    row = two.query("dataset == 'cifar10' and base == 'VS' and group == 'tail'")
    assert round(row["p_holm"].item(), 3) == 0.025


def test_the_abstracts_averages_follow_from_the_table():
    found = report.printed_effects(TABLE1)
    gain = found[found["base"] == "VS"].groupby("group")["difference"].mean()
    assert gain["tail"] == pytest.approx(6.3)
    assert gain["overall"] == pytest.approx(4.35)


def test_the_family_is_every_base_overall_and_tail_and_the_control():
    family = hypotheses.main_table()
    assert len(family.claims) == 8 + 4
    methods = {e.method for e in family.experiments("full")}
    assert methods == {e.method for e in studies.table1() + studies.control()}
    assert [c.name for c in family.claims if c.alone] == ["ii"]
    assert [c.paper for c in family.claims[:4]] == [1.4, -0.6, 5.1, 11.7]
    assert all(math.isnan(c.paper) for c in family.claims[8:])


TAILS = {
    "CE": [33.0, 34.0, 33.5, 34.5, 33.2],
    "CE+SAM": [27.0, 28.2, 27.9, 28.1, 27.4],
    "CE+DRW": [46.0, 45.8, 46.5, 45.0, 46.2],
    "CE+DRW+SAM": [55.0, 53.9, 56.1, 54.2, 55.7],
    "LDAM+DRW": [50.0, 51.0, 49.0, 50.5, 49.5],
    "LDAM+DRW+SAM": [50.4, 50.2, 49.8, 50.1, 50.3],
    "VS": [50.7, 50.7, 50.7, 50.7, 50.7],
    "VS+SAM": [47.0, 46.5, 47.5, 46.8, 47.2],
}


def tails(changes):
    """Verdicts on the tail by comparison, with these tail accuracies."""
    tuned, tuned_sam = (exp.method for exp in studies.control(seeds=(0,)))
    same = TAILS["CE+DRW+SAM"]
    runs = study(TAILS | {tuned: same, tuned_sam: same[::-1]} | changes)
    found = claims.judge(hypotheses.main_table(), runs)
    return found[found["group"] == "tail"].set_index("contrast")


def test_gains_are_tested_twice_corrected_and_judged():
    found = tails({})
    row = found.loc["CE+DRW+SAM − CE+DRW"]
    assert row["values"] == pytest.approx((9.0, 8.1, 9.6, 9.2, 9.5))
    assert (row["paper"], row["word"]) == (11.7, "supported")
    assert found.loc["CE+SAM − CE", "word"] == "supported"  # the tail even falls
    assert found.loc["VS+SAM − VS", "word"] == "contradicted"
    assert found.loc["LDAM+DRW+SAM − LDAM+DRW", "word"] == "undecided"
    words = claims.names(found.reset_index())
    assert words[0] == "CE+SAM − CE, tail"


def test_a_gain_that_does_not_survive_correction_is_undecided():
    few = [1.0, 3.5, 0.2, 4.0, 2.8]  # p = .03 alone
    vs = [v + d for v, d in zip(TAILS["VS"], few, strict=True)]
    row = tails({"VS+SAM": vs}).loc["VS+SAM − VS"]
    assert row["low"] > 0
    assert row["word"] == row["registered"] == "undecided"
    assert row["reason"] == "not after the correction for 12 claims"


@pytest.mark.parametrize(
    ("sam", "word"),
    [
        ([t + 1 + 0.1 * i for i, t in enumerate(TAILS["CE"])], "supported"),
        ([t + 8 + 0.1 * i for i, t in enumerate(TAILS["CE"])], "contradicted"),
        ([40.0, 28.0, 41.0, 27.0, 36.0], "undecided"),
    ],
)
def test_a_gain_below_the_margin_is_no_gain_and_one_above_refutes_it(sam, word):
    assert tails({"CE+SAM": sam}).loc["CE+SAM − CE", "word"] == word


def test_the_gap_between_groups_is_paired_by_run():
    found = claims.judge(hypotheses.gap(), study({"CE": TAILS["CE"]})).iloc[0]
    gaps = [90 - tail for tail in TAILS["CE"]]
    assert found["difference"] == pytest.approx(np.mean(gaps))
    assert found["p"] == pytest.approx(stats.ttest_1samp(gaps, 0).pvalue)


def test_the_baselines_are_compared_with_plain_cross_entropy():
    found = hypotheses.baselines().claims
    assert [c.name for c in found[1::2]] == [
        f"{m} − CE, tail" for m in ("CE+DRW", "LDAM+DRW", "VS")
    ]


def test_runs_made_twice_are_pairs_of_one_training_by_two_codes():
    first = study({"CE": TAILS["CE"], "CE+SAM": TAILS["CE+SAM"]})
    again = [
        replace(
            grouped(r.experiment, 90, 70, r.accuracy.tail + 2),
            provenance=r.provenance | {"numerics": "y", "started": "y"},
        )
        for r in first[:3]
    ]
    measured = replace(
        first[4], experiment=replace(first[4].experiment, spectra_at=(9,))
    )
    pairs = report.replicates(report.made_twice([*first, *again, measured]))
    assert len(pairs) == 3
    assert pairs["tail again"].tolist() == pytest.approx([2, 2, 2])
    noise = report.rerun_noise(pairs)
    assert noise["difference"] == pytest.approx(2)
    assert noise["rerun"] == pytest.approx(2 / 2**0.5)
    assert noise["luck"] == pytest.approx(100 * (noise["rerun"] / noise["seeds"]) ** 2)
    name = {r.experiment.seed: r.experiment.method for r in again}
    both = [s for s in name if len([r for r in again if r.experiment.seed == s]) > 1]
    gained = report.gain_again(pairs, "CE+SAM", "CE")
    by_hand = [TAILS["CE+SAM"][s] - TAILS["CE"][s] for s in both]
    assert gained == pytest.approx(by_hand)
    assert report.replicates([]).empty


def test_order_counts_pairs_and_is_scipys_tau():
    ours = report.by_method(study(TAILS))
    found = report.order(ours, CIFAR10)
    means = {m: np.mean(t) for m, t in TAILS.items()}
    printed = CIFAR10[CIFAR10.group == "tail"]
    printed = printed.set_index("method")["mean"]
    agreeing = sum(
        (means[a] - means[b]) * (printed[a] - printed[b]) > 0
        for i, a in enumerate(TAILS)
        for b in list(TAILS)[i + 1 :]
    )
    assert (found.agreeing, found.pairs) == (agreeing, 28)
    assert found.tau == pytest.approx((2 * agreeing - 28) / 28)
    assert 0 < found.p < 0.05


def test_tables_of_classes_and_epochs_keep_every_run():
    runs = study({"CE+DRW": TAILS["CE+DRW"]})
    classes = report.per_class(runs)
    assert len(classes) == 5 * 10
    first = classes.iloc[0]
    assert (first["name"], first["count"], first["group"]) == ("airplane", 1000, "head")
    curves = report.through_training(runs)
    assert curves.groupby("seed")["tail"].last().tolist() == TAILS["CE+DRW"]
    assert set(curves["drw_epoch"]) == {120}


def test_a_caption_names_data_network_and_seeds():
    text = report.setting(study({"CE": TAILS["CE"]}))
    for part in ("CIFAR-10-LT", "IF 20", "1000 to 50", "resnet8", "0, 1, 2, 3, 4"):
        assert part in text
    assert report.cost(study({"CE": TAILS["CE"]})) == "5 runs, median 12 s each, on cpu"


def test_a_class_table_names_groups_in_order():
    table = report.classes([30, 20, 10], ["a", "b", "c"])
    assert table.to_dict("list") == {
        "name": ["a", "b", "c"],
        "count": [30, 20, 10],
        "group": ["head", "mid", "tail"],
    }


def test_loss_and_accuracy_by_group_are_means_over_classes_and_runs():
    runs = study({"CE": [30.0, 32.0, 34.0, 36.0, 38.0], "CE+SAM": [40.0] * 5})
    for run in runs:
        run.per_class["train_loss"][:] = [0.1] * 7 + [0.3, 0.6, 0.9]
    (row,) = report.fit_by_group(runs, ["CE"]).to_dict("records")
    assert row["test accuracy, tail"] == 34.0
    assert (row["training loss, head"], row["training loss, tail"]) == (0.1, 0.6)
    assert report.fit_by_group(runs, ["VS"]).iloc[0, 0] == "not run yet"
