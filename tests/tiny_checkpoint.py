"""A tiny Stable Diffusion 2, XL or 3 as one file in the original layout, as downloads come."""

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
MMDIT = (
    (r"^pos_embed\.pos_embed$", "pos_embed"), (r"^pos_embed\.proj\.", "x_embedder.proj."),
    (r"^time_text_embed\.timestep_embedder\.linear_1\.", "t_embedder.mlp.0."),
    (r"^time_text_embed\.timestep_embedder\.linear_2\.", "t_embedder.mlp.2."),
    (r"^time_text_embed\.text_embedder\.linear_1\.", "y_embedder.mlp.0."),
    (r"^time_text_embed\.text_embedder\.linear_2\.", "y_embedder.mlp.2."),
    (r"^transformer_blocks\.", "joint_blocks."), (r"\.norm1\.linear\.", ".x_block.adaLN_modulation.1."),
    (r"\.norm1_context\.linear\.", ".context_block.adaLN_modulation.1."),
    (r"\.ff\.net\.0\.proj\.", ".x_block.mlp.fc1."), (r"\.ff\.net\.2\.", ".x_block.mlp.fc2."),
    (r"\.ff_context\.net\.0\.proj\.", ".context_block.mlp.fc1."),
    (r"\.ff_context\.net\.2\.", ".context_block.mlp.fc2."),
    (r"\.(attn2?)\.to_out\.0\.", r".x_block.\1.proj."),
    (r"\.attn\.to_add_out\.", ".context_block.attn.proj."),
    (r"\.(attn2?)\.norm_([qk])\.", r".x_block.\1.ln_\2."),
    (r"\.attn\.norm_added_([qk])\.", r".context_block.attn.ln_\1."),
    (r"\.(attn2?)\.to_([qkv])\.", r".x_block.\1.\2."),
    (r"\.attn\.add_([qkv])_proj\.", r".context_block.attn.\1."),
    (r"^norm_out\.linear\.", "final_layer.adaLN_modulation.1."), (r"^proj_out\.", "final_layer.linear."),
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
    tensors |= _vae(pipeline)
    if hasattr(pipeline, "text_encoder_2"):
        for key, value in _plain(pipeline.text_encoder).items():
            tensors[f"conditioner.embedders.0.transformer.text_model.{key}"] = value
        clip, prefix = pipeline.text_encoder_2, "conditioner.embedders.1.model."
    else:
        clip, prefix = pipeline.text_encoder, "cond_stage_model.model."
    tensors |= {f"{prefix}{key}": value for key, value in _open_clip(_plain(clip)).items()}
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)


def write_sd3(pipeline: Any, path: Path, encoders: bool = True, vae: bool = True) -> None:
    """Writes an "sd3", as Stability AI publishes it with and without text encoders; T5 has its table once."""
    network = _joined({_renamed(MMDIT, k): v for k, v in pipeline.transformer.state_dict().items()}, "qkv")
    last = len(pipeline.transformer.transformer_blocks) - 1
    for key, value in network.items():  # shift and scale are the other way round there
        if re.match(rf"final_layer\.adaLN|joint_blocks\.{last}\.context_block\.adaLN", key):
            network[key] = torch.cat(value.chunk(2)[::-1])
    tensors = {f"model.diffusion_model.{key}": value for key, value in network.items()}
    tensors |= _vae(pipeline) if vae else {}
    for name, clip in (("clip_l", pipeline.text_encoder), ("clip_g", pipeline.text_encoder_2)):
        for key, value in _plain(clip).items() if encoders else ():
            if key == "text_projection.weight" and name == "clip_l":
                continue  # files have none: it is the identity
            place = key if key.startswith("text_projection") else f"text_model.{key}"
            tensors[f"text_encoders.{name}.transformer.{place}"] = value
    if encoders and pipeline.text_encoder_3 is not None:
        t5 = {k: v for k, v in pipeline.text_encoder_3.state_dict().items() if "embed_tokens" not in k}
        tensors |= {f"text_encoders.t5xxl.transformer.{key}": value for key, value in t5.items()}
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)


def _vae(pipeline: Any) -> dict[str, Tensor]:
    tensors = {}
    for key, value in pipeline.vae.state_dict().items():
        name = vae_key(key)
        as_convolution = re.search(r"attn_1\.(q|k|v|proj_out)\.weight$", name) is not None
        tensors[f"first_stage_model.{name}"] = value[:, :, None, None] if as_convolution else value
    return tensors


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
    named = {_renamed(OPEN_CLIP, key): value for key, value in state.items()}
    if "text_projection" in named:
        named["text_projection"] = named["text_projection"].T
    return {key.replace("in_proj.", "in_proj_"): value for key, value in _joined(named, "in_proj").items()}


def _renamed(rules: tuple[tuple[str, str], ...], key: str) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _joined(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """With query, key and value (q, k, v or q_proj, ...) of a layer in one tensor `name`."""
    joined = {}
    for key, value in state.items():
        where = re.fullmatch(r"(.*\.attn2?\.)([qkv])(_proj)?\.(weight|bias)", key)
        if where is None:
            joined[key] = value
        elif where[2] == "q":
            parts = [state[f"{where[1]}{part}{where[3] or ''}.{where[4]}"] for part in "qkv"]
            joined[f"{where[1]}{name}.{where[4]}"] = torch.cat(parts)
    return joined
