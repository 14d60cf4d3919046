"""The lab in Chromium: its picture alone, and whole in a real JupyterLab."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from conftest import PATIENT

from saddlebook.book.notebooks import read
from saddlebook.book.panel import Panel
from saddlebook.store import RESULTS

pytestmark = pytest.mark.pages
CHAPTER = Path(__file__).parents[2] / "book/ch08_rho.py"
CELLS = [
    "from saddlebook.book import Page\nfrom saddlebook.book import panel as live\n"
    f"page = Page('ch08_rho', results={str(RESULTS)!r})",
    *(c.source for c in read(CHAPTER).cells if "live.Panel" in c.source),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of a JupyterLab of its own, without settings of the user."""
    folder = tmp_path_factory.mktemp("lab")
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, folder / "lab.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {f"JUPYTER_{n}_DIR": str(folder / n) for n in ("CONFIG", "RUNTIME")}
    command = [sys.executable, "-m", "jupyterlab", "--allow-root", "--no-browser"]
    command += [f"--port={port}", "--IdentityProvider.token=", "--LabApp.news_url="]
    command += ["--ServerApp.disable_check_xsrf=True"]  # to restart its kernel
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        [*command, f"--notebook-dir={folder}"],
        env=os.environ | places, stdout=log, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield f"http://127.0.0.1:{port}", folder
    finally:
        process.terminate()
        process.wait(30)
        log.close()


@pytest.fixture
def shown(browser, tmp_path):
    """Show HTML of the panel, and the panel whose it is."""
    panel = Panel(RESULTS, scale="lab", work=tmp_path)
    tab = browser.new_page(viewport={"width": 1000, "height": 700})

    def show(html=None):
        tab.set_content(html or panel.to_html())
        lab = tab.locator(".sb-lab")
        lab.wait_for()
        return panel, lab

    yield show
    tab.close()


def test_a_page_tells_the_difference_at_the_radius_that_is_chosen(shown):
    panel, lab = shown()
    box = lab.locator(".sb-rho input[type=text]")
    for rho in (0.5, 0.1):
        box.fill(str(rho))
        box.press("Enter")
        panel.choose(rho=rho)
        tail = panel.comparison().set_index("group").loc["tail", "difference"]
        told = f"{tail:+g}".replace("-", "−")
        lab.locator(".sb-compared td", has_text=told).first.wait_for()
    box.fill("0.07")  # nothing is stored there
    box.press("Enter")
    lab.locator(".sb-compared table").wait_for(state="detached")
    assert lab.get_by_label("data").is_disabled()


def test_a_preset_asks_for_a_guess_before_it_tells(shown):
    panel, lab = shown()
    shown(panel.to_html().replace('"kernel":false', '"kernel":true'))
    status, table = lab.locator(".sb-status"), lab.locator(".sb-compared table")
    lab.get_by_role("button", name="too large", exact=True).click()
    status.filter(has_text="First say").wait_for()
    lab.get_by_role("button", name="fall", exact=True).click()
    status.filter(has_text="the tail will fall. Press Run").wait_for()
    assert table.count() == 0
    lab.get_by_role("slider").press("ArrowLeft")
    lab.get_by_role("slider").press("ArrowRight")  # back, and looked up
    status.filter(has_text="mean of 5 stored seeds").wait_for()
    assert table.count() == 1

    run, seed = (
        lab.get_by_role("button", name="Run", exact=True),
        lab.get_by_role("textbox", name="seed"),
    )
    seed.fill("abc")
    seed.press("Enter")
    assert run.is_disabled()  # it would not run what the box says
    lab.get_by_role("button", name="SGD", exact=True).click()
    assert run.is_enabled()
    assert seed.input_value() == "0"


class Visit:
    """The notebook in a tab."""

    def __init__(self, browser, address: str) -> None:
        self.context = browser.new_context(viewport={"width": 1366, "height": 700})
        self.context.set_default_timeout(PATIENT)
        self.page = self.context.new_page()
        for _ in range(100):
            try:
                self.page.goto(f"{address}/lab/workspaces/own/tree/lab.ipynb?reset")
                break
            except Exception:  # the server is not up yet
                time.sleep(0.3)
        self.page.wait_for_selector(".jp-Notebook .jp-Cell")
        self.lab = self.page.locator(".sb-lab.sb-live")

    def run_all(self) -> None:
        self.page.wait_for_selector("text=/Python 3.*\\| (Idle|Busy)/")
        self.page.click("#jp-MainMenu >> text=Run")
        self.page.click("text=Run All Cells")
        self.lab.first.wait_for()

    def press(self, words: str) -> None:
        self.lab.get_by_role("button", name=words, exact=True).click()

    def says(self, words: str) -> None:
        self.lab.locator(".sb-status", has_text=words).wait_for()


def test_a_student_slides_runs_stops_and_comes_back(server, browser):
    address, folder = server
    visit = Visit(browser, address)
    visit.run_all()
    assert visit.lab.bounding_box()["height"] <= 560
    assert visit.page.locator(".sb-saved").is_hidden()

    box = visit.lab.locator(".sb-rho input[type=text]")
    box.fill("abc")
    box.press("Enter")
    visit.lab.get_by_role("alert").filter(has_text="0,3").wait_for()
    visit.lab.get_by_label("data").select_option("lite")
    visit.says("ρ 0.3")  # its own radius and presets
    visit.press("too large")
    assert box.input_value() == "0.78"
    visit.lab.get_by_label("data").select_option("lab")
    visit.says("ρ 0.05")
    visit.press("too large")
    assert box.input_value() == "0.5"
    visit.says("First say")
    visit.lab.get_by_role("slider").press("ArrowLeft")
    box.fill("0,123")
    box.press("Enter")

    visit.press("Run")
    visit.says("epoch")
    visit.run_all()  # the cell again, while it trains
    visit.says("epoch")
    visit.press("Stop")
    visit.says("goes on")
    visit.page.keyboard.press("Control+s")
    deadline = time.monotonic() + 60
    while "sb-saved" not in (folder / "lab.ipynb").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    visit.context.close()

    with urllib.request.urlopen(f"{address}/api/kernels") as answer:
        (kernel,) = json.load(answer)
    restart = f"{address}/api/kernels/{kernel['id']}/restart"
    urllib.request.urlopen(urllib.request.Request(restart, method="POST")).close()
    visit = Visit(browser, address)  # opened later: its kernel knows no widget
    visit.page.locator(".sb-saved .sb-lab svg").first.wait_for()
    visit.page.locator(".sb-again", has_text="Run this cell").wait_for()
    assert visit.page.get_by_text("model not found").filter(visible=True).count() == 0
    visit.run_all()
    box = visit.lab.locator(".sb-rho input[type=text]")
    box.fill("0.123")
    box.press("Enter")
    visit.press("Run")
    visit.says("epoch")
    visit.press("Stop")
    visit.says("goes on")
    visit.context.close()
