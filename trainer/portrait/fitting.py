"""A resumable, deterministic training loop.

The random numbers of a step depend on (seed, step) only, so a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...shared.errors import FairAdapterError, reason

Losses = Mapping[str, Tensor]


@dataclass(frozen=True)
class Schedule:
    """steps: optimiser steps in all; lr: peak learning rate; warmup: steps of linear rise; cooldown:
    fraction of the steps over which it falls to 0; ema: decay of the averaged weights; clip: largest
    gradient norm; save_every: steps between checkpoints."""

    steps: int
    lr: float
    warmup: int = 100
    cooldown: float = 0.3
    ema: float = 0.999
    clip: float = 1.0
    save_every: int = 250

    def lr_at(self, step: int) -> float:
        falling = (self.steps - step) / max(1.0, self.cooldown * self.steps)
        return self.lr * min(1.0, (step + 1) / self.warmup, falling)


def fit(
    name: str,
    module: nn.Module,
    step_losses: Callable[[np.random.Generator, torch.Generator], Losses],
    schedule: Schedule,
    seed: int,
    folder: Path,
    device: torch.device,
) -> nn.Module:
    """Trains ``module`` on ``sum(step_losses)`` and returns it with its averaged weights.

    Writes ``folder/name.pt`` (weights, averages, optimiser, step) every ``save_every`` steps and goes on from
    it; one line of JSON for each 50 steps goes to ``folder/name.jsonl``.
    """
    checkpoint = folder / f"{name}.pt"
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=schedule.lr, betas=(0.9, 0.99), weight_decay=0.0)
    average = {k: v.detach().clone() for k, v in module.state_dict().items()}
    start = _resume(checkpoint, module, optimizer, average)
    began, history = time.time(), []
    for step in range(start, schedule.steps):
        losses = step_losses(
            np.random.default_rng([seed, step]), torch.Generator(device).manual_seed(seed * 1_000_003 + step)
        )
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, schedule.clip)
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr_at(step)
        optimizer.step()
        _update(average, module, min(schedule.ema, (1 + step) / (10 + step)))
        history.append({k: float(v.detach()) for k, v in losses.items()})
        if (step + 1) % 50 == 0:
            means = {k: round(float(np.mean([h[k] for h in history])), 5) for k in history[0]}
            record = {"step": step + 1, "seconds": round(time.time() - began, 1), **means}
            history.clear()
            with (folder / f"{name}.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")
        if (step + 1) % schedule.save_every == 0 or step + 1 == schedule.steps:
            _save(
                checkpoint,
                {
                    "module": module.state_dict(),
                    "average": average,
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                },
            )
    module.load_state_dict(average)
    return module


@torch.no_grad()
def _update(average: dict[str, Tensor], module: nn.Module, decay: float) -> None:
    for key, value in module.state_dict().items():
        if value.is_floating_point():
            average[key].lerp_(value.detach(), 1 - decay)


def _save(path: Path, state: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, partial)
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        raise FairAdapterError(
            f"{path}: can't write the checkpoint ({error}); give a writable folder with space "
            "with --work; the last checkpoint is untouched"
        ) from error


def _resume(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor]
) -> int:
    if not path.exists():
        return 0
    try:
        state = torch.load(path, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        for key, value in state["average"].items():
            average[key].copy_(value)
        return int(state["step"])
    except (OSError, RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise FairAdapterError(
            f"{path}: expected a checkpoint of this stage, found {reason(error)}; delete it to start the "
            "stage again"
        ) from error
