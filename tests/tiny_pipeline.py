"""A Stable Diffusion 1 pipeline with random weights that runs in milliseconds on a CPU: the topology of
trainer/portrait/models.py, a tenth of its widths, 32 px pictures."""

import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fair_adapter.trainer.families.portrait import PORTRAIT
from fair_adapter.trainer.portrait.card import PortraitCard
from fair_adapter.trainer.portrait.models import (
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    build_vae,
)

WIDTH = 8


def write_tiny_pipeline(folder: Path, layers: int = 1) -> Path:
    """A diffusers folder with model card; the same weights every time.  layers: of a U-Net block."""
    torch.manual_seed(0)
    unet, vae, text = build_unet().config, build_vae().config, build_text_encoder().config
    tiny_text = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": WIDTH,
    }
    pipeline = StableDiffusionPipeline(
        unet=UNet2DConditionModel.from_config(
            {
                **unet,
                "sample_size": 8,
                "block_out_channels": (4, 8, 8, 8),
                "norm_num_groups": 4,
                "layers_per_block": layers,
                "cross_attention_dim": WIDTH,
            }
        ),
        vae=AutoencoderKL.from_config(
            {**vae, "block_out_channels": (4, 4, 8, 8), "norm_num_groups": 4, "sample_size": 64}
        ),
        text_encoder=CLIPTextModel(CLIPTextConfig(**{**text.to_dict(), **tiny_text})),
        tokenizer=build_tokenizer(folder / "tokenizer"),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    PortraitCard(2.0, 20, 1, {}).write(folder)
    return folder


def write_random_portrait(folder: Path, widths: tuple[int, int, int, int] = (64, 64, 128, 128)) -> Path:
    """A diffusers folder like the portrait model's, with a random U-Net of these widths, always the same.

    Text encoder, tokenizer and VAE are the shipped ones, so that a prompt makes a difference to the picture.
    """
    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline(
        unet=build_unet(widths).half(),
        vae=AutoencoderKL.from_pretrained(PORTRAIT, subfolder="vae", torch_dtype=torch.float16),
        text_encoder=CLIPTextModel.from_pretrained(
            PORTRAIT, subfolder="text_encoder", torch_dtype=torch.float16
        ),
        tokenizer=CLIPTokenizer.from_pretrained(PORTRAIT, subfolder="tokenizer"),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    # new versions of transformers save tokenizer.json alone, which those of the hosts don't read
    shutil.copytree(PORTRAIT / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    PortraitCard(2.0, 20, 1, {}).write(folder)
    return folder
