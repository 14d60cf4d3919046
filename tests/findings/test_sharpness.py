"""The edge and the outliers: made-up measurements with known answers."""

import math
import random

import pytest
from records import record

from saddlebook import studies
from saddlebook.figures import style, sweeps
from saddlebook.findings import claims, sharpness, tables
from saddlebook.measure import spectra_plan
from saddlebook.scales import at_scale

NORM, FIFTY = 0.8, [50.0] * 10


def edge(item_lr, rho):
    """Positive root of (ρ/‖g‖)λ² + λ = 3.8/η."""
    a, c = rho / NORM, 3.8 / item_lr
    return c if a == 0 else (-1 + math.sqrt(1 + 4 * a * c)) / (2 * a)


def measured(exp, above=0.0, tail=(20.0, 30.0, 40.0), sam=0.0):
    """A run whose λmax lies ``above`` doublings over its edge; shares in percent."""
    noise, items = random.Random(exp.key), []
    shares = dict(zip(("outliers", "outliers_reweighted", "after"), tail, strict=True))
    for item in spectra_plan(exp):
        lr = 0.1 * (1e-2 if item["epoch"] > exp.drw_epoch else 1)
        high = edge(lr, exp.rho) * 2 ** (above + noise.gauss(0, 0.02))
        found = {"class": None, "epoch": item["epoch"], "mode": item["mode"]}
        found |= {"lr": lr, "rho": exp.rho, "lambda_max": high}
        if item["mode"] == "total":
            found |= {"batch_gradient_norm": NORM}
        else:
            late = item["epoch"] == exp.epochs
            share = shares["after" if late else item["mode"]] + sam * (exp.rho > 0)
            found |= {"shares": [0.9] * 7 + [share / 100 + noise.gauss(0, 0.01)] * 3}
        items.append(found)
    return record(exp, FIFTY, FIFTY, epochs=[exp.epochs], spectra=items)


def world(above=lambda exp: 0.0, **how):
    runs = [at_scale(exp, "lite") for exp in studies.edge()]
    return [measured(exp, above(exp), **how) for exp in runs]


def words(records):
    families = (sharpness.edge_family(), sharpness.outlier_family())
    parts = [claims.judge(family, records) for family in families]
    return {row["claim"]: row["word"] for part in parts for _, row in part.iterrows()}


YES, NO, OPEN = "supported", "contradicted", "undecided"


def test_a_world_at_its_edges_supports_all():
    found = words(world(sam=5.0))
    assert set(found.values()) == {YES}
    assert sorted(found) == ["b1", "b2", "b3", "b4", "e1", "e2", "e3", "e4"]


def test_a_common_factor_refutes_the_edges_but_not_the_fall():
    found = words(world(lambda exp: -1.0))
    assert (found["b1"], found["b2"], found["b3"], found["b4"]) == (NO, NO, YES, YES)


def test_one_sharpness_at_all_radii_refutes_the_fall():
    found = words(world(lambda exp: math.log2(38 / edge(0.1, exp.rho))))
    assert (found["b1"], found["b2"], found["b3"], found["b4"]) == (YES, NO, NO, NO)


def test_shares_that_do_not_move_are_open_and_that_fall_refute():
    still = words(world(tail=(30.0, 30.0, 30.0)))
    assert {still[name] for name in ("e1", "e2", "e3", "e4")} == {OPEN}
    falls = words(world(tail=(30.0, 20.0, 10.0), sam=-5.0))
    assert {falls[name] for name in ("e1", "e2", "e3", "e4")} == {NO}


def test_without_all_seeds_nothing_is_judged():
    found = words([r for r in world() if r.experiment.seed != 9])
    assert set(found.values()) == {OPEN}


def test_runs_settle_in_the_second_half_of_the_epochs_before_the_switch():
    (run,) = [r for r in world() if r.experiment.rho == 0][:1]
    table = sharpness.edge_table([run])
    assert table[table["settled"]]["epoch"].tolist() == [60, 75, 90, 105, 120]
    assert table["edge"].tolist() == pytest.approx([38.0] * 9 + [3800.0] * 3)


@pytest.mark.parametrize("records", [[], world()[:14]])
def test_figures_draw_what_is_there(records):
    drawn = sweeps.plot_edges(sharpness.edge_table(records))
    shares = sweeps.plot_shares(sharpness.share_table(records))
    for axes, panels in ((drawn, 4), (shares, 2)):
        figure = style.figure_of(axes)
        assert len(figure.axes) == panels
        told = style.describe(figure)
        if not records:
            assert tables.NONE in told or "not run yet" in told
        style.inline(figure)
