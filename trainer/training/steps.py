"""Which steps of the sampler carry a gradient: those in the window, or some of them."""

from __future__ import annotations

import torch
from torch import Tensor

from ...shared.direct import draw_steps
from ...shared.errors import FairAdapterError
from ...shared.schedulers import LinearSampler
from ...shared.window import Window


def steps_with_gradient(
    sampler: LinearSampler, window: Window, count: int, images: int, seed: int
) -> Tensor | None:
    """(k,) the same for all images, or (images, k) drawn for each of them; None is all.

    count: random steps of each image; 0 is all in the window.
    Raises FairAdapterError where no step lies in the window.
    """
    within = window.acts(sampler.places).nonzero().squeeze(1)
    if not len(within):
        raise FairAdapterError(
            f"sampling.window: expected a part with steps in it, none of {sampler.steps} lies at "
            f"{window.to_text()}; widen it"
        )
    # some schedulers call the network more often than they were asked to
    if not count or count >= len(within):
        return None if len(within) == sampler.steps else within
    generator = torch.Generator().manual_seed(seed)
    return within[draw_steps(len(within), count, images, generator)]
