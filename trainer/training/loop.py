"""One training iteration: adjusted direct finetuning of the distributional alignment loss.

Shen et al., "Finetuning Text-to-Image Diffusion Models for Fairness" (ICLR 2024). `Training.iterate` reads as
the paper does. Every number drawn in it is a function of the seed and the iteration alone, so that it does
not matter where a run was interrupted or over how many processes its images are spread.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...shared.adapter_target import TargetSpace
from ...shared.alignment_loss import alignment_loss
from ...shared.attributes import TargetDistribution
from ...shared.direct import accumulate_gradients, draw_steps
from ...shared.faces import Face
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
from ...shared.sampling import Guidance, Trajectory, rollout
from ...shared.schedulers import LinearSampler
from ...shared.seeds import starting_noise
from ...shared.transport import dynamic_targets
from ..configuration.config import Config
from ..configuration.prompts import Schedule, Turn
from ..families.base import DiffusionModel
from .adaptation import Adaptation
from .bank import Entry, ReferenceBank, References
from .memory import MicroBatches
from .observer import Observer, View
from .optimizer import Optimizer
from .processes import Processes
from .targets import TargetDraw

Piece = tuple[Tensor, View]  # latents that a gradient can reach, and what they show


@dataclass(frozen=True)
class Outcome:
    """What one iteration did, over all N images.

    losses: total, alignment, semantics and face, weighted as in the total.
    faces: share of images with a face.  targeted: attribute -> share of images with a certain target.
    shares: attribute -> classes of the faces as they were before the step.
    skipped: a number was not finite, so no step was taken.  stop: some process was asked to stop.
    allocated: most bytes of tensors on this process's GPU at one time so far; 0 on a CPU.
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
    allocated: int


