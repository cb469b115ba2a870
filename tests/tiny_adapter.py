"""Fairness adapters of a few numbers, for tests of the file and of what it means."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fair_adapter.shared.adapter import FairnessAdapter
from fair_adapter.shared.adapter_info import AdapterInfo, BaseModel
from fair_adapter.shared.adapter_target import TargetSpace
from fair_adapter.shared.attributes import TargetDistribution

LAYERS = (
    "lora_te_text_model_encoder_layers_0_mlp_fc1",
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q",
)
SPACE = TargetSpace(
    TargetDistribution.parse("gender=50/50;race=equal"),
    "cells",
    {"gender": {"female": (0.1, 0.9), "male": (0.1, 0.9)}, "race": {"black": (0.05, 0.8)}},
)
FIXED = TargetSpace(TargetDistribution.parse("gender=50/50;age=75/25"))
BASE = BaseModel("portrait", "sd1", {"clip_l": 8, "context": 8, "unet": 32}, "ab" * 32)


def make_tensors(dimension: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    """A LoRA of two layers (rank 3, alpha 1.5) and five soft tokens; K = `dimension`."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    tensors = {}
    for name in LAYERS:
        tensors |= {f"{name}.lora_down.weight": randn(3, 6), f"{name}.lora_up.weight": randn(7, 3)}
        tensors |= {f"{name}.alpha": torch.tensor(1.5)}
        tensors |= {f"fair.gate.{name}": randn(dimension, 3)} if dimension else {}
    tensors |= {"fair.soft.clip_l": randn(5, 8), "fair.soft_neutral.clip_l": randn(5, 8)}
    return tensors | ({"fair.soft_target.clip_l": randn(dimension, 5, 8)} if dimension else {})


def make_adapter(space: TargetSpace = SPACE, **info: object) -> FairnessAdapter:
    described = AdapterInfo(
        name="tiny-fair",
        base=BASE,
        targets=space,
        classifier="default:0123456789ab",
        prompts={"occupations": 100, "templates": ["a photo of a {}"]},
        evaluation={"gender": {"bias": 0.16, "ci95": [0.1, 0.2]}},
        configuration={"rank": 3},
        licence="MIT",
        created="2026-11-21",
    )
    return FairnessAdapter(replace(described, **info), make_tensors(space.dimension))


def payload(path: Path) -> tuple[dict[str, object], bytes]:
    """Header and the bytes after it, by the format's description alone."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]
