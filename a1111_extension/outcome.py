"""What a tab shows of its last click: the pictures of each set of settings, with their shares.

A click makes one generation or, as an X/Y/Z plot, one for each cell. Pictures of the same settings are
counted together; those of others never are, because they had another target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..shared.attributes import Attribute, TargetDistribution
from ..shared.bars import FaceBars
from ..shared.live import readings_dict
from ..shared.statistics import FairnessStatistics
from . import views
from .aims import Aim
from .infotext import readable
from .job import Job
from .service import LastResult

KEPT = 4 * views.SHOWN  # pictures of one click that are kept to be shown; the others are only counted


@dataclass
class Settings:
    """Pictures of the same adapter, target and strength.  told: the row of a table that gave the target.
    faces: of every picture.  tiles: what is shown."""

    origin: str
    adapter: str
    target: TargetDistribution | None
    strength: float
    used: bool
    told: str = ""
    notes: list[str] = field(default_factory=list)
    faces: list[Sequence[FaceBars]] = field(default_factory=list)
    tiles: list[views.Tile] = field(default_factory=list)

    @property
    def aim(self) -> str:
        return readable(self.target) if self.target else ""

    @property
    def heading(self) -> str:
        if not self.used:
            return "Faces of this batch"
        told = f", {self.told}" if self.told else ""
        return f"{self.adapter} at {views.spaced(self.aim)}, strength {self.strength:g}{told}"

    def counted(self, attributes: Sequence[Attribute]) -> FairnessStatistics:
        statistics = FairnessStatistics(attributes)
        statistics.add(self.faces)
        return statistics

    def section(self, attributes: Sequence[Attribute]) -> views.Section:
        return views.Section(self.counted(attributes), self.tiles, self.heading, self.notes, self.target)

    def to_dict(self, attributes: Sequence[Attribute]) -> dict[str, Any]:
        """JSON form."""
        statistics = self.counted(attributes)
        return {
            "origin": self.origin,
            "adapter": self.adapter,
            "target": self.aim,
            "strength": self.strength,
            "notes": self.notes,
            "note": statistics.note(),
            "statistics": [row.to_dict() for row in statistics.measure(self.target)],
            **readings_dict(self.faces, attributes, self.target),
        }


class Outcome:
    """All that one click made so far."""

    def __init__(self) -> None:
        self._click: Any = None
        self._parts: list[Settings] = []

    def begin(self, click: Any) -> bool:
        """A generation starts; whether it is the first of its click.

        click: the same for all generations of one click; None where that is not known.
        """
        fresh = click is None or click != self._click
        self._click = click
        if fresh:
            self._parts = []
        return fresh

    def add(self, job: Job, captions: Sequence[str]) -> None:
        """A generation is finished.  captions: of all its pictures, in their order."""
        if not job.pictures and not job.notes:
            return  # such as one that repairs faces inside of another
        pictures = sorted(job.pictures.items())
        part = self._part(job, pictures[0][1].aim if pictures else job.aim(0))
        part.notes += [note for note in job.notes if note not in part.notes]
        kept = sum(len(p.tiles) for p in self._parts)
        for place, picture in pictures:
            part = self._part(job, picture.aim)
            part.faces.append(picture.faces)
            if kept < KEPT:
                caption = captions[place] if place < len(captions) else ""
                part.tiles.append((picture.small, picture.small_faces, caption))
                kept += 1

    def _part(self, job: Job, aim: Aim) -> Settings:
        """Where pictures of a job at an aim are counted."""
        asked, used = job.request, aim.weights is not None
        new = Settings(job.origin, asked.adapter, aim.target, asked.strength, used, aim.told)
        part = next((p for p in self._parts if _same(p, new)), None)
        if part is None:
            self._parts.append(part := new)
        return part

    def result(self, attributes: Callable[[], Sequence[Attribute]], shown: bool) -> LastResult:
        """Panel and JSON: those of the last settings, and where there are several, all of them as "cells".

        attributes: gives what is read; not asked where no picture was.  shown: whether there is a panel;
        what there is to say of a generation without pictures is said without one.
        """
        if not any(part.faces for part in self._parts):
            notes = list(dict.fromkeys(note for part in self._parts for note in part.notes))
            return LastResult(views.message(notes), {"notes": notes, "pictures": []})
        known = attributes()
        data = [part.to_dict(known) for part in self._parts]
        html = views.panels([part.section(known) for part in self._parts]) if shown else ""
        return LastResult(html, {**data[-1], **({"cells": data} if len(data) > 1 else {})})


def _same(one: Settings, other: Settings) -> bool:
    names = ("origin", "adapter", "target", "strength", "used")
    return all(getattr(one, name) == getattr(other, name) for name in names)
