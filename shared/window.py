"""The part of the sampling in which an adapter acts: from `start` to `end` percent.

Percent are places on the model's own scale of noise, as ComfyUI's timestep ranges have them
(`percent_to_sigma`): 0 is pure noise, 100 the finished picture. A discrete model's timestep t lies at
100 (1 - t / 999), a flow-matching model's at 100 (1 - t) before its shift. Where a sampler's steps are evenly
spaced on that scale, and those of most schedulers are, percent of the scale are percent of the steps to
within one; Karras sigmas crowd at its end, so that there fewer steps lie in the early part.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import FairAdapterError

FINEST = 0.05  # percent: schedulers round a step's place to whole timesteps, of which a thousand are 100%
LAST_TIMESTEP = 999


@dataclass(frozen=True)
class Window:
    """start, end: percent of the sampling; a step at `start` is within, one at `end` is not.

    Raises FairAdapterError unless 0 <= start < end <= 100.
    """

    start: float = 0.0
    end: float = 100.0

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 <= value <= 100:
                raise FairAdapterError(
                    f"{name}: expected percent of the sampling, 0 to 100, found {str(value)[:40]!r}; "
                    "set it again"
                )
        if self.start >= self.end:
            raise FairAdapterError(
                f"start, end: expected a start before the end, found {self.start:g} and {self.end:g}; 0 and "
                "100 are the whole of the sampling"
            )

    @property
    def whole(self) -> bool:
        """Whether nothing is left out."""
        return self.start <= 0 and self.end >= 100

    def bounds(self) -> tuple[float, float]:
        """Start and end as shares of the scale, a little early: a step that lies on one is after it."""
        early = (value - FINEST if 0 < value < 100 else value for value in (self.start, self.end))
        low, high = (max(value, 0.0) / 100 for value in early)
        return low, high

    def acts(self, places: Tensor) -> Tensor:
        """(T,) bool for steps at these places (T,), shares of the scale from 0 to 1."""
        low, high = self.bounds()
        return (places >= low) & ((places < high) if self.end < 100 else torch.ones_like(places).bool())

    def to_text(self) -> str:
        """Such as "0-40%"."""
        return f"{self.start:g}-{self.end:g}%"


WHOLE = Window()


def stretches(windows: Iterable[Window]) -> list[tuple[float, float, tuple[bool, ...]]]:
    """The whole scale, cut where windows begin and end: from, to (shares), and which of them act there."""
    bounds = [window.bounds() for window in windows]
    cuts = sorted({0.0, 1.0, *(cut for pair in bounds for cut in pair)})
    return [
        (low, high, tuple(begin <= low and high <= end for begin, end in bounds))
        for low, high in itertools.pairwise(cuts)
    ]


def places(timesteps: Tensor, flow_shift: float | None = None) -> Tensor:
    """(T,) shares of the scale at which a sampler's timesteps (T,) lie.

    flow_shift: of a flow-matching model, whose timesteps count to 1000; None for a discrete one.
    """
    if flow_shift is None:
        return 1.0 - timesteps.double() / LAST_TIMESTEP
    sigma = timesteps.double() / 1000
    return 1.0 - sigma / (flow_shift - (flow_shift - 1.0) * sigma)
