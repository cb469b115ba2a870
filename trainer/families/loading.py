"""Loading a model without the libraries' progress bars."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from .base import DiffusionModel
from .registry import load


def load_model(
    source: Path | str, device: torch.device | str, dtype: torch.dtype, **options: str | None
) -> DiffusionModel:
    """As `families.registry.load`: takes its options and raises as it."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    return load(source, device, dtype, **options)
