"""Exact batches: how many pictures of each cell a target means, and which cell each picture of a batch gets.

A cell is one class of each attribute of a target: (female, black). `counts` says how many of N pictures are
wanted of each, `cells` which one each picture gets, in an order that is well mixed. Both depend on their
arguments alone.

What holds, with n x share for what the target means exactly:

- `first` 0: the counts are as near to the target as whole numbers can be; see `quota_rounding`.
- Batches in a row, all of one size, each with the number of pictures before it as `first`: after any n
  pictures, also within a batch, the count of every class is within 1 of n x share, and that of the joint
  classes of any two attributes within 1.5; see `quota_sequence`. They are slices of one endless sequence.
- Batches of different sizes in a row: the same where every size has the same sequence, as equal shares always
  have. Elsewhere nothing is promised, each change of size may leave a class further off: no sequence can have
  the nearest counts after every number of pictures (of 6:6:2, 10 are 4, 4 and 2, but 11 are 5, 5 and 1, the
  Alabama paradox), and a first batch of any size has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .attributes import TargetDistribution
from .errors import FairAdapterError
from .quota_grid import Grid
from .quota_rounding import nearest_counts, ranks
from .quota_sequence import CellSequence

MOST_PICTURES = 4096  # of one batch
MOST_FIRST = 10**9  # where shares come out even now and then
MOST_IRRATIONAL = 20_000  # pictures, where they don't: each of them is searched

Cell = Mapping[str, str]  # attribute -> class


@dataclass(frozen=True)
class Counts:
    """Whole numbers of pictures.

    target: what they stand for.  first, images: the pictures first .. first + images - 1.
    cells: the cell of each picture, attribute -> class in the target's order.
    """

    target: TargetDistribution
    first: int
    cells: tuple[Cell, ...]

    @property
    def images(self) -> int:
        return len(self.cells)

    @property
    def table(self) -> np.ndarray:
        """Pictures of each joint class, (K_1, ..., K_A) int64."""
        table = np.zeros(self.target.shape, dtype=np.int64)
        for cell in self.cells:
            table[tuple(a.index(cell[a.name]) for a in self.target.attributes)] += 1
        return table

    def of(self, name: str) -> dict[str, int]:
        """class -> pictures of an attribute. Raises FairAdapterError for one that the target lacks."""
        attribute = self.target.attribute(name)
        return {label: sum(cell[name] == label for cell in self.cells) for label in attribute.classes}

    def to_text(self) -> str:
        """One line: "gender female 6, male 6; race wmelh 4, black 4, asian 4"."""
        parts = (
            f"{name} " + ", ".join(f"{label} {count}" for label, count in self.of(name).items())
            for name in self.target.names
        )
        return "; ".join(parts)


def counts(target: TargetDistribution, images: int, first: int = 0) -> Counts:
    """How many of some pictures belong to each cell, and which cell each gets; see the module.

    images: 1 to MOST_PICTURES.  first: pictures of the same target that came before, 0 or more.
    Raises FairAdapterError for other numbers, for more than MOST_CELLS joint classes, and for pictures beyond
    MOST_IRRATIONAL of shares that never come out even.
    """
    return Counts(target, first, tuple(cells(target, images, first)))


def cells(target: TargetDistribution, images: int, first: int = 0) -> list[dict[str, str]]:
    """The cell of each picture, attribute -> class in the target's order. See `counts`."""
    grid = _grid(target)
    _check(images, first, grid)
    row = first % images == 0  # of batches of this size
    found = (_sequence(target, images) if row else _endless(target)).cells(first, images)
    names = target.cells
    return [dict(zip(target.names, names[grid.cells[place]])) for place in found]


def cell_text(cell: Cell) -> str:
    """ "female, black": for messages and infotexts."""
    return ", ".join(cell.values())


def _check(images: int, first: int, grid: Grid) -> None:
    last = MOST_FIRST if grid.period is not None else MOST_IRRATIONAL - images
    for name, value, low, high in (("images", images, 1, MOST_PICTURES), ("first picture", first, 0, last)):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise FairAdapterError(
                f"exact batch: {name}: expected a whole number from {low} to {high}, found {value!r}"
            )


@lru_cache(maxsize=64)
def _grid(target: TargetDistribution) -> Grid:
    return Grid.of(target)


@lru_cache(maxsize=64)
def _endless(target: TargetDistribution) -> CellSequence:
    return CellSequence(_grid(target))


@lru_cache(maxsize=64)
def _sequence(target: TargetDistribution, images: int) -> CellSequence:
    """The sequence of batches of a size: the target's own, where its beginning has the nearest counts."""
    grid, endless = _grid(target), _endless(target)
    begin = np.bincount(endless.cells(0, images), minlength=len(grid.cells))
    nearest = nearest_counts(grid, images, begin)
    both = ranks(grid, np.stack([begin, nearest]), images)
    nearness = 3 if len(target.shape) == 2 else 2  # controlled rounding is of two attributes
    if (both[0, :nearness] <= both[1, :nearness]).all():
        return endless
    return CellSequence(grid, nearest)
