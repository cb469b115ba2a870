"""The studio as `python install.py studio` starts it, in headless Chromium; the screenshot is in `.lab`."""

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fair_adapter.tests.a1111 import adapters, browser, lab

pytestmark = pytest.mark.a1111
SECONDS = 120  # for the start on a busy machine


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    browser.require("gradio")
    folder = tmp_path_factory.mktemp("studio")
    adapters.words_adapter("gender-words", {"female": "female", "male": "male"}).write(
        folder / "gender-words.safetensors"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = lab.ROOT / "studio" / "studio.py"
    places = ["--adapters", str(folder), "--data", str(folder / "data")]
    with (folder / "log.txt").open("w") as log:
        command = [sys.executable, str(program), "--no-browser", "--port", str(port), *places]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    url, limit = f"http://127.0.0.1:{port}", time.monotonic() + SECONDS
    try:
        while not answers(url):
            assert process.poll() is None and time.monotonic() < limit, (folder / "log.txt").read_text()
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)
    assert "Traceback" not in (folder / "log.txt").read_text()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def fill(page: Any, name: str, value: str) -> None:
    field = page.locator(f"#studio_{name} textarea, #studio_{name} input").first
    field.fill(value)
    field.blur()
    page.settle()


def test_attributes_in_words_and_what_evens_out(address: str) -> None:
    with browser.opened(address) as page:
        webui = browser.Webui(page, ready="#studio_prompt textarea")
        page.get_by_role("tab", name="Library and statistics").click()
        page.get_by_role("tab", name="Draw attributes").click()
        webui.fill("fair_words_prompt", "a photo of [person], a cook")
        webui.fill("fair_words_target", "gender=50/50;race=equal")
        page.locator("#fair_words_place label", has_text="at the marker").first.click()
        page.locator("#fair_words_draw").click()
        page.wait_for_function("() => document.querySelector('#fair_words_result textarea').value")
        prompts = webui.text("fair_words_result").splitlines()
        assert len(prompts) == 12 and sum("photo of a woman, " in prompt for prompt in prompts) == 6
        path = Path(lab.LAB / "screenshots" / "studio_words.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=path, full_page=True)
        webui.fill("fair_words_target", "gender=60/60")
        page.locator("#fair_words_draw").click()
        page.wait_for_selector("#fair_words_told .fair-error")
        assert webui.text("fair_words_result") == ""
        page.get_by_role("tab", name="Statistics", exact=True).click()
        webui.fill("fair_filter_target", "gender=50/50")
        page.locator("#fair_next").click()
        page.wait_for_selector("#fair_next_told .fair-info")
        assert webui.text("fair_next_target") == "gender=female:50,male:50"  # nothing was drawn yet
        assert page.errors == []


def test_before_and_after_from_the_same_noise(address: str) -> None:
    with browser.opened(address) as page:
        page.wait_for_selector("#studio_prompt textarea")
        field = page.locator("#studio_adapter input").first
        field.click()
        page.locator("ul[role=listbox] li", has_text="gender-words").first.click()
        page.settle()
        fill(page, "target", "gender=80/20")
        page.wait_for_function(
            "() => Number(document.querySelector('#studio_share_0_0 input[type=number]').value) === 80"
        )
        fill(page, "seed", "7")
        page.locator("#studio_generate").click()
        page.wait_for_selector("#studio_live img")
        for place, heading in (("before", "Without the adapter"), ("after", "the same noise")):
            page.wait_for_selector(f"#studio_{place} .fair-tiles img", timeout=180_000)
            assert page.locator(f"#studio_{place} figure").count() == 8
            assert "of 80%" in page.locator(f"#studio_{place}").inner_text()
            assert heading in page.locator(f"#studio_{place}").inner_text()
        page.wait_for_timeout(1000)
        path = Path(lab.LAB / "screenshots" / "studio.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=path, full_page=True)
        assert page.errors == []
