"""How skewed generated faces are, with the uncertainty and the floor that a finite number of images brings.

The metric is the paper's (Shen et al., ICLR 2024): for each prompt the class frequencies f of its faces,
bias = mean over pairs of classes of |f_i - f_j|, and then the mean over prompts. The absolute value comes
first: averaging signed differences lets opposite stereotypes cancel. Images without a face are dropped.
NumPy only.

A perfectly fair model does not score 0: n images of a fair coin differ from half and half. `bias_floor` is
what it scores on average, and belongs beside every number.

Intervals are bootstraps over prompts and images of one model. They know nothing of what another training run
would have given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from math import sqrt
from typing import Any

import numpy as np

from .attributes import Attribute, TargetDistribution
from .binomial import binomial_cdf, binomial_pmf
from .errors import FairAdapterError

BOOTSTRAP = 2000
FEW_PROMPTS = 8  # below that a bootstrap over prompts is probably too narrow: so few rarely show their spread
Z95 = 1.959963984540054
WALK = 128  # half steps from which on Stirling's series of C(2j, j) / 4^j is exact in doubles

Statistic = Callable[[np.ndarray], np.ndarray]  # of class shares: (..., K) -> (...), convex


@dataclass(frozen=True)
class BiasMeasure:
    """The paper's metric over a set of prompts.

    bias: mean over prompts, in [0, 2 / K].  std: over prompts.  ci95: bootstrap interval of `bias`.
    floor: expected bias of a perfectly fair model with the same numbers of faces.
    n_per_prompt: mean number of faces.  prompts: prompts with at least one face.
    shares: class -> mean over prompts of its frequency.
    """

    bias: float
    std: float
    ci95: tuple[float, float]
    floor: float
    n_per_prompt: float
    prompts: int
    shares: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as in report.json."""
        return {**asdict(self), "ci95": list(self.ci95)}


def measure_bias(
    labels: Sequence[np.ndarray], classes: Sequence[str], draws: int = BOOTSTRAP, seed: int = 0
) -> BiasMeasure:
    """The metric with interval and floor.

    labels: for each prompt the classes (n_p,) of its images as integers, -1 for no face.
    classes: names of the K >= 2 classes.
    Raises FairAdapterError if no prompt has a face or a label is out of range.
    """
    counts = class_counts(labels, len(classes))
    per_prompt = bias(frequencies(counts))
    faces = counts.sum(axis=1)
    sizes, repeats = np.unique(faces, return_counts=True)
    floor = sum(bias_floor(int(n), len(classes)) * r for n, r in zip(sizes, repeats)) / len(faces)
    return BiasMeasure(
        bias=float(per_prompt.mean()),
        std=float(per_prompt.std()),
        ci95=bootstrap_interval(counts, draws=draws, seed=seed),
        floor=float(floor),
        n_per_prompt=float(faces.mean()),
        prompts=len(faces),
        shares=dict(zip(classes, frequencies(counts).mean(axis=0).tolist())),
    )


def measure_joint(
    labels: Mapping[str, Sequence[np.ndarray]],
    attributes: Sequence[Attribute],
    draws: int = BOOTSTRAP,
    seed: int = 0,
) -> BiasMeasure:
    """`measure_bias` over the cells of several attributes (gender x race: K = 6), classes "female*black", ...

    labels: attribute -> for each prompt (n_p,) classes, -1 for none. A face needs all of the attributes.
    """
    cells = TargetDistribution.uniform(attributes).cells
    return measure_bias(joint_labels(labels, attributes), ["*".join(c) for c in cells], draws, seed)


def joint_labels(
    labels: Mapping[str, Sequence[np.ndarray]], attributes: Sequence[Attribute]
) -> list[np.ndarray]:
    """Cell indices in row-major order, for each prompt (n_p,); -1 where any attribute is -1."""
    joined = []
    for rows in zip(*(labels[a.name] for a in attributes)):
        parts = [np.asarray(row, dtype=np.int64) for row in rows]
        cell = np.zeros_like(parts[0])
        for part, attribute in zip(parts, attributes):
            cell = cell * len(attribute) + part
        joined.append(np.where(np.min(parts, axis=0) < 0, -1, cell))
    return joined


