"""The extension in running hosts: what reaches the pictures, the parameters, the files and the API."""

import base64
import io
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fair_adapter.shared.adapter import FairnessAdapter
from fair_adapter.shared.adapter_export import export_adapter
from fair_adapter.tests.a1111 import lab

pytestmark = pytest.mark.a1111
GOLDEN = Path(__file__).parent / "golden"
PROMPT, STEPS = "a portrait of a nurse", 5
TITLE = "Fair Adapter"


def txt2img(server: lab.Server, fair: dict | list | None = None, path: str = "txt2img", **body: Any) -> dict:
    """A small generation; `fair` are the script's arguments."""
    request = {"prompt": PROMPT, "steps": STEPS, "seed": 11, **body}
    if fair is not None:
        request["alwayson_scripts"] = {TITLE: {"args": fair if isinstance(fair, list) else [fair]}}
    answer = server.call(f"/sdapi/v1/{path}", request)
    assert "images" in answer, answer
    drawn = [without_text(text) for text in answer["images"]]
    return {**answer, **json.loads(answer["info"]), "images": drawn, "files": answer["images"]}


def picture(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def without_text(text: str) -> str:
    """The same pixels as a PNG without parameters and readings."""
    buffer = io.BytesIO()
    picture(text).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def last(server: lab.Server, tab: str = "txt2img") -> dict:
    return server.call(f"/fair-adapter/last?tab={tab}")["result"]


@contextmanager
def generating(server: lab.Server, fair: dict, **body: Any) -> Iterator[list[dict]]:
    """A generation in the background; the list has its answer when the block is left."""
    answers: list[dict] = []
    thread = threading.Thread(target=lambda: answers.append(txt2img(server, fair, **body)))
    thread.start()
    try:
        yield answers
    finally:
        thread.join()


def saved(server: lab.Server) -> list[Path]:
    return sorted((server.root / "outputs").rglob("*.png"))


# ---- off


def test_off_is_byte_identical_to_a_host_without_us(
    webui: lab.Server, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path / "plain"
    lab.make_installation(root, extension=False)
    plain = lab.start(Path(webui.process.args[0]), root, webui.kind)
    body = {"batch_size": 2, "n_iter": 2, "enable_hr": True, "styles": ["smiling"], "save_images": True}
    try:
        theirs = txt2img(plain, **body)
        for arguments in (None, [False, "engineer.safetensors", "gender=90/10", 2.0], [{"enabled": False}]):
            before = set(saved(webui))
            ours = txt2img(webui, arguments, **body)
            assert (ours["files"], ours["infotexts"]) == (theirs["files"], theirs["infotexts"])
            fresh = sorted(set(saved(webui)) - before)
            assert [p.read_bytes() for p in fresh] == [p.read_bytes() for p in saved(plain)]
    finally:
        plain.stop()


def test_strength_zero_is_the_base_model(webui: lab.Server) -> None:
    base = txt2img(webui)["images"]
    assert txt2img(webui, {"adapter": "random-both", "strength": 0})["images"] == base
    assert txt2img(webui, {"adapter": "None", "target": "gender=50/50"})["images"] == base


# ---- on


def test_tokens_act_as_if_typed_in_base_and_hires_pass(webui: lab.Server) -> None:
    typed = f"engineer engineer engineer engineer {PROMPT}"
    for hires in (False, True):
        ours = txt2img(webui, {"adapter": "engineer"}, enable_hr=hires)
        assert ours["images"] == txt2img(webui, prompt=typed, enable_hr=hires)["images"]
        assert ours["images"] != txt2img(webui, enable_hr=hires)["images"]
        assert ours["infotexts"][0].startswith(f"{PROMPT}\n")


def test_every_picture_of_every_batch_has_the_tokens(webui: lab.Server) -> None:
    body = {"batch_size": 2, "n_iter": 2}
    ours = txt2img(webui, {"adapter": "engineer"}, **body)
    assert len(last(webui)["pictures"]) == 4
    typed = txt2img(webui, prompt=f"engineer engineer engineer engineer {PROMPT}", **body)
    assert ours["images"] == typed["images"] and len(ours["images"]) == 5
    assert last(webui) is None  # the panel does not show what belongs to an earlier batch


def test_a_target_is_the_exported_files_of_that_target(webui: lab.Server) -> None:
    """Hidden tokens and LoRA draw what the stock LoRA and embedding of the same adapter draw."""
    adapter = FairnessAdapter.read(webui.root / "models" / "fair_adapters" / "random-both.safetensors")
    target, name = "gender=80/20", f"stock_{webui.kind}"
    folder = webui.root / "embeddings"
    export_adapter(adapter, target, name, webui.root / "models" / "Lora", folder, overwrite=True)
    webui.call("/standin/reload_embeddings", {})
    stock = txt2img(webui, prompt=f"{name} {PROMPT} <lora:{name}:1>", enable_hr=True)
    ours = txt2img(webui, {"adapter": "random-both", "target": target}, enable_hr=True)
    assert ours["images"] == stock["images"]
    assert "Lora hashes" in ours["infotexts"][0]


def test_the_target_moves_the_shares(webui: lab.Server) -> None:
    """With an adapter whose tokens are attribute words: it needs no training, and must work."""
    shares = {}
    for female in (10, 90):
        fair = {"adapter": "gender-words", "target": f"gender={female}/{100 - female}"}
        txt2img(webui, fair, prompt="a photo of the face of a person", steps=12, batch_size=12)
        rows = last(webui)["statistics"]
        shares[female] = next(row["share"] for row in rows if row["class"] == "female")
    assert shares[90] - shares[10] > 0.3


def test_pictures_follow_the_target_without_a_stale_cache(webui: lab.Server) -> None:
    def draw(target: str) -> list[str]:
        return txt2img(webui, {"adapter": "gender-words", "target": target})["images"]

    first, second = draw("gender=10/90"), draw("gender=60/40")
    assert first != second
    for file in (webui.root / "embeddings" / "fair_adapters").iterdir():
        file.unlink()  # written again, under the same name
    assert (draw("gender=10/90"), draw("gender=60/40")) == (first, second)


def test_kept_files_are_few(webui: lab.Server) -> None:
    for share in range(10, 90, 8):
        txt2img(webui, {"adapter": "random-both", "target": f"gender={share}/{100 - share}"}, steps=1)
    for folder in ("embeddings", "models/Lora"):
        assert len(list((webui.root / folder / "fair_adapters").glob("fair_*.safetensors"))) == 8


def test_written_into_the_prompt_it_draws_the_same(webui: lab.Server) -> None:
    for adapter in ("random-both", "gender-words"):
        hidden = txt2img(webui, {"adapter": adapter}, enable_hr=True)
        visible = txt2img(webui, {"adapter": adapter, "place": "in the prompt"}, enable_hr=True)
        assert visible["images"] == hidden["images"]
        assert visible["infotexts"][0].startswith("fair_")
        again = txt2img(webui, prompt=None, seed=None, infotext=visible["infotexts"][0], enable_hr=True)
        assert again["infotexts"][0].count("fair_") == visible["infotexts"][0].count("fair_")
        assert again["images"] == hidden["images"]


def test_every_batch_has_its_own_visible_tokens_in_the_hires_pass(webui: lab.Server) -> None:
    """Every picture has its own prompt; the host cuts out those of the hires pass late."""
    body = {"prompt": "__colour__ portrait", "enable_hr": True, "n_iter": 2}
    hidden = txt2img(webui, {"adapter": "random-both"}, **body)
    visible = txt2img(webui, {"adapter": "random-both", "place": "in the prompt"}, **body)
    assert visible["images"] == hidden["images"] and len(set(hidden["images"])) == 3


def test_our_lora_works_where_networks_are_off_and_goes_again(webui: lab.Server) -> None:
    off: dict[str, Any] = {"disable_extra_networks": True, "enable_hr": True}
    txt2img(webui)  # the hosts leave a LoRA on until a generation with networks begins
    base = txt2img(webui, **off)["images"]
    ours = txt2img(webui, {"adapter": "random-both"}, **off)["images"]
    assert ours == txt2img(webui, {"adapter": "random-both"}, enable_hr=True)["images"] != base
    txt2img(webui)
    assert txt2img(webui, {"adapter": "random-both"}, **off)["images"] == ours
    assert txt2img(webui, **off)["images"] == base


@pytest.mark.parametrize("mask", [False, True])
def test_img2img_and_inpainting(webui: lab.Server, mask: bool) -> None:
    start = txt2img(webui)["images"][0]
    white = Image.new("L", (128, 128), 0)
    white.paste(255, (0, 0, 128, 64))
    buffer = io.BytesIO()
    white.save(buffer, "PNG")
    body: dict[str, Any] = {"init_images": [start], "denoising_strength": 0.8, "path": "img2img"}
    if mask:
        body["mask"] = base64.b64encode(buffer.getvalue()).decode()
    base = txt2img(webui, **body)
    ours = txt2img(webui, {"adapter": "engineer"}, **body)
    assert last(webui, "img2img")["origin"] == "img2img"
    assert ours["images"] != base["images"]
    typed = txt2img(webui, prompt=f"engineer engineer engineer engineer {PROMPT}", **body)
    assert ours["images"] == typed["images"]


def test_styles_and_prompts_changed_by_other_scripts(webui: lab.Server) -> None:
    """The `colours` script of the installation gives every picture a prompt of its own, as wildcards do."""
    ours = txt2img(
        webui, {"adapter": "engineer"}, prompt="__colour__ portrait", batch_size=2, styles=["smiling"]
    )
    assert [text.split("\n")[0] for text in ours["infotexts"]][1:] == [
        "red portrait, smiling",
        "blue portrait, smiling",
    ]
    typed = "engineer engineer engineer engineer __colour__ portrait"
    assert ours["images"] == txt2img(webui, prompt=typed, batch_size=2, styles=["smiling"])["images"]


def test_visible_tokens_survive_scripts_that_make_the_prompts_anew(webui: lab.Server) -> None:
    """`Later` of the installation runs after ours and writes all prompts again."""
    ours = {"adapter": "random-both", "place": "in the prompt"}
    text = txt2img(webui, ours, prompt="__later__ portrait", batch_size=2)["infotexts"][2]
    assert re.match(r"fair_\w{12} <lora:fair_\w{12}:1> evening portrait\n", text)


def test_interrupt_and_skip_leave_nothing_behind(webui: lab.Server) -> None:
    before = txt2img(webui, {"adapter": "engineer"})["images"]
    for stop in ("interrupt", "skip"):
        with generating(webui, {"adapter": "engineer"}, steps=60, batch_size=4, n_iter=2) as answers:
            wait_for(lambda: webui.call("/sdapi/v1/progress")["state"]["sampling_step"] > 1)
            webui.call(f"/sdapi/v1/{stop}", {})
        assert answers and webui.call("/fair-adapter/live") == {"active": False}
    assert txt2img(webui, {"adapter": "engineer"})["images"] == before


# ---- live bars, panel, files


def wait_for(condition: Any, seconds: float = 90) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found


def test_live_bars_reach_the_route_and_the_progress_endpoint(webui: lab.Server) -> None:
    webui.call("/standin/options", {"fair_live_every": 1})
    target = "gender=70/30"
    body = {"steps": 60, "batch_size": 2}
    ours = {"adapter": "gender-words", "target": target}
    with generating(webui, ours, **body):
        seen = wait_for(lambda: (state := webui.call("/fair-adapter/live")).get("pictures") and state)
        assert len(seen["pictures"]) == 2 and 1 <= seen["step"] <= seen["total"] == 60
        assert seen["reliable"] is (seen["step"] >= 0.4 * 60)
        image = wait_for(lambda: webui.call("/sdapi/v1/progress")["current_image"])
        assert picture(image).width > 200  # the grid with shares and legend, not the host's own small preview
        webui.call("/sdapi/v1/interrupt", {})
    webui.call("/standin/options", {"fair_live_every": 3})


def test_overlays_and_statistics_of_a_batch(webui: lab.Server) -> None:
    plain = txt2img(webui, {"adapter": "None"}, batch_size=2, n_iter=2)
    ours = txt2img(
        webui, {"adapter": "None", "target": "gender=25/75", "overlay": True}, batch_size=2, n_iter=2
    )
    assert len(ours["images"]) == len(ours["infotexts"]) == len(plain["images"]) + 4
    assert ours["images"][:5] == plain["images"]
    assert len(set(ours["images"])) == 9
    assert ours["infotexts"][5:] == ours["infotexts"][1:5]
    result = last(webui)
    assert {row["target"] for row in result["statistics"] if row["attribute"] == "gender"} == {0.25, 0.75}
    assert sum(row["count"] for row in result["statistics"] if row["attribute"] == "gender") <= 4


def test_saved_pictures_carry_readings_and_stay_clean(webui: lab.Server) -> None:
    def one(fair: dict) -> tuple[Image.Image, dict]:
        before = set(saved(webui))
        answer = txt2img(webui, fair, save_images=True)
        (path,) = set(saved(webui)) - before
        return Image.open(path), answer

    image, answer = one({"adapter": "gender-words", "target": "gender=70/30"})
    assert image.tobytes() == picture(answer["images"][0]).tobytes()
    chunk = json.loads(image.info["fair_adapter"])
    assert chunk["adapter"] == "gender-words" and chunk["target"] == "gender=female:70,male:30"
    assert chunk["faces"] == [] or {bar[0] for bar in chunk["faces"][0]["bars"]} == {"gender", "race", "age"}
    webui.call("/standin/options", {"fair_save_bars": True, "fair_chunk": False})
    drawn, _ = one({"adapter": "gender-words", "target": "gender=70/30"})
    webui.call("/standin/options", {"fair_save_bars": False, "fair_chunk": True})
    assert drawn.tobytes() != image.tobytes() and "fair_adapter" not in drawn.info


def test_unsaved_pictures_carry_readings_and_replaced_ones_when_saved(webui: lab.Server) -> None:
    unsaved = txt2img(webui, {"adapter": "engineer"}, batch_size=2)
    grid, *pictures = (picture(text).info for text in unsaved["files"])
    assert [json.loads(info["fair_adapter"])["adapter"] for info in pictures] == ["engineer", "engineer"]
    assert "fair_adapter" not in grid
    before = set(saved(webui))
    txt2img(webui, {"adapter": "engineer"}, prompt="__later__ portrait", batch_size=2, save_images=True)
    fresh = {path: Image.open(path).info for path in set(saved(webui)) - before}
    assert {"grid" in path.name: "fair_adapter" in info for path, info in fresh.items()} == {
        True: False, False: True,
    }  # fmt: skip


def test_png_info_makes_the_same_picture_again(webui: lab.Server) -> None:
    first = txt2img(
        webui, {"adapter": "random-both", "target": "gender=85/15;race=20/30/50", "strength": 0.7}
    )
    info = webui.call("/sdapi/v1/png-info", {"image": _with_parameters(first)})
    assert info["parameters"]["Fair target"] == "gender=female:85,male:15;race=wmelh:20,black:30,asian:50"
    again = txt2img(webui, prompt=None, seed=None, infotext=info["info"])
    assert again["images"] == first["images"] and again["infotexts"] == first["infotexts"]


def _with_parameters(answer: dict) -> str:
    from PIL import PngImagePlugin

    chunks, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    chunks.add_text("parameters", answer["infotexts"][0])
    picture(answer["images"][0]).save(buffer, "PNG", pnginfo=chunks)
    return base64.b64encode(buffer.getvalue()).decode()


# ---- bad input


@pytest.mark.parametrize(
    ("fair", "said"),
    [
        ({"adapter": "../../secrets"}, "expected a file name below the adapter folder"),
        ({"adapter": "/etc/passwd"}, "expected a file name below the adapter folder"),
        ({"adapter": "enginer"}, "did you mean 'engineer.safetensors'?"),
        ({"adapter": "damaged"}, "damaged.safetensors: expected"),
        ({"adapter": "foreign"}, "made for another model (clip_l of width 8)"),
        ({"adapter": "engineer", "target": "gender=70"}, "target"),
        ({"adapter": "engineer", "strength": "much"}, "'strength': expected a number"),
        ({"adapter": "engineer", "strength": 99}, "'strength': expected -2 to 4"),
        ({"adapter": "engineer", "place": "below"}, "'place': expected one of hidden"),
        ({"adapter": "engineer", "strenght": 1}, "did you mean 'strength'?"),
        ([True, 5], "'adapter': expected a text"),
        ([1, "engineer"], "'enabled': expected true or false"),
    ],
)
def test_what_is_wrong_is_said_and_the_picture_is_made(webui: lab.Server, fair: Any, said: str) -> None:
    answer = txt2img(webui, fair)
    assert answer["images"] == txt2img(webui)["images"]
    assert said in answer["comments"] and answer["comments"].count(said) == 1
    text = answer["infotexts"][0]
    assert "Fair error" in text and "Fair hash" not in text and str(webui.root) not in text
    asked = fair if isinstance(fair, dict) else {"adapter": fair[1] if isinstance(fair[1], str) else "None"}
    assert f"Fair adapter: {asked['adapter']}," in text, "what was asked for is named, whatever else is wrong"
    assert "Fair Adapter: Fair Adapter" not in answer["comments"] + webui.said()
    assert "Traceback" not in webui.said()


def test_a_lora_that_fits_nothing_is_not_taken_for_an_adapter(webui: lab.Server) -> None:
    from fair_adapter.tests.a1111.adapters import misfit_adapter

    misfit_adapter("misfit").write(
        webui.root / "models" / "fair_adapters" / "misfit.safetensors", overwrite=True
    )
    answer = txt2img(webui, {"adapter": "misfit"})
    assert "none of its LoRA layers is in this model" in answer["comments"]
    assert answer["images"] == txt2img(webui)["images"]


def test_another_checkpoint_in_the_same_object_is_noticed(webui: lab.Server) -> None:
    said = "has other weights: shares may differ"
    assert said not in txt2img(webui, {"adapter": "engineer"})["comments"]
    webui.call("/standin/checkpoint", {"name": "second", "scale": 2.0})
    try:
        assert f"second {said}" in txt2img(webui, {"adapter": "engineer"})["comments"]
    finally:
        webui.call("/standin/checkpoint", {"name": "portrait", "scale": 0.5})


def test_routes_answer_in_json_and_stay_in_the_folder(webui: lab.Server) -> None:
    names = {row["name"]: row for row in webui.call("/fair-adapter/adapters")["adapters"]}
    assert names["random-both.safetensors"]["layers"] == 4 and names["damaged.safetensors"]["error"]
    assert webui.call("/fair-adapter/adapter?name=engineer")["tokens"] == 4
    for name in ("..%2Fengineer", "%2Fetc%2Fpasswd", "C:%5Cx", "%00"):
        assert webui.call(f"/fair-adapter/adapter?name={name}")["status"] == 404
    txt2img(webui, {"adapter": "engineer"}, prompt="100%_'; portrait")
    assert webui.call("/fair-adapter/statistics?prompt=100%25_'%3B")["pictures"] == 1
    assert webui.call("/fair-adapter/statistics?target=nonsense")["status"] == 404


# ---- around a generation


def test_plot_axes_set_target_and_strength(webui: lab.Server) -> None:
    base = {"prompt": PROMPT, "steps": STEPS, "seed": 11}
    scripts = {TITLE: {"args": [{"adapter": "gender-words", "target": "gender=20/80"}]}}
    body = {
        **base,
        "alwayson_scripts": scripts,
        "axis": "[Fair Adapter] Strength",
        "values": ["0", "0.5", "1"],
    }
    cells = webui.call("/standin/plot", body)
    assert [
        f"Fair strength: {value}" in text for value, text in zip((0.0, 0.5, 1.0), cells["infotexts"])
    ] == [True] * 3
    assert without_text(cells["images"][0]) == txt2img(webui)["images"][0] and len(set(cells["images"])) == 3
    values = ["gender=10/90", "gender=90/10"]
    body = {**base, "alwayson_scripts": scripts, "axis": "[Fair Adapter] Target", "values": values}
    cells = webui.call("/standin/plot", body)
    assert ["female:10," in cells["infotexts"][0], "female:90," in cells["infotexts"][1]] == [True, True]


def test_reloading_the_ui_takes_the_new_code(webui: lab.Server) -> None:
    before = txt2img(webui, {"adapter": "random-both"})["images"]
    source = webui.root / "extensions" / "fair-adapter" / "a1111_extension" / "views.py"
    original = source.read_text(encoding="utf-8")
    source.write_text(original.replace("nobody's identity", "nobody's identity at all"), encoding="utf-8")
    try:
        assert TITLE in webui.call("/standin/reload", {})["scripts"]
        assert txt2img(webui, {"adapter": "random-both"})["images"] == before
        assert last(webui)["adapter"] == "random-both"
    finally:
        source.write_text(original, encoding="utf-8")


# ---- what was recorded on the real hosts


def test_hooks_come_in_the_recorded_order(webui: lab.Server) -> None:
    recorded = json.loads((GOLDEN / "hook_order.json").read_text(encoding="utf-8"))
    start = len(webui.call("/standin/hooks"))
    txt2img(webui, {"adapter": "engineer"}, batch_size=2, n_iter=2)
    called = [hook for hook, title in webui.call("/standin/hooks")[start:] if title == TITLE]
    assert called == [*recorded["before"], *recorded["iteration"] * 2, *recorded["after"]]


def test_lora_keys_take_effect_as_recorded(webui: lab.Server) -> None:
    import torch
    from safetensors.torch import save_file

    base = txt2img(webui)["images"]
    rows = json.loads((GOLDEN / "lora_keys.json").read_text(encoding="utf-8"))
    found, recorded = {}, {}
    for index, row in enumerate(rows):
        generator = torch.Generator().manual_seed(0)
        tensors = {k: torch.randn(*shape, generator=generator) / 2 for k, shape in row["tensors"].items()}
        name = f"style{index}_{webui.kind}"
        save_file(tensors, webui.root / "models" / "Lora" / f"{name}.safetensors")
        found[row["style"]] = txt2img(webui, prompt=f"{PROMPT}<lora:{name}:1>")["images"] != base
        recorded[row["style"]] = row[webui.kind]
    assert found == recorded
    assert True in found.values() and False in found.values()


def test_infotexts_are_the_recorded_ones(webui: lab.Server) -> None:
    """Hashes aside, which are those of the weights."""
    for row in json.loads((GOLDEN / "infotexts.json").read_text(encoding="utf-8")):
        text = txt2img(webui, row["request"], steps=1)["infotexts"][0]
        fair = text[text.index("Fair") : text.index(", Version")]
        assert re.sub(r"[0-9a-f]{12}", "*", fair) == row["written"]
