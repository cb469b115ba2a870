"""What looks at pictures while training and measuring: detector, classifier, face features, image encoders.

One look finds the largest face of each image, aligns it and reads logits and a face feature off it; all of it
but the detection is differentiable with respect to the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ...shared.attributes import Attribute, TargetDistribution
from ...shared.classifiers import AttributeClassifier, load_classifier
from ...shared.classifiers.default import DefaultClassifier
from ...shared.classifiers.default import load as load_default
from ...shared.errors import FairAdapterError
from ...shared.faces import Face, FaceDetector, align, largest, stack_points
from ...shared.faces.alignment import template
from ...shared.preservation import SemanticEncoder

MIDDLE = 0.7  # side of the fixed face chip as a fraction of the image's


class Detector(Protocol):
    """Faces of each image (N, 3, H, W), the largest first."""

    def detect(self, images: Tensor) -> list[list[Face]]: ...


class FixedFaces:
    """A face in the middle of every image, whatever is there: for models with random weights."""

    def detect(self, images: Tensor) -> list[list[Face]]:
        height, width = images.shape[2:]
        side = MIDDLE * min(height, width)
        x0, y0 = (width - side) / 2, (height - side) / 2
        points = template(0.2) * side + torch.tensor([x0, y0], dtype=torch.float64)
        face = Face((x0, y0, x0 + side, y0 + side), tuple((x, y) for x, y in points.tolist()), 1.0)
        return [[face] for _ in range(len(images))]


@dataclass(frozen=True)
class View:
    """What was read off N images. Tensors carry the graph to the images where there is one.

    images: (N, 3, H, W) in [0, 1].  found: the largest face of each, or None.
    logits: attribute -> (N, K), calibrated; zero without a face.
    features: (N, 128), unit face features; zero without a face.
    """

    images: Tensor
    found: tuple[Face | None, ...]
    logits: dict[str, Tensor]
    features: Tensor

    @cached_property
    def has_face(self) -> Tensor:
        """(N,) bool."""
        found = [face is not None for face in self.found]
        return torch.tensor(found, dtype=torch.bool, device=self.images.device)

    @cached_property
    def boxes(self) -> Tensor:
        """(N, 4) x0, y0, x1, y1 in px, NaN without a face."""
        nothing = (float("nan"),) * 4
        rows = [nothing if face is None else face.box for face in self.found]
        return torch.tensor(rows, dtype=torch.float32, device=self.images.device).reshape(-1, 4)

    def probabilities(self, temperature: float = 1.0) -> dict[str, Tensor]:
        """attribute -> (N, K), detached; meaningless without a face.  temperature: of the logits."""
        rows = {name: logits.detach().float() / temperature for name, logits in self.logits.items()}
        return {name: row.softmax(1) for name, row in rows.items()}

    def labels(self) -> dict[str, Tensor]:
        """attribute -> (N,) likeliest class, -1 without a face."""
        has_face = self.has_face
        return {n: torch.where(has_face, logits.argmax(1), -1) for n, logits in self.logits.items()}


@dataclass
class Observer:
    """Networks that look at pictures, on one device. Build it with `load_observer`."""

    detector: Detector
    classifier: AttributeClassifier
    chain: DefaultClassifier
    encoders: Sequence[SemanticEncoder]

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        return self.classifier.attributes

    @property
    def identity(self) -> tuple[str, ...]:
        """Everything that what is read depends on, for caches."""
        detector = type(self.detector).__name__
        encoders = (encoder.identity for encoder in self.encoders)
        return (detector, self.classifier.identity, self.chain.identity, *encoders)

    def target(self, text: str) -> TargetDistribution:
        """A target in the classifier's attributes. Raises FairAdapterError for others, with the remedy."""
        try:
            return TargetDistribution.parse(text, self.attributes)
        except FairAdapterError as error:
            known = ", ".join(a.name for a in self.attributes)
            raise FairAdapterError(
                f"{error} (classifier {self.classifier.identity} reads {known}; choose another with "
                "faces.classifier or --classifier)"
            ) from error

    def find(self, images: Tensor) -> list[Face | None]:
        """The largest face of each of images (N, 3, H, W) in [0, 1]."""
        height, width = images.shape[2:]
        return [largest(faces, height, width) for faces in self.detector.detect(images.detach())]

    def look(self, images: Tensor, found: Sequence[Face | None] | None = None) -> View:
        """Faces of images (N, 3, H, W) in [0, 1] and what they look like.

        found: the largest face of each where it is known already; None detects.
        """
        if found is None:
            found = self.find(images)
        members = [i for i, face in enumerate(found) if face is not None]
        owners = torch.tensor(members, dtype=torch.long, device=images.device)
        logits = {a.name: images.new_zeros(len(images), len(a)) for a in self.attributes}
        features = images.new_zeros(len(images), 128)
        if members:
            points = stack_points([face for face in found if face is not None], images)
            read, embedding = self.read(align(images[owners], points))
            features = features.index_put((owners,), F.normalize(embedding))
            logits = {name: zero.index_put((owners,), read[name]) for name, zero in logits.items()}
        return View(images, tuple(found), logits, features)

    def read(self, faces: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Logits and face features (M, 128), not normalised, of aligned faces (M, 3, 256, 256)."""
        if self.classifier is self.chain:
            reading = self.chain.read(faces)
            return reading.logits, reading.embedding
        return self.classifier(faces), self.chain.embed(faces)

    def encode(self, images: Tensor) -> list[Tensor]:
        """Features (N, D) of each encoder."""
        return [encoder(images) for encoder in self.encoders]


def load_observer(
    classifier: str = "default",
    detector: str = "mtcnn",
    encoders: Sequence[SemanticEncoder] = (),
    device: torch.device | str = "cpu",
) -> Observer:
    """Everything on `device`, frozen. Raises FairAdapterError for unknown names and missing weights."""
    chain = load_default().to(device).requires_grad_(False)
    chosen = chain if classifier == "default" else load_classifier(classifier)
    if chosen is not chain:
        chosen.to(device).requires_grad_(False)  # type: ignore[attr-defined]
    finder = FixedFaces() if detector == "fixed" else FaceDetector()
    return Observer(finder, chosen, chain, encoders)
