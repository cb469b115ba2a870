"""From a configuration to everything that training needs; what is wrong is found here, before the work."""

from __future__ import annotations

import sys

import torch

from ...shared.adapter import FairnessAdapter
from ...shared.adapter_target import TargetSpace
from ...shared.attributes import TargetDistribution
from ...shared.direct import step_weights
from ...shared.errors import FairAdapterError
from ...shared.target_table import in_order
from ...shared.transport import expected_targets, slack
from ..configuration.config import Config
from ..configuration.prompts import Schedule, training_sets
from ..families.adaptation import Adaptation
from ..families.base import DiffusionModel
from ..families.loading import compile_network, load_base
from ..instruments.encoders import load_encoders
from ..instruments.observer import load_observer
from ..running.memory import MicroBatches
from ..running.processes import Processes
from ..running.progress import Say
from .face_reference import face_bank
from .loop import Training
from .optimizer import Optimizer
from .originals import Mark, references
from .targets import TargetDraw, own_targets, target_space

WIDE = 0.1  # of a share, what is worth telling


def prepare(
    config: Config,
    processes: Processes,
    say: Say = lambda text: None,
    model: DiffusionModel | None = None,
) -> Training:
    """Load and check everything. Raises FairAdapterError for whatever a user can put right.

    model: in the place of the configured one.
    """
    sets = training_sets(config.prompts.train)
    weights = [source.weight for source in config.prompts.train if source.weight > 0]
    encoders = load_encoders(config.loss.encoders if config.loss.semantics else (), processes.device)
    observer = load_observer(config.faces.classifier, config.faces.detector, encoders, processes.device)
    space = target_space(config.target, observer.target(config.target.text))
    table = own_targets(config.target.table, space, [prompt.text for part in sets for prompt in part], say)
    targets = TargetDraw(space, config.target.default_share, config.run.seed, table)
    nobody = {a.name: torch.zeros(0, len(a)) for a in space.attributes}
    rows = () if table is None else table.rows
    for target in (space.default, *(in_order(row.target, space.default) for row in rows)):
        expected_targets(nobody, target, apart=config.loss.apart)  # refuses at once what can't be apart
    model = load_base(config.model, processes.device) if model is None else model
    scale = model.guidance_scale if config.model.guidance_scale is None else config.model.guidance_scale
    step_weights(model.sampler(config.sampling.steps[0]), config.sampling.mode)  # refuses what it can't be
    model.checkpoint(config.sampling.checkpoint != "none", config.sampling.checkpoint == "all")
    adaptation = _adaptation(config, model, space)
    adaptation.attach()
    if config.model.compile:
        compile_network(adaptation)
    batches = MicroBatches(config.sampling, _loud(processes, say))
    mark = Mark(config, scale, adaptation, observer)
    training = Training(
        config=config,
        guidance_scale=scale,
        model=model,
        adaptation=adaptation,
        observer=observer,
        schedule=Schedule(sets, weights, config.run.seed),
        targets=targets,
        references=references(config, scale, adaptation, observer, batches, mark),
        faces=None,
        optimizer=Optimizer(adaptation, config.optimizer, config.model.dtype == "float16", processes.sum),
        processes=processes,
        batches=batches,
    )
    training.faces = face_bank(training, mark, say)
    return training


def left_to_chance(config: Config, target: TargetDistribution) -> str | None:
    """Where a few pictures leave the shares to chance, for people; None where that is not worth telling."""
    n, confidence = config.optimizer.images, config.loss.confidence
    rows = []
    for attribute in target.attributes:
        shares = [float(share) for share in target.marginal(attribute.name)]
        least = min(range(len(attribute)), key=shares.__getitem__)
        low, high = slack(n, shares[least], confidence)
        if high - low > WIDE:
            rows.append(f"{attribute.name} {attribute.classes[least]} {low:.0%} to {high:.0%}")
    if not rows:
        return None
    return (
        f"of {n} pictures at a confidence of {confidence:g} nothing pulls shares within "
        f"{', '.join(rows)}; more optimizer.images or a lower loss.confidence narrow that"
    )


def _loud(processes: Processes, say: Say) -> Say:
    """Of every process, not of the first alone."""
    if processes.first:
        return say
    return lambda text: print(f"process {processes.rank}: {text}", file=sys.stderr, flush=True)


def _adaptation(config: Config, model: DiffusionModel, space: TargetSpace) -> Adaptation:
    """What is trained: fresh, or the parts of a file. Raises FairAdapterError for parts not as configured."""
    start = config.adapter.start
    if start is None:
        return Adaptation.create(model, space, config.adapter, config.run.seed)
    made = Adaptation.from_adapter(model, FairnessAdapter.read(start), space)
    loras = [part for part in (made.text, made.unet) if part is not None]
    ranks = [layer.rank for part in loras for layer in part.layers.values()]
    found = {
        "soft_tokens": 0 if made.soft is None else made.soft.length,
        "text_lora": made.text is not None,
        "unet_lora": made.unet is not None,
        "negative_tokens": made.negative_tokens,
        "rank": max(ranks, default=config.adapter.rank),
    }
    for name, value in found.items():
        if getattr(config.adapter, name) != value:
            raise FairAdapterError(
                f"adapter.{name}: expected {value}, as in adapter.start ({start}), found "
                f"{getattr(config.adapter, name)}; set adapter.{name}={str(value).lower()}"
            )
    return made
