"""Adjusted direct finetuning (adjusted DFT), decoupled. Shen et al., ICLR 2024.

Direct finetuning follows dL/dz_0 back through the sampler. With g = dL/dz_0 and o_t the guided network
output of step t, the naive gradient is sum_t (do_t/dtheta)^T A_t B_t g (Eq. 9): B_t couples the steps
through the network's own Jacobian, A_t is the direct linear coefficient; both blow up. The adjusted gradient
drops B_t and sets A_t = 1:

    sum_t (do_t/dtheta)^T w_t g,        o_t = network(z_t) with z_t held fixed.

Nothing is left of the chain: with z_t kept from a rollout without gradient and g from one decode, every
(image, step) pair is a vector-Jacobian product of its own, in any order and micro-batch, and the memory is
that of one network call however many steps there are. `accumulate_gradients` does this; for the parameters
behind the conditioning (text encoder, soft prompt) it sums d/d(conditioning) and goes back through them once
at the end.

w_t (`step_weights`) for the modes:
    exact     the noise prediction gets the cotangent -g at every step (A_t = 1; the sign is that of the
              sampler: less noise is more image). v-prediction: eps = alpha_t v + sigma_t z, so v gets
              -alpha_t g, and a network gets the same gradient in either form. Flow matching: the velocity
              itself gets -g; its true direct coefficient is the step sigma_{k+1} - sigma_k, which neither
              explodes nor vanishes, so this is the `direct` gradient but for the lengths of the steps.
    official  what the authors' release computes: the sampler's true direct coefficient times the inverse DDPM
              one. For DPM-Solver++ 2M as it was then (final_sigmas_type="sigma_min" now) that has the wrong
              sign at two late steps and overshoots fivefold at the last.
    direct    the true direct coefficient: B_t dropped, A_t kept (the ablation of Figure 1).

`one_graph_gradient` is the chain as one graph, naive or adjusted, for comparison; its memory grows with the
steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .errors import FairAdapterError
from .sampling import (
    Conditioning,
    Denoiser,
    Guidance,
    Trajectory,
    guided_output,
    network_inputs,
    next_latents,
    select,
    with_timesteps_on,
)
from .schedulers import LinearSampler

Mode = Literal["exact", "official", "direct"]
Branches = Literal["both", "conditional"]


def step_weights(sampler: LinearSampler, mode: Mode = "exact") -> Tensor:
    """w_t, (T,) float64: the cotangent of the guided output o_t is w_t g. See the module for the modes."""
    if mode == "exact":
        return -sampler.noise_per_output
    if mode == "direct":
        return sampler.direct.clone()
    if mode == "official":
        if sampler.ladder is None:
            raise FairAdapterError(
                f"sampling.mode=official needs an epsilon model, found {sampler.name} with "
                f"{sampler.prediction}; set sampling.mode=exact"
            )
        return sampler.direct * sampler.ladder
    raise FairAdapterError(f"adjusted DFT: mode {mode!r}, expected one of {', '.join(get_args(Mode))}")


def draw_steps(steps: int, count: int, images: int, generator: torch.Generator | None = None) -> Tensor:
    """A random subset of `count` out of `steps` steps for each image, (images, count) int64, ascending.

    `accumulate_gradients` weighs it by steps/count: its expectation is the gradient of all steps.
    """
    if not 1 <= count <= steps:
        raise FairAdapterError(f"gradient steps: expected 1 to {steps}, found {count}")
    return torch.rand(images, steps, generator=generator).argsort(dim=1)[:, :count].sort(dim=1).values


def accumulate_gradients(
    model: Denoiser,
    trajectory: Trajectory,
    cotangent: Tensor,
    guidance: Guidance,
    *,
    mode: Mode = "exact",
    branches: Branches = "both",
    steps: Tensor | None = None,
    batch: int = 8,
) -> None:
    """Add the adjusted gradient to `.grad` of everything trainable behind the network and the conditioning.

    trajectory: `rollout` of N images by the same weights.
    cotangent: g = dL/dz_0, (N, ...), L already divided by the number of images, and scaled up where the
        network runs in float16; images with g = 0 cost nothing.
    guidance: as in the rollout; the graph behind its tensors is used up.
    branches: "both" follows both guidance branches, as released; "conditional" the conditional one alone:
        half the work, and exact where nothing trainable reaches the unconditional branch (a branch that
        nothing trainable reaches is left out in either case).
    steps: (k,) the same steps for all images, or (N, k), from `draw_steps`; None takes all T.
    batch: (image, step) pairs per network call. Branches go one by one: together they would take twice the
        memory, and with twice the pairs a branch is as large a call.
    Raises FairAdapterError if nothing trainable is reached.
    """
    sampler, images = trajectory.sampler, trajectory.latents.shape[1]
    if cotangent.shape != trajectory.final.shape:
        raise FairAdapterError(
            f"cotangent: expected shape {tuple(trajectory.final.shape)}, found {tuple(cotangent.shape)}"
        )
    if branches not in get_args(Branches):
        raise FairAdapterError(
            f"branches: found {branches!r}, expected one of {', '.join(get_args(Branches))}"
        )
    pairs, factor = _pairs(sampler.steps, images, steps, cotangent)
    weights = step_weights(sampler, mode) * factor
    if not len(pairs):
        return
    chunks = pairs.to(cotangent.device).split(batch)
    followed = guidance.branches() if branches == "both" else guidance.branches()[:1]
    leaves: list[tuple[Tensor, Tensor]] = []  # conditioning with its graph, and the leaf that stands for it
    reached = []
    for conditioning, share in followed:
        replaced, pending = _as_leaves(conditioning)
        leaves += pending
        reached.append(_follow_branch(model, trajectory, cotangent, replaced, share * weights, chunks))
    if not any(reached):
        raise FairAdapterError("adjusted DFT: nothing trainable behind the network or its conditioning")
    _back_through_conditioning(leaves)


def _pairs(total: int, images: int, steps: Tensor | None, cotangent: Tensor) -> tuple[Tensor, float]:
    """(P, 2) pairs of step and image that carry a gradient, and the factor T/k of a subset."""
    chosen = torch.arange(total) if steps is None else steps.cpu()
    if chosen.ndim not in (1, 2) or (chosen.ndim == 2 and len(chosen) != images) or chosen.shape[-1] == 0:
        raise FairAdapterError(f"steps: expected shape (k,) or ({images}, k), found {tuple(chosen.shape)}")
    if chosen.min() < 0 or chosen.max() >= total:
        raise FairAdapterError(f"steps: expected indices from 0 to {total - 1}, found {chosen.tolist()}")
    grid = chosen.expand(images, chosen.shape[-1])
    image = torch.arange(images)[:, None].expand_as(grid)
    active = (cotangent.detach().flatten(1) != 0).any(dim=1).cpu()[image.T.reshape(-1)]
    return torch.stack([grid.T.reshape(-1), image.T.reshape(-1)], dim=1)[active], total / chosen.shape[-1]


def _as_leaves(conditioning: Conditioning) -> tuple[dict[str, Tensor], list[tuple[Tensor, Tensor]]]:
    """In float32 or more where gradients are added up: in half precision hundreds of them lose percents."""
    leaves: dict[str, Tensor] = {}
    pending = []
    for name, value in conditioning.items():
        leaf = value.detach()
        if value.requires_grad:
            leaf = leaf.to(torch.promote_types(leaf.dtype, torch.float32)).requires_grad_()
            pending.append((value, leaf))
        leaves[name] = leaf
    return leaves, pending


def _follow_branch(
    model: Denoiser,
    trajectory: Trajectory,
    cotangent: Tensor,
    conditioning: Conditioning,
    weights: Tensor,
    chunks: Sequence[Tensor],
) -> bool:
    """Vector-Jacobian products of a guidance branch; False if nothing trainable is behind it."""
    latents, sampler = trajectory.latents, trajectory.sampler
    device, dtype, images = latents.device, latents.dtype, latents.shape[1]
    timesteps, scale = sampler.timesteps.to(device), sampler.input_scale.to(dtype).to(device)
    weights = weights.to(dtype).to(device)
    trailing = [1] * (latents.ndim - 2)
    for chunk in chunks:
        step, image = chunk.unbind(dim=1)
        inputs = latents[step, image] * scale[step].reshape(-1, *trailing)
        vector = weights[step].reshape(-1, *trailing) * cotangent.detach()[image]
        with torch.enable_grad():
            output = model(inputs, timesteps[step], select(conditioning, image, images))
        if not output.requires_grad:
            return False
        torch.autograd.backward(output, vector.to(output.dtype))
    return True


def _back_through_conditioning(leaves: list[tuple[Tensor, Tensor]]) -> None:
    """One backward pass through the text encoder or soft prompt."""
    used = [(value, leaf.grad.to(value.dtype)) for value, leaf in leaves if leaf.grad is not None]
    if used:
        torch.autograd.backward([value for value, _ in used], [grad for _, grad in used])


@dataclass(frozen=True)
class OneGraphResult:
    """final: z_0 (N, ...).  loss: scalar.  cotangents: (T, N, ...), dL/do_t as it reached the network."""

    final: Tensor
    loss: Tensor
    cotangents: Tensor


def one_graph_gradient(
    model: Denoiser,
    sampler: LinearSampler,
    noise: Tensor,
    guidance: Guidance,
    objective: Callable[[Tensor], Tensor],
    mode: Literal["naive"] | Mode = "exact",
    branches: Branches = "both",
    last: int | None = None,
) -> OneGraphResult:
    """The same gradient by one graph through all steps: the reference, with memory that grows with T.

    "naive" is direct finetuning as it stands (A_t B_t); the other modes detach the network's input and scale
    the gradient that arrives at each output from the sampler's A_t to w_t, as the authors' release does it.
    objective: z_0 (N, ...) -> scalar loss.  Gradients are added to `.grad`.
    branches: as in `accumulate_gradients`.
    last: the steps that keep their graph, from the image on (truncated back-propagation: with "naive" this is
        DRaFT-K and, for a random number, AlignProp); None is all of them.
    """
    if last is not None and not 1 <= last <= sampler.steps:
        raise FairAdapterError(f"truncation: expected 1 to {sampler.steps} steps, found {last}")
    adjust = None if mode == "naive" else step_weights(sampler, mode) / sampler.direct
    start, here = noise * sampler.initial_scale, with_timesteps_on(sampler, noise.device)
    index = torch.arange(len(noise), device=noise.device)
    outputs: list[Tensor] = []
    arrived: dict[int, Tensor] = {}
    z = start
    for k in range(sampler.steps):
        followed = last is None or k >= sampler.steps - last
        inputs, timesteps = network_inputs(here, k, z if adjust is None else z.detach())
        with torch.set_grad_enabled(followed):
            output = guided_output(
                model, inputs, timesteps, guidance, index, len(noise), branches == "conditional"
            )
        if not followed:
            outputs.append(output)
            z = next_latents(sampler, k + 1, start, outputs)
            continue
        if not output.requires_grad:
            raise FairAdapterError(
                "direct finetuning: nothing trainable behind the network or its conditioning"
            )
        output.register_hook(_scaled(k, 1.0 if adjust is None else float(adjust[k]), arrived))
        outputs.append(output)
        z = next_latents(sampler, k + 1, start, outputs)
    loss = objective(z)
    loss.backward()
    cotangents = torch.stack([arrived.get(k, torch.zeros_like(noise)) for k in range(sampler.steps)])
    return OneGraphResult(z.detach(), loss.detach(), cotangents)


def _scaled(k: int, factor: float, arrived: dict[int, Tensor]) -> Callable[[Tensor], Tensor]:
    def hook(gradient: Tensor) -> Tensor:
        arrived[k] = (gradient * factor).detach()
        return arrived[k]

    return hook
