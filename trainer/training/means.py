"""Loss and deviation from the target over the last iterations, for the progress bar and the log."""

from __future__ import annotations

from collections import deque

import numpy as np

from ...shared.attributes import TargetDistribution
from ...shared.metrics import bias, target_error
from .loop import Outcome

WINDOW = 20  # iterations whose mean is shown


def deviation(shares: np.ndarray, target: TargetDistribution, name: str) -> float:
    """How far shares (K,) of an attribute are off: the paper's bias where classes should be equal, else the
    mean distance to the target."""
    if target.is_equal(name):
        return float(bias(shares))
    return float(target_error(shares, target.marginal(name)))


class RunningMeans:
    """Means over the last iterations."""

    def __init__(self, window: int = WINDOW) -> None:
        self._values: dict[str, deque[float]] = {}
        self._window = window

    def add(self, outcome: Outcome) -> dict[str, float]:
        """Take an iteration in; {"loss": mean, attribute: mean deviation, ...}."""
        values = {"loss": outcome.losses["total"]}
        for name, shares in outcome.shares.items():
            if shares:
                values[name] = deviation(np.array(shares), outcome.target, name)
        for name, value in values.items():
            if np.isfinite(value):
                self._values.setdefault(name, deque(maxlen=self._window)).append(value)
        return self.means()

    def means(self) -> dict[str, float]:
        return {name: float(np.mean(values)) for name, values in self._values.items()}


def figures(means: dict[str, float]) -> str:
    """Running means in a few characters: "loss 1.234  gender .31  race .22"."""
    return "  ".join(f"{name} {value:.3f}" for name, value in means.items())
