"""Dynamic targets by optimal transport: the first half of the distributional alignment loss.

Shen et al., "Finetuning Text-to-Image Diffusion Models for Fairness" (ICLR 2024), distributional alignment
loss. N generated faces have class probabilities p_i. Draw N one-hot classes u_1..u_N from the target
distribution and assign them to the faces at the least total cost; the expected assignment

    q_i = E_u[ u_{sigma*(i)} ],    sigma* = argmin_sigma sum_i | p_i - u_{sigma(i)} |_2

says which class face i should get (argmax) and how sure that is (max). Over several attributes the cost is
sqrt(sum_a |p_i^a - u^a|^2), and class and confidence are read from each attribute's marginal of q_i.

- Two classes of one attribute: closed form, a binomial tail of the face's rank; right for every ratio.
- Otherwise the expectation of `ot.emd` over the multinomial class counts: over all of them where they are
  no more than `draws`, else over that many random ones.
- Images without a face take no part: they have no target and the others share the distribution.
- Ties (a saturated classifier gives many equal probabilities) go to the earlier class for the earlier image:
  leaving them undecided would give a collapsed model no target, hence no gradient.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
import torch
from torch import Tensor

from .attributes import TargetDistribution
from .binomial import binomial_cdf, multinomial_pmf
from .errors import FairAdapterError

CONFIDENCE = 0.8  # C of the paper
DRAWS = 1000  # 100 draws, as released, still flip a quarter of the race labels of 32 images
NONE = -1  # label of an image that has no target
_TIE = 1e-9  # cost that decides between equal faces, far below any difference a classifier means


@dataclass(frozen=True)
class DynamicTargets:
    """What the alignment loss asks of each image.

    expected: (N, K_1, ..., K_A), q_i; zero for images without a face.
    labels: attribute -> (N,) int64, the target class, -1 where there is no face or it is not certain.
    confidence: attribute -> (N,) in [0, 1], the largest marginal probability of q_i, 0 without a face.
    """

    expected: Tensor
    labels: dict[str, Tensor]
    confidence: dict[str, Tensor]


def dynamic_targets(
    probabilities: Mapping[str, Tensor],
    has_face: Tensor,
    target: TargetDistribution,
    confidence: float = CONFIDENCE,
    draws: int = DRAWS,
    seed: int = 0,
    apart: Sequence[str] = (),
) -> DynamicTargets:
    """Target classes of N images, one label per attribute.

    probabilities: attribute -> (N, K_a) class probabilities (softmax of the classifier's logits); rows of
        images without a face may hold anything. Attributes that the target does not name are ignored.
    has_face: (N,) bool.
    confidence: C in [0, 1]; a label whose marginal probability is below C becomes -1.
    apart: attributes that are transported on their own, see `expected_targets`.
    Raises FairAdapterError for missing attributes, wrong shapes and rows that are no distribution.
    """
    faces = has_face.bool()
    first = _table(probabilities, target.names[0])
    if faces.shape != (len(first),):
        raise FairAdapterError(f"has_face: expected shape ({len(first)},), found {tuple(faces.shape)}")
    rows = {name: _table(probabilities, name)[faces] for name in target.names}
    expected = first.new_zeros(
        (len(first), *target.shape), dtype=torch.promote_types(first.dtype, torch.float32)
    )
    expected[faces] = expected_targets(rows, target, draws, seed, apart).to(expected.dtype)
    labels: dict[str, Tensor] = {}
    certainty: dict[str, Tensor] = {}
    for axis, name in enumerate(target.names, start=1):
        others = tuple(a for a in range(1, expected.ndim) if a != axis)
        marginal = expected.sum(dim=others) if others else expected
        certainty[name], label = marginal.max(dim=1)
        # q is a sum of floats: a confidence of exactly C must not fail by rounding
        labels[name] = torch.where(faces & (certainty[name] >= confidence - 1e-6), label, NONE)
    return DynamicTargets(expected, labels, certainty)


def slack(n: int, share: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The shares of a class among n faces between which nothing pulls: (low, high).

    `share` is what the target gives it, of n faces drawn from the target K ~ Bin(n, share) are of the class.
    The r faces that are most of the class are told to be so with confidence P(K >= r), the others to be of
    another with P(K <= r). Faces of neither have no target; where they end up is left to the other losses. Of
    24 faces at C = 0.8 that is 25 to 42% for a third; it narrows with n, and to nothing at C = 0.5.
    """
    confidence = max(confidence, 0.5)  # the surer of two classes always has that
    below = binomial_cdf(n, share)  # P(K <= r)
    above = 1 - np.concatenate([[0.0], below[:-1]])  # P(K >= r)
    low, high = (
        (above >= confidence - 1e-6).nonzero()[0].max(),
        (below >= confidence - 1e-6).nonzero()[0].min(),
    )
    return float(min(low, high)) / n, float(max(low, high)) / n


def expected_targets(
    probabilities: Mapping[str, Tensor],
    target: TargetDistribution,
    draws: int = DRAWS,
    seed: int = 0,
    apart: Sequence[str] = (),
) -> Tensor:
    """q = E[u_sigma*] for N faces, (N, K_1, ..., K_A) float64 on the device of the probabilities.

    probabilities: attribute -> (N, K_a), rows sum to 1. Deterministic for a seed; N = 0 is allowed.
    apart: attributes that are transported on their own; q is the product. Transported together with others, a
        rare class of an attribute that the classifier is sure of goes to whichever face suits the others, now
        this one, now that one: no face is told to take it with any confidence, and its share does not grow.
    Raises FairAdapterError for an attribute apart that the target does not have or ties to others.
    """
    blocks = _blocks(target, apart)
    rows = {a.name: _distributions(probabilities, a.name, len(a)) for a in target.attributes}
    sizes = [len(p) for p in rows.values()]
    if len(set(sizes)) != 1:
        raise FairAdapterError(f"probabilities: different numbers of images {sizes}")
    operands: list[object] = []
    for block in blocks:
        q = _transported([rows[name] for name in block.names], block, draws, seed)
        operands += [q, [0, *(1 + target.names.index(name) for name in block.names)]]
    joint = np.einsum(*operands, list(range(1 + len(target.names))))  # type: ignore[arg-type]
    return torch.from_numpy(joint).to(_table(probabilities, target.names[0]).device)


def _blocks(target: TargetDistribution, apart: Sequence[str]) -> list[TargetDistribution]:
    """The target of the attributes together and of each one apart."""
    together = [a for a in target.attributes if a.name not in apart]
    groups = [together] * bool(together) + [[target.attribute(name)] for name in dict.fromkeys(apart)]
    blocks = [
        TargetDistribution(tuple(g), tuple(target.marginal(*(a.name for a in g)).reshape(-1))) for g in groups
    ]
    operands: list[object] = []
    for block in blocks:
        operands += [block.probabilities, [target.names.index(name) for name in block.names]]
    product = np.einsum(*operands, list(range(len(target.names))))  # type: ignore[arg-type]
    if np.abs(product - target.probabilities).max() > 1e-6:
        raise FairAdapterError(
            f"target {target.to_text()}: {', '.join(apart)} is tied to other attributes; transport them "
            "together"
        )
    return blocks


def _transported(rows: list[np.ndarray], target: TargetDistribution, draws: int, seed: int) -> np.ndarray:
    """q of attributes together, (N, K_1, ..., K_A)."""
    if target.shape == (2,):
        q = binary_targets(rows[0], float(target.probabilities[0]))
    else:
        q = transport_targets(transport_cost(rows), target.probabilities.reshape(-1), draws, seed)
    return q.reshape(-1, *target.shape)


def binary_targets(probabilities: np.ndarray, first_share: float) -> np.ndarray:
    """Closed form for one attribute of two classes.

    Optimal transport gives the n_0 faces with the smallest P(class 1) the class 0, and n_0 ~ Bin(N, pi_0):
    the face of rank r (0 = smallest) gets class 1 with probability P(n_0 <= r).

    probabilities: (N, 2).  first_share: pi_0, the target share of class 0.  Returns q (N, 2).
    """
    n = len(probabilities)
    order = np.argsort(probabilities[:, 1], kind="stable")
    second = np.empty(n)
    second[order] = binomial_cdf(n, first_share)[:n]
    return np.stack([1.0 - second, second], axis=1)


def transport_targets(cost: np.ndarray, shares: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """E of the optimal transport plan over class counts b ~ Multinomial(N, shares).

    cost: (N, K) of giving class k to face i.  shares: (K,).  Returns q (N, K), rows sum to 1.
    """
    n, total = cost.shape
    q = np.zeros((n, total))
    possible = np.flatnonzero(shares > 0)  # classes without a share need no place in the transport problem
    if n == 0 or len(possible) == 1:
        q[:, possible] = 1.0
        return q
    shares = shares[possible] / shares[possible].sum()
    counts, weights = _class_counts(n, shares, draws, seed)
    rank = np.arange(n)[:, None] * np.arange(len(possible))[None, :]
    cost = cost[:, possible] - _TIE * rank / (n * len(possible))
    for row, weight in zip(counts, weights):
        q[:, possible] += weight * _plan(cost, row)
    return q / q.sum(axis=1, keepdims=True)


def transport_cost(rows: list[np.ndarray]) -> np.ndarray:
    """sqrt(sum_a |p_i^a - onehot(c_a)|^2) for every face and cell, (N, K_1 * ... * K_A), row-major cells."""
    squared = np.zeros((len(rows[0]),))
    for p in rows:
        distance = ((p[:, :, None] - np.eye(p.shape[1])[None]) ** 2).sum(axis=1)  # (N, K_a)
        squared = squared[..., None] + distance.reshape(len(p), *[1] * (squared.ndim - 1), p.shape[1])
    return np.sqrt(squared).reshape(len(rows[0]), int(np.prod(squared.shape[1:])))


def _plan(cost: np.ndarray, counts: np.ndarray) -> np.ndarray:
    used = counts > 0  # what the solver would do about the others, and about duals, takes as long as it does
    plan = np.zeros(cost.shape)
    if np.count_nonzero(used) == 1:
        plan[:, used] = 1.0
        return plan
    from ot import emd  # lazy: only training solves transport problems

    ones = np.ones(len(cost))
    plan[:, used] = emd(
        ones, counts[used].astype(np.float64), cost[:, used], center_dual=False, check_marginals=False
    )
    return plan


def _class_counts(n: int, shares: np.ndarray, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Class counts (C, K) and their probabilities (C,): all of them if they are at most `draws`."""
    if draws < 1:
        raise FairAdapterError(f"draws: expected 1 or more, found {draws}")
    k = len(shares)
    if comb(n + k - 1, k - 1) <= draws:
        bars = np.array(list(itertools.combinations(range(n + k - 1), k - 1)), dtype=np.int64)
        edges = np.pad(bars.reshape(-1, k - 1), ((0, 0), (1, 1)), constant_values=((0, 0), (-1, n + k - 1)))
        counts = np.diff(edges, axis=1) - 1
        return counts, multinomial_pmf(counts, shares)
    sample = np.random.default_rng(seed).multinomial(n, shares, size=draws)
    counts, repeats = np.unique(sample, axis=0, return_counts=True)
    return counts, repeats / draws


def _table(probabilities: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in probabilities:
        known = ", ".join(probabilities) or "nothing"
        raise FairAdapterError(
            f"target names {name!r}, but the classifier gives {known}; choose another classifier"
        )
    return probabilities[name]


def _distributions(probabilities: Mapping[str, Tensor], name: str, classes: int) -> np.ndarray:
    table = _table(probabilities, name).detach().double().cpu().numpy()
    if table.ndim != 2 or table.shape[1] != classes:
        raise FairAdapterError(f"probabilities of {name}: expected shape (N, {classes}), found {table.shape}")
    wrong = (
        ~np.isfinite(table).all(axis=1) | (table < -1e-3).any(axis=1) | (np.abs(table.sum(axis=1) - 1) > 1e-2)
    )
    if wrong.any():
        rows = np.flatnonzero(wrong)[:8].tolist()
        raise FairAdapterError(
            f"probabilities of {name}: not distributions in rows {rows} (NaN, negative or sum not 1)"
        )
    return table
