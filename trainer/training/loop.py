"""One training iteration: adjusted direct finetuning of the distributional alignment loss.

Shen et al., "Finetuning Text-to-Image Diffusion Models for Fairness" (ICLR 2024). `Training.iterate` reads as
the paper does. Every number drawn in it is a function of the seed and the iteration alone, so that it does
not matter where a run was interrupted or over how many processes its images are spread.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...shared.adapter_target import TargetSpace
from ...shared.alignment_loss import alignment_loss
from ...shared.attributes import TargetDistribution
from ...shared.direct import accumulate_gradients, draw_steps
from ...shared.preservation import (
    FaceBank,
    SemanticWeights,
    clamp_pixels,
    damp_faces,
    face_realism_loss,
    image_semantics_loss,
    realism_targets,
    region_weights,
)
from ...shared.sampling import rollout
from ...shared.schedulers import LinearSampler, linear_sampler
from ...shared.seeds import starting_noise
from ...shared.transport import dynamic_targets
from ..configuration.config import Config
from ..configuration.prompts import Schedule, Turn
from ..families.stable_diffusion import StableDiffusion
from .adaptation import Adaptation
from .bank import Entry, ReferenceBank, References
from .observer import Observer, View
from .optimizer import Optimizer
from .processes import Processes
from .targets import TargetDraw


@dataclass(frozen=True)
class Outcome:
    """What one iteration did, over all N images.

    losses: total, alignment, semantics and face, weighted as in the total.
    faces: share of images with a face.  targeted: attribute -> share of images with a certain target.
    shares: attribute -> classes of the faces as they were before the step.
    skipped: a number was not finite, so no step was taken.  stop: some process was asked to stop.
    """

    iteration: int
    turn: Turn
    target: TargetDistribution
    steps: int
    losses: Mapping[str, float]
    faces: float
    targeted: Mapping[str, float]
    shares: Mapping[str, list[float]]
    gradient_norm: float
    lr: float
    skipped: bool
    stop: bool
    seconds: float


@dataclass
class Training:
    """Everything that an iteration needs. Built by `setup.prepare`."""

    config: Config
    guidance_scale: float
    model: StableDiffusion
    adaptation: Adaptation
    observer: Observer
    schedule: Schedule
    targets: TargetDraw
    references: ReferenceBank
    faces: FaceBank | None
    optimizer: Optimizer
    processes: Processes

    @property
    def space(self) -> TargetSpace:
        return self.adaptation.space

    def iterate(self, iteration: int, stop: bool = False) -> Outcome:
        """Do one iteration. stop: whether this process was asked to stop after it."""
        began = time.perf_counter()
        config, turn, target = self.config, self.schedule[iteration], self.targets[iteration]
        entry = self.entry(turn)
        mine = self.processes.part(entry.images)  # the images of this process

        # Images of the current weights; z_t is kept, gradients are not.
        sampler = self.sampler(entry.steps)
        noise = starting_noise(entry.seeds[mine], self.model.latent_shape).to(self.model.device)
        guidance = self.adaptation.guidance(
            [entry.prompt], self.guidance_scale, target, config.model.negative
        )
        trajectory = rollout(self.adaptation.denoise, sampler, noise, guidance, config.sampling.network_batch)

        # Whom they show, and whom they should show.
        latents = [z.detach().requires_grad_() for z in trajectory.final.split(config.sampling.decode_batch)]
        views = [self.look(z, graph=len(latents) == 1) for z in latents]
        has_face, probabilities = self.gather(views)
        goal = dynamic_targets(
            probabilities,
            has_face,
            target,
            config.loss.confidence,
            config.loss.draws,
            seed=config.run.seed * 1_000_003 + iteration,
        )

        # g = dL/dz_0, and its way into the parameters through every step on its own.
        labels = {name: label[mine] for name, label in goal.labels.items()}
        cotangent, sums = self.cotangent(latents, views, labels, self.reference(entry, mine))
        accumulate_gradients(
            self.adaptation.denoise,
            trajectory,
            cotangent,
            guidance,
            mode=config.sampling.mode,
            branches=config.sampling.branches,
            steps=self.gradient_steps(iteration, entry, mine),
            batch=config.sampling.gradient_batch,
        )

        # One all-reduce, one step.
        step = self.optimizer.step(iteration, torch.cat([sums, sums.new_tensor([float(stop)])]))
        return Outcome(
            iteration,
            turn,
            target,
            entry.steps,
            _losses(step.sums),
            float(has_face.float().mean()),
            {n: float((label >= 0).float().mean()) for n, label in goal.labels.items()},
            _shares(probabilities, has_face),
            step.norm,
            self.optimizer.lr_at(iteration),
            skipped=not step.finite,
            stop=bool(step.sums[-1] > 0),
            seconds=time.perf_counter() - began,
        )

    # ---- parts of it

    def entry(self, turn: Turn) -> Entry:
        """Prompt, noises and number of steps of an iteration."""
        blocks = self.config.references.blocks
        block = turn.epoch % blocks if blocks else turn.epoch
        images, steps = self.config.optimizer.images, self.config.sampling.steps
        return Entry.draw(turn.prompt.text, block, images, steps)

    def sampler(self, steps: int) -> LinearSampler:
        """The scheduler's coefficients, read off once for each number of steps."""
        if steps not in self._samplers:
            self._samplers[steps] = linear_sampler(self.model.scheduler, steps)
        return self._samplers[steps]

    @cached_property
    def _samplers(self) -> dict[int, LinearSampler]:
        return {}

    def look(self, latents: Tensor, graph: bool, view: View | None = None) -> View:
        """Decode latents (n, 4, h, w) and read them; with `view`, faces are where they were found then."""
        with torch.set_grad_enabled(graph):
            images = clamp_pixels(self.model.decode(latents))
            return self.observer.look(images, None if view is None else view.found)

    def gather(self, views: list[View]) -> tuple[Tensor, dict[str, Tensor]]:
        """Which of all N images have a face, and their class probabilities, in all processes alike."""
        rows = [view.probabilities() for view in views]
        parts = {name: torch.cat([row[name] for row in rows]) for name in self.space.default.names}
        has_face = torch.cat([view.has_face for view in views])
        joined = self.processes.gather(torch.cat([has_face[:, None].float(), *parts.values()], dim=1)).cpu()
        columns = joined[:, 1:].split([part.shape[1] for part in parts.values()], dim=1)
        return joined[:, 0] > 0.5, dict(zip(parts, columns))

    def reference(self, entry: Entry, mine: slice) -> References | None:
        """What the original model draws there; None if no loss asks for it."""
        loss = self.config.loss
        if not ((loss.semantics and self.observer.encoders) or loss.face):
            return None
        return self.references.references(entry, mine.start, mine.stop).to(self.model.device)

    def gradient_steps(self, iteration: int, entry: Entry, mine: slice) -> Tensor | None:
        """The steps of each image that get a gradient; None is all."""
        count = self.config.sampling.gradient_steps
        if not count or count == entry.steps:
            return None
        generator = torch.Generator().manual_seed(self.config.run.seed * 1_000_003 + iteration)
        return draw_steps(entry.steps, count, entry.images, generator)[mine]

    def cotangent(
        self,
        latents: list[Tensor],
        views: list[View],
        labels: dict[str, Tensor],
        reference: References | None,
    ) -> tuple[Tensor, Tensor]:
        """dL/dz_0 (n, 4, h, w), times the loss scale, and the sums of the losses (3,)."""
        gradients, sums, first = [], [], 0
        for z, view in zip(latents, views):
            rows = slice(first, first + len(z))
            first += len(z)
            view = view if len(latents) == 1 else self.look(z, graph=True, view=view)
            chosen = {name: label[rows].to(z.device) for name, label in labels.items()}
            parts = self.losses(view, chosen, reference, rows)
            total = parts.sum() * self.optimizer.scale
            if total.requires_grad:
                gradients.append(torch.autograd.grad(total, z)[0])
            else:
                gradients.append(torch.zeros_like(z))
            sums.append(parts.detach())
        return torch.cat(gradients), torch.stack(sums).sum(dim=0)

    def losses(
        self, view: View, labels: dict[str, Tensor], reference: References | None, rows: slice
    ) -> Tensor:
        """Alignment, image semantics and face realism of some images, weighted and divided by N: (3,)."""
        loss, total = self.config.loss, self.config.optimizer.images
        fair = alignment_loss(view.logits, labels, total)
        image, face = torch.zeros_like(fair), torch.zeros_like(fair)
        if reference is not None:
            reference = reference.part(rows)
            original = reference.original
            if loss.semantics and self.observer.encoders:
                weights = region_weights(labels, original.labels, view.has_face, self.semantic_weights)
                damped = damp_faces(view.images, view.boxes, reference.boxes, weights.face)
                distance = image_semantics_loss(self.observer.encode(damped), reference.features)
                image = (weights.image * distance).sum() / total
            if loss.face:
                targets, mask = realism_targets(
                    view.features.detach(), view.has_face, labels, original, self.faces, loss.certain
                )
                face = loss.face * face_realism_loss(view.features, targets, mask).sum() / total
        return torch.stack([fair, image, face])

    @cached_property
    def semantic_weights(self) -> SemanticWeights:
        loss = self.config.loss
        return SemanticWeights(loss.semantics, loss.changed, loss.changed_face)


def _losses(sums: Tensor) -> dict[str, float]:
    alignment, semantics, face = sums[:3].tolist()
    total = alignment + semantics + face
    return {"total": total, "alignment": alignment, "semantics": semantics, "face": face}


def _shares(probabilities: Mapping[str, Tensor], has_face: Tensor) -> dict[str, list[float]]:
    """Share of each class among the faces; empty without a face."""
    if not has_face.any():
        return {name: [] for name in probabilities}
    labels = {name: p[has_face].argmax(1) for name, p in probabilities.items()}
    return {
        n: [float((label == k).float().mean()) for k in range(probabilities[n].shape[1])]
        for n, label in labels.items()
    }
