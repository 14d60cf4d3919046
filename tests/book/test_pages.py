"""The widgets as readers move them: from the disk, no kernel."""

import re

import numpy as np
import pytest
from test_widgets import made_up
from visits import Visit

from saddlebook.figures import widgets
from saddlebook.theory import saddles

pytestmark = pytest.mark.pages
CHAPTER = "book/ch03_saddles"


def test_the_chapter_weighs_less_than_230_kb_beyond_the_theme(site) -> None:
    page = (site / f"{CHAPTER}.html").read_text("utf-8")
    article = page[page.index("<article") : page.index("</article>")]
    images = re.findall(r'<img[^>]+src="([^"]+)"', article)
    weight = len(article.encode())
    weight += sum((site / "book" / name).stat().st_size for name in images)
    # every figure is there twice, for windows and for phones, with its data and code
    assert weight < 230_000


# --- the explorer


@pytest.fixture(scope="module")
def visit(site, browser):
    """The chapter from the disk, where a browser allows a page the least."""
    visit = Visit(browser, f"{site.as_uri()}/{CHAPTER}.html", width=1200)
    yield visit
    visit.context.close()


@pytest.fixture
def explorer(visit):
    """The explorer as it is at first."""
    explorer = visit.widget()
    explorer.get_by_role("button", name="Reset").click()
    explorer.get_by_text("SAM never").wait_for()
    return explorer


def state_of(explorer) -> tuple[str, str]:
    """Text and the picture's paths."""
    paths = explorer.locator(".sb-views path").evaluate_all(
        "all => all.map((path) => path.getAttribute('d')).join('|')"
    )
    return explorer.locator(".sb-story").inner_text(), paths


def wait_for_another_story(visit, explorer, story) -> None:
    visit.page.wait_for_function(
        "([widget, old]) => widget.querySelector('.sb-story').innerText !== old",
        arg=[explorer.element_handle(), story],
    )


@pytest.mark.parametrize(
    "name",
    ["Radius ρ", "Curvature |λ|", "Step size η", "Momentum β", "Noise σ", "Start y"],
)
def test_every_slider_moves_picture_text_and_spoken_value(
    visit, explorer, name
) -> None:
    slider = explorer.get_by_role("slider", name=name)
    before, value = state_of(explorer), slider.get_attribute("aria-valuetext")
    slider.focus()
    for _ in range(4):
        slider.press("ArrowRight")
    wait_for_another_story(visit, explorer, before[0])
    assert state_of(explorer)[1] != before[1]
    told = slider.get_attribute("aria-valuetext")
    assert told != value
    shown = explorer.locator(f"output[for='{slider.get_attribute('id')}']")
    assert told == shown.inner_text()
    assert visit.troubles == []


def choose(explorer, label, option) -> None:
    explorer.get_by_role("combobox", name=label).select_option(option)


def set_slider(explorer, name, value) -> None:
    explorer.get_by_role("slider", name=name).evaluate(
        "(node, value) => { node.value = value;"
        " node.dispatchEvent(new Event('input', { bubbles: true })); }",
        value,
    )


@pytest.mark.parametrize("a", [0.5, 1.0, 1.5, 3.0])
def test_the_page_tells_what_the_library_computes(explorer, a) -> None:
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


def test_scenes_noise_and_reset_do_what_they_say(visit, explorer) -> None:
    start = state_of(explorer)
    choose(explorer, "Scene", "Double well with noise")
    explorer.get_by_text("reach a minimum").wait_for()
    noisy = state_of(explorer)
    explorer.get_by_role("button", name="New noise").click()
    wait_for_another_story(visit, explorer, noisy[0])
    assert state_of(explorer)[1] != noisy[1]
    explorer.get_by_role("button", name="Reset").click()
    explorer.get_by_text("SAM never").wait_for()
    assert state_of(explorer)[0] == start[0]


def test_play_moves_the_walkers_and_stops_at_the_last_step(visit, explorer) -> None:
    visit.page.emulate_media(reduced_motion="no-preference")
    step = explorer.get_by_role("slider", name="Step shown")
    step.press("Home")
    play = explorer.get_by_role("button", name=": Step shown")
    play.press("Enter")
    start = state_of(explorer)[1]
    visit.page.wait_for_timeout(300)  # five steps' time
    play.press("Enter")
    at = step.get_attribute("aria-valuetext")
    assert int(at) > 1
    assert state_of(explorer)[1] != start
    assert play.inner_text() == "Play"
    visit.page.wait_for_timeout(200)  # three steps' time
    assert step.get_attribute("aria-valuetext") == at
    step.press("End")
    step.press("ArrowLeft")
    play.press("Enter")
    explorer.locator("input[aria-valuetext='400']").wait_for(timeout=5000)
    assert play.inner_text() == "Play"
    visit.page.emulate_media(reduced_motion="reduce")


FOCUSED = """() => {
  const active = document.activeElement;
  const name = (active.labels?.[0] ?? active).innerText;
  return [name, getComputedStyle(active).outlineStyle];
}"""


