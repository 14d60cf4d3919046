"""Intervals, equivalence verdicts, claims: against scipy, by hand, as properties."""

import math
import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from saddlebook import data, studies
from saddlebook.errors import UsageError
from saddlebook.experiment import Experiment, at_scale
from saddlebook.findings import claims, inference, report
from saddlebook.findings.inference import Sample
from saddlebook.record import _PROVENANCE, Record

TABLE1 = report.paper("table1")
CIFAR10 = report.paper("table1", "cifar10")
FEW = st.lists(st.floats(-50, 50), min_size=3, max_size=9)
SAMPLES = st.builds(
    Sample, st.floats(-100, 100), st.floats(0.01, 10), st.integers(3, 12)
)


def record(exp: Experiment, last: list[float], best: list[float] | None = None):
    """A record with these accuracies per class; its last of three epochs is last."""
    counts = data.class_counts(
        exp.largest_class, exp.num_classes, exp.imbalance_factor, exp.imbalance
    )
    epochs = [1, exp.epochs // 2, exp.epochs]
    groups = data.class_groups(exp.num_classes)
    curves = {"epoch": epochs, "train_loss": [2.0, 1.0, 0.5], "lr": [0.1, 0.1, 0.01]}
    for name, of in {"accuracy": range(exp.num_classes), **groups}.items():
        final = math.fsum(last[y] for y in of) / len(of)
        curves[name] = [10.0, 20.0, final]
    return Record(
        experiment=exp,
        curves=curves,
        per_class={
            "class_counts": counts,
            "last_accuracy": last,
            "best_accuracy": best or last,
            "train_loss": [0.1] * exp.num_classes,
        },
        best_epoch=exp.epochs,
        timing={"seconds": 1.0, "device": "cpu", "threads": 1},
        provenance=dict.fromkeys(_PROVENANCE, "x"),
    )


def grouped(exp: Experiment, head: float, mid: float, tail: float):
    return record(exp, [head] * 3 + [mid] * 4 + [tail] * 3)


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
    assert inference.t_interval(values) == pytest.approx(expected, rel=1e-12)
    assert all(map(math.isnan, inference.t_interval(values[:2])))


def test_interval_of_a_hand_worked_example():
    # mean 3, sd sqrt(2.5), t(4, .975) = 2.776445: 3 ± 2.776445·sqrt(2.5/5)
    low, high = inference.t_interval([1, 2, 3, 4, 5])
    assert (low, high) == pytest.approx((3 - 1.963243, 3 + 1.963243), abs=1e-6)


@given(FEW, FEW, st.floats(0.1, 20))
def test_welch_and_its_equivalence_test_are_scipys(a, b, margin):
    assume(np.std(a) > 1e-3)
    assume(np.std(b) > 1e-3)
    found = inference.welch(inference.sample(a), inference.sample(b))
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
    found = inference.paired(differences)
    assert found.p_zero() == pytest.approx(
        stats.ttest_1samp(differences, 0).pvalue, abs=1e-9
    )
    peer = stats.ttest_1samp(differences, 3.0, alternative="less")
    assert found.p_below(3.0) == pytest.approx(peer.pvalue, abs=1e-9)


def test_differences_without_spread_are_certain():
    assert inference.paired([2.0, 2.0, 2.0]).p_zero() == 0
    assert inference.paired([0.0, 0.0, 0.0]).p_zero() == 1
    assert inference.paired([2.0, 2.0, 2.0]).p_below(3.0) == 0
    assert inference.paired([4.0, 4.0, 4.0]).p_below(3.0) == 1


def test_holm_of_a_hand_worked_example():
    # sorted .005 .01 .03 .04 times 4 3 2 1 = .02 .03 .06 .04, then the running maximum
    assert inference.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx(
        [0.03, 0.06, 0.06, 0.02]
    )


@given(st.lists(st.floats(0, 1), min_size=1, max_size=16))
def test_holm_lies_between_raw_and_bonferroni_and_keeps_the_order(p_values):
    adjusted = inference.holm(p_values)
    for raw, new in zip(p_values, adjusted, strict=True):
        assert raw <= new <= min(1, len(p_values) * raw)
    for i, j in product(range(len(p_values)), repeat=2):
        assert not (p_values[i] < p_values[j] and adjusted[i] > adjusted[j])


@pytest.mark.parametrize(
    ("mean", "sd", "n", "code", "note"),
    [
        (80.6, 0.4, 5, "R", ""),  # the printed number itself
        (80.6 + 0.8, 0.1, 5, "R", "small but real shift"),
        (80.6 + 1.0, 1.5, 5, "r", ""),
        (80.6 - 1.6, 0.4, 5, "M", ""),
        (80.6 + 4.0, 0.4, 5, "H", ""),
        (80.6 - 4.0, 0.4, 5, "L", ""),
        (80.6, 0.0, 2, "N", ""),
    ],
)
def test_each_verdict_code_has_its_case(mean, sd, n, code, note):
    found = inference.equivalence(Sample(mean, sd, n), Sample(80.6, 0.2, 3), 1.5)
    assert (found.code, found.note) == (code, note)


def test_the_verdicts_are_those_of_the_intervals():
    # ours 5 runs, theirs 3, both of sd .4; Welch by hand:
    # error = sqrt(.16/5 + .16/3) = .29212, df = .085333²/(.032²/4 + .053333²/2)
    df, error = 4.3457, 0.29212
    wide, narrow = stats.t.ppf(0.975, df) * error, stats.t.ppf(0.95, df) * error
    theirs = Sample(70, 0.4, 3)
    for d in np.linspace(-4, 4, 401):
        code = inference.equivalence(Sample(70 + d, 0.4, 5), theirs, 1.5).code
        if abs(abs(d) + narrow - 1.5) < 2e-3 or abs(abs(d) - wide) < 2e-3:
            continue  # on an edge
        expected = "r" if abs(d) < wide else "M"
        expected = "H" if d - wide > 1.5 else "L" if d + wide < -1.5 else expected
        assert code == ("R" if abs(d) + narrow < 1.5 else expected)


@given(SAMPLES, SAMPLES, st.floats(0.1, 10))
def test_verdicts_are_symmetric(ours, theirs, margin):
    mirrored = {"H": "L", "L": "H"}
    one = inference.equivalence(ours, theirs, margin).code
    other = inference.equivalence(theirs, ours, margin).code
    assert other == mirrored.get(one, one)


@given(SAMPLES, SAMPLES, st.floats(0.1, 10), st.floats(1, 5))
def test_a_wider_margin_never_undoes_reproduced_nor_makes_different(a, b, margin, more):
    narrow = inference.equivalence(a, b, margin).code
    wide = inference.equivalence(a, b, margin * more).code
    assert narrow != "R" or wide == "R"
    assert wide not in "HL" or narrow == wide


@given(st.floats(-100, 100), st.floats(0, 1), st.integers(1, 2), st.floats(0.1, 50))
def test_fewer_than_three_runs_never_reproduce(mean, sd, n, margin):
    found = inference.equivalence(Sample(mean, sd, n), Sample(mean, 0.1, 3), margin)
    assert found.code == "N"


@given(st.floats(-100, 100), st.floats(0, 5), st.floats(-100, 100))
def test_a_number_without_a_spread_is_never_reproduced(mean, sd, printed):
    found = inference.equivalence(
        Sample(mean, sd, 5), Sample(printed, math.nan, 3), 3.0
    )
    assert found.code in "rX"
    far = Sample(mean + 6 * sd + 0.1, math.nan, 3)  # t(4, .975)·sd/√5 is 1.2 sd
    assert inference.equivalence(Sample(mean, sd, 5), far, 3.0).code == "X"
    near = Sample(mean + sd, math.nan, 3)
    assert inference.equivalence(Sample(mean, sd, 5), near, 3.0).code == "r"


def test_an_impossible_margin_is_refused():
    with pytest.raises(UsageError, match="margin"):
        inference.equivalence(Sample(1, 1, 3), Sample(1, 1, 3), 0.0)


@pytest.mark.parametrize(
    ("mean", "p", "paper", "verdict"),
    [
        (6.0, 0.01, 6.5, "signal, consistent"),
        (6.0, 0.01, 11.7, "signal, smaller"),
        (6.0, 0.01, 1.4, "signal, larger"),
        (-6.0, 0.01, 6.0, "signal, opposite"),
        (6.0, 0.01, -0.6, "signal, opposite"),
        (0.5, 0.6, 1.0, "no signal, inconclusive"),
        (0.5, 0.6, 7.7, "no signal, inconsistent"),
        (6.0, 0.01, math.nan, "signal +"),
        (-6.0, 0.01, math.nan, "signal −"),
        (0.5, 0.6, math.nan, "no signal"),
    ],
)
def test_each_claim_verdict_has_its_case(mean, p, paper, verdict):
    found = inference.Difference(mean, 0.5, 4)  # 95 % interval: mean ± 1.39
    assert inference.signal(found, p, paper) == verdict


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
    code = table.set_index(["method", "group"])["code"]
    assert code["CE", "tail"] == code["VS+SAM", "tail"] == "N"
    assert code["CE+DRW", "overall"] == code["CE+DRW", "tail"] == "H"
    assert code["CE+DRW+SAM", "tail"] == "L"
    assert code["VS", "tail"] == "X"
    assert code["LDAM+DRW", "tail"] == "N"
    assert code["CE+DRW", "head"] == ""
    assert report.headline(table) == "R 0 · r 0 · M 0 · H 2 · L 2 · X 2 · N 10 of 16"


def test_the_printed_mean_itself_is_reproduced():
    runs = []
    for exp in studies.table1():
        row = CIFAR10[CIFAR10.method == exp.method]
        means = row.set_index("group")["mean"]
        at = 0.2 * (exp.seed - 2)
        runs.append(grouped(exp, *(means[g] + at for g in ("head", "mid", "tail"))))
    code = report.cells(report.by_method(runs), CIFAR10).set_index(["method", "group"])
    code = code["code"]
    assert code["CE+DRW+SAM", "overall"] == code["CE+DRW+SAM", "tail"] == "R"
    # its printed tail spread of 3.7 over three runs cannot establish 3 points
    assert code["CE", "tail"] == "r"
    assert code["VS+SAM", "tail"] == "X"


def test_another_scale_carries_no_cell_verdict():
    table = report.by_method(study({"CE+DRW": [60, 61, 62, 63, 64]}))
    judged = report.cells(table, CIFAR10)
    assert set(judged["code"]) == {""}
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
        with pytest.raises(UsageError, match="cifar10"):
            claims.judge(runs, claims.sam_comparisons(), printed)
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
    found = claims.printed_effects(TABLE1).set_index(["dataset", "base", "group"])
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
    one = claims.printed_effects(TABLE1)
    two = claims.printed_effects(TABLE1, unknown_spread=1.2)
    assert ((one.p_holm < 0.05) == (two.p_holm < 0.05)).all()
    row = two.query("dataset == 'cifar10' and base == 'VS' and group == 'tail'")
    assert round(row["p_holm"].item(), 3) == 0.025


def test_the_abstracts_averages_follow_from_the_table():
    found = claims.printed_effects(TABLE1)
    gain = found[found["base"] == "VS"].groupby("group")["difference"].mean()
    assert gain["tail"] == pytest.approx(6.3)
    assert gain["overall"] == pytest.approx(4.35)


def test_the_family_is_every_base_overall_and_tail():
    family = claims.sam_comparisons()
    assert len(family) == len(set(family)) == 8
    assert [c.base for c in family if c.claim == "no gain"] == ["CE"]
    methods = {exp.method for exp in studies.table1()}
    assert {m for c in family for m in (c.base, c.other)} == methods
    tuned = {exp.method for exp in studies.control()}
    control = claims.control_comparisons()
    assert tuned <= {m for c in control for m in (c.base, c.other)}
    assert len(control) == 4


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


def test_claims_are_paired_corrected_and_settled():
    found = claims.judge(study(TAILS), claims.sam_comparisons(), CIFAR10)
    tail = found[found["group"] == "tail"].set_index("base")
    row = tail.loc["CE+DRW"]
    peer = stats.ttest_rel(TAILS["CE+DRW+SAM"], TAILS["CE+DRW"])
    assert row["p"] == pytest.approx(peer.pvalue, rel=1e-6)
    assert row["values"] == pytest.approx((9.0, 8.1, 9.6, 9.2, 9.5))
    assert (row["paper"], row["verdict"]) == (11.7, "signal, smaller")
    assert row["holds"] == "yes"
    assert tail.loc["CE", "holds"] == "yes"  # no gain: the tail even falls
    assert tail.loc["VS", "holds"] == "no"
    assert tail.loc["VS", "verdict"] == "signal, opposite"
    assert tail.loc["LDAM+DRW", "holds"] == "open"
    assert tail.loc["LDAM+DRW", "verdict"] == "no signal, inconsistent"
    assert found["p_holm"].tolist() == inference.holm(found["p"].tolist())


def test_a_gain_that_does_not_survive_correction_stays_open():
    few = [1.0, 3.5, 0.2, 4.0, 2.8]  # p = .03 alone, .2 among eight
    tails = TAILS | {"VS+SAM": [v + d for v, d in zip(TAILS["VS"], few, strict=True)]}
    found = claims.judge(study(tails), claims.sam_comparisons(), CIFAR10)
    row = found[(found["base"] == "VS") & (found["group"] == "tail")].iloc[0]
    assert row["p"] < 0.05 < row["p_holm"]
    assert row["low"] > 0
    assert (row["holds"], row["verdict"]) == ("open", "no signal, inconsistent")


def test_a_gain_below_the_margin_is_no_gain_and_one_above_refutes_it():
    small = TAILS | {"CE+SAM": [t + 1 + 0.1 * i for i, t in enumerate(TAILS["CE"])]}
    large = TAILS | {"CE+SAM": [t + 8 + 0.1 * i for i, t in enumerate(TAILS["CE"])]}
    noisy = TAILS | {"CE+SAM": [40.0, 28.0, 41.0, 27.0, 36.0]}
    for tails, holds in ((small, "yes"), (large, "no"), (noisy, "open")):
        found = claims.judge(study(tails), claims.sam_comparisons())
        row = found[(found["base"] == "CE") & (found["group"] == "tail")].iloc[0]
        assert row["holds"] == holds


def test_only_common_seeds_are_paired_and_three_are_needed():
    runs = study({"CE": TAILS["CE"], "CE+SAM": TAILS["CE+SAM"]})
    one = (claims.Comparison("CE", "CE+SAM", "tail"),)
    some = [r for r in runs if r.experiment.seed != 4 or r.experiment.method == "CE"]
    assert claims.judge(some, one).loc[0, "seeds"] == (0, 1, 2, 3)
    few = [r for r in runs if r.experiment.seed < 2 or r.experiment.method == "CE"]
    with pytest.raises(UsageError, match="2 pairs"):
        claims.judge(few, one)
    with pytest.raises(UsageError, match="no runs of VS"):
        claims.judge(runs, (claims.Comparison("CE", "VS", "tail"),))


def test_the_control_is_tested_in_both_directions():
    tuned, tuned_sam = (exp.method for exp in studies.control(seeds=(0,)))
    tails = {
        "CE+DRW+SAM": TAILS["CE+DRW+SAM"],
        tuned: [t + 2 for t in TAILS["CE+DRW+SAM"]],
        tuned_sam: [t + 2.1 - 0.1 * i for i, t in enumerate(TAILS["CE+DRW+SAM"])],
    }
    found = claims.judge(study(tails), claims.control_comparisons())
    tail = found[found["group"] == "tail"].set_index("other")
    assert tail.loc[tuned, "verdict"] == "signal +"
    assert tail.loc[tuned, "difference"] == pytest.approx(2)
    assert tail.loc[tuned_sam, "holds"] == "open"


def test_claims_are_counted_and_told_with_their_intervals():
    found = claims.judge(study(TAILS), claims.sam_comparisons(), CIFAR10)
    counts = found["holds"].value_counts()
    verdict = claims.settled(found)
    assert verdict.code == "claims"
    assert (
        verdict.name
        == f"{counts['yes']} hold, {counts['no']} fail, {counts['open']} open"
    )
    row = found.query("base == 'CE+DRW' and group == 'tail'").iloc[0]
    told = f"(+9.1, {row['low']:+.1f} to {row['high']:+.1f})"
    assert f"CE+DRW+SAM above CE+DRW, tail {told}" in verdict.note
    shown = claims.sheet(found).loc["CE+DRW+SAM − CE+DRW, tail"]
    assert shown["ours"] == told[1:-1].replace(", ", " (") + ")"
    assert shown[["the paper", "holds"]].tolist() == ["+11.7", "yes"]
    holds, fails, opens = re.split("Fails: |Not settled: ", claims.tell(found))
    assert "CE+SAM no gain over CE, tail" in holds
    assert "VS+SAM above VS, tail" in fails
    assert "LDAM+DRW+SAM above LDAM+DRW, tail" in opens


def test_the_gap_between_groups_is_paired_by_run():
    ours = report.by_method(study({"CE": TAILS["CE"]}))
    found = claims.group_gap(ours, "CE")
    gaps = [90 - tail for tail in TAILS["CE"]]
    assert found.mean == pytest.approx(np.mean(gaps))
    assert found.p_zero() == pytest.approx(stats.ttest_1samp(gaps, 0).pvalue)


def test_the_baselines_are_compared_with_plain_cross_entropy():
    family = claims.loss_comparisons()
    assert {c.base for c in family} == {"CE"}
    assert [c.other for c in family[::2]] == ["CE+DRW", "LDAM+DRW", "VS"]


def test_order_counts_pairs_and_is_scipys_tau():
    ours = report.by_method(study(TAILS))
    found = claims.order(ours, CIFAR10)
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
    assert report.cost(study({"CE": TAILS["CE"]})) == "5 runs, median 1 s each, on cpu"


def test_a_class_table_names_groups_in_order():
    table = report.classes([30, 20, 10], ["a", "b", "c"])
    assert table.to_dict("list") == {
        "name": ["a", "b", "c"],
        "count": [30, 20, 10],
        "group": ["head", "mid", "tail"],
    }
