"""Stable Diffusion XL: two text encoders, their hidden states side by side, a pooled embedding, time ids."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
# (diffusers annotates these wrongly)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ...shared.adapter_info import FamilyNames
from ...shared.lora import unet_layers
from ...shared.sampling import Conditioning
from ...shared.soft_prompt import prompt_ids, spliced
from .base import LATENT_FACTOR, DiffusionModel, Soft, TextEncoder
from .file_parts import UNET_PART, VAE_PART, FilePart, always, clip_part
from .layout import open_clip_key


@dataclass
class StableDiffusionXL(DiffusionModel):
    """Stable Diffusion XL base.

    zero_negative: zeros for text and pooled embedding of an empty negative prompt, as A1111, Forge and, where
    it is None, diffusers have it; ComfyUI encodes it like any other prompt.
    """

    architecture = "sdxl"
    title = "Stable Diffusion XL"
    guidance_scale = 7.0
    pipelines = ("StableDiffusionXLPipeline", "StableDiffusionXLInpaintPipeline")
    marks = ("conditioner.embedders.1.model.",)
    file_parts = (
        clip_part("text_encoder", CLIPTextModel, "conditioner.embedders.0.transformer."),
        FilePart(
            "text_encoder_2",
            CLIPTextModelWithProjection,
            "conditioner.embedders.1.model.",
            always(open_clip_key),
        ),
        UNET_PART,
        VAE_PART,
    )

    tokenizer: CLIPTokenizer
    tokenizer_2: CLIPTokenizer
    text_encoder: CLIPTextModel
    text_encoder_2: CLIPTextModelWithProjection
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: Any
    zero_negative: bool = False

    @classmethod
    def from_pipeline(cls, pipeline: Any) -> StableDiffusionXL:
        return cls(
            pipeline.tokenizer,
            pipeline.tokenizer_2,
            pipeline.text_encoder,
            pipeline.text_encoder_2,
            pipeline.unet,
            pipeline.vae,
            pipeline.scheduler,
        )

    def to(self, device: torch.device | str) -> StableDiffusionXL:
        """As for every model; the VAE in float32 where float16 would overflow in it."""
        super().to(device)
        if self.vae.dtype == torch.float16 and self.vae.config["force_upcast"]:
            self.vae.to(torch.float32)
        return self

    @property
    def names(self) -> FamilyNames:
        return FamilyNames("stable-diffusion-xl-v1-base", "sdxl_base_v1-0")

    @property
    def network(self) -> UNet2DConditionModel:
        return self.unet

    @property
    def encoders(self) -> tuple[TextEncoder, ...]:
        return (
            TextEncoder("clip_l", self.text_encoder, self.tokenizer, "lora_te1"),
            TextEncoder("clip_g", self.text_encoder_2, self.tokenizer_2, "lora_te2"),
        )

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), **({"empty_negative": "zeros"} if self.zero_negative else {})}

    def network_layers(self) -> dict[str, nn.Linear]:
        return unet_layers(self.unet)

    def zero_empty_negative(self) -> None:
        self.zero_negative = True

    def encode_negative(
        self, prompts: Sequence[str], soft: Soft | None = None, length: int | None = None
    ) -> Conditioning:
        """As `encode`; soft tokens before an empty prompt are no empty prompt to the hosts."""
        encoded = self.encode(prompts, soft, length)
        if self.zero_negative and soft is None and not any(prompts):
            return {name: torch.zeros_like(value) for name, value in encoded.items()}
        return encoded

    def encode(
        self, prompts: Sequence[str], soft: Soft | None = None, length: int | None = None
    ) -> Conditioning:
        """{"text": (N, 77, 768 + 1280), "pooled": (N, 1280)}: the last but one hidden states of both."""
        hidden, pooled = [], None
        for encoder in self.encoders:
            output = clip_output(encoder, prompts, soft, self.device)
            hidden.append(output.hidden_states[-2])
            pooled = output[0]  # of the second encoder, through its projection
        assert pooled is not None
        return {"text": torch.cat(hidden, dim=-1), "pooled": pooled}

    def denoise(self, inputs: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The U-Net's output (B, 4, h, w); told that the picture is of this size and not cropped."""
        dtype = self.unet.dtype
        height, width = (LATENT_FACTOR * n for n in inputs.shape[-2:])
        added = {
            "text_embeds": conditioning["pooled"].to(dtype),
            "time_ids": _time_ids(height, width, inputs.device, dtype).expand(len(inputs), 6),
        }
        text, inputs = conditioning["text"].to(dtype), self.network_inputs(inputs).to(dtype)
        return self.unet(inputs, timesteps, text, added_cond_kwargs=added).sample

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        return self.unet.conv_in.weight, self.unet.conv_out.weight

    def widths(self) -> dict[str, int]:
        return {
            "clip_l": int(self.text_encoder.config.hidden_size),
            "clip_g": int(self.text_encoder_2.config.hidden_size),
            "context": int(self.unet.config["cross_attention_dim"]),
            "unet": int(self.unet.config["block_out_channels"][0]),
        }


@cache
def _time_ids(height: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(6,): size of the original, its corner, size of the picture; copied to the device once."""
    return torch.tensor([height, width, 0, 0, height, width], device=device, dtype=dtype)


def clip_output(encoder: TextEncoder, prompts: Sequence[str], soft: Soft | None, device: torch.device) -> Any:
    """What a CLIP text encoder says to N prompts, with all hidden states; [0] is pooled and projected.

    soft: an adapter that was trained without this encoder has no tokens for it, and none stand here.
    """
    rows = None if soft is None else soft.get(encoder.name)
    ids = prompt_ids(encoder.tokenizer, prompts, 0 if rows is None else len(rows))
    with spliced(encoder.module, rows):
        return encoder.module(ids.to(device), output_hidden_states=True)
