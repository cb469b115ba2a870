"""What evens a session out: whole numbers that bring all pictures together nearest to the target."""

import itertools

import numpy as np
import pytest

from fair_adapter.shared.attributes import RACE, TargetDistribution
from fair_adapter.shared.bars import Bar, FaceBars
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.quota import counts
from fair_adapter.shared.session import JOINT, evened, seen, statistics_of

EQUAL = TargetDistribution.parse("gender=50/50")
BOTH = TargetDistribution.parse("gender=50/50;race=equal")


def people(**numbers: int) -> list[tuple[dict[str, str], int]]:
    """female_black=3 -> 3 pictures of that cell; a single word is a gender alone."""
    keys = ("gender", "race")
    return [(dict(zip(keys, name.split("_"))), number) for name, number in numbers.items()]


def face(**labels: str) -> FaceBars:
    bars = tuple(Bar(name, label, 0.9, (0, 0, 0)) for name, label in labels.items())
    return FaceBars((0.0, 0.0, 9.0, 9.0), bars)


def test_what_is_missing_comes_next() -> None:
    batch = evened(EQUAL, people(female=2, male=10), 12)
    assert counts(batch.target, 12).of("gender") == {"female": 10, "male": 2}
    assert batch.to_text() == "next 12: gender female 10, male 2 (evens out 12 pictures)"
    assert counts(evened(EQUAL, people(female=1, male=99), 12).target, 12).of("gender")["male"] == 0
    assert counts(evened(EQUAL, people(male=1), 1).target, 1).of("gender") == {"female": 1, "male": 0}


def test_an_empty_session_leaves_the_target_as_it_is() -> None:
    assert evened(BOTH, [], 12).target == BOTH
    session = [({}, 4), ({"gender": "female"}, 3), ({"gender": "female", "race": "indian"}, 1)]
    unread = evened(BOTH, session, 12)
    assert unread.target == BOTH and (unread.counted, unread.left_out) == (0, 8)


def test_both_attributes_even_out_together() -> None:
    session = people(female_wmelh=1, male_wmelh=8, male_black=2, male_asian=1)
    found = counts(evened(BOTH, session, 12).target, 12)
    after = found.table + np.array([[1, 0, 0], [8, 2, 1]])
    assert after.sum(axis=1).tolist() == [12, 12]
    assert after.sum(axis=0).tolist() == [9, 8, 7]  # nine were there, none of them can be taken back


@pytest.mark.parametrize("seed", range(40))
def test_no_picture_in_another_cell_brings_the_whole_nearer(seed: int) -> None:
    rng = np.random.default_rng(seed)
    before = rng.integers(0, 4, (2, 3))
    target = TargetDistribution(BOTH.attributes, tuple(rng.dirichlet(np.ones(6)).tolist()))
    session = [(dict(zip(("gender", "race"), cell)), int(n)) for cell, n in zip(target.cells, before.flat)]
    aim = (before.sum() + 4) * target.probabilities

    def distance(batch: np.ndarray) -> float:
        off = before + batch - aim
        return float(JOINT * (off**2).sum() + (off.sum(axis=0) ** 2).sum() + (off.sum(axis=1) ** 2).sum())

    found = counts(evened(target, session, 4).target, 4).table
    assert found.sum() == 4
    for taken, put in itertools.permutations(range(6), 2):
        change = np.zeros(6)
        change[[taken, put]] = -1, 1
        if found.flat[taken]:
            assert distance(found + change.reshape(2, 3)) >= distance(found) - 1e-5


@pytest.mark.parametrize("seed", range(20))
def test_of_one_attribute_no_other_whole_numbers_come_nearer(seed: int) -> None:
    rng = np.random.default_rng(seed)
    before, shares = rng.integers(0, 6, 3), rng.dirichlet(np.ones(3))
    target = TargetDistribution((RACE,), tuple(shares.tolist()))
    session = [({"race": label}, int(n)) for label, n in zip(RACE.classes, before)]
    aim = (before.sum() + 5) * target.probabilities
    found = counts(evened(target, session, 5).target, 5).table
    every = itertools.combinations_with_replacement(range(3), 5)
    best = min(((before + np.bincount(cells, minlength=3) - aim) ** 2).sum() for cells in every)
    assert ((before + found - aim) ** 2).sum() == pytest.approx(best, abs=1e-5)


def test_a_session_of_misses_still_ends_at_the_target() -> None:
    """A model that draws men in three of ten pictures of women: evening out makes up for it."""
    rng = np.random.default_rng(0)
    session = {"female": 0, "male": 0}
    for _ in range(40):
        batch = evened(EQUAL, [({"gender": label}, n) for label, n in session.items()], 6)
        for label, number in counts(batch.target, 6).of("gender").items():
            missed = int(rng.binomial(number, 0.3)) if label == "female" else 0
            session[label] += number - missed
            session["male"] += missed
    assert abs(session["female"] - 120) <= 6


def test_cells_without_a_share_are_never_asked_for() -> None:
    joint = TargetDistribution.parse("gender*race=female*black:50,male*asian:50")
    found = counts(evened(joint, people(male_black=9), 6).target, 6)
    assert {tuple(cell.values()) for cell in found.cells} == {("female", "black"), ("male", "asian")}


def test_pictures_of_several_classifiers_are_counted_together() -> None:
    readings = [[face(gender="female", race="indian")], [], [face(mood="glad"), face(gender="male")]]
    assert seen(readings) == [{"gender": "female", "race": "indian"}, {}, {"mood": "glad"}]
    statistics = statistics_of(readings)
    assert [a.name for a in statistics.attributes] == ["gender", "race", "mood"]
    assert (statistics.pictures, statistics.without_face) == (3, 1)
    assert statistics.counts("gender") == {"female": 1, "male": 0}


def test_wrong_numbers_are_refused() -> None:
    for number in (0, 5000, True):
        with pytest.raises(FairAdapterError, match="even out: pictures: expected a whole number from 1 to"):
            evened(EQUAL, [], number)
