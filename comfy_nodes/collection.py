"""Statistics that outlive a run: named collections of readings, kept until they are reset."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..shared.attributes import Attribute, TargetDistribution
from ..shared.bars import FaceBars
from ..shared.errors import FairAdapterError
from ..shared.statistics import FairnessStatistics, StatisticsSummary, Tally

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


class _Collection:
    """What was counted, and what to take back when the same pictures come again."""

    def __init__(self, attributes: tuple[Attribute, ...]) -> None:
        self.statistics = FairnessStatistics(attributes)
        self.target: TargetDistribution | None = None
        self._counted: dict[str, tuple[Tally, str]] = {}  # identity -> tally and its group

    def holds_only(self, identity: str) -> bool:
        return self._counted.keys() <= {identity}

    def put(self, batch: Batch, group: str) -> None:
        tally = self.statistics.tally(batch.readings)  # before anything changes: it may be refused
        earlier = self._counted.get(batch.identity)
        if earlier is not None:
            self.statistics.remove_tally(*earlier)
        self.statistics.add_tally(tally, group)
        self._counted[batch.identity] = (tally, group)


class Collections:
    """Collections by name; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, _Collection] = {}
        self._resets: dict[str, int] = {}

    def add(
        self, name: str, batch: Batch, target: TargetDistribution | None = None, group: str = ""
    ) -> StatisticsSummary:
        """Count a batch, in place of an earlier reading of its pictures; returns the collection's statistics.

        The work is that of the batch, however much was counted before.

        group: what the pictures have in common, such as their prompt.
        Raises FairAdapterError for readings of other attributes than the collection's.
        """
        with self._lock:
            if name not in self._found and len(self._found) >= MOST:
                raise FairAdapterError(f"statistics: {MOST} collections are kept, found one more; reset some")
            kept = self._found.get(name)
            if kept is None or kept.holds_only(batch.identity):
                kept = _Collection(batch.attributes)
            try:
                kept.put(batch, group)
            except FairAdapterError as error:
                raise FairAdapterError(
                    f"{error}; collection '{name}' holds another classifier's: reset or rename it"
                ) from error
            kept.target = target
            self._found[name] = kept
            return kept.statistics.summary()

    def get(self, name: str) -> tuple[StatisticsSummary, TargetDistribution | None]:
        """The statistics and their last target. Raises FairAdapterError for an unknown name."""
        with self._lock:
            if name not in self._found:
                known = ", ".join(sorted(self._found)[:12]) or "none yet"
                raise FairAdapterError(
                    f"statistics '{name[:60]}': expected a collection ({known}), found none"
                )
            kept = self._found[name]
            return kept.statistics.summary(), kept.target

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
    name: str, statistics: StatisticsSummary, target: TargetDistribution | None
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
