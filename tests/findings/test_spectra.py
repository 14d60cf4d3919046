"""Tables and claims of curvature: by hand, on made-up spectra with known answers."""

import itertools
import math

import numpy as np
import pytest
import torch
from records import record

from saddlebook import studies
from saddlebook.book import shipped
from saddlebook.curvature.spectrum import Spectrum
from saddlebook.experiment import at_scale
from saddlebook.findings import report
from saddlebook.findings import spectra as curvature
from saddlebook.findings import spectra_claims as curvature_claims
from saddlebook.findings import tables as curvature_tables
from saddlebook.findings.spectra_claims import Cell, Claim
from saddlebook.theory import oddities


def item(class_=8, epoch=150, mode="clean", low=-1.0, high=10.0, **changes):
    """A spectrum as records keep it; 40 nodes, the two ends converged."""
    far = math.sqrt(0.2 / abs(low))
    steps = np.linspace(-far, far, 11)
    return {
        "class": class_, "epoch": epoch, "mode": mode, "images": 69, "steps": 20,
        "size": 1000, "lambda_min": low, "lambda_max": high, "lambda_min_bound": 0.001,
        "lambda_max_bound": 0.001, "nonconvexity": abs(low / high),
        "nonconvexity_bound": 0.0002, "converged": [True, True], "loss": 0.5,
        "gradient_norm": 0.01, "gradient_along": 0.0, "rayleigh_clean": low,
        "rayleigh_fresh": low, "rayleigh_fresh_error": 0.01, "diagonal_share": 1.0,
        "trace": 20.0, "trace_error": 0.1, "trace_method": "exact", "products": 22,
        "symmetry": 1e-9, "line_steps": steps.tolist(),
        "line_losses": (0.5 + low * steps**2 / 2).tolist(),
        "nodes": [np.linspace(low, high, 40).tolist()], "weights": [[0.025] * 40],
        "residuals": [[0.0005, *[1.0] * 38, 0.0005]],
    } | changes  # fmt: skip


def run(optimizer, seed, *items):
    exps = {e.optimizer: e for e in studies.dynamics(seeds=(seed,))}
    exp = at_scale(exps[optimizer], "lite")
    groups = ("class_counts", "last_accuracy", "best_accuracy", "train_loss")
    counts = [1000, 716, 513, 368, 264, 189, 135, 97, 69, 50]
    numbers = [counts, [50.0] * 10, [50.0] * 10, [0.1] * 10]
    flat = {name: [50.0] for name in ("accuracy", "head", "mid", "tail")}
    return record(
        exp,
        curves={"epoch": [exp.epochs], "train_loss": [0.1], "lr": [0.1]} | flat,
        per_class=dict(zip(groups, numbers, strict=True)),
        best_epoch=exp.epochs,
        spectra=items,
    )


def released(low=-9.0, high=10.0, **changes):
    return item(
        mode="as_published", low=low, high=high, converged=[False, False],
        lambda_min_bound=9.0, lambda_max_bound=5.0, **changes
    )  # fmt: skip


def judged(pairs, claim=None):
    """Verdict on SGD's ratio exceeding SAM's in class 8, one pair of λmin a seed."""
    records = [
        run(optimizer, seed, item(low=-low))
        for seed, pair in enumerate(pairs)
        for optimizer, low in zip(("sgd", "sam"), pair, strict=True)
    ]
    claim = claim or Claim("x", Cell("CE+DRW", -2), Cell("CE+DRW+SAM", -2))
    return curvature_claims.judge(curvature.spectra(records), [claim]).iloc[0]


def test_a_row_knows_method_class_stage_and_what_it_was_measured_on():
    items = [item(), item(class_=0, epoch=120, mode="as_published_cut2")]
    table = curvature.spectra([run("sam", 3, *items)])
    first, second = table.to_dict("records")
    assert (first["method"], first["seed"], first["stage"]) == ("CE+DRW+SAM", 3, 200)
    assert (first["n"], first["data"], first["mode"]) == (69, "training", "clean")
    assert (second["stage"], second["data"]) == (160, "cut")
    assert (second["recurrence"], second["n"]) == ("as_published", 1000)


