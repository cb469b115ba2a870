"""Target by Prompt in the real ComfyUI: which target a prompt gets, what is told, and the panel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fair_adapter.tests.comfyui import browser
from fair_adapter.tests.comfyui.client import Client
from fair_adapter.tests.comfyui.conftest import Start
from fair_adapter.tests.comfyui.lab import FOLDER, FRONT_ENDS, Server
from fair_adapter.tests.comfyui.prompts import Prompt, adapted, base, node
from fair_adapter.tests.comfyui.test_bad_input import message

HEAD = "pattern,target,source,year\n"
ROWS = HEAD + 'nurse,"gender=female:80,male:20",Census of the lab,2031\nfarmer,gender=25/75,,\n'
WORDS = "words.safetensors"
NURSE, PILOT = ("a photo of the face of a nurse, a person", "a photo of the face of a pilot, a person")
TEMPLATE = Path(__file__).resolve().parents[2] / "example_workflows" / "8_targets_by_prompt.json"


@pytest.fixture
def table(server: Server) -> Iterator[Path]:
    path = server.base / "models" / "fair_adapters" / "lab.csv"
    path.write_text(ROWS, encoding="utf-8")
    yield path
    path.unlink(missing_ok=True)


def by_prompt(text: str, default: str = "gender=50/50", table: str = "lab.csv") -> Prompt:
    """21 is the default target, 24 writes the prompt for the encoder and for 23, Target by Prompt."""
    prompt = adapted(base(text), WORDS, target=default)
    prompt["24"] = node("PrimitiveStringMultiline", value=text)
    prompt["3"]["inputs"]["text"] = ["24", 0]
    links = {"adapter": ["20", 0], "default": ["21", 0], "prompt": ["24", 0]}
    prompt["23"] = node("TargetByPrompt", table=table, **links)
    prompt["22"]["inputs"]["target"] = ["23", 0]
    return prompt


def test_a_prompt_is_drawn_at_the_target_of_its_row(client: Client, table: Path) -> None:
    ours = client.run(by_prompt(NURSE))
    assert ours.ok, ours.events[-1]
    told = ours.output("23")["fair_chosen"][0]
    assert told["text"] == "gender=female:80,male:20" and told["warnings"] == []
    assert told["told"] == "lab.csv, row 2: nurse (Census of the lab, 2031)"
    plain = client.run(adapted(base(NURSE), WORDS, target="gender=80/20"))
    equal = client.run(adapted(base(NURSE), WORDS, target="gender=50/50"))
    mine, other, default = (client.pictures(run, "9") for run in (ours, plain, equal))
    assert np.array_equal(mine, other) and not np.array_equal(mine, default)


def test_a_prompt_without_a_row_is_drawn_at_the_default_and_says_so(client: Client, table: Path) -> None:
    ours = client.run(by_prompt(PILOT, "gender=30/70"))
    told = ours.output("23")["fair_chosen"][0]
    assert told["told"] == "" and told["text"] == "gender=female:30,male:70"
    assert told["warnings"] == [f"lab.csv: no row for '{PILOT}', so the default target"]
    plain = client.run(adapted(base(PILOT), WORDS, target="gender=30/70"))
    assert np.array_equal(client.pictures(ours, "9"), client.pictures(plain, "9"))
    alone = by_prompt(PILOT)
    del alone["23"]["inputs"]["default"]
    chosen = client.run(alone).output("23")["fair_chosen"][0]["text"]
    assert chosen.startswith("gender=female:50,male:50;race=")  # the adapter's own
    del alone["23"]["inputs"]["adapter"]
    assert "so the default target, found none; connect Target Distribution" in message(
        client.run(alone), "23"
    )


def test_an_edited_table_is_read_again(client: Client, table: Path) -> None:
    first = client.run(by_prompt(NURSE)).output("23")["fair_chosen"][0]["text"]
    table.write_text(ROWS.replace("female:80,male:20", "female:90,male:10"), encoding="utf-8")
    ours = client.run(by_prompt(NURSE))
    assert first != ours.output("23")["fair_chosen"][0]["text"] == "gender=female:90,male:10"


def test_the_row_is_told_as_a_text_too(client: Client, table: Path) -> None:
    prompt = by_prompt(NURSE)
    prompt["25"] = node("PreviewAny", source=["23", 2])
    assert "row 2: nurse" in client.run(prompt).output("25")["text"][0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + "nurse,gender=80/30,,\n", "lab.csv, row 2: target gender: shares sum to 110"),
        ("pattern;target;source;year\n", "lab.csv, row 1: expected commas between the columns"),
        (HEAD + "nurse,hat=50/50,,\n", "lab.csv, row 2: unknown attribute 'hat'"),
    ],
)
def test_a_fault_of_a_file_is_one_line_on_the_node_and_in_the_panel(
    client: Client, table: Path, text: str, said: str
) -> None:
    table.write_text(text, encoding="utf-8")
    told = message(client.run(by_prompt(NURSE)), "23")
    assert said in told and "\n" not in told
    assert client.get("/fair_adapter/table", name="lab.csv")["error"] == told
    table.write_text(ROWS, encoding="utf-8")
    assert client.run(by_prompt(NURSE)).ok


def test_the_route_lists_the_rows(client: Client, table: Path) -> None:
    found = client.get("/fair_adapter/table", name="lab.csv")
    assert found["count"] == 2 and found["error"] == ""
    assert found["rows"][0] == {
        "pattern": "nurse",
        "target": "gender=female:80,male:20",
        "origin": "Census of the lab, 2031",
    }
    assert "expected a file name below" in client.get("/fair_adapter/table", name="../x")["error"]


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "nodes2"])
def test_the_panel_lists_the_rows_and_says_which_one_it_was(start: Start, chromium: str, vue: bool) -> None:
    name = f"table_{'nodes2' if vue else 'canvas'}"
    with browser.opened(chromium, start(FRONT_ENDS[-1]).url, vue, name) as page:
        page.load(browser.workflow(TEMPLATE))
        panel = ".fair-panel[data-fair=fair_byPrompt]"
        page.wait_for(f"{panel} .fair-facts")
        assert "moon gardener" in page.do("text", panel)
        page.do("set", ["KSampler", "steps", 4])
        # nothing of an earlier page's run: a node whose result is cached has nothing to tell
        page.do("set", ["PrimitiveStringMultiline", "value", f"a portrait of a moon gardener, {name}"])
        page.do("set", ["EmptyLatentImage", "batch_size", 2])
        page.run()
        told = page.do("text", panel)
        assert "row 3: moon gardener (invented for this example, 2031)" in told
        assert "gender=female:20, male:80" in told and page.messages == []
        page.picture(FOLDER.parent / "screenshots" / f"{name}.png")
