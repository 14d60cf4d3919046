"""The built pages as readers meet them: a real browser, no network, no kernel."""

import functools
import http.server
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import PATIENT
from test_widgets import made_up

from saddlebook.figures import widgets
from saddlebook.theory import saddles

pytestmark = pytest.mark.pages
ROOT = Path(__file__).parents[2]
CHAPTER = "book/ch03_saddles"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="session")
def server(site):
    handler = functools.partial(Quiet, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


class Visit:
    """An open page, and what went wrong on it."""

    def __init__(self, context) -> None:
        self.outside, self.errors = [], []
        self.page = context.new_page()
        self.page.set_default_timeout(PATIENT)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._heard)
        self.page.on("requestfailed", lambda r: self.errors.append(f"no {r.url}"))
        self.page.route("**/*", self._let_through)

    def _heard(self, message) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def _let_through(self, route) -> None:
        url = route.request.url
        if url.startswith(("http://127.0.0.1", "file:", "blob:", "data:")):
            route.continue_()
        else:
            self.outside.append(url)
            route.abort()

    def open(self, url: str) -> "Visit":
        self.page.goto(url, wait_until="load", timeout=PATIENT)
        return self

    def explorer(self):
        """The explorer, once it has drawn and spoken."""
        found = self.page.locator(".sb-widget").first
        found.locator(".sb-story p").first.wait_for()
        return found


@pytest.fixture
def visit(browser):
    """Opens pages: ``visit(theme, width)``."""
    contexts = []

    def start(theme="light", width=1200, **options) -> Visit:
        size = {"width": width, "height": 900}
        context = browser.new_context(
            viewport=size, color_scheme=theme, reduced_motion="reduce", **options
        )
        contexts.append(context)
        script = (
            f"for (const k of ['mode', 'theme']) localStorage.setItem(k, '{theme}')"
        )
        context.add_init_script(f"try {{ {script} }} catch {{}}")
        return Visit(context)

    yield start
    for context in contexts:
        context.close()


@pytest.fixture(params=["server", "file"])
def home(request, site):
    """The same pages from a server and from the disk."""
    return (
        request.getfixturevalue("server")
        if request.param == "server"
        else (site.as_uri())
    )


# --- every page


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_page_asks_outside_or_fails(visit, home, site, theme) -> None:
    names = sorted(site.glob("book/*.html"))
    assert len(names) >= 3
    for path in names:
        seen = visit(theme).open(f"{home}/{path.relative_to(site)}")
        seen.page.wait_for_function("!window.MathJax || window.MathJax.startup.promise")
        # what a page asks for late; a request is noted when it is made
        seen.page.wait_for_timeout(500)
        shown = seen.page.evaluate("document.documentElement.dataset.theme")
        assert shown == theme, path.name
        assert seen.outside == [], path.name
        assert seen.errors == [], path.name


def test_maths_is_typeset(visit, home) -> None:
    page = visit().open(f"{home}/{CHAPTER}.html").page
    page.locator("mjx-container").first.wait_for()
    page.wait_for_function("document.querySelectorAll('mjx-container').length > 40")
    assert page.locator("mjx-merror").count() == 0
    text = page.locator("article").inner_text()
    assert "\\rho" not in text
    assert "\\lambda" not in text
    assert "$$" not in text
    box = page.locator("mjx-container[display=true]").first.bounding_box()
    assert box["height"] > 15


@pytest.mark.parametrize("width", [390, 1200])
def test_the_chapter_fits_the_window(visit, server, width) -> None:
    page = visit(width=width).open(f"{server}/{CHAPTER}.html").page
    page.locator("mjx-container").first.wait_for()
    overflow = "document.documentElement.scrollWidth - window.innerWidth"
    assert page.evaluate(overflow) <= 0
    views = page.locator(".sb-views svg")
    boxes = [views.nth(i).bounding_box() for i in range(views.count())]
    assert len(boxes) == 4
    assert all(box["x"] + box["width"] <= width for box in boxes)
    columns = {round(box["x"]) for box in boxes}
    assert len(columns) == (1 if width == 390 else 2)


def test_the_chapter_weighs_less_than_260_kb_beyond_the_theme(site) -> None:
    page = (site / f"{CHAPTER}.html").read_text("utf-8")
    article = page[page.index("<article") : page.index("</article>")]
    images = re.findall(r'<img[^>]+src="([^"]+)"', article)
    weight = len(article.encode())
    weight += sum((site / "book" / name).stat().st_size for name in images)
    # every figure is there twice, for windows and for phones, with its data and code
    assert weight < 260_000


# --- the explorer


