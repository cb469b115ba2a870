"""Prompts in ComfyUI's API form, put together for tests."""

from __future__ import annotations

import copy
from typing import Any

Prompt = dict[str, dict[str, Any]]
TEXT = "a photo of the face of a nurse, a person"
ADAPTER = "random.safetensors"


KSAMPLER = {"positive": ["3", 0], "negative": ["4", 0], "cfg": 2.75, "sampler_name": "dpmpp_2m",
            "scheduler": "normal", "denoise": 1.0}  # fmt: skip


def node(kind: str, /, **inputs: Any) -> dict[str, Any]:
    ours = {"LoadPortrait", "LoadAdapter", "TargetDistribution", "Apply", "LiveBars", "FaceAttributes",
            "Statistics", "Export", "DrawAttributes", "Session", "TargetByPrompt"}  # fmt: skip
    return {"class_type": f"FairAdapter_{kind}" if kind in ours else kind, "inputs": inputs}


def base(text: str = TEXT, seed: int = 1, steps: int = 3, batch: int = 1) -> Prompt:
    """The portrait model alone. 1 model, 3 and 4 prompts, 6 sampler, 7 pictures, 9 saved."""
    return {
        "1": node("LoadPortrait"),
        "3": node("CLIPTextEncode", clip=["1", 1], text=text),
        "4": node("CLIPTextEncode", clip=["1", 1], text=""),
        "5": node("EmptyLatentImage", width=128, height=128, batch_size=batch),
        "6": node("KSampler", **KSAMPLER, model=["1", 0], latent_image=["5", 0], seed=seed, steps=steps),
        "7": node("VAEDecode", samples=["6", 0], vae=["1", 2]),
        "9": node("PreviewImage", images=["7", 0]),
    }


def adapted(
    prompt: Prompt, adapter: str = ADAPTER, target: str | None = None, strength: float = 1.0, **options: Any
) -> Prompt:
    """The same with our nodes: 20 loads the adapter, 21 is the target, 22 applies both."""
    prompt = copy.deepcopy(prompt)
    prompt["20"] = node("LoadAdapter", adapter=adapter)
    inputs = {"model": ["1", 0], "clip": ["1", 1], "adapter": ["20", 0], "strength": strength, **options}
    if target is not None:
        prompt["21"] = node("TargetDistribution", preset="sliders or text", text=target, adapter=["20", 0])
        inputs["target"] = ["21", 0]
    prompt["22"] = node("Apply", **inputs)
    prompt["6"]["inputs"]["model"] = ["22", 0]
    prompt["3"]["inputs"]["clip"], prompt["4"]["inputs"]["clip"] = ["22", 1], ["22", 2]
    return prompt


def stock(prompt: Prompt, lora: str, prefix: str) -> Prompt:
    """The same with ComfyUI's own nodes and exported files."""
    prompt = copy.deepcopy(prompt)
    prompt["22"] = node(
        "LoraLoader", model=["1", 0], clip=["1", 1], lora_name=lora, strength_model=1.0, strength_clip=1.0
    )
    prompt["6"]["inputs"]["model"] = ["22", 0]
    prompt["3"]["inputs"] |= {"clip": ["22", 1], "text": f"{prefix} {prompt['3']['inputs']['text']}"}
    prompt["4"]["inputs"]["clip"] = ["22", 1]
    return prompt


def faces(prompt: Prompt, **options: Any) -> Prompt:
    """Face Attributes, as node 8, on the pictures."""
    inputs = {"faces": "largest face", "certain": 0.7, **options}
    return {**prompt, "8": node("FaceAttributes", images=["7", 0], **inputs)}
