"""The arithmetic of target sliders, without a user interface."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .adapter import FairnessAdapter
from .adapter_layout import AdapterOutline
from .attributes import Attribute, TargetDistribution
from .errors import FairAdapterError
from .evaluation import ORIGINAL, figures

DECIMALS = 1  # of a percentage on a slider


def linked(shares: Sequence[float], index: int, value: float, decimals: int = DECIMALS) -> list[float]:
    """Percentages after one slider was moved: the others keep their proportions, the sum is 100.

    shares: percentages of the K classes before, not negative; if the others were all zero, they share alike.
    value: what slider `index` is set to, brought into [0, 100]; a single class has no other choice than 100.
    decimals: the sliders' resolution; the sum is exact in units of it.
    Raises FairAdapterError for shares or a value that are no finite numbers, or an index out of range.
    """
    given = np.asarray(shares, dtype=np.float64)
    if given.ndim != 1 or not 0 <= index < len(given) or not np.isfinite([*given, value]).all():
        raise FairAdapterError(
            f"target sliders: expected finite shares and one of their positions, found {list(shares)}, "
            f"position {index} and value {value}"
        )
    whole = 100 * 10**decimals
    moved = whole if len(given) == 1 else round(min(max(float(value), 0.0), 100.0) * 10**decimals)
    others = np.delete(given.clip(min=0.0), index)
    if not others.sum():
        others = np.ones_like(others)
    units = np.insert(_apportion(others, whole - moved), index, moved)
    return [int(unit) / 10**decimals for unit in units]


def _apportion(weights: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers in proportion to the weights, by largest remainders; they sum to `total`."""
    if not len(weights):
        return np.zeros(0, dtype=np.int64)
    exact = weights / weights.sum() * total
    units = np.floor(exact + 1e-9).astype(np.int64)
    order = np.argsort(units - exact, kind="stable")  # largest remainder first, then by position
    units[order[: total - int(units.sum())]] += 1
    return units


def presets(
    attributes: Sequence[Attribute], adapter: FairnessAdapter | AdapterOutline | None = None
) -> dict[str, TargetDistribution]:
    """Named targets over the attributes, for menus.

    "equal": every class of every attribute the same.
    "75/25": attributes of two classes 75 to 25 in class order, the others equal (the paper's age target).
    "as trained": the adapter's default target.
    "as the base model does": what the adapter's evaluation measured without it.
    The last two only where the adapter knows the attributes, or its file holds the figures.
    """
    equal = {a.name: "equal" for a in attributes}
    found = {"equal": TargetDistribution.from_dict(equal, attributes)}
    uneven = {a.name: [75, 25] for a in attributes if len(a) == 2}
    if uneven:
        found["75/25"] = TargetDistribution.from_dict({**equal, **uneven}, attributes)
    if adapter is None:
        return found
    default = adapter.targets.default
    own = [a for a in attributes if a in default.attributes]
    if own:
        found["as trained"] = TargetDistribution(tuple(own), default.marginal(*(a.name for a in own)))  # type: ignore[arg-type]
    measured = base_shares(own, adapter)
    if measured:
        found["as the base model does"] = TargetDistribution.from_dict(measured, own)
    return found


def base_shares(
    attributes: Sequence[Attribute], adapter: FairnessAdapter | AdapterOutline
) -> dict[str, dict[str, float]]:
    """attribute -> class -> share that the adapter's evaluation found in the base model's pictures.

    Attributes whose figures are missing or do not read as shares are left out: a file holds what it likes.
    """
    original = figures(adapter.info.evaluation, ORIGINAL)
    found: dict[str, dict[str, float]] = {}
    for attribute in attributes:
        shares = original[attribute.name].shares if attribute.name in original else {}
        if set(shares) != set(attribute.classes):
            continue
        try:
            target = TargetDistribution.from_dict({attribute.name: shares}, [attribute])
        except FairAdapterError:
            continue
        found[attribute.name] = dict(zip(attribute.classes, target.shares))
    return found
