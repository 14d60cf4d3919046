"""From a number to its record; values under the mouse; a chapter on paper."""

import json
import re
from pathlib import Path

import pytest
from test_site import _CUT, _FAINT, ENTRIES
from visits import Visit

from saddlebook import studies
from saddlebook.store import Store

ROOT = Path(__file__).parents[2]
CHAPTER = "book/ch08_rho"
pytestmark = pytest.mark.pages
_SHOWN = r'<span class="pasted-text">.*?</span>|<(?:fig)?caption>.*?</(?:fig)?caption>'
_SHOWN += r'|<p class="sb-(?:verdict|sure)">.*?</p>|<div class="sb-claim">.*?</div>'


def test_every_number_leads_to_its_records_and_their_commands(site):
    looked = 0
    for entry in ENTRIES:
        text = (site / f"{entry}.html").read_text()
        shown = re.findall(_SHOWN, text, re.DOTALL)
        if 'id="records"' not in text:
            assert not shown, entry
            continue
        looked += len(shown)
        assert [part for part in shown if 'href="#records"' not in part] == []
        lists = text[text.index('id="records"') :]
        made = re.findall(r"<li><code>([^<]*)</code><ul>(.*?)</ul>", lists)
        links = re.findall(r'href="([^"]*/(?:lite|full|lab)/[^"]*)', lists)
        assert len(set(links)) == len(links), entry
        assert len(links) == sum(some.count("href") for _, some in made), entry
        for command, some in made:
            study, scale = command.split()[4::2]
            keys = {e.key for e in studies.named(study, scale)}
            assert set(re.findall(r"_(\w{8})\.json", some)) <= keys
    assert looked > 200


@pytest.fixture(scope="module")
def visit(site, browser):
    visit = Visit(browser, f"{site.as_uri()}/{CHAPTER}.html")
    yield visit
    visit.context.close()


def test_a_mark_tells_its_record_s_value_under_the_mouse(visit):
    page = visit.page
    widget = page.locator(".sb-widget", has=page.get_by_label("Stored ρ"))
    runs = Store(ROOT / "results/lite").records(studies.named("rho_ablation", "lite"))
    told = {
        f"ρ: {run.experiment.rho:g}\ntest accuracy, %: {round(value, 2):.4g}"
        for run in runs
        for value in run.accuracy
    }
    marks = widget.locator(".sb-views svg").first.locator("circle")
    assert set(marks.locator("title").all_text_contents()) == told
    widget.locator(".sb-views").scroll_into_view_if_needed()
    seen = set()
    for mark in marks.all()[-8:]:
        box = mark.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        seen |= set(page.locator("circle:hover > title").all_text_contents())
    assert seen <= told
    assert len(seen) > 3


_PRESSED = """() => [
  ...document.querySelectorAll("article :is(input, select, button)"),
  ...[...document.querySelectorAll("article summary")]
    .filter((el) => !el.nextElementSibling.checkVisibility())]
  .filter((el) => el.checkVisibility()).map((el) => el.outerHTML.slice(0, 100))"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_chapter_on_paper_is_whole_and_has_nothing_to_press(visit, theme):
    page = visit.page
    page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
    page.set_viewport_size({"width": 718, "height": 1000})
    page.emulate_media(media="print")
    assert page.evaluate(_PRESSED) == []
    assert page.evaluate(_CUT) == []
    looked, faint = page.evaluate(_FAINT)
    assert looked > 100
    assert faint == []
    paper = page.pdf(format="A4")
    assert len(re.findall(rb"/Type ?/Page\b", paper)) > 5
    page.emulate_media(media="screen")
    page.set_viewport_size({"width": 1280, "height": 800})


def test_a_record_is_two_clicks_from_a_number(visit):
    page = visit.page
    fold = page.locator("details:has(> #records)")
    record = page.locator("#records + ul a").first
    for where in (".pasted-text", "caption", "figcaption", ".sb-claim", ".sb-verdict"):
        fold.evaluate("el => { el.open = false; }")
        page.locator(f"{where} .sb-source").first.click()
        record.wait_for(timeout=5000)
        assert page.get_by_text("run rho_ablation --scale lite").last.is_visible()
    record.click()
    assert json.loads(page.inner_text("body"))["key"] in page.url