def test_an_unconverged_value_is_no_number_and_stands_as_such():
    loose = item(converged=[False, True], lambda_min_bound=0.5)
    table = curvature.spectra([run("sgd", 0, loose)])
    assert table["lambda_min"].isna().all()
    assert table["nonconvexity"].isna().all()
    assert table["lambda_max"].item() == 10
    shown = curvature_tables.sheet(table)
    assert shown["λmin"].item() == shown["|λmin/λmax|"].item() == "not converged"
    assert shown["λmax"].item() == "10 ± 0.001"
    assert "1 not converged" in curvature_tables.coverage(table)


def test_what_a_released_mode_reports_is_kept_and_marked():
    table = curvature.spectra([run("sgd", 0, released())])
    assert table["reported"].all()
    assert table["nonconvexity"].item() == pytest.approx(0.9)
    assert curvature_tables.sheet(table)["λmin"].item() == "[-9]"


def test_a_released_mode_that_converged_is_a_result():
    table = curvature.spectra([run("sgd", 0, item(mode="fixed_before"))])
    assert not table["reported"].any()
    assert curvature_tables.sheet(table)["λmin"].item() == "-1 ± 0.001"


def test_slope_and_fall_of_a_quadratic_are_those_of_its_parabola():
    table = curvature.spectra([run("sgd", 0, item(low=-5.0, gradient_norm=3.0))])
    # t = sqrt(2·0.1/5) = 0.2: gradient promises 0.6, the parabola falls by 0.1
    assert table["slope"].item() == pytest.approx(0.6)
    assert table["fall"].item() == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("saddle", {}),
        ("slope", {"gradient_norm": 5.0}),
        ("flat", {"line_losses": [0.6, *[0.5] * 9, 0.7]}),
        ("bowl", {"low": 0.5}),
        ("bowl", {"low": -0.0005}),
        ("not converged", {"converged": [False, True]}),
    ],
)
def test_a_negative_eigenvalue_alone_is_no_saddle(kind, changes):
    table = curvature.spectra([run("sgd", 0, item(**changes))])
    assert list(curvature_claims.kinds(table)) == [kind]
    assert curvature_claims.count(curvature_claims.kinds(table)) == f"1 {kind}"


def test_causes_need_all_four_corners_and_name_them():
    corners = [item(low=-0.2), item(mode="redrawn", low=-3.0), released()]
    corners += [item(mode="fixed_before", low=-0.3)]
    whole = curvature.causes(curvature.spectra([run("sgd", 0, *corners)]))
    assert whole.iloc[0, 3:].tolist() == pytest.approx([0.02, 0.03, 0.3, 0.9])
    assert list(whole.columns[3:]) == [
        "fixed, after", "fixed, before", "redrawn, after", "redrawn, before",
    ]  # fmt: skip
    assert curvature.causes(curvature.spectra([run("sgd", 0, *corners[1:])])).empty


def test_controls_name_whole_cut_and_held_out_classes_in_order():
    cut = item(class_=0, mode="clean_cut0") | {"images": 50}
    held = item(class_=8, mode="clean_held_out") | {"images": 1000}
    whole = item(class_=0) | {"images": 1000}
    table = curvature.spectra([run("sgd", 0, held, cut, whole, item())])
    names = curvature.controls(table, "CE+DRW")["name"].tolist()
    assert names == [
        "class 0, 1000", "class 0, 50 of 1,000", "class 8, 69",
        "class 8, 1000 held out",
    ]  # fmt: skip