def state_of(explorer) -> tuple[str, str]:
    """Text and the picture's paths."""
    paths = explorer.locator(".sb-views path").evaluate_all(
        "all => all.map((path) => path.getAttribute('d')).join('|')"
    )
    return explorer.locator(".sb-story").inner_text(), paths


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(
    "name",
    ["Radius ρ", "Curvature |λ|", "Step size η", "Momentum β", "Noise σ", "Start y"],
)
def test_every_slider_moves_picture_text_and_spoken_value(
    visit, home, theme, name
) -> None:
    seen = visit(theme).open(f"{home}/{CHAPTER}.html")
    explorer = seen.explorer()
    slider = explorer.get_by_role("slider", name=name)
    before, value = state_of(explorer), slider.get_attribute("aria-valuetext")
    slider.focus()
    for _ in range(4):
        slider.press("ArrowRight")
    seen.page.wait_for_function(
        "([widget, old]) => widget.querySelector('.sb-story').innerText !== old",
        arg=[explorer.element_handle(), before[0]],
    )
    after = state_of(explorer)
    assert after[1] != before[1]
    told = slider.get_attribute("aria-valuetext")
    assert told != value
    assert (
        told
        == explorer.locator(f"output[for='{slider.get_attribute('id')}']").inner_text()
    )
    assert seen.errors == []


def choose(explorer, label, option) -> None:
    explorer.get_by_role("combobox", name=label).select_option(option)


def set_slider(explorer, name, value) -> None:
    explorer.get_by_role("slider", name=name).evaluate(
        "(node, value) => { node.value = value;"
        " node.dispatchEvent(new Event('input', { bubbles: true })); }",
        value,
    )


@pytest.mark.parametrize("a", [0.5, 1.0, 1.5, 3.0])
def test_the_page_tells_what_the_library_computes(visit, home, a) -> None:
    explorer = visit().open(f"{home}/{CHAPTER}.html").explorer()
    choose(explorer, "SAM climbs", "plain")
    set_slider(explorer, "Radius ρ", a)
    story = explorer.locator(".sb-story")
    story.get_by_text(f"a = ρ|λ| = {a:g}: {saddles.regime(a)}").wait_for()
    told = saddles.amplification(a, -1.0)
    story.get_by_text(f"Factor (1 − a)² = {told:g}").wait_for()
    steps = saddles.escape_time(0.1, 0.05, -1.0, a)
    words = f"after {steps:.0f} steps" if np.isfinite(steps) else "never"
    assert f"SAM {words}" in story.inner_text()
    factor = explorer.get_by_role("img", name=re.compile("The factor"))
    assert saddles.regime(a) in factor.get_attribute("aria-label")


def test_scenes_noise_and_reset_do_what_they_say(visit, server) -> None:
    seen = visit().open(f"{server}/{CHAPTER}.html")
    explorer = seen.explorer()
    start = state_of(explorer)
    choose(explorer, "Scene", "Double well with noise")
    explorer.get_by_text("reach a minimum").wait_for()
    noisy = state_of(explorer)
    explorer.get_by_role("button", name="New noise").click()
    seen.page.wait_for_function(
        "([widget, old]) => widget.querySelector('.sb-story').innerText !== old",
        arg=[explorer.element_handle(), noisy[0]],
    )
    assert state_of(explorer)[1] != noisy[1]
    explorer.get_by_role("button", name="Reset").click()
    explorer.get_by_text("SAM never").wait_for()
    assert state_of(explorer)[0] == start[0]


def test_the_keyboard_reaches_every_control_in_order(visit, server) -> None:
    seen = visit().open(f"{server}/{CHAPTER}.html")
    explorer = seen.explorer()
    explorer.get_by_role("combobox", name="Scene").focus()
    names, outlines = [], []
    for _ in range(11):
        names.append(
            seen.page.evaluate(
                "(document.activeElement.labels?.[0] ?? document.activeElement)"
                ".innerText"
            )
        )
        outlines.append(
            seen.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        )
        seen.page.keyboard.press("Tab")
    assert names == [
        "Scene", "SAM climbs", "Radius ρ", "Curvature |λ|", "Step size η",
        "Momentum β", "Noise σ", "Start y", "Second pass", "Landscape", "New noise",
    ]  # fmt: skip
    assert all(outline != "none" for outline in outlines[1:])
    url = seen.page.url
    explorer.get_by_role("slider", name="Radius ρ").press("Enter")
    assert seen.page.url == url


