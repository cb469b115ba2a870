"""What the user is told, in the parameters, in the panel and on the page."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from fair_adapter.a1111_extension import injection, request, views
from fair_adapter.a1111_extension.service import FairService
from fair_adapter.shared.attributes import TargetDistribution
from fair_adapter.shared.bars import Bar, FaceBars
from fair_adapter.shared.statistics import FairnessStatistics
from fair_adapter.tests.a1111 import browser, lab
from fair_adapter.tests.a1111.test_hosts import PROMPT, STEPS, TITLE, last, picture, txt2img
from fair_adapter.tests.tiny_adapter import FIXED, make_adapter

FACE = FaceBars((1.0, 2.0, 30.0, 40.0), (Bar("gender", "female", 0.91, (230, 159, 0)),))


# ---- without a host


@pytest.mark.parametrize(
    ("arguments", "named", "refused"),
    [
        ([True, "x", "gender=70/30", "much"], ("x", "gender=70/30", 1.0), ("strength",)),
        ([{"adapter": "x", "strength": 10**400, "place": "below"}], ("x", "", 1.0), ("strength", "place")),
        ([{"adapter": "x", "strenght": 2, "strength": 0.5}], ("x", "", 0.5), ("strenght",)),
        ([1, 5, None, 0.5], ("None", "", 0.5), ("enabled", "adapter")),
    ],
)
def test_what_reads_of_a_wrong_request_is_kept(arguments: list, named: tuple, refused: tuple) -> None:
    asked, wrong = request.readable_part(arguments)
    assert (asked.adapter, asked.target, asked.strength) == named and wrong == refused


def test_pages_name_no_folder_of_this_machine(tmp_path: Path) -> None:
    """Advice, library, export: where on a machine the files lie is nobody's business."""
    tab = pytest.importorskip("fair_adapter.a1111_extension.tab", reason="needs gradio")
    root = tmp_path / "anna" / "webui"
    folder = root / "models" / "fair_adapters"
    make_adapter(FIXED).write(folder / "tiny.safetensors")
    (folder / "damaged.safetensors").write_bytes(b"x" * 20)
    service = FairService([folder], root / "extensions" / "x" / "data", roots=[root, root / "models"])
    store = injection.NativeStore(root / "embeddings", root / "models" / "Lora")
    host: Any = SimpleNamespace(native_store=lambda keep: store, take_embedding=lambda name, path: True)
    exported = tab.export_native(service, host, "tiny.safetensors", "", 1.0, "mine")
    pages = [service.advice(name, "", None) for name in ("damaged.safetensors", "missing", "../x")]
    pages += [tab._table(service), tab._card(service, "damaged.safetensors"), exported]
    pages += [tab.export_native(service, host, "damaged.safetensors", "", 1.0, "mine")]
    assert (
        "LoRA: Lora/fair_adapters/mine.safetensors" in exported
        and "damaged.safetensors: expected" in pages[0]
    )
    assert not [page for page in pages if "anna" in page or str(tmp_path) in page]


def test_a_plots_panel_counts_settings_apart() -> None:
    sections = []
    for share in (10, 90):
        statistics = FairnessStatistics()
        statistics.add([[FACE]])
        target = TargetDistribution.parse(f"gender={share}/{100 - share}")
        sections.append(
            views.Section(statistics, [(Image.new("RGB", (8, 8)), [FACE], "")], f"at {share}", [], target)
        )
    page = views.panels([*sections, views.Section(FairnessStatistics(), [], "failed", ["because"])])
    assert page.count("1 of 1 picture with a face") == 2 and page.count("fair-legend") == 1
    assert page.index("at 10") < page.index("of 10%") < page.index("at 90") < page.index("because")


def test_the_page_starts_with_an_adapter_that_fits(tmp_path: Path) -> None:
    """The menu was filled before a model was loaded; what somebody chose stays."""
    ui = pytest.importorskip("fair_adapter.a1111_extension.ui", reason="needs gradio")
    base = make_adapter().info.base
    make_adapter(base=replace(base, architecture="sdxl")).write(tmp_path / "a_big.safetensors")
    make_adapter(base=replace(base, widths={"clip_l": 9999})).write(tmp_path / "b_wide.safetensors")
    make_adapter().write(tmp_path / "c_fits.safetensors")
    service = FairService([tmp_path], tmp_path / "data")
    first = service.first_choice(own=True)
    assert (first, service.fitting_choice(base)) == ("a_big.safetensors", "c_fits.safetensors")
    text = service.default_target(first)
    name, target, settled, advice = ui.on_open(service, base, first, True, False, first, text)
    assert (name, settled) == ("c_fits.safetensors", True) and target and "fair-error" not in advice
    kept = [(True, True, first, text), (True, False, first, "gender=90/10"), (False, False, first, text)]
    kept.append((True, False, "b_wide.safetensors", text))
    for now in kept:
        name, target, settled, advice = ui.on_open(service, base, first, *now)
        assert (
            isinstance(name, dict)
            and isinstance(target, dict)
            and settled is now[0]
            and "fair-error" in advice
        )
    assert ui.on_open(service, None, first, True, False, first, text)[2] is False, "no model yet: not decided"


