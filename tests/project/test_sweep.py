"""A sample of ``make faults``: bad inputs, a few bytes changed, a few kills."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks/faults"))
import damage
import fuzz
import hurdles
import inputs
import kills
import torch


def test_every_bad_input_is_one_line_and_its_exit_code():
    made = [(what, make()) for what, make in inputs.inputs(50)]
    assert {what: row["lost_at"] for what, row in made if row["lost_at"]} == {}
    assert sum(row["tried"] for _, row in made if "random" not in _) >= 120


def test_a_reader_that_runs_code_would_be_caught(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pth"
    torch.save({"w": inputs._Code()}, path)
    assert not fuzz.refused_or_read(lambda: exec("1"))
    assert not fuzz.refused_or_read(lambda: torch.load(path, weights_only=False))


@pytest.mark.parametrize("what", damage.KINDS)
def test_a_byte_changed_anywhere_is_named_or_means_the_same(what, recwarn):
    row = damage.damaged(what, 4, 1)
    assert (row["tried"], row["survived"]) == (8, 8)


def test_a_killed_command_ends_with_the_records_of_one_that_was_not():
    row = kills.killed("training, SAM", 2, 1)
    assert row["tried"] == row["survived"] == 2


def test_epochs_that_a_checkpoint_should_have_held_are_counted(tmp_path):
    log = tmp_path / "x.epochs"
    log.write_text("a 1 1.0\na 2 1.05\na 3 2.9\na 4 2.95\na 1 4.0\na 4 4.1\n")
    assert kills._lost(log, [3.0]) == (2, 0)
    log.write_text("a 1 1.0\na 2 1.5\na 3 2.0\na 4 2.5\na 1 4.0\n")
    assert kills._lost(log, [3.0]) == (1, 1)


def test_a_write_that_fails_is_named_and_the_command_goes_on():
    assert hurdles.write_fails("ENOSPC", 3)
