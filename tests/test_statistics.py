"""Running statistics: counts, intervals, targets, JSON and CSV."""

import csv
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fair_adapter.shared.attributes import GENDER, RACE, RACE4, Attribute, TargetDistribution
from fair_adapter.shared.bars import Bar, FaceBars
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.metrics import bias, bias_floor, frequencies, wilson_interval
from fair_adapter.shared.statistics import COLUMNS, FairnessStatistics, StatisticsSummary, counted_attributes


def face(gender: str, race: str = "black", sure: bool = True) -> FaceBars:
    bars = (
        Bar("gender", gender, 0.9 if sure else 0.55, (0, 0, 0), sure),
        Bar("race", race, 0.8, (0, 0, 0)),
    )
    return FaceBars((0.0, 0.0, 10.0, 10.0), bars)


def test_shares_intervals_and_floor_are_the_metrics() -> None:
    statistics = FairnessStatistics((GENDER, RACE))
    statistics.add(
        [[face("female")], [face("male", sure=False)], [], [face("female"), face("male")]], "a nurse"
    )
    assert (statistics.pictures, statistics.faces, statistics.without_face) == (4, 3, 1)
    assert statistics.counts("gender") == {"female": 2, "male": 1}  # of two faces the first counts
    assert statistics.uncertain == 1
    target = TargetDistribution.parse("gender=75/25")
    female, male, *race = statistics.measure(target)
    assert (female.count, female.n, female.target, female.floor) == (2, 3, 0.75, bias_floor(3, 2))
    assert (male.low, male.high) == wilson_interval(1, 3)
    assert all(row.target is None for row in race)
    assert statistics.target_error(target, "gender") == pytest.approx(abs(2 / 3 - 0.75))
    assert statistics.target_error(target, "race") is None


def test_bias_is_the_mean_over_prompts() -> None:
    """Two opposite stereotypes have equal shares together, and the largest bias each."""
    statistics = FairnessStatistics((GENDER, RACE))
    statistics.add([[face("female")]] * 4, "nurse")
    statistics.add([[face("male")]] * 4, "doctor")
    statistics.add([[]], "landscape")  # without a face, it has no say
    assert statistics.counts("gender") == {"female": 4, "male": 4}
    assert statistics.bias("gender") == 1.0
    assert statistics.keys == ("nurse", "doctor", "landscape")
    assert statistics.bias_floor("gender") == bias_floor(4, 2)  # of the faces of a prompt, not of all
    assert statistics.bias_note() == (
        "Bias (mean of the groups): gender 1.00 (a fair model: 0.38), race 0.67 (a fair model: 0.32)."
    )


def test_nothing_counted() -> None:
    statistics = FairnessStatistics()
    assert statistics.note() == "No face yet." and statistics.bias("gender") is None
    assert statistics.bias_floor("gender") is None and statistics.bias_note() == ""
    assert {(row.share, row.low, row.high, row.floor) for row in statistics.measure()} == {
        (0.0, 0.0, 1.0, None)
    }


def test_unknown_readings_are_refused_and_not_half_counted() -> None:
    statistics = FairnessStatistics((GENDER,))
    with pytest.raises(FairAdapterError, match="expected readings of gender, found race"):
        statistics.add([[face("female")]])
    with pytest.raises(FairAdapterError, match=r"unknown class of gender 'femal'.*did you mean 'female'"):
        FairnessStatistics((GENDER, RACE)).add([[face("femal")]])
    assert statistics.pictures == 0 and statistics.counts("gender") == {"female": 0, "male": 0}


@given(
    st.lists(st.tuples(st.sampled_from(["female", "male", None]), st.sampled_from(["x", "y"])), max_size=30)
)
def test_json_round_trip_keeps_everything(rows: list[tuple[str | None, str]]) -> None:
    statistics = FairnessStatistics((GENDER, RACE))
    for gender, key in rows:
        statistics.add([[face(gender)] if gender else []], key)
    again = FairnessStatistics.from_dict(statistics.to_dict())
    assert again.to_dict() == statistics.to_dict() and again.measure() == statistics.measure()
    assert sum(again.counts("gender").values()) == again.faces


