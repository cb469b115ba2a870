"""Counts of exact batches: against brute force, and after any number of pictures in a row."""

import itertools

import numpy as np
import pytest

from fair_adapter.shared.attributes import GENDER, RACE, RACE4, Attribute, TargetDistribution
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.quota import MOST_IRRATIONAL, cell_text, cells, counts
from fair_adapter.shared.quota_grid import Grid

parse = TargetDistribution.parse
SHAPES = [(2,), (3,), (5,), (2, 2), (2, 3), (3, 3), (2, 2, 2), (2, 3, 2)]
KINDS = ["product", "joint", "sparse", "even"]


def target(shape, kind, seed=0):
    """A target of made-up attributes: independent, joint, with empty cells, or of multiples of some 1/L."""
    rng = np.random.default_rng(seed)
    attributes = [Attribute(f"a{i}", tuple(f"c{j}" for j in range(k))) for i, k in enumerate(shape)]
    table = rng.dirichlet([1] * int(np.prod(shape))).reshape(shape)
    if kind == "product":
        table = np.ones(())
        for size in shape:
            table = np.multiply.outer(table, rng.dirichlet([2] * size))
    elif kind == "sparse":
        table = table * (rng.random(shape) < 0.6)
        table.flat[0] += 0.01
    elif kind == "even":
        table = np.round(20 * table)
        table.flat[0] += 1
    return TargetDistribution(tuple(attributes), table / table.sum())


def all_tables(size, pictures):
    """Every way to divide pictures among cells, (M, size)."""
    if size == 1:
        return np.array([[pictures]])
    bars = np.array(list(itertools.combinations(range(pictures + size - 1), size - 1))).reshape(-1, size - 1)
    ends = ((0, 0), (1, 1))
    return np.diff(np.pad(bars, ends, constant_values=((0, 0), (-1, pictures + size - 1))), axis=1) - 1


def marginals(table, shape):
    """(M, sum of K_a): the counts of each class, written out apart from the code."""
    cubes = table.reshape(-1, *shape)
    axes = range(1, cubes.ndim)
    return np.concatenate([cubes.sum(axis=tuple(b for b in axes if b != a)) for a in axes], axis=1)


def joints(table, shape):
    cubes, axes = table.reshape(-1, *shape), range(1, len(shape) + 1)
    pairs = itertools.combinations(axes, 2)
    parts = [cubes.sum(axis=tuple(c for c in axes if c not in p)).reshape(len(cubes), -1) for p in pairs]
    return np.concatenate(parts, axis=1) if parts else np.zeros((len(cubes), 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_counts_are_as_near_as_brute_force_finds(shape, kind):
    for seed, pictures in itertools.product(range(2), range(1, 13)):
        wanted = target(shape, kind, seed)
        free = np.flatnonzero(wanted.shares)
        if np.prod([(pictures + i) / i for i in range(1, len(free))]) > 40_000:
            continue
        few = all_tables(len(free), pictures)
        tables = np.zeros((len(few), len(wanted.shares)), dtype=int)
        tables[:, free] = few
        shares = marginals(np.array(wanted.shares), shape)
        off = np.abs(marginals(tables, shape) - pictures * shares)
        found = counts(wanted, pictures).table
        own = np.abs(marginals(found, shape) - pictures * shares)
        assert own.max() == pytest.approx(off.max(axis=1).min(), abs=1e-7)
        nearest = off[off.max(axis=1) <= own.max() + 1e-7]
        assert (own**2).sum() == pytest.approx((nearest**2).sum(axis=1).min(), abs=1e-6)
        assert (found.reshape(-1)[np.array(wanted.shares) == 0] == 0).all()


def test_two_attributes_are_rounded_as_controlled_rounding_asks():
    """Every cell and every sum is one of the two whole numbers beside its exact value."""
    for kind, seed, pictures in itertools.product(KINDS, range(5), range(1, 25)):
        wanted = target((2, 4), kind, seed)
        found = counts(wanted, pictures).table
        exact = pictures * wanted.probabilities
        for axes in ((), (0,), (1,)):
            assert np.abs(found.sum(axis=axes) - exact.sum(axis=axes)).max() < 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 4, 2), (2, 3, 2, 2)])
