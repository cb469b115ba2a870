"""A tiny Stable Diffusion 1, 2, XL or 3 as one file in the original layout, as downloads come."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fair_adapter.trainer.families.layout import (
    Namer,
    clip_key,
    mmdit_key,
    open_clip_key,
    unet_namer,
    vae_namer,
)
from fair_adapter.trainer.portrait.single_file import checkpoint_tensors


def write_sd1(folder: Path, path: Path) -> None:
    """Writes the diffusers folder of a Stable Diffusion 1, in float16."""
    save_file({key: value.half() for key, value in checkpoint_tensors(folder).items()}, path)


def write_checkpoint(pipeline: Any, path: Path) -> None:
    """Writes an "sd2" or "sdxl" of `tiny_families.pipeline`."""
    unet = pipeline.unet
    tensors = _named("model.diffusion_model.", unet.state_dict(), unet_namer(unet.config)) | _vae(pipeline)
    if hasattr(pipeline, "text_encoder_2"):
        tensors |= _named("conditioner.embedders.0.transformer.", _plain(pipeline.text_encoder), clip_key)
        clip, prefix = pipeline.text_encoder_2, "conditioner.embedders.1.model."
    else:
        clip, prefix = pipeline.text_encoder, "cond_stage_model.model."
    state = _plain(clip)
    if "text_projection.weight" in state:
        state["text_projection.weight"] = state["text_projection.weight"].T
    tensors |= _named(prefix, state, open_clip_key)
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)


def write_sd3(pipeline: Any, path: Path, encoders: bool = True, vae: bool = True) -> None:
    """Writes an "sd3", as Stability AI publishes it with and without text encoders; T5 has its table once."""
    network = _named("", pipeline.transformer.state_dict(), mmdit_key)
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
            tensors[f"text_encoders.{name}.transformer.{clip_key(key)}"] = value
    if encoders and pipeline.text_encoder_3 is not None:
        t5 = {k: v for k, v in pipeline.text_encoder_3.state_dict().items() if "embed_tokens" not in k}
        tensors |= {f"text_encoders.t5xxl.transformer.{key}": value for key, value in t5.items()}
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)


def _vae(pipeline: Any) -> dict[str, Tensor]:
    tensors = _named("first_stage_model.", pipeline.vae.state_dict(), vae_namer(pipeline.vae.config))
    for name, value in tensors.items():
        if re.search(r"attn_1\.(q|k|v|proj_out)\.weight$", name):
            tensors[name] = value[:, :, None, None]  # a convolution
    return tensors


def _plain(clip: Any) -> dict[str, Tensor]:
    """The text tower's tensors without the prefix that some versions of transformers put before them."""
    state = clip.state_dict().items()
    return {k.removeprefix("text_model."): v for k, v in state if not k.endswith("position_ids")}


def _named(prefix: str, state: dict[str, Tensor], namer: Namer) -> dict[str, Tensor]:
    """Under the names of a file; query, key and value in one tensor where they have one name."""
    groups: dict[str, dict[int, Tensor]] = {}
    for key, value in state.items():
        which = re.search(r"\.(?:to_|add_|self_attn\.)([qkv])(?:_proj)?\.", key)
        groups.setdefault(prefix + namer(key), {})["qkv".index(which[1]) if which else 0] = value
    return {
        name: torch.cat([group[i] for i in sorted(group)]) if len(group) > 1 else next(iter(group.values()))
        for name, group in groups.items()
    }
