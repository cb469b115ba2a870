"""Pictures in, attribute bars out: the detector and one classifier together, for hosts and programs.

Nothing is loaded before the first picture is read. One reader may be shared by threads: a lock lets one of
them read at a time.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .attributes import Attribute, ordered
from .bars import CERTAIN, FaceBars, read_bars
from .classifiers import AttributeClassifier, load_classifier
from .errors import FairAdapterError
from .faces import Face, FaceDetector, align_all, align_largest
from .switches import OwnNumbers

CHUNK = 32  # faces classified at a time; bounds the memory


class _Chain:
    """The detector and one classifier, loaded when first asked for; one thread at a time may use them."""

    def __init__(self, classifier: str, device: torch.device) -> None:
        self.classifier, self.device, self.lock = classifier, device, threading.RLock()
        self._parts: tuple[FaceDetector, AttributeClassifier] | None = None

    def load(self) -> tuple[FaceDetector, AttributeClassifier]:
        with self.lock:
            if self._parts is None:
                # Weights made in a host's inference mode would stay in it; the numbers they are made with are
                # not taken from a sampler.
                with torch.inference_mode(False), OwnNumbers():
                    classifier = load_classifier(self.classifier).to(self.device)  # type: ignore[attr-defined]
                    self._parts = FaceDetector(), classifier
            return self._parts


@dataclass(frozen=True)
class PictureReading:
    """One picture: its faces, the largest first, and their ages where the classifier gives them in years."""

    faces: tuple[FaceBars, ...] = ()
    years: tuple[float, ...] = ()


class FaceReader:
    """Detector and classifier on one device.

    classifier: a name or NAME:PATH for `load_classifier`.
    device: where both run; pictures are brought there.
    all_faces: read every face of a picture; else the largest alone, as in training.
    certain: least probability, in [0, 1], of a reading that counts as certain.
    """

    def __init__(
        self,
        classifier: str = "default",
        device: torch.device | str = "cpu",
        all_faces: bool = False,
        certain: float = CERTAIN,
    ) -> None:
        self._chain = _Chain(classifier, torch.device(device))
        self.all_faces, self.certain = all_faces, certain

    def with_options(self, all_faces: bool = False, certain: float = CERTAIN) -> FaceReader:
        """A reader with other options that shares this one's detector and classifier."""
        other = copy.copy(self)
        other.all_faces, other.certain = all_faces, certain
        return other

    @property
    def classifier(self) -> AttributeClassifier:
        """Raises FairAdapterError for an unknown name and for weight files that are missing or damaged."""
        return self._chain.load()[1]

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        """In the order of the bars."""
        return tuple(ordered(self.classifier.attributes))

    def read(self, images: Tensor) -> list[list[FaceBars]]:
        """The faces of each picture, the largest first; an empty list is a picture without a face.

        images: (N, 3, H, W) RGB in [0, 1] of any floating type on any device; NaN counts as black.
        Raises FairAdapterError for another shape, and where a weight file is missing.
        """
        return [list(picture.faces) for picture in self.examine(images)]

    @torch.no_grad()
    def examine(self, images: Tensor) -> list[PictureReading]:
        """`read` with ages in years.  images and errors as there."""
        if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise FairAdapterError(
                f"face reading: expected floating point (N, 3, H, W) RGB in [0, 1], found "
                f"{tuple(images.shape)} {images.dtype}; load pictures with shared.images.load_image"
            )
        with self._chain.lock:
            detector, _ = self._chain.load()
            pixels = images.to(self._chain.device, torch.float32).nan_to_num(0.0).clamp(0.0, 1.0)
            if self.all_faces:
                return [self._picture(p[None], f) for p, f in zip(pixels, detector.detect(pixels))]
            return self._largest(pixels, detector)

    def _picture(self, pixels: Tensor, faces: Sequence[Face]) -> PictureReading:
        """Every face of one picture (1, 3, H, W)."""
        chunks = [faces[i : i + CHUNK] for i in range(0, len(faces), CHUNK)]
        parts = [self._classify(align_all(pixels, chunk), chunk) for chunk in chunks]
        bars = [face for faces, _ in parts for face in faces]
        return PictureReading(tuple(bars), tuple(age for _, years in parts for age in years))

    def _largest(self, pixels: Tensor, detector: FaceDetector) -> list[PictureReading]:
        """The largest face of each picture of (N, 3, H, W)."""
        found: list[PictureReading] = []
        for first in range(0, len(pixels), CHUNK):
            aligned = align_largest(pixels[first : first + CHUNK], detector)
            faces = [face for face in aligned.found if face is not None]
            bars, years = self._classify(aligned.faces, faces)
            ages = [(age,) for age in years] or [()] * len(bars)
            rows = iter([PictureReading((face,), age) for face, age in zip(bars, ages)])
            found += [PictureReading() if face is None else next(rows) for face in aligned.found]
        return found

    def _classify(self, aligned: Tensor, faces: Sequence[Face]) -> tuple[list[FaceBars], list[float]]:
        """Bars, and ages where the classifier tells them, of aligned faces (M, 3, 256, 256)."""
        if not faces:
            return [], []
        classifier = self.classifier
        logits, ages = classifier.with_years(aligned)
        years = [] if ages is None else ages.tolist()
        return read_bars(logits, classifier.attributes, faces, self.certain), years
