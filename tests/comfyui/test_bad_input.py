"""Whatever comes in: a clear message on the node, the server lives on, later runs work."""

from __future__ import annotations

import shutil

import pytest

from fair_adapter.tests.comfyui.client import Client, Run
from fair_adapter.tests.comfyui.lab import Server
from fair_adapter.tests.comfyui.prompts import adapted, base, faces, node

FILES = {
    "truncated": "download or export it again",
    "corrupt": "the file is damaged",
    "pickle": "which is never opened here",
    "hostile": "do not begin with a header|a header of",
    "empty": "0 bytes",
    "foreign": "without the metadata entry 'fair_adapter'",
    "nan": "expected finite numbers in 'fair.soft.clip_l', found NaN",
}


def message(run: Run, name: str) -> str:
    """The one line that a node failed with."""
    assert run.refused is None and not run.ok
    assert run.error["node_id"] == name
    return run.error["exception_message"].strip()


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_adapter(client: Client, name: str) -> None:
    import re

    text = message(client.run(adapted(base(), f"{name}.safetensors")), "20")
    assert re.search(FILES[name], text) and f"{name}.safetensors" in text and "\n" not in text
    told = client.get("/fair_adapter/adapter", name=f"{name}.safetensors")
    assert told["error"] == text  # the panel says the same before anything is queued


def test_an_adapter_for_another_model(client: Client) -> None:
    text = message(client.run(adapted(base(), "wide.safetensors")), "22")
    assert "made for wide model (clip_l of width 768), found the connected model (clip_l of width" in text
    assert "load wide model or choose an adapter made for" in text
    assert "(sdxl), found the connected model (sd1)" in message(
        client.run(adapted(base(), "sdxl.safetensors")), "22"
    )
    assert client.run(base()).ok


@pytest.mark.parametrize("name", ["missing.safetensors", "../words.safetensors", "/etc/passwd", "", "a\0b"])
def test_names_that_are_none(client: Client, name: str) -> None:
    run = client.run(adapted(base(), name))
    assert run.refused is not None
    errors = run.refused["node_errors"]["20"]["errors"]
    assert any("expected" in error["details"] for error in errors)
    assert "expected" in client.get("/fair_adapter/adapter", name=name)["error"]
    assert not client.get("/fair_adapter/target", text="gender=50/50", adapter=name)["error"]


def combos(client: Client) -> list[tuple[str, str, list[str]]]:
    """Node, input and options of every combo of ours, as ComfyUI offers them."""
    found = []
    for kind, table in client.get("/object_info").items():
        for rows in table["input"].values() if kind.startswith("FairAdapter_") else ():
            for name, entry in rows.items():
                if entry[0] == "COMBO" or isinstance(entry[0], list):
                    options = entry[0] if isinstance(entry[0], list) else entry[1]["options"]
                    found.append((kind.removeprefix("FairAdapter_"), name, options))
    return found


def test_every_combo_refuses_what_it_does_not_offer(client: Client) -> None:
    """ComfyUI checks no combo of a V3 node."""
    found = combos(client)
    assert {(kind, name) for kind, name, _ in found} == {
        ("Apply", "soft_tokens"),
        ("DrawAttributes", "phrases"),
        ("DrawAttributes", "place"),
        ("FaceAttributes", "classifier"),
        ("FaceAttributes", "faces"),
        ("LiveBars", "decoder"),
        ("LoadAdapter", "adapter"),
        ("TargetByPrompt", "table"),
        ("TargetDistribution", "preset"),
    }
    for kind, name, options in found:
        for value in ("nonsense", "", "Default ", 3, "nonsense\nmore"):
            prompt = everything()
            (key,) = [k for k, each in prompt.items() if each["class_type"] == f"FairAdapter_{kind}"]
            prompt[key]["inputs"][name] = value
            run = client.run(prompt)
            assert run.refused is not None, (kind, name, value)
            details = " ".join(error["details"] for error in run.refused["node_errors"][key]["errors"])
            assert name in details and "expected" in details and "\n" not in details, details
            if name not in ("adapter", "phrases", "table"):  # files: the nearest is told, or their names
                assert all(repr(option) in details for option in options), details
    assert client.run(everything()).ok


def everything() -> dict:
    """One node of each kind that has a combo, each combo named."""
    prompt = faces(adapted(base(steps=2), target="gender=50/50"), classifier="default")
    prompt["2"] = node("LiveBars", model=["22", 0], vae=["1", 2], every=2, decoder="vae")
    prompt["6"]["inputs"]["model"] = ["2", 0]
    words = {"prompt": "a nurse", "pictures": 1, "seed": 0, "marker": "[person]", "first_picture": 0}
    prompt["24"] = node("DrawAttributes", target=["21", 0], place="before", phrases="portrait", **words)
    links = {"prompt": ["24", 0], "default": ["21", 0]}
    prompt["23"] = node("TargetByPrompt", table="invented_occupations", **links)
    prompt["22"]["inputs"] |= {"target": ["23", 0]}
    prompt["22"]["inputs"]["soft_tokens"] = "both prompts"
    del prompt["9"]  # ComfyUI would run what is well beside a node that is refused
    return prompt