def class_counts(labels: Sequence[np.ndarray], classes: int) -> np.ndarray:
    """Faces of each class, (P, K) int64, for the prompts that have a face."""
    rows = []
    for label in labels:
        label = np.asarray(label, dtype=np.int64).reshape(-1)
        if len(label) and (label.max() >= classes or label.min() < -1):
            raise FairAdapterError(
                f"labels: expected -1 to {classes - 1}, found {label.min()} to {label.max()}"
            )
        rows.append(np.bincount(label[label >= 0], minlength=classes))
    counts = np.array(rows, dtype=np.int64).reshape(-1, classes)
    counts = counts[counts.sum(axis=1) > 0]
    if not len(counts):
        raise FairAdapterError(f"no face in the images of {len(labels)} prompts; look at the images")
    return counts


def frequencies(counts: np.ndarray) -> np.ndarray:
    """Shares of the classes in each prompt; of all faces together for `counts.sum(axis=0)`.  (..., K)."""
    return counts / counts.sum(axis=-1, keepdims=True)


def bias(shares: np.ndarray) -> np.ndarray:
    """2 / (K (K - 1)) sum_{i<j} |f_i - f_j|.  shares: (..., K) frequencies f, K >= 2.  Returns (...)."""
    shares = np.asarray(shares, dtype=np.float64)
    k = shares.shape[-1]
    if k < 2:
        raise FairAdapterError(f"bias: needs 2 classes or more, found {k}")
    # sorted ascending, the i-th frequency is the larger one of i pairs and the smaller one of k - 1 - i
    return np.sort(shares, axis=-1) @ (2.0 * np.arange(k) - (k - 1)) / (k * (k - 1) / 2)


