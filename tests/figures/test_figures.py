"""Figures: they show what the table holds, readable in light, in dark and in words."""

import itertools
import math
import re
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from test_report import TAILS, study

from saddlebook import figures
from saddlebook.figures import style as svg
from saddlebook.findings import claims, hypotheses, report

LIGHT, DARK = "#ffffff", "#14181e"  # pages of pydata-sphinx-theme 0.15
PAPER = report.paper("table1", "cifar10")


@pytest.fixture(scope="module")
def runs():
    return study(TAILS)


@pytest.fixture(scope="module")
def cells(runs):
    return report.cells(report.by_method(runs), PAPER)


def drawn(ax):
    """Every point of every line and marker, [P, 2]."""
    return np.concatenate([np.column_stack(line.get_data()) for line in ax.lines])


def linear(colour):
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """WCAG 2 contrast ratio."""
    light = sorted(linear(c) @ [0.2126, 0.7152, 0.0722] + 0.05 for c in (one, other))
    return light[1] / light[0]


@pytest.mark.parametrize("colour", [*svg.COLOURS, svg.INK])
def test_colours_stand_out_on_light_and_dark_pages(colour):
    assert contrast(colour, LIGHT) >= 3
    assert contrast(colour, DARK) >= 3


# Machado, Oliveira & Fernandes 2009, full severity
@pytest.mark.parametrize(
    "matrix",
    [
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
         [-0.01182, 0.04294, 0.968881]],
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
         [-0.003882, -0.048116, 1.051998]],
    ],
    ids=["deuteranopia", "protanopia"],
)  # fmt: skip
def test_groups_differ_for_colour_blind_readers(matrix):
    seen = [np.array(matrix) @ linear(c) for c in (svg.BLUE, svg.TEAL, svg.ORANGE)]
    for one, other in itertools.combinations(seen, 2):
        assert np.abs(one - other).max() > 0.1


def test_class_counts_draws_one_bar_a_class(runs):
    classes = report.per_class(runs).drop_duplicates("label")
    ax = figures.plot_class_counts(classes)
    assert [bar.get_height() for bar in ax.patches] == classes["count"].tolist()
    assert [t.get_text() for t in ax.get_xticklabels()] == classes["name"].tolist()
    assert ax.get_yscale() == "log"
    assert ax.get_legend_handles_labels()[1] == ["head", "mid", "tail"]
    assert "from 1000 to 50" in ax.get_label()


def test_curves_draws_the_table_and_names_lines_and_axes():
    table = pd.DataFrame(
        {"n": [1, 10, 1, 10], "w": [1, 2, 3, 4], "β": [0.9] * 2 + [0.5] * 2}
    )
    ax = figures.plot_curves(table, "n", "w", "β", log="x")
    assert [line.get_label() for line in ax.lines] == ["0.9", "0.5"]
    assert ax.lines[1].get_ydata().tolist() == [3, 4]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("n", "w")
    assert ax.get_legend().get_title().get_text() == "β"


def test_class_accuracy_shows_every_run_of_every_class_and_the_means(runs):
    classes = report.per_class(runs)
    ax = figures.plot_class_accuracy(classes, ["CE+DRW", "CE+DRW+SAM"])
    part = classes[classes["method"].isin(["CE+DRW", "CE+DRW+SAM"])]
    assert len(drawn(ax)) == len(part) + 2 * 10
    sam = ax.lines[3]
    assert sam.get_label() == "CE+DRW+SAM"
    assert sam.get_ydata()[-1] == pytest.approx(np.mean(TAILS["CE+DRW+SAM"]))
    assert [t.get_text() for t in ax.get_xticklabels()][9] == "truck\n50"


def test_training_shows_every_run_and_their_mean(runs):
    table = report.through_training(runs)
    ax = figures.plot_through_training(table, ["CE+DRW", "CE+DRW+SAM"], "tail")
    assert len(ax.lines) == 2 * (5 + 1) + 1  # and where re-weighting starts
    ends = [line.get_ydata()[-1] for line in ax.lines]
    assert np.isclose(ends, np.mean(TAILS["CE+DRW"])).sum() == 1
    assert ax.lines[-1].get_xdata()[0] == 120
    assert ax.get_ylabel() == "tail test accuracy (%)"


def test_panels_share_a_scale_and_one_legend(runs):
    table = report.through_training(runs)
    row = figures.panels(2)
    for ax, base in zip(row, ("CE", "VS"), strict=True):
        methods = [base, f"{base}+SAM"]
        figures.plot_through_training(table, methods, names=("SGD", "SAM"), ax=ax)
    assert row[0].get_ylim() == row[1].get_ylim()
    assert [ax.get_legend() is not None for ax in row] == [True, False]
    assert (row[0].get_ylabel() != "", row[1].get_ylabel()) == (True, "")


