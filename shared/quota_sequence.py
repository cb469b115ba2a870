"""An endless sequence of cells whose beginnings all are near a target.

After n pictures the counts of every class shall be within 1 of n x share, and those of the joint classes of
any two attributes within 1.5. For one attribute such sequences always exist (Tijdeman, "The chairman
assignment problem", 1980); for several at once no theorem says so. They are searched: a beam of the best
beginnings grows picture by picture, ranked by the bounds broken so far, then by how much further off an
attribute was than its best rounding, then by squared deviations. Where a bound was broken, a wider beam
tries again. Of 550 random targets of one to four attributes, each in batches of 1, 5, 12 and 16 over 200
pictures, none was left broken.

Shares that come out even after L pictures repeat after L. Others grow in blocks, each ending where the
search looked some way ahead, so that the sequence does not depend on how much of it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .quota_grid import NEAR, Grid

CLASS_BOUND = 1.0  # of counts of a class: less than this off
JOINT_BOUND = 1.5  # of joint counts of two attributes: at most this off
WIDTHS = (32, 128, 512)  # beginnings that are kept; the next where a bound was broken
BLOCK, AHEAD = 64, 32  # pictures that are settled at a time, and looked at beyond them


class CellSequence:
    """cells: places in `grid.cells`, from the first picture on; see the module.

    start: counts (C,) that the first pictures shall have together; then comes the rest.
    """

    def __init__(self, grid: Grid, start: np.ndarray | None = None) -> None:
        self.grid, self._period = grid, None
        self._known: list[int] = []
        self._counts = np.zeros(len(grid.cells), dtype=np.int64)
        if start is not None:
            self._settle(ordered(grid, start))
        elif grid.period is not None:
            self._settle(ordered(grid, grid.units))
            self._period = grid.period

    def cells(self, first: int, images: int) -> list[int]:
        """Places in `grid.cells` of the pictures first .. first + images - 1."""
        if self._period is not None:
            return [self._known[i % self._period] for i in range(first, first + images)]
        while len(self._known) < first + images:
            found = grown(self.grid, self._counts, BLOCK + AHEAD)
            self._settle(found[:BLOCK])
        return self._known[first : first + images]

    def _settle(self, cells: Sequence[int]) -> None:
        self._known += cells
        self._counts = self._counts + np.bincount(cells, minlength=len(self._counts))


def ordered(grid: Grid, counts: np.ndarray) -> list[int]:
    """The order of so many pictures of each cell whose beginnings are nearest to the target."""
    return grown(grid, np.zeros_like(counts), int(counts.sum()), counts)


def grown(grid: Grid, start: np.ndarray, steps: int, most: np.ndarray | None = None) -> list[int]:
    """The next `steps` cells after counts `start` (C,); `most` (C,): no more of a cell than that."""
    best: tuple[int, list[int]] | None = None
    for width in WIDTHS:
        found = _search(grid, start, steps, most, max(1, width * 16 // max(16, len(grid.cells))))
        if best is None or found[0] < best[0]:
            best = found
        if not best[0]:
            break
    assert best is not None
    return best[1]


def _search(
    grid: Grid, start: np.ndarray, steps: int, most: np.ndarray | None, width: int
) -> tuple[int, list[int]]:
    """(bounds broken, cells) of the best of `width` beginnings; see `grown`."""
    counts, first = start[None], int(start.sum())
    scores = np.zeros((1, 3))  # broken bounds, excess over the best rounding, squared deviations
    past: list[tuple[np.ndarray, np.ndarray]] = []
    for n in range(first + 1, first + steps + 1):
        room = np.ones(counts.shape, dtype=bool) if most is None else counts < most
        parents, cells = room.nonzero()
        scored = scores[parents] + _scores(grid, counts, parents, cells, n)
        scored[:, 2] -= 0.1 * scores[parents, 2]  # what is long past counts less
        kept = _leading(counts, parents, cells, scored.round(9), width)
        parents, cells, scores = parents[kept], cells[kept], scored[kept]
        counts = counts[parents]
        counts[np.arange(len(kept)), cells] += 1
        past.append((parents, cells))
    path, place = [], 0
    for parents, cells in reversed(past):
        path.append(int(cells[place]))
        place = int(parents[place])
    return int(scores[0, 0]), path[::-1]


def _scores(grid: Grid, counts: np.ndarray, parents: np.ndarray, cells: np.ndarray, n: int) -> np.ndarray:
    """(M, 3): what adding one picture of `cells` (M,) to the counts of `parents` (M,) costs."""
    own = np.eye(len(grid.cells), dtype=np.int64)
    parts = []
    for rows in (grid.classes, grid.joints, own):
        before = ((counts @ rows.T) * grid.whole - n * (rows @ grid.units)) / grid.whole
        parts.append(np.abs(before[parents] + rows.T[cells]))
    one, two, joint = parts
    broken = (one.max(axis=1) >= CLASS_BOUND - NEAR).astype(float)
    broken += (two > JOINT_BOUND + NEAR).any(axis=1)
    excess = np.maximum(grid.largest(one) - grid.best_rounding(n), 0).sum(axis=1)
    excess += (two >= 1 - NEAR).sum(axis=1)
    squares = (one**2).sum(axis=1) + 0.5 * (two**2).sum(axis=1) + 0.1 * (joint**2).sum(axis=1)
    return np.stack([broken, excess, squares], axis=1)


def _leading(
    counts: np.ndarray, parents: np.ndarray, cells: np.ndarray, scores: np.ndarray, width: int
) -> list[int]:
    """The `width` best of the candidates, best first, one for each table of counts."""
    kept, seen = [], set()
    for i in np.lexsort((np.arange(len(cells)), *scores.T[::-1])).tolist():
        table = counts[parents[i]].copy()
        table[cells[i]] += 1
        key = table.tobytes()
        if key not in seen:
            seen.add(key)
            kept.append(i)
            if len(kept) == width:
                break
    return kept
