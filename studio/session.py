"""The portrait model for the studio: pictures with and without an adapter, from the same noise, step by step.

Uses the trainer's loader (diffusers), so it runs in the environment of `install.py`, not in a host.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..shared.adapter import AdapterWeights
from ..shared.adapter_info import BaseModel
from ..shared.errors import FairAdapterError
from ..shared.sampling import guided_output, network_inputs, next_latents
from ..shared.schedulers import LinearSampler
from ..shared.seeds import starting_noise

PORTRAIT = Path(__file__).resolve().parents[1] / "shared" / "portrait"
Step = Callable[[int, int, Tensor], object]  # step, of all, predicted clean latents


class PortraitSession:
    """The model is loaded at the first use; one generation at a time."""

    def __init__(self, path: Path = PORTRAIT, device: str = "cpu") -> None:
        self.path, self.device = path, device
        self._lock = threading.RLock()
        self._model: Any = None

    @property
    def model(self) -> Any:
        """Raises FairAdapterError for a folder that is no Stable Diffusion pipeline."""
        with self._lock:
            if self._model is None:
                from ..trainer.families.stable_diffusion import StableDiffusion

                self._model = StableDiffusion.load(self.path, self.device)
            return self._model

    def base_model(self) -> BaseModel:
        return self.model.describe(self.path.name)

    def defaults(self) -> tuple[int, float]:
        """Steps and guidance scale that the model was made for; 20 and 2 where it doesn't say."""
        try:
            stated = json.loads((self.path / "portrait.json").read_text(encoding="utf-8"))
            return int(stated["steps"]), float(stated["guidance_scale"])
        except (OSError, ValueError, KeyError, TypeError):
            return 20, 2.0

    def decode(self, latents: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, 3, H, W) in [0, 1]."""
        return self.model.decode(latents.to(self.model.device)).clamp(0, 1)

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        steps: int,
        scale: float,
        weights: AdapterWeights | None = None,
        negative: str = "",
        on_step: Step | None = None,
    ) -> Tensor:
        """Pictures (N, 3, H, W) in [0, 1] of one prompt and one seed each.

        weights: an adapter at a target, None for the base model.  on_step: called after every step.
        Raises FairAdapterError for an adapter that does not fit.
        """
        with self._lock:
            model = self.model
            sampler = model.sampler(steps)
            noise = starting_noise(seeds, model.latent_shape).to(model.device)
            with self._adapted(weights) as adaptation:
                source = model if adaptation is None else adaptation
                options = {"negative": negative}
                guidance = source.guidance(list(prompts), scale, **options)
                latents = _rollout(source.denoise, sampler, noise, guidance, model.scheduler, on_step)
            return self.decode(latents)

    def _adapted(self, weights: AdapterWeights | None) -> Any:
        if weights is None or not (weights.soft or weights.lora):
            return nullcontext(None)
        from ..trainer.families.adaptation import Adaptation

        return Adaptation.from_weights(self.model, weights)


def _rollout(
    denoise: Any, sampler: LinearSampler, noise: Tensor, guidance: Any, scheduler: Any, on_step: Step | None
) -> Tensor:
    """The core's rollout, which also shows the prediction of every step."""
    start = latents = noise * sampler.initial_scale
    outputs: list[Tensor] = []
    everyone = torch.arange(len(noise), device=noise.device)
    for k in range(sampler.steps):
        inputs, timesteps = network_inputs(sampler, k, latents)
        outputs.append(guided_output(denoise, inputs, timesteps, guidance, everyone, len(noise)))
        if on_step is not None:
            x0 = predicted_clean(sampler, scheduler, k, latents, outputs[-1])
            on_step(k + 1, sampler.steps, x0)
        latents = next_latents(sampler, k + 1, start, outputs)
    return latents


def predicted_clean(
    sampler: LinearSampler, scheduler: Any, k: int, latents: Tensor, output: Tensor
) -> Tensor:
    """x_0 = (z - sqrt(1 - abar) eps) / sqrt(abar), for variance-preserving latents and predicted noise."""
    if sampler.prediction != "epsilon":
        raise FairAdapterError(
            f"studio: expected a model that predicts noise, found one that predicts {sampler.prediction}"
        )
    kept = float(scheduler.alphas_cumprod[int(sampler.timesteps[k])])
    scaled = latents * float(sampler.input_scale[k])  # what the network saw is on the scale of abar
    return (scaled - (1 - kept) ** 0.5 * output) / kept**0.5
