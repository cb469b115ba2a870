"""Samples with bars while training: the same prompts and noises each time, from the averaged weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...shared.attributes import TargetDistribution
from ...shared.bar_grid import draw_grid
from ...shared.bars import FaceBars, read_bars
from ...shared.errors import FairAdapterError
from ...shared.images import to_pil
from ...shared.seeds import noise_seed
from ...shared.target_table import mean_target
from ..configuration.prompts import Prompt, evenly, read_prompts
from ..instruments.observer import Observer, View
from .loop import Training
from .means import deviation

SALT = "sample"
CELL = 96  # px of a picture on the sheet


class Samples:
    """Validation prompts and what becomes of them."""

    def __init__(self, training: Training) -> None:
        self.training = training
        run = training.config.run
        prompts = [p for source in training.config.prompts.validation for p in read_prompts(source)]
        self.prompts: list[Prompt] = evenly(prompts, run.sample_prompts)
        self.count = run.sample_images

    @torch.no_grad()
    def draw(self, folder: Path, iteration: int) -> tuple[Image.Image, dict[str, float]]:
        """Writes samples/ITERATION.png; the sheet and each attribute's mean deviation from the target.

        Raises FairAdapterError if it can't be written.
        """
        training = self.training
        targets = [training.targets.own(p.text) or training.space.default for p in self.prompts]
        groups: list[Tensor] = []
        with training.optimizer.averaged():
            for target, several in groupby(zip(targets, self.prompts), key=lambda pair: pair[0]):
                groups.append(self._pictures([prompt for _, prompt in several], target))
        images, target = torch.cat(groups), mean_target(targets)
        views = training.batches.fit(
            "decode", lambda size: [training.observer.look(part) for part in images.split(size)], len(images)
        )
        own = ", mean of the prompts' own" if len(set(targets)) > 1 else ""
        title = f"{iteration} iterations, target {target.to_text()}{own}"
        sheet = draw_grid(
            [to_pil(image) for image in images],
            [bars for view in views for bars in bars_of(view, training.observer)],
            target.attributes,
            target,
            title,
            columns=self.count,
            cell=CELL,
        )
        path = folder / "samples" / f"{iteration:06d}.png"
        save_picture(sheet, path)
        return sheet, self._measure(views, targets)

    def _pictures(self, prompts: Sequence[Prompt], target: TargetDistribution) -> Tensor:
        """Pictures of some prompts at a target, prompt by prompt."""
        training, config = self.training, self.training.config
        texts = [p.text for p in prompts for _ in range(self.count)]
        seeds = [noise_seed(p.text, i, SALT) for p in prompts for i in range(self.count)]
        model, scale, steps = (
            training.adaptation.adapted(target),
            training.guidance_scale,
            config.evaluation.steps,
        )
        return training.batches.fit(
            "network",
            lambda size: model.generate(texts, seeds, scale, steps, size, config.model.negative),
            len(texts),
        )

    def _measure(self, views: Sequence[View], targets: Sequence[TargetDistribution]) -> dict[str, float]:
        """Mean deviation of each attribute's shares from the target of their prompt."""
        measured = {}
        for attribute in self.training.space.attributes:
            labels = torch.cat([view.labels()[attribute.name] for view in views]).cpu().numpy()
            labels = labels.reshape(len(self.prompts), self.count)
            rows = [np.bincount(row[row >= 0], minlength=len(attribute)) for row in labels]
            off = [
                deviation(row / row.sum(), target, attribute.name)
                for row, target in zip(rows, targets)
                if row.sum()
            ]
            if off:
                measured[attribute.name] = float(np.mean(off))
        return measured


def bars_of(view: View, observer: Observer) -> list[list[FaceBars]]:
    """The bars of each image's largest face, for `draw_grid`."""
    faces = [face for face in view.found if face is not None]
    has_face = view.has_face
    bars = iter(read_bars({n: v[has_face] for n, v in view.logits.items()}, observer.attributes, faces))
    return [[] if face is None else [next(bars)] for face in view.found]


def save_picture(picture: Image.Image, path: Path) -> None:
    """A PNG, whole or not at all. Raises FairAdapterError if it can't be written."""
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(partial, format="PNG")
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise FairAdapterError(
            f"{path}: cannot be written ({error.strerror or error}); choose another folder"
        ) from error
