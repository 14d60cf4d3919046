"""Figures of chapter 3: they draw what the tables hold, and slimming loses no word."""

import re

import numpy as np
import pytest

from saddlebook.figures import style as svg
from saddlebook.figures import toys
from saddlebook.theory import landscapes


@pytest.fixture(scope="module")
def table():
    return landscapes.moments((0.5, 1.5, 3.0), draws=2_000)


@pytest.fixture(scope="module")
def picture(table):
    return svg.inline(toys.plot_factor({"same": table}).figure)


def test_factor_draws_measured_and_predicted(table):
    ax = toys.plot_factor({"same": table, "again": table})
    points = np.concatenate([np.column_stack(line.get_data()) for line in ax.lines])
    for x, y in table[["a", "measured"]].to_numpy():
        assert (np.isclose(points, (x, y)).all(axis=1)).sum() == 2
    for x, y in table[["a", "drift"]].to_numpy():
        assert (np.isclose(points, (x, y)).all(axis=1)).sum() == 2
    labels = ax.get_legend_handles_labels()[1]
    assert labels == ["second moment (1 − a)²", "mean step 1 − a", "same", "again"]
    assert f"{table['measured'].iloc[-1]:.2f} at 3" in ax.get_label()


def test_escape_maps_leave_blank_what_never_escapes():
    one = landscapes.escape_map(normalised=True, cells=12, steps=200)
    ax = toys.plot_escape_maps([one, one])
    (mesh,) = [c for c in ax.collections if c.get_array() is not None]
    shown = np.ma.filled(mesh.get_array(), np.nan)
    np.testing.assert_array_equal(np.isnan(shown), np.isinf(one.times))
    assert "stays for 200 steps" in ax.get_label()
    assert [line.get_xydata().T.tolist() for line in ax.lines] == [
        edge.tolist() for edge in one.edges
    ]


def test_the_portrait_counts_who_stays_at_the_saddle():
    left, right = toys.plot_portrait(0.3).figure.axes
    assert left.get_label().startswith("0 of 12")
    assert right.get_label().startswith("6 of 12")


def test_arrivals_draws_a_line_for_each_noise():
    table = landscapes.arrivals((0.0, 0.5), (0.0, 0.1), runs=5)
    ax = toys.plot_arrivals({"none": table})
    assert ax.get_legend_handles_labels()[1] == ["σ = 0", "σ = 0.1"]
    assert ax.lines[0].get_ydata().tolist() == [100, 0]
    assert ax.lines[3].get_xdata()[0] == pytest.approx(0.16, abs=0.001)


def test_slimming_keeps_words_description_and_references(picture):
    slim = svg.slim(picture)
    words = re.compile(r"<text[^>]*>([^<]*)</text>")
    assert words.findall(slim) == words.findall(picture)
    label = re.compile(r'aria-label="[^"]*"')
    assert label.findall(slim) == label.findall(picture)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', slim))
    assert used == set(re.findall(r' id="([^"]*)"', slim))
    assert len(slim) < 0.7 * len(picture)


def test_slimming_moves_nothing_by_a_tenth_of_a_pixel(picture):
    place = re.compile(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"')
    before = np.array(place.findall(picture), dtype=float)
    after = np.array(place.findall(svg.slim(picture)), dtype=float)
    assert len(before) > 5
    assert np.abs(before - after).max() < 0.1


def drawn(path: str) -> list[tuple[float, float]]:
    """Corners of a path of M, L, l and z, as SVG reads it."""
    found, pen, letter, numbers = [], (0.0, 0.0), "", []
    for token in re.findall(r"[MLlz]|-?(?:\d+\.?\d*|\.\d+)", path):
        if token.isalpha():
            letter = token
            continue
        numbers.append(float(token))
        if len(numbers) == 2:
            base = pen if letter == "l" else (0, 0)
            pen = (base[0] + numbers[0], base[1] + numbers[1])
            found.append(pen)
            numbers = []
    return found


def test_steps_of_tenths_end_where_the_path_ends():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(0, 300, (200, 2)), rng.uniform(0, 1, (50, 2))])
    words = [f"{'L' if i % 90 else 'M'} {x} {y} " for i, (x, y) in enumerate(points)]
    path = svg.relative("\n".join(words))
    assert np.abs(np.array(drawn(path)) - points).max() < 0.0501
    assert len(path) < 0.4 * len("".join(words))
    assert svg.relative("M 1 1 L 2 1 L 2 2 z M 5 5 L 10.5 4.5") == (
        "M1 1l1 0 0 1zM5 5l5.5-.5"
    )
