"""The portrait model as one checkpoint in the original Stable Diffusion layout, with the yaml A1111 reads.

Key names follow CompVis' ldm as every host knows them. AUTOMATIC1111 takes a checkpoint of other widths than
Stable Diffusion's when ``NAME.yaml`` lies beside it; the text encoder's config and tokenizer lie in
``NAME_text/``. The yaml gives the first width, and the others as multiples of it. ldm makes layers of the
products, so that only whole multiples will do (1.5 times 64 is a float there), and it always normalises in 32
groups.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...shared.errors import FairAdapterError
from ..families.layout import clip_key, unet_namer, vae_namer

GROUPS = 32  # of ldm's group norms: no option of the yaml


def checkpoint_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a diffusers folder under their ldm names.

    Raises:
        FairAdapterError: a weight file or a config is missing or damaged.
    """
    unet_key, vae_key = unet_namer(_config(folder, "unet")), vae_namer(_config(folder, "vae"))
    tensors: dict[str, Tensor] = {}
    for key, value in _weights(folder / "unet" / "diffusion_pytorch_model.safetensors").items():
        tensors[f"model.diffusion_model.{unet_key(key)}"] = value
    for key, value in _weights(folder / "vae" / "diffusion_pytorch_model.safetensors").items():
        name = vae_key(key)
        as_convolution = re.search(r"attn_1\.(q|k|v|proj_out)\.weight$", name) is not None
        tensors[f"first_stage_model.{name}"] = value[:, :, None, None] if as_convolution else value
    for key, value in _weights(folder / "text_encoder" / "model.safetensors").items():
        tensors[f"cond_stage_model.transformer.{clip_key(key)}"] = value
    return {key: value.contiguous() for key, value in tensors.items()}


def _weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own class, outside the OSError family
        raise FairAdapterError(f"{path}: expected the weights of a diffusers folder, found {error}; "
                               "restore it with git") from error  # fmt: skip


def _config(folder: Path, part: str) -> dict[str, Any]:
    path = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FairAdapterError(f"{path}: expected the config of a diffusers folder, found {error}; "
                               "restore it with git") from error  # fmt: skip


def _multiples(folder: Path, part: str) -> list[int]:
    """The widths of a part's levels as whole multiples of the first.

    Raises:
        FairAdapterError: ldm can't build these widths.
    """
    config = _config(folder, part)
    widths, groups = [int(width) for width in config["block_out_channels"]], config["norm_num_groups"]
    if groups != GROUPS or any(width % widths[0] or width % GROUPS for width in widths):
        found = ", ".join(map(str, widths)) + ("" if groups == GROUPS else f" in {groups} groups")
        raise FairAdapterError(
            f"{folder / part / 'config.json'}: expected widths that AUTOMATIC1111 can build, whole multiples "
            f"of the first and of {GROUPS} in {GROUPS} groups (64, 64, 128, 128 or 32, 64, 96, 96), found "
            f"{found}; train a model of such widths (trainer/portrait/models.py), or use this one as a "
            "folder, in the studio or diffusers"
        )
    return [width // widths[0] for width in widths]


def write_single_file(folder: Path, target: Path) -> None:
    """Writes ``target`` (.safetensors), its yaml, and ``NAME_text/`` with config and tokenizer.

    Raises:
        FairAdapterError: ``folder`` is no portrait model, or one that A1111 can't load; ``target`` has
            another ending or can't be written.
    """
    if target.suffix != ".safetensors":
        raise FairAdapterError(
            f"{target}: expected a name that ends in .safetensors, found '{target.suffix}'"
        )
    text = target.with_name(f"{target.stem}_text").resolve()
    config = original_config(folder, text)
    for name in ("vocab.json", "merges.txt"):
        if not (folder / "tokenizer" / name).is_file():
            raise FairAdapterError(
                f"{folder / 'tokenizer'}: expected {name}, without which AUTOMATIC1111 has no tokenizer, "
                "found none; write it with build_tokenizer of trainer/portrait/models.py"
            )
    tensors = checkpoint_tensors(folder)
    try:
        text.mkdir(parents=True, exist_ok=True)
        for source in (folder / "text_encoder" / "config.json", *sorted((folder / "tokenizer").iterdir())):
            (text / source.name).write_bytes(source.read_bytes())
        target.with_suffix(".yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        partial = target.with_suffix(".partial")
        save_file({key: value.to(torch.float16) for key, value in tensors.items()}, partial, {"format": "pt"})
        partial.replace(target)
    except OSError as error:
        raise FairAdapterError(
            f"{target}: can't write it ({error.strerror}); choose a writable folder"
        ) from error


def original_config(folder: Path, text: Path) -> dict[str, Any]:
    """The ldm yaml of a portrait model, read off its diffusers configs.

    Raises:
        FairAdapterError: ``folder`` is no portrait model, or of widths that ldm can't build.
    """
    unet, vae, scheduler = (_config(folder, part) for part in ("unet", "vae", "scheduler"))
    unet_multiples, vae_multiples = _multiples(folder, "unet"), _multiples(folder, "vae")
    parameters = {
        "linear_start": scheduler["beta_start"],
        "linear_end": scheduler["beta_end"],
        "timesteps": scheduler["num_train_timesteps"],
        "num_timesteps_cond": 1,
        "log_every_t": 200,
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": unet["sample_size"],
        "channels": 4,
        "cond_stage_trainable": False,
        "conditioning_key": "crossattn",
        "monitor": "val/loss_simple_ema",
        "scale_factor": vae["scaling_factor"],
        "use_ema": False,
        "unet_config": {
            "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
            "params": _unet_parameters(unet, unet_multiples),
        },
        "first_stage_config": {
            "target": "ldm.models.autoencoder.AutoencoderKL",
            "params": {
                "embed_dim": 4,
                "monitor": "val/rec_loss",
                "ddconfig": _vae_parameters(vae, vae_multiples),
                "lossconfig": {"target": "torch.nn.Identity"},
            },
        },
        "cond_stage_config": {
            "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
            "params": {"version": str(text)},
        },
    }
    target = "ldm.models.diffusion.ddpm.LatentDiffusion"
    return {"model": {"base_learning_rate": 1e-4, "target": target, "params": parameters}}


def _unet_parameters(unet: dict[str, Any], multiples: list[int]) -> dict[str, Any]:
    attended = [2**i for i, kind in enumerate(unet["down_block_types"]) if kind.startswith("CrossAttn")]
    return {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": unet["block_out_channels"][0],
        "attention_resolutions": attended[::-1],
        "num_res_blocks": unet["layers_per_block"],
        "channel_mult": multiples,
        "num_heads": unet["attention_head_dim"],
        "use_spatial_transformer": True,
        "transformer_depth": unet["transformer_layers_per_block"],
        "context_dim": unet["cross_attention_dim"],
        "use_checkpoint": False,
        "legacy": False,
    }


def _vae_parameters(vae: dict[str, Any], multiples: list[int]) -> dict[str, Any]:
    return {
        "double_z": True,
        "z_channels": 4,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": vae["block_out_channels"][0],
        "ch_mult": multiples,
        "num_res_blocks": vae["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
    }
