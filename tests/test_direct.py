"""Adjusted DFT, decoupled: the proof against one graph, in float64."""

import itertools
import weakref

import pytest
import torch

from fair_adapter.shared.direct import accumulate_gradients, draw_steps, one_graph_gradient, step_weights
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.sampling import Guidance, guided_output, rollout
from fair_adapter.shared.schedulers import linear_sampler
from fair_adapter.tests.samplers import KINDS, double_schedulers, make  # noqa: F401 (a fixture)
from fair_adapter.tests.tiny import TinyWorld

# diffusers hands tensors to NumPy 2 in a way that it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STEPS = 12
MODES = [(k, m) for k in KINDS for m in ("exact", "official", "direct")]
MODES = [(k, m) for k, m in MODES if m != "official" or not (k == "flow" or k.split()[-1] == "v")]


def decoupled(world, kind, mode="exact", steps=STEPS, **options):
    """Gradient of every trainable parameter the decoupled way."""
    sampler = linear_sampler(make(kind), steps)
    trajectory = rollout(world.network, sampler, world.noise, world.guidance())
    cotangent = world.cotangent(trajectory.final)
    accumulate_gradients(world.network, trajectory, cotangent, world.guidance(), mode=mode, **options)
    return world.gradients()


def one_graph(world, kind, mode="exact", steps=STEPS):
    sampler = linear_sampler(make(kind), steps)
    one_graph_gradient(world.network, sampler, world.noise, world.guidance(), world.objective, mode)
    return world.gradients()


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(("kind", "mode"), MODES)
def test_decoupled_is_the_one_graph_gradient(kind, mode):
    world = TinyWorld()
    assert relative(decoupled(world, kind, mode), one_graph(world, kind, mode)) < 1e-10


def adjusted_through_diffusers(world, kind, mode):
    """The authors' procedure on the scheduler object itself: detached inputs, hooks, one graph."""
    weights = step_weights(linear_sampler(make(kind), STEPS), mode)
    direct = linear_sampler(make(kind), STEPS).direct
    scheduler, guidance = make(kind), world.guidance()
    scheduler.set_timesteps(STEPS)
    z = world.noise * float(getattr(scheduler, "init_noise_sigma", 1.0))
    index = torch.arange(len(z))
    for k, t in enumerate(scheduler.timesteps):
        inputs = z.detach()
        inputs = scheduler.scale_model_input(inputs, t) if hasattr(scheduler, "scale_model_input") else inputs
        output = guided_output(world.network, inputs, t.expand(len(z)), guidance, index, len(z))
        output.register_hook(lambda g, factor=float(weights[k] / direct[k]): g * factor)
        z = scheduler.step(output, t, z, return_dict=False)[0]
    world.objective(z).backward()
    return world.gradients()


@pytest.mark.usefixtures("double_schedulers")
@pytest.mark.parametrize(("kind", "mode"), MODES)
def test_decoupled_is_the_gradient_through_the_scheduler_itself(kind, mode):
    world = TinyWorld()
    found = decoupled(world, kind, mode)
    assert relative(found, adjusted_through_diffusers(world, kind, mode)) < 1e-10


