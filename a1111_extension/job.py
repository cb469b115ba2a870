"""One generation of a host with us enabled, from the first hook to the last.

A `Job` is kept on the host's processing object `p`, because hosts and other extensions run generations inside
of generations.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from ..shared.adapter import AdapterWeights, FairnessAdapter
from ..shared.attributes import TargetDistribution
from ..shared.bars import FaceBars
from ..shared.live import LiveBars
from .aims import Aim, PromptAims
from .injection import NativeFiles
from .request import FairRequest

JOB, CHANGES = "fair_adapter_job", "fair_adapter_changes"  # attributes that we put on p


@dataclass
class Picture:
    """A finished picture: its faces and what is shown of it.  full: kept for overlay copies only.
    aim: what it was drawn at."""

    small: Image.Image
    small_faces: list[FaceBars]
    faces: list[FaceBars]
    size: tuple[int, int]
    full: Image.Image | None = None
    aim: Aim = field(default_factory=Aim)


@dataclass(eq=False)
class Job:
    """A generation with us enabled.

    request: where it does not read, what of it does; refused names the rest.
    weights, files: None without an adapter, or when it can't be used.  own: where each prompt has its own
    target; target, weights and files are those of the first picture then.  error: what of the request is not
    in the pictures.  unsaved: the picture read last, until the host saves it.  calls,
    step: of the sampling pass in progress, see `Generation.denoised`.
    """

    request: FairRequest
    origin: str
    refused: tuple[str, ...] = ()
    model: str = ""
    target: TargetDistribution | None = None
    adapter: FairnessAdapter | None = None
    weights: AdapterWeights | None = None
    files: NativeFiles | None = None
    own: PromptAims | None = None
    error: str = ""
    notes: list[str] = field(default_factory=list)
    pictures: dict[int, Picture] = field(default_factory=dict)
    unsaved: Picture | None = None
    live: LiveBars | None = None
    calls: int = 0
    step: int = 0
    own_loras: bool = False

    def aim(self, place: int) -> Aim:
        """What a picture of the job is drawn at."""
        one = self.own.places.get(place) if self.own is not None else None
        return one or Aim(self.target, self.weights, self.files)

    def aims(self, p: Any) -> list[Aim]:
        """Those of the pictures of the host's batch."""
        first = p.iteration * p.batch_size
        return [self.aim(first + index) for index in range(len(p.prompts))]


def job_of(p: Any) -> Job | None:
    return getattr(p, JOB, None)
