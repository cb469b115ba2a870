"""Krea 2 and Krea 2 Turbo: flow matching, a single-stream transformer, twelve layers of Qwen3-VL-4B.

As in diffusers 0.42.1 (pipelines/krea2/pipeline_krea2.py, models/transformers/transformer_krea2.py):

- [template's beginning | prompt | padding | template's end]: 541 positions and 5 behind them, of which the
  first 34 are cut off, so that the transformer always has 512; padding is masked and counts for no position;
- the hidden states 2, 5, ... 35 of the encoder side by side (`text_encoder_select_layers`);
- the transformer takes latents in patches of 2 x 2, 64 channels each, and is told t / 1000; its norms are
  computed, and their weights kept, in float32;
- noise levels go evenly from 1 to 1/steps before the shift, which is mu = 1.15 for the distilled model and
  follows the picture's size for the base one;
- latents have a mean and a standard deviation for each channel; the VAE (Qwen-Image's) is one for videos, of
  which a picture is the first frame. Its decoder is called without the cache of earlier frames and without
  the clamp behind it, through which no gradient would go.

Turbo (8 steps, no guidance) says itself that it is distilled, the base (28 steps) that it is not.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
# (diffusers annotates these wrongly)

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, Krea2Transformer2DModel
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import (
    QwenImageAttentionBlock,
    QwenImageResample,
    QwenImageResidualBlock,
)
from torch import Tensor, nn
from transformers import Qwen3VLModel

from ...shared.adapter_info import FamilyNames
from ...shared.lora import transformer_layers
from ...shared.sampling import Conditioning
from ...shared.soft_prompt import masked_prompt_ids, spliced
from .base import DECODED, LATENT_FACTOR, Soft
from .distilled import declare_distilled
from .file_parts import FilePart, always
from .flow import own_scale
from .language import PATCH, POSITIONS, LanguageFamily
from .layout import same_key
from .recompute import recompute

BEGINNING = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
END = "<|im_end|>\n<|im_start|>assistant\n"
CUT, END_TOKENS = 34, 5  # tokens of the two
STEPS = 1000
DISTILLED_SHIFT = 1.15
ATTENTION = re.compile(r"^transformer_blocks\.\d+\.attn\.to_([qkv]|out\.0)$")
LAYERS = (QwenImageResidualBlock, QwenImageResample, QwenImageAttentionBlock)


@dataclass
class Krea2(LanguageFamily):
    """Krea 2; taps are the encoder's hidden states that the transformer reads."""

    architecture = "krea2"
    title = "Krea 2"
    encoder_name = "qwen3vl_4b"
    guidance_scale = own_scale(4.5)
    pipelines = ("Krea2Pipeline",)
    marks = ()  # published in folders alone
    file_parts = (
        FilePart("text_encoder", Qwen3VLModel, "text_encoder.", always(same_key)),
        FilePart("transformer", Krea2Transformer2DModel, "transformer.", always(same_key)),
        FilePart("vae", AutoencoderKLQwenImage, "vae.", always(same_key)),
    )

    tokenizer: Any
    text_encoder: Any
    transformer: Any
    vae: Any
    scheduler: Any
    taps: tuple[int, ...]

    @classmethod
    def from_pipeline(cls, pipeline: Any) -> Krea2:
        parts = (pipeline.tokenizer, pipeline.text_encoder, pipeline.transformer, pipeline.vae)
        model = cls(*parts, pipeline.scheduler, tuple(pipeline.text_encoder_select_layers))
        model.check_encoder(str(pipeline.name_or_path or model.title))
        model.tokenizer.padding_side = "right"
        declare_distilled(model, bool(pipeline.config.is_distilled))
        return model

    @property
    def names(self) -> FamilyNames:
        return FamilyNames("krea-2", "krea2", peft=True)

    @property
    def language_model(self) -> Any:
        return self.text_encoder.language_model

    @property
    def text_width(self) -> int:
        return int(self.transformer.config["text_hidden_dim"])

    @property
    def inner_width(self) -> int:
        return int(self.transformer.hidden_size)

    @property
    def opening(self) -> str:
        return BEGINNING

    @property
    def vae_channels(self) -> int:
        return int(self.vae.config["z_dim"])

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        side = self.picture_side()
        return int(self.transformer.config["in_channels"]) // PATCH**2, side, side

    def shift(self) -> float:
        return DISTILLED_SHIFT if self.distilled else super().shift()

    def network_layers(self) -> dict[str, nn.Linear]:
        return transformer_layers(self.transformer, ATTENTION)

    def encode(
        self, prompts: Sequence[str], soft: Soft | None = None, length: int | None = None
    ) -> Conditioning:
        """{"text": (N, 512, 12, 2560), "mask": (N, 512), true on what is no padding}.

        length: of no account, every prompt has 512 positions.
        """
        (encoder,) = self.encoders
        rows = None if soft is None else soft[encoder.name]
        count = 0 if rows is None else len(rows)
        total = CUT + POSITIONS - END_TOKENS
        begun = [BEGINNING + prompt for prompt in prompts]
        words, mask = masked_prompt_ids(self.tokenizer, begun, total, count, encoder.first)
        end = self.tokenizer([END] * len(begun), return_tensors="pt").input_ids
        ids = torch.cat([words, end], dim=1).to(self.device)
        mask = torch.cat([mask, torch.ones_like(end)], dim=1).to(self.device)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0).expand(3, -1, -1)  # of frame, height and width
        with spliced(self.text_encoder, rows, encoder.first):
            states = self.text_encoder(
                input_ids=ids,
                attention_mask=mask.bool(),
                position_ids=positions,
                output_hidden_states=True,
                use_cache=False,
            ).hidden_states
        text = torch.stack([states[tap][:, CUT:] for tap in self.taps], dim=2)
        return {"text": text, "mask": mask[:, CUT:].bool()}

    def denoise(self, inputs: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The velocity (B, 16, h, w)."""
        dtype = self.transformer.dtype
        height, width = (side // PATCH for side in inputs.shape[-2:])
        output = self.transformer(
            hidden_states=packed(inputs).to(dtype),
            encoder_hidden_states=conditioning["text"].to(dtype),
            timestep=(timesteps / STEPS).to(dtype),
            position_ids=position_ids(POSITIONS, height, width, inputs.device),
            encoder_attention_mask=conditioning["mask"],
            return_dict=False,
        )[0]
        return unpacked(output, height, width)

    def decode(self, latents: Tensor) -> Tensor:
        config = self.vae.config
        mean, spread = (
            torch.tensor(config[name], device=latents.device).reshape(1, -1, 1, 1, 1)
            for name in ("latents_mean", "latents_std")
        )
        scaled = (latents[:, :, None] * spread + mean).to(self.vae.dtype)
        side = LATENT_FACTOR * latents.shape[-1]
        pieces = [scaled] if torch.is_grad_enabled() else scaled.split(max(1, DECODED // side**2))
        frames = [self.vae.decoder(self.vae.post_quant_conv(piece))[:, :, 0].float() for piece in pieces]
        return torch.cat(frames) / 2 + 0.5

    def checkpoint_decoder(self, wanted: bool) -> None:
        decoder = self.vae.decoder
        recompute((layer for layer in decoder.modules() if isinstance(layer, LAYERS)), wanted)

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        return self.transformer.img_in.weight, self.transformer.final_layer.linear.weight


def packed(latents: Tensor) -> Tensor:
    """(B, C, h, w) in patches of 2 x 2: (B, h / 2 * w / 2, 4 C), channels before the places in a patch."""
    return nn.functional.pixel_unshuffle(latents, PATCH).flatten(2).transpose(1, 2)


def unpacked(patches: Tensor, height: int, width: int) -> Tensor:
    """The reverse, for `height` x `width` patches."""
    return nn.functional.pixel_shuffle(patches.transpose(1, 2).unflatten(2, (height, width)), PATCH)


def position_ids(text: int, height: int, width: int, device: torch.device) -> Tensor:
    """(text + height * width, 3): zeros for the text, then (0, row, column) of each patch."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    picture = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3)
    return torch.cat([torch.zeros(text, 3), picture]).to(device)
