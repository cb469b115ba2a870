"""Who gets which cell: optimal transport between the pictures of a batch and the cells that are wanted of it.

As many pictures as cells, so that the transport is an assignment. It is solved here, exactly: the hosts lack
POT, whose `ot.emd` gives plans of the same cost.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .errors import FairAdapterError
from .perceived import Cell, Perceived

_TIE = 1e-9  # cost that decides between equal pictures, far below any difference a classifier means


def assign(perceived: Perceived, wanted: Sequence[Cell], extra: np.ndarray | float = 0.0) -> list[int]:
    """For each picture the place in `wanted` of the cell that it gets: the fewest and smallest changes.

    The sum of distances between class probabilities and cells is least (the cost of `transport_cost`: to
    change both classes of one picture costs less than one class of each of two). A picture without a face
    gets what is left. Ties go to the earlier cell for the earlier picture: equal pictures keep the order of
    `wanted`.
    extra: (N, N), added to the cost of each cell for each picture.
    Raises FairAdapterError unless there are as many cells as pictures.
    """
    _check(perceived, wanted)
    return least_cost(perceived.changes(wanted) + extra)


def assign_finished(perceived: Perceived, wanted: Sequence[Cell]) -> list[int]:
    """As `assign` for finished pictures: the most cells are filled; see `Perceived.fills`."""
    _check(perceived, wanted)
    return least_cost(-perceived.fills(wanted) + 1e-3 * perceived.changes(wanted))


def least_cost(cost: np.ndarray) -> list[int]:
    """The column of each row of a square cost table (N, N), each column once, at the least sum.

    Rows are added one by one along shortest augmenting paths (Kuhn, Munkres; Jonker and Volgenant, 1987).
    """
    size = len(cost)
    tie = np.arange(size)[:, None] * np.arange(size)[None, :] / max(1, size * size)
    cost = cost - _TIE * tie  # a row and a column of equal rank belong together
    rows, columns = np.zeros(size + 1), np.zeros(size + 1)  # prices; the last column is where a path begins
    owner = np.full(size + 1, -1)
    for row in range(size):
        owner[size] = row
        _augment(cost, rows, columns, owner)
    place = np.empty(size, dtype=np.int64)
    place[owner[:size]] = np.arange(size)
    return place.tolist()


def _augment(cost: np.ndarray, rows: np.ndarray, columns: np.ndarray, owner: np.ndarray) -> None:
    """Give the row that owns the last column a column of its own, along the shortest path; in place."""
    size = len(cost)
    column = size
    shortest, before = np.full(size, np.inf), np.full(size, size)
    reached = np.zeros(size + 1, dtype=bool)
    while owner[column] >= 0:
        reached[column] = True
        row = owner[column]
        length = cost[row] - rows[row] - columns[:size]
        better = ~reached[:size] & (length < shortest)
        shortest[better], before[better] = length[better], column
        following = int(np.where(reached[:size], np.inf, shortest).argmin())
        step = shortest[following]
        rows[owner[reached]] += step
        columns[reached] -= step
        shortest[~reached[:size]] -= step
        column = following
    while column != size:
        owner[column] = owner[before[column]]
        column = int(before[column])


def _check(perceived: Perceived, wanted: Sequence[Cell]) -> None:
    if len(perceived) != len(wanted):
        raise FairAdapterError(
            f"exact batch: expected as many cells as pictures, found {len(wanted)} for {len(perceived)}"
        )
