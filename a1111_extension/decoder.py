"""The VAE of the loaded model, for live bars: where A1111 and Forge keep it, and decoding by a copy of it.

A1111 (--medvram, --lowvram, a refiner) and Forge (always) move what is on the GPU when their VAE decodes.
Live bars decode on a thread of their own while the model is sampled: they never go through the host's VAE.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..shared.errors import FairAdapterError
from ..shared.vae_copy import own_copy, parts

Decoder = Callable[[Tensor], Tensor]
REPLACED = ("encode", "decode")  # by A1111 on the VAE itself with --medvram: those move the host's weights


def find_vae(model: Any) -> Any:
    """The network of a loaded model that has `decode`: A1111's, or Forge's inside its patcher; or None."""
    objects = getattr(model, "forge_objects", None)
    holder = model if objects is None else getattr(objects, "vae", None)
    network = getattr(holder, "first_stage_model", None)
    return network if callable(getattr(network, "decode", None)) else None


def full_decoder(model: Any, device: torch.device) -> Decoder:
    """Latents of the sampler (N, C, h, w) -> (N, 3, H, W) in [0, 1] on the CPU, by a copy of the VAE.

    To be called before sampling begins, on the sampler's thread.
    Raises FairAdapterError where the host shows no VAE or doesn't say how its latents are scaled.
    """
    vae = find_vae(model)
    if vae is None:
        raise FairAdapterError(
            "live bars: the decoder 'Full' needs the model's VAE, and the host does not show it; choose "
            "'automatic' in Settings > Fair Adapter"
        )
    network, dtype = own_copy(vae, device, next(vae.parameters()).dtype)
    for name in REPLACED:
        vars(network).pop(name, None)
    unscaled = _unscaled(model, network)

    def decode(latents: Tensor) -> Tensor:
        images = [network.decode(unscaled(z.to(device).float()).to(dtype)) for z in parts(latents)]
        return torch.cat([(image.float() / 2 + 0.5).clamp(0, 1).cpu() for image in images])

    return decode


def _unscaled(model: Any, network: Any) -> Decoder:
    """From the sampler's latents to the VAE's: known to Forge's VAE, A1111's SD3, or a factor."""
    for owner in (network, getattr(model, "latent_format", None)):
        process: Decoder | None = getattr(owner, "process_out", None)
        if process is not None:
            return process
    factor = getattr(model, "scale_factor", None)
    if factor is None:
        raise FairAdapterError(
            f"live bars: the host does not say how latents of {type(model).__name__} are scaled; choose the "
            "decoder 'Approx NN' or 'TAESD' in Settings > Fair Adapter"
        )
    scale = float(factor)  # A1111's may be a tensor on the GPU
    return lambda latents: latents / scale
