"""The diffusers schedulers that the tests run through, with Stable Diffusion 1.5's noise ladder."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest
import torch

LADDER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}


def make(kind: str, **changes: Any) -> Any:
    """A scheduler by the name that the tests print."""
    name, settings = KINDS[kind]
    flow = name.startswith("FlowMatch")
    return getattr(diffusers, name)(**{**({} if flow else LADDER), **settings, **changes})


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    "ddim trailing": ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}),
    "ddim v": ("DDIMScheduler", {"clip_sample": False, "prediction_type": "v_prediction"}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler karras v": (
        "EulerDiscreteScheduler",
        {"use_karras_sigmas": True, "prediction_type": "v_prediction"},
    ),
    "dpm++ 1": ("DPMSolverMultistepScheduler", {"solver_order": 1}),
    "dpm++ 2": ("DPMSolverMultistepScheduler", {}),
    "dpm++ 2 leading": ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
    "dpm++ 2 karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpm++ 2 heun v": (
        "DPMSolverMultistepScheduler",
        {"solver_type": "heun", "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    ),
    "unipc": ("UniPCMultistepScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}),
    "flow": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
}
EXACT = ["ddim", "ddim trailing", "ddim v", "unipc", "pndm"]  # the others round the sample to float32


class _Double:
    """`torch` with float64 under the name of float32."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, "float64" if name == "float32" else name)


@pytest.fixture
def double_schedulers(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' own schedulers in float64 throughout, beyond the precision they ship with."""
    for name in {name for name, _ in KINDS.values()}:
        monkeypatch.setattr(inspect.getmodule(getattr(diffusers, name)), "torch", _Double())
