"""What finetuning must not change: image semantics and face realism (Shen et al., ICLR 2024).

Image semantics: 1 - cos between the features of the new image and of the original model's image of the same
noise, summed over encoders, with three weights. lambda_1 where an image keeps its class; where it has to
change, lambda_2 outside the face and lambda_3 inside: the loss gets lambda_2, and its gradient is scaled by
lambda_3 / lambda_2 on the pixels of the face (`damp_faces`), the only place where a weight per region can
act on a feature of the whole image. Losses of the classifier and of the face features must see the image
before `damp_faces`.

Face realism: 1 - cos between face features of the new image and of a real-looking face, which keeps the face
away from textures that only fool the classifier. That face is the original's own where its classes stay and
are certain, else the nearest face of a bank among those of the target class.

The released code also damps large parts of the picture when the original has no face, and looks for
neighbours in all classes; this does neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from .attributes import TargetDistribution
from .errors import FairAdapterError

FACTOR = 0.2  # lambda_2 / lambda_1 and lambda_3 / lambda_2 of the paper
CERTAIN = 0.9  # least class probability of an original face that is kept as it is


class SemanticEncoder(Protocol):
    """Features of whole images: a differentiable callable with a name for caches and reports.

    images: (N, 3, H, W) RGB in [0, 1].  Returns unit features (N, D).
    """

    identity: str

    def __call__(self, images: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class SemanticWeights:
    """Weights of the image semantics loss; the defaults are the paper's 8 / 1.6 / 0.32.

    unchanged: lambda_1.
    changed: attribute -> lambda_2 / lambda_1, in [0, 1]; `FACTOR` where not named.
    changed_face: attribute -> lambda_3 / lambda_2, in [0, 1]; `FACTOR` where not named.
    An image that changes several attributes takes the smallest factor of them.
    """

    unchanged: float = 8.0
    changed: Mapping[str, float] = field(default_factory=dict)
    changed_face: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        factors = [*self.changed.values(), *self.changed_face.values()]
        if self.unchanged < 0 or any(not 0 <= f <= 1 for f in factors):
            raise FairAdapterError(
                "semantic weights: expected a weight of 0 or more and factors in [0, 1], "
                f"found {self.unchanged} and {factors}"
            )


@dataclass(frozen=True)
class RegionWeights:
    """image: (N,), weight of each image's loss (lambda_1 or lambda_2).  face: (N,), `damp_faces` factor."""

    image: Tensor
    face: Tensor


def region_weights(
    labels: Mapping[str, Tensor],
    original_labels: Mapping[str, Tensor],
    has_face: Tensor,
    weights: SemanticWeights | None = None,
) -> RegionWeights:
    """The dynamic weights of N images.

    labels: attribute -> (N,), target classes, -1 for none (`DynamicTargets.labels`).
    original_labels: attribute -> (N,), classes of the original model's images, -1 without a face.
    has_face: (N,) bool, of the new image. Without a face nothing changes class: lambda_1.
    An attribute changes where the two labels differ; a face without a certain target is free to change.
    """
    weights = weights or SemanticWeights()
    image = torch.ones(has_face.shape, dtype=torch.float32, device=has_face.device)
    face = torch.ones_like(image)
    for name, label in labels.items():
        if name not in original_labels:
            raise FairAdapterError(f"region weights: no original classes for {name!r}")
        changes = has_face & (label != original_labels[name])
        image = torch.where(changes, image.clamp(max=weights.changed.get(name, FACTOR)), image)
        face = torch.where(changes, face.clamp(max=weights.changed_face.get(name, FACTOR)), face)
    return RegionWeights(weights.unchanged * image, face)


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: Tensor | float) -> Tensor:
        ctx.factor = factor  # never one that a gradient reaches
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def scale_gradient(values: Tensor, factor: Tensor | float) -> Tensor:
    """The same values; their gradient times a factor that broadcasts to them."""
    factor = factor.detach().to(values) if isinstance(factor, Tensor) else factor
    return _ScaledGradient.apply(values, factor)


def damp_faces(images: Tensor, boxes: Tensor, original_boxes: Tensor, factor: Tensor) -> Tensor:
    """The same images; their gradient is scaled by `factor` where the new and the original face box overlap.

    images: (N, 3, H, W).  boxes, original_boxes: (N, 4) as x0, y0, x1, y1 in pixels, which may reach beyond
    the image; NaN or an empty box for no face, which damps nothing.  factor: (N,), `RegionWeights.face`.
    """
    height, width = images.shape[-2:]
    low = torch.maximum(boxes[:, :2], original_boxes[:, :2])
    high = torch.minimum(boxes[:, 2:], original_boxes[:, 2:])
    x = torch.arange(width, device=images.device) + 0.5  # pixel centres
    y = torch.arange(height, device=images.device) + 0.5
    inside_x = (x >= low[:, :1]) & (x < high[:, :1])  # comparisons with NaN are false
    inside_y = (y >= low[:, 1:]) & (y < high[:, 1:])
    inside = inside_y[:, None, :, None] & inside_x[:, None, None, :]  # (N, 1, H, W)
    scale = torch.where(inside, factor[:, None, None, None].to(images.dtype), 1.0)
    return scale_gradient(images, scale)


