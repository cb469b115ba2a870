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
from ...shared.direct import accumulate_gradients
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
from ...shared.window import Window
from ..configuration.config import Config
from ..configuration.prompts import Schedule, Turn
from ..families.adaptation import Adaptation
from ..families.base import DiffusionModel
from ..instruments.observer import Observer, View
from ..running.memory import MicroBatches
from ..running.processes import Processes
from .bank import Entry, ReferenceBank, References
from .optimizer import Optimizer
from .steps import steps_with_gradient
from .targets import TargetDraw


@dataclass(frozen=True)
class Piece:
    """Latents z_0 (n, C, h, w) and what was read off their images.

    view: of images that are cut off from the latents.
    drawn: the same images with the graph to the latents, where the view has the graph to its images too; both
        are made anew where they are not kept.
    """

    latents: Tensor
    view: View
    drawn: Tensor | None = None


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
        config, turn = self.config, self.schedule[iteration]
        target = self.targets.of(iteration, turn.prompt.text)
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
        has_face, probabilities = self.gather([piece.view for piece in pieces])
        assigned = dynamic_targets(
            probabilities,
            has_face,
            target,
            config.loss.confidence,
            config.loss.draws,
            seed=config.run.seed * 1_000_003 + iteration,
            apart=config.loss.apart,
        )

        # g = dL/dz_0, and its way into the parameters through every step on its own.
        labels = {name: label[mine] for name, label in assigned.labels.items()}
        cotangent, sums = self.fitting_cotangent(pieces, labels, reference)
        pieces.clear()  # and with them the graph of what no loss went back through
        again = (self.guidance(entry, target) for _ in itertools.count())
        steps = self.gradient_steps(iteration, entry, mine)
        self.parameter_gradients(trajectory, cotangent, itertools.chain([guidance], again), steps)

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
            {n: float((label >= 0).float().mean()) for n, label in assigned.labels.items()},
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
        negative = self.config.model.negative
        outside = self.adaptation.outside([entry.prompt], self.guidance_scale, self.window, negative)
        noise = starting_noise(seeds, self.model.latent_shape).to(self.model.device)
        return self.batches.fit(
            "network",
            lambda size: rollout(self.adaptation.denoise, sampler, noise, guidance, size, outside=outside),
            len(seeds),
        )

    def read(self, final: Tensor, size: int, found: Sequence[Face | None] | None = None) -> list[Piece]:
        """Latents z_0 (N, C, h, w) in pieces of `size`, and what they show.

        A single piece keeps its graph, so that it is not decoded a second time. Faces are where `found` has
        them, or are looked for in all images at once.
        """
        latents = final.split(size)
        if len(latents) == 1:
            z = _leaf(final)
            with torch.enable_grad():
                drawn = self.draw(z)
                return [Piece(z, self.observer.look(_leaf(drawn), found), drawn)]
        with torch.no_grad():
            images = [self.shown(z) for z in latents]
            found = self.observer.find(torch.cat(images)) if found is None else found
            views = [
                self.observer.look(part, found[i * size : (i + 1) * size]) for i, part in enumerate(images)
            ]
        return [Piece(z, view) for z, view in zip(latents, views)]

    def fitting_cotangent(
        self, pieces: list[Piece], labels: dict[str, Tensor], reference: References | None
    ) -> tuple[Tensor, Tensor]:
        """`cotangent`; if memory runs out, in smaller pieces, which take the place of these."""

        def work(size: int) -> tuple[Tensor, Tensor]:
            if size < len(pieces[0].latents):
                latents = torch.cat([piece.latents.detach() for piece in pieces])
                found = [face for piece in pieces for face in piece.view.found]
                pieces.clear()  # and the graph of the first look with them
                pieces.extend(self.read(latents, size, found))
            return self.cotangent(pieces, labels, reference)

        return self.batches.fit("decode", work, len(pieces[0].latents))

    def parameter_gradients(
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
    def window(self) -> Window:
        """The part of the steps in which the adapter acts."""
        return Window(*self.config.sampling.window)

    @cached_property
    def _samplers(self) -> dict[int, LinearSampler]:
        return {}

    def draw(self, latents: Tensor) -> Tensor:
        """Images (n, 3, H, W) in [0, 1] of latents (n, C, h, w)."""
        return clamp_pixels(self.model.decode(latents))

    def shown(self, latents: Tensor) -> Tensor:
        """The images alone, the same to the last bit as where a gradient is asked for: kernels differ."""
        with torch.enable_grad():
            return self.draw(_leaf(latents)).detach()

    def look(self, latents: Tensor, graph: bool, found: Sequence[Face | None] | None = None) -> View:
        """Decode latents (n, C, h, w) and read them; faces are where `found` has them."""
        with torch.set_grad_enabled(graph):
            return self.observer.look(self.draw(latents), found)

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
        """The steps of each image that get a gradient, of those in the window; None is all."""
        count, seed = self.config.sampling.gradient_steps, self.config.run.seed * 1_000_003 + iteration
        steps = steps_with_gradient(self.sampler(entry.steps), self.window, count, entry.images, seed)
        return steps if steps is None or steps.ndim == 1 else steps[mine]

    def cotangent(
        self, pieces: Sequence[Piece], labels: dict[str, Tensor], reference: References | None
    ) -> tuple[Tensor, Tensor]:
        """dL/dz_0 (n, 4, h, w), times the loss scale, and the sums of the losses (3,).

        Every network that looks at the images goes back to them, and lets its graph go, before the next one
        looks; the decoder goes back last, once for all.
        """
        gradients, sums, first = [], [], 0
        for piece in pieces:
            rows = slice(first, first + len(piece.latents))
            first += len(piece.latents)
            z, view, drawn, towards = piece.latents, piece.view, piece.drawn, None
            chosen = {name: label[rows].to(z.device) for name, label in labels.items()}
            if drawn is None:
                view = self.observer.look(_leaf(view.images), view.found)
            for parts in self.loss_parts(view, chosen, reference, rows):
                sums.append(parts.detach())
                if parts.requires_grad:
                    (gradient,) = torch.autograd.grad(parts.sum() * self.optimizer.scale, view.images)
                    towards = gradient if towards is None else towards + gradient
            if towards is None:
                gradients.append(torch.zeros_like(z))
                continue
            if drawn is None:
                z = _leaf(z)
                drawn = self.draw(z)
            gradients += torch.autograd.grad(drawn, z, towards)
        return torch.cat(gradients), torch.stack(sums).sum(dim=0)

    def losses(
        self, view: View, labels: dict[str, Tensor], reference: References | None, rows: slice
    ) -> Tensor:
        """Alignment, image semantics and face realism of some images, weighted and divided by N: (3,)."""
        return torch.stack(list(self.loss_parts(view, labels, reference, rows))).sum(dim=0)

    def loss_parts(
        self, view: View, labels: dict[str, Tensor], reference: References | None, rows: slice
    ) -> Iterator[Tensor]:
        """Summands of `losses`, that of the faces first, then one for each image encoder.

        Encoders look when their summand is asked for; no two summands share a graph behind `view.images`.
        """
        loss, total = self.config.loss, self.config.optimizer.images
        fair = alignment_loss(view.logits, labels, total, loss.temperature)
        nothing = torch.zeros_like(fair)
        if reference is None:
            yield torch.stack([fair, nothing, nothing])
            return
        reference = reference.part(rows)
        original, face = reference.original, nothing
        if loss.face:
            targets, mask = realism_targets(
                view.features.detach(), view.has_face, labels, original, self.faces, loss.certain
            )
            face = loss.face * face_realism_loss(view.features, targets, mask).sum() / total
        yield torch.stack([fair, nothing, face])
        if not loss.semantics:
            return
        weights = region_weights(labels, original.labels, view.has_face, self.semantic_weights)
        for encoder, features in zip(self.observer.encoders, reference.features):
            damped = damp_faces(view.images, view.boxes, reference.boxes, weights.face)
            distance = image_semantics_loss([encoder(damped)], [features])
            yield torch.stack([nothing, (weights.image * distance).sum() / total, nothing])

    @cached_property
    def semantic_weights(self) -> SemanticWeights:
        loss = self.config.loss
        return SemanticWeights(loss.semantics, loss.changed, loss.changed_face)


def _leaf(tensor: Tensor) -> Tensor:
    """The same numbers where a gradient stops and is asked for."""
    return tensor.detach().requires_grad_()


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
