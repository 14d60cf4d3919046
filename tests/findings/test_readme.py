"""The README, the first page and the table of findings say what the records say."""

import html
import itertools
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from records import grouped, record

from saddlebook import studies
from saddlebook.book import Page, gather, sheets
from saddlebook.disk.files import load_json
from saddlebook.errors import UsageError
from saddlebook.figures import plot_cards, style
from saddlebook.findings import claims, hypotheses, readme, report, verdicts
from saddlebook.store import Store

ROOT = Path(__file__).parents[2]
RUN = "run: make front"


@pytest.fixture(scope="module")
def found():
    return readme.findings(results=ROOT / "results")


@pytest.fixture(scope="module")
def cards():
    return readme.cards(results=ROOT / "results")


def test_the_table_of_findings_is_what_the_records_give(found):
    text = (ROOT / "results/findings.md").read_text()
    assert readme.every_finding(found) == text, RUN
    assert "(results/findings.md)" in (ROOT / "README.md").read_text()


def main_table():
    found = Store(ROOT / "results/full").records()
    return [r for r in found if hypotheses.of_main_table(r.experiment)]


def words(picture: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)|<dc:description>(.*?)</dc", picture)


def test_readme_and_first_page_say_one_thing_in_one_picture(cards):
    text = (ROOT / "README.md").read_text()
    assert sheets.inserted(text, sheets.first_screen(cards)) == text, RUN
    picture = (ROOT / "book/_static/page-one.svg").read_text()
    drawn = style.standalone(style.figure_of(plot_cards(cards))).decode()
    assert words(drawn) == words(picture), RUN
    for card in cards:
        shown = html.unescape(sheets.card(card))
        for part in (card.question, card.answer, card.sure, card.verdict):
            assert claims.typeset(part) in shown
            assert part in text
        for row in card.numbers()[1:]:
            assert f"| {' | '.join(row)} |" in text
            assert all(f">{cell}<" in shown for cell in row)


def test_names_in_a_picture_of_the_first_page_do_not_overlap(cards):
    for card in cards:
        figure = style.figure_of(plot_cards([card]))
        figure.canvas.draw()
        boxes = [text.get_window_extent() for text in figure.axes[0].get_yticklabels()]
        for above, below in itertools.pairwise(boxes):
            assert above.y0 >= below.y1


def test_the_first_page_opens_with_the_three_answers(cards):
    assert [card.word in verdicts.WORDS for card in cards] == [True] * 3
    text = (ROOT / "book/intro.py").read_text()
    first = text.index("page.cards(cards)")
    assert "cards = readme.cards(page.scale, page.results)" in text[:first]
    assert first < text.index("## ")


def test_a_card_says_the_gain_that_the_records_give(cards):
    runs = report.once(main_table())
    tail = {(r.experiment.method, r.experiment.seed): r.accuracy.tail for r in runs}
    sides = [
        [value for (name, _), value in tail.items() if name == method]
        for method in ("CE+DRW+SAM", "CE+DRW")
    ]
    gain = sum(sides[0]) / len(sides[0]) - sum(sides[1]) / len(sides[1])
    assert cards[0].rows[1].full.mean == pytest.approx(gain)
    assert cards[0].rows[1].full.runs == min(map(len, sides))
    assert cards[0].rows[1].paper == 11.7


def full_of(tmp_path, *experiments):
    """The committed records, and a made-up one of each experiment that lacks one."""
    results = tmp_path / "results"
    shutil.copytree(ROOT / "results", results)
    store = Store(results / "full")
    for exp in store.missing([e for e in experiments if e.scale == "full"]):
        store.add(record(exp, [50.0] * exp.num_classes, [50.0] * exp.num_classes))
    return results


def test_the_runs_of_all_studies_leave_the_main_table_its_own(tmp_path, found):
    """What ``make full`` fills ``results/full`` with: radii, data sets, precisions."""
    others = [e for name in studies.STUDIES for e in studies.named(name, "full")]
    others = [e for e in others if not hypotheses.of_main_table(e)]
    results = full_of(tmp_path, *others)
    assert len(Store(results / "full").records()) > 200
    assert [f for f in readme.findings(results=results) if "Full scale" in f.claim] == [
        f for f in found if "Full scale" in f.claim
    ]
    page = Page("intro", results=str(results))
    runs = report.once(gather.every(page, "full"))
    cells = report.cells(report.by_method(runs), report.paper("table1", "cifar10"))
    assert set(cells["method"]) <= set(hypotheses.settings())


def test_a_page_shows_runs_of_one_scale_even_where_one_study_is_complete(tmp_path):
    page = Page("ch07_table", results=str(full_of(tmp_path, *studies.table1())))
    runs = page.records("table1", "control")
    assert {r.experiment.scale for r in runs} == {"lite"}