@dataclass
class Training:
    """Everything that an iteration needs. Built by `setup.prepare`."""

    config: Config
    guidance_scale: float
    model: DiffusionModel
    adaptation: Adaptation
    observer: Observer
    schedule: Schedule
    targets: TargetDraw
    references: ReferenceBank
    faces: FaceBank | None
    optimizer: Optimizer
    processes: Processes
    batches: MicroBatches

    @property
    def space(self) -> TargetSpace:
        return self.adaptation.space

    def iterate(self, iteration: int, stop: Callable[[], bool] = lambda: False) -> Outcome:
        """Do one iteration. stop: whether this process was asked to stop after it; asked at its end."""
        began = time.perf_counter()
        config, turn, target = self.config, self.schedule[iteration], self.targets[iteration]
        entry = self.entry(turn)
        mine = self.processes.part(entry.images)  # the images of this process

        # Images of the current weights; z_t is kept, gradients are not.
        guidance = self.guidance(entry, target)
        trajectory = self.roll_out(entry, mine, guidance)

        # What the original model draws there: before the first look, whose graph waits for the targets.
        reference = self.reference(entry, mine)

        # Whom they show, and whom they should show.
        final = trajectory.final
        pieces = self.batches.fit("decode", lambda size: self.read(final, size), len(final))
        has_face, probabilities = self.gather([view for _, view in pieces])
        goal = dynamic_targets(
            probabilities,
            has_face,
            target,
            config.loss.confidence,
            config.loss.draws,
            seed=config.run.seed * 1_000_003 + iteration,
            apart=config.loss.apart,
        )

        # g = dL/dz_0, and its way into the parameters through every step on its own.
        labels = {name: label[mine] for name, label in goal.labels.items()}
        cotangent, sums = self.look_back(pieces, labels, reference)
        again = (self.guidance(entry, target) for _ in itertools.count())
        steps = self.gradient_steps(iteration, entry, mine)
        self.follow(trajectory, cotangent, itertools.chain([guidance], again), steps)

        # One all-reduce, one step; an image that is not finite makes the sums so, and all processes skip it.
        sums = sums + 0.0 * final.sum()
        step = self.optimizer.step(iteration, torch.cat([sums, sums.new_tensor([float(stop())])]))
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
            allocated=torch.cuda.max_memory_allocated(final.device) if final.is_cuda else 0,
        )

    # ---- parts of it

    def guidance(self, entry: Entry, target: TargetDistribution) -> Guidance:
        """The prompt in both branches, with the graph to what is trained where the gradient follows it."""
        negative, both = self.config.model.negative, self.config.sampling.branches == "both"
        return self.adaptation.guidance([entry.prompt], self.guidance_scale, target, negative, both)

    def roll_out(self, entry: Entry, mine: slice, guidance: Guidance) -> Trajectory:
        """Some of the entry's images by the current weights."""
        sampler, seeds = self.sampler(entry.steps), entry.seeds[mine]
        noise = starting_noise(seeds, self.model.latent_shape).to(self.model.device)
        return self.batches.fit(
            "network",
            lambda size: rollout(self.adaptation.denoise, sampler, noise, guidance, size),
            len(seeds),
        )

    def read(self, final: Tensor, size: int) -> list[Piece]:
        """Latents z_0 (n, C, h, w) in pieces of `size` that a gradient can reach, and what they show.

        A single piece keeps its graph, so that it is not decoded a second time; of several only what was
        read is kept. Faces are looked for in all images at once.
        """
        latents = [z.detach().requires_grad_() for z in final.split(size)]
        if len(latents) == 1:
            return [(latents[0], self.look(latents[0], graph=True))]
        with torch.no_grad():
            images = [clamp_pixels(self.model.decode(z)) for z in latents]
            found = self.observer.find(torch.cat(images))
            views = []
            for i, part in enumerate(images):
                views.append(self.observer.look(part, found[i * size : (i + 1) * size]).without_images())
        return list(zip(latents, views))

    def look_back(
        self, pieces: list[Piece], labels: dict[str, Tensor], reference: References | None
    ) -> tuple[Tensor, Tensor]:
        """`cotangent`; if memory runs out, in smaller pieces, which take the place of these."""

        def work(size: int) -> tuple[Tensor, Tensor]:
            if size < len(pieces[0][0]):
                latents = torch.cat([z.detach() for z, _ in pieces]).split(size)
                found = [face for _, view in pieces for face in view.found]
                pieces.clear()  # and the graph of the first look with them
                for i, z in enumerate(latents):
                    faces = found[i * size : (i + 1) * size]
                    pieces.append((z.requires_grad_(), self.look(z, graph=False, found=faces)))
            latents, views = [z for z, _ in pieces], [view for _, view in pieces]
            return self.cotangent(latents, views, labels, reference)

        return self.batches.fit("decode", work, len(pieces[0][0]))

    def follow(
        self,
        trajectory: Trajectory,
        cotangent: Tensor,
        guidances: Iterator[Guidance],
        steps: Tensor | None,
    ) -> None:
        """The adjusted gradient into `.grad` of what is trained; begun anew if memory runs out.

        guidances: the rollout's, as often as it is asked for; each is used up by one attempt.
        """
        sampling = self.config.sampling
        each = trajectory.sampler.steps if steps is None else steps.shape[-1]

        def work(size: int) -> None:
            for p in self.optimizer.parameters:
                p.grad = None
            accumulate_gradients(
                self.adaptation.denoise,
                trajectory,
                cotangent,
                next(guidances),
                mode=sampling.mode,
                branches=sampling.branches,
                steps=steps,
                batch=size,
            )

        self.batches.fit("gradient", work, each * len(cotangent))

    def entry(self, turn: Turn) -> Entry:
        """Prompt, noises and number of steps of an iteration."""
        blocks = self.config.references.blocks
        block = turn.epoch % blocks if blocks else turn.epoch
        images, steps = self.config.optimizer.images, self.config.sampling.steps
        return Entry.draw(turn.prompt.text, block, images, steps)

    def sampler(self, steps: int) -> LinearSampler:
        """The scheduler's coefficients, read off once for each number of steps."""
        if steps not in self._samplers:
            self._samplers[steps] = self.model.sampler(steps)
        return self._samplers[steps]

    @cached_property
    def _samplers(self) -> dict[int, LinearSampler]:
        return {}

    def look(
        self,
        latents: Tensor,
        graph: bool,
        view: View | None = None,
        found: Sequence[Face | None] | None = None,
    ) -> View:
        """Decode latents (n, C, h, w) and read them; faces are where `view` or `found` has them."""
        with torch.set_grad_enabled(graph):
            images = clamp_pixels(self.model.decode(latents))
            return self.observer.look(images, found if view is None else view.found)

    def gather(self, views: list[View]) -> tuple[Tensor, dict[str, Tensor]]:
        """Which of all N images have a face, and their class probabilities, in all processes alike.

        A face that does not read as numbers is none.
        """
        rows = [view.probabilities(self.config.loss.temperature) for view in views]
        parts = {name: torch.cat([row[name] for row in rows]) for name in self.space.default.names}
        has_face = torch.cat([view.has_face for view in views])
        for name, part in parts.items():
            has_face = has_face & torch.isfinite(part).all(dim=1)
            parts[name] = torch.nan_to_num(part)
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
        count, total = self.config.sampling.gradient_steps, self.sampler(entry.steps).steps
        if not count or count >= total:  # some schedulers call the network more often than they were asked to
            return None
        generator = torch.Generator().manual_seed(self.config.run.seed * 1_000_003 + iteration)
        return draw_steps(total, count, entry.images, generator)[mine]

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
        fair = alignment_loss(view.logits, labels, total, loss.temperature)
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
