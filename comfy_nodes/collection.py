"""Statistics that outlive a run: named collections of readings, kept until they are reset."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..shared.attributes import Attribute, TargetDistribution
from ..shared.bars import FaceBars
from ..shared.errors import FairAdapterError
from ..shared.statistics import FairnessStatistics

MOST = 256  # collections; names come from the network


@dataclass(frozen=True, eq=False)
class Batch:
    """Readings of one run of Face Attributes.

    readings: for each picture its faces, the largest first.  identity: counts a batch once, however often a
    cached one comes by.
    """

    readings: Sequence[Sequence[FaceBars]]
    attributes: tuple[Attribute, ...]
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass
class _Collection:
    statistics: FairnessStatistics
    target: TargetDistribution | None = None
    seen: set[str] = field(default_factory=set)


class Collections:
    """Collections by name; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, _Collection] = {}
        self._resets: dict[str, int] = {}

    def add(
        self, name: str, batch: Batch, target: TargetDistribution | None = None, group: str = ""
    ) -> FairnessStatistics:
        """Count a batch that was not counted yet; returns a copy of the collection's statistics.

        group: what the pictures have in common, such as their prompt.
        Raises FairAdapterError for readings of other attributes than the collection's.
        """
        with self._lock:
            if name not in self._found and len(self._found) >= MOST:
                raise FairAdapterError(f"statistics: {MOST} collections are kept, found one more; reset some")
            kept = self._found.get(name) or _Collection(FairnessStatistics(batch.attributes))
            if batch.identity not in kept.seen:
                try:
                    kept.statistics.add(batch.readings, group)
                except FairAdapterError as error:
                    raise FairAdapterError(
                        f"{error}; collection '{name}' holds another classifier's: reset or rename it"
                    ) from error
                kept.seen.add(batch.identity)
            kept.target = target
            self._found[name] = kept
            return _copy(kept.statistics)

    def get(self, name: str) -> tuple[FairnessStatistics, TargetDistribution | None]:
        """A copy of the statistics and their last target. Raises FairAdapterError for an unknown name."""
        with self._lock:
            if name not in self._found:
                known = ", ".join(sorted(self._found)[:12]) or "none yet"
                raise FairAdapterError(
                    f"statistics '{name[:60]}': expected a collection ({known}), found none"
                )
            kept = self._found[name]
            return _copy(kept.statistics), kept.target

    def reset(self, name: str) -> None:
        """Forget a collection; whatever comes by next is counted anew, also if it was counted before."""
        with self._lock:
            if self._found.pop(name, None) is not None:
                self._resets[name] = self._resets.get(name, 0) + 1

    def resets(self, name: str) -> int:
        """How often a collection was reset."""
        return self._resets.get(name, 0)


def _copy(statistics: FairnessStatistics) -> FairnessStatistics:
    return FairnessStatistics.from_dict(statistics.to_dict())


COLLECTIONS = Collections()


def statistics_dict(
    name: str, statistics: FairnessStatistics, target: TargetDistribution | None
) -> dict[str, Any]:
    """For our panel in the browser, the same shape as a batch's shares."""
    shares: dict[str, list[dict[str, Any]]] = {}
    for row in statistics.measure(target):
        shares.setdefault(row.attribute, []).append(row.to_dict() | {"label": row.label})
    return {
        "name": name,
        "pictures": statistics.pictures,
        "faces": statistics.faces,
        "note": statistics.note(),
        "shares": shares,
    }