def test_the_keyboard_reaches_every_control_in_order(visit, explorer) -> None:
    explorer.get_by_role("combobox", name="Scene").focus()
    seen = []
    for _ in range(13):
        seen.append(visit.page.evaluate(FOCUSED))
        visit.page.keyboard.press("Tab")
    names, outlines = zip(*seen, strict=True)
    assert names == (
        "Scene", "SAM climbs", "Radius ρ", "Curvature |λ|", "Step size η",
        "Momentum β", "Noise σ", "Start y", "Second pass", "Landscape", "Step shown",
        "Next", "New noise",
    )  # fmt: skip
    assert all(outline != "none" for outline in outlines[1:])
    explorer.get_by_role("slider", name="Radius ρ").press("Enter")
    assert visit.page.url == visit.url


@pytest.mark.parametrize(("width", "columns"), [(390, 1), (1200, 2)])
def test_the_views_stand_in_two_columns_and_on_a_phone_in_one(
    visit, explorer, width, columns
) -> None:
    visit.page.set_viewport_size({"width": width, "height": 900})
    views = explorer.locator(".sb-views svg").all()
    boxes = [view.bounding_box() for view in views]
    assert len(boxes) == 4
    assert len({round(box["x"]) for box in boxes}) == columns
    assert all(box["x"] + box["width"] <= width for box in boxes)


def test_without_scripts_the_page_says_what_is_missing(site, browser) -> None:
    url = f"{site.as_uri()}/{CHAPTER}.html"
    visit = Visit(browser, url, java_script_enabled=False)
    text = visit.page.locator(".afm-static noscript").inner_text()
    assert "Explorer" in text
    assert "needs JavaScript" in text
    visit.context.close()


# --- the record browser, on a bare page

RECORDS = [made_up(rho, seed) for rho in (0.8, 0.5, 0.1) for seed in (0, 1)]


@pytest.fixture
def bare(tmp_path, browser):
    """A page of two widgets and nothing else, from the disk."""
    body = widgets.record_browser(RECORDS).to_html() + (
        widgets.saddle_explorer(rho=0.3).to_html()
    )
    path = tmp_path / "bare.html"
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>t</title>'
    path.write_text(f"{head}<body>{body}</body></html>", "utf-8")
    visit = Visit(browser, path.as_uri())
    yield visit
    assert visit.troubles == []
    visit.context.close()


def test_the_browser_stops_at_measured_radii_and_epochs(bare) -> None:
    widget = bare.widget()
    rho = widget.get_by_role("slider", name="Radius ρ")
    shown = set()
    rho.press("Home")
    for _ in range(5):
        shown.add(float(rho.get_attribute("aria-valuetext")))
        rho.press("ArrowRight")
    assert shown == {record.experiment.rho for record in RECORDS}
    epoch = widget.get_by_role("slider", name="Epoch")
    epoch.press("ArrowLeft")
    epoch.press("ArrowLeft")
    assert epoch.get_attribute("aria-valuetext") == "5"
    widget.get_by_text("Test accuracy at epoch 5").wait_for()


def test_the_browser_draws_every_measured_point_and_no_line(bare) -> None:
    widget = bare.widget()
    choose(widget, "Seed", "1")
    widget.get_by_text("seed 1").wait_for()
    curves = widget.get_by_role("img", name=re.compile(r"^Test accuracy"))
    assert curves.locator("circle").count() == 2 * 2 * 4  # seeds, epochs, groups
    classes = widget.get_by_role("img", name=re.compile(r"^Each class"))
    assert classes.locator("circle").count() == 2 * 10
    lines = curves.locator("g[clip-path] path")
    assert lines.count() == 1  # the chosen epoch


def test_the_browser_tells_the_chosen_record(bare) -> None:
    widget = bare.widget()
    choose(widget, "Seed", "1")
    choose(widget, "Class", "2")
    widget.get_by_text("No spectrum of this class").wait_for()
    choose(widget, "Class", "9")
    last = RECORDS[0].experiment.epochs
    widget.get_by_text(f"λmin = −{last} ± 0.25").wait_for()
    assert f"record {RECORDS[1].key}" in widget.locator(".sb-story").inner_text()


def test_two_widgets_on_a_page_leave_each_other_alone(bare) -> None:
    both = bare.page.locator(".sb-widget")
    assert both.count() == 2
    first, second = state_of(both.nth(0)), both.nth(1)
    slider = second.get_by_role("slider", name="Radius ρ")
    assert slider.get_attribute("aria-valuetext") == "0.3"
    set_slider(second, "Radius ρ", 1.0)
    second.get_by_text("a = ρ|λ|/‖g‖ = 10").wait_for()
    assert state_of(both.nth(0)) == first
    ids = bare.page.evaluate("[...document.querySelectorAll('[id]')].map((n) => n.id)")
    assert len(set(ids)) == len(ids)
