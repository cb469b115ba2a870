"""The artist's way through a webui in headless Chromium: enable, move a slider, generate, look, paste, read.

Screenshots go to `.lab/screenshots/`. With `--webui=DIR` the same scenario runs in a real installation.
"""

import base64
import io
import re
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
def foreign(webui_or_real: lab.Server, request: pytest.FixtureRequest) -> set[str]:
    """Errors that a real host's page raises, when it opens and draws, without our script."""
    browser.require()
    if not request.config.getoption("--webui"):
        return set()  # the stand-in has none
    with browser.opened(webui_or_real.url, ours=False) as opened:
        webui = browser.Webui(opened)
        webui.small(steps=4, batch=1)
        webui.fill("txt2img_prompt", "a tree")
        webui.generate()
        opened.settle()
        opened.wait_for_timeout(1000)  # what follows the last answer
        return set(opened.errors)


@pytest.fixture
def page(webui_or_real: lab.Server, foreign: set[str]) -> Iterator[Any]:
    with browser.opened(webui_or_real.url, dark=webui_or_real.kind == "forge") as opened:
        yield opened


def ours(said: str) -> list[str]:
    """Tracebacks in a host's log that lead through this extension; hosts have some of their own."""
    found = re.findall(r"Traceback \(most recent call last\)(?:.|\n)*?\n(?=\S).*", said)
    return [text for text in found if "a1111_extension" in text or "fair_adapter" in text]


def test_an_artists_way_through_the_page(webui_or_real: lab.Server, page: Any, foreign: set[str]) -> None:
    begun = len(webui_or_real.said())
    server, shots = webui_or_real, SHOTS / webui_or_real.kind
    webui = browser.Webui(page)
    webui.open_accordion()
    webui.choose(f"{P}adapter", server.adapter)
    move_slider(webui, page)
    shot = shots / "accordion.png"
    webui.shot(shot)
    live_bars(server, webui, page, shots)
    panel_and_paste(webui, page, shots)
    the_tab(server, webui, page, shots)
    assert [error for error in page.errors if error not in foreign] == []
    assert "Traceback" not in server.said()[begun:] and ours(server.said()) == []


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
    webui.small(steps=20, batch=4)
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
    assert "female:80, male:20" in panel.inner_text()
    # Forge keeps its own checkpoint, which may draw nothing that is a face at this size.
    assert re.search("of 80%|^0 of 4 pictures", panel.inner_text(), re.MULTILINE)
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
    fair = {"adapter": server.adapter, "target": "gender=80/20"}
    requests = [
        {"prompt": f"{lab.MARK} a portrait"},
        {"prompt": "a portrait", "alwayson_scripts": {"Fair Adapter": {"args": [fair]}}},
        {"prompt": "a portrait"},
    ]
    small = {"steps": 4, "seed": 3, "width": 128, "height": 128}
    drawn = [server.call("/sdapi/v1/txt2img", {**r, **small})["images"][0] for r in requests]
    typed, ours, base = (Image.open(io.BytesIO(base64.b64decode(text))).tobytes() for text in drawn)
    assert typed == ours != base


def even_out(webui: browser.Webui, page: Any) -> None:
    """The last four of five pictures alone, and what the next must be."""
    webui.type_number("fair_filter_last", 4)
    webui.fill("fair_filter_target", "gender=50/50")
    page.locator("#fair_statistics_show").click()
    said = "([place, text]) => document.querySelector(place).innerText.includes(text)"
    page.wait_for_function(said, arg=["#fair_statistics", "4 pictures of 2 prompts"])
    webui.type_number("fair_next_pictures", 6)
    page.locator("#fair_next").click()
    page.wait_for_function(said, arg=["#fair_next_told", "next 6: gender female"])
    assert re.fullmatch(r"gender=female:[\d.]+,male:[\d.]+", webui.text("fair_next_target"))


def words(webui: browser.Webui, page: Any) -> None:
    """One prompt for each picture; what the prompt names stays."""
    page.locator("#fair_tabs button", has_text="Draw attributes").first.click()
    webui.fill("fair_words_prompt", "a female cook")
    webui.fill("fair_words_target", "gender=50/50;age=75/25")
    webui.type_number("fair_words_pictures", 4)
    webui.type_number("fair_words_seed", 3)
    page.locator("#fair_words_draw").click()
    said = "([place, text]) => document.querySelector(place).innerText.includes(text)"
    page.wait_for_function(said, arg=["#fair_words_told", "the prompt names gender (female)"])
    prompts = webui.text("fair_words_result").splitlines()
    assert len(prompts) == 4 and sum("a person of about 20" in p or "about 30" in p for p in prompts) == 3
    assert all(prompt.endswith(", a female cook") for prompt in prompts)
    assert page.locator("#fair_words_file a").first.get_attribute("href")


def the_tab(server: lab.Server, webui: browser.Webui, page: Any, shots: Path) -> None:
    webui.tab("Fair Adapter")
    page.wait_for_selector("#fair_library_table td")
    webui.choose("fair_library_choice", server.adapter)
    page.wait_for_selector("#fair_library_card .fair-evaluation")
    webui.shot(shots / "library.png")
    exported_tokens(server, webui, page)
    page.locator("#fair_tabs button", has_text="Statistics").first.click()
    page.locator("#fair_statistics_show").click()
    page.wait_for_selector("#fair_statistics .fair-share")
    webui.shot(shots / "statistics.png")
    even_out(webui, page)
    webui.shot(shots / "even_out.png")
    words(webui, page)
    webui.shot(shots / "words.png")
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
