"""Every picture of a batch its own target: an adapter at the far end of its range in the picture's cell.

A picture that shall be a Black woman is asked of an any-target adapter as `female` and `black` at the highest
shares that it was trained for, the other classes at the lowest: as far into the cell as training went.
There are no more such targets than cells, so that a prompt is encoded once for each of them, with the
adapter at that target, and the rows are put together in the order of the pictures:

    steerer = Steerer(adapter)
    steering = steerer.plan([order.cell for order in orders])
    encoded = [encode(prompt, weights) for weights in steering.weights]     # the host's own, (1, ...) each
    conditioning = gathered(encoded, steering.places)                       # (N, ...)

A LoRA of the text encoders acts there and then. One of the network can't differ within a call of it: its
pictures are drawn in sub-batches, `steering.groups`.

A second plan, halfway through the sampler, exchanges rows of the conditioning of pictures that are not on the
way to their cells (`replan`); the rows of all others stay as they are, and so do these pictures, to the
last bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .adapter import AdapterWeights, FairnessAdapter
from .adapter_target import TargetSpace
from .attributes import TargetDistribution
from .lora import TEXT_PREFIX
from .perceived import HALF, Cell, Perceived
from .quota_assignment import assign

KEEP = 0.2  # added to the cost of another cell than a picture's own: readings of predictions are not sure
PUSH = 1.0  # strength for pictures whose conditioning the second plan exchanges, times their own
PLAN_AT = 0.4  # share of the steps after which predictions are reliable enough for the second plan


@dataclass(frozen=True, eq=False)
class Steering:
    """weights: an adapter at different targets or strengths, each once.  places: for each picture its own.
    notes: what is to be told, one line each."""

    weights: tuple[AdapterWeights, ...]
    places: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @property
    def groups(self) -> list[tuple[AdapterWeights, list[int]]]:
        """The pictures of each, in the order of the batch."""
        return [
            (w, [i for i, place in enumerate(self.places) if place == k]) for k, w in enumerate(self.weights)
        ]

    @property
    def on_network(self) -> bool:
        """Whether the adapter changes the network itself, not its conditioning alone."""
        return any(not key.startswith(TEXT_PREFIX) for weights in self.weights for key in weights.lora)

    @property
    def in_sub_batches(self) -> bool:
        """Whether the network differs from picture to picture."""
        return self.on_network and len(self.weights) > 1


class Steerer:
    """An adapter that follows its target (another has the same weights for every cell)."""

    def __init__(self, adapter: FairnessAdapter) -> None:
        self.adapter = adapter
        self._made: dict[tuple[TargetDistribution, float], AdapterWeights] = {}

    def weights(self, cell: Cell | None, strength: float = 1.0) -> AdapterWeights:
        """The adapter as far in a cell as it was trained; None is its default target.

        Raises FairAdapterError for a strength out of range and for a class that the adapter does not know.
        """
        space = self.adapter.targets
        target = space.default if cell is None or not space.dimension else cell_target(space, cell)
        if (target, strength) not in self._made:
            self._made[target, strength] = self.adapter.at(target, strength)
        return self._made[target, strength]

    def plan(self, wanted: Sequence[Cell], strengths: Sequence[float] | float = 1.0) -> Steering:
        """The adapter for each picture.  wanted: its cell.  strengths: its own, or one for all."""
        if isinstance(strengths, (int, float)):
            strengths = [float(strengths)] * len(wanted)
        found = [self.weights(cell, strength) for cell, strength in zip(wanted, strengths)]
        different = tuple({id(weights): weights for weights in found}.values())
        places = tuple(next(k for k, w in enumerate(different) if w is weights) for weights in found)
        return Steering(different, places, self.notes(wanted[0]) if wanted else ())

    def notes(self, cell: Cell) -> tuple[str, ...]:
        """What the adapter can't do for cells of these attributes, one line each."""
        own = set(self.adapter.targets.default.names)
        foreign = [name for name in cell if name not in own]
        if not self.adapter.targets.dimension:
            default = self.adapter.targets.default.to_text()
            return (f"this adapter is trained for {default} alone: pictures are not steered, only redrawn",)
        if foreign:
            return (f"this adapter does not know {', '.join(foreign)}: that is redrawn, not steered",)
        return ()


