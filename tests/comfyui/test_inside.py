"""In ComfyUI's own Python: import, the portrait model, LoRA names, soft tokens, for all architectures."""

from __future__ import annotations

import json
import os
import site
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fair_adapter.tests.comfyui.lab import Lab


@pytest.fixture(scope="module")
def found(lab: Lab, base: Path) -> dict[str, Any]:
    script = Path(__file__).with_name("inside.py")
    pack = base / "custom_nodes" / "fair-adapter"
    command = [str(part) for part in (lab.python, script, lab.comfyui, pack, base)]
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    if not lab.front_ends:  # an installation has no diffusers, which its portrait model is compared with
        environment["FAIR_ADAPTER_LENT"] = os.pathsep.join(site.getsitepackages())
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    lines = [line for line in result.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, result.stderr[-3000:]
    return json.loads(lines[-1].removeprefix("RESULT "))


def test_import_is_quick_and_light(found: dict[str, Any]) -> None:
    assert found["import"]["heavy"] == []
    assert found["import"]["seconds"] < 0.3  # of the processor, so that a busy machine changes nothing
    assert found["import"]["web"]


def test_portrait_model_is_the_one_that_was_trained(found: dict[str, Any]) -> None:
    assert found["portrait"]["text"] < 1e-5 and found["portrait"]["unet"] < 1e-5
    assert found["portrait"]["vae"] < 1e-4 and found["portrait"]["scale"] < 1e-5


def test_every_exported_layer_is_matched(found: dict[str, Any]) -> None:
    keys = found["keys"]
    assert keys["layers"] > 100 and keys["unmatched"] == [] and keys["taken"] == keys["layers"]


@pytest.mark.parametrize(
    ("name", "layers", "widths"),
    [
        ("sd1", 200, {"clip_l": 768, "context": 768, "unet": 320}),
        ("sd2", 266, {"clip_h": 1024, "context": 1024, "unet": 320}),
        ("sdxl", 824, {"clip_l": 768, "clip_g": 1280, "context": 2048, "unet": 320}),
    ],
)
def test_large_models_are_recognised(
    found: dict[str, Any], name: str, layers: int, widths: dict[str, int]
) -> None:
    assert found[name] == {"architecture": name, "widths": widths, "layers": layers, "wrong": []}


@pytest.mark.parametrize("name", ["portrait", "sd1", "sd2", "sdxl", "sd3"])
def test_soft_tokens_stand_where_an_embedding_would(found: dict[str, Any], name: str) -> None:
    """Also in prompts that nodes put together from several texts."""
    told = found["tokens"][name]
    assert told["wrong"] == [] and told["texts"] == 11
    assert told["nodes"] == {"sdxl": 26, "sd3": 35}.get(name, 21)


@pytest.mark.parametrize("name", ["portrait", "sdxl", "sd3"])
def test_what_stands_behind_a_typed_embedding(found: dict[str, Any], name: str) -> None:
    """Of ComfyUI itself, as docs/comfyui.md tells."""
    marks = found["tokens"][name]["typed"]
    assert marks.pop(",") == "read"
    assert set(marks) == set(".;:!)") and set(marks.values()) == {"ignored"}


@pytest.mark.parametrize("name", ["portrait", "sd1", "sd2", "sdxl", "sd3"])
def test_packs_find_what_they_look_for_in_a_tokenizer(found: dict[str, Any], name: str) -> None:
    told = found["tokens"][name]["looked_into"]
    assert len(told) == 7 and [key for key, fine in told.items() if not fine] == []


def test_each_clip_knows_which_tokens_belong_to_which_prompt(found: dict[str, Any]) -> None:
    """Two Fair Adapter nodes in a row: "random" and then "words"."""
    both = ["words", "random"]
    assert found["in_a_row"] == {
        "positive prompt, positive prompt": [both, []],
        "positive prompt, both prompts": [both, ["words"]],
        "both prompts, positive prompt": [both, ["random"]],
        "both prompts, both prompts": [both, both],
        "second off": [["random"], []],
        "behind the negative one": [["words"], []],
        "the same twice": [["random", "random"], ["random"]],
        "untouched": [[], ["random"]],
    }


def test_a_saved_clip_tells_what_it_lacks(found: dict[str, Any]) -> None:
    told = found["saved"]
    assert told["base"] == []
    for name in ("clip", "negative"):
        (line,) = told[name]
        assert "holds the LoRA of random and not its soft tokens (5 in clip_l)" in line, name
        assert "Export Adapter" in line and "embedding:NAME" in line


def test_a_connection_brings_no_choice_that_is_none(found: dict[str, Any]) -> None:
    told = found["brought"]
    assert set(told) == {"preset", "soft_tokens", "decoder", "faces", "classifier"}
    for name, text in told.items():
        assert text.startswith(f"FairAdapterError: {name}: expected one of '"), text
        assert "found 'nonsense'" in text


def test_live_bars_take_the_cheapest_sharp_decoder(found: dict[str, Any]) -> None:
    assert found["decoders"] == {
        "small on a CPU": "vae",
        "none": "colours",
        "large on a CPU": "colours",
        "large on a GPU": "vae",
        "large on a full GPU": "colours",
        "large before the model": "colours",
    }
    assert found["copied"]["difference"] < 1e-4 and found["copied"]["kept"]


def test_cancel_reaches_the_sampler_although_the_bars_saw_it_first(found: dict[str, Any]) -> None:
    assert found["cancelled"] == {"reached": True, "kept": True, "silent": True}


def test_statistics_are_counted_beside_the_event_loop(found: dict[str, Any]) -> None:
    assert set(found["counting"]) == {"statistics", "statistics_csv", "statistics_png"}
    for route, beside in found["counting"].items():
        assert len(beside) > 2 and all(beside), (route, beside)


def test_faces_are_read_without_a_package_of_their_own(found: dict[str, Any]) -> None:
    assert found["read"] == ["female", "black", "young"]


def test_z_image_is_recognised_with_every_layer(found: dict[str, Any]) -> None:
    assert found["language"]["model"] == {
        "architecture": "z-image",
        "widths": {"qwen3_4b": 2560},
        "layers": 30 * 4 + 36 * 7,
        "wrong": [],
        "stock": [],
    }


def test_soft_tokens_stand_behind_a_language_models_template(found: dict[str, Any]) -> None:
    tokens = found["language"]["tokens"]
    assert tokens["wrong"] == [] and tokens["begin"] == [151644, 872, 198]
    assert tokens["without_template"] == 0 and tokens["joined"] == [5, 0]
    assert tokens["encoded"] == 5 and tokens["negative"]


def test_comfyuis_language_model_sees_what_was_trained(found: dict[str, Any]) -> None:
    assert found["language"]["encoded"] < 1e-4
