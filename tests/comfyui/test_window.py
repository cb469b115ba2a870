"""An adapter in a part of the sampling, in the real ComfyUI: against two samplers and stock nodes."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from fair_adapter.tests.comfyui.client import Client
from fair_adapter.tests.comfyui.prompts import Prompt, adapted, base, node

STEPS = 6  # at 0, 20, ... 100% of a normal schedule
LONG = "a photo of the face of a nurse with a friendly smile, " * 9 + "a person"  # three chunks of 77 tokens
SOFT, LORA = "words.safetensors", "random.safetensors"  # the second has LoRAs of both networks, and tokens


def euler(text: str = "a photo of the face of a nurse, a person") -> Prompt:
    """A sampler without memory, so that it can be taken in parts."""
    prompt = base(text, steps=STEPS)
    prompt["6"]["inputs"]["sampler_name"] = "euler"
    return prompt


def in_a_row(prompt: Prompt, adapter: str, parts: list[tuple[int, int, bool]]) -> Prompt:
    """Stock samplers one after the other.  parts: first step, last step, whether with the adapter."""
    result = adapted(copy.deepcopy(prompt), adapter)
    result["3b"], result["4b"] = copy.deepcopy(prompt["3"]), copy.deepcopy(prompt["4"])
    settings = {k: v for k, v in prompt["6"]["inputs"].items() if k not in ("seed", "denoise")}
    latent: list[Any] = ["5", 0]
    for number, (first, last, on) in enumerate(parts):
        key = f"6{number}"
        result[key] = node(
            "KSamplerAdvanced",
            **{
                **settings,
                "model": ["22" if on else "1", 0],
                "positive": ["3" if on else "3b", 0],
                "negative": ["4" if on else "4b", 0],
                "latent_image": latent,
                "add_noise": "enable" if number == 0 else "disable",
                "noise_seed": prompt["6"]["inputs"]["seed"],
                "start_at_step": first,
                "end_at_step": last,
                "return_with_leftover_noise": "disable" if last == STEPS else "enable",
            },
        )
        latent = [key, 0]
    result["7"]["inputs"]["samples"] = latent
    del result["6"]
    return result


@pytest.mark.parametrize(
    ("begin", "end", "parts"),
    [
        (0, 50, [(0, 3, True), (3, 6, False)]),
        (50, 100, [(0, 3, False), (3, 6, True)]),
        (20, 60, [(0, 1, False), (1, 3, True), (3, 6, False)]),
    ],
)
@pytest.mark.parametrize(("adapter", "text"), [(LORA, None), (SOFT, LONG)])
def test_a_window_is_two_samplers_in_a_row(
    client: Client, begin: int, end: int, parts: list[tuple[int, int, bool]], adapter: str, text: str | None
) -> None:
    prompt = euler() if text is None else euler(text)
    ours = client.run(adapted(prompt, adapter, start=begin, end=end))
    assert ours.ok, ours.events[-1]
    assert f"at {begin}-{end}% of the sampling" in ours.output("22")["fair_applied"][0]["text"]
    theirs = client.run(in_a_row(prompt, adapter, parts))
    assert theirs.ok, theirs.events[-1]
    mine, other = client.pictures(ours, "9").astype(int), client.pictures(theirs, "9").astype(int)
    assert np.abs(mine - other).max() <= 1  # a hook adds a LoRA to weights in another order
    for whole in (prompt, adapted(prompt, adapter)):
        assert np.abs(mine - client.pictures(client.run(whole), "9")).mean() > 0.3


def test_the_whole_of_the_sampling_is_what_it_was_before(client: Client) -> None:
    before = client.run(adapted(base()))
    now = client.run(adapted(base(), start=0.0, end=100.0))
    assert np.array_equal(client.pictures(before, "9"), client.pictures(now, "9"))
    assert "of the sampling" not in now.output("22")["fair_applied"][0]["text"]


def test_stock_ranges_narrow_the_window_further(client: Client) -> None:
    """Conditioning Set Timestep Range behind our prompt, and the base model's prompt in the rest."""
    prompt = adapted(euler(), SOFT, start=0, end=80)
    prompt["3b"] = node("CLIPTextEncode", clip=["1", 1], text=prompt["3"]["inputs"]["text"])
    prompt["31"] = node("ConditioningSetTimestepRange", conditioning=["3", 0], start=0.0, end=0.3)
    prompt["32"] = node("ConditioningSetTimestepRange", conditioning=["3b", 0], start=0.3, end=1.0)
    prompt["33"] = node("ConditioningCombine", conditioning_1=["31", 0], conditioning_2=["32", 0])
    prompt["6"]["inputs"]["positive"] = ["33", 0]
    narrowed = client.run(prompt)
    assert narrowed.ok, narrowed.events[-1]
    alone = client.run(adapted(euler(), SOFT, start=0, end=40))
    assert np.array_equal(client.pictures(narrowed, "9"), client.pictures(alone, "9"))


def test_two_adapters_keep_their_own_windows(client: Client) -> None:
    """In a row: the first early, the second all along; then both early, as one picture of two samplers."""
    prompt = adapted(euler(), SOFT, start=0, end=50)
    prompt["23"] = node(
        "Apply", model=["22", 0], clip=["22", 1], adapter=["20b", 0], strength=1.0, start=0.0, end=50.0
    )
    prompt["20b"] = node("LoadAdapter", adapter=LORA)
    prompt["6"]["inputs"]["model"] = ["23", 0]
    prompt["3"]["inputs"]["clip"], prompt["4"]["inputs"]["clip"] = ["23", 1], ["23", 2]
    early = client.run(prompt)
    assert early.ok, early.events[-1]
    longer = copy.deepcopy(prompt)
    longer["23"]["inputs"]["end"] = 100.0
    late = client.run(longer)
    assert late.ok, late.events[-1]
    one = client.pictures(client.run(adapted(euler(), SOFT, start=0, end=50)), "9").astype(int)
    pictures = [client.pictures(run, "9").astype(int) for run in (early, late)]
    assert np.abs(pictures[0] - pictures[1]).mean() > 0.3
    assert all(np.abs(picture - one).mean() > 0.3 for picture in pictures)


def test_a_start_behind_the_end_is_refused_with_the_reason(client: Client) -> None:
    run = client.run(adapted(base(), start=60.0, end=40.0))
    assert not run.ok and "expected a start before the end, found 60 and 40" in str(run.events)
