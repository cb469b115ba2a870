"""The embedded portrait model as ComfyUI's own MODEL, CLIP and VAE.

ComfyUI recognises checkpoints by the widths of Stable Diffusion, which the portrait model does not have (it
is small enough for a CPU). Its layers are those of Stable Diffusion 1 all the same: ComfyUI's own classes are
built here with its widths, and everything downstream (samplers, LoRA loaders, text encode nodes) just works.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_management as management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ..shared.errors import FairAdapterError, reason
from ..shared.tensor_file import read_tensors

FOLDER = Path(__file__).resolve().parents[1] / "shared" / "portrait"
REMEDY = "restore shared/portrait with git or install the pack again"


class PortraitModel(comfy.supported_models.SD15):
    """Stable Diffusion 1 in all but its widths."""

    unet_config: dict[str, Any] = {}  # noqa: RUF012  (ComfyUI's form)


class Multiple(float):
    """A width as a multiple of another: a product with it is a whole number, as layers need it."""

    def __mul__(self, width: float) -> int:  # type: ignore[override]
        return round(float(self) * width)

    __rmul__ = __mul__  # type: ignore[assignment]


def load(folder: Path = FOLDER) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE. Raises FairAdapterError for files that are missing, damaged or another model's."""
    try:
        scale = float(_config(folder / "vae")["scaling_factor"])
        model = load_model(folder / "unet", scale)
        return model, load_clip(folder / "text_encoder"), load_vae(folder / "vae")
    except (KeyError, TypeError, RuntimeError) as error:
        raise FairAdapterError(
            f"{folder}: expected the portrait model, found one that does not fit its configuration "
            f"({reason(error)}); {REMEDY}"
        ) from error


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FairAdapterError(
            f"{path}: expected the portrait model's configuration, found {error}; {REMEDY}"
        ) from error


def _weights(folder: Path, name: str = "diffusion_pytorch_model.safetensors") -> dict[str, Tensor]:
    tensors = read_tensors(folder / name, "part of the portrait model").tensors
    return {key: value.float() for key, value in tensors.items()}


# ---- the U-Net


def unet_config(config: dict[str, Any]) -> dict[str, Any]:
    """diffusers' configuration of a U-Net of this kind in the words of ComfyUI's UNetModel."""
    widths = config["block_out_channels"]
    layers = config["layers_per_block"]
    depths = [int("CrossAttn" in kind) for kind in config["down_block_types"]]
    return {
        "use_checkpoint": False,
        "image_size": 32,
        "use_spatial_transformer": True,
        "legacy": False,
        "adm_in_channels": None,
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": widths[0],
        "num_res_blocks": [layers] * len(widths),
        "transformer_depth": [d for depth in depths for d in [depth] * layers],
        "transformer_depth_output": [d for depth in depths for d in [depth] * (layers + 1)],
        "transformer_depth_middle": 1,
        "channel_mult": [Multiple(width / widths[0]) for width in widths],
        "use_linear_in_transformer": bool(config["use_linear_projection"]),
        "context_dim": config["cross_attention_dim"],
        "use_temporal_resblock": False,
        "use_temporal_attention": False,
    }


def load_model(folder: Path, scale: float) -> Any:
    """MODEL: ComfyUI's patcher around its own U-Net.  scale: of the latents, as the autoencoder states it."""
    config = _config(folder)
    kind = PortraitModel(unet_config(config))
    # what diffusers calls attention_head_dim in Stable Diffusion 1 is the number of heads
    kind.unet_config |= {"num_heads": config["attention_head_dim"], "num_head_channels": -1}
    kind.latent_format = comfy.latent_formats.SD15(scale)
    kind.latent_format.latent_rgb_factors = None  # those of Stable Diffusion's latents, as is its TAESD
    kind.latent_format.taesd_decoder_name = None
    kind.set_inference_dtype(torch.float32, None)
    weights = _weights(folder)
    names = comfy.utils.unet_to_diffusers(kind.unet_config)
    tensors = {names[key]: value for key, value in weights.items() if key in names}
    if len(tensors) != len(weights):
        raise KeyError(f"{len(weights) - len(tensors)} unknown tensors")
    device = management.unet_offload_device()
    model = kind.get_model(tensors, "", device=device)
    model.load_model_weights(dict(tensors), "")
    missing = set(model.diffusion_model.state_dict()) - set(tensors)
    if missing:
        raise KeyError(f"{len(missing)} missing tensors, first {min(missing)}")
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(model, load_device=management.get_torch_device(), offload_device=device)


# ---- the text encoder


def load_clip(folder: Path) -> Any:
    """CLIP: ComfyUI's own tokenizer and text encoder, with the portrait model's widths."""
    config = _config(folder)
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
    options = {key: config[key] for key in (*keys, "max_position_embeddings", "vocab_size", "eos_token_id")}
    weights = _weights(folder, "model.safetensors")
    prefix = "clip_l.transformer.text_model."
    tensors = {prefix + key.removeprefix("text_model."): value for key, value in weights.items()}
    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel)
    clip = comfy.sd.CLIP(
        target,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        parameters=comfy.utils.calculate_parameters(tensors),
        model_options={"clip_l_model_config": options, "dtype": torch.float32},
    )
    missing, unknown = clip.load_sd(tensors, full_model=True)
    missing = [key for key in missing if "logit_scale" not in key and "text_projection" not in key]
    if missing or unknown:
        raise KeyError(f"text encoder: {[*missing, *unknown][0]}")
    return clip


# ---- the autoencoder


def load_vae(folder: Path) -> Any:
    """VAE: ComfyUI's own autoencoder, with the portrait model's widths."""
    config = _config(folder)
    widths = config["block_out_channels"]
    shape = {
        "double_z": True,
        "z_channels": config["latent_channels"],
        "resolution": 256,
        "in_channels": config["in_channels"],
        "out_ch": config["out_channels"],
        "ch": widths[0],
        "ch_mult": [Multiple(width / widths[0]) for width in widths],
        "num_res_blocks": config["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    parameters = {"ddconfig": shape, "embed_dim": config["latent_channels"]}
    vae = comfy.sd.VAE(sd=_weights(folder), config={"params": parameters})
    vae.downscale_ratio = vae.upscale_ratio = 2 ** (len(widths) - 1)
    return vae
