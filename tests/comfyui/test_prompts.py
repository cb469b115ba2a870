"""Soft tokens before the prompts of whole workflows, with the stock nodes around ours."""

from __future__ import annotations

import numpy as np

from fair_adapter.tests.comfyui.client import Client, Run
from fair_adapter.tests.comfyui.lab import Server
from fair_adapter.tests.comfyui.prompts import TEXT, Prompt, adapted, base, node, stock

SECOND = "words.safetensors"


def second(prompt: Prompt, strength: float = 1.0, **options: str) -> Prompt:
    """Another Fair Adapter, 42, behind the first, 22, and the prompts behind it."""
    prompt["40"] = node("LoadAdapter", adapter=SECOND)
    links = {"model": ["22", 0], "clip": ["22", 1], "adapter": ["40", 0]}
    prompt["42"] = node("Apply", **links, strength=strength, **options)
    prompt["6"]["inputs"]["model"] = ["42", 0]
    prompt["3"]["inputs"]["clip"], prompt["4"]["inputs"]["clip"] = ["42", 1], ["42", 2]
    return prompt


def test_two_adapters_in_a_row_draw_what_their_files_do(client: Client) -> None:
    prompt = second(adapted(base()))
    export = {"strength": 1.0, "overwrite": True}
    prompt["30"] = node("Export", adapter=["20", 0], name="row_first", **export)
    prompt["31"] = node("Export", adapter=["40", 0], name="row_second", **export)
    ours = client.run(prompt)
    assert ours.ok, ours.events[-1]
    typed = "embedding:row_second embedding:row_first"
    theirs = client.run(stock(base(), "row_first.safetensors", typed))
    mine, other = client.pictures(ours, "9"), client.pictures(theirs, "9")
    assert np.array_equal(mine, other)
    both = stock(base(), "row_first.safetensors", typed)
    both["4"]["inputs"]["text"] = "embedding:row_first"  # what the second's negative prompt began with once
    assert not np.array_equal(mine, client.pictures(client.run(both), "9"))


def test_a_prompt_after_break_has_no_tokens_of_its_own(client: Client) -> None:
    """Conditioning (Concat) of two prompts: the second comes from a CLIP without the adapter's tokens."""
    prompt = adapted(base())
    prompt["30"] = node("Export", adapter=["20", 0], name="break", strength=1.0, overwrite=True)
    prompt["33"] = node("CLIPTextEncode", clip=["22", 2], text="a street")  # the negative one's: LoRA alone
    prompt["34"] = node("ConditioningConcat", conditioning_to=["3", 0], conditioning_from=["33", 0])
    prompt["6"]["inputs"]["positive"] = ["34", 0]
    ours = client.run(prompt)
    assert ours.ok, ours.events[-1]
    plain = stock(base(), "break.safetensors", "embedding:break")
    plain["33"] = node("CLIPTextEncode", clip=["22", 1], text="a street")
    plain["34"], plain["6"]["inputs"]["positive"] = prompt["34"], ["34", 0]
    assert np.array_equal(client.pictures(ours, "9"), client.pictures(client.run(plain), "9"))


def test_saving_tells_that_soft_tokens_are_left_out(client: Client, server: Server) -> None:
    line = "holds the LoRA of random and not its soft tokens (5 in clip_l)"
    for kind, links in (("CheckpointSave", {"model": ["22", 0], "vae": ["1", 2]}), ("CLIPSave", {})):
        before = server.text().count(line)
        prompt = adapted(base(TEXT, seed=before + 1, steps=1))
        prompt["35"] = node(kind, clip=["22", 1], filename_prefix=f"saved/{kind}", **links)
        run = client.run(prompt)
        assert run.ok, run.events[-1]
        assert list((server.base / "output" / "saved").glob(f"{kind}_*.safetensors")), kind
        assert server.text().count(line) == before + 1, kind
        (shown,) = shown_on(run, "35")
        assert line in shown and shown in server.text()
    plain = base(steps=1)
    plain["35"] = node("CLIPSave", clip=["1", 1], filename_prefix="saved/plain")
    before = server.text()
    assert client.run(plain).ok and "saved file" not in server.text()[len(before) :]


def shown_on(run: Run, name: str) -> list[str]:
    """Texts below a node, as the browser gets them."""
    begin = name.encode()
    texts = (data[len(begin) :] for place, data in run.previews if place is None and data.startswith(begin))
    return [text.decode() for text in texts if text.startswith(b"Fair Adapter")]
