"""The built book in a real browser: from disk, no network, light and dark, small."""

import re
from pathlib import Path

import pytest
from conftest import PATIENT

from saddlebook.book import chapters

ROOT = Path(__file__).parents[2]
ENTRIES = chapters.entries(ROOT)
THEMES = ("light", "dark")
# One visit a page and theme serves all: keep them in one process
pytestmark = [pytest.mark.pages, pytest.mark.xdist_group("site")]


class Visit:
    """A page opened from disk, with all that it asked for and complained of."""

    def __init__(self, browser, file: Path, theme: str = "light") -> None:
        self.context = browser.new_context(color_scheme=theme, offline=True)
        self.context.set_default_timeout(PATIENT)
        self.context.add_init_script(f"localStorage.setItem('mode', '{theme}')")
        self.theme, self.file = theme, file
        self.troubles: list[str] = []
        self.page = self.context.new_page()
        self.page.on("request", self._outside)
        self.page.on("pageerror", lambda error: self.troubles.append(f"error {error}"))
        self.page.on("requestfailed", lambda r: self.troubles.append(f"no {r.url}"))
        self.page.goto(file.as_uri())
        if self.formulas:
            self.page.wait_for_function("MathJax.startup.promise")

    def _outside(self, request) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.troubles.append(f"asked for {request.url}")

    @property
    def formulas(self) -> int:
        return self.page.locator(".math").count()


@pytest.fixture(
    scope="module",
    params=[(entry, theme) for entry in ENTRIES for theme in THEMES],
    ids=lambda param: " ".join(param),
)
def visit(request, site, browser):
    entry, theme = request.param
    visit = Visit(browser, site / f"{entry}.html", theme)
    yield visit
    visit.context.close()


def test_a_page_asks_for_nothing_outside_and_runs_without_error(visit):
    assert visit.page.get_attribute("html", "data-theme") == visit.theme
    assert visit.page.locator("article h1").count() >= 1
    assert visit.troubles == []


def test_formulas_are_typeset(visit):
    assert visit.page.locator("mjx-container").count() == visit.formulas
    assert visit.page.locator("mjx-merror").count() == 0


def test_values_are_filled_in(visit):
    text = visit.page.inner_text("article")
    assert "glue:" not in text
    assert not re.search(r"\bnan\b|\bundefined\b|\[\?\]", text)


_CONTRAST = """() => {
  const channel = (c) =>
    (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
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
  const walker = document.createTreeWalker(
    document.querySelector("article"), NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const el = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !el.checkVisibility()) continue;
    if (el.closest("mjx-container, script, style, select, .headerlink, pre")) continue;
    const style = getComputedStyle(el);
    const inSvg = el.closest("svg");
    const [a, b] = [light(parse(inSvg ? style.fill : style.color)), light(ground(el))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const need = inSvg ? 3 : 4.5;
    if (ratio < need) faint.push(
      `${walker.currentNode.textContent.trim().slice(0, 40)} ${ratio.toFixed(1)}`);
  }
  return faint;
}"""


def test_all_text_can_be_read(visit):
    visit.page.evaluate(
        "document.querySelectorAll('details').forEach(d => d.open = true)"
    )
    assert visit.page.evaluate(_CONTRAST) == []


_CUT = """() => {
  const edge = document.querySelector("article").getBoundingClientRect().right + 1;
  const all = "article :is(table, figure svg, .sb-widget svg)";
  return [...document.querySelectorAll(all)]
    .filter((el) => el.checkVisibility())
    .filter((el) => el.getBoundingClientRect().right > edge
      || el.parentElement.scrollWidth > el.parentElement.clientWidth + 1)
    .map((el) => el.outerHTML.slice(0, 120));
}"""


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_is_cut_off(visit, width):
    usual = visit.page.viewport_size
    visit.page.set_viewport_size({"width": width, "height": 800})
    wide = visit.page.evaluate("document.documentElement.scrollWidth")
    cut = visit.page.evaluate(_CUT)
    visit.page.set_viewport_size(usual)
    assert wide <= width
    assert cut == []


def test_figures_are_numbered_once_and_code_bars_are_few(visit):
    numbers = visit.page.evaluate(
        "[...document.querySelectorAll('figcaption')].map((el) =>"
        " getComputedStyle(el, '::before').counterIncrement)"
    )
    assert set(numbers) <= {"figure 1"}
    assert visit.page.locator("details.hide.above-input").count() == 0


# Copy buttons are the theme's
_NAMELESS = """() => [...document.querySelectorAll("article :is(img, svg[role=img], "
    + "input, select, button:not(.copybtn))")]
  .filter(el => el.checkVisibility() && !el.closest("mjx-container"))
  .filter(el => !(el.alt || el.getAttribute("aria-label") || el.title || el.innerText
    || el.getAttribute("aria-labelledby") || (el.labels && el.labels.length)))
  .map(el => el.outerHTML.slice(0, 120))"""


def test_pictures_and_controls_have_names(visit):
    assert visit.page.evaluate(_NAMELESS) == []


def test_links_lead_somewhere_and_no_id_stands_twice(visit):
    page = visit.page
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(el => el.id)")
    assert sorted(set(ids)) == sorted(ids)
    for link in page.evaluate(
        "[...document.querySelectorAll('article a[href]')].map(a => a.href)"
    ):
        address, _, anchor = link.partition("#")
        if address.startswith("file:"):
            target = Path(address.removeprefix("file://"))
            assert target.is_file(), link
            if anchor and target.suffix == ".html":
                assert f'id="{anchor}"' in target.read_text(), link


def test_sliders_move_without_a_kernel(visit):
    for slider in visit.page.locator(".afm-static input[type=range]").all():
        if slider.is_visible() and slider.is_enabled():
            before = visit.page.inner_html("article")
            slider.focus()
            at_end = slider.evaluate("el => el.value === el.max")
            visit.page.keyboard.press("ArrowLeft" if at_end else "ArrowRight")
            assert visit.page.inner_html("article") != before
    assert visit.troubles == []


def test_the_book_has_pictures_to_play_with(site):
    pages = [(site / f"{entry}.html").read_text() for entry in ENTRIES]
    assert sum("afm-static" in page for page in pages) >= 1


def test_search_works_from_disk(site, browser):
    visit = Visit(browser, site / "search.html")
    visit.page.goto(visit.page.url + "?q=saddle")
    visit.page.wait_for_selector("#search-results li")
    visit.context.close()


def test_the_front_door_leads_to_the_first_page(site):
    assert "book/intro.html" in (site / "index.html").read_text()
