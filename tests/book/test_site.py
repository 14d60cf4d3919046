"""Every page of the built book in a real browser: no network, no kernel."""

import re
from functools import cache
from pathlib import Path

import pytest
from visits import Visit

from saddlebook.book import notebooks

ROOT = Path(__file__).parents[2]
ENTRIES = notebooks.entries(ROOT)
pytestmark = pytest.mark.pages


@pytest.fixture(scope="module", params=enumerate(ENTRIES), ids=lambda param: param[1])
def visit(request, site, server, browser):
    """The pages in turn from the disk and a server, and in turn light and dark."""
    number, entry = request.param
    home = server if number % 2 else site.as_uri()
    theme = ("light", "dark")[number // 2 % 2]
    visit = Visit(browser, f"{home}/{entry}.html", theme)
    visit.home = home
    yield visit
    visit.context.close()


def test_a_page_has_its_theme_and_a_title(visit):
    assert visit.page.get_attribute("html", "data-theme") == visit.theme
    assert visit.page.locator("article h1").count() >= 1


_RAW = """() => {
  const walker = document.createTreeWalker(
    document.querySelector("article"), NodeFilter.SHOW_TEXT);
  let text = "";
  while (walker.nextNode())
    if (!walker.currentNode.parentElement.closest("pre, code, script, style, mjx-container"))
      text += walker.currentNode.textContent;
  return text;
}"""  # noqa: E501


def test_formulas_are_typeset_and_values_filled_in(visit):
    page = visit.page
    formulas = page.locator(".math").count()
    assert page.locator("mjx-container").count() == formulas
    assert page.locator("mjx-merror").count() == 0
    if page.locator("mjx-container[display=true]").count():
        box = page.locator("mjx-container[display=true]").first.bounding_box()
        assert box["height"] > 15
    text = page.evaluate(_RAW)
    assert not re.search(r"\\(rho|lambda)|\$\$|glue:", text)
    assert not re.search(r"\bnan\b|\bundefined\b|\[\?\]", text)


_FAINT = """(theme) => {
  document.documentElement.dataset.theme = theme;
  document.querySelectorAll("details").forEach((el) => { el.open = true; });
  const channel = (c) =>
    (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const parse = (text) => (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const light = ([r, g, b]) =>
    0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const ground = (el) => {
    for (; el; el = el.parentElement) {
      const rgb = parse(getComputedStyle(el).backgroundColor);
      if (rgb.length < 4 || rgb[3] > 0.5) return rgb;
    }
    return [255, 255, 255];
  };
  const faint = [];
  let looked = 0;
  const check = (el, words, need) => {
    const style = getComputedStyle(el);
    if (el.closest("svg") && style.fill === "none") return;
    const ink = parse(el.closest("svg") ? style.fill : style.color);
    const [a, b] = [light(ink), light(ground(el))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    looked += 1;
    if (ratio < need) faint.push(`${words.slice(0, 40)} ${ratio.toFixed(1)}`);
  };
  const article = document.querySelector("article");
  const walker = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const el = walker.currentNode.parentElement;
    const words = walker.currentNode.textContent.trim();
    if (!words || !el.checkVisibility()) continue;
    if (el.closest("mjx-container, script, style, select, .headerlink, pre")) continue;
    check(el, words, el.closest("svg") && !el.closest(".sb-views") ? 3 : 4.5);
  }
  for (const el of article.querySelectorAll(".sb-views circle:not(.sb-faint)"))
    check(el, el.outerHTML, 3);
  return [looked, faint];
}"""


def test_all_text_and_every_mark_of_a_widget_can_be_read_in_both_themes(visit):
    other = {"light": "dark", "dark": "light"}[visit.theme]
    for theme in (other, visit.theme):
        looked, faint = visit.page.evaluate(_FAINT, theme)
        assert looked > 10
        assert faint == [], theme


_CUT = """() => {
  const edge = document.querySelector("article").getBoundingClientRect().right + 1;
  const all = "article :is(table, figure svg, .sb-widget svg)";
  return [...document.querySelectorAll(all)]
    // one picture of a sheet in a picture is cut out on purpose
    .filter((el) => el.checkVisibility() && !el.parentElement.closest("svg"))
    .filter((el) => el.getBoundingClientRect().right > edge
      || el.parentElement.scrollWidth > el.parentElement.clientWidth + 1)
    .map((el) => el.outerHTML.slice(0, 120));
}"""


def test_nothing_is_cut_off_on_phones_tablets_and_windows(visit):
    for width in (390, 768, 1280):
        visit.page.set_viewport_size({"width": width, "height": 800})
        wide = visit.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width
        assert visit.page.evaluate(_CUT) == [], width


# Copy buttons are the theme's
_NAMELESS = """() => [...document.querySelectorAll("article :is(img, svg[role=img], "
    + "input, select, button:not(.copybtn))")]
  .filter(el => el.checkVisibility() && !el.closest("mjx-container"))
  .filter(el => !(el.alt || el.getAttribute("aria-label") || el.title || el.innerText
    || el.getAttribute("aria-labelledby") || (el.labels && el.labels.length)))
  .map(el => el.outerHTML.slice(0, 120))"""


def test_pictures_and_controls_have_names_and_figures_one_number(visit):
    assert visit.page.evaluate(_NAMELESS) == []
    numbers = visit.page.evaluate(
        "[...document.querySelectorAll('figcaption')].map((el) =>"
        " getComputedStyle(el, '::before').counterIncrement)"
    )
    assert set(numbers) <= {"figure 1"}
    assert visit.page.locator("details.hide.above-input").count() == 0


@cache
def ids_of(page: Path) -> set[str]:
    return set(re.findall(r'\bid="([^"]*)"', page.read_text()))


def test_links_lead_somewhere_and_no_id_stands_twice(visit, site):
    page = visit.page
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(el => el.id)")
    assert sorted(set(ids)) == sorted(ids)
    links = page.evaluate(
        "[...document.querySelectorAll('article a[href]')].map(a => a.href)"
    )
    for link in links:
        address, _, anchor = link.partition("#")
        if address.startswith(visit.home):
            target = site / address.removeprefix(f"{visit.home}/")
            assert target.is_file(), link
            assert not anchor or target.suffix != ".html" or anchor in ids_of(target)


_CHANGED = """(slider) => {
  const now = document.querySelector("article").innerHTML;
  const changed = now !== window.sbBefore;
  window.sbBefore = now;
  return changed;
}"""


def test_sliders_move_without_a_kernel_and_nothing_went_wrong(visit):
    for slider in visit.page.locator(".afm-static input[type=range]").all():
        if slider.is_visible() and slider.is_enabled():
            slider.focus()
            slider.evaluate(_CHANGED)
            at_end = slider.evaluate("el => el.value === el.max")
            visit.page.keyboard.press("ArrowLeft" if at_end else "ArrowRight")
            assert slider.evaluate(_CHANGED)
    assert visit.troubles == []


def test_the_book_has_pictures_to_play_with_and_a_front_door(site):
    pages = [(site / f"{entry}.html").read_text() for entry in ENTRIES]
    assert sum("afm-static" in page for page in pages) >= 1
    assert "book/intro.html" in (site / "index.html").read_text()


def test_search_works_from_disk(site, browser):
    visit = Visit(browser, f"{site.as_uri()}/search.html?q=saddle")
    visit.page.wait_for_selector("#search-results li")
    visit.context.close()
