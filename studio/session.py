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
from ..shared.sampling import rollout
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

                def tell(k: int, _: Tensor, predicted: Tensor) -> None:
                    if on_step is not None:
                        on_step(k, sampler.steps, predicted)

                trajectory = rollout(source.denoise, sampler, noise, guidance, callback=tell)
            return self.decode(trajectory.final)

    def _adapted(self, weights: AdapterWeights | None) -> Any:
        if weights is None or not (weights.soft or weights.lora):
            return nullcontext(None)
        from ..trainer.families.adaptation import Adaptation

        return Adaptation.from_weights(self.model, weights)
