"""Adapters for the portrait model, made without training.

`words_adapter` has the token embeddings of words as soft tokens: what it draws follows the words, so that its
effect on pictures is as sure as the model's understanding of them. `random_adapter` has a LoRA of every kind
of layer besides.
"""

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from fair_adapter.shared.adapter import FairnessAdapter
from fair_adapter.shared.adapter_info import AdapterInfo, BaseModel, weights_hash
from fair_adapter.shared.adapter_target import TargetSpace
from fair_adapter.shared.attributes import TargetDistribution
from fair_adapter.tests.a1111.webui.modules.clip_tokens import clip_tokenizer

PORTRAIT = Path(__file__).resolve().parents[2] / "shared" / "portrait"
SPACE = TargetSpace(
    TargetDistribution.parse("gender=50/50"),
    "marginals",
    {"gender": {"female": (0.1, 0.9), "male": (0.1, 0.9)}},
)
BOTH = TargetSpace(TargetDistribution.parse("gender=50/50;race=equal"), "cells")
EVALUATION = {
    "original": {"gender": {"bias": 0.71, "ci95": [0.63, 0.79], "floor": 0.2,
                            "shares": {"female": 0.31, "male": 0.69}}},
    "adapter": {"gender": {"bias": 0.24, "ci95": [0.2, 0.29], "floor": 0.2,
                           "shares": {"female": 0.52, "male": 0.48}}},
}  # fmt: skip


def base_model() -> BaseModel:
    unet = load_file(PORTRAIT / "unet" / "diffusion_pytorch_model.safetensors")
    widths = {"clip_l": 64, "context": 64, "unet": int(unet["conv_in.weight"].shape[0])}
    return BaseModel("portrait", "sd1", widths, weights_hash(unet["conv_in.weight"], unet["conv_out.weight"]))


def word_vectors(words: str, count: int) -> Tensor:
    """Token embeddings of words, repeated to (count, d)."""
    table = load_file(PORTRAIT / "text_encoder" / "model.safetensors")["embeddings.token_embedding.weight"]
    tokenizer = clip_tokenizer(PORTRAIT / "tokenizer")
    ids = tokenizer.encode(words).ids
    return table[[ids[i % len(ids)] for i in range(count)]].float()


def words_adapter(
    name: str, words: dict[str, str], space: TargetSpace = SPACE, count: int = 4
) -> FairnessAdapter:
    """P(t) = mean of the words' vectors + sum_k t_k (vectors of class k - mean)."""
    vectors = torch.stack([word_vectors(words[c], count) for c in space.attributes[0].classes])
    mean = vectors.mean(0)
    tensors = {
        "fair.soft.clip_l": mean,
        "fair.soft_target.clip_l": vectors - mean,
        "fair.soft_neutral.clip_l": word_vectors(",", count),
    }
    return FairnessAdapter(describe(name, space), tensors, name)


def fixed_adapter(name: str, words: str, count: int = 4) -> FairnessAdapter:
    """For one target alone: its tokens are the words', so that typing the words draws the same."""
    tensors = {"fair.soft.clip_l": word_vectors(words, count)}
    return FairnessAdapter(describe(name, TargetSpace(SPACE.default)), tensors, name)


def foreign_adapter(name: str, space: TargetSpace = SPACE) -> FairnessAdapter:
    """Made for a model of other widths."""
    info = replace(describe(name, space), base=BaseModel("another model", "sd1", {"clip_l": 8}))
    moves = torch.zeros(space.dimension, 3, 8)
    tensors = {"fair.soft.clip_l": torch.zeros(3, 8), "fair.soft_target.clip_l": moves}
    return FairnessAdapter(info, tensors, name)


def misfit_adapter(name: str) -> FairnessAdapter:
    """Of the right widths, with a LoRA for layers that the portrait model lacks."""
    layer = "lora_te_text_model_encoder_layers_11_mlp_fc1"
    tensors = {f"{layer}.lora_down.weight": torch.ones(2, 64), f"{layer}.lora_up.weight": torch.ones(256, 2)}
    tensors[f"{layer}.alpha"] = torch.tensor(2.0)
    return FairnessAdapter(describe(name, TargetSpace(SPACE.default)), tensors, name)


def random_adapter(
    name: str, space: TargetSpace = BOTH, seed: int = 0, size: float = 0.02
) -> FairnessAdapter:
    """Soft tokens and a LoRA of text encoder and U-Net, rank 2, with gates."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    tensors = {"fair.soft.clip_l": word_vectors(",", 3) + size * randn(3, 64)}
    tensors["fair.soft_neutral.clip_l"] = word_vectors(",", 3)
    k = space.dimension
    if k:
        tensors["fair.soft_target.clip_l"] = size * randn(k, 3, 64)
    for layer, (outputs, inputs) in layer_shapes().items():
        tensors |= {f"{layer}.lora_down.weight": randn(2, inputs) / 2, f"{layer}.alpha": torch.tensor(2.0)}
        tensors[f"{layer}.lora_up.weight"] = size * randn(outputs, 2)
        if k:
            tensors[f"fair.gate.{layer}"] = randn(k, 2)
    return FairnessAdapter(describe(name, space), tensors, name)


def layer_shapes() -> dict[str, tuple[int, int]]:
    """kohya name -> (out, in) of two layers of the text encoder and two of the U-Net."""
    text = json.loads((PORTRAIT / "text_encoder" / "config.json").read_text())
    width, hidden = text["hidden_size"], text["intermediate_size"]
    wide = json.loads((PORTRAIT / "unet" / "config.json").read_text())["block_out_channels"][-1]
    middle = "lora_unet_mid_block_attentions_0_transformer_blocks_0"
    return {
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj": (width, width),
        "lora_te_text_model_encoder_layers_1_mlp_fc1": (hidden, width),
        f"{middle}_attn2_to_q": (wide, wide),
        f"{middle}_attn2_to_k": (wide, width),
    }


def describe(name: str, space: TargetSpace) -> AdapterInfo:
    text = "Made for the tests, without training."
    return AdapterInfo(
        name, base_model(), space, evaluation=EVALUATION, licence="MIT", created="2026-11-21",
        description=text, author="Fair Adapter contributors",
    )  # fmt: skip
