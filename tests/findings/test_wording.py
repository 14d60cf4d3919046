"""Numbers as readers see them."""

import pytest

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
