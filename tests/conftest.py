"""What every test shares: one thread, derandomised properties, CIFAR where it is."""

import os
import shutil
from pathlib import Path

import hypothesis
import pytest
import torch
from playwright.sync_api import sync_playwright
from visits import PATIENT, alone, served

from saddlebook import book

torch.set_num_threads(1)
# Root has no sandbox; no name resolves, so nothing outside can be reached
CHROMIUM = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-quic",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]  # fmt: skip

hypothesis.settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def data_root() -> Path | None:
    """Folder with CIFAR, or None: tests that use it hold without it too."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("SADDLEBOOK_DATA", beside))
    return root if root.is_dir() else None


@pytest.fixture(scope="session")
def cifar_root(data_root) -> Path:
    """Folder with CIFAR; a test that is about its images is skipped without."""
    if data_root is None:
        pytest.skip("no CIFAR images here: SADDLEBOOK_DATA names their folder")
    return data_root


@pytest.fixture(scope="session")
def everyones(tmp_path_factory) -> Path:
    """One folder for all workers of this session."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def site(everyones) -> Path:
    """The book as ``make book`` builds it, built by the first worker that asks."""
    root = Path(__file__).parents[1]
    with alone(everyones, "site") as first:
        if first:
            book.build(root)
    return root / "_build/html"


@pytest.fixture(scope="session")
def server(site):
    """The address of the same pages from a server."""
    with served(site) as address:
        yield address


@pytest.fixture(scope="session")
def browser():
    """Chromium; one a process, for Playwright does not start twice in one."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    assert found, "Chromium is not installed: make browser"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found, args=CHROMIUM, timeout=PATIENT
        )
        yield browser
        browser.close()
