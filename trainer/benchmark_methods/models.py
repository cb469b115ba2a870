"""The models that are measured: the portrait model, and others with random weights.

medium   SD1's topology at widths of 96 to 384 on 16 x 16 latents, for a CPU
sd15     Stable Diffusion 1.5 at full size, 512 px
sdxl     Stable Diffusion XL at full size, 1024 px
"""

# pyright: reportArgumentType=false
# (diffusers annotates block lists as tuples of one)

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ...shared.preservation import SemanticEncoder
from ..families.base import DiffusionModel
from ..families.loading import load_model
from ..families.portrait import PORTRAIT
from ..families.stable_diffusion import StableDiffusion
from ..families.stable_diffusion_xl import StableDiffusionXL
from ..instruments.encoders import as_loaded, clip_encoder, dino_encoder
from ..portrait.models import build_scheduler, build_tokenizer, build_vae

SEED = 0


def build(name: str, device: torch.device, dtype: torch.dtype) -> DiffusionModel:
    """A model by name: portrait, medium, sd15 or sdxl."""
    if name == "portrait":
        return load_model(PORTRAIT, device, dtype)
    scheduler = build_scheduler()  # on the CPU, where its tables are read
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
        torch.manual_seed(SEED)
        model = {"medium": _medium, "sd15": _sd15, "sdxl": _sdxl}[name](scheduler)
    for part in model.parts().values():
        torch.nn.Module.to(part, dtype)  # diffusers' own would warn about precision
    return model.to(device)


def papers_encoders(device: torch.device) -> list[SemanticEncoder]:
    """ViT-H-14 and DINOv2 ViT-B/14 with random weights, loaded as training loads them."""
    import open_clip
    from transformers import Dinov2Config, Dinov2Model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        clip = open_clip.create_model("ViT-H-14", pretrained=None, load_weights=False)
        dino = Dinov2Model(Dinov2Config(image_size=518, patch_size=14))
    return [
        as_loaded(clip_encoder("open_clip", "random", clip), device),
        as_loaded(dino_encoder("random", dino), device),
    ]


def _tokenizer() -> CLIPTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        return build_tokenizer(Path(folder))


def _clip(kind: Any, width: int, layers: int, heads: int, act: str) -> Any:
    return kind(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=77,
            projection_dim=width,
            hidden_act=act,
            bos_token_id=49406,
            eos_token_id=49407,
            pad_token_id=49407,
        )
    )


def _unet(widths: tuple[int, ...], side: int, context: int, heads: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=side,
        layers_per_block=2,
        block_out_channels=widths,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=context,
        attention_head_dim=heads,  # the number of heads: SD1 gives the count under this name
    )


def _vae(side: int, **settings: Any) -> AutoencoderKL:
    """Stable Diffusion's, at full size."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=8 * side,
        **settings,
    )


def _medium(scheduler: Any) -> StableDiffusion:
    text = _clip(CLIPTextModel, 256, 6, 4, "quick_gelu")
    unet = _unet((96, 192, 384, 384), 16, 256, 8)
    return StableDiffusion(_tokenizer(), text, unet, build_vae(), scheduler)


def _sd15(scheduler: Any) -> StableDiffusion:
    text = _clip(CLIPTextModel, 768, 12, 12, "quick_gelu")
    unet = _unet((320, 640, 1280, 1280), 64, 768, 8)
    return StableDiffusion(_tokenizer(), text, unet, _vae(64), scheduler)


def _sdxl(scheduler: Any) -> StableDiffusionXL:
    unet = UNet2DConditionModel(
        sample_size=128,
        layers_per_block=2,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    small = _clip(CLIPTextModel, 768, 12, 12, "quick_gelu")
    large = _clip(CLIPTextModelWithProjection, 1280, 32, 20, "gelu")
    vae = _vae(128, scaling_factor=0.13025)
    return StableDiffusionXL(_tokenizer(), _tokenizer(), small, large, unet, vae, scheduler)
