"""A VAE for live bars: whether it is small enough to run beside a sampler, and a copy that no host moves.

Hosts move the weights of a VAE between devices whenever they need room, and to decode through them moves the
model that is being sampled out of its way. A copy of our own, made before sampling begins, moves nothing.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

CHEAP = 20_000_000  # weights of a VAE that may run beside any sampler; Stable Diffusion's has 84 million
PIXELS = 1 << 20  # decoded at a time


def is_cheap(vae: nn.Module) -> bool:
    """Whether a VAE may decode in full beside any sampler, on any device."""
    return sum(p.numel() for p in vae.parameters()) <= CHEAP


def own_copy(vae: Any, device: torch.device, dtype: torch.dtype) -> tuple[Any, torch.dtype]:
    """A copy on `device`, and its dtype: `dtype` on a GPU, float32 elsewhere, where halves are slow."""
    dtype = dtype if device.type == "cuda" else torch.float32
    return copy.deepcopy(vae).to(device, dtype), dtype


def parts(latents: Tensor) -> tuple[Tensor, ...]:
    """(N, C, h, w) in parts of a few pictures each: a batch decoded at once would need as much memory as the
    sampler has left."""
    return latents.split(max(1, PIXELS // (64 * latents.shape[2] * latents.shape[3])))