def cell_target(space: TargetSpace, cell: Cell) -> TargetDistribution:
    """The target within a trained range that is farthest in a cell.

    Each attribute's class (each joint class, where training drew dependent attributes) gets the highest share
    that its range and the lowest shares of the others allow; the others divide what is left as their ranges
    are wide. Attributes that the cell does not name keep their default shares, those that the adapter does
    not know are left out. Without a range the class gets all.
    """
    blocks = [tuple(names.split("*")) for names in space.trained if "*" in names]
    covered = [name for names in blocks for name in names]
    blocks += [(a.name,) for a in space.attributes if a.name not in covered]
    table, order = np.ones(()), []
    for names in blocks:
        table = np.multiply.outer(table, _block(space, names, cell))
        order += names
    axes = [order.index(name) for name in space.default.names]
    return TargetDistribution(space.attributes, table.transpose(axes))  # type: ignore[arg-type]


def _block(space: TargetSpace, names: tuple[str, ...], cell: Cell) -> np.ndarray:
    """The shares of one attribute, or of several that belong together."""
    if not all(name in cell for name in names):
        return space.default.marginal(*names)
    attributes = [space.default.attribute(name) for name in names]
    limits = space.trained.get("*".join(names), {})
    shape = tuple(len(a) for a in attributes)
    labels = ["*".join(a.classes[i] for a, i in zip(attributes, place)) for place in np.ndindex(*shape)]
    low = np.array([limits.get(label, (0.0, 1.0))[0] for label in labels])
    high = np.array([limits.get(label, (0.0, 1.0))[1] for label in labels])
    wanted = int(np.ravel_multi_index([a.index(cell[a.name]) for a in attributes], shape))
    shares = low.copy()
    shares[wanted] = max(low[wanted], min(high[wanted], 1 - low.sum() + low[wanted]))
    rest, width = 1 - shares.sum(), np.delete(high - low, wanted)
    if rest > 0 and len(width):
        width = width if width.sum() > 0 else np.ones_like(width)
        shares[np.arange(len(shares)) != wanted] += rest * width / width.sum()
    return (shares / shares.sum()).reshape(shape)


def gathered(encoded: Sequence[Mapping[str, Tensor]], places: Sequence[int]) -> dict[str, Tensor]:
    """One row of conditioning for each picture, (N, ...).

    encoded: name -> (1, ...) of each of a steering's weights.  places: for each picture its own.
    """
    index = list(places)
    return {name: torch.cat([part[name] for part in encoded])[index] for name in encoded[0]}


@dataclass(frozen=True)
class Replan:
    """places: for each picture the place of its cell in the wanted ones.  changed: places of the pictures
    whose
    conditioning is exchanged: those of another cell than before, and those on the wrong side of theirs."""

    places: tuple[int, ...]
    changed: tuple[int, ...]


def replan(perceived: Perceived, wanted: Sequence[Cell], places: Sequence[int]) -> Replan:
    """The second plan, from predictions of the finished pictures.

    wanted: the cells.  places: for each picture the one that it aims at, a place in `wanted`.
    The assignment of the least cost (see `assign`), where another cell than its own costs a picture KEEP
    more. Raises FairAdapterError unless there are as many cells as pictures.
    """
    own = [wanted[i] for i in places]
    extra = KEEP * np.array([[cell != kept for cell in wanted] for kept in own], dtype=np.float64)
    found = assign(perceived, wanted, extra)
    fills = perceived.fills(wanted)[np.arange(len(found)), found]
    wrong = perceived.has_face & (fills < HALF)
    changed = [i for i, place in enumerate(found) if wanted[place] != own[i] or wrong[i]]
    return Replan(tuple(found), tuple(changed))
