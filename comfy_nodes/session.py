"""Pictures of a whole session as they were read, across workflows, prompts and adapters."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from ..shared.attributes import TargetDistribution
from ..shared.bars import FaceBars
from ..shared.errors import FairAdapterError
from ..shared.quota import counts
from ..shared.session import NextBatch, evened, seen, statistics_of
from .collection import Batch, statistics_dict

MOST = 4096  # pictures that are kept


class SessionLog:
    """The last pictures in the order in which they were first read; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._batches: dict[str, Sequence[Sequence[FaceBars]]] = {}
        self._version = 0

    @property
    def version(self) -> int:
        """Another number after every change."""
        return self._version

    def add(self, batches: Sequence[Batch]) -> None:
        """Keep what was read; the same pictures once, as they were read last."""
        with self._lock:
            for batch in batches:
                if self._batches.get(batch.identity) != batch.readings:
                    self._batches[batch.identity] = batch.readings
                    self._version += 1
            kept = sum(map(len, self._batches.values()))
            while kept - len(oldest := next(iter(self._batches.values()))) >= MOST:
                del self._batches[next(iter(self._batches))]
                kept -= len(oldest)

    def last(self, number: int) -> list[Sequence[FaceBars]]:
        """The last pictures, the newest last."""
        with self._lock:
            pictures = [faces for readings in self._batches.values() for faces in readings]
        return pictures[-number:]

    def reset(self) -> None:
        """Forget everything."""
        with self._lock:
            self._batches.clear()
            self._version += 1


SESSION = SessionLog()


def next_batch(target: TargetDistribution, last: int, pictures: int) -> NextBatch:
    """What the next pictures should be after the last ones. Raises FairAdapterError as `evened`."""
    return evened(target, ((picture, 1) for picture in seen(SESSION.last(last))), pictures)


def session_dict(last: int, target: TargetDistribution | None, pictures: int = 0) -> dict[str, Any]:
    """For our panel: the shares of the last pictures and, of so many next ones, what would even them out."""
    table = statistics_dict(f"last {last}", statistics_of(SESSION.last(last)), target)
    table["next"] = next_batch(target, last, pictures).to_text() if target is not None and pictures else ""
    return table


def planned(target: TargetDistribution, pictures: int) -> str:
    """What an exact batch of the target itself is, in a line. Raises FairAdapterError as `counts`."""
    return f"next {pictures}: {counts(target, pictures).to_text()}"


def read_number(name: str, text: str, low: int, high: int) -> int:
    """A whole number of a query. Raises FairAdapterError for anything else."""
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not low <= int(text) <= high:
        raise FairAdapterError(
            f"{name}: expected a whole number from {low} to {high}, found {text[:40]!r}; give one"
        )
    return int(text)