def test_naive_gradient_is_the_derivative_of_the_loss():
    world = TinyWorld(scale=2.0)
    gradient = one_graph(world, "dpm++ 2", "naive", steps=4)
    sampler = linear_sampler(make("dpm++ 2"), 4)
    direction = torch.randn(len(gradient), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    parameters = [p for m in (world.network, world.text) for p in m.parameters()]
    values = []
    for side in (1e-5, -1e-5):
        pieces = torch.split(direction * side, [p.numel() for p in parameters])
        with torch.no_grad():
            for p, piece in zip(parameters, pieces):
                p += piece.reshape(p.shape)
            values.append(
                world.objective(rollout(world.network, sampler, world.noise, world.guidance()).final)
            )
            for p, piece in zip(parameters, pieces):
                p -= piece.reshape(p.shape)
    numeric = float(values[0] - values[1]) / 2e-5
    assert float(gradient @ direction) == pytest.approx(numeric, rel=1e-5)


def test_naive_and_adjusted_gradients_differ():
    """Without this, agreement between the two ways would say nothing about the coupling B_t."""
    world = TinyWorld()
    naive, direct, exact = (one_graph(world, "dpm++ 2", mode) for mode in ("naive", "direct", "exact"))
    assert relative(naive, direct) > 0.1 and relative(direct, exact) > 0.1


def test_cotangents_of_the_exact_mode_are_minus_g():
    world = TinyWorld()
    for kind in ("dpm++ 2", "unipc", "flow"):
        sampler = linear_sampler(make(kind), 6)
        result = one_graph_gradient(
            world.network, sampler, world.noise, world.guidance(), world.objective, "exact"
        )
        g = world.cotangent(result.final)
        torch.testing.assert_close(result.cotangents, -g.expand(6, *g.shape), rtol=1e-10, atol=1e-14)
        assert float(result.loss) == pytest.approx(float(world.objective(result.final)))


def test_flow_matching_direct_gradient_is_exact_times_the_step_lengths():
    sampler = linear_sampler(make("flow", shift=1.0), 1000)
    lengths = -step_weights(sampler, "direct")
    torch.testing.assert_close(lengths.mean(), torch.tensor(1e-3, dtype=torch.float64), rtol=1e-5, atol=0)
    assert (
        step_weights(sampler, "exact") == -1
    ).all() and lengths.std() < 1e-6  # equal steps: the same but for 1/T


def test_v_and_epsilon_forms_of_a_network_get_the_same_gradient():
    """v = (eps - sigma z) / alpha turns an epsilon network into the v network of the same images."""
    world = TinyWorld()
    expected = decoupled(world, "ddim trailing", steps=6)
    abar = make("ddim trailing").alphas_cumprod.double()
    network = world.network

    def v_network(inputs, timesteps, conditioning):
        alpha, sigma = (x[timesteps.long()].sqrt()[:, None, None, None] for x in (abar, 1 - abar))
        return (network(inputs, timesteps, conditioning) - sigma * inputs) / alpha

    sampler = linear_sampler(make("ddim trailing", prediction_type="v_prediction"), 6)
    trajectory = rollout(v_network, sampler, world.noise, world.guidance())
    accumulate_gradients(v_network, trajectory, world.cotangent(trajectory.final), world.guidance())
    assert relative(world.gradients(), expected) < 1e-5  # diffusers' alphas are float32


# Direct coefficient times hook for T = 21, from t = 999 to 48, measured with the authors' versions.
OFFICIAL_21 = (
    "-0.21 -0.36 -0.39 -0.36 -0.39 -0.36 -0.39 -0.39 -0.37 -0.39 -0.36 -0.39 -0.36 -0.39 -0.39 -0.35 -0.36 "
    "-0.22 0.10 0.36 -2.06"
)


def test_official_coefficients_are_the_published_ones():
    then = linear_sampler(make("dpm++ 2", final_sigmas_type="sigma_min"), 21)
    expected = torch.tensor([float(x) for x in OFFICIAL_21.split()], dtype=torch.float64)
    torch.testing.assert_close(step_weights(then, "official"), expected, atol=0.005001, rtol=0)
    assert then.timesteps[[0, 18, 19, 20]].tolist() == [999, 143, 95, 48]
    first = step_weights(linear_sampler(make("dpm++ 1", final_sigmas_type="sigma_min"), 21), "official")
    assert (
        first[:-1].min() > -0.41
        and first[:-1].max() < -0.32
        and float(first[-1]) == pytest.approx(-0.6, abs=0.01)
    )
    assert (step_weights(then, "exact") == -1).all()


def test_any_order_and_micro_batch():
    world = TinyWorld()
    whole = decoupled(world, "dpm++ 2", batch=1000)
    for batch in (1, 5, 7):
        assert relative(decoupled(world, "dpm++ 2", batch=batch), whole) < 1e-12
    shuffled = torch.randperm(STEPS, generator=torch.Generator().manual_seed(0))
    assert relative(decoupled(world, "dpm++ 2", steps=STEPS), whole) < 1e-12
    sampler = linear_sampler(make("dpm++ 2"), STEPS)
    trajectory = rollout(world.network, sampler, world.noise, world.guidance())
    g = world.cotangent(trajectory.final)
    accumulate_gradients(world.network, trajectory, g, world.guidance(), steps=shuffled)
    assert relative(world.gradients(), whole) < 1e-12


def test_micro_batches_lose_nothing_in_half_precision():
    """Hundreds of gradients of a conditioning in bfloat16 are not added up in bfloat16."""
    world, sampler = TinyWorld(train_network=False), linear_sampler(make("dpm++ 2"), 100)
    network, text = world.network.bfloat16(), world.text.float()

    def half(inputs, timesteps, conditioning):
        tokens = conditioning["prompt"].bfloat16()
        return network(inputs.bfloat16(), timesteps, {"prompt": tokens}).to(inputs.dtype)

    def guidance():
        return Guidance({"prompt": text().bfloat16()})

    trajectory = rollout(half, sampler, world.noise.float(), guidance())
    g = world.cotangent(trajectory.final)
    found = []
    for batch in (1, 300):
        accumulate_gradients(half, trajectory, g, guidance(), batch=batch)
        found.append(world.gradients())
    assert relative(found[0], found[1]) < 5e-3


def test_step_subset_is_unbiased():
    """The mean over all subsets is the full gradient; one subset is not."""
    world, sampler = TinyWorld(images=2), linear_sampler(make("dpm++ 2"), 5)
    trajectory = rollout(world.network, sampler, world.noise, world.guidance())
    g = world.cotangent(trajectory.final)

    def gradient(steps):
        accumulate_gradients(world.network, trajectory, g, world.guidance(), steps=steps, batch=64)
        return world.gradients()

    full = gradient(None)
    subsets = [gradient(torch.tensor(s)) for s in itertools.combinations(range(5), 2)]
    assert relative(torch.stack(subsets).mean(dim=0), full) < 1e-12
    assert relative(subsets[0], full) > 0.01
    pairs = [
        gradient(torch.tensor([[a], [b]])) for a in range(5) for b in range(5)
    ]  # another step for each image
    assert relative(torch.stack(pairs).mean(dim=0), full) < 1e-12


def test_drawn_steps_are_distinct_and_uniform():
    drawn = draw_steps(6, 2, 6000, torch.Generator().manual_seed(0))
    assert drawn.shape == (6000, 2) and (drawn[:, 0] < drawn[:, 1]).all()
    share = torch.bincount(drawn.flatten(), minlength=6) / 12000
    assert (share - 1 / 6).abs().max() < 0.02
    assert draw_steps(6, 6, 2).tolist() == [list(range(6))] * 2
    for count in (0, 7):
        with pytest.raises(FairAdapterError, match="expected 1 to 6"):
            draw_steps(6, count, 1)


def test_conditional_branch_alone():
    """Exact where nothing trainable reaches the unconditional branch, at half the network calls."""
    world = TinyWorld(train_network=False)
    sampler = linear_sampler(make("dpm++ 2"), 4)
    trajectory = rollout(world.network, sampler, world.noise, world.guidance())
    g = world.cotangent(trajectory.final)
    both, conditional = [], []
    for found, branches in ((both, "both"), (conditional, "conditional")):
        world.network.calls.clear()
        accumulate_gradients(world.network, trajectory, g, world.guidance(), branches=branches)
        found += [world.gradients(), sum(world.network.calls)]
    assert both[1] == 24 and conditional[1] == 12
    assert relative(conditional[0], both[0]) > 1e-3  # here the empty prompt passes the trainable text encoder
    frozen = world.guidance()
    frozen = type(frozen)(
        frozen.conditional, {"prompt": frozen.unconditional["prompt"].detach()}, frozen.scale
    )
    world.network.calls.clear()
    accumulate_gradients(world.network, trajectory, g, frozen)
    assert relative(world.gradients(), conditional[0]) < 1e-12
    assert world.network.calls == [8, 4, 8]  # the last finds nothing trainable behind the empty prompt


def test_images_without_gradient_cost_nothing():
    world, sampler = TinyWorld(), linear_sampler(make("ddim"), 3)
    trajectory = rollout(world.network, sampler, world.noise, world.guidance())
    g = world.cotangent(trajectory.final)
    g[1] = 0
    world.network.calls.clear()
    accumulate_gradients(world.network, trajectory, g, world.guidance(), batch=100)
    assert world.network.calls == [6, 6]  # two images, three steps; both branches, one by one
    together = world.gradients()
    world.network.calls.clear()
    accumulate_gradients(world.network, trajectory, g, world.guidance(), batch=1)
    assert world.network.calls == [1] * 12
    assert relative(world.gradients(), together) < 1e-12
    world.network.calls.clear()
    accumulate_gradients(world.network, trajectory, torch.zeros_like(g), world.guidance())
    assert world.network.calls == [] and not world.gradients().any()


def test_gradients_add_to_what_is_there():
    world = TinyWorld()
    once = decoupled(world, "ddim", steps=3)
    sampler = linear_sampler(make("ddim"), 3)
    trajectory = rollout(world.network, sampler, world.noise, world.guidance())
    g = world.cotangent(trajectory.final)
    for image in range(3):  # one image at a time
        alone = torch.zeros_like(g)
        alone[image] = g[image]
        accumulate_gradients(world.network, trajectory, alone, world.guidance())
    assert relative(world.gradients(), once) < 1e-12


def test_nothing_trainable_is_an_error():
    world, sampler = TinyWorld(train_network=False), linear_sampler(make("ddim"), 2)
    guidance = world.guidance(text=False)
    trajectory = rollout(world.network, sampler, world.noise, guidance)
    with pytest.raises(FairAdapterError, match="nothing trainable"):
        accumulate_gradients(world.network, trajectory, world.cotangent(trajectory.final), guidance)
    with pytest.raises(FairAdapterError, match="nothing trainable"):
        one_graph_gradient(world.network, sampler, world.noise, guidance, world.objective)


def test_bad_arguments():
    world, sampler = TinyWorld(), linear_sampler(make("flow"), 2)
    trajectory = rollout(world.network, sampler, world.noise, world.guidance())
    g = world.cotangent(trajectory.final)
    cases = [
        ({"mode": "official"}, "needs an epsilon model"),
        ({"mode": "fast"}, "mode 'fast', expected one of exact, official, direct"),
        ({"branches": "none"}, "found 'none'"),
        ({"steps": torch.tensor([2])}, "indices from 0 to 1"),
        ({"steps": torch.zeros(2, 1, dtype=torch.int64)}, "expected shape .k,. or .3, k."),
    ]
    for options, message in cases:
        with pytest.raises(FairAdapterError, match=message):
            accumulate_gradients(world.network, trajectory, g, world.guidance(), **options)
    with pytest.raises(FairAdapterError, match="cotangent: expected shape"):
        accumulate_gradients(world.network, trajectory, g[:1], world.guidance())


class LiveBytes:
    """Peak of the bytes that autograd graphs hold at one time, by `saved_tensors_hooks`."""

    def __init__(self):
        self.now = self.peak = 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda saved: saved.tensor)

    def _pack(self, tensor):
        class Saved:
            pass

        saved = Saved()
        saved.tensor = tensor
        size = tensor.numel() * tensor.element_size()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(saved, self._free, size)
        return saved

    def _free(self, size):
        self.now -= size

    def __enter__(self):
        self.hooks.__enter__()
        return self

    def __exit__(self, *args):
        self.hooks.__exit__(*args)


