"""Schedulers as tables of coefficients, and the rollout that uses them."""

import numpy as np
import pytest
import torch

from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.sampling import Guidance, guided_output, rollout
from fair_adapter.shared.schedulers import linear_sampler
from fair_adapter.tests.samplers import EXACT, KINDS, LADDER, diffusers, make
from fair_adapter.tests.tiny import TinyWorld

# diffusers hands tensors to NumPy 2 in a way that it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def diffusers_loop(scheduler, world, steps):
    """The sampling loop of a diffusers pipeline, written out."""
    scheduler.set_timesteps(steps)
    z = world.noise * float(getattr(scheduler, "init_noise_sigma", 1.0))
    index = torch.arange(len(z))
    with torch.no_grad():
        for t in scheduler.timesteps:
            inputs = scheduler.scale_model_input(z, t) if hasattr(scheduler, "scale_model_input") else z
            output = guided_output(world.network, inputs, t.expand(len(z)), world.guidance(), index, len(z))
            z = scheduler.step(output, t, z, return_dict=False)[0]
    return z


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 4, 21])
def test_rollout_is_the_diffusers_loop(kind, steps):
    world = TinyWorld()
    final = rollout(world.network, linear_sampler(make(kind), steps), world.noise, world.guidance()).final
    expected = diffusers_loop(make(kind), world, steps)
    relative = float((final - expected).norm() / expected.norm())
    assert relative < (1e-12 if kind in EXACT else 1e-5)


def test_float32_rollout_is_as_good():
    world = TinyWorld()
    sampler = linear_sampler(make("dpm++ 2"), 20)
    exact = rollout(world.network, sampler, world.noise, world.guidance()).final
    world.network.float()
    world.text.float()
    world.empty = world.empty.float()
    single = rollout(world.network, sampler, world.noise.float(), world.guidance()).final
    assert single.dtype == torch.float32
    assert float((single - exact).norm() / exact.norm()) < 1e-4


def test_coefficients_of_samplers_known_in_closed_form():
    sampler, scheduler = linear_sampler(make("euler"), 5), make("euler")
    scheduler.set_timesteps(5)
    sigmas = scheduler.sigmas.double()
    np.testing.assert_allclose(sampler.direct, sigmas.diff(), rtol=1e-6)
    np.testing.assert_allclose(sampler.input_scale, 1 / (1 + sigmas[:-1] ** 2).sqrt(), rtol=1e-6)
    assert sampler.decay.tolist() == [1.0] * 6
    flow = linear_sampler(make("flow"), 5)
    assert flow.prediction == "flow" and flow.ladder is None and flow.initial_scale == 1.0
    np.testing.assert_allclose(flow.direct.sum(), -1.0, rtol=1e-6)  # all the way from noise to image
    ddim = linear_sampler(make("ddim", set_alpha_to_one=True), 1)
    abar = make("ddim").alphas_cumprod[ddim.timesteps[0]].double()
    np.testing.assert_allclose(ddim.decay[1], abar**-0.5, rtol=1e-6)
    np.testing.assert_allclose(ddim.direct[0], -(((1 - abar) / abar) ** 0.5), rtol=1e-6)


@pytest.mark.parametrize("kind", ["dpm++ 2", "unipc", "pndm"])
def test_later_outputs_do_not_act_backwards(kind):
    gain = linear_sampler(make(kind), 8).gain
    assert not gain.triu().any() and gain[-1].all()


def test_v_prediction_scale_is_alpha():
    ddim = linear_sampler(make("ddim v"), 6)
    np.testing.assert_allclose(
        ddim.noise_per_output, make("ddim v").alphas_cumprod[ddim.timesteps].double().sqrt(), rtol=1e-6
    )
    dpm = linear_sampler(make("dpm++ 2 heun v"), 6)
    table = make("ddim").alphas_cumprod[dpm.timesteps].double().sqrt()
    np.testing.assert_allclose(dpm.noise_per_output, table, rtol=1e-3)
    assert (linear_sampler(make("dpm++ 2"), 6).noise_per_output == 1).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: diffusers.DDPMScheduler(**LADDER, clip_sample=False), "random noise"),
        (lambda: diffusers.EulerAncestralDiscreteScheduler(**LADDER), "random noise"),
        (lambda: make("dpm++ 2", algorithm_type="sde-dpmsolver++"), "random noise .algorithm_type=sde"),
        (lambda: make("flow", stochastic_sampling=True), "random noise .stochastic_sampling=True"),
        (lambda: make("ddim", clip_sample=True), "not linear .* .clip_sample=True"),
        (lambda: make("dpm++ 2", thresholding=True), "not linear .* .thresholding=True"),
        (lambda: make("ddim", prediction_type="sample"), "prediction type .* found 'sample'"),
        (lambda: "ddim", "expected a diffusers scheduler, found str"),
    ],
)
def test_other_samplers_are_refused(build, message):
    with pytest.raises(FairAdapterError, match=message) as error:
        linear_sampler(build(), 8)
    assert "\n" not in str(error.value)


