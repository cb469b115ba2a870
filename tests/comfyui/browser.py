"""The real front end in headless Chromium."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
)  # fmt: skip
DRIVER = Path(__file__).with_name("driver.js")
LIMIT = 900_000  # ms for anything that a page is waited for, however busy the machine
READY = "() => window.app?.graph && window.app?.extensionManager"


class Page:
    """One tab.  name: for screenshots.  messages: complaints on the console about our files."""

    def __init__(self, page: Any, url: str, name: str = "") -> None:
        self.page, self.url, self.name = page, url, name
        self.messages: list[str] = []
        page.set_default_timeout(LIMIT)
        page.add_init_script(path=DRIVER)
        page.route("**/*", self._guard)
        page.on("console", self._keep)
        page.on("pageerror", lambda error: self._note(f"{error}\n{getattr(error, 'stack', '')}"))

    def _guard(self, route: Any) -> None:
        """Nothing but the server: the front end asks analytics and registries of the internet too."""
        address = route.request.url
        own = address.startswith((self.url, "data:", "blob:", self.url.replace("http", "ws")))
        route.continue_() if own else route.abort()

    def _keep(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self._note(f"{message.type}: {message.text} {message.location.get('url', '')}")

    def _note(self, text: str) -> None:
        ours = "/extensions/fair-adapter/" in text or "/fair_adapter/" in text
        deprecated = "DEPRECAT" in text.upper() and "fair" in text.lower()
        if ours or deprecated:
            self.messages.append(text)

    def open(self, vue: bool) -> None:
        """The front end, ready, in the canvas or in Nodes 2.0."""
        self.page.goto(self.url, wait_until="domcontentloaded")
        self.page.wait_for_function(READY)
        settings = {
            "Comfy.VueNodes.Enabled": vue,
            "Comfy.TutorialCompleted": True,
            "Comfy.Minimap.Visible": False,
        }
        for name, value in settings.items():
            self.page.evaluate("([n, v]) => window.app.extensionManager.setting.set(n, v)", [name, value])
        self.page.reload(wait_until="domcontentloaded")  # without what greets a new user
        self.page.wait_for_function(READY)
        self.page.wait_for_timeout(1500)

    def do(self, function: str, argument: Any = None) -> Any:
        """Call a function of driver.js."""
        return self.page.evaluate(f"(argument) => window.fair.{function}(argument)", argument)

    def wait_for(self, selector: str) -> None:
        self.page.wait_for_selector(selector, state="attached")

    def load(self, workflow: dict[str, Any]) -> None:
        """A saved workflow; returns when our panels are filled."""
        self.page.evaluate("(w) => window.app.loadGraphData(w)", workflow)
        self.page.wait_for_timeout(1200)

    def run(self) -> None:
        """Queue what is on the canvas, wait for its end. Raises AssertionError with the server's message."""
        self.do("queue")
        self.page.wait_for_function("() => window.fair.ended")
        kind, message = self.page.evaluate("() => window.fair.ended")
        assert kind == "execution_success", f"{kind}: {message}"
        self.page.wait_for_timeout(1500)

    def picture(self, path: Path, scale: float = 0.6) -> None:
        """A screenshot with all of the workflow in view."""
        self.do("show", [scale, 20, 70])
        self.page.wait_for_timeout(1200)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=path, timeout=LIMIT)


@contextmanager
def opened(
    executable: str, url: str, vue: bool, name: str, size: tuple[int, int] = (1680, 1000)
) -> Iterator[Page]:
    """A browser of its own with one page of a size in px."""
    from playwright.sync_api import sync_playwright

    with TemporaryDirectory(prefix="fair_browser") as profile, sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=executable,
            headless=True,
            args=list(ARGUMENTS),
            viewport={"width": size[0], "height": size[1]},
            timeout=LIMIT,
        )
        page = Page(context.new_page(), url, name)
        page.open(vue)
        yield page
        context.close()


def workflow(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
