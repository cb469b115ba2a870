"""Stable Diffusion 1.x-like pipelines: one CLIP text encoder, a U-Net with cross-attention, a VAE."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
# (diffusers annotates these wrongly)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from ...shared.adapter_info import SD1_NAMES, FamilyNames
from ...shared.errors import FairAdapterError
from ...shared.lora import TEXT_PREFIX, unet_layers
from ...shared.sampling import Conditioning
from ...shared.soft_prompt import masked_prompt_ids, prompt_ids, spliced
from .base import DiffusionModel, Soft, TextEncoder
from .file_parts import UNET_PART, VAE_PART, clip_part


@dataclass
class StableDiffusion(DiffusionModel):
    """Stable Diffusion 1.x.

    paper_encoding: prompts padded to their own length and masked, the negative one to the same length, as the
    authors' release does it (a longer negative one, which the release never has, is not cut: it sets the
    length); the hosts pad to 77 and mask nothing.
    """

    architecture = "sd1"
    title = "Stable Diffusion 1.x"
    guidance_scale = 7.5
    pipelines = ("StableDiffusionPipeline", "StableDiffusionInpaintPipeline")
    marks = ("cond_stage_model.transformer.",)
    file_parts = (
        clip_part("text_encoder", CLIPTextModel, "cond_stage_model.transformer."),
        UNET_PART,
        VAE_PART,
    )
    load_options = MappingProxyType(  # the last is of a class that transformers has no more, in old folders
        {"safety_checker": None, "requires_safety_checker": False, "feature_extractor": None}
    )
    encoder_name = "clip_l"

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: Any
    paper_encoding: bool = False

    @classmethod
    def load(
        cls,
        path: Path | str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> StableDiffusion:
        """A diffusers folder, frozen and in evaluation mode.

        Raises:
            FairAdapterError: the folder is missing, of another family, or a part is missing or broken.
        """
        from .registry import load

        model = load(path, device, dtype)
        if not isinstance(model, cls):
            raise FairAdapterError(f"{path}: expected a {cls.title} pipeline, found {model.title}")
        return model

    @classmethod
    def from_pipeline(cls, pipeline: Any) -> StableDiffusion:
        return cls(pipeline.tokenizer, pipeline.text_encoder, pipeline.unet, pipeline.vae, pipeline.scheduler)

    @classmethod
    def fits(cls, pipeline: Any) -> bool:
        return not pipeline.unet.config["use_linear_projection"]  # SD2's has it

    @property
    def names(self) -> FamilyNames:
        return SD1_NAMES

    @property
    def network(self) -> UNet2DConditionModel:
        return self.unet

    @property
    def encoders(self) -> tuple[TextEncoder, ...]:
        length = int(self.tokenizer.model_max_length)
        return (
            TextEncoder(self.encoder_name, self.text_encoder, self.tokenizer, TEXT_PREFIX, length=length),
        )

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), **({"encoding": "paper"} if self.paper_encoding else {})}

    def network_layers(self) -> dict[str, nn.Linear]:
        return unet_layers(self.unet)

    def text_length(self, prompts: Sequence[str], tokens: int = 0) -> int | None:
        if not self.paper_encoding:
            return None
        longest = max(len(ids) for ids in self.tokenizer(list(prompts)).input_ids)
        return min(longest + tokens, int(self.tokenizer.model_max_length))

    def encode(
        self, prompts: Sequence[str], soft: Soft | None = None, length: int | None = None
    ) -> Conditioning:
        """{"text": (N, 77, D)}."""
        rows = None if soft is None else soft[self.encoder_name]
        count = 0 if rows is None else len(rows)
        with spliced(self.text_encoder, rows):
            if length is None:
                ids = prompt_ids(self.tokenizer, prompts, count)
                return {"text": self.text_encoder(ids.to(self.device)).last_hidden_state}
            ids, mask = masked_prompt_ids(self.tokenizer, prompts, length, count)
            output = self.text_encoder(ids.to(self.device), attention_mask=mask.to(self.device))
        return {"text": output.last_hidden_state}

    def denoise(self, inputs: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The U-Net's output (B, 4, h, w) for scaled latents of that shape."""
        dtype = self.unet.dtype
        inputs = self.network_inputs(inputs).to(dtype)
        return self.unet(inputs, timesteps, conditioning["text"].to(dtype)).sample

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        return self.unet.conv_in.weight, self.unet.conv_out.weight

    def widths(self) -> dict[str, int]:
        return {
            self.encoder_name: int(self.text_encoder.config.hidden_size),
            "context": int(self.unet.config["cross_attention_dim"]),
            "unet": int(self.unet.config["block_out_channels"][0]),
        }
