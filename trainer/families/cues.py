"""How the pictures of a model that draws such signs tell which prompt it was given."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Cues(Protocol):
    """What a model draws beside a person that tells which prompt it was given."""

    def of(self, name: str) -> int | None:
        """The cue of a prompt's name, None where it has none."""
        ...

    def recognise(self, images: Tensor) -> Tensor:
        """Cues (N,) of pictures (N, 3, H, W) in [0, 1]."""
        ...