def test_a_class_measured_in_part_is_named_so_and_held_out_images_are_not():
    part = item(class_=0) | {"images": 100}
    held = item(class_=0, mode="clean_held_out") | {"images": 100}
    table = curvature.spectra([run("sgd", 0, part, held)])
    names = curvature.controls(table, "CE+DRW")["name"].tolist()
    assert names == ["class 0, 100 of 1,000", "class 0, 100 held out"]


def test_distances_to_the_paper_count_points_measured_both_ways():
    printed = curvature.published_dynamics(report.paper("dynamics"))
    both = [item(), released(), item(class_=7)]
    gaps = curvature_tables.gaps(curvature.spectra([run("sgd", 0, *both)]), printed)
    assert gaps["points"].tolist() == [1, 1]  # class 8 at 0.99, once each way
    assert gaps["mean distance"].tolist() == ["0.09", "0.89"]


def test_five_seeds_of_one_sign_hold_and_four_do_not_count():
    assert judged([(2, 1)] * 5)["code"] == "holds"
    assert judged([(2, 1)] * 5)["p"] == pytest.approx(1 / 32)
    assert judged([(2, 1)] * 4)["code"] == "N"
    assert judged([(1, 2)] * 5)["code"] == "fails"
    assert judged([(2, 1)] * 4 + [(1, 2)])["code"] == "open"


def test_a_difference_within_the_bounds_counts_for_no_side():
    row = judged([(2, 1)] * 4 + [(1.003, 1)])  # ratios differ by .0003, bounds .0004
    assert (row["agree"], row["against"], row["code"]) == (4, 0, "open")


def test_a_claim_without_a_second_number_is_compared_with_zero():
    claim = Claim("x", Cell("CE+DRW", -2, value="rayleigh_clean"))
    row = judged([(2, 1)] * 5, claim)
    assert (row["n"], row["mean"], row["code"]) == (5, -2, "fails")


def test_seeds_pair_only_where_both_numbers_exist():
    records = [run("sgd", s, item(low=-2.0)) for s in (0, 1, 2)]
    records += [run("sam", 2, item())]
    claim = Claim("x", Cell("CE+DRW", -2), Cell("CE+DRW+SAM", -2))
    row = curvature_claims.judge(curvature.spectra(records), [claim]).iloc[0]
    assert (row["n"], row["values"]) == (1, (pytest.approx(0.1),))


def test_sam_is_pulled_where_its_radius_times_curvature_exceeds_the_gradient():
    found = run("sam", 0, item(low=-4.0, gradient_norm=1.0))
    rho = found.experiment.rho
    assert curvature.spectra([found])["pull"].item() == pytest.approx(4 * rho - 1)


def test_without_records_tables_say_so_and_claims_wait():
    table = curvature.spectra([])
    assert curvature_tables.sheet(table).iloc[0, 0] == curvature.NONE
    assert curvature_tables.coverage(table) == curvature_tables.spread(table, "steps")
    families = (
        curvature_claims.saddle_claims(),
        curvature_claims.schedule_claims(),
        curvature_claims.cause_claims(),
    )
    for family in families:
        empty = curvature_claims.judge(table, family)
        assert set(empty["code"]) == {"N"}
        assert (empty["n"] == 0).all()
        assert curvature_claims.settled(empty).code == "N"
        assert len(curvature_claims.sheet(empty)) == len(family)
    assert curvature.controls(table, "CE+DRW").empty
    assert curvature.causes(table).empty


def test_claims_read_cells_that_the_plan_measures():
    from saddlebook import measure

    exp = at_scale(studies.dynamics(seeds=(0,))[0], "lite")
    stage = curvature.stages(exp)
    known = {(stage[i["epoch"]], i["class"], i["mode"]) for i in measure.plan(exp)}
    claims = curvature_claims.saddle_claims() + curvature_claims.cause_claims()
    for claim in claims + curvature_claims.schedule_claims():
        for cell in claim[1:]:
            if cell:
                assert (cell.stage, cell.label % 10, cell.mode) in known, claim.name


