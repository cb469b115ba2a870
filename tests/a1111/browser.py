"""Drives a running webui in headless Chromium as an artist would, and takes screenshots.

Selectors are those of the real hosts; every request that leaves this machine is refused.
"""

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fair_adapter.tests.a1111 import lab

SIZE = {"width": 1500, "height": 1300}
PREFIX = "script_txt2img_fair_adapter_"


def chromium() -> str | None:
    """Debian's, or what playwright itself would find."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


def require(*packages: str) -> None:
    """Skip a test that needs packages and a browser where one is missing; fail where none may be."""
    missing = [f"the package {name}" for name in (*packages, "playwright") if find_spec(name) is None]
    missing += [] if chromium() else ["Chromium"]
    if missing and lab.REQUIRED:
        raise AssertionError(f"missing: {missing}")
    if missing:
        pytest.skip(f"needs {' and '.join(missing)} on this machine")


@contextmanager
def opened(url: str, dark: bool = False, ours: bool = True) -> Iterator[Any]:
    """A page; its console errors are in `page.errors`, `page.settle()` waits for the server.

    ours: with this extension's JavaScript, which the hosts serve as a file of its own.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE, color_scheme="dark" if dark else "light")
        page.set_default_timeout(60_000)
        page.route("**/*", lambda route: route.continue_() if _local(route.request.url) else route.abort())
        if not ours:
            page.route("**/javascript/fair_adapter.js*", lambda route: route.abort())
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.settle = Settle(page)
        page.goto(url + ("/?__theme=dark" if dark else "/?__theme=light"))
        yield page
        browser.close()


class Settle:
    """Waits until no answer has been due for `quiet` seconds: a late one would undo the next step."""

    def __init__(self, page: Any) -> None:
        self.page, self._asked = page, set[Any]()
        page.on("request", lambda request: request.method == "POST" and self._asked.add(request))
        for ended in ("requestfinished", "requestfailed"):
            page.on(ended, lambda request: self._asked.discard(request))

    def __call__(self, quiet: float = 0.5) -> None:
        limit, since = time.monotonic() + 60, time.monotonic()
        while time.monotonic() - since < quiet:
            if time.monotonic() > limit:
                raise TimeoutError(f"still waiting for {[request.url for request in self._asked]}")
            self.page.wait_for_timeout(50)
            if self._asked:
                since = time.monotonic()


def _local(url: str) -> bool:
    own = re.match(r"(https?|wss?)://(127\.0\.0\.1|localhost)[:/]", url) is not None
    return own or url.startswith(("data:", "blob:"))


class Webui:
    """txt2img and our tab, by element ids."""

    def __init__(self, page: Any, ready: str = "#txt2img_prompt textarea") -> None:
        self.page = page
        page.wait_for_selector(ready)

    def open_accordion(self) -> None:
        """Enable the script: its accordion is its switch."""
        box = self.page.locator(f"#{PREFIX}enable-checkbox input[type=checkbox]")
        if box.count() and box.first.is_visible():
            box.first.check()
        else:  # the real hosts hide the box inside the accordion's head
            self.page.locator(f"#{PREFIX}enable .label-wrap").first.click()
        self.page.wait_for_selector(f"#{PREFIX}target textarea, #{PREFIX}target input", state="visible")

    def choose(self, elem_id: str, value: str) -> None:
        """An entry of a gradio menu."""
        field = self.page.locator(f"#{elem_id} input").first
        field.click()
        field.fill(value)
        self.page.locator(f"#{elem_id} ul [role=option], ul.options li", has_text=value).first.click()
        self.page.settle()

    def type_number(self, elem_id: str, value: float) -> None:
        field = self.page.locator(f"#{elem_id} input[type=number]").first
        field.fill(str(value))
        field.blur()
        self.page.settle()

    def number(self, elem_id: str) -> float:
        return float(self.page.locator(f"#{elem_id} input[type=number]").first.input_value())

    def text(self, elem_id: str) -> str:
        return self.page.locator(f"#{elem_id} textarea, #{elem_id} input[type=text]").first.input_value()

    def fill(self, elem_id: str, value: str) -> None:
        field = self.page.locator(f"#{elem_id} textarea, #{elem_id} input[type=text]").first
        field.fill(value)
        field.blur()
        self.page.settle()

    def small(self, steps: int, batch: int) -> None:
        """Settings that a CPU draws in seconds; the hosts open at 512 x 512."""
        for name, value in (("width", 128), ("height", 128), ("steps", steps), ("batch_size", batch)):
            self.type_number(f"txt2img_{name}", value)

    def generate(self, wait: bool = True) -> None:
        before = self.page.locator("#html_info_txt2img").first.inner_html()
        self.page.locator("#txt2img_generate").click()
        if wait:
            self.finished(before)

    def finished(self, before: str = "") -> None:
        self.page.wait_for_function(
            "before => { const e = document.querySelector('#html_info_txt2img');"
            " return e && e.innerHTML !== before && e.innerText.includes('Steps:'); }",
            arg=before,
            timeout=180_000,
        )

    def tab(self, name: str) -> None:
        self.page.locator("#tabs button", has_text=name).first.click()

    def shot(self, path: Path, selector: str | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if selector is None:
            self.page.screenshot(path=path)
        else:
            self.page.locator(selector).first.screenshot(path=path)
