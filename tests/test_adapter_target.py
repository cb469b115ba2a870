"""What target and strength mean: the formula, warnings, what a fixed adapter says."""

import json
from dataclasses import replace

import pytest
import torch

from fair_adapter.shared.adapter_info import STRENGTHS
from fair_adapter.shared.adapter_target import TargetSpace
from fair_adapter.shared.attributes import GENDER, RACE, Attribute, TargetDistribution
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.tests.tiny_adapter import FIXED, LAYERS, SPACE, make_adapter


def test_strength_zero_is_the_base_model() -> None:
    weights = make_adapter().at("gender=90/10", 0)
    assert weights.soft == {} and weights.lora == {}


def test_strength_scales_what_training_added() -> None:
    adapter = make_adapter()
    whole, half = (adapter.at("gender=60/40", s) for s in (1.0, 0.5))
    key, neutral = f"{LAYERS[0]}.lora_up.weight", adapter.tensors["fair.soft_neutral.clip_l"]
    assert torch.allclose(half.lora[key], whole.lora[key] / 2)
    assert half.lora[f"{LAYERS[0]}.alpha"] == 1.5
    assert torch.allclose(half.soft["clip_l"], (whole.soft["clip_l"] + neutral) / 2, atol=1e-6)
    assert whole.content_hash != half.content_hash == adapter.at("gender=60/40", 0.5).content_hash
    for wrong in (float("nan"), float("inf"), STRENGTHS[1] + 0.1, STRENGTHS[0] - 0.1):
        with pytest.raises(FairAdapterError, match="strength: expected -2 to 4"):
            adapter.at(strength=wrong)


def test_a_target_is_the_formula() -> None:
    """g(t) = 1 + sum t_k G_k on the columns of up, P(t) = P_0 + sum t_k P_k, t = cells - default cells."""
    adapter = make_adapter()
    target = TargetDistribution((GENDER, RACE), [[0.3, 0.2, 0.1], [0.05, 0.15, 0.2]])
    weights = adapter.at(target)
    t = torch.tensor(target.probabilities.reshape(-1) - 1 / 6)
    stored = {key: value.double() for key, value in adapter.tensors.items()}
    for name in LAYERS:
        expected = stored[f"{name}.lora_up.weight"] * (1 + t @ stored[f"fair.gate.{name}"])
        assert torch.allclose(weights.lora[f"{name}.lora_up.weight"].double(), expected, rtol=0, atol=1e-6)
    expected = stored["fair.soft.clip_l"] + (t[:, None, None] * stored["fair.soft_target.clip_l"]).sum(0)
    assert torch.allclose(weights.soft["clip_l"].double(), expected, rtol=0, atol=1e-6)
    assert weights.target == target


def test_a_default_that_is_not_equal_is_where_coordinates_are_zero() -> None:
    adapter = make_adapter(TargetSpace(TargetDistribution.parse("gender=75/25;age=75/25"), "marginals"))
    for same in (None, "gender=75/25", "age=75/25;gender=75/25", "age=old:25,young:75"):
        assert torch.equal(adapter.at(same).soft["clip_l"], adapter.tensors["fair.soft.clip_l"])
    t = adapter.targets.resolve("gender=50/50").coordinates
    assert torch.allclose(t, torch.tensor([-0.25, 0.25, 0.0, 0.0]))


def test_attributes_keep_their_default_unless_named() -> None:
    resolved = SPACE.resolve("race=black:50,asian:50")
    assert resolved.target.marginal("gender").tolist() == [0.5, 0.5]
    assert resolved.target.marginal("race").tolist() == [0, 0.5, 0.5]
    swapped = SPACE.resolve("race*gender=black*female:30,asian*male:70").target
    assert swapped.attributes == (GENDER, RACE)
    assert swapped.probabilities[0, 1] == 0.3 and swapped.probabilities[1, 2] == 0.7


@pytest.mark.parametrize(
    ("target", "warnings"),
    [
        ("gender=90/10", []),
        ("gender=95/5", ["gender female 95% is outside 10 to 90%", "gender male 5% is outside 10 to 90%"]),
        ("race=black:90,asian:10", ["race black 90% is outside 5 to 80%"]),
        ("age=50/50", ["does not know age"]),
        ("gender*race=female*black:50,male*asian:50", ["independent attributes alone"]),
    ],
)
def test_outside_the_trained_range_is_a_warning(target: str, warnings: list[str]) -> None:
    found = make_adapter().at(target).warnings
    assert len(found) == len(warnings)
    for text, line in zip(warnings, found):
        assert text in line and "\n" not in line


def test_a_joint_range_covers_joint_targets() -> None:
    space = replace(SPACE, trained={"gender*race": {"female*black": (0, 0.4)}})
    assert space.resolve("gender*race=female*black:30,male*asian:70").warnings == ()
    assert (
        "gender*race female*black 50%"
        in space.resolve("gender*race=female*black:50,male*asian:50").warnings[0]
    )


def test_a_fixed_adapter_says_that_targets_have_no_effect() -> None:
    adapter = make_adapter(FIXED)
    assert adapter.at("gender=50/50;age=75/25").warnings == ()
    weights = adapter.at("age=50/50")
    assert "trained for gender=female:50,male:50;age=young:75,old:25 alone" in weights.warnings[0]
    assert weights.target == FIXED.default
    assert torch.equal(weights.soft["clip_l"], adapter.tensors["fair.soft.clip_l"])


def test_marginal_coordinates_ignore_dependence_with_a_warning() -> None:
    space = TargetSpace(TargetDistribution.parse("gender=50/50;race=equal"), "marginals")
    resolved = space.resolve("gender*race=female*black:50,male*asian:50")
    assert "how they depend on each other is ignored" in resolved.warnings[0]
    assert torch.allclose(resolved.coordinates, torch.tensor([0, 0, -1 / 3, 1 / 6, 1 / 6]))


def test_a_target_in_other_classes_is_refused() -> None:
    other = TargetDistribution.parse("gender=50/50;race=equal", (GENDER, Attribute("race", ("a", "b"))))
    with pytest.raises(FairAdapterError, match="knows race as wmelh/black/asian, found a/b"):
        SPACE.resolve(other)
    with pytest.raises(FairAdapterError, match="sum to 110"):
        SPACE.resolve("gender=60/50")


@pytest.mark.parametrize(
    "trained", [{"gender": {"femal": (0, 1)}}, {"gender": {"female": (0.9, 0.1)}}, {"age": {}}]
)
def test_an_impossible_range_is_refused(trained: dict) -> None:
    with pytest.raises(FairAdapterError, match=r"target range gender|unknown attribute"):
        replace(SPACE, trained=trained)


def test_a_fixed_adapter_has_no_range() -> None:
    with pytest.raises(FairAdapterError, match="fixed adapter has none"):
        replace(FIXED, trained={"gender": {"female": (0, 1)}})


def test_attributes_beyond_the_known_ones() -> None:
    glasses = Attribute("glasses", ("with", "without"))
    space = TargetSpace(TargetDistribution.uniform((glasses,)), "cells")
    assert space.resolve("glasses=with:70,without:30").warnings == ()
    assert TargetSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space


@pytest.mark.parametrize("default", ["race=equal;gender=75/25", "race*gender=black*male:60,asian*female:40"])
def test_axes_keep_their_order_whatever_json_does(default: str) -> None:
    space = TargetSpace(TargetDistribution.parse(default), "cells")
    assert TargetSpace.from_dict(json.loads(json.dumps(space.to_dict(), sort_keys=True))) == space