def test_a_stored_spectrum_keeps_its_lines_and_mass():
    spectrum = Spectrum.from_dict(item())
    assert spectrum.lines.sum() == 0  # weight 25/n is no single eigenvalue's
    single = item(weights=[[0.001, *[0.998 / 38] * 38, 0.001]])
    assert Spectrum.from_dict(single).lines.sum() == 2
    grid = np.linspace(-5, 15, 4001)
    mass = np.trapezoid(Spectrum.from_dict(single).density(grid, 0.2), grid)
    assert mass == pytest.approx(1, abs=1e-6)


def test_several_runs_stand_as_mean_and_range():
    records = [run("sgd", s, item(low=-1.0 - s)) for s in range(3)]
    table = curvature.spectra(records)
    assert curvature_tables.text(table, "lambda_min") == "-2 (-3 to -1)"
    assert curvature.pick(table, label=-2)["label"].unique().tolist() == [8]


def test_ratios_stand_a_row_a_class_and_a_column_a_method_and_measurement():
    part = item(class_=0, low=-2.0) | {"images": 100}
    records = [run("sam", 0, item(low=-3.0)), run("sgd", 0, item(), part, released())]
    shown = curvature_tables.ratios(curvature.spectra(records))
    assert shown.index.tolist() == ["class 0, 100 of 1,000", "class 8, 69"]
    columns = ["CE+DRW, clean", "CE+DRW, as published", "CE+DRW+SAM, clean"]
    assert sorted(shown.columns) == sorted(columns)
    assert shown[columns].values.tolist() == [
        ["0.2 ± 0.0002", "–", "–"], ["0.1 ± 0.0002", "[0.9]", "0.3 ± 0.0002"],
    ]  # fmt: skip
    early = curvature.spectra([run("sgd", 0, item(epoch=120))])
    assert curvature_tables.ratios(early).iloc[0, 0] == curvature.NONE


def test_second_pass_of_sam_holds_more_than_half_of_the_statistics():
    assert oddities.second_pass_share(0.1) == pytest.approx(1 / 1.9, abs=1e-9)
    assert oddities.second_pass_share(1.0) == 1


def test_a_class_weight_cancels_on_one_class_only_in_the_weighted_mean():
    assert oddities.weight_on_one_class(40.0) == pytest.approx(1, abs=1e-12)
    assert oddities.weight_on_one_class(40.0, "plain") == pytest.approx(40, abs=1e-9)


def test_mean_weight_and_shares_are_those_worked_out_by_hand():
    # 2 and 1 images, β = 0.5: E = 1.5 and 1, weights 0.8 and 1.2, mean over images
    assert oddities.mean_weight([2, 1], 0.5) == pytest.approx(2.8 / 3)
    shares = oddities.class_shares([2, 1], 0.5)
    torch.testing.assert_close(shares, torch.tensor([4 / 7, 3 / 7]).double())


def test_bare_cosines_cannot_fit_below_their_floor():
    best = torch.full((1, 10), -1.0, dtype=torch.float64)
    best[0, 3] = 1
    loss = torch.nn.functional.cross_entropy(best, torch.tensor([3]))
    assert oddities.cosine_floor(10) == pytest.approx(float(loss))


def test_shipped_networks_are_small_whole_and_said_to_be_missing_elsewhere(tmp_path):
    from saddlebook import measure

    for optimizer, scale in itertools.product(("sgd", "sam"), ("lite", "full")):
        path = shipped.weights(optimizer, scale=scale)
        assert path.stat().st_size < 1e6
        model = measure.load_model(shipped.experiment(optimizer, scale), path)
        assert all(torch.isfinite(p).all() for p in model.parameters())
    assert "weights" in shipped.spectrum(9, results=tmp_path)
    assert "SADDLEBOOK_DATA" in shipped.spectrum(9, root=str(tmp_path))
