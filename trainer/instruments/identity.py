"""What pictures and readings depend on, as a name: kept ones are used again where nothing of it changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from ..families.base import DiffusionModel

VERSION = 1  # of what is kept


def fingerprint(facts: Mapping[str, Any]) -> str:
    """24 hex digits over JSON facts: the name of a cache folder."""
    text = json.dumps({"version": VERSION, **facts}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def weights_identity(model: DiffusionModel) -> str:
    """24 hex digits over every weight and setting of the model's networks, scheduler and tokenizer."""
    digest = hashlib.sha256()
    for name, part in model.parts().items():
        for key, value in sorted(part.state_dict().items()):
            digest.update(f"{name} {key} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    settings = {k: v for k, v in model.scheduler.config.items() if not k.startswith("_")}
    facts: list[Any] = [settings, model.vae.config["scaling_factor"]]
    facts += [sorted(encoder.tokenizer.get_vocab().items()) for encoder in model.encoders]
    facts += [model.facts()] if model.facts() else []
    digest.update(json.dumps(facts, default=str).encode())
    return digest.hexdigest()[:24]
