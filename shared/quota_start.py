"""The beginning of an exact batch: its cells and seeds, and what the prompt itself rules out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .attributes import TargetDistribution
from .errors import FairAdapterError
from .quota import cells, counts
from .quota_batch import ExactBatch
from .words import narrowed


def begin(
    target: TargetDistribution,
    seeds: Sequence[int],
    budget: int,
    first: int = 0,
    named: Mapping[str, Sequence[str]] | None = None,
) -> tuple[ExactBatch, tuple[str, ...]]:
    """A batch with a cell for each picture, and what is to be told before it is drawn, one line each.

    seeds: of the pictures' noises.  budget: pictures that may be drawn besides.  first: as in `quota.counts`.
    named: attribute -> classes that the prompt names (`PhraseTable.named`): "a female nurse" is no man,
    however
        often she is drawn. The batch then is of the other attributes alone, in the shares that the target
        asks of such people, and the pictures that can't come are told with their count.
    Raises FairAdapterError as `quota.counts` and `ExactBatch` do, and where the prompt names every attribute.
    """
    named = {name: labels for name, labels in (named or {}).items() if name in target.names}
    wanted = counts(target, len(seeds), first)
    rest = narrowed(target, named)
    if rest is None:
        raise FairAdapterError(
            f"exact batch: the prompt names {' and '.join(named)} itself, and the target nothing else; take "
            "those words out of the prompt or add an attribute to the target"
        )
    notes = [_told(name, labels, wanted.of(name)) for name, labels in named.items()]
    return ExactBatch(rest, cells(rest, len(seeds), first), seeds, budget), tuple(notes)


def _told(name: str, labels: Sequence[str], wanted: Mapping[str, int]) -> str:
    gone = [f"{label} {count}" for label, count in wanted.items() if label not in labels and count]
    missing = f"; the target's {', '.join(gone)} can't be reached" if gone else ""
    return f"the prompt names {name} itself ({', '.join(labels)}): it is not counted{missing}"