def test_methods_shows_ours_and_the_papers_in_one_row_each(cells):
    ax = figures.plot_methods(cells)
    assert [t.get_text() for t in ax.get_yticklabels()] == list(TAILS)
    means = [np.mean(values) for values in TAILS.values()]
    points = drawn(ax)
    for values, mean, printed in zip(
        TAILS.values(), means, PAPER.query("group == 'tail'")["mean"], strict=True
    ):
        for value in (*values, mean, printed):
            assert np.isclose(points[:, 0], value).any()
    assert ax.get_legend_handles_labels()[1] == ["ours", "the paper"]
    assert "CE+DRW 45.9, paper 61.4" in ax.get_label()


def test_effects_show_every_pair_the_interval_and_none(runs):
    judged = claims.judge(hypotheses.main_table(), runs).iloc[:8]
    ax = figures.plot_effects(judged)
    points = drawn(ax)[:, 0]
    row = judged.set_index("claim").loc["CE+DRW+SAM − CE+DRW, tail"]
    for value in (*row["values"], row["difference"], row["paper"], 0):
        assert np.isclose(points, value).any()
    ends = np.concatenate(
        [c.get_segments() for c in ax.collections if hasattr(c, "get_segments")]
    )
    assert np.isclose(ends[:, :, 0], row["low"]).any()
    assert np.isclose(ends[:, :, 0], row["high"]).any()
    assert ax.yaxis_inverted()


def test_the_svg_is_wellformed_named_and_follows_the_page(cells):
    ax = figures.plot_methods(cells)
    text = svg.inline(ax.figure)
    root = ElementTree.fromstring(text)
    assert root.get("role") == "img"
    assert "CE+DRW+SAM 55.0, paper 73.1" in root.get("aria-label")
    assert "currentColor" in text
    assert svg.INK not in text
    assert "#000000" not in text
    assert "<style" not in text
    words = {e.text for e in root.iter("{http://www.w3.org/2000/svg}text")}
    assert "tail test accuracy (%)" in words
    assert not re.search(r'(href|src)="(?!#)', text)


def test_the_same_figure_is_the_same_text_and_two_share_no_id(cells):
    one, again, other = (
        svg.inline(figures.plot_methods(cells, group).figure)
        for group in ("tail", "tail", "overall")
    )
    assert one == again
    ids = [set(re.findall(r'id="([^"]+)"', text)) for text in (one, other)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for text in (one, other):
        known = set(re.findall(r'id="([^"]+)"', text))
        used = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text)
        assert {name for pair in used for name in pair if name} <= known


def test_drawing_leaves_the_readers_settings_alone(cells):
    with mpl.rc_context():
        mpl.rcdefaults()
        before = dict(mpl.rcParams)
        svg.inline(figures.plot_methods(cells).figure)
        assert dict(mpl.rcParams) == before


@pytest.fixture
def shell():
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


@pytest.mark.usefixtures("shell")
def test_a_shown_figure_has_its_caption_and_is_told_in_words(cells):
    with capture_output() as caught:
        figures.show(figures.plot_methods(cells), "Tail accuracy < 80 %; seeds 0 to 4.")
    (output,) = caught.outputs
    assert "Tail accuracy &lt; 80 %" in output.data["text/html"]
    assert "CE+DRW 45.9" in output.data["text/plain"]
    assert "saddlebook" in output.metadata


def test_descriptions_hold_no_missing_number(cells):
    assert "nan" not in svg.describe(figures.plot_methods(cells).figure)
    assert all(math.isfinite(v) for v in drawn(figures.plot_methods(cells)).ravel())


def test_the_data_below_a_figure_names_series_and_places_and_no_helper_lines():
    first = pd.DataFrame({"x": [1, 2, 2], "y": [3.0, 4.0, 6.0], "kind": "a"})
    ax = figures.sweeps.plot_curve(first, "x", "y", "kind")
    ax.axvline(1.5)
    rows = svg.csv(ax.figure).splitlines()[1:]
    assert rows == ["1,a,1,3", "1,a,2,4", "1,a,2,6", "1,a,1,3", "1,a,2,5"]
    ax.set_xticks([0, 2], ["10", "100"])
    ax.set_xticks([1], ["50"], minor=True)
    assert svg.csv(ax.figure).splitlines()[1:3] == ["1,a,50,3", "1,a,100,4"]
