"""The README's table of findings says what the records say."""

from pathlib import Path

import pytest

from saddlebook.errors import UsageError
from saddlebook.findings import readme as findings
from saddlebook.findings.readme import Finding

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found():
    return findings.findings(results=ROOT / "results")


def test_the_readme_holds_the_table_that_the_records_give(found):
    text = (ROOT / "README.md").read_text()
    assert findings.inserted(text, found) == text, (
        "run: python -m saddlebook.findings.readme"
    )


def test_every_registered_claim_has_a_line_whatever_became_of_it(found):
    told = [row.claim for row in found]
    assert len(told) == len(set(told))
    for name in ("(i)", "(ii)", "(iii)", "(iv)", "(v)"):
        assert sum(claim.startswith(f"{name} ") for claim in told) == 1
    assert sum(claim.startswith("Tail accuracy") for claim in told) == 4
    assert all(row.verdict and row.here for row in found)


def test_the_numbers_are_those_of_the_records(found):
    runs = findings.present(["table1"], results=ROOT / "results")["table1"]
    tail = {(r.experiment.method, r.experiment.seed): r.accuracy.tail for r in runs}
    gains = [
        tail["CE+DRW+SAM", seed] - tail["CE+DRW", seed] for seed in (0, 1, 2, 3, 4)
    ]
    (row,) = (row for row in found if row.claim.endswith("CE+DRW+SAM − CE+DRW"))
    assert row.here.startswith(f"{sum(gains) / 5:+.1f} ")
    assert row.paper == "+11.7 points"


def test_runs_at_full_scale_stand_beside_the_papers_numbers(found):
    runs = findings.present(["table1"], "full", ROOT / "results")["table1"]
    sgd = [r.accuracy.tail for r in runs if r.experiment.method == "CE+DRW"]
    (row,) = (r for r in found if r.claim == "Full scale, CE+DRW: tail accuracy")
    assert row.paper == "61.4"
    assert row.here.startswith(f"{sum(sgd) / len(sgd):.1f}, {len(sgd)} run")


def test_only_what_stands_between_the_marks_is_replaced():
    text = "a\n<!-- found -->\nold\n<!-- /found -->\nb\n"
    new = findings.inserted(text, [Finding("c", "1", "2", "holds")])
    assert new.startswith("a\n<!-- found -->\n| claim |")
    assert new.endswith("| c | 1 | 2 | holds |\n<!-- /found -->\nb\n")
    assert findings.inserted(new, [Finding("c", "1", "2", "holds")]) == new


def test_a_readme_without_marks_is_refused():
    with pytest.raises(UsageError, match="to write between"):
        findings.inserted("nothing here", [])
