"""The bookkeeping of an exact batch: which pictures miss, what is drawn again, what can't be reached and why.

    batch = ExactBatch(target, cells(target, 12, first), seeds, budget=12)
    batch.take(perceived)                       # all pictures, finished
    while orders := batch.redraws():            # place, seed and cell of each picture to draw again
        batch.take(perceived, orders)           # of those pictures
    batch.summary()                             # "12 of 12 pictures are as wanted after 3 redraws"

Nothing is drawn here. After each look the cells are given to the pictures anew, so that the most of them are
filled: a picture that came out as another one was wanted fills that cell. What misses still is drawn again
from a new noise at its own place; the order of the batch stays, and of a place the better picture is kept,
the earlier one of equals. An order's seed and cell draw its picture alone.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .attributes import TargetDistribution
from .errors import FairAdapterError
from .perceived import HALF, Cell, Perceived
from .quota_assignment import assign_finished

SEVERAL = 4  # pictures that aimed at a class, none of which shows it: the prompt may rule it out
MOST_BUDGET = 10_000


@dataclass(frozen=True)
class Order:
    """A picture to draw.

    place: in the batch.  seed: of its noise.  cell: what it aims at.  redraw: which one of its place; 0 is
    the first picture.  before: the cell that it aimed at until a second plan, where there was one that
    exchanged it.
    """

    place: int
    seed: int
    cell: Cell
    redraw: int = 0
    before: Cell | None = None


@dataclass(frozen=True)
class Check:
    """How finished pictures fill the cells that are wanted of them.

    given: for each picture the place of its cell in the wanted ones.  fills: (N,) how much of it, in [0, 1].
    misses: places of the pictures that fill less than half.
    """

    given: tuple[int, ...]
    fills: np.ndarray
    misses: tuple[int, ...]


def check(perceived: Perceived, wanted: Sequence[Cell]) -> Check:
    """Cells for finished pictures, and which of these miss. Raises FairAdapterError as `assign`."""
    given = assign_finished(perceived, wanted)
    fills = perceived.fills(wanted)[np.arange(len(given)), given]
    misses = np.flatnonzero(fills < HALF).tolist()
    return Check(tuple(given), fills, tuple(misses))


def redraw_seed(seed: int, redraw: int) -> int:
    """A 32-bit seed, which every host takes, for the redraw 1, 2, ... of a picture with a seed."""
    digest = hashlib.sha256(f"redraw|{seed}|{redraw}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


class ExactBatch:
    """One batch from its first pictures to the last redraw.

    target: what the cells stand for.  wanted: a cell for each picture.  seeds: of the first pictures.
    budget: pictures that may be drawn besides, 0 to MOST_BUDGET.
    Raises FairAdapterError for other numbers.
    """

    def __init__(
        self, target: TargetDistribution, wanted: Sequence[Cell], seeds: Sequence[int], budget: int
    ) -> None:
        if not wanted or len(wanted) != len(seeds):
            raise FairAdapterError(
                f"exact batch: expected one seed for each of 1 or more pictures, found {len(seeds)} for "
                f"{len(wanted)}"
            )
        if isinstance(budget, bool) or not isinstance(budget, int) or not 0 <= budget <= MOST_BUDGET:
            raise FairAdapterError(
                f"exact batch: redraws: expected a whole number from 0 to {MOST_BUDGET}, found {budget!r}"
            )
        self.target, self.wanted, self.budget = target, tuple(wanted), budget
        self.seeds = tuple(seeds)
        self.orders = [Order(i, seed, cell) for i, (seed, cell) in enumerate(zip(seeds, wanted))]
        self.check: Check | None = None
        self.drawn = 0
        self._tries = [0] * len(wanted)
        self._perceived: Perceived | None = None
        self._aimed: list[tuple[Cell, Cell | None]] = []  # at what a picture aimed, what it shows

    def aim(self, places: Sequence[int]) -> None:
        """That the first pictures aim at other cells than they began with: for each picture the place of its
        cell in `wanted`, as a second plan gives them while they are drawn."""
        for order, place in zip(tuple(self.orders), places):
            if self.wanted[place] != order.cell:
                self.orders[order.place] = replace(order, cell=self.wanted[place], before=order.cell)

    # ---- what was drawn

    def take(self, perceived: Perceived, orders: Sequence[Order] | None = None) -> list[bool]:
        """What finished pictures look like: of all places at first, later of `orders`, in their order.

        Returns for each whether it is kept: the picture of its place from now on.
        Raises FairAdapterError for another number of pictures.
        """
        taken = self.orders if orders is None else list(orders)
        if len(perceived) != len(taken):
            raise FairAdapterError(
                f"exact batch: expected readings of {len(taken)} pictures, found {len(perceived)}"
            )
        self.drawn += len(taken)
        self._aimed += zip([order.cell for order in taken], perceived.cells())
        if self._perceived is None or orders is None:
            kept, now = [True] * len(taken), perceived
        else:
            kept, now = self._better(self._perceived, perceived, taken)
        self._perceived, self.check = now, check(now, self.wanted)
        return kept

    def _better(
        self, before: Perceived, perceived: Perceived, taken: Sequence[Order]
    ) -> tuple[list[bool], Perceived]:
        """Which of the redrawn pictures are kept, and how the batch looks then."""

        def with_only(rows: Sequence[int]) -> Perceived:
            return before.replaced([taken[row].place for row in rows], perceived, rows)

        rows = list(range(len(taken)))
        least = len(check(with_only(rows), self.wanted).misses)
        for row in range(len(taken)):  # leave out whichever fills no more than the picture before it
            fewer = [other for other in rows if other != row]
            if len(check(with_only(fewer), self.wanted).misses) <= least:
                rows = fewer
        for row, order in enumerate(taken):
            self._tries[order.place] = max(self._tries[order.place], order.redraw)
            if row in rows:
                self.orders[order.place] = order
        return [row in rows for row in range(len(taken))], with_only(rows)

    def redraws(self) -> list[Order]:
        """What is to be drawn next, in the order of the batch; empty when the batch is done."""
        if self.check is None:
            return []
        found = []
        for i in self.check.misses[: max(0, self.budget - self.redrawn)]:
            number = self._tries[i] + 1
            seed = redraw_seed(self.seeds[i], number)
            found.append(Order(i, seed, self.wanted[self.check.given[i]], number))
        return found

    # ---- what is told

    @property
    def redrawn(self) -> int:
        """Pictures that were drawn besides the first ones."""
        return max(0, self.drawn - len(self.wanted))

    @property
    def cost(self) -> float:
        """Pictures drawn over pictures wanted."""
        return self.drawn / len(self.wanted)

    @property
    def exact(self) -> bool:
        """Whether every picture fills its cell."""
        return self.check is not None and not self.check.misses

    def cell(self, place: int) -> Cell:
        """The cell that a picture counts for."""
        return self.wanted[place if self.check is None else self.check.given[place]]

    def unreached(self) -> list[tuple[Cell, int, str]]:
        """Cells that pictures are missing of: (cell, pictures, why)."""
        if self.check is None:
            return []
        missing = Counter(tuple(self.cell(i).items()) for i in self.check.misses)
        return [(dict(cell), count, self._why(dict(cell))) for cell, count in missing.items()]

    def _why(self, cell: Cell) -> str:
        for name, label in cell.items():
            shown = [found for aimed, found in self._aimed if aimed.get(name) == label]
            if len(shown) >= SEVERAL and not any(found and found[name] == label for found in shown):
                tried = f"none of {len(shown)} pictures that aimed at {label} shows it"
                return f"{tried}: the prompt may rule it out"
        if not self.budget:
            return "no redraws are allowed"
        if self.redrawn >= self.budget:
            return f"all {self.budget} redraws are used up"
        return "the redraws were stopped"

    def summary(self) -> str:
        """One line."""
        if self.check is None:
            return f"{len(self.wanted)} pictures are wanted, none is read yet"
        n = len(self.wanted)
        begin = f"{n - len(self.check.misses)} of {n} pictures are as wanted after {_counted(self.redrawn)}"
        missing = [f"{', '.join(cell.values())} {count} ({why})" for cell, count, why in self.unreached()]
        return f"{begin}; missing: {'; '.join(missing)}" if missing else begin

    def table(self) -> list[dict[str, Any]]:
        """A row for each cell: "cell", pictures "wanted", "filled" (that fill it) and "expected" (by their
        probability), in the order of the target's cells."""
        rows = []
        fills = np.zeros(0) if self.check is None else self.check.fills
        for names in self.target.cells:
            cell = dict(zip(self.target.names, names))
            places = [i for i in range(len(self.wanted)) if self.cell(i) == cell]
            if places:
                own = fills[places] if len(fills) else np.zeros(0)
                row = {
                    "wanted": len(places),
                    "filled": int((own >= HALF).sum()),
                    "expected": float(own.sum()),
                }
                rows.append({"cell": ", ".join(names), **row})
        return rows

    def record(self, place: int) -> dict[str, Any]:
        """What is written down of a picture: "cell" that it counts for, "aim" that it was drawn with, "seed",
        number of its "redraw", and whether it "fills" its cell (None before it is read); "before" where a
        second plan exchanged another aim. Seed and aim draw a picture alone, but for one with "before"."""
        order = self.orders[place]
        fills = None if self.check is None else place not in self.check.misses
        return {
            "cell": dict(self.cell(place)),
            "aim": dict(order.cell),
            "seed": order.seed,
            "redraw": order.redraw,
            "fills": fills,
            **({} if order.before is None else {"before": dict(order.before)}),
        }


def _counted(redraws: int) -> str:
    return "1 redraw" if redraws == 1 else f"{redraws} redraws"
