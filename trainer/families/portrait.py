"""The portrait model: a small Stable Diffusion of a world of its own, whose prompts have visible cues.

A folder with the card `portrait.json` is one; the shipped one is `shared/portrait`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from ..portrait.card import FILE, PortraitCard, read_card
from ..portrait.world import build_world, recognise_cue
from .cues import Cues
from .stable_diffusion import StableDiffusion

PORTRAIT = Path(__file__).resolve().parents[2] / "shared" / "portrait"


@cache
def _world_cues() -> dict[str, int]:
    return {phrase.text: phrase.cue for phrase in build_world()}


class WorldCues(Cues):
    """Backdrop and light, which every phrase of the world has its own of."""

    def of(self, name: str) -> int | None:
        return _world_cues().get(name)

    def recognise(self, images: Tensor) -> Tensor:
        return recognise_cue(images)


@dataclass
class PortraitModel(StableDiffusion):
    """Loaded from a folder; its card says at which guidance scale and steps it works."""

    card: PortraitCard | None = None

    cues = WorldCues()

    @classmethod
    def from_pipeline(cls, pipeline: Any) -> PortraitModel:
        """Raises FairAdapterError for a card that does not read."""
        parts = (pipeline.tokenizer, pipeline.text_encoder, pipeline.unet, pipeline.vae, pipeline.scheduler)
        card = read_card(Path(pipeline.name_or_path))
        model = cls(*parts, card=card)
        model.guidance_scale = card.guidance_scale
        return model

    @classmethod
    def fits(cls, pipeline: Any) -> bool:
        return (Path(pipeline.name_or_path or "") / FILE).is_file()
