"""The README's table of findings says what the records say."""

import re
from pathlib import Path

import pytest

from saddlebook import studies
from saddlebook.book import Page, gather
from saddlebook.errors import UsageError
from saddlebook.findings import inference, readme, report
from saddlebook.findings.readme import Finding
from saddlebook.store import Store

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found():
    return readme.findings(results=ROOT / "results")


def test_the_readme_holds_the_table_that_the_records_give(found):
    text = (ROOT / "README.md").read_text()
    assert readme.inserted(text, found) == text, (
        "run: python -m saddlebook.findings.readme"
    )


def test_every_claim_has_one_line_and_one_verdict(found):
    told = [row.claim for row in found]
    assert len(told) == len(set(told))
    for name in ("(i)", "(ii)", "(iii)", "(iv)", "(v)", "(vi)"):
        assert sum(claim.startswith(f"{name} ") for claim in told) == 1
    assert all(row.here for row in found)
    words = {row.verdict.split(":")[0] for row in found}
    assert words <= {*inference.WORDS, ""}


def test_the_numbers_are_those_of_the_records(found):
    runs = Store(ROOT / "results/lite").records(studies.named("table1", "lite"))
    tail = {(r.experiment.method, r.experiment.seed): r.accuracy.tail for r in runs}
    gains = [
        tail["CE+DRW+SAM", seed] - tail["CE+DRW", seed] for seed in (0, 1, 2, 3, 4)
    ]
    (row,) = (row for row in found if row.claim.startswith("CE+DRW+SAM is above"))
    assert row.here.startswith(f"{sum(gains) / 5:+.1f} ")
    assert row.paper == "+11.7"


def test_runs_at_full_scale_stand_beside_the_papers_numbers(found):
    runs = report.once(Store(ROOT / "results/full").records())
    sgd = [r.accuracy.tail for r in runs if r.experiment.method == "CE+DRW"]
    (row,) = (r for r in found if r.claim.startswith("Full scale, CE+DRW: overall"))
    assert row.paper == "75.5 and 61.4"
    assert f" {sum(sgd) / len(sgd):.1f}" in row.here
    assert row.here.endswith(f"{len(sgd)} run{'s' * (len(sgd) > 1)}")


def test_a_page_and_the_readme_give_one_verdict_on_every_claim():
    page = Page("intro", results=str(ROOT / "results"))
    for family in readme.FAMILIES:
        here = gather.verdicts(page, family())
        there = readme.judged(family(), results=ROOT / "results")
        columns = ["claim", "word", "reason", "here", "registered"]
        assert here[columns].equals(there[columns])


OTHER_WORDS = (
    r"\b(refuted|not settled|no signal|sign test|[Hh]olds\*|[Ff]ails\*)\b"
    r"|inference\.(paired|holm|welch|equivalence)|\.p_zero"
)


@pytest.mark.parametrize("path", sorted((ROOT / "book").glob("*.py")), ids=str)
def test_pages_quote_verdicts_and_judge_nothing_themselves(path):
    assert re.findall(OTHER_WORDS, path.read_text()) == []


def test_only_what_stands_between_the_marks_is_replaced():
    text = "a\n<!-- found -->\nold\n<!-- /found -->\nb\n"
    new = readme.inserted(text, [Finding("c", "1", "2", "supported")])
    assert new.startswith("a\n<!-- found -->\n| claim |")
    assert new.endswith("| c | 1 | 2 | supported |\n<!-- /found -->\nb\n")
    assert readme.inserted(new, [Finding("c", "1", "2", "supported")]) == new


def test_a_readme_without_marks_is_refused():
    with pytest.raises(UsageError, match="to write between"):
        readme.inserted("nothing here", [])
