"""The facts of a portrait model that programs need, ``portrait.json`` beside its weights."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ...shared.errors import FairAdapterError

FILE = "portrait.json"


@dataclass(frozen=True)
class PortraitCard:
    """guidance_scale: the one working scale; steps: of DPM-Solver++; phrases: how many the model knows;
    trained: optimiser steps and portraits seen by the U-Net."""

    guidance_scale: float
    steps: int
    phrases: int
    trained: dict[str, int]

    def write(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def read_card(folder: Path) -> PortraitCard:
    """The card of a portrait model folder.

    Raises:
        FairAdapterError: no such file, or not of this form.
    """
    path = folder / FILE
    try:
        return PortraitCard(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise FairAdapterError(
            f"{path}: expected the portrait model's card, found {error}; restore it with git, or "
            "give --scale for another model"
        ) from error
