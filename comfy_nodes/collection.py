"""Statistics that outlive a run: named collections of readings, kept until they are reset."""

from __future__ import annotations

import threading
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

    readings: for each picture its faces, the largest first.  identity: of the pictures; a collection counts
    the same pictures once, however often they come by, as they were read last.
    """

    readings: Sequence[Sequence[FaceBars]]
    attributes: tuple[Attribute, ...]
    identity: str


@dataclass
class _Collection:
    batches: dict[str, tuple[Batch, str]] = field(default_factory=dict)  # identity -> batch and its group
    target: TargetDistribution | None = None

    def statistics(self) -> FairnessStatistics:
        first, _ = next(iter(self.batches.values()))
        statistics = FairnessStatistics(first.attributes)
        for batch, group in self.batches.values():
            statistics.add(batch.readings, group)
        return statistics


class Collections:
    """Collections by name; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, _Collection] = {}
        self._resets: dict[str, int] = {}

    def add(
        self, name: str, batch: Batch, target: TargetDistribution | None = None, group: str = ""
    ) -> FairnessStatistics:
        """Count a batch, in place of an earlier reading of its pictures; returns the collection's statistics.

        group: what the pictures have in common, such as their prompt.
        Raises FairAdapterError for readings of other attributes than the collection's.
        """
        with self._lock:
            if name not in self._found and len(self._found) >= MOST:
                raise FairAdapterError(f"statistics: {MOST} collections are kept, found one more; reset some")
            earlier = self._found.get(name, _Collection()).batches
            kept = _Collection({**earlier, batch.identity: (batch, group)}, target)
            try:
                statistics = kept.statistics()
            except FairAdapterError as error:
                raise FairAdapterError(
                    f"{error}; collection '{name}' holds another classifier's: reset or rename it"
                ) from error
            self._found[name] = kept
            return statistics

    def get(self, name: str) -> tuple[FairnessStatistics, TargetDistribution | None]:
        """The statistics and their last target. Raises FairAdapterError for an unknown name."""
        with self._lock:
            if name not in self._found:
                known = ", ".join(sorted(self._found)[:12]) or "none yet"
                raise FairAdapterError(
                    f"statistics '{name[:60]}': expected a collection ({known}), found none"
                )
            kept = self._found[name]
            return kept.statistics(), kept.target

    def reset(self, name: str) -> None:
        """Forget a collection; whatever comes by next is counted anew, also if it was counted before."""
        with self._lock:
            if self._found.pop(name, None) is not None:
                self._resets[name] = self._resets.get(name, 0) + 1

    def resets(self, name: str) -> int:
        """How often a collection was reset."""
        return self._resets.get(name, 0)


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
        "bias": {a.name: statistics.bias(a.name) for a in statistics.attributes},
        "notes": [text for text in (statistics.note(), statistics.bias_note()) if text],
        "shares": shares,
    }