class _ProjectedClamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return values.clamp(0.0, 1.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (values,), gradient = ctx.saved_tensors, gradients[0]
        outward = ((values > 1) & (gradient < 0)) | ((values < 0) & (gradient > 0))
        return gradient.masked_fill(outward, 0.0)


def clamp_pixels(decoded: Tensor) -> Tensor:
    """Decoder output -> images in [0, 1], with the gradient of a projection.

    A plain clamp, as released, gives a saturated pixel no gradient at all: white skin or a black background
    can't move any more. Passing every gradient would push it ever further out, unseen by the loss. Here the
    gradient passes wherever a descent step leads towards [0, 1] and stops where it leads away.
    """
    return _ProjectedClamp.apply(decoded)


def image_semantics_loss(features: Sequence[Tensor], references: Sequence[Tensor]) -> Tensor:
    """sum over encoders of 1 - cos, (N,) in [0, 2 E], float32.

    features, references: one (N, D_e) for each encoder, new and original images.
    """
    if len(features) != len(references) or not features:
        raise FairAdapterError(f"image semantics: {len(features)} features for {len(references)} references")
    losses = [
        1 - cosine_similarity(f.float(), r.float().detach(), dim=1) for f, r in zip(features, references)
    ]
    return torch.stack(losses).sum(dim=0)


@dataclass(frozen=True)
class FaceBank:
    """Features of real-looking faces and what is known about them.

    features: (M, D), unit.
    labels: attribute -> (M,) int64 classes, -1 where unknown. Attributes that are missing restrict nothing.
    """

    features: Tensor
    labels: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {name: len(label) for name, label in self.labels.items()}
        if self.features.ndim != 2 or not len(self.features) or set(lengths.values()) - {len(self.features)}:
            raise FairAdapterError(f"face bank: features {tuple(self.features.shape)} with labels {lengths}")

    def eligible(self, labels: Mapping[str, Tensor]) -> Tensor:
        """(N, M) bool: faces of each row's class in every attribute; -1 and unlabelled attributes allow all.

        labels: attribute -> (N,), at least one of them.
        """
        rows = len(next(iter(labels.values())))
        keep = self.features.new_ones(rows, len(self.features), dtype=torch.bool)
        for name, label in labels.items():
            if name in self.labels:
                keep &= (label[:, None] < 0) | (label[:, None] == self.labels[name])
        return keep

    def check(self, target: TargetDistribution) -> None:
        """FairAdapterError if the bank has no face for a combination that the target asks for."""
        wanted = [cell for cell, share in zip(target.cells, target.shares) if share > 0]
        device = self.features.device
        labels = {
            a.name: torch.tensor([a.index(cell[i]) for cell in wanted], device=device)
            for i, a in enumerate(target.attributes)
        }
        found = self.eligible(labels).any(dim=1).tolist()
        empty = ["*".join(cell) for cell, any_face in zip(wanted, found) if not any_face]
        if empty:
            raise FairAdapterError(
                f"face bank: none of its {len(self.features)} faces is {' or '.join(empty)}; add such faces"
            )

    def nearest(self, features: Tensor, labels: Mapping[str, Tensor]) -> Tensor:
        """Index (N,) of the most similar face of each target class.

        features: (N, D), unit.  labels: attribute -> (N,), -1 for any class.
        """
        similarity = features.detach().to(self.features) @ self.features.T  # (N, M)
        keep = self.eligible(labels)
        missing = ~keep.any(dim=1)
        if missing.any():
            row = int(missing.nonzero()[0])
            wanted = {name: int(label[row]) for name, label in labels.items()}
            raise FairAdapterError(f"face bank: no face of classes {wanted}; add such faces to it")
        return similarity.masked_fill(~keep, -torch.inf).argmax(dim=1)


@dataclass(frozen=True)
class OriginalFaces:
    """The original model's images of the same noise.

    features: (N, D) unit face features, anything where there is no face.
    labels: attribute -> (N,) classes, -1 without a face.
    certainty: attribute -> (N,) largest class probability.
    """

    features: Tensor
    labels: Mapping[str, Tensor]
    certainty: Mapping[str, Tensor]


def realism_targets(
    features: Tensor,
    has_face: Tensor,
    labels: Mapping[str, Tensor],
    original: OriginalFaces,
    bank: FaceBank | None,
    certain: float = CERTAIN,
) -> tuple[Tensor, Tensor]:
    """The face that each new face should resemble: targets (N, D) and where there is one, (N,) bool.

    features: (N, D) unit face features of the new images.  has_face: (N,) bool.
    labels: attribute -> (N,) target classes.
    The original's own face where every target class equals the original's and that was at least `certain`;
    else the nearest in the bank. Without a bank only the former; images without a face have no target.
    """
    own = has_face.clone()
    for name, label in labels.items():
        own &= (label >= 0) & (label == original.labels[name]) & (original.certainty[name] >= certain)
    targets = torch.where(own[:, None], original.features, torch.zeros_like(original.features)).detach()
    others = has_face & ~own
    if bank is None:
        return targets, own
    if others.any():
        index = bank.nearest(features[others], {name: label[others] for name, label in labels.items()})
        targets[others] = bank.features[index].to(targets)
    return targets, has_face


def face_realism_loss(features: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """1 - cos where there is a target, else 0; (N,), float32.

    features, targets: (N, D).  mask: (N,) bool. Rows outside the mask may hold anything, NaN included.
    """
    losses = torch.zeros(len(features), device=features.device)
    similarity = cosine_similarity(features[mask].float(), targets[mask].float().detach(), dim=1)
    return losses.index_put((mask.nonzero().squeeze(1),), 1 - similarity)
