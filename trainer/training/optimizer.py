"""One step of AdamW for all processes: a single all-reduce, one finite check, clipping, moving average."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..configuration.config import OptimizerConfig
from ..families.adaptation import Adaptation

FIRST_SCALE, LARGEST_SCALE = 2.0**12, 2.0**16  # of the loss where the network runs in float16
GROW_EVERY = 500  # finite steps after which the scale doubles


@dataclass(frozen=True)
class StepResult:
    """sums: what was added up over the processes.  norm: of the gradient before clipping.
    finite: whether the step was taken."""

    sums: Tensor
    norm: float
    finite: bool


class Optimizer:
    """AdamW on an adaptation's float32 parameters, with the averaged weights that are exported.

    float16: scale the loss (multiply it by `scale`), so that small gradients survive.
    all_sum: adds a tensor up over the processes.
    """

    def __init__(
        self,
        adaptation: Adaptation,
        config: OptimizerConfig,
        float16: bool = False,
        all_sum: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ) -> None:
        self.config, self.all_sum = config, all_sum
        groups = adaptation.groups()
        factors = [config.lr_factors.get(name, 1.0) for name in groups]
        self.parameters = [p for parameters in groups.values() for p in parameters]
        self.average = [p.detach().clone() for p in self.parameters]
        self.adamw = torch.optim.AdamW(
            [{"params": p, "factor": f} for p, f in zip(groups.values(), factors)],
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
        )
        self.float16 = float16
        self.scale = FIRST_SCALE if float16 else 1.0
        self.steps, self.finite_steps = 0, 0  # taken in all; since the scale was changed

    def lr_at(self, iteration: int) -> float:
        """Learning rate before the factors: constant, but for a rise at the start and a fall at the end."""
        config = self.config
        rise = (iteration + 1) / config.warmup if config.warmup else 1.0
        falling = config.cooldown * config.iterations
        fall = (config.iterations - iteration) / falling if falling else 1.0
        return config.lr * min(1.0, rise, max(fall, 0.0))

    def step(self, iteration: int, extras: Tensor) -> StepResult:
        """Take the step of the gradients in `.grad`, which are those of `scale` times the loss.

        extras: (E,) numbers to add up over the processes with the gradients. A number that is not finite in
        any process makes all of them skip the step together: it is in the sum that all of them see.
        """
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        flat = torch.cat([part.reshape(-1) for part in parts] + [extras.to(parts[0])])
        flat = self.all_sum(flat)
        gradients, sums = flat[: -len(extras)] / self.scale, flat[-len(extras) :]
        for p in self.parameters:
            p.grad = None
        norm = float(gradients.norm())
        finite = bool(torch.isfinite(flat).all())
        if finite:
            self._take(gradients, norm, self.lr_at(iteration))
        self._rescale(finite)
        return StepResult(sums, norm, finite)

    def _take(self, gradients: Tensor, norm: float, lr: float) -> None:
        if self.config.clip and norm > self.config.clip:
            gradients = gradients * (self.config.clip / norm)
        for p, gradient in zip(self.parameters, gradients.split([p.numel() for p in self.parameters])):
            p.grad = gradient.view_as(p)
        for group in self.adamw.param_groups:
            group["lr"] = lr * group["factor"]
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        decay = min((1 + self.steps) / (10 + self.steps), self.config.ema)
        self.steps += 1
        with torch.no_grad():
            for mean, p in zip(self.average, self.parameters):
                mean.lerp_(p, 1 - decay)

    def _rescale(self, finite: bool) -> None:
        if not self.float16:
            return
        self.finite_steps = self.finite_steps + 1 if finite else 0
        if not finite:
            self.scale = max(self.scale / 2, 1.0)
        elif self.finite_steps == GROW_EVERY:
            self.scale, self.finite_steps = min(2 * self.scale, LARGEST_SCALE), 0

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in the place of the raw ones, to look at and to export."""
        raw = [p.detach().clone() for p in self.parameters]
        self._load(self.average)
        try:
            yield
        finally:
            self._load(raw)

    @torch.no_grad()
    def _load(self, values: list[Tensor]) -> None:
        for p, value in zip(self.parameters, values):
            p.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "parameters": [p.detach().cpu() for p in self.parameters],
            "average": [mean.cpu() for mean in self.average],
            "adamw": self.adamw.state_dict(),
            "scale": self.scale,
            "steps": self.steps,
            "finite_steps": self.finite_steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The reverse. KeyError, ValueError or RuntimeError for a state of another adapter."""
        shapes = [tuple(value.shape) for value in state["parameters"]]
        if shapes != [tuple(p.shape) for p in self.parameters]:
            raise ValueError("parameters of other shapes")
        self.adamw.load_state_dict(state["adamw"])
        self._load(state["parameters"])
        for mean, value in zip(self.average, state["average"]):
            mean.copy_(value)
        self.scale, self.steps = float(state["scale"]), int(state["steps"])
        self.finite_steps = int(state["finite_steps"])
