"""Fair Adapter nodes in a row, a CLIP that is saved, and values that a connection brings."""

import logging
from pathlib import Path
from typing import Any

import torch

ROWS = {"random": 5, "words": 2}  # soft tokens of the test adapters


def in_a_row(application: Any, adapters: Any, model: Any, clip: Any, folder: Path) -> dict[str, Any]:
    """Case -> the adapters whose tokens stand before the positive and the negative prompt, in their order."""
    loaded = {name: adapters.FairnessAdapter.read(folder / f"{name}.safetensors") for name in ROWS}
    found = {}
    for first in ("positive prompt", "both prompts"):
        for second in ("positive prompt", "both prompts"):
            one = application.apply(model, clip, loaded["random"], None, 1.0, first)
            two = application.apply(one.model, one.clip.clone(), loaded["words"], None, 1.0, second)
            found[f"{first}, {second}"] = [before(two.clip), before(two.negative)]
    one = application.apply(model, clip, loaded["random"], None, 1.0, "positive prompt")
    off = application.apply(one.model, one.clip, loaded["words"], None, 0.0)
    found["second off"] = [before(off.clip), before(off.negative)]
    after = application.apply(one.model, one.negative, loaded["words"], None, 1.0, "positive prompt")
    found["behind the negative one"] = [before(after.clip), before(after.negative)]
    three = application.apply(one.model, one.clip, loaded["random"], None, 1.0, "both prompts")
    found["the same twice"] = [before(three.clip), before(three.negative)]
    found["untouched"] = [before(clip), before(one.clip)]
    return found


def before(clip: Any) -> list[str]:
    """The adapters whose tokens begin a prompt."""
    entries = clip.tokenize("a nurse")["l"][0]
    count = sum(torch.is_tensor(entry[0]) for entry in entries)
    assert all(torch.is_tensor(entry[0]) for entry in entries[1 : 1 + count])
    widths = {5: ["random"], 2: ["words"], 7: ["words", "random"], 10: ["random", "random"], 0: []}
    names = widths[count]
    if count == 7:  # by the tokens themselves: those of the later node stand first
        (word,) = [each for each in clip.tokenizer.fair_adapter_soft_tokens if each.adapter == "words"]
        rows = torch.stack([entry[0] for entry in entries[1:3]])
        names = names if torch.equal(rows, word.rows["clip_l"]) else names[::-1]
    return names


def saved(application: Any, adapters: Any, model: Any, clip: Any, folder: Path) -> dict[str, list[str]]:
    """What the log says where ComfyUI takes the weights of a CLIP to save them."""
    adapter = adapters.FairnessAdapter.read(folder / "random.safetensors")
    done = application.apply(model, clip, adapter, None, 1.0, "positive prompt")
    told: dict[str, list[str]] = {}
    handler, log = logging.Handler(), logging.getLogger("fair_adapter")
    log.addHandler(handler)
    try:
        for name, each in (("clip", done.clip), ("negative", done.negative.clone()), ("base", clip)):
            lines = told[name] = []
            handler.emit = lambda record, lines=lines: lines.append(record.getMessage())
            weights = each.get_sd()
            assert set(weights) == set(clip.cond_stage_model.state_dict())
    finally:
        log.removeHandler(handler)
    return told


def brought(nodes: dict[str, Any]) -> dict[str, str]:
    """What each node says when it runs with a value that its combo does not offer.  nodes: by class name."""
    adapter, faces = nodes["nodes_adapter"], nodes["nodes_faces"]
    image = [torch.zeros(1, 8, 8, 3)]
    calls = {
        "preset": lambda: adapter.SetTarget.execute("nonsense", "gender=50/50"),
        "soft_tokens": lambda: adapter.ApplyAdapter.execute(None, None, None, 1.0, soft_tokens="nonsense"),
        "decoder": lambda: faces.LiveAttributeBars.execute(None, 3, decoder="nonsense"),
        "faces": lambda: faces.ReadFaces.execute(image, ["largest face", "nonsense"], [0.7]),
        "classifier": lambda: faces.ReadFaces.execute(image, ["all faces"], [0.7], classifier=["nonsense"]),
    }
    told = {}
    for name, call in calls.items():
        try:
            call()
            told[name] = "nothing"
        except Exception as error:
            told[name] = f"{type(error).__name__}: {error}"
    return told
