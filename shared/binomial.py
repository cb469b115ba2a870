"""Exact probabilities of class counts. NumPy only, so that host-facing code can use them."""

from __future__ import annotations

from math import lgamma

import numpy as np


def multinomial_pmf(counts: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Probability of each row of class counts.

    counts: (C, K) integers, every row sums to the same n.  probabilities: (K,), sum 1; zeros are allowed.
    Returns (C,) float64.
    """
    counts = np.asarray(counts)
    probabilities = np.asarray(probabilities, dtype=np.float64)
    n = int(counts[0].sum()) if len(counts) else 0
    log_factorial = np.array([lgamma(i + 1.0) for i in range(n + 1)])
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(counts > 0, counts * np.log(probabilities), 0.0)  # 0 * log 0 = 0
    return np.exp(log_factorial[n] - log_factorial[counts].sum(axis=1) + terms.sum(axis=1))


def binomial_pmf(n: int, p: float) -> np.ndarray:
    """P(X = 0), ..., P(X = n) of a binomial count, float64 of shape (n + 1,)."""
    successes = np.arange(n + 1)
    return multinomial_pmf(np.stack([successes, n - successes], axis=1), np.array([p, 1.0 - p]))


def binomial_cdf(n: int, p: float) -> np.ndarray:
    """P(X <= 0), ..., P(X <= n), float64 of shape (n + 1,)."""
    return np.minimum(np.cumsum(binomial_pmf(n, p)), 1.0)
