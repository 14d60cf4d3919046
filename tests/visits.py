"""Pages as readers open them: from the disk or a server, no network, light or dark."""

import fcntl
import functools
import http.server
import threading
from contextlib import contextmanager
from pathlib import Path

PATIENT = 120_000  # milliseconds; a busy machine is no failure
NEAR = ("file:", "data:", "blob:", "http://127.0.0.1")
# Every formula typeset, every widget drawn
READY = """async () => {
  if (document.querySelector(".math")) await MathJax.startup.promise;
  const waiting = () => [...document.querySelectorAll(".afm-static")]
    .some((el) => !el.querySelector("svg"));
  while (waiting()) {
    if (performance.now() > 120000) throw new Error("a widget was never drawn");
    await new Promise((done) => setTimeout(done, 20));
  }
}"""


class Visit:
    """An open page, and what it asked for outside or complained of."""

    def __init__(self, browser, url: str, theme="light", width=1280, **options) -> None:
        size = {"width": width, "height": 800}
        self.context = browser.new_context(
            viewport=size, color_scheme=theme, reduced_motion="reduce", **options
        )
        self.context.set_default_timeout(PATIENT)
        self.context.add_init_script(
            f"try {{ localStorage.setItem('mode', '{theme}') }} catch {{}}"
        )
        self.url, self.theme = url, theme
        self.troubles: list[str] = []
        self.page = self.context.new_page()
        self.page.on("request", self._asked)
        self.page.on("requestfailed", lambda r: self.troubles.append(f"no {r.url}"))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("console", self._heard)
        self.page.goto(url)
        if options.get("java_script_enabled", True):
            self.page.evaluate(READY)

    def _asked(self, request) -> None:
        if not request.url.startswith(NEAR):
            self.troubles.append(f"asked for {request.url}")

    def _heard(self, message) -> None:
        # a browser asks every server for this one by itself
        if message.type == "error" and "/favicon.ico" not in message.location["url"]:
            self.troubles.append(message.text)

    def widget(self):
        """The first widget, once it has spoken."""
        found = self.page.locator(".sb-widget").first
        found.locator(".sb-story p").first.wait_for()
        return found


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


@contextmanager
def served(folder: Path):
    """Address of a server of ``folder``."""
    handler = functools.partial(_Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


@contextmanager
def alone(folder: Path, name: str):
    """One process of the session at a time; yields whether it is the first."""
    done = folder / f"{name}.done"
    with open(folder / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not done.exists()
        done.touch()
