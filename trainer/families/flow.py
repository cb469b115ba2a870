"""What the pipelines of flow-matching transformers have in common: their steps, and their guidance."""

# pyright: reportAttributeAccessIssue=false
# (diffusers loads its names lazily)

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler

from ...shared.schedulers import LinearSampler, linear_sampler


def own_scale(pipeline_scale: float) -> float:
    """Guidance scale of this project and ComfyUI's CFG, from that of diffusers' Z-Image and Krea 2 pipelines.

    Those compute cond + g (cond - uncond) and go without guidance at g = 0 (diffusers 0.42.1,
    pipeline_z_image.py and pipeline_krea2.py); here it is uncond + s (cond - uncond), and nothing at s = 1.
    """
    return pipeline_scale + 1.0


def resolution_shift(config: Mapping[str, Any], tokens: int) -> float:
    """mu, the shift of the noise levels for a picture of this many tokens: linear between two sizes."""
    least, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return low + (high - low) / (most - least) * (tokens - least)


def flow_sampler(scheduler: Any, steps: int, mu: float) -> LinearSampler:
    """The steps as those pipelines lay them out: evenly from 1 to 1/steps before the shift.

    mu: for a scheduler whose shift follows the picture's size; others have their own.
    Other solvers than Euler lay out their own steps. Raises as `linear_sampler`.
    """
    options: dict[str, Any] = {"mu": mu} if scheduler.config.get("use_dynamic_shifting") else {}
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler) and steps >= 1:
        options["sigmas"] = np.linspace(1.0, 1 / steps, int(steps)).tolist()
    return linear_sampler(scheduler, steps, **options)
