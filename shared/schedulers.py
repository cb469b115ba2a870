"""Any deterministic diffusers scheduler as a table of linear coefficients.

A deterministic sampler that is linear in the network's output is nothing but numbers:

    z_k = decay_k z_T + sum_{j<k} gain_kj o_j,        o_j = network(input_scale_j z_j, t_j)

with z_T the starting noise and o_j the guided output of step j. `linear_sampler` reads them off a scheduler
by its impulse responses: DDIM, Euler, Heun, DPM-Solver++ (any order, midpoint or Heun, Karras sigmas),
UniPC, PNDM, flow-matching Euler and whatever diffusers adds, with its own timesteps, spacings and final
steps. Rollout, gradient and one-graph reference then use the same numbers, without scheduler state and in
any precision. Row T of the gains holds the true direct coefficients d z_0 / d o_t. A scheduler that draws
noise, clips or thresholds has no such table and is refused.

Three kinds of network output (`prediction`):
    epsilon        the noise;
    v_prediction   v = alpha eps - sigma x, hence eps = alpha v + sigma z (variance preserving);
    flow           the velocity dz/dsigma = noise - image of a flow-matching model.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import FairAdapterError, reason
from .window import places

USABLE = (
    "set model.scheduler (--scheduler) to DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler "
    "or UniPCMultistepScheduler (a flow-matching model: FlowMatchEulerDiscreteScheduler or the last two)"
)
LINEARITY = 1e-4  # largest relative departure from superposition; float32 schedulers stay below 1e-6
_SUSPECTS = (
    "clip_sample",
    "thresholding",
    "stochastic_sampling",
    "algorithm_type",
    "eta",
)  # named if refused


@dataclass(frozen=True)
class LinearSampler:
    """A scheduler with its number of steps fixed. T network evaluations; float64 tensors on the CPU.

    name: class of the scheduler.
    timesteps: (T,), what the network is told, in the scheduler's own dtype, noisiest first.
    decay: (T + 1,), gain: (T + 1, T): z_k = decay_k z_T + sum_{j<k} gain_kj o_j. k = T is the image.
    input_scale: (T,), the network sees input_scale_k z_k.
    initial_scale: standard deviation of z_T.
    prediction: "epsilon", "v_prediction" or "flow".
    noise_per_output: (T,), d eps / d o: 1 for epsilon, alpha_t for v_prediction, 1 for flow, whose
        velocity stands as it is.
    signal: (T,), share of the image in what the network sees: alpha_t, or 1 - sigma_t for flow.
    ladder: (T,) the DDPM coefficients sqrt(abar_t) sqrt(1 - abar_t) / (1 - alpha_t) over their geometric
        mean, the gradient factor of the authors' release; None for models without a DDPM ladder.
    places: (T,), where on the scale of noise the steps lie, shares from 0 (noise) to 1 (see `window`).
    """

    name: str
    timesteps: Tensor
    decay: Tensor
    gain: Tensor
    input_scale: Tensor
    initial_scale: float
    prediction: str
    noise_per_output: Tensor
    signal: Tensor
    ladder: Tensor | None
    places: Tensor

    @property
    def steps(self) -> int:
        """T, the number of network evaluations."""
        return len(self.timesteps)

    @property
    def direct(self) -> Tensor:
        """(T,) d z_0 / d o_t with every z_t held fixed: A_t of the paper up to sign."""
        return self.gain[-1]

    def predicted_image(self, k: int, latents: Tensor, output: Tensor) -> Tensor:
        """The z_0 that the network's output of step k tells of the latents z_k; both (N, ...)."""
        seen, share = latents * float(self.input_scale[k]), float(self.signal[k])
        if self.prediction == "flow":
            return seen - (1 - share) * output
        noise = (1 - share**2) ** 0.5
        if self.prediction == "v_prediction":
            return share * seen - noise * output
        return (seen - noise * output) / share


def linear_sampler(scheduler: Any, steps: int, **timestep_options: Any) -> LinearSampler:
    """Read the coefficients off a diffusers scheduler, which is not changed.

    steps: as given to `scheduler.set_timesteps`.  timestep_options: further arguments of it, such as `mu`.
    Raises FairAdapterError for what is no scheduler, draws noise, or is not linear in the network's output.
    """
    name = type(scheduler).__name__
    if not (hasattr(scheduler, "set_timesteps") and hasattr(scheduler, "step")):
        raise FairAdapterError(f"sampler: expected a diffusers scheduler, found {name}")
    if int(steps) != steps or steps < 1:
        raise FairAdapterError(f"sampler: expected 1 or more steps, found {steps}")
    scheduler = copy.deepcopy(scheduler)
    prediction = prediction_of(scheduler)
    try:
        scheduler.set_timesteps(int(steps), **timestep_options)
        timesteps = torch.as_tensor(scheduler.timesteps).detach().cpu().clone()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            start, outputs = _probes(len(timesteps))
            states, scales = _replay(scheduler, steps, timestep_options, start, outputs)
            torch.manual_seed(1)
            again, _ = _replay(scheduler, steps, timestep_options, start, outputs)
    except Exception as error:  # a scheduler of another kind of model fails in its own way
        raise FairAdapterError(f"{name} cannot be used here ({reason(error, 120)}); {USABLE}") from error
    if len(timesteps) > 1 and timesteps[0] < timesteps[-1]:
        raise FairAdapterError(f"{name} goes from the image to the noise; {USABLE}")
    if not torch.equal(states, again):
        raise FairAdapterError(f"{name} draws random noise{_suspects(scheduler)}; {USABLE}")
    decay, gain = states[:, 0].clone(), states[:, 1:-2].clone()
    predicted = decay[:, None] * start[-2:] + torch.einsum("kj,jb->kb", gain, outputs[:, -2:])
    size = decay.abs() + gain.abs().sum(dim=1)
    if not (states[:, -2:] - predicted).abs().le(LINEARITY * 10 * size[:, None]).all():
        raise FairAdapterError(
            f"{name} is not linear in the network's output{_suspects(scheduler)}; {USABLE}"
        )
    signal = _signal(scheduler, prediction, timesteps)
    return LinearSampler(
        name=name,
        timesteps=timesteps,
        decay=decay,
        gain=gain,
        input_scale=scales,
        initial_scale=float(getattr(scheduler, "init_noise_sigma", 1.0)),
        prediction=prediction,
        noise_per_output=signal if prediction == "v_prediction" else torch.ones_like(signal),
        signal=signal,
        ladder=_ladder(scheduler, timesteps) if prediction == "epsilon" else None,
        places=places(timesteps, _shift(scheduler, timestep_options) if prediction == "flow" else None),
    )


