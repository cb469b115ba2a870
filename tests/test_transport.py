"""Dynamic targets: closed form, Monte Carlo, POT and brute force agree; the alignment loss."""

import itertools

import numpy as np
import ot
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fair_adapter.shared.alignment_loss import alignment_loss
from fair_adapter.shared.attributes import GENDER, RACE, Attribute, TargetDistribution
from fair_adapter.shared.binomial import binomial_cdf, binomial_pmf, multinomial_pmf
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.transport import (
    binary_targets,
    dynamic_targets,
    expected_targets,
    slack,
    transport_cost,
    transport_targets,
)

parse = TargetDistribution.parse
DRAWS = 20_000


def faces(n, k, seed=0, sharpness=0.5):
    return np.random.default_rng(seed).dirichlet([sharpness] * k, n)


def test_binomial_matches_scipy():
    for n, p in [(0, 0.3), (1, 0.5), (24, 0.25), (160, 0.5), (2000, 0.7)]:
        np.testing.assert_allclose(binomial_pmf(n, p), stats.binom.pmf(np.arange(n + 1), n, p), atol=1e-12)
        np.testing.assert_allclose(binomial_cdf(n, p), stats.binom.cdf(np.arange(n + 1), n, p), atol=1e-11)
    assert binomial_pmf(3, 0.0).tolist() == [1, 0, 0, 0] and binomial_pmf(3, 1.0).tolist() == [0, 0, 0, 1]
    counts, shares = np.array([[2, 1, 3], [6, 0, 0]]), np.array([0.2, 0.3, 0.5])
    np.testing.assert_allclose(multinomial_pmf(counts, shares), stats.multinomial.pmf(counts, 6, shares))


