"""The artist's way through a webui in headless Chromium: enable, move a slider, generate, look, paste, read.

Screenshots go to `.lab/screenshots/`. With `--webui DIR` the same scenario runs in a real installation.
"""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fair_adapter.tests.a1111 import browser, lab

pytestmark = pytest.mark.a1111
SHOTS = lab.LAB / "screenshots"
P = browser.PREFIX


@pytest.fixture
def page(webui_or_real: lab.Server) -> Iterator[Any]:
    browser.require()
    with browser.opened(webui_or_real.url, dark=webui_or_real.kind == "forge") as opened:
        yield opened


def test_an_artists_way_through_the_page(webui_or_real: lab.Server, page: Any) -> None:
    server, shots = webui_or_real, SHOTS / webui_or_real.kind
    webui = browser.Webui(page)
    webui.open_accordion()
    webui.choose(f"{P}adapter", "gender-words.safetensors")
    move_slider(webui, page)
    shot = shots / "accordion.png"
    webui.shot(shot)
    live_bars(server, webui, page, shots)
    panel_and_paste(webui, page, shots)
    the_tab(server, webui, page, shots)
    assert page.errors == [] and "Traceback" not in server.said()


def move_slider(webui: browser.Webui, page: Any) -> None:
    """One slider moves the other and the text; the text moves both."""
    webui.type_number(f"{P}share_0_0", 80)
    field = f"#{P}target textarea, #{P}target input"
    page.wait_for_function("s => document.querySelector(s).value === 'gender=female:80,male:20'", arg=field)
    assert webui.number(f"{P}share_0_1") == 20
    webui.fill(f"{P}target", "gender=30/70")
    slider = f"#{P}share_0_1 input[type=number]"
    page.wait_for_function("s => Number(document.querySelector(s).value) === 70", arg=slider)
    webui.fill(f"{P}target", "gender=95/5")
    advice = f"#{P}advice"
    page.wait_for_function(
        "s => document.querySelector(s).innerText.includes('outside 10 to 90%')", arg=advice
    )
    webui.fill(f"{P}target", "gender=80/20")


def live_bars(server: lab.Server, webui: browser.Webui, page: Any, shots: Path) -> None:
    webui.fill("txt2img_prompt", "a portrait of a doctor")
    for name, value in (("steps", 30), ("batch_size", 4)):
        webui.type_number(f"txt2img_{name}", value)
    before = page.locator("#html_info_txt2img").first.inner_html()
    webui.generate(wait=False)
    drawn = (
        "() => document.querySelector('.livePreview img')?.naturalWidth > 250"  # wider than the host's own
    )
    page.wait_for_function(drawn)
    width, height, shown = page.evaluate(
        "() => { const i = document.querySelector('.livePreview img'), b = i.getBoundingClientRect();"
        " const [w, h] = [i.naturalWidth, i.naturalHeight];"
        " return [w, h, Math.min(b.width / w, b.height / h)]; }"
    )
    assert width > 2 * height and shown * width > 400, "readable in an empty gallery"
    webui.shot(shots / "live.png")
    webui.finished(before)


def panel_and_paste(webui: browser.Webui, page: Any, shots: Path) -> None:
    page.wait_for_selector("#fair_panel_txt2img .fair-tiles img")
    panel = page.locator("#fair_panel_txt2img").first
    assert panel.locator("figure").count() == 4
    assert "female:80, male:20" in panel.inner_text() and "of 80%" in panel.inner_text()
    page.screenshot(path=shots / "panel.png", full_page=True)
    webui.fill(f"{P}target", "gender=50/50")
    page.wait_for_function(
        f"() => Number(document.querySelector('#{P}share_0_0 input[type=number]').value) === 50"
    )
    webui.fill("txt2img_prompt", "")
    page.locator("#paste").first.click()  # the last picture's parameters
    page.wait_for_function(
        f"() => Number(document.querySelector('#{P}share_0_0 input[type=number]').value) === 80"
    )
    assert webui.text("txt2img_prompt") == "a portrait of a doctor"
    assert webui.text(f"{P}target") == "gender=female:80,male:20"


def exported_tokens(server: lab.Server, webui: browser.Webui, page: Any) -> None:
    """They act at once, typed into the prompt, as the adapter at that target does."""
    webui.fill("fair_export_target", "gender=80/20")
    webui.fill("fair_export_name", lab.MARK)
    page.locator("#fair_export").first.click()
    said = "text => document.querySelector('#fair_export_result').innerText.includes(text)"
    page.wait_for_function(said, arg=f"put {lab.MARK} first")
    fair = {"adapter": "gender-words.safetensors", "target": "gender=80/20"}
    requests = [
        {"prompt": f"{lab.MARK} a portrait"},
        {"prompt": "a portrait", "alwayson_scripts": {"Fair Adapter": {"args": [fair]}}},
        {"prompt": "a portrait"},
    ]
    drawn = [server.call("/sdapi/v1/txt2img", {**r, "steps": 4, "seed": 3})["images"][0] for r in requests]
    typed, ours, base = (Image.open(io.BytesIO(base64.b64decode(text))).tobytes() for text in drawn)
    assert typed == ours != base


def the_tab(server: lab.Server, webui: browser.Webui, page: Any, shots: Path) -> None:
    webui.tab("Fair Adapter")
    page.wait_for_selector("#fair_library_table td")
    webui.choose("fair_library_choice", "gender-words.safetensors")
    page.wait_for_selector("#fair_library_card .fair-evaluation")
    webui.shot(shots / "library.png")
    exported_tokens(server, webui, page)
    page.locator("#fair_tabs button", has_text="Statistics").first.click()
    page.locator("#fair_statistics_show").click()
    page.wait_for_selector("#fair_statistics .fair-share")
    webui.shot(shots / "statistics.png")
    page.locator("#fair_tabs button", has_text="Analyse pictures").first.click()
    folder = lab.ROOT / "tests" / "data" / "faces"
    page.locator("#fair_analyse_folder textarea, #fair_analyse_folder input").first.fill(str(folder))
    page.locator("#fair_analyse_target textarea, #fair_analyse_target input").first.fill(
        "gender=50/50;race=equal"
    )
    page.locator("#fair_analyse").click()
    page.wait_for_selector("#fair_analysis .fair-tiles img", timeout=120_000)
    assert page.locator("#fair_analysis figure").count() == len(list(folder.glob("*.jpg")))
    page.screenshot(path=shots / "analysis.png", full_page=True)