def _probes(steps: int) -> tuple[Tensor, Tensor]:
    """Starts (B,), outputs (T, B): an impulse in z_T, one in each output, two random superpositions."""
    start = torch.zeros(steps + 3, dtype=torch.float64)
    outputs = torch.zeros(steps, steps + 3, dtype=torch.float64)
    start[0] = 1.0
    outputs[range(steps), range(1, steps + 1)] = 1.0
    start[-2:] = 3 * torch.randn(2, dtype=torch.float64)
    outputs[:, -2:] = 3 * torch.randn(steps, 2, dtype=torch.float64)
    return start, outputs


def _replay(
    scheduler: Any, steps: int, options: dict[str, Any], start: Tensor, outputs: Tensor
) -> tuple[Tensor, Tensor]:
    """Run the scheduler on prescribed outputs. Returns states (T + 1, B) and input scales (T,)."""
    scheduler.set_timesteps(int(steps), **options)  # forgets the history of multistep schedulers
    z = start.reshape(-1, 1, 1, 1)
    states, scales = [z], []
    for t, output in zip(scheduler.timesteps, outputs):
        scaled = scheduler.scale_model_input(z, t) if hasattr(scheduler, "scale_model_input") else z
        largest = z.abs().argmax()
        scales.append(scaled.reshape(-1)[largest] / z.reshape(-1)[largest])
        z = scheduler.step(output.reshape(-1, 1, 1, 1), t, z, return_dict=False)[0]
        states.append(z)
    return torch.stack(states).reshape(len(states), -1).double(), torch.stack(scales).double()


def prediction_of(scheduler: Any) -> str:
    """What a model with this scheduler puts out: epsilon, v_prediction or flow; nothing is run.

    Raises FairAdapterError for another kind of output.
    """
    name, ladder = type(scheduler).__name__, hasattr(scheduler, "alphas_cumprod")
    kind = getattr(scheduler.config, "prediction_type", None if ladder else "flow_prediction")
    if kind == "flow_prediction":
        return "flow"
    if kind in ("epsilon", "v_prediction") and ladder:
        return kind
    raise FairAdapterError(
        f"{name}: expected prediction type epsilon or v_prediction on DDPM's ladder of noise, or "
        f"flow_prediction, found {kind!r}{'' if ladder else ' without that ladder'}; {USABLE}"
    )


def _shift(scheduler: Any, timestep_options: dict[str, Any]) -> float:
    """Of a flow-matching scheduler: what bends evenly spaced times towards the noise, 1 for nothing."""
    if "mu" in timestep_options:
        return math.exp(timestep_options["mu"])
    return float(scheduler.config.get("shift") or scheduler.config.get("flow_shift") or 1.0)


def _signal(scheduler: Any, prediction: str, timesteps: Tensor) -> Tensor:
    if prediction == "flow":
        return 1.0 - timesteps.double() / scheduler.config["num_train_timesteps"]
    if hasattr(scheduler, "sigmas"):
        sigmas = torch.as_tensor(scheduler.sigmas).double().cpu()[: len(timesteps)]
        return 1.0 / torch.sqrt(1.0 + sigmas**2)
    return scheduler.alphas_cumprod.double()[timesteps.round().long()].sqrt()


def _ladder(scheduler: Any, timesteps: Tensor) -> Tensor:
    """The released coefficients (finetune-fair-diffusion, main-debias.py): 1 / A_t of the DDPM sampler."""
    cumulative = scheduler.alphas_cumprod.double().cpu()
    single = cumulative / torch.cat([cumulative.new_ones(1), cumulative[:-1]])
    index = timesteps.round().long()
    coefficients = (cumulative * (1 - cumulative)).sqrt()[index] / (1 - single[index])
    return coefficients / coefficients.log().mean().exp()


def _suspects(scheduler: Any) -> str:
    """The settings that explain a refusal, for its message."""
    config = dict(scheduler.config)
    found = [f"{key}={config[key]}" for key in _SUSPECTS if config.get(key) and config[key] != "dpmsolver++"]
    return f" ({', '.join(found)})" if found else ""
