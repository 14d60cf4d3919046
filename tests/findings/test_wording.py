"""Numbers as readers see them."""

import numpy as np
import pytest

from saddlebook.findings import verdicts
from saddlebook.findings.claims import typeset


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("+6.8e+02", "+680"),
        ("-3.1e-03 ± 1e-04", "−0.0031 ± 0.0001"),
        ("1.7e-09", "1.7·10⁻⁹"),
        ("-0.000", "0.000"),
        ("(-1.2 to -.5)", "(−1.2 to −.5)"),
        ("2026-11-25, CE-1, 1e-6-like", "2026-11-25, CE-1, 1e-6-like"),
    ],
)
def test_numbers_are_typeset(raw: str, shown: str) -> None:
    assert typeset(raw) == shown


@pytest.mark.parametrize(
    ("counts", "told"),
    [([1], "1 run"), ([2, 2], "2 runs"), ([1, 3, 2], "1 to 3 runs"), ([], "0 runs")],
)
def test_numbers_of_runs_are_told_in_words(counts: list[int], told: str) -> None:
    assert verdicts.in_runs(counts) == told
    assert verdicts.in_runs([np.int64(count) for count in counts]) == told
