"""Our panels in the real front end: oldest and newest, in the canvas and in Nodes 2.0."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fair_adapter.shared.presets import linked
from fair_adapter.tests.comfyui import browser
from fair_adapter.tests.comfyui.conftest import Start
from fair_adapter.tests.comfyui.lab import FOLDER, FRONT_ENDS, Lab

FLOWS = sorted((Path(__file__).resolve().parents[2] / "example_workflows").glob("*.json"))
SCREENSHOTS = FOLDER.parent / "screenshots"
SLIDERS = (
    ([50, 50], 0, 75),
    ([40, 40, 20], 2, 50),
    ([0, 100, 0], 1, 40),
    ([1, 1, 1], 0, 33.3),
    ([20, 80], 0, -3),
    ([33.3, 33.3, 33.4], 1, 12.3),
    ([7], 0, 12),
    ([10, 20, 30, 40], 3, 0.1),
)
ADAPTER = ["FairAdapter_LoadAdapter", "adapter"]
TEXT = ["FairAdapter_TargetDistribution", "text"]
PRESET = ["FairAdapter_TargetDistribution", "preset"]
Page = browser.Page


@pytest.fixture(
    scope="module",
    params=[(version, vue) for version in FRONT_ENDS for vue in (False, True)],
    ids=[f"{version}-{kind}" for version in FRONT_ENDS for kind in ("canvas", "nodes2")],
)
def page(request: pytest.FixtureRequest, start: Start, chromium: str) -> Iterator[Page]:
    version, vue = request.param
    name = f"{version}_{'nodes2' if vue else 'canvas'}"
    with browser.opened(chromium, start(version).url, vue, name) as opened:
        yield opened


def live() -> dict:
    return browser.workflow(next(path for path in FLOWS if "live" in path.stem))


def test_front_end(page: Page, lab: Lab) -> None:
    version, _, kind = page.name.partition("_")
    shown = page.page.evaluate("() => window.__COMFYUI_FRONTEND_VERSION__")
    assert shown == version if lab.front_ends else shown
    setting = "() => window.app.extensionManager.setting.get('Comfy.VueNodes.Enabled')"
    assert page.page.evaluate(setting) == (kind == "nodes2")


def test_sliders_count_as_python_does(page: Page) -> None:
    assert page.do("linked", [list(row) for row in SLIDERS]) == [linked(*row) for row in SLIDERS]


@pytest.mark.parametrize("path", FLOWS, ids=[path.stem for path in FLOWS])
def test_templates_load(page: Page, path: Path) -> None:
    workflow = browser.workflow(path)
    page.load(workflow)
    assert page.do("unknown") == []
    page.do("show", [0.3, 20, 70])  # whole: a canvas mounts no panel of a node that is out of sight
    page.page.wait_for_timeout(500)
    ours = [n for n in workflow["nodes"] if n["type"].startswith("FairAdapter_") and "Load" not in n["type"]]
    assert page.do("count", ".fair-panel") >= len(ours) > 0


@pytest.mark.parametrize("path", FLOWS, ids=[path.stem for path in FLOWS])
def test_no_node_of_a_template_lies_on_another(page: Page, path: Path) -> None:
    """By the sizes that the front end really draws, with the advanced inputs unfolded."""
    page.load(browser.workflow(path))
    page.do("show", [0.6, 20, 70])
    page.do("unfold", "FairAdapter_Apply")
    page.page.wait_for_timeout(1200)
    boxes = page.do("drawn")
    assert len(boxes) > 5
    touching = [
        (one[0], other[0])
        for index, one in enumerate(boxes)
        for other in boxes[:index]
        if one[1] < other[3] and other[1] < one[3] and one[2] < other[4] and other[2] < one[4]
    ]
    assert touching == []


def test_sliders_stay_linked(page: Page) -> None:
    page.load(live())
    page.do("set", [*ADAPTER, "words.safetensors"])
    page.wait_for(".fair-slider[data-cell=female]")
    page.page.evaluate("() => window.fair.slider('female').focus()")
    drag(page, "female", 80)
    assert page.do("value", TEXT).startswith("gender=female:80,male:20;race=")
    assert page.do("focused") == "female"  # so that the arrow keys go on
    assert shown(page, "male") == 20
    drag(page, "black", 50)
    assert [shown(page, cell) for cell in ("wmelh", "black", "asian")] == [25, 50, 25]
    page.do("press", "joint")
    page.wait_for("[data-cell='female*black']")
    assert "gender*race=" in page.do("value", TEXT) and "female*black:40" in page.do("value", TEXT)
    page.do("press", "apart")
    page.wait_for(".fair-slider[data-cell=female]")
    assert shown(page, "female") == 80


def test_wrong_texts_presets_and_warnings_are_shown(page: Page) -> None:
    page.load(live())
    page.do("set", [*ADAPTER, "words.safetensors"])
    page.do("set", [*TEXT, "gender=60/60"])
    page.wait_for(".fair-error")
    assert "sum to 120" in page.do("text", ".fair-error")
    page.do("set", [*PRESET, "as the base model does"])
    page.page.wait_for_function("() => window.fair.slider('female')?.value === '30'")
    drag(page, "female", 95)
    assert page.do("value", PRESET) == "sliders or text"
    page.wait_for(".fair-warning")
    assert "outside 10 to 90%" in page.do("text", ".fair-warning")


def test_a_run_tells_what_the_graph_does_not(page: Page) -> None:
    """An adapter behind a reroute, and a file that was replaced under its name."""
    page.load(live())
    page.do("set", [*TEXT, "gender=95/5"])
    page.wait_for(".fair-slider[data-cell=female]")
    page.page.wait_for_function("() => window.fair.slider('female')?.value === '95'")
    ran(page, TEXT[0], "fair_target", {"text": "gender=female:95,male:5", "warnings": ["of a run"]})
    assert page.do("text", ".fair-warning") == "\u26a0 of a run"
    told = {"title": "replaced", "facts": [], "evaluation": [], "error": ""}
    ran(page, ADAPTER[0], "fair_adapter", told)
    assert page.do("text", "[data-fair=fair_loadAdapter] .fair-title") == "replaced"


def ran(page: Page, kind: str, key: str, told: dict) -> None:
    """What the front end does when the server says that a node ran."""
    page.page.evaluate(
        "([kind, key, told]) => window.fair.node(kind).onExecuted({ [key]: [told] })", [kind, key, told]
    )


def test_a_run_shows_bars(page: Page) -> None:
    page.load(live())
    page.do("set", [*ADAPTER, "words.safetensors"])
    page.do("set", ["EmptyLatentImage", "batch_size", 4])
    page.do("set", ["KSampler", "steps", 12])
    page.do("set", ["KSampler", "seed", sum(map(ord, page.name))])
    # nothing of an earlier page's run: a node whose result is cached has nothing to tell
    page.do("set", ["FairAdapter_Apply", "strength", 0.9 if "canvas" in page.name else 0.95])
    page.run()
    for name in ("fair_liveBars", "fair_faces"):
        panel = f".fair-panel[data-fair={name}]"
        assert page.do("count", f"{panel} .fair-picture") == 4, name
        assert page.do("count", f"{panel} .fair-row") == 7, name
        assert page.do("height", f"{panel} .fair-picture") > 10, name
    assert page.do("count", ".fair-panel[data-fair=fair_faces] .fair-bar") >= 6
    assert "2 soft tokens in clip_l" in page.do("text", ".fair-panel[data-fair=fair_applied]")
    page.picture(SCREENSHOTS / f"{page.name}.png")


def test_a_run_shows_what_each_picture_says_and_the_session(page: Page) -> None:
    page.load(browser.workflow(next(path for path in FLOWS if "words" in path.stem)))
    page.do("press", "reset")
    for kind, name, value in (
        ("FairAdapter_DrawAttributes", "pictures", 3),
        ("FairAdapter_DrawAttributes", "seed", sum(map(ord, page.name))),
        ("FairAdapter_Session", "even_out", True),
        ("FairAdapter_Session", "pictures", 3),
        ("KSampler", "steps", 4),
    ):
        page.do("set", [kind, name, value])
    page.run()
    said = ".fair-panel[data-fair=fair_words] .fair-line"
    assert page.do("count", said) == 3 and page.do("text", said).startswith("1. ")
    session = ".fair-panel[data-fair=fair_session]"
    page.wait_for(f"{session} .fair-row")
    assert page.do("text", f"{session} .fair-title").startswith("the last 3 pictures, ")
    assert "next 3: gender female" in page.do("text", session)
    page.picture(SCREENSHOTS / f"{page.name}_words.png")


def test_our_files_complained_of_nothing(page: Page) -> None:
    assert page.messages == []


def drag(page: Page, cell: str, value: float) -> None:
    page.do("drag", [cell, value])
    page.page.wait_for_timeout(900)


def shown(page: Page, cell: str) -> float:
    return float(page.page.evaluate("(cell) => window.fair.slider(cell).value", cell))
