"""The whole numbers of N pictures that are nearest to a target.

Which cells get how many is chosen so that, in this order,

1. the largest deviation of any attribute's counts from N x share is least,
2. so is the sum of their squares: each attribute is as near as it can be, not the worst one alone,
3. the fewest joint counts of two attributes are off by 1 or more,
4. the squared deviations of joint counts and of cells are least.

For two attributes that is controlled rounding (Cox and Ernst, 1982): every cell and every sum is rounded down
or up. Cells without a share get none.

With up to EXACT cells every choice of those that are rounded up is looked at; larger tables begin where a
sequence of cells is after N pictures. Both are then improved by moving pictures from cell to cell, one or two
at a time, as long as that helps.
"""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np

from .quota_grid import NEAR, Grid

EXACT = 16
_PAIRS = 40  # single moves, the best, of which two are tried together


def ranks(grid: Grid, counts: np.ndarray, pictures: int) -> np.ndarray:
    """(M, 4): the four figures of the module's list, the first one weighing most.  counts: (M, C)."""
    one = np.abs(grid.deviations(grid.classes, counts, pictures))
    two = np.abs(grid.deviations(grid.joints, counts, pictures))
    cell = np.abs(counts * grid.whole - pictures * grid.units) / grid.whole
    off = (two >= 1 - NEAR).sum(axis=1)
    spread = 0.5 * (two**2).sum(axis=1) + 0.1 * (cell**2).sum(axis=1)
    return np.stack([one.max(axis=1), (one**2).sum(axis=1), off, spread], axis=1).round(8)


def nearest_counts(grid: Grid, pictures: int, begin: np.ndarray) -> np.ndarray:
    """(C,) int64: see the module.  begin: (C,) counts of as many pictures where larger tables start."""
    if grid.period is not None and pictures >= grid.period:
        rest = pictures % grid.period
        even = (pictures - rest) // grid.period * grid.units
        return even + nearest_counts(grid, rest, begin - even)
    best = begin
    if len(grid.cells) <= EXACT:
        wanted = pictures * grid.units
        down = wanted // grid.whole
        best = down + _subsets(len(down), pictures - int(down.sum()))
    best, score = _first(grid, np.atleast_2d(best), pictures)
    while True:
        moved, other = _first(grid, _moves(grid, best, pictures), pictures)
        if tuple(other) >= tuple(score):
            return best
        best, score = moved, other


def _first(grid: Grid, tables: np.ndarray, pictures: int) -> tuple[np.ndarray, np.ndarray]:
    """The best of (M, C) tables, the earliest of equal ones, and its figures."""
    scores = ranks(grid, tables, pictures)
    place = np.lexsort((np.arange(len(tables)), *scores.T[::-1]))[0]
    return tables[place], scores[place]


@lru_cache(maxsize=64)
def _subsets(size: int, count: int) -> np.ndarray:
    """All 0/1 rows of a length and sum, (M, size) int64."""
    chosen = np.array(list(itertools.combinations(range(size), count)), dtype=np.int64)
    rows = np.zeros((len(chosen), size), dtype=np.int64)
    np.put_along_axis(rows, chosen.reshape(len(chosen), count), 1, axis=1)
    rows.flags.writeable = False
    return rows


def _moves(grid: Grid, counts: np.ndarray, pictures: int) -> np.ndarray:
    """The counts themselves, and what one or two pictures in another cell make of them, (M, C)."""
    size = len(counts)
    own = np.eye(size, dtype=np.int64)
    steps = (own[None] - own[:, None])[~own.astype(bool)]  # from cell i to cell j
    singles = counts + steps
    allowed = (singles >= 0).all(axis=1)
    steps, singles = steps[allowed], singles[allowed]
    if not len(steps):
        return counts[None]
    leading = np.lexsort(ranks(grid, singles, pictures).T[::-1])[:_PAIRS]
    pairs = (singles[leading][:, None] + steps[leading][None]).reshape(-1, size)
    return np.concatenate([counts[None], singles, pairs[(pairs >= 0).all(axis=1)]])
