"""What the original model draws: references of prompts and noises, and what they depend on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from ..configuration.config import Config
from ..families.adaptation import Adaptation
from ..instruments.identity import fingerprint, weights_identity
from ..instruments.observer import Observer
from ..running.memory import MicroBatches
from .bank import Entry, ReferenceBank


def draw_original(
    config: Config, scale: float, adaptation: Adaptation, batches: MicroBatches
) -> Callable[..., Tensor]:
    """prompts, noise seeds, steps -> images of the base model, drawn without the adapter."""

    def draw(prompts: list[str], seeds: list[int], steps: int) -> Tensor:
        with adaptation.disabled() as model:
            return batches.fit(
                "network",
                lambda size: model.generate(prompts, seeds, scale, steps, size, config.model.negative),
                len(prompts),
            )

    return draw


def references(
    config: Config,
    scale: float,
    adaptation: Adaptation,
    observer: Observer,
    batches: MicroBatches,
    mark: Mark,
) -> ReferenceBank:
    original = draw_original(config, scale, adaptation, batches)

    def draw(entry: Entry, first: int, last: int) -> Tensor:
        seeds = entry.seeds[first:last]
        return original([entry.prompt] * len(seeds), seeds, entry.steps)

    folder = None
    if config.references.cache is not None and config.references.blocks:
        folder = Path(config.references.cache) / f"references-{mark()}"
    return ReferenceBank(draw, observer, bool(config.references.blocks), folder, batches)


@dataclass(frozen=True)
class Mark:
    """Fingerprint of what the original model's images and their readings depend on."""

    config: Config
    scale: float
    adaptation: Adaptation
    observer: Observer

    def __call__(self, **more: object) -> str:
        return fingerprint({**self._facts, **more})

    @cached_property
    def _facts(self) -> dict[str, object]:
        """Gathered once: billions of weights are read for it."""
        model = self.adaptation.base
        return {
            "model": weights_identity(model),
            "scale": self.scale,
            "negative": self.config.model.negative,
            "observer": self.observer.identity,
            "device": model.device.type,  # images of a GPU and of a CPU differ in their last bits
            "compile": self.config.model.compile,
        }
