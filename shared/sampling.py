"""Rollout: a batch of images from noise without gradient, keeping what the adjusted gradient needs.

The network is any callable `model(inputs, timesteps, conditioning) -> output`; nothing here knows
Stable Diffusion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from .errors import FairAdapterError
from .schedulers import LinearSampler
from .window import Window

Conditioning = Mapping[str, Tensor]


class Denoiser(Protocol):
    """A diffusion network at its own precision; it casts its inputs as it needs them.

    inputs: (B, ...) scaled latents.  timesteps: (B,).  conditioning: tensors of leading dimension B.
    Returns (B, ...): noise, v or velocity. Must be deterministic (evaluation mode, no dropout).
    """

    def __call__(self, inputs: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor: ...


@dataclass(frozen=True)
class Guidance:
    """What the images are conditioned on, and how strongly (classifier-free guidance).

    conditional, unconditional: name -> tensor of leading dimension N (one per image) or 1 (shared by all);
        same names and trailing shapes. They may carry a graph to trainable parameters.
    scale: o = o_unconditional + scale (o_conditional - o_unconditional). 1 needs no unconditional branch.
    """

    conditional: Conditioning
    unconditional: Conditioning | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.unconditional is None:
            if self.scale != 1.0:
                raise FairAdapterError(f"guidance scale {self.scale}: needs an unconditional prompt")
            return
        pair = (self.conditional, self.unconditional)
        shapes = [{name: tuple(value.shape[1:]) for name, value in c.items()} for c in pair]
        if shapes[0] != shapes[1]:
            raise FairAdapterError(
                f"guidance: conditional {shapes[0]} and unconditional {shapes[1]} differ in shape"
            )

    def branches(self) -> list[tuple[Conditioning, float]]:
        """(conditioning, factor) so that the guided output is the sum of factor * model(conditioning)."""
        if self.unconditional is None or self.scale == 1.0:
            return [(self.conditional, 1.0)]
        return [(self.conditional, self.scale), (self.unconditional, 1.0 - self.scale)]


@dataclass(frozen=True)
class Outside:
    """What the network evaluations outside of a window are drawn with: the model without the adapter."""

    window: Window
    model: Denoiser
    guidance: Guidance


@dataclass(frozen=True)
class Trajectory:
    """A rollout of N images.  latents: (T + 1, N, ...) from z_T to z_0.  sampler: the steps between them."""

    latents: Tensor
    sampler: LinearSampler

    @property
    def final(self) -> Tensor:
        """z_0, (N, ...)."""
        return self.latents[-1]


def rollout(
    model: Denoiser,
    sampler: LinearSampler,
    noise: Tensor,
    guidance: Guidance,
    batch: int | None = None,
    callback: Callable[[int, Tensor, Tensor], Guidance | None] | None = None,
    outside: Outside | None = None,
) -> Trajectory:
    """Sample without gradient.

    noise: (N, ...) standard normal; its dtype and device are those of the latents.
    batch: images per network call (guidance doubles it); None takes all at once.
    callback: called with (k, z_k, predicted z_0) after each of the T network evaluations, k = 1 .. T. A
        guidance that it returns is that of the evaluations to come; pictures whose rows it leaves as they are
        stay the same to the last bit.
    outside: takes the place of model and guidance in the evaluations outside of its window; None is nowhere.
    """
    steps, images = sampler.steps, len(noise)
    here = with_timesteps_on(sampler, noise.device)
    acts = torch.ones(steps).bool() if outside is None else outside.window.acts(sampler.places)
    with torch.no_grad():
        latents = noise.new_empty((steps + 1, *noise.shape))
        outputs = noise.new_empty((steps, *noise.shape))
        latents[0] = noise * sampler.initial_scale
        for k in range(steps):
            by, towards = (model, guidance)
            if outside is not None and not acts[k]:
                by, towards = outside.model, outside.guidance
            for chunk in torch.arange(images, device=noise.device).split(batch or max(images, 1)):
                inputs, timesteps = network_inputs(here, k, latents[k][chunk])
                outputs[k, chunk] = guided_output(by, inputs, timesteps, towards, chunk, images)
            latents[k + 1] = next_latents(sampler, k + 1, latents[0], outputs[: k + 1])
            if callback is not None:
                changed = callback(k + 1, latents[k + 1], sampler.predicted_image(k, latents[k], outputs[k]))
                guidance = guidance if changed is None else changed
    return Trajectory(latents, sampler)


def with_timesteps_on(sampler: LinearSampler, device: torch.device) -> LinearSampler:
    """The same sampler, so that no step of a loop has to wait for its timestep to be copied."""
    return replace(sampler, timesteps=sampler.timesteps.to(device))


def network_inputs(sampler: LinearSampler, k: int, latents: Tensor) -> tuple[Tensor, Tensor]:
    """What the network gets for latents z_k (B, ...): scaled latents (B, ...) and timesteps (B,)."""
    timesteps = sampler.timesteps[k].to(latents.device).expand(len(latents))
    return latents * float(sampler.input_scale[k]), timesteps


def next_latents(sampler: LinearSampler, k: int, start: Tensor, outputs: Tensor | Sequence[Tensor]) -> Tensor:
    """z_k from z_T = `start` and the guided outputs o_0 .. o_{k-1}; differentiable where they are."""
    z = start * float(sampler.decay[k])
    for gain, output in zip(sampler.gain[k].tolist(), outputs):
        if gain != 0.0:
            z = z + gain * output
    return z


def guided_output(
    model: Denoiser,
    inputs: Tensor,
    timesteps: Tensor,
    guidance: Guidance,
    index: Tensor,
    images: int,
    conditional_only: bool = False,
) -> Tensor:
    """Classifier-free guidance in one network call; in the dtype of `inputs`.

    inputs, timesteps: (B, ...), (B,) of the images `index` (B,) out of `images`.
    conditional_only: let no gradient through the unconditional branch.
    """
    branches = guidance.branches()
    parts = [select(conditioning, index, images) for conditioning, _ in branches]
    rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    repeat = len(parts)
    repeated = inputs.repeat(repeat, *[1] * (inputs.ndim - 1))
    pieces = model(repeated, timesteps.repeat(repeat), rows).to(inputs.dtype).chunk(repeat)
    guided = pieces[0] * branches[0][1]
    for piece, (_, factor) in zip(pieces[1:], branches[1:]):
        guided = guided + factor * (piece.detach() if conditional_only else piece)
    return guided


def select(conditioning: Conditioning, index: Tensor, images: int) -> dict[str, Tensor]:
    """Rows of a conditioning for the images `index` (B,): its own row for each, or the shared one."""
    rows: dict[str, Tensor] = {}
    for name, value in conditioning.items():
        if len(value) not in (1, images):
            raise FairAdapterError(
                f"conditioning {name}: expected leading dimension 1 or {images}, found {len(value)}"
            )
        shared = len(value) == 1
        rows[name] = value.expand(len(index), *value.shape[1:]) if shared else value[index.to(value.device)]
    return rows
