"""Stable Diffusion 2.x, epsilon (512 px) and v-prediction (768 px): OpenCLIP ViT-H as text encoder.

Which of the two a model is stands in its scheduler, and `shared/schedulers.py` reads it there.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
# (diffusers annotates these wrongly)

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import CLIPTextModel

from ...shared.adapter_info import FamilyNames
from .file_parts import UNET_PART, VAE_PART, FilePart, always
from .layout import open_clip_key
from .stable_diffusion import StableDiffusion


@dataclass
class StableDiffusion2(StableDiffusion):
    """Stable Diffusion 2.x."""

    architecture = "sd2"
    title = "Stable Diffusion 2.x"
    marks = ("cond_stage_model.model.",)
    file_parts = (
        FilePart("text_encoder", CLIPTextModel, "cond_stage_model.model.", always(open_clip_key)),
        UNET_PART,
        VAE_PART,
    )
    file_needs_config = "whether it predicts the noise (512 px) or v (768 px)"
    encoder_name = "clip_h"

    @classmethod
    def fits(cls, pipeline: Any) -> bool:
        return bool(pipeline.unet.config["use_linear_projection"])

    @property
    def names(self) -> FamilyNames:
        if self.scheduler.config["prediction_type"] == "v_prediction":
            return FamilyNames("stable-diffusion-v2-768-v", "sd_v2_v", v2=True)
        return FamilyNames("stable-diffusion-v2-512", "sd_v2", v2=True)
