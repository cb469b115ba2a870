"""Wall-clock of training to a gender bias of .25 on the validation occupations: ours and the one graph's."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...shared.metrics import bias
from ...shared.seeds import noise_seed
from ..configuration.config import Config, PromptSource, load_config
from ..configuration.prompts import Schedule, evenly, read_prompts
from ..running.processes import Processes
from ..training.loop import Training
from ..training.setup import prepare
from .methods import Method, one_graph_iteration

GOAL = 0.25
EVERY = 10  # iterations between two measurements, which are not timed
PICTURES = 32  # of each validation prompt
PROMPTS = 8  # of training: few enough that their references are used again
STEPS = 20
MOST = 600  # iterations
CONFIG = Path(__file__).parents[1] / "configs" / "demo.yaml"


def time_to_bias(device: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds of training and iterations of both, and the share of the one graph's time that ours takes, None
    where one of them did not reach the goal or began there."""
    overrides = [
        f"sampling.steps=[{STEPS},{STEPS}]",
        "sampling.gradient_steps=5",
        "references.cache=null",
        f"run.device={device}",
        "target.text=gender=equal",
    ]
    config = load_config(CONFIG, overrides)
    ours = _train(config, device, None, say, "ours, 5 of 20 steps, cached")
    everything = replace(config, references=replace(config.references, blocks=0))
    graph = _train(everything, device, Method("one graph", "one graph"), say, "one graph")
    known = ours["reached"] and graph["reached"] and graph["seconds"] > 0 and ours["seconds"] > 0
    share = ours["seconds"] / graph["seconds"] if known else None
    return {"goal": GOAL, "ours": ours, "one_graph": graph, "share": share}


def _train(
    config: Config, device: str, method: Method | None, say: Callable[[str], None], name: str
) -> dict[str, Any]:
    training = prepare(config, Processes(device, config.optimizer.images), say)
    prompts = evenly(read_prompts(PromptSource("occupations_train")), PROMPTS)
    training.schedule = Schedule([prompts], [1.0], config.run.seed)
    spent, done, found = 0.0, 0, _bias(training)
    say(f"{name}: gender bias {found:.2f} before")
    while found > GOAL and done < MOST:
        began = time.perf_counter()
        for _ in range(EVERY):
            if method is None:
                training.iterate(done)
            else:
                training.model.checkpoint(decoder=True, network=True)
                one_graph_iteration(training, method, config.sampling.network_batch, done)
            done += 1
        spent += time.perf_counter() - began
        found = _bias(training)
        say(f"{name}: gender bias {found:.2f} after {done} iterations, {spent:.0f} s")
    training.adaptation.detach()
    return {"seconds": spent, "iterations": done, "bias": found, "reached": found <= GOAL}


def _bias(training: Training) -> float:
    """Mean over the validation prompts, of the averaged weights."""
    prompts = read_prompts(PromptSource("occupations_validation"))
    values = []
    with training.optimizer.averaged():
        model = training.adaptation.adapted()
        for prompt in prompts:
            seeds = [noise_seed(prompt.text, i, "time to bias") for i in range(PICTURES)]
            images = model.generate([prompt.text] * PICTURES, seeds, training.guidance_scale, STEPS)
            labels = training.observer.look(images).labels()["gender"].cpu().numpy()
            counts = np.bincount(labels[labels >= 0], minlength=2)
            if counts.sum():
                values.append(float(bias(counts / counts.sum())))
    return float(np.mean(values)) if values else 1.0
