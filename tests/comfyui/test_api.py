"""Every node in the real ComfyUI, through its HTTP API and websocket."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fair_adapter.shared.images import to_pil
from fair_adapter.shared.library import SHIPPED
from fair_adapter.tests.comfyui.client import Client, Run
from fair_adapter.tests.comfyui.lab import Server
from fair_adapter.tests.comfyui.prompts import ADAPTER, adapted, base, faces, node, stock
from fair_adapter.tests.fixture_faces import images

NODES = ("Apply", "DrawAttributes", "Export", "FaceAttributes", "LiveBars", "LoadAdapter", "LoadPortrait",
         "Session", "Statistics", "TargetByPrompt", "TargetDistribution")  # fmt: skip
WITHOUT_PICTURE = {
    "7_attributes_in_words",
    "8_targets_by_prompt",
    "9_early_steps_alone",
}  # the clone is nearly as large as it may be
SIGNATURES = Path(__file__).with_name("signatures.json")
LONG = "a photo of the face of a nurse with a friendly smile, " * 9 + "a person"  # three chunks of 77 tokens


# ---- registration


def test_all_nodes_are_registered_as_before(client: Client) -> None:
    """Ids, inputs and outputs are for ever: a saved workflow must open with the next release too."""
    info = client.get("/object_info")
    ours = {name: table for name, table in info.items() if name.startswith("FairAdapter_")}
    assert set(ours) == {f"FairAdapter_{name}" for name in NODES}
    found = {name: signature(table) for name, table in sorted(ours.items())}
    assert found == json.loads(SIGNATURES.read_text(encoding="utf-8"))


def signature(table: dict) -> dict:
    """Names and types in their order: a saved workflow keeps the values of widgets by position."""
    inputs = {
        kind: [[name, entry[0] if isinstance(entry[0], str) else "COMBO"] for name, entry in rows.items()]
        for kind, rows in table["input"].items()
        if kind != "hidden"
    }
    return {"inputs": inputs, "outputs": table["output"], "names": table["output_name"]}


def test_every_input_has_a_tooltip_and_every_node_a_page(client: Client) -> None:
    info = client.get("/object_info")
    for name in NODES:
        table = info[f"FairAdapter_{name}"]
        entries = {k: v for rows in (table["input"].get("required", {}), table["input"].get("optional", {}))
                   for k, v in rows.items()}  # fmt: skip
        assert all(len(entry[1].get("tooltip", "")) > 10 for entry in entries.values()), name
        assert all(table["output_tooltips"]) and table["description"], name
        page = client.get(f"/extensions/fair-adapter/docs/FairAdapter_{name}.md").decode()
        assert page.startswith(f"# {table['display_name']}\n")
        missing = [key for key in entries if f"`{key}`" not in page]
        assert not missing, f"{name}.md does not explain {missing}"


def test_the_servers_log_has_no_complaint_about_the_pack(server: Server, client: Client) -> None:
    log = server.text()
    assert "fair-adapter" in log
    assert not [line for line in log.splitlines() if "IMPORT FAILED" in line and "fair-adapter" in line]
    assert "DEPRECATION" not in log
    assert "FairAdapter" in json.dumps(client.get("/extensions")) or any(
        "fair_adapter.js" in path for path in client.get("/extensions")
    )


def test_templates_are_offered_with_thumbnails(client: Client) -> None:
    names = client.get("/workflow_templates")["fair-adapter"]
    assert len(names) >= 5
    for name in names:
        workflow = client.get(f"/api/workflow_templates/fair-adapter/{name}.json")
        assert any(n["type"].startswith("FairAdapter_") for n in workflow["nodes"])
        if name not in WITHOUT_PICTURE:
            assert client.get(f"/api/workflow_templates/fair-adapter/{name}.jpg")[:3] == b"\xff\xd8\xff"


# ---- the adapter


def test_strength_zero_is_the_base_model(client: Client) -> None:
    plain, zero = client.run(base()), client.run(adapted(base(), strength=0.0))
    assert np.array_equal(client.pictures(plain, "9"), client.pictures(zero, "9"))
    assert "nothing" in zero.output("22")["fair_applied"][0]["text"]


@pytest.mark.parametrize(
    ("text", "target", "strength", "tokens"),
    [
        ("a photo of the face of a nurse, a person", None, 1.0, "as trained"),
        (LONG, "gender=80/20;race=equal", 0.7, "as trained"),
        ("(a nurse:1.3) smiling", "gender*race=female*black:30,male*asian:70", 1.0, "positive prompt"),
    ],
)
def test_stock_nodes_draw_the_same_picture_from_the_exported_files(
    client: Client, text: str, target: str | None, strength: float, tokens: str
) -> None:
    name = f"export_{len(text)}"
    prompt = adapted(base(text), target=target, strength=strength, soft_tokens=tokens)
    aim = {"target": ["21", 0]} if target else {}
    prompt["30"] = node("Export", adapter=["20", 0], name=name, strength=strength, overwrite=True, **aim)
    ours = client.run(prompt)
    assert ours.ok, ours.events[-1]
    layers = ours.output("22")["fair_applied"][0]["text"]
    assert "5 soft tokens in clip_l" in layers and "LoRA layers matched" in layers
    theirs = client.run(stock(base(text), f"{name}.safetensors", f"embedding:{name}"))
    plain = client.run(base(text))
    mine, other = client.pictures(ours, "9"), client.pictures(theirs, "9")
    assert np.array_equal(mine, other)
    assert np.abs(mine - client.pictures(plain, "9")).mean() > 1  # and it does something


def test_tokens_for_both_prompts_change_the_negative_one(client: Client) -> None:
    one = client.run(adapted(base(), soft_tokens="positive prompt"))
    both = client.run(adapted(base(), soft_tokens="both prompts"))
    assert np.abs(client.pictures(one, "9") - client.pictures(both, "9")).mean() > 0.1


def test_moving_a_slider_runs_only_what_depends_on_it(client: Client) -> None:
    first = client.run(adapted(base(seed=77), target="gender=60/40;race=equal"))
    assert first.ok
    moved = client.run(adapted(base(seed=77), target="gender=61/39;race=equal"))
    assert moved.executed == {"21", "22", "3", "4", "6", "7", "9"}
    again = client.run(adapted(base(seed=77), target="gender=61/39;race=equal"))
    assert again.executed == set()


def test_a_changed_file_is_loaded_again(client: Client, server: Server) -> None:
    prompt = adapted(base(seed=78))
    client.run(prompt)
    path = server.base / "models" / "fair_adapters" / ADAPTER
    path.touch()
    assert {"20", "22", "6"} <= client.run(prompt).executed
    assert client.run(prompt).executed == set()


def test_a_target_sweep_moves_the_shares(client: Client) -> None:
    """With an adapter whose tokens are attribute words: it needs no training, and must work."""
    shares = {}
    for female in (5, 95):
        target = f"gender=female:{female},male:{100 - female};race=equal"
        prompt = adapted(
            base("a photo of the face of a person", steps=20, batch=12), "words.safetensors", target
        )
        run = client.run(faces(prompt))
        assert run.ok, run.events[-1]
        shares[female] = share(run, "gender", "female")
        assert run.output("22")["fair_applied"][0]["warnings"] == [
            f"gender female {female}% is outside 10 to 90%, the range of training",
            f"gender male {100 - female}% is outside 10 to 90%, the range of training",
        ]
    assert shares[95] - shares[5] > 0.3


def share(run: Run, attribute: str, label: str) -> float:
    (rows,) = run.output("8")["fair_shares"]
    return next(row["share"] for row in rows[attribute] if row["label"] == label)


@pytest.mark.skipif(not list(SHIPPED.glob("*.safetensors")), reason="no adapter is shipped yet")
def test_shipped_adapters_load_and_fit_the_portrait_model(client: Client) -> None:
    names = [path.name for path in SHIPPED.glob("*.safetensors")]
    offered = client.get("/object_info/FairAdapter_LoadAdapter")["FairAdapter_LoadAdapter"]
    options = offered["input"]["required"]["adapter"]
    assert set(names) <= set(
        options[1]["options"] if len(options) > 1 and "options" in options[1] else options[0]
    )
    for name in names:
        run = client.run(adapted(base(), name))
        assert run.ok and run.output("22")["fair_applied"][0]["warnings"] == [], name


# ---- faces


def test_face_attributes_on_a_batch(client: Client) -> None:
    prompt = faces(base(steps=12, batch=3))
    prompt["10"] = node("PreviewImage", images=["8", 0])
    prompt["11"] = node("PreviewImage", images=["8", 1])
    run = client.run(prompt)
    assert run.ok
    panel = run.output("8")
    assert len(panel["fair_faces"]) == 3 and panel["fair_faces"][0]["width"] == 128
    clean, drawn = client.pictures(run, "11"), client.pictures(run, "10")
    assert np.array_equal(clean, client.pictures(run, "9")) and not np.array_equal(clean, drawn)
    assert np.array_equal(clean[0], np.asarray(client.picture(panel["fair_faces"][0])))
    assert "can't tell 50/50 from 70/30" in panel["fair_note"][0]


def test_pictures_without_a_face_and_of_one_pixel(client: Client) -> None:
    prompt = {
        "1": node("EmptyImage", width=1, height=1, batch_size=2, color=255),
        "2": node("EmptyImage", width=96, height=64, batch_size=1, color=0),
    }
    for key, source in (("8", "1"), ("9", "2")):
        prompt[key] = node("FaceAttributes", images=[source, 0], faces="all faces", certain=0.7)
        prompt[f"1{key}"] = node("PreviewImage", images=[key, 0])
        prompt[f"2{key}"] = node("PreviewAny", source=[key, 3])
    run = client.run(prompt)
    assert run.ok, run.events[-1]
    assert [f["faces"] for f in run.output("8")["fair_faces"]] == [[], []]
    assert run.output("8")["fair_note"] == ["No face yet."]
    assert client.pictures(run, "18").shape == (2, 1, 1, 3) and client.pictures(run, "19").shape == (
        1,
        64,
        96,
        3,
    )
    assert "| 1 | no face |  |  |  |" in json.dumps(run.output("29"))


def test_a_list_of_pictures_is_read_one_by_one(client: Client) -> None:
    prompt = faces(base(steps=2, batch=3))
    prompt["12"] = node("RebatchImages", images=["7", 0], batch_size=1)
    prompt["8"]["inputs"]["images"] = ["12", 0]
    prompt["10"] = node("Statistics", readings=["8", 2], collection="list", group="", save_as="")
    prompt["11"] = node("PreviewImage", images=["8", 0])
    client.post("/fair_adapter/statistics/reset", {"name": "list"})
    run = client.run(prompt)
    assert run.ok, run.events[-1]
    panel = run.output("8")
    assert len(panel["fair_faces"]) == 3 and client.pictures(run, "11").shape == (3, 128, 128, 3)
    assert len(panel["fair_shares"]) == len(panel["fair_note"]) == 1  # of all three together
    counts = [told["pictures"] for told in run.output("10")["fair_statistics"]]
    assert counts == [1, 2, 3]  # the panel shows the last
    found = sum(bool(file["faces"]) for file in panel["fair_faces"])
    assert run.output("10")["fair_statistics"][-1]["faces"] == found


def test_all_faces_and_certainty_on_real_faces(client: Client, server: Server) -> None:
    crowd = torch.cat([torch.cat(tuple(images()[i : i + 2]), 2) for i in (0, 2)], 1)  # four, 2 x 2
    to_pil(crowd).save(server.base / "input" / "crowd.png")
    prompt = {"1": node("LoadImage", image="crowd.png")}
    for key, which, certain in (("2", "all faces", 0.0), ("3", "all faces", 0.9), ("4", "largest face", 0.9)):
        prompt[key] = node("FaceAttributes", images=["1", 0], faces=which, certain=certain)
    run = client.run(prompt)
    assert run.ok, run.events[-1]
    everyone, strict, largest = (run.output(key)["fair_faces"][0]["faces"] for key in "234")
    quarters = {(box[0] + box[2] > 512, box[1] + box[3] > 512) for box in (face["box"] for face in everyone)}
    assert len(quarters) == 4
    assert len(everyone) == 4 and all(bar["certain"] for face in everyone for bar in face["bars"])
    assert [face["box"] for face in strict] == [face["box"] for face in everyone]
    bars = [bar for face in strict for bar in face["bars"]]
    assert all(bar["certain"] == (bar["confidence"] >= 0.9) for bar in bars)
    assert 0 < sum(bar["certain"] for bar in bars) < len(bars)
    assert [face["box"] for face in largest] == [everyone[0]["box"]]
    shares = run.output("3")["fair_shares"][0]["gender"]
    assert sorted(row["share"] for row in shares) == [0, 1]  # of the largest face alone


def test_statistics_add_up_until_they_are_reset(client: Client, server: Server) -> None:
    def counted(seed: int, certain: float = 0.7, **options: str) -> dict:
        prompt = faces(base(seed=seed, steps=8, batch=2), certain=certain)
        inputs = {"readings": ["8", 2], "collection": "test", "group": "nurse", "save_as": "", **options}
        prompt["10"] = node("Statistics", **inputs)
        prompt["11"] = node("PreviewImage", images=["10", 0])
        run = client.run(prompt)
        assert run.ok, run.events[-1]
        return run.output("10")["fair_statistics"][0]

    client.post("/fair_adapter/statistics/reset", {"name": "test"})
    assert counted(201)["pictures"] == 2
    told = counted(202)
    assert told["pictures"] == 4 and set(told["bias"]) == {"gender", "race", "age"}
    assert counted(202, certain=1.0)["pictures"] == 4  # the same pictures, read again
    saved = counted(202, save_as="stats/nurses")  # the same batch once more: counted once, written
    assert saved["pictures"] == 4 and saved["saved"] == ["stats/nurses_00001.csv", "stats/nurses_00001.png"]
    csv = (server.base / "output" / "stats" / "nurses_00001.csv").read_text(encoding="utf-8")
    assert csv == client.get("/fair_adapter/statistics.csv", name="test").decode()
    assert client.get("/fair_adapter/statistics.png", name="test")[:4] == b"\x89PNG"
    assert client.get("/fair_adapter/statistics", name="test")["pictures"] == 4
    client.post("/fair_adapter/statistics/reset", {"name": "test"})
    assert client.get("/fair_adapter/statistics", name="test")["pictures"] == 0
    assert client.status("/fair_adapter/statistics.csv", name="test")[0] == 400
    assert counted(202)["pictures"] == 2  # cached pictures, counted anew


# ---- live bars


def test_live_bars_with_both_kinds_of_samplers(client: Client) -> None:
    prompt = base(seed=301, steps=6, batch=2)
    prompt["2"] = node("LiveBars", model=["1", 0], vae=["1", 2], every=2)
    prompt["6"]["inputs"]["model"] = ["2", 0]
    check_frames(client.run(prompt, until=ended_live), "2", {2, 4, 6})
    custom = base(seed=302, batch=2)
    custom["2"] = node("LiveBars", model=["1", 0], vae=["1", 2], every=4)
    custom["30"] = node("KSamplerSelect", sampler_name="euler")
    custom["31"] = node("BasicScheduler", model=["1", 0], scheduler="normal", steps=6, denoise=1.0)
    custom["6"] = node(
        "SamplerCustom", model=["2", 0], add_noise=True, noise_seed=302, cfg=2.75, positive=["3", 0],
        negative=["4", 0], sampler=["30", 0], sigmas=["31", 0], latent_image=["5", 0],
    )  # fmt: skip
    check_frames(client.run(custom, until=ended_live), "2", {4, 6})


@pytest.mark.parametrize("sampler", ["dpm_fast", "dpm_adaptive", "heun", "dpm_2", "dpmpp_sde", "uni_pc"])
def test_live_bars_of_samplers_with_steps_of_their_own(client: Client, sampler: str) -> None:
    prompt = base(seed=311, steps=6)
    prompt["2"] = node("LiveBars", model=["1", 0], vae=["1", 2], every=1)
    prompt["6"]["inputs"] |= {"model": ["2", 0], "sampler_name": sampler}
    run = client.run(prompt, until=ended_live)
    assert run.ok, run.events[-1]
    frames = run.data("fair_adapter.live")
    steps = [frame["step"] for frame in frames]
    assert steps == sorted(set(steps)) and steps[0] >= 1 and steps[-1] == 6
    assert all(frame["total"] == 6 for frame in frames)
    assert frames[-1]["reliable"]
    blurred = 3 if sampler in ("dpm_2", "uni_pc") else 2  # ComfyUI gives those two a schedule of more noise
    assert all(frame["reliable"] == (frame["step"] > blurred) for frame in frames)


def test_reliable_goes_by_the_noise_that_is_left(client: Client) -> None:
    """The first half of a schedule ends in noise, its second half begins with little."""
    for start, end, reliable in ((0, 3, False), (6, 10, True)):
        prompt = base(seed=312)
        prompt["2"] = node("LiveBars", model=["1", 0], vae=["1", 2], every=1)
        settings = {**prompt["6"]["inputs"], "model": ["2", 0], "steps": 10, "noise_seed": 312}
        settings = {k: v for k, v in settings.items() if k not in ("seed", "denoise")}
        settings |= {"start_at_step": start, "end_at_step": end, "add_noise": "enable"}
        prompt["6"] = node("KSamplerAdvanced", **settings, return_with_leftover_noise="enable")
        run = client.run(prompt, until=ended_live)
        assert run.ok, run.events[-1]
        frames = run.data("fair_adapter.live")
        assert frames and all(frame["reliable"] == reliable for frame in frames), (start, frames)


def ended_live(run: Run) -> bool:
    """Whether the last look was shown, which may be after the end of the prompt."""
    return any("error" in f or f["step"] == f["total"] for f in run.data("fair_adapter.live"))


def check_frames(run: Run, name: str, looks: set[int]) -> None:
    """Of the steps that are looks some may be dropped, never the last."""
    assert run.ok, run.events[-1]
    frames = run.data("fair_adapter.live")
    steps = [frame["step"] for frame in frames]
    assert set(steps) <= looks and steps == sorted(set(steps)) and steps[-1] == max(looks)
    for frame in frames:
        assert frame["node"] == name and frame["total"] == 6 and len(frame["pictures"]) == 2
        assert frame["reliable"] == (frame["step"] >= 0.4 * 6) and frame["sharp"]
        assert frame["sheet"].startswith("data:image/jpeg;base64,") and set(frame["shares"]) == {
            "gender",
            "race",
            "age",
        }


def test_live_bars_change_no_pixel_and_never_fail_a_run(client: Client) -> None:
    plain = client.run(base(seed=303))
    prompt = base(seed=303)
    prompt["2"] = node("LiveBars", model=["1", 0], every=1)  # no decoder for these latents without a VAE
    prompt["6"]["inputs"]["model"] = ["2", 0]
    run = client.run(prompt)
    assert run.ok and np.array_equal(client.pictures(plain, "9"), client.pictures(run, "9"))
    (frame,) = run.data("fair_adapter.live")
    assert "connect a small VAE" in frame["error"]
    prompt["2"]["inputs"]["decoder"] = "taesd"
    prompt["6"]["inputs"]["seed"] = 304
    (frame,) = client.run(prompt).data("fair_adapter.live")
    assert "models/vae_approx" in frame["error"].replace("\\", "/")


def test_cancel_stops_a_watched_run_and_the_next_one_works(client: Client) -> None:
    prompt = base(seed=305, steps=10_000)  # more than there is time for on any machine
    prompt["2"] = node("LiveBars", model=["1", 0], vae=["1", 2], every=1)
    prompt["6"]["inputs"]["model"] = ["2", 0]
    pressed = []

    def press(kind: str, data: dict) -> None:
        if kind == "fair_adapter.live" and not pressed:
            pressed.append(client.post("/interrupt", {}))

    run = client.run(prompt, press)
    assert pressed and run.data("execution_interrupted") and not run.ok
    assert client.run(base(seed=306)).ok
