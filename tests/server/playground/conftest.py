"""Chromium on pages of real servers: every test fails if the browser complains of anything.

Screenshots go to ``screenshots/`` at the repository's root.
"""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
SCREENSHOTS = ROOT / "screenshots"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome-stable")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)

_WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
  violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Started and ended with each module: while it runs, this thread has an event loop, in which
    other tests could not use ``asyncio.run``."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        pytest.skip("chromium is not installed; Debian has it as a package of that name")
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=found, args=list(ARGUMENTS))
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def demo_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server in a process of its own, with the demo model."""
    log = tmp_path_factory.mktemp("playground") / "server.log"
    command = [sys.executable, "-m", "simpleseg.cli", "serve", "--port", "0"]
    with log.open("wb") as stream:
        server = subprocess.Popen(command, stdout=stream, stderr=stream)
    try:
        deadline = time.monotonic() + 180
        while "ready model=" not in log.read_text():
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "the demo model is not ready in time"
            time.sleep(0.1)
        address = re.search(r"listening on (http://[\d.:]+)", log.read_text())
        assert address is not None
        yield address[1]
    finally:
        server.terminate()
        server.wait(30)


@dataclass
class Visit:
    """A page in a browser window of its own, and what the browser complained of there.

    ``tolerated`` are beginnings of console messages that a test expects, such as of a refusal.
    """

    page: Any
    complaints: list[str] = field(default_factory=list)
    tolerated: tuple[str, ...] = ()

    def heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def requests(self, ending: str) -> list[Any]:
        """Filled, from now on, with the requests to addresses that end so."""
        found: list[Any] = []

        def note(request: Any) -> None:
            if request.url.endswith(ending):
                found.append(request)

        self.page.on("request", note)
        return found

    def shot(self, name: str, **options: Any) -> None:
        SCREENSHOTS.mkdir(exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", **options)

    def open_sample(self, number: int = 0) -> None:
        self.page.locator("#samples button").nth(number).click()
        self.page.locator("#canvas").wait_for()

    def ask(self, phrase: str) -> None:
        self.page.fill("#phrase", phrase)
        self.page.press("#phrase", "Enter")

    def settle(self) -> None:
        """Until no run is under way."""
        self.page.locator("body:not(.running)").wait_for()

    def download(self, act: Callable[[], None]) -> tuple[str, bytes]:
        """The name and the bytes of the file that ``act`` makes the page save."""
        with self.page.expect_download() as coming:
            act()
        return coming.value.suggested_filename, Path(coming.value.path()).read_bytes()

    def check(self) -> None:
        assert self.page.evaluate("violations") == []
        assert [c for c in self.complaints if not c.startswith(self.tolerated or "\0")] == []


Open = Callable[..., Any]


@pytest.fixture
def visit(browser: Any) -> Open:
    """Context manager: a page that is ready; at its end the browser must have had no complaint.
    Options are those of a browser context; ``tolerated`` and ``ready`` are ours."""

    @contextmanager
    def opened(
        url: str, *, tolerated: tuple[str, ...] = (), ready: bool = True, **options: Any
    ) -> Iterator[Visit]:
        options = {"viewport": {"width": 1360, "height": 860}, **options}
        context = browser.new_context(**options)
        context.add_init_script(_WATCH)
        page = context.new_page()
        page.set_default_timeout(30_000)
        here = Visit(page, tolerated=tolerated)
        page.on("console", here.heard)
        page.on("pageerror", lambda error: here.complaints.append(str(error)))
        page.goto(url)
        if ready:
            page.locator("#server[data-health=good]").wait_for()
        try:
            yield here
            here.check()
        finally:
            context.close()

    return opened