def test_the_mean_of_a_card_lies_in_its_interval():
    known = hypotheses.settings()
    tails = {"CE+DRW": (50, 52, 51, 60, 61), "CE+DRW+SAM": (62, 64, 63.2)}
    runs = claims.Runs(
        grouped(replace(known[method], seed=seed), 90, 70, float(tail))
        for method, some in tails.items()
        for seed, tail in enumerate(some)
    )
    found = readme._gain("", *tails, runs).full
    assert found.low < found.mean < found.high
    assert (found.mean, found.runs) == (pytest.approx((12 + 12 + 12.2) / 3), 3)


def test_a_page_judges_the_runs_of_the_precision_it_was_given(tmp_path):
    family = hypotheses.main_table()
    store = Store(tmp_path / "lite")
    for exp in family.experiments("lite"):
        tail = 60.0 + 10 * ("SAM" in exp.method) + exp.seed
        store.add(grouped(replace(exp, precision="fp64"), 90, 70, tail))
    told = {}
    for precision in ("", "fp64"):
        page = Page("ch07_table", results=str(tmp_path), precision=precision)
        told[precision] = gather.verdicts(page, family).set_index("claim")
    name = "CE+DRW+SAM − CE+DRW, tail"
    assert told[""].loc[name, "missing"] == 10
    assert told["fp64"].loc[name, "word"] == "supported"


def test_cards_without_records_are_undecided(tmp_path):
    for card in readme.cards("quick", tmp_path):
        assert card.word == verdicts.UNDECIDED
        assert all(row.full.text == row.lite.text == "–" for row in card.rows)


def test_every_claim_has_one_line_and_one_verdict(found):
    told = [row.claim for row in found]
    assert len(told) == len(set(told))
    for name in ("(i)", "(ii)", "(iii)", "(iv)", "(v)", "(vi)"):
        assert sum(claim.startswith(f"{name} ") for claim in told) == 1
    assert all(row.here for row in found)
    words = {row.verdict.split(":")[0] for row in found}
    assert words <= {*verdicts.WORDS, ""}


def test_the_numbers_are_those_of_the_records(found):
    runs = Store(ROOT / "results/lite").records(studies.named("table1", "lite"))
    tail = {(r.experiment.method, r.experiment.seed): r.accuracy.tail for r in runs}
    gains = [
        tail["CE+DRW+SAM", seed] - tail["CE+DRW", seed] for seed in (0, 1, 2, 3, 4)
    ]
    name = "SAM raises the tail accuracy of re-weighted cross-entropy (CE+DRW)"
    (row,) = (row for row in found if row.claim == name)
    assert row.here.startswith(f"{sum(gains) / 5:+.1f} ")
    assert row.paper == "+11.7"


def test_runs_at_full_scale_stand_beside_the_papers_numbers(found):
    runs = report.once(main_table())
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
    r"|verdicts\.(paired|holm|welch|equivalence)|\.p_zero"
)


@pytest.mark.parametrize("path", sorted((ROOT / "book").glob("*.py")), ids=str)
def test_pages_quote_verdicts_and_judge_nothing_themselves(path):
    assert re.findall(OTHER_WORDS, path.read_text()) == []


def test_only_what_stands_between_the_marks_is_replaced():
    text = "a\n<!-- found -->\nold\n<!-- /found -->\nb\n"
    new = sheets.inserted(text, "new")
    assert new == "a\n<!-- found -->\nnew\n<!-- /found -->\nb\n"
    assert sheets.inserted(new, "new") == new


def test_the_readme_s_promises_quote_the_counts_of_the_sweep():
    text, told = (ROOT / "README.md").read_text(), sheets.faults()
    assert sheets.inserted(text, sheets.reliability(told), "faults") == text, RUN
    assert {"tried", "survived", "lost", "seconds", "date"} <= set(told["rows"][0])
    for row in told["rows"]:
        assert row["tried"] - row["survived"] == row["lost"]
    table = sheets.faults_by_promise(told)
    assert table["tried"].sum() == sum(row["tried"] for row in told["rows"])
    tried = ", ".join(promise for promise, _ in table.index if promise)
    assert set(tried.split(", ")) == set("123456")  # 7 needs a second device
    total = sum(row["tried"] for row in told["rows"] if row["kind"] == "kill")
    assert f"the same command again | {total} |" in text


def test_the_readme_s_architectures_are_those_that_were_measured():
    text = (ROOT / "README.md").read_text()
    told = load_json(ROOT / "results/architectures.json")
    shown = sheets.architectures(told)
    assert sheets.inserted(text, shown, "architectures") == text, RUN
    assert len(told) >= 30
    assert all(row["right"] for row in told)
    for row in told:
        assert f"| {row['network']} | {row['parameters'] / 1e6:.1f} M |" in text
        if "refused" not in row:
            for end in ("min", "max"):
                value, true = row[f"lambda_{end}"], row[f"true_{end}"]
                assert value == pytest.approx(true, rel=1e-3)


def test_a_readme_without_marks_is_refused():
    with pytest.raises(UsageError, match="to write between"):
        sheets.inserted("nothing here", "")