def test_an_adapter_that_is_deleted_between_runs(client: Client, server: Server) -> None:
    folder = server.base / "models" / "fair_adapters"
    shutil.copy(folder / "words.safetensors", folder / "gone.safetensors")
    prompt = adapted(base(), "gone.safetensors")
    assert client.run(prompt).ok
    (folder / "gone.safetensors").unlink()
    run = client.run(prompt)
    assert run.refused is not None and "found none" in str(run.refused["node_errors"]["20"])
    assert client.run(adapted(base(), "words.safetensors")).ok


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gender=60/60", "sum to 120"),
        ("gendr=50/50", "did you mean 'gender'"),
        ("gender=women:50,men:50", "unknown class of gender 'women'"),
        ("gender", "expected 'attribute=shares'"),
        ("gender=nan/50", "finite"),
        ("gender=50/50;gender=40/60", "given twice"),
        ("x" * 5000, "expected"),
    ],
)
def test_target_texts_with_errors(client: Client, text: str, expected: str) -> None:
    assert expected in message(client.run(adapted(base(), target=text)), "21")
    told = client.get("/fair_adapter/target", text=text[:500], adapter="random.safetensors")
    assert told["error"] and told["groups"] == []


def test_a_preset_that_needs_an_adapter(client: Client) -> None:
    prompt = {"1": node("TargetDistribution", preset="as trained", text="gender=50/50"),
              "2": node("PreviewAny", source=["1", 1])}  # fmt: skip
    assert "needs an adapter and none is connected" in message(client.run(prompt), "1")
    prompt["1"]["inputs"]["preset"] = "75/25"
    run = client.run(prompt)
    assert run.ok and run.output("1")["fair_target"] == [{"text": "gender=female:75,male:25", "warnings": []}]


def test_presets_of_an_adapter_and_warnings(client: Client) -> None:
    def ask(**query: str) -> dict:
        return client.get("/fair_adapter/target", adapter="words.safetensors", **query)

    told = ask(text="", preset="as the base model does")
    assert told["text"] == "gender=female:30,male:70" and not told["warnings"] and not told["error"]
    assert ask(text="", preset="as trained")["groups"][1]["classes"] == ["wmelh", "black", "asian"]
    assert "outside 10 to 90%" in ask(text="gender=95/5")["warnings"][0]
    assert ask(text="gender=50/50;age=75/25")["warnings"] == ["this adapter does not know age: ignored"]
    joint = ask(text="gender*race=female*black:30,male*asian:70")
    assert [group["name"] for group in joint["groups"]] == ["gender*race"]
    assert sum(joint["groups"][0]["shares"]) == pytest.approx(100) and len(joint["groups"][0]["colours"]) == 6


def test_exports_that_cannot_be(client: Client) -> None:
    def export(**options: object) -> dict:
        inputs = {"adapter": ["20", 0], "name": "bad", "strength": 1.0, "overwrite": False, **options}
        return {"20": node("LoadAdapter", adapter="words.safetensors"), "30": node("Export", **inputs)}

    assert "letters, digits" in message(client.run(export(name="../up")), "30")
    assert "nothing to export" in message(client.run(export(strength=0.0)), "30")
    assert client.run(export()).ok
    again = client.run(export())
    assert again.ok and "already there, unchanged" in again.output("30")["fair_exported"][0]["lines"]
    assert "exists already" in message(client.run(export(strength=0.5)), "30")
    assert client.run(export(strength=0.5, overwrite=True)).ok


def test_a_connected_name_is_exported_once(client: Client) -> None:
    prompt = {
        "20": node("LoadAdapter", adapter="words.safetensors"),
        "21": node("PrimitiveString", value="linked"),
        "30": node("Export", adapter=["20", 0], name=["21", 0], strength=1.0, overwrite=False),
    }
    run = client.run(prompt)
    assert run.ok and "embedding:linked before the prompt" in run.output("30")["fair_exported"][0]["lines"]
    again = client.run(prompt)
    assert again.ok and again.executed == set()


def test_statistics_stay_in_their_folder(client: Client) -> None:
    prompt = faces(base(steps=2))
    prompt["10"] = node("Statistics", readings=["8", 2], collection="out", group="", save_as="../../up")
    assert "below the output folder" in message(client.run(prompt), "10")
    assert client.status("/fair_adapter/statistics/reset", b"{}")[0] == 400
    assert client.status("/fair_adapter/statistics/reset", b"no json")[0] == 400


def test_the_server_is_still_well(client: Client, server: Server) -> None:
    assert server.process.poll() is None
    assert client.run(adapted(base(), "words.safetensors")).ok
