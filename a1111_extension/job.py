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
from .injection import NativeFiles
from .request import FairRequest

JOB, CHANGES = "fair_adapter_job", "fair_adapter_changes"  # attributes that we put on p


@dataclass
class Picture:
    """A finished picture: its faces and what is shown of it.  full: kept for overlay copies only."""

    small: Image.Image
    small_faces: list[FaceBars]
    faces: list[FaceBars]
    size: tuple[int, int]
    full: Image.Image | None = None


@dataclass(eq=False)
class Job:
    """A generation with us enabled.

    request: where it does not read, what of it does; refused names the rest.
    weights, files: None without an adapter, or when it can't be used.  error: what of the request is not in
    the pictures.  unsaved: the picture read last, until
    the host saves it.  calls, step: of the sampling pass in progress, see `Generation.denoised`.
    """

    request: FairRequest
    origin: str
    refused: tuple[str, ...] = ()
    model: str = ""
    target: TargetDistribution | None = None
    adapter: FairnessAdapter | None = None
    weights: AdapterWeights | None = None
    files: NativeFiles | None = None
    error: str = ""
    notes: list[str] = field(default_factory=list)
    pictures: dict[int, Picture] = field(default_factory=dict)
    unsaved: Picture | None = None
    live: LiveBars | None = None
    calls: int = 0
    step: int = 0
    own_loras: bool = False


def job_of(p: Any) -> Job | None:
    return getattr(p, JOB, None)