@pytest.mark.parametrize("first_share", [0.5, 0.75])
@pytest.mark.parametrize("n", [16, 24, 32])
def test_closed_form_monte_carlo_and_pot_agree(n, first_share):
    p = faces(n, 2, seed=n)
    closed = binary_targets(p, first_share)
    # Monte Carlo of the definition: sort the faces, give the lowest n_0 ~ Bin(n, pi_0) of them class 0
    n_0 = np.random.default_rng(1).binomial(n, first_share, size=DRAWS)
    rank = p[:, 1].argsort().argsort()
    monte_carlo = (n_0[None, :] <= rank[:, None]).mean(axis=1)
    # POT over random class counts, written out here
    cost = ot.dist(p, np.eye(2), metric="euclidean")
    pot = np.zeros((n, 2))
    for counts in np.random.default_rng(2).multinomial(n, [first_share, 1 - first_share], size=DRAWS // 10):
        pot += ot.emd(np.ones(n), counts.astype(float), cost) / (DRAWS // 10)
    exact = transport_targets(cost, np.array([first_share, 1 - first_share]), draws=DRAWS)
    assert np.abs(closed[:, 1] - monte_carlo).max() < 0.01
    assert np.abs(closed - exact).max() < 1e-12  # all class counts enumerated, each solved by POT
    assert np.abs(closed - pot).max() < 0.04  # 2,000 draws: 4 standard errors


@pytest.mark.parametrize("first_share", [0.5, 0.75])
def test_pot_with_20000_draws_is_within_a_hundredth_of_the_closed_form(first_share):
    p, shares = faces(24, 2, seed=3), np.array([first_share, 1 - first_share])
    cost, q = transport_cost([p]), np.zeros((24, 2))
    sample = np.random.default_rng(4).multinomial(24, shares, size=DRAWS)
    for counts, repeats in zip(*np.unique(sample, axis=0, return_counts=True)):
        q += repeats / DRAWS * ot.emd(np.ones(24), counts.astype(float), cost)
    assert np.abs(q - binary_targets(p, first_share)).max() < 0.01


def test_drawn_counts_approach_all_counts():
    p = faces(12, 3, seed=5)
    exact = transport_targets(transport_cost([p]), np.array([0.2, 0.3, 0.5]), draws=100)  # 91 class counts
    drawn = [
        transport_targets(transport_cost([p]), np.array([0.2, 0.3, 0.5]), draws=90, seed=s) for s in range(40)
    ]
    assert np.abs(np.mean(drawn, axis=0) - exact).max() < 0.05
    assert np.abs(drawn[0] - exact).max() > 1e-6


def test_optimal_against_all_permutations():
    """One class vector u per slot, as the paper writes it: least cost over every permutation of 5 slots."""
    rows = [faces(5, 2, seed=6), faces(5, 3, seed=7)]
    cells = list(itertools.product(range(2), range(3)))
    shares = np.array([0.1, 0.2, 0.2, 0.05, 0.25, 0.2])
    points = np.array([np.concatenate([np.eye(2)[a], np.eye(3)[b]]) for a, b in cells])
    cost = np.linalg.norm(np.concatenate(rows, axis=1)[:, None] - points[None], axis=2)
    np.testing.assert_allclose(transport_cost(rows), cost, atol=1e-12)
    q = np.zeros((5, 6))
    for drawn in itertools.combinations_with_replacement(range(6), 5):
        counts = np.bincount(drawn, minlength=6)
        best = min(set(itertools.permutations(drawn)), key=lambda u: cost[range(5), u].sum())
        q[range(5), best] += multinomial_pmf(counts[None], shares)[0]
    np.testing.assert_allclose(transport_targets(cost, shares, draws=1000), q, atol=1e-9)


def test_the_official_closed_form_is_wrong_off_one_half_and_this_one_is_not():
    p = np.stack([np.linspace(0.99, 0.01, 16), np.linspace(0.01, 0.99, 16)], axis=1)
    q = binary_targets(p, 0.75)
    assert q.argmax(axis=1).sum() == 4  # a quarter male, where the release asks for three quarters
    assert abs(q[:, 1].sum() - 4) < 1e-9  # the expected number of males is exactly N pi


@given(st.integers(1, 40), st.floats(0, 1), st.integers(0, 99))
def test_expected_shares_are_the_target(n, share, seed):
    q = binary_targets(faces(n, 2, seed), share)
    np.testing.assert_allclose(q.sum(axis=0), [n * share, n * (1 - share)], atol=1e-9)
    assert (np.diff(q[faces(n, 2, seed)[:, 1].argsort(), 1]) >= -1e-12).all()


def test_joint_targets_have_the_joint_marginals():
    target = parse("gender*race=female*black:30,female*asian:20,male*wmelh:50")
    rows = {"gender": torch.tensor(faces(10, 2)), "race": torch.tensor(faces(10, 3, seed=1))}
    q = expected_targets(rows, target, draws=4000)
    assert q.shape == (10, 2, 3)
    np.testing.assert_allclose(q.sum(dim=0), 10 * target.probabilities, atol=0.1)
    np.testing.assert_allclose(q.sum(dim=(1, 2)), 1, atol=1e-12)
    assert q[:, 1, 1:].abs().max() == 0  # nobody is given a combination that the target leaves out


def test_draws_are_deterministic_for_a_seed():
    rows = {"gender": torch.tensor(faces(30, 2)), "race": torch.tensor(faces(30, 3, seed=1))}
    target = TargetDistribution.uniform([GENDER, RACE])
    first, again, other = (expected_targets(rows, target, draws=500, seed=s) for s in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert (first - other).abs().max() < 0.15


def test_kept_images_at_the_papers_confidence():
    """Section 4.1's C = 0.8 keeps 12 of 16, 20 of 24 and 28 of 32 faces at 50/50."""
    for n, kept in [(16, 12), (24, 20), (32, 28)]:
        found = dynamic_targets(
            {"gender": torch.tensor(faces(n, 2))}, torch.ones(n).bool(), parse("gender=50/50")
        )
        assert int((found.labels["gender"] >= 0).sum()) == kept


@pytest.mark.parametrize(("n", "share"), [(24, 0.5), (24, 0.25), (40, 0.25), (7, 1 / 3), (3, 0.9)])
@pytest.mark.parametrize("confidence", [0, 0.5, 0.8])
def test_slack_is_what_has_no_target(n, share, confidence):
    target = TargetDistribution((GENDER,), (share, 1 - share))
    first = torch.linspace(0.99, 0.01, n, dtype=torch.float64)
    found = dynamic_targets(
        {"gender": torch.stack([first, 1 - first], 1)}, torch.ones(n).bool(), target, confidence
    )
    low, high = slack(n, share, confidence)
    labels = found.labels["gender"]
    if confidence > 0.5:
        assert (labels == 0).sum() / n == pytest.approx(low) and (labels == 1).sum() / n == pytest.approx(
            1 - high
        )
    assert low <= share + 1 / n and high >= share - 1 / n and 0 <= low <= high <= 1
    assert high - low <= 1 / n or confidence == 0.8


def test_a_rare_class_gets_its_faces_where_it_is_transported_apart():
    """24 faces of which a sure classifier calls 3 old, of all genders and races; a quarter shall be."""
    rng = np.random.default_rng(0)

    def read(classes: np.ndarray, k: int) -> torch.Tensor:
        logits = rng.normal(size=(24, k))
        logits[np.arange(24), classes] += 6
        return torch.tensor(logits).softmax(1)

    rows = {"gender": read(rng.integers(0, 2, 24), 2), "race": read(rng.integers(0, 3, 24), 3)}
    rows["age"] = read((np.arange(24) < 3).astype(int), 2)
    target = parse("gender=equal;race=equal;age=young:75,old:25")
    faces = torch.ones(24).bool()
    together = dynamic_targets(rows, faces, target, 0.5)
    apart = dynamic_targets(rows, faces, target, 0.5, apart=["age"])
    assert (together.labels["age"] == 1).sum() < 5 and (apart.labels["age"] == 1).sum() == 6
    alone = dynamic_targets(rows, faces, parse("age=young:75,old:25"), 0.5)
    pair = dynamic_targets(rows, faces, parse("gender=equal;race=equal"), 0.5)
    assert torch.equal(apart.labels["age"], alone.labels["age"])
    assert all(torch.equal(apart.labels[name], pair.labels[name]) for name in ("gender", "race"))
    torch.testing.assert_close(apart.expected.sum(dim=(1, 2)), alone.expected)
    torch.testing.assert_close(apart.expected.sum(dim=(1, 2, 3)), torch.ones(24, dtype=torch.float64))


def test_attributes_that_are_tied_cannot_be_transported_apart():
    joint = parse("gender*age=female*young:50,male*old:50")
    rows = {"gender": torch.full((4, 2), 0.5), "age": torch.full((4, 2), 0.5)}
    with pytest.raises(FairAdapterError, match="age is tied to other attributes"):
        dynamic_targets(rows, torch.ones(4).bool(), joint, apart=["age"])
    with pytest.raises(FairAdapterError, match="unknown attribute of this target"):
        dynamic_targets(rows, torch.ones(4).bool(), joint, apart=["hair"])


def test_slack_narrows_with_pictures():
    assert slack(24, 1 / 3) == pytest.approx((6 / 24, 10 / 24)) and slack(24, 0.25) == pytest.approx(
        (4 / 24, 8 / 24)
    )
    widths = [slack(n, 0.5)[1] - slack(n, 0.5)[0] for n in (24, 96, 384)]
    assert widths == sorted(widths, reverse=True) and widths[0] > 2 * widths[2]


def test_images_without_a_face_take_no_part():
    p = torch.tensor(faces(20, 2, seed=8))
    has_face = torch.ones(20).bool()
    has_face[[0, 7, 8]] = False
    junk = p.clone()
    junk[~has_face] = torch.tensor([float("nan"), -1.0]).double()
    found = dynamic_targets({"gender": junk}, has_face, parse("gender=75/25"))
    assert found.labels["gender"][~has_face].tolist() == [-1, -1, -1]
    assert not found.confidence["gender"][~has_face].any() and not found.expected[~has_face].any()
    alone = binary_targets(p[has_face].numpy(), 0.75)
    np.testing.assert_allclose(found.expected[has_face], alone, atol=1e-12)


def test_ties_are_decided_by_order_in_both_ways_of_computing():
    p = np.tile([[0.25, 0.75]], (12, 1))
    p[4] = [1.0, 0.0]
    q = binary_targets(p, 0.5)
    np.testing.assert_allclose(transport_targets(transport_cost([p]), np.array([0.5, 0.5])), q, atol=1e-9)
    order = [4, 0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]
    assert (np.diff(q[order, 1]) > 0).all()
    collapsed = {
        "gender": torch.tensor([[0.0, 1.0]]).repeat(24, 1)
    }  # a saturated classifier on a collapsed model
    labels = dynamic_targets(collapsed, torch.ones(24).bool(), parse("gender=50/50")).labels["gender"]
    assert (labels == 0).sum() == 10 and (labels == 1).sum() == 10
    race = {"race": torch.tensor([[1.0, 0.0, 0.0]]).repeat(24, 1)}
    labels = dynamic_targets(race, torch.ones(24).bool(), parse("race=equal")).labels["race"]
    assert (
        set(labels.tolist()) == {-1, 0, 1, 2}
        and (labels.diff()[labels[1:].ge(0) & labels[:-1].ge(0)] >= 0).all()
    )


def test_small_and_degenerate_batches():
    gender, race = torch.tensor(faces(1, 2)), torch.tensor(faces(1, 3))
    everyone = torch.ones(1).bool()
    both = parse("gender=50/50;race=equal")
    assert dynamic_targets({"gender": gender, "race": race}, everyone, both).labels["gender"].tolist() == [-1]
    assert dynamic_targets({"gender": gender}, everyone, parse("gender=90/10")).labels["gender"].tolist() == [
        0
    ]
    for target in (parse("gender=50/50"), both):
        none = dynamic_targets({"gender": gender[:0], "race": race[:0]}, everyone[:0], target)
        assert none.labels["gender"].shape == (0,) and none.labels["gender"].dtype == torch.int64
        faceless = dynamic_targets({"gender": gender, "race": race}, ~everyone, target)
        assert faceless.labels["gender"].tolist() == [-1]
    only = Attribute("subject", ("person",))
    sure = dynamic_targets(
        {"subject": torch.ones(3, 1)}, torch.ones(3).bool(), TargetDistribution.uniform([only])
    )
    assert sure.labels["subject"].tolist() == [0, 0, 0] and sure.confidence["subject"].tolist() == [1, 1, 1]
    assert dynamic_targets({"race": race}, everyone, parse("race=black:100")).labels["race"].tolist() == [1]


def test_bad_probabilities_are_named():
    target, everyone = parse("gender=50/50"), torch.ones(3).bool()
    good = torch.tensor([[0.5, 0.5]]).repeat(3, 1)
    for bad in (float("nan"), -0.5, 0.9):
        wrong = good.clone()
        wrong[1, 0] = bad
        with pytest.raises(FairAdapterError, match=r"gender: not distributions in rows \[1\]"):
            dynamic_targets({"gender": wrong}, everyone, target)
    with pytest.raises(FairAdapterError, match="classifier gives race"):
        dynamic_targets({"race": good}, everyone, target)
    with pytest.raises(FairAdapterError, match=r"expected shape \(N, 2\)"):
        dynamic_targets({"gender": torch.ones(3, 4) / 4}, everyone, target)
    with pytest.raises(FairAdapterError, match="has_face: expected shape"):
        dynamic_targets({"gender": good}, everyone[:2], target)
    with pytest.raises(FairAdapterError, match="different numbers of images"):
        expected_targets({"gender": good, "race": torch.ones(2, 3) / 3}, parse("gender=50/50;race=equal"))
    with pytest.raises(FairAdapterError, match="draws"):
        expected_targets({"race": torch.ones(2, 3) / 3}, parse("race=equal"), draws=0)


def test_alignment_loss_is_divided_by_all_images():
    logits = {
        "gender": torch.tensor([[2.0, 0.0], [0.0, 1.0], [float("nan")] * 2, [3.0, 3.0]], requires_grad=True)
    }
    labels = {"gender": torch.tensor([0, 0, -1, -1])}
    loss = alignment_loss(logits, labels)
    expected = (np.log1p(np.exp(-2.0)) + np.log1p(np.exp(1.0))) / 4
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    gradient = logits["gender"].grad
    assert torch.isfinite(gradient).all() and not gradient[2:].any() and gradient[:2].abs().min() > 0


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_alignment_gradient_at_a_temperature(temperature):
    logits = torch.tensor([[0.3, -0.2], [1.0, 0.4], [-2.0, 0.1]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, -1])
    alignment_loss({"gender": logits}, {"gender": labels}, temperature=temperature).backward()
    wanted = (logits.detach() / temperature).softmax(1) - torch.nn.functional.one_hot(labels.clamp(min=0), 2)
    wanted[2] = 0
    torch.testing.assert_close(logits.grad, wanted / 3)


def test_alignment_losses_of_unequal_micro_batches_add_up():
    torch.manual_seed(0)
    logits = {"gender": torch.randn(7, 2), "race": torch.randn(7, 3)}
    labels = {"gender": torch.tensor([0, 1, -1, 1, 0, -1, 1]), "race": torch.tensor([2, -1, -1, 0, 1, 1, 0])}
    whole = alignment_loss(logits, labels)
    cut = [slice(0, 3), slice(3, 6), slice(6, 7)]
    parts = [
        alignment_loss({k: v[c] for k, v in logits.items()}, {k: v[c] for k, v in labels.items()}, 7)
        for c in cut
    ]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-6)


def test_alignment_loss_without_targets_is_zero_with_a_graph():
    logits = {"gender": torch.randn(2, 2).half().requires_grad_(True)}
    loss = alignment_loss(logits, {"gender": torch.tensor([-1, -1])})
    assert loss.item() == 0 and loss.dtype == torch.float32
    loss.backward()
    assert not logits["gender"].grad.any()
    with pytest.raises(FairAdapterError, match="expected 2 rows of race logits, found nothing"):
        alignment_loss(logits, {"race": torch.tensor([-1, -1])})
    with pytest.raises(FairAdapterError, match="no attribute"):
        alignment_loss(logits, {})
