"""Attributes and target distributions: grammar, validation, views, round trips."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fair_adapter.shared.attributes import AGE, GENDER, RACE, RACE4, Attribute, TargetDistribution
from fair_adapter.shared.errors import FairAdapterError

parse = TargetDistribution.parse


def test_shares_follow_the_class_order():
    assert parse("gender=75/25").marginal("gender").tolist() == [0.75, 0.25]
    assert parse("gender=male:25,female:75") == parse("gender=75/25") == parse(" Gender = 0.75 / .25 ")
    assert parse("age=young:75,old:25").shares == (0.75, 0.25)
    assert parse("race=black:100").shares == (0.0, 1.0, 0.0)


def test_text_form_is_what_hosts_show():
    assert parse("gender=.75/.25").to_text() == "gender=female:75,male:25"
    assert str(parse("gender=50/50;age=12.5/87.5")) == "gender=female:50,male:50;age=young:12.5,old:87.5"
    assert parse("gender*age=female*old:30,male*young:70").to_text() == (
        "gender*age=female*old:30,male*young:70"
    )


def test_blocks_are_independent_and_joint_tables_are_not():
    product = parse("gender=75/25;race=20/30/50")
    np.testing.assert_allclose(product.probabilities, np.outer([0.75, 0.25], [0.2, 0.3, 0.5]), atol=1e-10)
    assert product.is_product and product.cells[1] == ("female", "black")
    joint = parse("gender*race=female*black:50,male*asian:50")
    assert not joint.is_product
    assert joint.marginal("gender").tolist() == [0.5, 0.5] and joint.marginal("race").tolist() == [
        0,
        0.5,
        0.5,
    ]
    assert joint.marginal("race", "gender").tolist() == joint.probabilities.T.tolist()
    mixed = parse("gender*race=female*black:50,male*asian:50;age=75/25")
    assert mixed.shape == (2, 3, 2) and mixed.marginal("age").tolist() == [0.75, 0.25]


def test_thirds_are_normalised_and_sum_to_exactly_one():
    for text in ("race=equal", "race=33.3/33.3/33.3", "race=33.33/33.33/33.33"):
        target = parse(text)
        np.testing.assert_allclose(target.probabilities, 1 / 3, atol=1e-9)
        assert target == TargetDistribution.uniform([RACE]) and abs(sum(target.shares) - 1) < 1e-15


def test_table_dict_and_tensor_forms_agree():
    target = parse("gender=75/25;race=20/30/50")
    assert target == TargetDistribution((GENDER, RACE), np.outer([75, 25], [0.2, 0.3, 0.5]))
    flat = torch.tensor([0.15, 0.225, 0.375, 0.05, 0.075, 0.125], dtype=torch.float64)
    assert target == TargetDistribution((GENDER, RACE), flat)
    assert target == TargetDistribution.from_dict(
        {"gender": {"female": 75, "male": 25}, "race": [20, 30, 50]}
    )
    joint = {("female", "old"): 0.5, "male*young": 0.5}
    assert TargetDistribution.from_dict({"gender*age": joint}) == parse(
        "gender*age=female*old:50,male*young:50"
    )
    assert parse("race=25/25/25/25", [RACE4]).attribute("race").classes[3] == "indian"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gender=femle:50,male:50", "did you mean 'female'"),
        ("gendr=50/50", "did you mean 'gender'"),
        ("gender=50/40", "sum to 90, expected 100"),
        ("race=33/33/33", "sum to 99, expected 100"),
        ("gender=-10/110", "not negative"),
        ("gender=nan/50", "finite"),
        ("gender=inf/50", "finite"),
        ("gender=a/b", "'a' is not a number"),
        ("gender=female:75,male", "'male' has no share"),
        ("gender=female:75,female:25", "given twice"),
        ("gender=50/50;gender=50/50", "given twice"),
        ("gender=50/50;gender*race=equal", "different attributes"),
        ("gender", "expected 'attribute=shares'"),
        ("gender=", "expected 'attribute=shares'"),
        ("gender=50/50/0", "shape (2,), found shape (3,)"),
        ("gender=most", "is not a number"),
        ("gender=50/50,race=equal", "write ';' between attributes"),
        ("race*age=black:100", "one class for each of race*age"),
        ("", "empty"),
    ],
)
def test_bad_text_is_one_line_with_the_remedy(text, message):
    with pytest.raises(FairAdapterError) as error:
        parse(text)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_bad_tables_and_attributes():
    with pytest.raises(FairAdapterError, match="not a table of numbers"):
        TargetDistribution((GENDER,), ["half", "half"])
    with pytest.raises(FairAdapterError, match="one or more different attributes"):
        TargetDistribution((), [1.0])
    with pytest.raises(FairAdapterError, match="expected 'equal'"):
        TargetDistribution.from_dict({"gender": "same"})
    with pytest.raises(FairAdapterError, match="distinct"):
        Attribute("hair", ("dark", "dark"))
    malformed = ({"female": "half", "male": 50}, {1: 50, "male": 50}, {"female": [50], "male": 50})
    for shares in malformed:
        with pytest.raises(FairAdapterError, match="target gender: "):
            TargetDistribution.from_dict({"gender": shares})
    for name in ("a=b", "a*b", "a;b", "Gender", ""):
        with pytest.raises(FairAdapterError, match="lower-case word"):
            Attribute(name, ("x", "y"))
    with pytest.raises(FairAdapterError, match="different attributes"):
        parse("gender=50/50").marginal()
    with pytest.raises(FairAdapterError, match="unknown attribute of this target"):
        parse("gender=50/50").marginal("race")
    with pytest.raises(FairAdapterError, match="did you mean 'black'"):
        RACE.index("blak")


def test_vectors_are_zero_for_equal_shares():
    assert not parse("gender=equal;race=equal").as_vector().any()
    target = parse("gender=75/25;race=20/30/50")
    cells, marginals = target.as_vector(), target.as_vector("marginals")
    assert cells.dtype == np.float32 and cells.shape == (6,) and marginals.shape == (5,)
    np.testing.assert_allclose(cells, target.probabilities.reshape(-1) - 1 / 6, atol=1e-7)
    np.testing.assert_allclose(marginals, [0.25, -0.25, 0.2 - 1 / 3, 0.3 - 1 / 3, 0.5 - 1 / 3], atol=1e-7)
    with pytest.raises(FairAdapterError, match="marginals do not describe"):
        parse("gender*race=female*black:50,male*asian:50").as_vector("marginals")
    with pytest.raises(FairAdapterError, match="kind 'rows'"):
        target.as_vector("rows")


def test_probabilities_are_read_only():
    with pytest.raises(ValueError, match="read-only"):
        parse("gender=50/50").probabilities[0] = 1.0


ATTRIBUTES = (GENDER, RACE, AGE)
counts = st.lists(st.integers(0, 1000), min_size=12, max_size=12).filter(any)
percent = st.integers(0, 1000).map(lambda tenths: (tenths / 10, 100 - tenths / 10))


@given(counts)
def test_any_joint_table_survives_text_dict_and_json(cells):
    target = TargetDistribution(ATTRIBUTES, np.array(cells) / sum(cells))
    assert parse(target.to_text()) == target
    assert TargetDistribution.from_dict(json.loads(json.dumps(target.to_dict()))) == target
    assert hash(parse(str(target))) == hash(target)
    np.testing.assert_allclose(target.probabilities.sum(), 1, atol=1e-12)
    for name in target.names:
        np.testing.assert_allclose(target.marginal(name).sum(), 1, atol=1e-12)


@given(percent, percent)
def test_independent_attributes_are_written_as_such(gender, age):
    target = parse(f"gender={gender[0]}/{gender[1]};age={age[0]}/{age[1]}")
    assert target.is_product and "*" not in target.to_text()
    np.testing.assert_allclose(target.marginal("age"), np.array(age) / 100, atol=1e-9)


def test_equal_shares_are_told_of_all_and_of_some_attributes():
    target = TargetDistribution.parse("gender=equal;race=equal;age=young:75,old:25")
    assert target.is_equal("gender") and target.is_equal("gender", "race")
    assert not target.is_equal("age") and not target.is_equal()
    assert TargetDistribution.parse("gender=equal;race=equal").is_equal()
