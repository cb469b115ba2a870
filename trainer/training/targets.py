"""The target of every iteration: always the same, or drawn anew for a target-conditioned adapter."""

from __future__ import annotations

import numpy as np

from ...shared.adapter_target import TargetSpace
from ...shared.attributes import TargetDistribution
from ...shared.errors import FairAdapterError
from ..configuration.config import TargetConfig

TRIES = 20000  # of drawing shares within their limits


def target_space(config: TargetConfig, default: TargetDistribution) -> TargetSpace:
    """What the adapter can be asked for. Raises FairAdapterError for settings that contradict each other."""
    if config.vector is None and config.range:
        raise FairAdapterError(
            "target.range: expected none for an adapter with one target; set target.vector=marginals or cells"
        )
    if config.vector is not None and not config.range:
        raise FairAdapterError(
            "target.range: expected the limits of training of a target-conditioned adapter, such as "
            "{gender: {female: [.1, .9]}}"
        )
    joint = [names for names in config.range if "*" in names]
    if joint and config.vector == "marginals":
        raise FairAdapterError(f"target.range: {joint[0]} is a joint target; set target.vector=cells")
    return TargetSpace(default, config.vector, config.range)


class TargetDraw:
    """The target of each iteration, a function of the seed and the iteration alone.

    Shares are drawn evenly over all within the limits of `space.trained`; attributes without limits keep
    their default shares. Every so often (`default_share`) it is the default target.
    Raises FairAdapterError if no shares keep to the limits.
    """

    def __init__(self, space: TargetSpace, default_share: float = 0.0, seed: int = 0) -> None:
        self.space, self.default_share, self.seed = space, default_share, seed
        named = [name for names in space.trained for name in names.split("*")]
        if len(set(named)) != len(named):
            raise FairAdapterError(f"target.range: an attribute is limited twice, found {', '.join(named)}")
        if space.dimension:
            self.draw(np.random.default_rng(seed))  # impossible limits are found before training starts

    def __getitem__(self, iteration: int) -> TargetDistribution:
        if not self.space.dimension:
            return self.space.default
        rng = np.random.default_rng([self.seed, 3, iteration])
        return self.space.default if rng.random() < self.default_share else self.draw(rng)

    def draw(self, rng: np.random.Generator) -> TargetDistribution:
        """One target within the limits."""
        default = self.space.default
        order: list[str] = []
        table = np.ones(())
        for names, limits in self.space.trained.items():
            block = names.split("*")
            shape = tuple(len(default.attribute(name)) for name in block)
            cells = TargetDistribution.uniform([default.attribute(n) for n in block]).cells
            low = np.array([limits.get("*".join(cell), (0.0, 1.0))[0] for cell in cells])
            high = np.array([limits.get("*".join(cell), (0.0, 1.0))[1] for cell in cells])
            table = np.multiply.outer(table, _shares_within(low, high, rng, names).reshape(shape))
            order += block
        rest = [name for name in default.names if name not in order]
        if rest:
            table = np.multiply.outer(table, default.marginal(*rest))
        table = table.transpose([[*order, *rest].index(name) for name in default.names])
        return TargetDistribution(default.attributes, table)  # type: ignore[arg-type]


def _shares_within(low: np.ndarray, high: np.ndarray, rng: np.random.Generator, names: str) -> np.ndarray:
    """Shares (K,) that sum to 1, uniform over those with low <= share <= high."""
    if low.sum() <= 1.0 <= high.sum():
        room = 1.0 - low.sum()
        for _ in range(TRIES):
            shares = low + room * rng.dirichlet(np.ones(len(low)))
            if (shares <= high + 1e-9).all():
                return shares
    raise FairAdapterError(
        f"target.range: expected limits of {names} that shares of 100% in all can keep to, found lowest "
        f"{low.tolist()} and highest {high.tolist()}"
    )
