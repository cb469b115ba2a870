"""A target in whole units, and how far whole numbers of pictures are from it: what counts are searched on."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .attributes import TargetDistribution
from .errors import FairAdapterError
from .shares import RESOLUTION

MOST_CELLS = 256  # of a joint table: the search looks at each of them for every picture
LONGEST_PERIOD = 240  # pictures after which shares come out even; longer ones count as irrational
NEAR = 1e-9  # deviations that are nearer than this are the same


@dataclass(frozen=True, eq=False)
class Grid:
    """The possible cells of a target.

    shape: (K_1, ..., K_A) of the target.  cells: (C,) flat places of those with a share, ascending.
    units: (C,) int64, the share of each in parts of `whole`, the sum of them.
    """

    shape: tuple[int, ...]
    cells: np.ndarray
    units: np.ndarray
    whole: int

    @classmethod
    def of(cls, target: TargetDistribution) -> Grid:
        """Shares that are multiples of 1/L for an L up to LONGEST_PERIOD, thirds among them, become exact.

        Raises FairAdapterError for more than MOST_CELLS joint classes.
        """
        shares = np.array(target.shares)
        if len(shares) > MOST_CELLS:
            raise FairAdapterError(
                f"exact counts: expected at most {MOST_CELLS} joint classes, found {len(shares)} of "
                f"{', '.join(target.names)}; name fewer attributes"
            )
        for whole in range(1, LONGEST_PERIOD + 1):
            units = np.rint(shares * whole).astype(np.int64)
            if units.sum() == whole and np.abs(shares - units / whole).max() <= len(shares) / RESOLUTION:
                break
        else:
            whole, units = RESOLUTION, np.rint(shares * RESOLUTION).astype(np.int64)
        cells = np.flatnonzero(units)
        return cls(target.shape, cells, units[cells], int(whole))

    @property
    def period(self) -> int | None:
        """Pictures after which every cell comes out even; None where that takes too many."""
        return self.whole if self.whole <= LONGEST_PERIOD else None

    @cached_property
    def places(self) -> np.ndarray:
        """(C, A): the classes of each cell."""
        return np.stack(np.unravel_index(self.cells, self.shape), axis=1)

    @cached_property
    def classes(self) -> np.ndarray:
        """(R, C) int64, 1 where a cell has a class: the classes of all attributes below each other."""
        rows = [
            self.places[:, axis] == index for axis, size in enumerate(self.shape) for index in range(size)
        ]
        return np.array(rows).astype(np.int64)

    @cached_property
    def joints(self) -> np.ndarray:
        """(P, C) int64, 1 where a cell has both classes: the joint classes of any two attributes that have a
        share. Of one attribute alone there are none, (0, C)."""
        rows = [
            (self.places[:, a] == i) & (self.places[:, b] == j)
            for a, b in itertools.combinations(range(len(self.shape)), 2)
            for i in range(self.shape[a])
            for j in range(self.shape[b])
        ]
        table = np.array(rows).reshape(-1, len(self.cells)).astype(np.int64)
        return table[table.any(axis=1)]

    def deviations(self, rows: np.ndarray, counts: np.ndarray, pictures: int) -> np.ndarray:
        """Counts minus pictures x share of the rows of `classes` or `joints`.

        rows: (R, C).  counts: (..., C) whole numbers that sum to `pictures`.  Returns (..., R) float64 from
        whole numbers, so that the same counts give the same everywhere.
        """
        return ((counts @ rows.T) * self.whole - pictures * (rows @ self.units)) / self.whole

    def best_rounding(self, pictures: int) -> np.ndarray:
        """(A,): the least largest deviation of each attribute's counts, were there no other attribute.

        That is what the method of the largest remainders gives.
        """
        wanted = pictures * (self.classes @ self.units) % self.whole
        best = []
        for part in np.split(wanted, np.cumsum(self.shape)[:-1]):
            up = int(part.sum()) // self.whole
            ordered = np.sort(part)[::-1]
            best.append(max([self.whole - ordered[:up].min(initial=self.whole), ordered[up:].max(initial=0)]))
        return np.array(best) / self.whole

    def largest(self, deviations: np.ndarray) -> np.ndarray:
        """(..., A): the largest deviation, without its sign, of each attribute.  deviations: (..., R)."""
        parts = np.split(np.abs(deviations), np.cumsum(self.shape)[:-1], axis=-1)
        return np.stack([part.max(axis=-1) for part in parts], axis=-1)