def test_batches_in_a_row_stay_near_after_any_number_of_pictures(shape, kind):
    wanted = target(shape, kind, seed=3)
    exact = np.array(wanted.shares)
    place = {cell: index for index, cell in enumerate(wanted.cells)}
    for size in (1, 5, 12):
        drawn = [c for first in range(0, 120, size) for c in cells(wanted, size, first)]
        table = np.zeros(len(exact))
        for n, cell in enumerate(drawn, 1):
            table[place[tuple(cell.values())]] += 1
            assert np.abs(marginals(table, shape) - n * marginals(exact, shape)).max() <= 1 + 1e-6
            assert np.abs(joints(table, shape) - n * joints(exact, shape)).max() <= 1.5 + 1e-6


@pytest.mark.parametrize(
    "attributes", [(GENDER,), (RACE,), (GENDER, RACE), (GENDER, RACE4), (GENDER, RACE4, RACE)]
)
def test_equal_shares_run_on_through_batches_of_any_sizes(attributes):
    names = [Attribute(f"{a.name}{i}", a.classes) for i, a in enumerate(attributes)]
    wanted = TargetDistribution.uniform(names)
    whole, sizes = cells(wanted, 240), [1, 7, 12, 3, 64, 2, 31, 120]
    parts = [cells(wanted, n, sum(sizes[:i])) for i, n in enumerate(sizes)]
    assert [cell for part in parts for cell in part] == whole
    for n in range(1, 49):
        assert counts(wanted, n).cells == tuple(whole[:n])


def test_twelve_doctors():
    found = counts(parse("gender=50/50;race=equal"), 12)
    assert found.table.tolist() == [[2, 2, 2], [2, 2, 2]]
    assert found.of("race") == {"wmelh": 4, "black": 4, "asian": 4}
    assert found.to_text() == "gender female 6, male 6; race wmelh 4, black 4, asian 4"
    assert cell_text(found.cells[0]) == "female, wmelh"
    assert (
        len({tuple(c.values()) for c in found.cells[:6]}) == 6
    )  # well mixed: each cell before any comes again


def test_the_nearest_counts_of_the_alabama_paradox():
    wanted = TargetDistribution((RACE,), (6 / 14, 6 / 14, 2 / 14))
    assert [counts(wanted, n).table.tolist() for n in (10, 11)] == [[4, 4, 2], [5, 5, 1]]


def test_shares_that_come_out_even_are_exact_however_long():
    wanted = parse("gender=33.3/66.7;race=33.3/33.3/33.3")
    thirds = TargetDistribution((GENDER,), (1 / 3, 2 / 3))
    assert Grid.of(thirds).period == 3 and Grid.of(wanted).period is None
    assert counts(thirds, 12, 10**9 - 1).table.tolist() == [4, 8]
    assert cells(thirds, 3, 10**8 * 3) == cells(thirds, 3)


def test_a_large_table_and_a_large_batch_are_quick_enough():
    wanted = target((4, 4, 4, 4), "joint")
    found = counts(wanted, 64)
    shares = marginals(np.array(wanted.shares), (4,) * 4)
    assert np.abs(marginals(found.table, (4,) * 4) - 64 * shares).max() < 1


@pytest.mark.parametrize(
    ("images", "first", "said"),
    [
        (0, 0, "images: expected a whole number from 1 to 4096, found 0"),
        (True, 0, "images: expected"),
        (2.0, 0, "images: expected"),
        (5000, 0, "images: expected"),
        (12, -1, "first picture: expected a whole number from 0 to 1000000000, found -1"),
    ],
)
def test_numbers_that_are_none_are_refused_in_one_line(images, first, said):
    with pytest.raises(FairAdapterError, match=said) as caught:
        counts(parse("gender=50/50"), images, first)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(FairAdapterError, match="first picture"):
        counts(parse("gender=31.4159265/68.5840735"), 1, MOST_IRRATIONAL)
    large = tuple(Attribute(f"a{i}", tuple(f"c{j}" for j in range(8))) for i in range(3))
    with pytest.raises(FairAdapterError, match="expected at most 256 joint classes, found 512"):
        counts(TargetDistribution.uniform(large), 12)
