"""Every picture its own target: targets of cells, rows of conditioning, a second plan within a run."""

from dataclasses import replace

import pytest
import torch

from fair_adapter.shared.adapter_target import TargetSpace
from fair_adapter.shared.attributes import AGE, GENDER, RACE, TargetDistribution
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.quota import cells
from fair_adapter.shared.quota_steering import Steerer, cell_target, gathered, replan
from fair_adapter.shared.sampling import Guidance, rollout
from fair_adapter.shared.schedulers import linear_sampler
from fair_adapter.shared.seeds import starting_noise
from fair_adapter.tests.samplers import make
from fair_adapter.tests.test_adaptation import EVERYTHING, PROMPTS, exported, trained
from fair_adapter.tests.test_quota_batch import of_cells, seen
from fair_adapter.tests.tiny import TinyWorld
from fair_adapter.tests.tiny_adapter import FIXED, SPACE, make_adapter
from fair_adapter.tests.tiny_diffusion import tiny_model
from fair_adapter.trainer.families.adaptation import Adaptation
from fair_adapter.trainer.families.steered import SteeredModel

parse = TargetDistribution.parse
BLACK_WOMAN, ASIAN_MAN = {"gender": "female", "race": "black"}, {"gender": "male", "race": "asian"}

# --- how far a cell's target goes


def test_a_cell_is_asked_for_as_far_as_training_went():
    marginals = TargetSpace(
        parse("gender=50/50;race=equal"),
        "marginals",
        {"gender": {"female": (0.05, 0.95)}, "race": {c: (0.05, 0.9) for c in RACE.classes}},
    )
    assert cell_target(marginals, BLACK_WOMAN) == parse("gender=95/5;race=5/90/5")
    assert cell_target(marginals, ASIAN_MAN) == parse("gender=5/95;race=5/5/90")
    half = cell_target(marginals, {"race": "black"})  # the default's gender is that of a joint table in 1e-10
    assert half.probabilities == pytest.approx(parse("gender=50/50;race=5/90/5").probabilities, abs=1e-9)
    for cell in cells(parse("gender=50/50;race=equal"), 6):
        assert not marginals.resolve(cell_target(marginals, cell)).warnings


def test_without_a_range_a_cell_is_asked_for_alone():
    space = TargetSpace(parse("gender=50/50;age=75/25"), "cells")
    assert cell_target(space, {"gender": "male", "age": "old"}) == parse("gender=0/100;age=0/100")
    assert cell_target(space, {"gender": "male", "race": "black"}) == parse("gender=0/100;age=75/25")


def test_where_training_drew_dependent_attributes_the_joint_class_goes_as_far():
    default = parse("gender=50/50;race=equal")
    limits = {f"{g}*{r}": (0.02, 0.7) for g in GENDER.classes for r in RACE.classes}
    space = TargetSpace(default, "cells", {"gender*race": limits})
    found = cell_target(space, ASIAN_MAN)
    assert found.probabilities[1, 2] == pytest.approx(0.7) and not space.resolve(found).warnings
    assert found.probabilities.min() == pytest.approx(0.06)
    shares = default.probabilities[None].repeat(2, 0) / 2
    older = TargetDistribution((AGE, *default.attributes), shares)
    aged = TargetSpace(older, "cells", {"gender*race": limits})
    both = cell_target(aged, {**ASIAN_MAN, "age": "old"})
    assert both.marginal("gender", "race")[1, 2] == pytest.approx(0.7) and both.marginal("age")[1] == 1


def test_each_cell_has_one_set_of_weights():
    steerer = Steerer(make_adapter())
    wanted = [BLACK_WOMAN, ASIAN_MAN, BLACK_WOMAN]
    steering = steerer.plan(wanted)
    assert steering.places == (0, 1, 0) and len(steering.weights) == 2
    assert [pictures for _, pictures in steering.groups] == [[0, 2], [1]]
    assert steering.in_sub_batches  # its LoRA is on the U-Net too
    assert steering.weights[0].target == cell_target(SPACE, BLACK_WOMAN)
    assert steerer.plan([BLACK_WOMAN]).weights[0] is steering.weights[0]
    pushed = steerer.plan(wanted, [1.0, 1.0, 2.0])
    assert pushed.places == (0, 1, 2) and pushed.weights[2].strength == 2
    assert not steering.notes
    with pytest.raises(FairAdapterError, match="strength"):
        steerer.plan(wanted, 99)
    with pytest.raises(FairAdapterError, match="unknown class of race 'martian'"):
        steerer.plan([{"gender": "female", "race": "martian"}])