def test_scheduler_and_random_state_stay_untouched():
    scheduler = make("dpm++ 2")
    scheduler.set_timesteps(7)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    linear_sampler(scheduler, 20)
    assert len(scheduler.timesteps) == 7 and torch.equal(torch.get_rng_state(), state)
    with pytest.raises(FairAdapterError, match="1 or more steps"):
        linear_sampler(scheduler, 0)


def test_timestep_options_reach_the_scheduler():
    scheduler = make("flow", use_dynamic_shifting=True)
    near, far = linear_sampler(scheduler, 4, mu=0.5), linear_sampler(scheduler, 4, mu=1.2)
    assert near.timesteps[1] < far.timesteps[1]


def test_trajectory_keeps_every_latent_and_no_graph():
    world, seen = TinyWorld(), []
    sampler = linear_sampler(make("ddim"), 5)
    trajectory = rollout(
        world.network, sampler, world.noise, world.guidance(), callback=lambda k, z, x0: seen.append(k)
    )
    assert trajectory.latents.shape == (6, *world.noise.shape) and not trajectory.latents.requires_grad
    assert torch.equal(trajectory.latents[0], world.noise) and torch.equal(
        trajectory.final, trajectory.latents[-1]
    )
    assert seen == [1, 2, 3, 4, 5] and trajectory.sampler is sampler


@pytest.mark.parametrize("kind", KINDS)
def test_the_callback_is_told_the_image_that_the_network_believes_in(kind):
    """A network that knows one image alone, by the ladder's own noise levels, predicts it at every step."""
    image = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    kept = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    ladder = np.sqrt((1 - kept) / kept)
    sampler, told = linear_sampler(make(kind), 12), []

    def network(inputs, timesteps, conditioning):
        t = float(timesteps[0])
        if sampler.prediction == "flow":
            return (inputs - image) / (t / 1000)
        sigma = np.exp(np.interp(t, np.arange(1000), np.log(ladder)))
        share = float(1 / (1 + sigma**2) ** 0.5)
        found = (inputs - share * image) / (1 - share**2) ** 0.5
        return share * found - (1 - share**2) ** 0.5 * image if "v" in sampler.prediction else found

    guidance = Guidance({"text": torch.zeros(1, 1)})
    rollout(network, sampler, noise, guidance, callback=lambda k, z, x0: told.append(x0))
    assert len(told) == sampler.steps
    for t, x0 in zip(sampler.timesteps.round().long().tolist(), told):
        # DPM-Solver tells the network the nearest rung of Karras' noise levels, half a rung off at most
        rung = 0.5 * max(np.diff(ladder[max(t - 1, 0) : t + 2])) if kind == "dpm++ 2 karras" else 0.0
        assert float((x0 - image).norm() / image.norm()) < 1e-5 + 1.5 * rung


def test_micro_batches_of_the_rollout_change_nothing():
    world = TinyWorld(images=5)
    sampler = linear_sampler(make("dpm++ 2"), 4)
    whole = rollout(world.network, sampler, world.noise, world.guidance()).latents
    world.network.calls.clear()
    parts = rollout(world.network, sampler, world.noise, world.guidance(), batch=2).latents
    assert world.network.calls == [4, 4, 2] * 4  # guidance doubles a batch
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)


def test_one_prompt_per_image_or_one_for_all():
    world = TinyWorld()
    sampler, shared = linear_sampler(make("euler"), 3), world.guidance()
    each = Guidance(
        {"prompt": shared.conditional["prompt"].expand(3, -1, -1)},
        {"prompt": shared.unconditional["prompt"].expand(3, -1, -1)},
        shared.scale,
    )
    final = rollout(world.network, sampler, world.noise, shared).final
    torch.testing.assert_close(rollout(world.network, sampler, world.noise, each).final, final)
    with pytest.raises(FairAdapterError, match="leading dimension 1 or 3, found 2"):
        rollout(world.network, sampler, world.noise, Guidance({"prompt": torch.randn(2, 6, 6).double()}))


def test_scale_one_skips_the_unconditional_branch():
    world = TinyWorld(scale=1.0)
    sampler = linear_sampler(make("ddim"), 2)
    rollout(world.network, sampler, world.noise, world.guidance())
    assert world.network.calls == [3, 3]


def test_bad_guidance():
    prompt = {"prompt": torch.zeros(1, 6, 6)}
    with pytest.raises(FairAdapterError, match="needs an unconditional prompt"):
        Guidance(prompt, scale=7.5)
    with pytest.raises(FairAdapterError, match="differ in shape"):
        Guidance(prompt, {"prompt": torch.zeros(1, 4, 6)}, 7.5)
