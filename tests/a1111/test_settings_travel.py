"""One generation's settings on every way that the hosts offer: the tab at the other end asks for the same.

txt2img's buttons, PNG info's, the arrow of each tab, and `infotext` of the API.
"""

import re
from pathlib import Path
from typing import Any

import pytest

from fair_adapter.tests.a1111 import browser, lab
from fair_adapter.tests.a1111.test_hosts import picture, txt2img

pytestmark = pytest.mark.a1111
BOTH = {"adapter": "random-both.safetensors", "target": "gender=30/70;race=20/30/50", "strength": 0.5,
        "place": "in the prompt"}  # fmt: skip
ONE = {"adapter": "gender-words.safetensors", "target": "gender=80/20", "strength": 1.5, "place": "hidden"}


def part(tab: str, name: str) -> str:
    return f"script_{tab}_fair_adapter_{name}"


def shown(page: Any, tab: str) -> dict[str, Any]:
    """What the widgets of a tab ask for; the sliders besides, which follow."""
    page.settle()

    def value(name: str, inside: str) -> str:
        return page.locator(f"#{part(tab, name)} {inside}").first.input_value()

    return {
        "enabled": page.locator(f"#{part(tab, 'enable-checkbox')} input").first.is_checked(),
        "adapter": value("adapter", "input"),
        "target": page.locator(f"#{part(tab, 'target')}").locator("textarea, input").first.input_value(),
        "strength": float(value("strength", "input[type=number]")),
        "place": value("place", "input:checked"),
        "female": float(value("share_0_0", "input[type=number]")),
    }


def wanted(fair: dict[str, Any]) -> dict[str, Any]:
    female = float(re.search(r"gender=(\d+)", fair["target"])[1])  # type: ignore[index]
    target = re.sub(r"gender=(\d+)/(\d+)", r"gender=female:\1,male:\2", fair["target"])
    target = target.replace("race=20/30/50", "race=wmelh:20,black:30,asian:50")
    return {"enabled": True, **fair, "target": target, "female": female}


def drawn(server: lab.Server, folder: Path, fair: dict[str, Any]) -> tuple[Path, str]:
    """A saved picture with these settings, and its parameters."""
    answer = txt2img(server, fair, steps=1)
    path = folder / f"{fair['adapter']}.png"
    image = picture(answer["files"][0])
    from PIL import PngImagePlugin

    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", answer["infotexts"][0])
    image.save(path, pnginfo=chunks)
    return path, answer["infotexts"][0]


def click(page: Any, elem_id: str) -> None:
    page.locator(f"#{elem_id}").first.click()
    page.settle()


def info_page(webui: browser.Webui, page: Any, path: Path, text: str) -> None:
    webui.tab("PNG Info")
    remove = page.locator(
        "#pnginfo_image button[aria-label=Clear], #pnginfo_image button[aria-label='Remove Image']"
    )
    if remove.count():
        remove.first.click()
        page.settle()
    page.locator("#pnginfo_image input[type=file]").first.set_input_files(path)
    page.wait_for_function(
        "text => document.querySelector('#pnginfo_generation_info textarea, #pnginfo_generation_info input')"
        ".value.split('\\n').at(-1) === text.split('\\n').at(-1)",
        arg=text,
    )


def test_every_way_between_tabs_gives_the_same_settings(webui: lab.Server, tmp_path: Path) -> None:
    browser.require()
    one, both = drawn(webui, tmp_path, ONE), drawn(webui, tmp_path, BOTH)
    with browser.opened(webui.url) as page:
        ui = browser.Webui(page)
        assert shown(page, "img2img")["enabled"] is False
        info_page(ui, page, *one)
        for tab in ("txt2img", "img2img"):
            click(page, f"{tab}_tab")
            assert shown(page, tab) == wanted(ONE), f"PNG info to {tab}"
        ui.tab("txt2img")
        ui.fill("txt2img_prompt", both[1])
        click(page, "paste")
        assert shown(page, "txt2img") == wanted(BOTH)
        assert ui.text("txt2img_prompt") == "a portrait of a nurse"
        for button in ("img2img", "inpaint"):
            click(page, f"txt2img_send_to_{button}")
            assert shown(page, "img2img") == wanted(BOTH), f"the button {button}"
            ui.tab("img2img")
            ui.fill("img2img_prompt", one[1])
            click(page, "paste_img2img")
            assert shown(page, "img2img") == wanted(ONE), "the arrow of img2img"
            ui.tab("txt2img")
        closed = page.locator(f"#{part('txt2img', 'enable-checkbox')} input").first
        closed.uncheck()
        click(page, "txt2img_send_to_img2img")
        assert shown(page, "img2img")["enabled"] is False, "a closed accordion stays closed"
        assert page.errors == []


@pytest.mark.parametrize("fair", [ONE, BOTH])
def test_the_apis_infotext_gives_the_same_settings(
    webui: lab.Server, fair: dict[str, Any], tmp_path: Path
) -> None:
    def ours(text: str) -> list[str]:
        return re.findall(r"Fair [a-z]+: (?:\"[^\"]*\"|[^,]*)", text)

    _, text = drawn(webui, tmp_path, fair)
    again = txt2img(webui, prompt=None, seed=None, steps=1, infotext=text)["infotexts"][0]
    assert ours(again) == ours(text) and len(ours(text)) >= 4
    broken = text.replace(f"Fair strength: {fair['strength']}", "Fair strength: strong")
    assert "Fair strength: 1.0" in txt2img(webui, prompt=None, seed=None, infotext=broken)["infotexts"][0]
