"""A sample of ``make faults``: every bad input, a few bytes changed, a few kills."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import faults


def test_every_bad_input_is_one_line_and_its_exit_code():
    rows = list(faults.inputs())
    assert [row["lost_at"] for row in rows] == [[], [], []]
    assert sum(row["tried"] for row in rows) >= 120


def test_a_byte_changed_anywhere_is_named_or_means_the_same(recwarn):
    assert [r["what"] for r in faults.damage(5, 1) if r["survived"] < r["tried"]] == []


def test_a_killed_command_ends_with_the_records_of_one_that_was_not():
    words = (*faults._RUN, "curvature", *faults._QUICK, "--only", "CE+DRW")
    row = faults._killed("measuring", words, 2, faults.random.Random(1))
    assert (row["tried"], row["torn"], row["wrong"]) == (2, 0, 0)