@given(st.lists(st.tuples(st.sampled_from(["female", "male", None]), st.sampled_from("xyz"), st.booleans())))
def test_what_is_taken_back_was_never_counted(rows: list[tuple[str | None, str, bool]]) -> None:
    statistics, expected = FairnessStatistics((GENDER, RACE)), FairnessStatistics((GENDER, RACE))
    counted = []
    for gender, key, stays in rows:
        readings = [[face(gender)] if gender else []]
        tally = statistics.tally(readings)
        statistics.add_tally(tally, key)
        if stays:
            expected.add(readings, key)
        else:
            counted.append((tally, key))
    for tally, key in counted:
        statistics.remove_tally(tally, key)
    table = statistics.to_dict()
    assert table == expected.to_dict() | {"counts": table["counts"]}
    assert dict(table["counts"]) == dict(expected.to_dict()["counts"])
    for name in ("gender", "race"):
        assert statistics.bias(name) == expected.bias(name)
        assert statistics.bias_floor(name) == expected.bias_floor(name)
        perkey = np.array([kept[name] for kept in table["counts"].values() if sum(kept[name])])
        if len(perkey):  # the paper's metric over the keys, as a report computes it
            assert statistics.bias(name) == pytest.approx(bias(frequencies(perkey)).mean())
            whole = StatisticsSummary.of_keys(statistics.attributes, {name: perkey})
            assert whole.bias(name) == statistics.bias(name) and whole.counts(name) == statistics.counts(name)


@pytest.mark.parametrize(
    "damage",
    [
        lambda t: t.pop("counts"),
        lambda t: t.update(pictures=-1),
        lambda t: t["counts"]["k"].update(gender=[1]),
        lambda t: t["counts"]["k"].update(gender=[1, "2"]),
        lambda t: t.update(attributes=[{"name": "Gender", "classes": []}]),
    ],
)
def test_damaged_json_is_refused(damage: object) -> None:
    statistics = FairnessStatistics((GENDER, RACE))
    statistics.add([[face("female")]], "k")
    table = statistics.to_dict()
    damage(table)  # type: ignore[operator]
    with pytest.raises(FairAdapterError):
        FairnessStatistics.from_dict(table)


def test_csv_holds_the_rows() -> None:
    statistics = FairnessStatistics((GENDER,))
    statistics.add([[FaceBars((0, 0, 1, 1), face("female").bars[:1])]])
    rows = list(csv.DictReader(io.StringIO(statistics.to_csv(TargetDistribution.parse("gender=50/50")))))
    assert tuple(rows[0]) == COLUMNS
    assert [(r["class"], r["count"], float(r["share"]), float(r["target"])) for r in rows] == [
        ("female", "1", 1.0, 0.5),
        ("male", "0", 0.0, 0.5),
    ]


def test_drawing_has_the_width_asked_for() -> None:
    statistics = FairnessStatistics((GENDER, RACE))
    empty = statistics.draw(width=300)
    statistics.add([[face("female")]])
    drawn = statistics.draw(TargetDistribution.parse("gender=50/50"), width=300)
    assert drawn.width == empty.width == 300 and drawn.height > empty.height  # it has more to say
    assert statistics.draw(width=600).height < drawn.height  # in fewer lines


def test_a_target_of_other_classes_counts_what_it_knows() -> None:
    statistics = FairnessStatistics((RACE,))
    statistics.add([[FaceBars((0, 0, 1, 1), (Bar("race", "black", 0.9, (0, 0, 0)),))]])
    target = TargetDistribution((RACE4,), (0.1, 0.2, 0.3, 0.4))  # type: ignore[arg-type]
    assert [row.target for row in statistics.measure(target)] == pytest.approx([0.1, 0.2, 0.3])


def test_attributes_of_stored_labels_are_ours_where_they_fit() -> None:
    found = {"age": ["old"], "race": ["indian"], "mood": ["glad", "sad", "glad"], "gender": ["male"]}
    attributes = counted_attributes(found)
    assert [a.name for a in attributes] == ["gender", "race", "age", "mood"]
    assert attributes[1] == RACE4 and attributes[3] == Attribute("mood", ("glad", "sad"))