def graph_bytes(run):
    """Peak of the graph of a call (world -> None), with every tensor saved by it."""
    with LiveBytes() as live:
        run()
    return live.peak


def test_live_bytes_do_not_grow_with_the_steps():
    world, peaks = TinyWorld(), {}
    for steps in (10, 50):
        sampler = linear_sampler(make("dpm++ 2"), steps)
        trajectory = rollout(world.network, sampler, world.noise, world.guidance())
        g = world.cotangent(trajectory.final)
        peaks["decoupled", steps] = graph_bytes(
            lambda t=trajectory, g=g: accumulate_gradients(world.network, t, g, world.guidance(), batch=3)
        )
        peaks["one graph", steps] = graph_bytes(
            lambda s=sampler: one_graph_gradient(
                world.network, s, world.noise, world.guidance(), world.objective
            )
        )
        world.gradients()
    assert peaks["decoupled", 50] == peaks["decoupled", 10] > 0
    assert peaks["one graph", 50] > 4.5 * peaks["one graph", 10] > 4.5 * 5 * peaks["decoupled", 10]


# ---- the comparisons of trainer/benchmark.py


def test_one_graph_over_one_branch_equals_the_decoupled_conditional_gradient():
    world, sampler = TinyWorld(), linear_sampler(make("dpm++ 2"), 4)
    trajectory = rollout(world.network, sampler, world.noise, world.guidance())
    cotangent = world.cotangent(trajectory.final)
    accumulate_gradients(world.network, trajectory, cotangent, world.guidance(), branches="conditional")
    expected = world.gradients()
    one_graph_gradient(
        world.network, sampler, world.noise, world.guidance(), world.objective, branches="conditional"
    )
    found = world.gradients()
    assert expected.norm() > 0 and float((found - expected).norm() / expected.norm()) < 1e-10
    one_graph_gradient(world.network, sampler, world.noise, world.guidance(), world.objective)
    assert float((world.gradients() - expected).norm() / expected.norm()) > 1e-3


def test_truncation_keeps_the_last_steps_alone():
    """All steps is naive DFT; the last one alone is A_T times its vector-Jacobian product, by hand."""
    world, sampler = TinyWorld(train_network=False), linear_sampler(make("ddim"), 4)
    found = []
    for last in (None, 4, 1):
        guidance = world.guidance()
        one_graph_gradient(world.network, sampler, world.noise, guidance, world.objective, "naive", last=last)
        found.append(world.gradients())
    assert torch.equal(found[0], found[1])
    trajectory = rollout(world.network, sampler, world.noise, world.guidance())
    accumulate_gradients(
        world.network,
        trajectory,
        world.cotangent(trajectory.final),
        world.guidance(),
        mode="direct",
        steps=torch.tensor([3]),
    )
    by_hand = world.gradients() / 4  # a subset of one out of four steps is weighed by four
    assert float((found[2] - by_hand).norm() / by_hand.norm()) < 1e-10
    with pytest.raises(FairAdapterError, match="1 to 4 steps, found 5"):
        one_graph_gradient(
            world.network, sampler, world.noise, world.guidance(), world.objective, "naive", last=5
        )
