"""Exact batches: who gets which cell, what is drawn again, and what is told."""

import itertools

import numpy as np
import ot
import pytest
import torch

from fair_adapter.shared.attributes import GENDER, RACE, TargetDistribution
from fair_adapter.shared.bars import Bar, FaceBars
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.perceived import Perceived
from fair_adapter.shared.phrases import PhraseTables
from fair_adapter.shared.quota import cells
from fair_adapter.shared.quota_assignment import assign, assign_finished, least_cost
from fair_adapter.shared.quota_batch import ExactBatch, check, redraw_seed
from fair_adapter.shared.quota_start import begin

BOTH = TargetDistribution.parse("gender=50/50;race=equal")
TWO = TargetDistribution.parse("gender=50/50")
FEMALE, MALE = {"gender": "female"}, {"gender": "male"}


def seen(*women, face=None):
    """Readings of gender alone, by the probability of a woman."""
    table = np.stack([np.array(women), 1 - np.array(women)], axis=1)
    faces = np.ones(len(women), bool) if face is None else np.array(face)
    return Perceived((GENDER,), {"gender": np.where(faces[:, None], table, 0)}, faces)


def of_cells(wanted, attributes=(GENDER, RACE)):
    """Pictures that show their cells with certainty."""
    tables = {a.name: np.eye(len(a))[[a.index(c[a.name]) for c in wanted]] for a in attributes}
    return Perceived(tuple(attributes), tables, np.ones(len(wanted), bool))


# --- assignment


def test_the_assignment_costs_what_pot_and_all_permutations_find():
    rng = np.random.default_rng(0)
    for size, saturated in itertools.product((1, 2, 5, 6, 12, 40), (False, True)):
        cost = rng.random((size, size))
        if saturated:
            cost = cost.round()
        places = least_cost(cost)
        assert sorted(places) == list(range(size))
        own = cost[range(size), places].sum()
        ones = np.ones(size)
        assert own == pytest.approx((ot.emd(ones, ones, cost) * cost).sum(), abs=1e-6)
        if size < 7:
            every = itertools.permutations(range(size))
            assert own == pytest.approx(min(cost[range(size), p].sum() for p in every), abs=1e-6)


def test_equal_pictures_keep_the_order_of_the_cells():
    assert least_cost(np.zeros((9, 9))) == list(range(9))
    wanted = cells(BOTH, 6)
    blind = Perceived.of_tensors(
        {a.name: np.zeros((6, len(a))) for a in BOTH.attributes}, [False] * 6, BOTH.attributes
    )
    assert assign(blind, wanted) == list(range(6))


def test_the_fewest_pictures_change():
    """Three of four pictures are as wanted when the fourth changes in both attributes."""
    shown = [
        {"gender": "male", "race": "asian"},
        *({"gender": "female", "race": r} for r in ("black", "wmelh", "asian")),
    ]
    wanted = [{"gender": "female", "race": r} for r in ("wmelh", "black", "asian")] + [
        {"gender": "male", "race": "asian"}
    ]
    assert [wanted[i] for i in assign(of_cells(shown), wanted)] == shown
    other = [{"gender": "female", "race": "black"}, *wanted[:3]]
    given = [other[i] for i in assign(of_cells(shown), other)]
    assert given[1:] == shown[1:] and given[0] == other[0]


def test_uncertain_readings_count_by_their_probability_and_no_face_fills_nothing():
    perceived = seen(0.9, 0.6, 0.4, 0.9, face=[True, True, True, False])
    assert perceived.fills([FEMALE, MALE])[:, 0].tolist() == [1, 0.6, 0.4, 0]
    found = check(perceived, [FEMALE, FEMALE, MALE, MALE])
    assert found.misses == (3,) and found.fills.tolist() == [1, 0.6, 0.6, 0]
    assert perceived.cells()[3] is None


