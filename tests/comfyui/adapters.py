"""Adapters for the portrait model, made in a moment, and files that are none."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fair_adapter.shared.adapter import FairnessAdapter
from fair_adapter.shared.adapter_info import AdapterInfo, BaseModel, weights_hash
from fair_adapter.shared.adapter_target import TargetSpace
from fair_adapter.shared.attributes import TargetDistribution
from fair_adapter.shared.tensor_file import read_tensors, serialise

PORTRAIT = Path(__file__).resolve().parents[2] / "shared" / "portrait"
DEFAULT = TargetDistribution.parse("gender=50/50;race=equal")
WORDS = ("female", "male", "white", "black", "asian")  # of the captions it was trained on, in class order
LIMITS = {"gender": {"female": (0.1, 0.9), "male": (0.1, 0.9)}}


def weights(part: str, name: str = "diffusion_pytorch_model.safetensors") -> dict[str, Tensor]:
    return {key: value.float() for key, value in load_file(PORTRAIT / part / name).items()}


def base_model() -> BaseModel:
    """The portrait model in the words of adapter files."""
    unet, text = weights("unet"), weights("text_encoder", "model.safetensors")
    width = next(v.shape[1] for k, v in text.items() if k.endswith("token_embedding.weight"))
    context = next(v.shape[1] for k, v in unet.items() if k.endswith("attn2.to_k.weight"))
    first = unet["conv_in.weight"]
    widths = {"clip_l": width, "context": context, "unet": len(first)}
    return BaseModel("portrait model", "sd1", widths, weights_hash(first, unet["conv_out.weight"]))


def words_adapter() -> FairnessAdapter:
    """One that really works: its soft tokens are attribute words of the captions, in the target's shares.

    With t = p - 1/K and P_0 = mean e_k the tokens are P_0 + sum_k t_k e_k = sum_k p_k e_k.
    """
    table = next(
        v
        for k, v in weights("text_encoder", "model.safetensors").items()
        if k.endswith("token_embedding.weight")
    )
    words = json.loads((PORTRAIT / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    rows = torch.stack([table[words[f"{word}</w>"]] for word in WORDS])
    slopes = torch.zeros(5, 2, rows.shape[1])
    slopes[:2, 0], slopes[2:, 1] = rows[:2], rows[2:]
    tensors = {
        "fair.soft.clip_l": torch.stack([rows[:2].mean(0), rows[2:].mean(0)]),
        "fair.soft_target.clip_l": slopes,
        "fair.soft_neutral.clip_l": table[words[",</w>"]].expand(2, -1).clone(),
    }
    figures = {"gender": {"bias": 0.66, "floor": 0.08, "shares": {"female": 0.3, "male": 0.7}}}
    info = AdapterInfo(
        "words",
        base_model(),
        TargetSpace(DEFAULT, "marginals", LIMITS),
        description="Attribute words as soft tokens.",
        licence="MIT",
        evaluation={"original": figures, "adapter": {"gender": {"bias": 0.2, "floor": 0.08}}},
    )
    return FairnessAdapter(info, tensors, "words")


def random_adapter(seed: int = 0, scale: float = 0.05) -> FairnessAdapter:
    """LoRA of text encoder and U-Net, and five soft tokens, of random numbers; follows any target."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    dimension = len(DEFAULT.as_vector("cells"))
    for name, (out, inner) in layers().items():
        tensors[f"{name}.lora_down.weight"] = torch.randn(4, inner, generator=generator) / 4
        tensors[f"{name}.lora_up.weight"] = torch.randn(out, 4, generator=generator) * scale
        tensors[f"{name}.alpha"] = torch.tensor(2.0)
        tensors[f"fair.gate.{name}"] = torch.randn(dimension, 4, generator=generator)
    width = base_model().widths["clip_l"]
    tensors["fair.soft.clip_l"] = torch.randn(5, width, generator=generator) * 0.02
    tensors["fair.soft_target.clip_l"] = torch.randn(dimension, 5, width, generator=generator) * 0.02
    tensors["fair.soft_neutral.clip_l"] = torch.zeros(5, width)
    info = AdapterInfo("random", base_model(), TargetSpace(DEFAULT, "cells", LIMITS))
    return FairnessAdapter(info, tensors, "random")


def layers() -> dict[str, tuple[int, int]]:
    """kohya name -> (out, in) of all attention layers, and of the text encoder's feed-forward layers."""
    found: dict[str, tuple[int, int]] = {}
    for key, value in weights("text_encoder", "model.safetensors").items():
        name = key.removesuffix(".weight").removeprefix("text_model.")
        if re.search(r"\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])\.weight$", key):
            found[f"lora_te_text_model_{name}".replace(".", "_")] = (value.shape[0], value.shape[1])
    for key, value in weights("unet").items():
        if re.search(r"\.attn[12]\.(to_q|to_k|to_v|to_out\.0)\.weight$", key):
            name = key.removesuffix(".weight")
            found[f"lora_unet_{name}".replace(".", "_")] = (value.shape[0], value.shape[1])
    return found


def write_all(folder: Path) -> None:
    """Good adapters, and one of every kind of bad file."""
    random = random_adapter()
    words_adapter().write(folder / "words.safetensors")
    path = random.write(folder / "random.safetensors")
    whole = path.read_bytes()
    (folder / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(whole)
    flipped[-7] ^= 0xFF
    (folder / "corrupt.safetensors").write_bytes(flipped)
    (folder / "pickle.safetensors").write_bytes(b"\x80\x04cos\nsystem\n(S'touch hacked'\ntR.")
    (folder / "hostile.safetensors").write_bytes((2**63).to_bytes(8, "little") + b"{}")
    (folder / "empty.safetensors").write_bytes(b"")
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, folder / "foreign.safetensors")
    file = read_tensors(path)
    poisoned = {**file.tensors, "fair.soft.clip_l": file.tensors["fair.soft.clip_l"] * torch.nan}
    unsigned = {key: value for key, value in file.metadata.items() if key != "sshs_model_hash"}
    (folder / "nan.safetensors").write_bytes(serialise(poisoned, unsigned))
    _other_model(random, "wide", {"clip_l": 768, "context": 768, "unet": 320}, "sd1").write(
        folder / "wide.safetensors"
    )
    _other_model(random, "large", {"clip_l": 768, "clip_g": 1280}, "sdxl").write(folder / "sdxl.safetensors")


def _other_model(adapter: FairnessAdapter, name: str, widths: dict[str, int], kind: str) -> FairnessAdapter:
    base = BaseModel(f"{name} model", kind, widths)
    return FairnessAdapter(replace(adapter.info, name=name, base=base), adapter.tensors, name)
