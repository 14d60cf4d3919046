"""Figures of curvature draw what the tables hold, and say what is missing."""

import numpy as np
import pytest
from test_spectra import item, released, run

from saddlebook.figures import spectra
from saddlebook.figures import style as svg
from saddlebook.findings import report, tables

PRINTED = tables.published_dynamics(report.paper("dynamics"))


@pytest.fixture(scope="module")
def table():
    """Two seeds of SGD, one of SAM: class 8 through training, the corners, a cut."""
    many = [item(epoch=e, low=-3.0) for e in (8, 120)]
    corners = [item(mode="redrawn", low=-3.0), item(mode="fixed_before")]
    cut = [item(class_=0, mode="clean_cut0") | {"images": 50}]
    sgd = [run("sgd", s, *many, item(), released(), *corners, *cut) for s in (0, 1)]
    return tables.spectra_table([*sgd, run("sam", 0, *many, item(low=-0.5))])


def described(ax):
    return svg.describe(ax.figure)


def test_dynamics_draws_every_run_at_its_stage_beside_the_paper(table):
    ax = spectra.plot_dynamics(table, PRINTED, "CE+DRW", (8,))
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines["the paper"].get_xdata()) == list(range(7))
    assert list(lines["fixed"].get_xdata()) == [0, 3, 6]
    np.testing.assert_allclose(lines["fixed"].get_ydata(), [0.3, 0.3, 0.1])
    np.testing.assert_allclose(lines["as published"].get_ydata(), [0.9])
    points = [line for line in ax.lines if line.get_linestyle() == "None"]
    assert sorted(len(line.get_xdata()) for line in points) == [2, 6]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["8", "100", "170", "150"]


def test_the_line_is_drawn_against_what_curvature_promises(table):
    ax = spectra.plot_along_vector(table, "CE+DRW", (-2,))
    promised, *runs = ax.lines
    assert min(promised.get_ydata()) == pytest.approx(-0.1)
    assert len(runs) == 4  # two runs, two ways to measure
    for line in runs:
        np.testing.assert_allclose(line.get_ydata()[[0, -1]], -0.1, rtol=1e-3)


def test_causes_shows_mean_and_range_in_the_right_corner(table):
    ax = spectra.plot_causes(tables.causes(table), labels=(8,))
    texts = {t.get_position(): t.get_text() for t in ax.texts}
    assert texts[1, 1].startswith("0.9")
    assert texts[0, 0].startswith("0.1")
    assert texts[0, 1].startswith("0.3")


def test_controls_puts_each_measurement_in_its_row(table):
    ax = spectra.plot_controls(tables.controls(table, "CE+DRW"))
    names = [t.get_text() for t in ax.get_yticklabels()]
    assert names == ["class 0, 50 of 1,000", "class 8, 69"]
    fixed = next(line for line in ax.lines if line.get_label() == "fixed")
    assert sorted(fixed.get_ydata()) == [0, 0, 1, 1]


def test_through_training_draws_absolute_values_of_both_methods(table):
    ax = spectra.plot_spectra_through_training(table, "lambda_min", "|λmin|", (8,))
    lines = {line.get_label(): list(line.get_ydata()) for line in ax.lines}
    assert lines["CE+DRW"] == pytest.approx([3, 3, 1])
    assert lines["CE+DRW+SAM"] == pytest.approx([3, 3, 0.5])


def test_a_density_has_the_mass_of_its_nodes_and_stems_for_single_eigenvalues():
    single = item(weights=[[0.001, *[0.998 / 38] * 38, 0.001]])
    table = tables.spectra_table([run("sgd", 0, single)])
    ax = spectra.plot_density(table, 0.001)
    (line,), (stems,) = ax.lines, ax.collections
    places = spectra.coordinate(line.get_xdata(), 0.001)
    mass = np.trapezoid(line.get_ydata(), places)
    assert mass == pytest.approx(0.998, abs=2e-3)
    ends = [segment[:, 0].mean() for segment in stems.get_segments()]
    assert ends == pytest.approx([-1, 10])
    assert ax.get_xscale() == "symlog"


def test_the_axis_turns_linear_at_the_widest_bound_of_a_fixed_measurement(table):
    part = table[table["mode"].isin(["clean", "as_published"])]
    assert spectra.threshold(part) == 0.001
    assert spectra.threshold(part[part["reported"]]) == 0.01


def test_the_coordinate_is_linear_near_zero_and_logarithmic_beyond():
    found = spectra.coordinate(np.array([-1.0, 0, 0.05, 0.1, 10]), 0.1)
    np.testing.assert_allclose(found, [-2, 0, 0.5, 1, 3])


def test_every_figure_of_nothing_says_so():
    none = tables.spectra_table([])
    figures = [
        spectra.plot_causes(tables.causes(none)),
        spectra.plot_controls(tables.controls(none, "CE+DRW")),
        spectra.plot_spectra(none),
        spectra.plot_along_vector(none, "CE+DRW"),
        spectra.plot_dynamics(none, PRINTED, "CE+DRW"),
    ]
    for ax in figures:
        assert tables.NONE in described(ax)
        assert svg.inline(ax.figure).startswith("<svg")
    assert "0 points" in described(
        spectra.plot_spectra_through_training(none, "lambda_max", "λmax")
    )


def test_every_figure_of_records_draws_and_is_described(table):
    figures = [
        spectra.plot_dynamics(table, PRINTED, "CE+DRW+SAM"),
        spectra.plot_along_vector(table, "CE+DRW"),
        spectra.plot_spectra(table, (-2,)),
        spectra.plot_spectra(table, (-2,), "as_published"),
    ]
    for ax in figures:
        assert svg.inline(ax.figure).startswith("<svg")
        assert len(described(ax)) > 20
