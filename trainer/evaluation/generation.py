"""Loading a model and drawing its pictures, with or without an adapter, from prompts and noise seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from transformers.utils import logging as transformers_logging

from ...shared.sampling import rollout
from ...shared.seeds import starting_noise
from ..families.base import DiffusionModel, ImageModel
from ..families.registry import load


def load_model(
    source: Path | str, device: torch.device | str, dtype: torch.dtype, **options: str | None
) -> DiffusionModel:
    """`families.registry.load` without the libraries' progress bars. Takes its options and raises as it."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    return load(source, device, dtype, **options)


@torch.no_grad()
def generate(
    model: ImageModel,
    prompts: Sequence[str],
    seeds: Sequence[int],
    scale: float,
    steps: int,
    negative: str = "",
    batch: int = 32,
) -> Tensor:
    """Pictures (N, 3, H, W) in [0, 1], one for each prompt and seed; `batch` at a time.

    Prompts that are all the same are encoded once.
    """
    sampler = model.sampler(steps)
    pictures = []
    for first in range(0, len(prompts), batch):
        texts = list(prompts[first : first + batch])
        noise = starting_noise(seeds[first : first + batch], model.latent_shape).to(model.device)
        guidance = model.guidance(texts[:1] if len(set(texts)) == 1 else texts, scale, negative)
        trajectory = rollout(model.denoise, sampler, noise, guidance)
        pictures.append(model.decode(trajectory.final).clamp(0, 1))
    return torch.cat(pictures)
