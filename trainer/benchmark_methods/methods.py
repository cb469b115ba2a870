"""One training iteration by each method, on the same weights, prompt, noise, targets and losses.

    one graph     adjusted DFT as the authors' release does it: images for the targets, images of the original
                  model, then the images once more as one graph with checkpointed blocks
    naive         the same without the adjustment
    truncated     naive through the last K steps alone: DRaFT-K, and AlignProp at its mean of half the steps
    decoupled     `Training.iterate`, as trainer/train.py runs it, in its modes

Every method does a whole iteration but the optimiser's step: its result is the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from ...shared.direct import Branches, one_graph_gradient
from ...shared.errors import FairAdapterError
from ...shared.preservation import FaceBank
from ...shared.seeds import starting_noise
from ...shared.transport import dynamic_targets
from ..configuration.config import (
    AdapterConfig,
    Config,
    FacesConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ReferencesConfig,
    RunConfig,
    SamplingConfig,
    TargetConfig,
)
from ..families.base import DiffusionModel
from ..running.processes import Processes
from ..training.loop import Training
from ..training.optimizer import StepResult
from ..training.setup import prepare
from .models import papers_encoders

REMEDY = "give a smaller --micro-batch, --gradient-batch, --images or --size"
Kind = Literal["one graph", "naive", "truncated", "decoupled"]


@dataclass(frozen=True)
class Method:
    """cached: whether the original model's references are there already.
    steps: that get a gradient, 0 for all; the last ones of a truncated graph, random ones if decoupled."""

    title: str
    kind: Kind
    branches: Branches = "both"
    cached: bool = False
    steps: int = 0


def methods(steps: int) -> dict[str, Method]:
    """All methods for a sampler of so many steps, by their names in the JSON file."""
    few = max(1, steps // 4)
    return {
        "one_graph": Method("one graph, adjusted", "one graph"),
        "one_graph_cached": Method("  and cached references", "one graph", cached=True),
        "one_graph_conditional": Method("  and the conditional branch only", "one graph", "conditional"),
        "naive": Method("one graph, naive", "naive"),
        "draft_1": Method("truncated to the last step (DRaFT-1)", "truncated", steps=1),
        "alignprop": Method("truncated to half the steps (AlignProp)", "truncated", steps=max(1, steps // 2)),
        "both_branches": Method("ours, both branches", "decoupled"),
        "conditional": Method("ours, conditional branch only", "decoupled", "conditional"),
        "cached": Method("  and cached references", "decoupled", "conditional", True),
        "subset": Method(f"  and {few} of {steps} steps", "decoupled", "conditional", True, few),
    }


EXACT = {
    "both_branches": "one_graph",
    "conditional": "one_graph_conditional",
    "cached": "one_graph_conditional",
}


@dataclass
class Probe:
    """Stands where the optimiser does: takes the gradient and no step, and as much memory."""

    parameters: list[torch.nn.Parameter]
    scale: float = 1.0
    gradient: Tensor = field(default_factory=lambda: torch.zeros(0))

    def __post_init__(self) -> None:
        # the averaged weights, AdamW's mean and mean square
        self.state = [torch.zeros_like(p, requires_grad=False) for p in self.parameters for _ in range(3)]

    def step(self, iteration: int, extras: Tensor) -> StepResult:
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        self.gradient = torch.cat([part.reshape(-1) for part in parts]).float()
        for p in self.parameters:
            p.grad = None
        return StepResult(extras, float(self.gradient.norm()), True)

    def lr_at(self, iteration: int) -> float:
        return 0.0


@dataclass
class Workbench:
    """A model with a text-encoder LoRA on it, and every method ready to run.

    Close it when done: it detaches the LoRA.
    """

    training: Training
    steps: int
    micro_batch: int
    methods: dict[str, Method]

    @classmethod
    def build(
        cls,
        model: DiffusionModel,
        images: int,
        micro_batch: int,
        steps: int,
        device: str,
        dtype: str = "float32",
        scale: float = 7.5,
        rank: int = 50,
        encoders: tuple[str, ...] = ("embedded",),
        chosen: Collection[str] = (),
        checkpoint: Literal["none", "decoder", "all"] = "decoder",
        gradient_batch: int = 0,
    ) -> Workbench:
        """images: of one iteration.  micro_batch: at a time, in every method.  encoders: of the semantics
        loss, "paper" for those of the paper with random weights.  chosen: methods by name; none is all.
        checkpoint: of ours, as in sampling.checkpoint; the one graph always has both.
        gradient_batch: (image, step) pairs in a call of ours; 0 makes it as large as the one graph's calls,
        in which both branches of a micro-batch go together."""
        paper = encoders == ("paper",)
        config = Config(
            model=ModelConfig(path="random", dtype=dtype, guidance_scale=scale),  # type: ignore[arg-type]
            adapter=AdapterConfig(text_lora=True, rank=rank),
            target=TargetConfig("gender=equal;race=equal"),
            faces=FacesConfig(detector="fixed", bank=None),
            # random weights are certain of nothing
            loss=LossConfig(confidence=0.0, certain=0.0, encoders=() if paper else encoders),
            sampling=SamplingConfig(
                steps=(steps, steps),
                network_batch=micro_batch,
                gradient_batch=gradient_batch or 2 * micro_batch,
                decode_batch=micro_batch,
                checkpoint=checkpoint,
            ),
            references=ReferencesConfig(blocks=1, cache=None),
            optimizer=OptimizerConfig(images=images),
            run=RunConfig(device=device),  # type: ignore[arg-type]
        )
        training = prepare(config, Processes(device, images), _refuse, model)
        if paper:
            training.observer.encoders = papers_encoders(training.model.device)
        faces = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
        training.faces = FaceBank(functional.normalize(faces).to(training.model.device))
        with torch.no_grad():  # away from up = 0, where half of the gradient is zero
            for p in training.optimizer.parameters:
                noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
                p.add_(0.02 * noise.to(p))
        training.optimizer = Probe(training.optimizer.parameters)  # type: ignore[assignment]
        known = {name: m for name, m in methods(steps).items() if not chosen or name in chosen}
        return cls(training, steps, micro_batch, known)

    def close(self) -> None:
        self.training.adaptation.detach()

    def weights(self) -> Iterator[Tensor]:
        """Everything that is there before an iteration begins."""
        training = self.training
        yield from training.optimizer.state  # type: ignore[attr-defined]
        owners: list[Any] = [*training.model.parts().values(), training.adaptation, training.observer.chain]
        owners += list(training.observer.encoders)
        for owner in owners:
            yield from owner.parameters()
            yield from owner.buffers()

    def read_in(self) -> None:
        """Draw the references of the prompt and noise, and do whatever else only a first call does."""
        training = self.training
        entry = training.entry(training.schedule[0])
        training.references.references(entry, 0, entry.images)
        self.work(next(reversed(self.methods)))()  # the cheapest

    def work(self, name: str) -> Callable[[], Tensor]:
        """An iteration by a method; returns its gradient, flat."""
        method, training = self.methods[name], self.training
        decoupled = method.kind == "decoupled"
        sampling = replace(
            training.config.sampling,
            branches=method.branches,
            gradient_steps=method.steps if decoupled and method.steps < self.steps else 0,
        )
        bank = training.references
        mine = replace(
            training,
            config=replace(training.config, sampling=sampling),
            references=bank if method.cached else bank.forgetful(),
        )

        def run() -> Tensor:
            kept = sampling.checkpoint if decoupled else "all"
            mine.model.checkpoint(kept != "none", kept == "all")
            if decoupled:
                mine.iterate(0)
            else:
                one_graph_iteration(mine, method, self.micro_batch)
            return mine.optimizer.gradient  # type: ignore[attr-defined]

        return run


class DoesNotFit(FairAdapterError):
    """A method has no memory for its micro-batch."""


def _refuse(text: str) -> None:
    """Of a micro-batch that was halved: the methods are measured at the same one."""
    raise DoesNotFit(f"{text}, but its cost is another; {REMEDY}")


def one_graph_iteration(training: Training, method: Method, micro_batch: int, iteration: int = 0) -> None:
    """As the release does it; micro-batches keep a graph through all their steps."""
    target = training.targets[iteration]
    entry = training.entry(training.schedule[iteration])
    mine = slice(0, entry.images)
    sampler = training.sampler(entry.steps)
    with torch.no_grad():
        trajectory = training.roll_out(entry, mine, training.guidance(entry, target))
    views = [training.look(z, graph=False) for z in trajectory.final.split(micro_batch)]
    has_face, probabilities = training.gather(views)
    loss = training.config.loss
    seed = training.config.run.seed * 1_000_003 + iteration
    assigned = dynamic_targets(probabilities, has_face, target, loss.confidence, loss.draws, seed, loss.apart)
    reference = training.reference(entry, mine)
    noise = starting_noise(entry.seeds, training.model.latent_shape).to(training.model.device)
    sums = torch.zeros((), device=noise.device)
    for first in range(0, entry.images, micro_batch):
        rows = slice(first, first + micro_batch)
        labels = {name: label[rows].to(noise.device) for name, label in assigned.labels.items()}

        def objective(z: Tensor) -> Tensor:
            return training.losses(training.look(z, graph=True), labels, reference, rows).sum()  # noqa: B023

        result = one_graph_gradient(
            training.adaptation.denoise,
            sampler,
            noise[rows],
            training.guidance(entry, target),
            objective,
            "exact" if method.kind == "one graph" else "naive",
            method.branches,
            method.steps if method.kind == "truncated" else None,
        )
        sums = sums + result.loss
    training.optimizer.step(iteration, sums.reshape(1))