# ---- in running hosts


@pytest.mark.a1111
@pytest.mark.parametrize(
    ("adapter", "target", "said"),
    [
        ("gender-words", "race=20/30/50", "this adapter does not know race: ignored"),
        ("gender-words", "gender=30/70;race=20/30/50", "this adapter does not know race: ignored"),
        ("engineer", "gender=30/70", "alone: the target has no effect"),
        ("gender-words", "gender=95/5", ""),  # outside the trained range, but done
    ],
)
def test_what_a_target_asks_in_vain_stands_in_the_parameters(
    webui: lab.Server, adapter: str, target: str, said: str
) -> None:
    answer = txt2img(webui, {"adapter": adapter, "target": target})
    text = answer["infotexts"][0]
    found = re.search(r'Fair error: ("[^"]*"|[^,]*)', text)
    assert bool(said) == bool(found) and (found is None or said in found[1])
    assert "Fair hash" in text and answer["images"] != txt2img(webui)["images"], "the rest is done"
    chunk = json.loads(picture(answer["files"][0]).info["fair_adapter"])
    assert said in chunk.get("error", "")


@pytest.mark.a1111
def test_a_plots_panel_has_every_cell(webui: lab.Server) -> None:
    """Each target is counted by itself, cells of the same settings together, another click anew."""
    fair = {"adapter": "gender-words", "target": "gender=20/80"}
    body = {"prompt": PROMPT, "steps": STEPS, "seed": 11, "alwayson_scripts": {TITLE: {"args": [fair]}}}
    targets = ["gender=10/90", "gender=90/10", "gender=90/10"]
    webui.call("/standin/plot", {**body, "axis": "[Fair Adapter] Target", "values": targets})
    result = last(webui)
    assert [cell["target"] for cell in result["cells"]] == [
        "gender=female:10,male:90",
        "gender=female:90,male:10",
    ]
    assert [len(cell["pictures"]) for cell in result["cells"]] == [1, 2]
    assert result["target"] == result["cells"][-1]["target"]
    webui.call("/standin/plot", {**body, "axis": "Seed", "values": [1, 2, 3]})
    assert len(last(webui)["pictures"]) == 3 and "cells" not in last(webui)
    txt2img(webui, fair)
    assert len(last(webui)["pictures"]) == 1


@pytest.mark.a1111
def test_the_accordion_opens_with_an_adapter_that_fits(webui: lab.Server) -> None:
    """The first by name is for another model; a picture made with that one still asks for it."""
    browser.require()
    text = txt2img(webui, {"adapter": "abroad.safetensors"}, steps=1)["infotexts"][0]
    for pasted, expected in (("", "engineer.safetensors"), (text, "abroad.safetensors")):
        with browser.opened(webui.url) as page:
            ui = browser.Webui(page)
            chosen = page.locator(f"#{browser.PREFIX}adapter input").first
            assert chosen.input_value() == "abroad.safetensors"
            if pasted:
                ui.fill("txt2img_prompt", pasted)
                page.locator("#paste").first.click()
                page.settle()
            else:
                ui.open_accordion()
            page.wait_for_function(
                "name => document.querySelector(`#${name[0]}adapter input`).value === name[1]",
                arg=[browser.PREFIX, expected],
            )
            page.settle()
            advice = page.locator(f"#{browser.PREFIX}advice").first.inner_text()
            assert chosen.input_value() == expected and ("another model" in advice) == bool(pasted)
            assert str(webui.root) not in advice


@pytest.mark.a1111
def test_long_targets_are_seen_whole(webui: lab.Server) -> None:
    """In the export, which nobody sees while the page is made, and in the accordion."""
    browser.require()
    target = "gender=female:50,male:50;race=wmelh:33.3,black:33.3,asian:33.3"
    cut = "e => [e.scrollHeight - e.clientHeight, e.scrollWidth - e.clientWidth]"
    with browser.opened(webui.url) as page:
        ui = browser.Webui(page)
        page.settle()
        ui.tab(TITLE)
        page.wait_for_selector("#fair_library_table td")
        export = page.locator("#fair_export_target textarea, #fair_export_target input").first
        assert export.input_value() == target and max(export.evaluate(cut)) <= 2
        ui.tab("txt2img")
        ui.open_accordion()
        ui.choose(f"{browser.PREFIX}adapter", "random-both.safetensors")
        shown = page.locator(f"#{browser.PREFIX}target textarea").first
        assert shown.input_value() == target and max(shown.evaluate(cut)) <= 2
