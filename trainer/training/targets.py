"""The target of every iteration: always the same, drawn anew for a target-conditioned adapter, or by a table
that of its prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...shared.adapter_target import TargetSpace
from ...shared.attributes import TargetDistribution
from ...shared.errors import FairAdapterError
from ...shared.table_files import read_table
from ...shared.target_table import TargetTable, in_order
from ..configuration.config import TargetConfig
from ..running.progress import Say

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


def own_targets(
    path: str | None, space: TargetSpace, prompts: Sequence[str], say: Say = lambda text: None
) -> TargetTable | None:
    """The table of a file, None without one.

    prompts: of training.  say: is told which of them have no row, and what of a row is outside the range of
    training.  Raises FairAdapterError for a file that is not as `target_table` says, for rows of attributes
    that are not in target.text, and where no prompt has a row.
    """
    if path is None:
        return None
    table = read_table(path, space.attributes)
    for row in table.rows if space.dimension else ():
        for warning in space.resolve(row.target).warnings:
            say(f"{path}, row {row.number}: {warning}")
    without = [prompt for prompt in dict.fromkeys(prompts) if table.match(prompt) is None]
    if without and len(without) == len(set(prompts)):
        raise FairAdapterError(
            f"{path}: expected rows for prompts of training, found none, not for {without[0]!r} either; "
            "write patterns that stand in prompts.train"
        )
    if without:
        say(
            f"{path}: {len(without)} of {len(set(prompts))} prompts have no row, such as {without[0]!r}, and "
            "take target.text"
        )
    return table


class TargetDraw:
    """The target of each iteration, a function of the seed, the iteration and its prompt alone.

    A prompt that has a row in `table` gets that row's. For others, shares are drawn evenly over all within
    the limits of `space.trained`; attributes without limits keep their default shares. Every so often
    (`default_share`) it is the default target.
    Raises FairAdapterError if no shares keep to the limits.
    """

    def __init__(
        self,
        space: TargetSpace,
        default_share: float = 0.0,
        seed: int = 0,
        table: TargetTable | None = None,
    ) -> None:
        self.space, self.default_share, self.seed, self.table = space, default_share, seed, table
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

    def of(self, iteration: int, prompt: str) -> TargetDistribution:
        """The target of an iteration that draws this prompt."""
        return self.own(prompt) or self[iteration]

    def own(self, prompt: str) -> TargetDistribution | None:
        """What the table says of a prompt, over all attributes in their order; None where it says nothing."""
        row = None if self.table is None else self.table.match(prompt)
        return None if row is None else in_order(row.target, self.space.default)

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
