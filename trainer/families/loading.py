"""A base model as configured: where it is, what it computes in, its scheduler and size; compiling it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from ...shared.errors import FairAdapterError
from ..configuration.config import ModelConfig
from .adaptation import Adaptation
from .base import DiffusionModel
from .distilled import declare_distilled
from .portrait import PORTRAIT
from .registry import load, with_scheduler
from .stable_diffusion import StableDiffusion

PROBE = 4  # steps of a sampler that is only looked at
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BFLOAT16_ON_CPU = ("amx_bf16", "avx512_bf16", "bf16")  # the last is ARM's; without one bfloat16 is slower


def load_model(
    source: Path | str, device: torch.device | str, dtype: torch.dtype, **options: str | None
) -> DiffusionModel:
    """As `registry.load`, without the libraries' progress bars: takes its options and raises as it."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    return load(source, device, dtype, **options)


def weights_dtype(name: str, device: torch.device | str) -> torch.dtype:
    """Of a name in `ModelConfig.dtype`; "auto" is bfloat16 where the device computes in it, else float32."""
    if name != "auto":
        return DTYPES[name]
    if torch.device(device).type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        known = torch.cpu.get_capabilities()
        native = any(known.get(feature) for feature in BFLOAT16_ON_CPU)
    return torch.bfloat16 if native else torch.float32


def model_folder(path: str) -> Path:
    """The folder of a base model; 'portrait' is the embedded one."""
    return PORTRAIT if path == "portrait" else Path(path)


def load_base(config: ModelConfig, device: torch.device | str) -> DiffusionModel:
    """The base model as configured. Raises FairAdapterError for what it can't be or can't do."""
    names = ("config", "variant", "without", "vae", "revision", "weights")
    options: dict[str, Any] = {name: getattr(config, name) for name in names}
    model = load_model(model_folder(config.path), device, weights_dtype(config.dtype, device), **options)
    if config.distilled is not None:
        declare_distilled(model, config.distilled)
    if config.size is not None:
        model.resize(config.size)
    if config.scheduler is not None:
        with_scheduler(model, config.scheduler)
    if config.encoding == "paper":
        if not isinstance(model, StableDiffusion):
            raise FairAdapterError(
                f"model.encoding: the paper's is for Stable Diffusion 1.x and 2.x, found {model.title}; set "
                "model.encoding=host"
            )
        model.paper_encoding = True
    if config.empty_negative == "zeros":
        model.zero_empty_negative()
    model.sampler(PROBE)  # a scheduler that can't be used is found here
    return model


def watch_hooks() -> None:
    """Make compiled code look for hooks at every call: a LoRA is one, and comes and goes."""
    import torch._dynamo

    torch._dynamo.config.skip_nnmodule_hook_guards = False


def compile_network(adaptation: Adaptation) -> None:
    """Compile the network in place; say so where that does not work, and go on without.

    Tried with the attached adaptation, in a rollout's way and in a gradient's.
    """
    watch_hooks()
    model = adaptation.base
    model.network.compile()
    latents = torch.zeros(2, *model.latent_shape, device=model.device)
    timesteps = model.sampler(PROBE).timesteps[:1].to(model.device).repeat(2)
    try:
        for graph in (False, True):
            with torch.set_grad_enabled(graph):
                conditioning = adaptation.encode(["", ""])
                for rows in (latents, timesteps, *conditioning.values()):
                    torch._dynamo.maybe_mark_dynamic(rows, 0)  # compiled once for all sizes of a batch
                output = adaptation.denoise(latents, timesteps, conditioning)
        output.float().sum().backward()
    except Exception as error:  # whatever a compiler of this machine throws: the model works without it
        model.network._compiled_call_impl = None
        warnings.warn(f"torch.compile does not work here, going on without: {error}", stacklevel=2)
    finally:
        adaptation.zero_grad(set_to_none=True)
