"""A model whose pictures each have an adapter of their own: at another target or strength, or none."""

from __future__ import annotations

import torch
from torch import Tensor

from ...shared.adapter import AdapterWeights
from ...shared.quota_steering import Steering, gathered
from ...shared.sampling import Conditioning, Guidance
from .adaptation import Adaptation
from .base import DiffusionModel

OWN = "adapter"  # in a conditioning, (N,): which adapter a picture goes through the network with


class SteeredModel:
    """A base model, and the adapters of steerings on it.

    A prompt is encoded once with each adapter. Where adapters change the network too, the pictures of one at
    a time go through it.
    negative_tokens: whether soft tokens stand before the negative prompt too.
    """

    def __init__(self, base: DiffusionModel, negative_tokens: bool = False) -> None:
        self.base, self.negative_tokens = base, negative_tokens
        self._places: dict[AdapterWeights, int] = {}
        self._adaptations: list[Adaptation] = []
        self._encoded: dict[tuple[int, str, float, str], Guidance] = {}

    def guidance(self, prompt: str, scale: float, steering: Steering, negative: str = "") -> Guidance:
        """Both branches of one prompt for as many pictures as the steering has."""
        own = [self._place(weights) for weights in steering.weights]
        parts = [self._encode(place, prompt, scale, negative) for place in own]
        branches = [gathered([part.conditional for part in parts], steering.places)]
        pairs = [part.unconditional for part in parts if part.unconditional is not None]
        branches += [gathered(pairs, steering.places)] if pairs else []
        if steering.on_network:
            rows = torch.tensor([own[place] for place in steering.places], device=self.base.device)
            branches = [{**branch, OWN: rows} for branch in branches]
        return Guidance(branches[0], branches[1] if pairs else None, scale)

    def denoise(self, inputs: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's output; see `ImageModel.denoise`."""
        rows = {name: value for name, value in conditioning.items() if name != OWN}
        if OWN not in conditioning:
            return self.base.denoise(inputs, timesteps, rows)
        output = torch.empty_like(inputs)
        for place in conditioning[OWN].unique().tolist():
            own = (conditioning[OWN] == place).nonzero().squeeze(1)
            part = {name: value[own] for name, value in rows.items()}
            with self._adaptations[place] as adaptation:
                output[own] = adaptation.denoise(inputs[own], timesteps[own], part).to(output.dtype)
        return output

    def _place(self, weights: AdapterWeights) -> int:
        if weights not in self._places:
            self._places[weights] = len(self._adaptations)
            self._adaptations.append(Adaptation.from_weights(self.base, weights, self.negative_tokens))
        return self._places[weights]

    @torch.no_grad()
    def _encode(self, place: int, prompt: str, scale: float, negative: str) -> Guidance:
        key = (place, prompt, scale, negative)
        if key not in self._encoded:
            with self._adaptations[place] as adaptation:
                self._encoded[key] = adaptation.guidance([prompt], scale, negative=negative)
        return self._encoded[key]
