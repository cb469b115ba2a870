"""The part of the sampling in which an adapter acts: places of steps, the rollout, a model with a window."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.sampling import Guidance, Outside, rollout
from fair_adapter.shared.schedulers import linear_sampler
from fair_adapter.shared.window import WHOLE, Window, stretches
from fair_adapter.trainer.configuration.config import load_config
from fair_adapter.trainer.training.steps import steps_with_gradient

CONFIGS = Path(__file__).parents[1] / "trainer" / "configs"


@pytest.mark.parametrize(
    "start, end", [(-1, 50), (0, 101), (50, 50), (60, 40), (float("nan"), 100), (True, 100), ("0", 100)]
)
def test_a_window_that_makes_no_sense_is_refused_by_name(start: object, end: object) -> None:
    with pytest.raises(FairAdapterError, match=r"start|end"):
        Window(start, end)  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0, 20, 40, 60, 100])
@pytest.mark.parametrize("shift", [None, 1.0, 3.0])
def test_percent_of_the_scale_are_percent_of_evenly_spaced_steps(share: int, shift: float | None) -> None:
    """Discrete: linspace and trailing spacings. Flow: whatever the shift bends the timesteps to."""
    if shift is None:
        scheduler = EulerDiscreteScheduler(timestep_spacing="trailing")
    else:
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    sampler = linear_sampler(scheduler, 20)
    assert sampler.places[0] == pytest.approx(0, abs=1e-9)
    early = Window(0, share).acts(sampler.places) if share else torch.zeros(20).bool()
    late = Window(share, 100).acts(sampler.places) if share < 100 else torch.zeros(20).bool()
    assert (early ^ late).all()  # every step in one of the two
    assert abs(int(early.sum()) - share // 5) <= (shift is not None)  # diffusers spaces T steps from 0 to 1
    if shift is None:
        assert early.tolist() == [k < share // 5 for k in range(20)]


def test_steps_crowd_where_karras_sigmas_do() -> None:
    even = linear_sampler(EulerDiscreteScheduler(), 20)
    karras = linear_sampler(EulerDiscreteScheduler(use_karras_sigmas=True), 20)
    counts = [int(Window(0, 50).acts(sampler.places).sum()) for sampler in (even, karras)]
    assert counts[0] == 10 and counts[1] != 10


def test_the_scale_is_cut_where_windows_begin_and_end() -> None:
    assert stretches([WHOLE]) == [(0.0, 1.0, (True,))]
    cut = stretches([Window(0, 40), Window(20, 100)])
    assert [acting for _, _, acting in cut] == [(True, False), (True, True), (False, True)]
    assert [round(low, 2) for low, _, _ in cut] == [0.0, 0.2, 0.4]


def test_the_rollout_takes_the_other_model_outside_of_the_window_alone() -> None:
    sampler = linear_sampler(DDIMScheduler(timestep_spacing="trailing", clip_sample=False), 10)
    told: list[str] = []

    def network(name: str, factor: float):
        def denoise(inputs, timesteps, conditioning):
            told.append(name)
            return factor * inputs + conditioning["prompt"]

        return denoise

    noise = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).double()
    inside, other = (Guidance({"prompt": torch.full((1, 4), v).double()}) for v in (0.1, 0.2))
    adapted, base = network("adapter", 0.5), network("base", 0.4)
    mixed = rollout(adapted, sampler, noise, inside, outside=Outside(Window(20, 50), base, other))
    assert told == ["base"] * 2 + ["adapter"] * 3 + ["base"] * 5
    plain = rollout(base, sampler, noise, other)
    assert torch.equal(mixed.latents[:3], plain.latents[:3]) and not torch.equal(mixed.final, plain.final)
    whole = rollout(adapted, sampler, noise, inside, outside=Outside(WHOLE, base, other))
    assert torch.equal(whole.latents, rollout(adapted, sampler, noise, inside).latents)


def test_the_gradient_goes_through_the_steps_in_the_window_alone() -> None:
    sampler = linear_sampler(EulerDiscreteScheduler(timestep_spacing="trailing"), 10)
    assert steps_with_gradient(sampler, WHOLE, 0, 4, 0) is None
    within = steps_with_gradient(sampler, Window(20, 50), 0, 4, 0)
    assert within is not None and within.tolist() == [2, 3, 4]
    some = steps_with_gradient(sampler, Window(20, 50), 2, 4, 0)
    assert some is not None and some.shape == (4, 2) and set(some.unique().tolist()) <= {2, 3, 4}
    with pytest.raises(FairAdapterError, match=r"sampling\.window"):
        steps_with_gradient(sampler, Window(41, 42), 0, 4, 0)


def test_a_configuration_with_a_window_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(FairAdapterError, match=r"start"):
        load_config(CONFIGS / "demo.yaml", ["sampling.window=[60, 40]"])
    assert load_config(CONFIGS / "demo.yaml", ["sampling.window=[0, 40]"]).sampling.window == (0.0, 40.0)
