"""A model whose pictures each have a text of their own, measured beside the same noises of one prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ...shared.attributes import Attribute
from ...shared.sampling import Conditioning, Guidance
from ...shared.schedulers import LinearSampler
from ...shared.seeds import noise_seed
from ..families.base import ImageModel
from .readings import SALT

Texts = Mapping[str, Sequence[str]]  # a prompt's text -> that of each of its pictures


class Worded(ImageModel):
    """A base model that draws the picture of a noise from that picture's own text."""

    def __init__(self, base: ImageModel, texts: Texts) -> None:
        self.base = base
        self._texts = {noise_seed(p, i, SALT): text for p, own in texts.items() for i, text in enumerate(own)}

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.base.latent_shape

    def sampler(self, steps: int) -> LinearSampler:
        return self.base.sampler(steps)

    def guidance(self, prompts: Sequence[str], scale: float, negative: str = "") -> Guidance:
        return self.base.guidance(prompts, scale, negative)

    def denoise(self, inputs: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        return self.base.denoise(inputs, timesteps, conditioning)

    def decode(self, latents: Tensor) -> Tensor:
        return self.base.decode(latents)

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        scale: float,
        steps: int = 20,
        batch: int = 32,
        negative: str = "",
    ) -> Tensor:
        own = [self._texts[seed] for seed in seeds]
        return self.base.generate(own, seeds, scale, steps, batch, negative)


def batch_figures(
    labels: Sequence[np.ndarray],
    told: Sequence[np.ndarray],
    attributes: Sequence[Attribute],
    size: int,
) -> dict[str, float]:
    """How pictures compare with what each was told to be, and batches of them with what they were told.

    labels, told: (n, A) classes of each prompt's pictures, -1 for none; the pictures in order make batches
    of `size`.  Returns {attribute: share of pictures that are what they say, "all": in every attribute,
    "exact": share of batches whose every class has its count, "off ATTRIBUTE": mean |count - wanted|}.
    """
    hits = np.concatenate([np.asarray(found) == wanted for found, wanted in zip(labels, told)])
    result = {a.name: float(hits[:, i].mean()) for i, a in enumerate(attributes)}
    result["all"] = float(hits.all(axis=1).mean())
    off = [
        [_counts(rows[first : first + size], attributes) for first in range(0, len(rows), size)]
        for rows in (np.concatenate(labels), np.concatenate(told))
    ]
    apart = np.abs(np.array(off[0]) - np.array(off[1]))  # (batches, classes of all attributes)
    result["exact"] = float((apart.sum(axis=1) == 0).mean())
    ends = np.cumsum([len(a) for a in attributes])[:-1]
    for attribute, part in zip(attributes, np.split(apart, ends, axis=1)):
        result[f"off {attribute.name}"] = float(part.mean())
    return result


def _counts(rows: np.ndarray, attributes: Sequence[Attribute]) -> list[int]:
    return [int((rows[:, i] == c).sum()) for i, a in enumerate(attributes) for c in range(len(a))]
