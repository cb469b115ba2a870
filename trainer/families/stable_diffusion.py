"""Stable Diffusion 1.x-like pipelines: one CLIP text encoder, a U-Net with cross-attention, a VAE.

The portrait model in ``shared/portrait`` is one of them. Prompts are encoded as the hosts encode them:
77 tokens, no attention mask.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
# (diffusers annotates these wrongly)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.utils import logging
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from ...shared.errors import FairAdapterError
from ...shared.sampling import Conditioning, Guidance, rollout
from ...shared.schedulers import linear_sampler
from ...shared.seeds import starting_noise

PORTRAIT = Path(__file__).resolve().parents[2] / "shared" / "portrait"


@dataclass
class StableDiffusion:
    """The parts of a pipeline and how the core calls them. Latents are float32."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: Any

    @classmethod
    def load(
        cls,
        path: Path | str = PORTRAIT,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> StableDiffusion:
        """A diffusers folder, frozen and in evaluation mode.

        Raises:
            FairAdapterError: the folder is missing, or a part of it is missing or broken.
        """
        path = Path(path)
        if not (path / "model_index.json").is_file():
            raise FairAdapterError(
                f"{path}: expected a diffusers folder with model_index.json, found none; for the "
                "embedded model restore shared/portrait with git"
            )
        level = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            pipeline = StableDiffusionPipeline.from_pretrained(
                path, dtype=dtype, local_files_only=True, safety_checker=None
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise FairAdapterError(
                f"{path}: expected a Stable Diffusion 1.x pipeline, found {_line(error)}; restore "
                "or download it again"
            ) from error
        finally:
            logging.set_verbosity(level)
        model = cls(
            pipeline.tokenizer, pipeline.text_encoder, pipeline.unet, pipeline.vae, pipeline.scheduler
        )
        return model.to(device)

    def to(self, device: torch.device | str) -> StableDiffusion:
        """Moves the networks; on a CPU plain attention replaces the flash kernel, slow in its backward."""
        for part in (self.text_encoder, self.unet, self.vae):
            part.to(device).requires_grad_(False).eval()
        if torch.device(device).type == "cpu":
            self.unet.set_attn_processor(AttnProcessor())
        return self

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        side = self.unet.config["sample_size"]
        return self.unet.config["in_channels"], side, side

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """{"text": (N, 77, D)}."""
        ids = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return {"text": self.text_encoder(ids.to(self.device)).last_hidden_state}

    def denoise(self, inputs: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The U-Net's output (B, 4, h, w) for scaled latents of that shape."""
        dtype = self.unet.dtype
        return self.unet(inputs.to(dtype), timesteps, conditioning["text"].to(dtype)).sample

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (N, 3, H, W), RGB; mostly within [0, 1], not clamped."""
        scaled = latents / self.vae.config["scaling_factor"]
        return self.vae.decode(scaled.to(self.vae.dtype)).sample.float() / 2 + 0.5

    def guidance(self, prompts: Sequence[str], scale: float, negative: str = "") -> Guidance:
        return Guidance(self.encode(prompts), self.encode([negative]), scale)

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], scale: float, steps: int = 20, batch: int = 32
    ) -> Tensor:
        """Pictures (N, 3, H, W) in [0, 1] of one prompt and one noise seed each."""
        sampler = linear_sampler(self.scheduler, steps)
        pictures = []
        for i in range(0, len(prompts), batch):
            noise = starting_noise(seeds[i : i + batch], self.latent_shape).to(self.device)
            trajectory = rollout(self.denoise, sampler, noise, self.guidance(prompts[i : i + batch], scale))
            pictures.append(self.decode(trajectory.final).clamp(0, 1))
        return torch.cat(pictures)


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