def test_finished_pictures_fill_as_many_cells_as_they_can():
    """A picture that came out as another one was wanted fills that cell."""
    wanted = cells(BOTH, 12)
    shuffled = [wanted[i] for i in np.random.default_rng(1).permutation(12)]
    found = check(of_cells(shuffled), wanted)
    assert not found.misses
    assert [wanted[i] for i in found.given] == shuffled


def test_bars_and_tensors_are_read_alike():
    bars = Bar("gender", "male", 0.8, (0, 0, 0)), Bar("race", "black", 0.5, (0, 0, 0), False, (0.3, 0.5, 0.2))
    read = Perceived.of_faces([[FaceBars((0, 0, 9, 9), bars)], []], BOTH.attributes)
    tensors = {
        "gender": torch.tensor([[0.2, 0.8], [9, 9]]),
        "race": torch.tensor([[0.3, 0.5, 0.2], [9, 9, 9]]),
    }
    other = Perceived.of_tensors(tensors, torch.tensor([True, False]), BOTH.attributes)
    for name in BOTH.names:
        np.testing.assert_allclose(read.probabilities[name], other.probabilities[name], atol=1e-6)
    with pytest.raises(FairAdapterError, match="the target names age, but the classifier reads gender, race"):
        Perceived.of_faces([[FaceBars((0, 0, 9, 9), bars)]], TargetDistribution.parse("age=equal").attributes)


# --- redraws


def drawn(batch, draw):
    """All redraws of a batch whose pictures `draw` makes of orders."""
    batch.take(draw(batch.orders))
    rounds = []
    while orders := batch.redraws():
        rounds.append(orders)
        batch.take(draw(orders), orders)
    return rounds


def test_misses_are_drawn_again_at_their_place_until_all_are_as_wanted():
    wanted = cells(TWO, 4)
    batch = ExactBatch(TWO, wanted, [7, 8, 9, 10], budget=4)
    women = {7: 0.99, 8: 0.99, 9: 0.99, 10: 0.05, redraw_seed(9, 1): 0.99, redraw_seed(9, 2): 0.1}
    women |= {redraw_seed(8, 1): 0.99, redraw_seed(8, 2): 0.1}
    rounds = drawn(batch, lambda orders: seen(*(women[order.seed] for order in orders)))
    missing = rounds[0][0].place
    assert [[(o.place, o.redraw, o.cell) for o in r] for r in rounds] == [
        [(missing, 1, MALE)],
        [(missing, 2, MALE)],
    ]
    assert batch.exact and batch.redrawn == 2 and batch.cost == 1.5
    assert batch.record(missing) == {
        "cell": MALE, "aim": MALE, "seed": redraw_seed([7, 8, 9, 10][missing], 2), "redraw": 2, "fills": True
    }  # fmt: skip
    assert [batch.record(i)["seed"] for i in range(4) if i != missing] == [
        s for i, s in enumerate((7, 8, 9, 10)) if i != missing
    ]
    assert batch.summary() == "4 of 4 pictures are as wanted after 2 redraws"
    assert batch.table() == [
        {"cell": "female", "wanted": 2, "filled": 2, "expected": 2.0},
        {"cell": "male", "wanted": 2, "filled": 2, "expected": 2.0},
    ]


def test_a_redraw_that_is_no_better_leaves_the_earlier_picture():
    batch = ExactBatch(TWO, [FEMALE, MALE], [1, 2], budget=1)
    batch.take(seen(0.9, 0.9))
    orders = batch.redraws()
    assert batch.take(seen(0.95), orders) == [False]
    assert [batch.record(i)["redraw"] for i in range(2)] == [0, 0] and batch.redraws() == []
    assert (
        batch.summary()
        == "1 of 2 pictures are as wanted after 1 redraw; missing: male 1 (all 1 redraws are used up)"
    )