COLOURS = """node => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  let ground = node, back = null;
  while (ground) {
    const found = parse(getComputedStyle(ground).backgroundColor);
    if (found.length === 3 || found[3] > 0.5) { back = found; break; }
    ground = ground.parentElement;
  }
  const style = getComputedStyle(node);
  const svg = node.namespaceURI.endsWith("svg");
  const ink = parse(svg ? style.fill : style.color);
  return [node.outerHTML, ink, back || [255, 255, 255]];
}"""


def luminance(colour) -> float:
    parts = np.array(colour[:3]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_words_and_colours_of_the_widget_can_be_read(visit, server, theme) -> None:
    seen = visit(theme).open(f"{server}/{CHAPTER}.html")
    explorer = seen.explorer()
    texts = ".sb-story p, label, output, button, .sb-key span, .sb-views text"
    marks = ".sb-views circle"
    for selector, least in ((texts, 4.5), (marks, 3.0)):
        seen = explorer.locator(selector).evaluate_all(f"all => all.map({COLOURS})")
        assert len(seen) >= 5
        for words, front, back in seen:
            if front:
                light = sorted((luminance(front) + 0.05, luminance(back) + 0.05))
                assert light[1] / light[0] >= least, words


def test_without_scripts_the_page_says_what_is_missing(visit, server) -> None:
    page = visit(java_script_enabled=False).open(f"{server}/{CHAPTER}.html").page
    text = page.locator(".afm-static noscript").inner_text()
    assert "Explorer" in text
    assert "needs JavaScript" in text


# --- the record browser, on a bare page


@pytest.fixture
def records():
    return [made_up(rho, seed) for rho in (0.8, 0.5, 0.1) for seed in (0, 1)]


@pytest.fixture
def bare(tmp_path, records):
    """A page of two widgets and nothing else, from the disk."""
    body = widgets.record_browser(records).to_html() + (
        widgets.saddle_explorer(rho=0.3).to_html()
    )
    path = tmp_path / "bare.html"
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>t</title>'
    path.write_text(f"{head}<body>{body}</body></html>", "utf-8")
    return path.as_uri()


def test_the_browser_stops_at_measured_radii_and_epochs(visit, bare, records) -> None:
    seen = visit().open(bare)
    widget = seen.explorer()
    rho = widget.get_by_role("slider", name="Radius ρ")
    shown = set()
    rho.press("Home")
    for _ in range(5):
        shown.add(float(rho.get_attribute("aria-valuetext")))
        rho.press("ArrowRight")
    assert shown == {record.experiment.rho for record in records}
    epoch = widget.get_by_role("slider", name="Epoch")
    epoch.press("ArrowLeft")
    epoch.press("ArrowLeft")
    assert epoch.get_attribute("aria-valuetext") == "5"
    widget.get_by_text("Test accuracy at epoch 5").wait_for()
    assert (seen.outside, seen.errors) == ([], [])


def test_the_browser_draws_every_measured_point_and_no_line(
    visit, bare, records
) -> None:
    widget = visit().open(bare).explorer()
    choose(widget, "Seed", "1")
    widget.get_by_text("seed 1").wait_for()
    curves = widget.get_by_role("img", name=re.compile(r"^Test accuracy"))
    assert curves.locator("circle").count() == 2 * 2 * 4  # seeds, epochs, groups
    classes = widget.get_by_role("img", name=re.compile(r"^Each class"))
    assert classes.locator("circle").count() == 2 * 10
    lines = curves.locator("g[clip-path] path")
    assert lines.count() == 1  # the chosen epoch


def test_the_browser_tells_the_chosen_record(visit, bare, records) -> None:
    widget = visit().open(bare).explorer()
    choose(widget, "Seed", "1")
    choose(widget, "Class", "2")
    widget.get_by_text("No spectrum of this class").wait_for()
    choose(widget, "Class", "9")
    last = records[0].experiment.epochs
    widget.get_by_text(f"λmin = −{last} ± 0.25").wait_for()
    key = records[1].key
    assert f"record {key}" in widget.locator(".sb-story").inner_text()


def test_two_widgets_on_a_page_leave_each_other_alone(visit, bare) -> None:
    page = visit().open(bare).page
    widgets_here = page.locator(".sb-widget")
    widgets_here.nth(1).locator(".sb-story p").first.wait_for()
    assert widgets_here.count() == 2
    first = state_of(widgets_here.nth(0))
    second = widgets_here.nth(1)
    slider = second.get_by_role("slider", name="Radius ρ")
    assert slider.get_attribute("aria-valuetext") == "0.3"
    set_slider(second, "Radius ρ", 1.0)
    second.get_by_text("a = ρ|λ|/‖g‖ = 10").wait_for()
    assert state_of(widgets_here.nth(0)) == first
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((n) => n.id)")
    assert len(set(ids)) == len(ids)
