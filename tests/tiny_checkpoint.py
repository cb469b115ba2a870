"""A tiny Stable Diffusion 2 or XL as one file in the original layout, as downloads come."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fair_adapter.trainer.portrait.single_file import RESNET, vae_key

NETWORK = (
    ("time_embedding.linear_1.", "time_embed.0."), ("time_embedding.linear_2.", "time_embed.2."),
    ("add_embedding.linear_1.", "label_emb.0.0."), ("add_embedding.linear_2.", "label_emb.0.2."),
    ("conv_in.", "input_blocks.0.0."), ("conv_norm_out.", "out.0."), ("conv_out.", "out.2."),
    ("mid_block.resnets.0.", "middle_block.0."), ("mid_block.attentions.0.", "middle_block.1."),
    ("mid_block.resnets.1.", "middle_block.2."), ("down_blocks.0.resnets.0.", "input_blocks.1.0."),
    ("down_blocks.0.downsamplers.0.conv.", "input_blocks.2.0.op."),
    ("down_blocks.1.resnets.0.", "input_blocks.3.0."), ("down_blocks.1.attentions.0.", "input_blocks.3.1."),
    ("up_blocks.0.resnets.0.", "output_blocks.0.0."), ("up_blocks.0.attentions.0.", "output_blocks.0.1."),
    ("up_blocks.0.resnets.1.", "output_blocks.1.0."), ("up_blocks.0.attentions.1.", "output_blocks.1.1."),
    ("up_blocks.0.upsamplers.0.", "output_blocks.1.2."), ("up_blocks.1.resnets.0.", "output_blocks.2.0."),
    ("up_blocks.1.resnets.1.", "output_blocks.3.0."),
)  # fmt: skip
OPEN_CLIP = (
    (r"^embeddings\.token_embedding\.", "token_embedding."),
    (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^encoder\.layers\.", "transformer.resblocks."), (r"\.layer_norm(\d)\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."), (r"\.mlp\.fc2\.", ".mlp.c_proj."), (r"\.self_attn\.", ".attn."),
    (r"^final_layer_norm\.", "ln_final."), (r"^text_projection\.weight", "text_projection"),
)  # fmt: skip


def write_checkpoint(pipeline: Any, path: Path) -> None:
    """Writes an "sd2" or "sdxl" of `tiny_families.pipeline`."""
    tensors = {f"model.diffusion_model.{_network_key(k)}": v for k, v in pipeline.unet.state_dict().items()}
    for key, value in pipeline.vae.state_dict().items():
        name = vae_key(key)
        as_convolution = re.search(r"attn_1\.(q|k|v|proj_out)\.weight$", name) is not None
        tensors[f"first_stage_model.{name}"] = value[:, :, None, None] if as_convolution else value
    if hasattr(pipeline, "text_encoder_2"):
        for key, value in _plain(pipeline.text_encoder).items():
            tensors[f"conditioner.embedders.0.transformer.text_model.{key}"] = value
        clip, prefix = pipeline.text_encoder_2, "conditioner.embedders.1.model."
    else:
        clip, prefix = pipeline.text_encoder, "cond_stage_model.model."
    tensors |= {f"{prefix}{key}": value for key, value in _open_clip(_plain(clip)).items()}
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)


def _network_key(key: str) -> str:
    old, new = next(pair for pair in NETWORK if key.startswith(pair[0]))
    rest = key.removeprefix(old)
    if ".transformer_blocks." not in f".{rest}":
        for pattern, replacement in RESNET:
            rest = re.sub(pattern, replacement, f".{rest}")[1:]
    return new + rest


def _plain(clip: Any) -> dict[str, Tensor]:
    """The text tower's tensors without the prefix that some versions of transformers put before them."""
    state = clip.state_dict().items()
    return {k.removeprefix("text_model."): v for k, v in state if not k.endswith("position_ids")}


def _open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    named = {}
    for key, value in state.items():
        for pattern, replacement in OPEN_CLIP:
            key = re.sub(pattern, replacement, key)
        named[key] = value.T if key == "text_projection" else value
    joined = {}
    for key, value in named.items():
        where = re.fullmatch(r"(.*\.attn\.)q_proj\.(weight|bias)", key)
        if where:
            parts = [named[f"{where[1]}{part}_proj.{where[2]}"] for part in "qkv"]
            joined[f"{where[1]}in_proj_{where[2]}"] = torch.cat(parts)
        elif not re.search(r"\.(k|v)_proj\.", key):
            joined[key] = value
    return joined