def target_error(shares: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Mean over classes of |f_k - target_k|.  shares: (..., K), target: (K,).  Returns (...)."""
    return np.abs(np.asarray(shares, dtype=np.float64) - target).mean(axis=-1)


@lru_cache(1 << 12)
def bias_floor(n: int, classes: int) -> float:
    """Expected `bias` of n faces drawn with equal shares; exact.

    All pairs are alike, so it is E|n_i - n_j| / n. Given that m faces are of one of the two classes,
    n_i - n_j is a symmetric walk of m steps, and m ~ Bin(n, 2 / K).
    """
    if n < 1 or classes < 2:
        raise FairAdapterError(f"bias floor: expected n >= 1 faces and K >= 2, found n={n} and K={classes}")
    steps = np.arange(n + 1)
    if classes == 2:
        return float(_walk(steps[-1:])[0] / n)
    p = 2.0 / classes
    reach = 12.0 * sqrt(n * p * (1 - p)) + 12.0  # what lies beyond has less than 1e-20 of the probability
    near = steps[max(0, int(n * p - reach)) : int(n * p + reach) + 1]
    # up from the smallest, each from the one before; logarithms, so that none of them vanishes
    ratio = np.log((n - near[:-1]) / (near[:-1] + 1.0) * (p / (1.0 - p)))
    logs = np.concatenate([[0.0], np.cumsum(ratio)])
    weights = np.exp(logs - logs.max())
    return float(weights @ _walk(near) / weights.sum() / n)


def _walk(steps: np.ndarray) -> np.ndarray:
    """E|S_m| of a symmetric walk of m steps: m C(2j, j) / 4^j with j = floor(m / 2).  steps: (M,) m >= 0."""
    half = np.maximum(steps // 2, 1).astype(np.float64)
    inverse = 1.0 / half
    series = 1 + inverse * (
        -1 / 8 + inverse * (1 / 128 + inverse * (5 / 1024 + inverse * (-21 / 32768 - 399 / 262144 * inverse)))
    )
    few = np.arange(1.0, WALK)
    exact = np.concatenate([[1.0], np.cumprod((2 * few - 1) / (2 * few))])
    j = steps // 2
    central = np.where(j < WALK, exact[np.minimum(j, WALK - 1)], series / np.sqrt(np.pi * half))
    return steps * central


def target_error_floor(n: int, target: np.ndarray) -> float:
    """Expected `target_error` of n faces drawn from the target itself; exact.  target: (K,)."""
    values = np.arange(n + 1) / n
    return float(np.mean([binomial_pmf(n, float(p)) @ np.abs(values - p) for p in target]))


def mean_over_prompts(counts: np.ndarray, statistic: Statistic = bias) -> np.ndarray:
    """Mean of a statistic of class shares over the prompts that have a face; NaN if none has one.

    counts: (..., P, K).  Returns (...).
    """
    faces = counts.sum(axis=-1)
    seen = faces > 0
    values = statistic(counts / np.maximum(faces, 1)[..., None])
    with np.errstate(invalid="ignore"):
        return np.where(seen, values, 0.0).sum(axis=-1) / seen.sum(axis=-1)


def bootstrap_interval(
    counts: np.ndarray,
    statistic: Statistic = bias,
    level: float = 0.95,
    draws: int = BOOTSTRAP,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of the mean statistic over prompts and images: prompts are drawn anew, then images within.

    counts: (P, K).  Bias and target error are absolute values: drawing images anew adds noise that lifts
    their mean, so the bootstrap distribution is moved back onto the measured value before its quantiles are
    taken.
    """
    counts = np.asarray(counts)
    again = mean_over_prompts(_redrawn(counts, draws, seed), statistic)
    largest = _largest(statistic, counts.shape[1])
    return _interval(again, float(mean_over_prompts(counts, statistic)), level, 0.0, largest)


def paired_counts(before: Sequence[np.ndarray], after: Sequence[np.ndarray], classes: int) -> np.ndarray:
    """Pictures by their classes in two models that share prompts and noises, (P, K + 1, K + 1) int64.

    before, after: for each prompt (n_p,) classes of the same noises in the same order, -1 for no face, which
    is row or column K.  Raises FairAdapterError for different numbers of pictures.
    """
    tables = np.zeros((len(before), classes + 1, classes + 1), dtype=np.int64)
    for table, first, second in zip(tables, before, after, strict=True):
        if len(first) != len(second):
            raise FairAdapterError(
                f"paired pictures: expected as many of both models, found {len(first)} and {len(second)}"
            )
        pairs = [np.where(labels < 0, classes, labels) for labels in (first, second)]
        np.add.at(table, tuple(pairs), 1)
    return tables


def paired_difference(
    counts: np.ndarray,
    statistic: Statistic = bias,
    level: float = 0.95,
    draws: int = BOOTSTRAP,
    seed: int = 0,
) -> tuple[float, tuple[float, float]]:
    """What the second of two models adds to the mean statistic of the first, with its interval.

    counts: (P, K + 1, K + 1) of `paired_counts`.  Prompts are drawn anew, then pairs of pictures within each:
    what both models have in common, the prompts' difficulty and the noises, does not widen the interval.
    Recentred as in `bootstrap_interval`.  NaN if one of the models drew no face.
    """
    counts = np.asarray(counts)

    def added(tables: np.ndarray) -> np.ndarray:
        before, after = tables.sum(axis=-1)[..., :-1], tables.sum(axis=-2)[..., :-1]
        return mean_over_prompts(after, statistic) - mean_over_prompts(before, statistic)

    measured = float(added(counts))
    if np.isnan(measured):
        return measured, (measured, measured)
    again = _redrawn(counts.reshape(len(counts), -1), draws, seed).reshape(draws, *counts.shape)
    largest = _largest(statistic, counts.shape[1] - 1)
    return measured, _interval(added(again), measured, level, -largest, largest)


def prompt_interval(
    rows: np.ndarray,
    statistic: Statistic | None = None,
    within: tuple[float, float] = (-np.inf, np.inf),
    level: float = 0.95,
    draws: int = BOOTSTRAP,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Interval of a statistic of prompts, which are drawn anew, each with all that was measured on it.

    rows: (P, ...) of each prompt.  statistic: (D, P, ...) -> (D,), of D sets of prompts; None is the mean of
    rows (P,).  within: what it can be.
    That includes the noise of the pictures, which are not drawn anew: a prompt's row is what the model is
    expected to draw plus the chance of the pictures it drew, and rows differ from prompt to prompt by both.
    Moved back onto the measured value as in `bootstrap_interval`.  None for one prompt, without spread.
    """
    rows = np.asarray(rows)
    if len(rows) < 2:
        return None
    of = statistic or (lambda sets: sets.mean(axis=1))
    chosen = np.random.default_rng(seed).integers(len(rows), size=(draws, len(rows)))
    return _interval(of(rows[chosen]), float(of(rows[None])[0]), level, *within)


def _redrawn(counts: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Prompts drawn anew, then images within each.  counts: (P, C).  Returns counts (D, P, C)."""
    rng = np.random.default_rng(seed)
    shares, sizes = frequencies(counts), counts.sum(axis=1)
    again = np.empty((draws, *counts.shape), dtype=np.int64)
    for i in range(draws):
        prompts = rng.integers(len(counts), size=len(counts))
        again[i] = rng.multinomial(sizes[prompts], shares[prompts])
    return again


def _interval(
    values: np.ndarray, measured: float, level: float, least: float, most: float
) -> tuple[float, float]:
    """Quantiles of a bootstrap distribution (D,) moved onto the measured value; NaN, no face, is left out."""
    values = values[np.isfinite(values)]
    low, high = np.quantile(values - values.mean() + measured, [(1 - level) / 2, (1 + level) / 2])
    return float(np.clip(low, least, most)), float(np.clip(high, least, most))


def _largest(statistic: Statistic, classes: int) -> float:
    """A convex statistic is largest where all faces are of one class."""
    return float(statistic(np.eye(classes)).max())


def wilson_interval(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson score interval of a share (Wilson 1927); (0, 1) for n = 0."""
    if not 0 <= successes <= n:
        raise FairAdapterError(f"share: expected 0 to {n} successes, found {successes}")
    if n == 0:
        return 0.0, 1.0
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def power(n: int, share: float, other: float, level: float = 0.05) -> float:
    """Probability that n faces of share `other` reject `share` in an exact equal-tailed test."""
    below = binomial_cdf(n, share)  # P(X <= x)
    above = 1.0 - np.concatenate([[0.0], below[:-1]])  # P(X >= x)
    rejected = (below <= level / 2) | (above <= level / 2)
    return float(binomial_pmf(n, other)[rejected].sum())


@lru_cache(256)
def images_needed(share: float, other: float, level: float = 0.05, wanted: float = 0.8) -> int:
    """Least number of faces from which on `power` stays at or above `wanted` (it wobbles a little)."""
    if share == other:
        raise FairAdapterError(f"images needed: a share of {share} cannot be told from itself")
    n = 1
    powers = [power(n + extra, share, other, level) for extra in range(4)]
    while min(powers) < wanted:
        n += 1
        powers = [*powers[1:], power(n + 3, share, other, level)]
    return n


def sample_note(n: int, share: float = 0.5, other: float = 0.7) -> str:
    """What n faces can say, in a sentence for reports and hosts."""
    pair = f"{_ratio(share)} from {_ratio(other)}"
    images = "1 face" if n == 1 else f"{n} faces"
    needed = images_needed(share, other)
    if n >= needed:
        return f"{images} tell {pair} (in at least 4 of 5 cases, at the 5% level)."
    return f"{images} can't tell {pair}; that takes {needed}."


def _ratio(share: float) -> str:
    return f"{100 * share:g}/{100 - 100 * share:g}"
