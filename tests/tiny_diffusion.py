"""A Stable Diffusion of SD1's topology with random weights, small enough for a test: 128 px, width 32."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fair_adapter.trainer.families.stable_diffusion import StableDiffusion
from fair_adapter.trainer.portrait.models import build_scheduler, build_tokenizer

WIDTH = 32


@functools.cache
def tokenizer() -> CLIPTokenizer:
    """CLIP's own."""
    with tempfile.TemporaryDirectory() as folder:
        return build_tokenizer(Path(folder))


def text_encoder(width: int = WIDTH, layers: int = 2) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )
    return CLIPTextModel(config)


def unet(context: int = WIDTH, widths: tuple[int, ...] = (32, 32, 32, 32)) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=widths,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=context,
        attention_head_dim=2,
    )


def vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32,) * 4,
        layers_per_block=1,
        latent_channels=4,
        sample_size=128,
    )


def tiny_model(dtype: torch.dtype = torch.float32, width: int = WIDTH) -> StableDiffusion:
    """A model of its own for every call, always of the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = text_encoder(width), unet(width), vae()
    for part in parts:
        torch.nn.Module.to(part, dtype)  # diffusers' own would warn about precision
    text, network, decoder = (part.eval().requires_grad_(False) for part in parts)
    return StableDiffusion(tokenizer(), text, network, decoder, build_scheduler()).to("cpu")


def pipeline(model: StableDiffusion) -> StableDiffusionPipeline:
    """The same networks as diffusers runs them."""
    return StableDiffusionPipeline(
        vae=model.vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        unet=model.unet,
        scheduler=model.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
