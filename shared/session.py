"""A whole session: the last pictures, across prompts and adapters, and what would even them out.

What was drawn is counted by joint classes of the target's attributes; the next batch then gets the whole
numbers that bring all of it together nearest to the target. Nothing is kept here: hosts keep readings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .attributes import TargetDistribution
from .bars import FaceBars
from .errors import FairAdapterError
from .quota import MOST_PICTURES, counts
from .statistics import FairnessStatistics, counted_attributes

JOINT = 0.1  # weight of joint classes: people count classes, and ask for joint ones in the long run
Seen = Mapping[str, str]  # attribute -> class of a picture's largest face; empty without one


@dataclass(frozen=True)
class NextBatch:
    """What the next pictures should be.

    target: its shares times `images` are whole, so that an exact batch draws just these.
    counted, left_out: pictures of the session with a class of every attribute of the target, and others.
    """

    target: TargetDistribution
    images: int
    counted: int
    left_out: int

    def to_text(self) -> str:
        """One line: "next 12: gender female 9, male 3 (evens out 40 pictures)", and how many are not."""
        told = counts(self.target, self.images).to_text()
        plural = "" if self.counted == 1 else "s"
        more = f"; {self.left_out} without such a reading left out" if self.left_out else ""
        return f"next {self.images}: {told} (evens out {self.counted} picture{plural}{more})"


def seen(readings: Iterable[Sequence[FaceBars]]) -> list[Seen]:
    """What is counted of each picture: the classes of its first face, the largest."""
    return [{bar.attribute: bar.label for bar in faces[0].bars} if faces else {} for faces in readings]


def evened(target: TargetDistribution, session: Iterable[tuple[Seen, int]], images: int) -> NextBatch:
    """The next batch of some pictures after a session.

    session: pictures by what was seen, and how many of each.  images: 1 to quota.MOST_PICTURES.
    Picture by picture the cell is taken whose classes lack most of their share in the session with the whole
    batch, added up; what the cell itself lacks counts JOINT times as much, and of equal ones the first is
    taken. Then single pictures change their cells as long as that brings the whole nearer. Cells without a
    share are never asked for. Without a counted picture the target stays as it is.
    Raises FairAdapterError for another number of pictures.
    """
    if isinstance(images, bool) or not isinstance(images, int) or not 1 <= images <= MOST_PICTURES:
        raise FairAdapterError(
            f"even out: pictures: expected a whole number from 1 to {MOST_PICTURES}, found {images!r}"
        )
    table = np.zeros(target.shape)
    left_out = 0
    for picture, number in session:
        labels = [picture.get(a.name, "") for a in target.attributes]
        if all(label in a.classes for label, a in zip(labels, target.attributes)):
            table[tuple(a.index(label) for label, a in zip(labels, target.attributes))] += number
        else:
            left_out += number
    counted = int(table.sum())
    if not counted:
        return NextBatch(target, images, 0, left_out)
    batch = _batch((counted + images) * target.probabilities - table, target, images)
    shares = TargetDistribution(target.attributes, tuple((batch / images).reshape(-1).tolist()))
    return NextBatch(shares, images, counted, left_out)


def _batch(lacking: np.ndarray, target: TargetDistribution, images: int) -> np.ndarray:
    """Pictures of each cell, (K_1, ..., K_A).  lacking: of each cell before them."""
    batch, lacking = np.zeros(target.shape), lacking.copy()

    def put(cell: tuple[int, ...], number: int) -> None:
        batch[cell] += number
        lacking[cell] -= number

    def neediest() -> tuple[int, ...]:
        return tuple(int(i) for i in np.unravel_index(_need(lacking, target).argmax(), target.shape))

    for _ in range(images):
        put(neediest(), 1)
    changed = True
    while changed:  # each change brings the whole nearer, so that this ends
        changed = False
        for row in np.argwhere(batch > 0):
            cell = tuple(int(i) for i in row)
            put(cell, -1)
            best, need = neediest(), _need(lacking, target)
            better = need[best] > need[cell]
            put(best if better else cell, 1)
            changed |= bool(better)
    return batch


def _need(lacking: np.ndarray, target: TargetDistribution) -> np.ndarray:
    """What each cell and its classes lack; minus infinity for cells without a share."""
    need = JOINT * lacking
    for axis in range(lacking.ndim):
        others = tuple(other for other in range(lacking.ndim) if other != axis)
        need = need + lacking.sum(axis=others, keepdims=True)
    # far below the size of a picture: what is equal but for rounding is a tie
    return np.where(target.probabilities > 0, need.round(6), -np.inf)


def statistics_of(readings: Sequence[Sequence[FaceBars]]) -> FairnessStatistics:
    """Statistics of pictures that several classifiers may have read."""
    found: dict[str, dict[str, None]] = {}
    for picture in seen(readings):
        for name, label in picture.items():
            found.setdefault(name, {})[label] = None
    attributes = counted_attributes({name: tuple(labels) for name, labels in found.items()})
    statistics = FairnessStatistics(attributes)
    statistics.add(readings)
    return statistics
