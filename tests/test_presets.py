"""Slider arithmetic and named targets."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fair_adapter.shared.adapter_target import TargetSpace
from fair_adapter.shared.attributes import AGE, GENDER, RACE, Attribute, TargetDistribution
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.presets import base_shares, linked, presets
from fair_adapter.tests.tiny_adapter import FIXED, make_adapter

percent = st.floats(0, 100, allow_nan=False)


@given(st.lists(percent, min_size=1, max_size=8), st.integers(0, 7), st.floats(-50, 150))
def test_moved_sliders_sum_to_exactly_a_hundred(shares: list[float], index: int, value: float) -> None:
    index %= len(shares)
    moved = linked(shares, index, value)
    assert len(moved) == len(shares) and min(moved) >= 0
    assert sum(round(10 * share) for share in moved) == 1000
    if len(shares) > 1:
        assert abs(moved[index] - min(max(value, 0), 100)) <= 0.05 + 1e-9  # the nearest step of a slider
    classes = Attribute("a", tuple(f"c{i}" for i in range(len(moved))))
    assert TargetDistribution.from_dict({"a": moved}, [classes]).shares == pytest.approx(
        [s / 100 for s in moved]
    )


@given(percent, percent, percent, percent)
def test_the_others_keep_their_proportions(first: float, second: float, third: float, value: float) -> None:
    moved = linked([first, second, third], 0, value)
    rest = second + third
    expected = (100 - moved[0]) * (second / rest if rest else 0.5)
    assert moved[1] == pytest.approx(expected, abs=0.1001)


def test_values_of_sliders() -> None:
    assert linked([50, 50], 0, 75) == [75, 25]
    assert linked([40, 40, 20], 2, 50) == [25, 25, 50]
    assert linked([0, 100, 0], 1, 40) == [30, 40, 30]  # the others were zero: they share alike
    assert linked([1, 1, 1], 0, 100 / 3) == [33.3, 33.4, 33.3]
    assert linked([20, 80], 0, -3) == [0, 100]
    assert linked([7], 0, 12) == [100]
    assert linked([50, 50], 1, 12.346, decimals=2) == [87.65, 12.35]


@pytest.mark.parametrize(
    "arguments",
    [([50, math.nan], 0, 5), ([50, 50], 0, math.inf), ([50, 50], 2, 5), ([], 0, 5), ([50, 50], -1, 5)],
)
def test_no_sliders(arguments: tuple[list[float], int, float]) -> None:
    with pytest.raises(FairAdapterError, match="target sliders: expected finite shares"):
        linked(*arguments)


def test_presets_without_an_adapter() -> None:
    found = presets([GENDER, RACE, AGE])
    assert list(found) == ["equal", "75/25"]
    assert found["equal"] == TargetDistribution.parse("gender=equal;race=equal;age=equal")
    assert found["75/25"] == TargetDistribution.parse("gender=75/25;race=equal;age=75/25")
    assert list(presets([RACE])) == ["equal"]


def test_presets_of_an_adapter() -> None:
    shares = {"female": 0.2, "male": 0.8}
    adapter = make_adapter(
        FIXED, evaluation={"original": {"gender": {"shares": shares}, "race": {"shares": {}}}}
    )
    found = presets([RACE, AGE, GENDER], adapter)
    assert found["as trained"] == TargetDistribution.parse("age=75/25;gender=50/50")
    assert found["as the base model does"] == TargetDistribution.parse("gender=20/80")
    assert list(presets([RACE], adapter)) == ["equal"]


@pytest.mark.parametrize(
    "evaluation",
    [
        {"original": None},
        {"original": {"gender": None}},
        {"original": {"gender": {"shares": [1, 2]}}},
        {"original": {"gender": {"shares": {"female": 0.5}}}},
        {"original": {"gender": {"shares": {"female": "much", "male": "less"}}}},
        {"original": {"gender": {"shares": {"female": 0.9, "male": 0.9}}}},
    ],
)
def test_figures_that_are_none_are_left_out(evaluation: dict[str, object]) -> None:
    adapter = make_adapter(TargetSpace(TargetDistribution.parse("gender=50/50")), evaluation=evaluation)
    assert base_shares([GENDER], adapter) == {}
    assert "as the base model does" not in presets([GENDER], adapter)