def test_what_no_picture_shows_is_told():
    batch = ExactBatch(TWO, cells(TWO, 6), range(6), budget=20)
    drawn(batch, lambda orders: seen(*(0.99 for _ in orders)))
    assert batch.redrawn == 20 and batch.cost == pytest.approx(26 / 6)
    ((cell, count, why),) = batch.unreached()
    assert (cell, count) == (MALE, 3)
    assert why == "none of 23 pictures that aimed at male shows it: the prompt may rule it out"


def test_pictures_without_a_face_are_redrawn_and_no_budget_says_so():
    batch = ExactBatch(TWO, [FEMALE, MALE], [1, 2], budget=0)
    batch.take(seen(0.9, 0.1, face=[True, False]))
    assert batch.redraws() == [] and not batch.exact
    assert batch.unreached() == [(MALE, 1, "no redraws are allowed")]


def test_a_second_plan_is_what_first_pictures_aimed_at():
    batch = ExactBatch(TWO, [FEMALE, MALE], [1, 2], budget=0)
    batch.aim(assign(seen(0.2, 0.8), batch.wanted))
    assert [batch.record(i)["aim"] for i in range(2)] == [MALE, FEMALE]
    assert [batch.record(i)["before"] for i in range(2)] == [FEMALE, MALE]
    batch.take(seen(0.1, 0.9))
    assert batch.exact and [batch.record(i)["cell"] for i in range(2)] == [MALE, FEMALE]


def test_seeds_of_redraws_are_their_own_and_fit_every_host():
    found = {redraw_seed(seed, i) for seed in range(50) for i in range(1, 20)}
    assert len(found) == 950 and all(0 <= seed < 2**32 for seed in found)
    assert redraw_seed(1, 1) == redraw_seed(1, 1)


def test_wrong_numbers_are_refused_in_one_line():
    for budget in (-1, 1.5, True):
        with pytest.raises(FairAdapterError, match="redraws: expected a whole number from 0 to 10000"):
            ExactBatch(TWO, [FEMALE], [1], budget)
    with pytest.raises(FairAdapterError, match="expected one seed for each"):
        ExactBatch(TWO, [FEMALE], [1, 2], 0)
    with pytest.raises(FairAdapterError, match="expected as many cells as pictures, found 1 for 2"):
        assign_finished(seen(0.1, 0.2), [FEMALE])
    batch = ExactBatch(TWO, [FEMALE], [1], 0)
    with pytest.raises(FairAdapterError, match="expected readings of 1 pictures, found 2"):
        batch.take(seen(0.1, 0.2))


# --- what the prompt rules out


def test_what_the_prompt_names_is_told_and_not_fought():
    named = PhraseTables([]).load("english").named("a photo of a female nurse", BOTH.attributes)
    assert named == {"gender": ("female",)}
    batch, notes = begin(BOTH, range(12), 12, named=named)
    assert notes == (
        "the prompt names gender itself (female): it is not counted; the target's male 6 can't be reached",
    )
    assert batch.target.names == ("race",) and batch.wanted == tuple(cells(batch.target, 12))
    plain, notes = begin(BOTH, range(12), 12, first=12, named={"age": ("old",)})
    assert plain.wanted == tuple(cells(BOTH, 12, 12)) and notes == ()


def test_the_joint_shares_of_the_people_whom_the_prompt_names_are_kept():
    tied = TargetDistribution.parse("gender*race=female*black:40,female*asian:10,male*wmelh:50")
    batch, _ = begin(tied, range(10), 0, named={"gender": ("female",)})
    assert [row["cell"] for row in batch.table()] == ["black", "asian"]
    assert [row["wanted"] for row in batch.table()] == [8, 2]


def test_a_prompt_that_names_everything_is_refused_in_one_line():
    with pytest.raises(FairAdapterError, match="the prompt names gender itself, and the target nothing else"):
        begin(TWO, range(4), 4, named={"gender": ("male",)})
    with pytest.raises(FairAdapterError, match="images: expected a whole number from 1 to 4096, found 0"):
        begin(TWO, [], 4)
