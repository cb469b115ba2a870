"""How far two float32 gradients of one model may lie apart by rounding alone, on any CPU.

A CPU's kernels differ in the order of their sums. With u = 2**-24, the unit roundoff of float32, a sum of n
terms in any order is off by about sqrt(n) u of its size (Higham & Mary 2019, "A new approach to probabilistic
rounding error analysis"). What becomes of that in a gradient depends on the model alone, so that it can be
worked out in float64: every layer's result, and the gradient that comes back through it, are moved by that
much at random, and the largest change of the whole gradient is taken.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fair_adapter.shared.direct import accumulate_gradients
from fair_adapter.trainer.benchmark_methods.methods import Workbench
from fair_adapter.trainer.training import loop

UNIT = 2.0**-24
DRAWS = 8


class _Moved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, size: float, generator: torch.Generator) -> Tensor:
        ctx.size, ctx.generator = size, generator
        return _moved(values, size, generator)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _moved(gradients[0], ctx.size, ctx.generator), None, None


def _moved(values: Tensor, size: float, generator: torch.Generator) -> Tensor:
    """Moved by up to `size` of the tensor's root mean square."""
    noise = 2 * torch.rand(values.shape, generator=generator, dtype=values.dtype) - 1
    return values + size * values.square().mean().sqrt() * noise


def terms(layer: nn.Module, result: Tensor) -> int:
    """Of one of the sums in a layer: its inputs, what is normalised together, 1 for elementwise layers."""
    if isinstance(layer, nn.GroupNorm):
        return result[0].numel() // layer.num_groups
    if isinstance(layer, nn.LayerNorm):
        return result.shape[-1]
    weight = getattr(layer, "weight", None)
    return weight[0].numel() if weight is not None and weight.ndim > 1 else 1


@contextlib.contextmanager
def rounded_sums(network: nn.Module, seed: int) -> Iterator[None]:
    """Every layer of the network with the error of float32 sums, forward and backward."""
    generator = torch.Generator().manual_seed(seed)

    def move(layer: nn.Module, inputs: Any, result: Tensor) -> Tensor:
        return _Moved.apply(result, terms(layer, result) ** 0.5 * UNIT, generator)

    layers = [layer for layer in network.modules() if not list(layer.children())]
    hooks = [layer.register_forward_hook(move) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def float32_distance(bench: Workbench, name: str) -> float:
    """Largest relative distance to expect between two float32 ways to the gradient of a decoupled method:
    each may be off by the error of its sums.

    The network's inputs and dL/dz_0 are taken from a run, since both ways get the same ones to the last bit.
    """
    seen: dict[str, Any] = {}

    def listen(model: Any, trajectory: Any, cotangent: Tensor, guidance: Any, **options: Any) -> None:
        seen.update(trajectory=trajectory, cotangent=cotangent, guidance=guidance, options=options)
        accumulate_gradients(model, trajectory, cotangent, guidance, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "accumulate_gradients", listen)
        bench.work(name)()
    training = bench.training
    owners = [*training.model.parts().values(), training.adaptation]
    for owner in owners:
        nn.Module.double(owner)
    try:
        exact = _gradient(bench, seen)
        found = []
        for seed in range(DRAWS):
            with rounded_sums(training.model.network, seed):
                found.append(_gradient(bench, seen))
    finally:
        for owner in owners:
            nn.Module.float(owner)  # exact: these numbers came from float32
    return 2 * max(float((g - exact).norm() / exact.norm()) for g in found)


def _gradient(bench: Workbench, seen: dict[str, Any]) -> Tensor:
    training = bench.training
    trajectory = seen["trajectory"]
    wide = type(trajectory)(trajectory.latents.double(), trajectory.sampler)
    guidance = training.guidance(training.entry(training.schedule[0]), training.targets[0])
    accumulate_gradients(
        training.adaptation.denoise, wide, seen["cotangent"].double(), guidance, **seen["options"]
    )
    parameters = training.optimizer.parameters
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    for p in parameters:
        p.grad = None
    return flat