def test_what_an_adapter_cannot_do_is_told_in_one_line():
    fixed = Steerer(make_adapter(FIXED)).plan([BLACK_WOMAN, ASIAN_MAN])
    assert len(fixed.weights) == 1 and not fixed.in_sub_batches
    alone = f"this adapter is trained for {FIXED.default.to_text()} alone"
    assert fixed.notes == (f"{alone}: pictures are not steered, only redrawn",)
    foreign = Steerer(make_adapter()).plan([{**BLACK_WOMAN, "age": "old"}])
    assert foreign.notes == ("this adapter does not know age: that is redrawn, not steered",)


# --- rows of conditioning


def test_a_batch_of_many_cells_draws_what_each_picture_would_alone():
    """Soft tokens, text LoRA and U-Net LoRA with gates: in one batch as one by one at that target."""
    model = tiny_model(torch.float64)
    for config in (replace(EVERYTHING, unet_lora=False), EVERYTHING):
        adapter = exported(trained(model, config=config))
        steerer, steered = Steerer(adapter), SteeredModel(model)
        wanted, sampler = [BLACK_WOMAN, ASIAN_MAN, BLACK_WOMAN], model.sampler(3)
        noise = starting_noise([1, 2, 3], model.latent_shape).double()

        def draw(rows, wanted=wanted, noise=noise, steerer=steerer, steered=steered, sampler=sampler):
            guidance = steered.guidance(PROMPTS[0], 2.0, steerer.plan([wanted[i] for i in rows]))
            return rollout(steered.denoise, sampler, noise[rows], guidance).final

        together = draw([0, 1, 2])
        for i in range(3):
            torch.testing.assert_close(together[i], draw([i])[0], rtol=1e-9, atol=1e-9)
        assert not torch.allclose(draw([0]), draw([1]))
        with Adaptation.from_weights(model, steerer.weights(ASIAN_MAN)) as adaptation, torch.no_grad():
            guidance = adaptation.guidance([PROMPTS[0]], 2.0)
            alone = rollout(adaptation.denoise, sampler, noise[1:2], guidance).final
        torch.testing.assert_close(together[1:2], alone, rtol=1e-9, atol=1e-9)


def test_rows_follow_the_pictures():
    parts = [{"prompt": torch.full((1, 2), float(i))} for i in range(3)]
    assert gathered(parts, (2, 0, 0, 1))["prompt"][:, 0].tolist() == [2, 0, 0, 1]


# --- the second plan


def test_only_pictures_that_are_not_on_their_way_are_planned_anew():
    wanted = [BLACK_WOMAN, ASIAN_MAN, BLACK_WOMAN, ASIAN_MAN]
    right = replan(of_cells(wanted), wanted, range(4))
    assert right.changed == () and [wanted[i] for i in right.places] == wanted
    crossed = replan(of_cells([ASIAN_MAN, BLACK_WOMAN, BLACK_WOMAN, ASIAN_MAN]), wanted, range(4))
    assert crossed.changed == (0, 1)
    assert [wanted[i] for i in crossed.places] == [ASIAN_MAN, BLACK_WOMAN, BLACK_WOMAN, ASIAN_MAN]
    wrong = replan(of_cells([BLACK_WOMAN, BLACK_WOMAN, BLACK_WOMAN, ASIAN_MAN]), wanted, range(4))
    assert wrong.changed == (1,) and [wanted[i] for i in wrong.places] == wanted


def test_unsure_predictions_and_missing_faces_leave_the_plan_as_it_is():
    wanted = [{"gender": "female"}, {"gender": "male"}]
    assert replan(seen(0.48, 0.52), wanted, [0, 1]).places == (0, 1)
    blind = replan(seen(0.9, 0.1, face=[False, False]), wanted, [1, 0])
    assert [wanted[i] for i in blind.places] == [wanted[1], wanted[0]] and blind.changed == ()


@pytest.mark.parametrize("kind", ["euler", "dpm++ 2", "dpm++ 2 karras"])
def test_pictures_that_are_not_planned_anew_are_the_same_to_the_last_bit(kind):
    world = TinyWorld(images=4)
    sampler = linear_sampler(make(kind), 12)
    base = world.guidance()
    rows = {name: value.expand(4, *value.shape[1:]).clone() for name, value in base.conditional.items()}
    guidance = Guidance(rows, base.unconditional, base.scale)

    def exchange(k, latents, predicted):
        if k != 5:
            return None
        changed = {name: value.clone() for name, value in rows.items()}
        for value in changed.values():
            value[2] = -value[2]
        return Guidance(changed, base.unconditional, base.scale)

    plain = rollout(world.network, sampler, world.noise, guidance)
    planned = rollout(world.network, sampler, world.noise, guidance, callback=exchange)
    kept = [0, 1, 3]
    assert torch.equal(plain.latents[:, kept], planned.latents[:, kept])
    assert torch.equal(plain.latents[:6], planned.latents[:6])
    assert not torch.allclose(plain.final[2], planned.final[2])
