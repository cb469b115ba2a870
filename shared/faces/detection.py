"""Where the faces are: boxes and five points. No gradient flows here; `alignment` is differentiable.

Images are rounded to 8-bit levels first, so that a picture and its saved file give the same boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import FairAdapterError
from ..images import to_bytes
from ..precision import full_precision
from .mtcnn import Cascade

SMALL_SIDE = 128  # px; images with a shorter side are enlarged to it, at most by ENLARGE
ENLARGE = 4.0
LONG_SIDE = 1024  # px; larger images are reduced to it: no generator draws portraits this does not show
SMALLEST_FACE = 0.05  # of the shorter side
SMALLEST_PX = 16.0
PIXELS = 4 << 20  # pixels detected at a time; bounds the memory


@dataclass(frozen=True)
class Face:
    """One detected face, in pixels of the image it was found in (x to the right, y down).

    box: x0, y0, x1, y1; may stick out of the image.
    points: (x, y) of left eye, right eye, nose, left and right mouth corner, left as seen.
    probability: the detector's, in [0, 1].
    """

    box: tuple[float, float, float, float]
    points: tuple[tuple[float, float], ...]
    probability: float

    def area(self, height: int, width: int) -> float:
        """Area of the part of the box inside an image of that size, px^2."""
        x0, y0, x1, y1 = self.box
        return max(0.0, min(x1, width) - max(x0, 0.0)) * max(0.0, min(y1, height) - max(y0, 0.0))


def largest(faces: Sequence[Face], height: int, width: int) -> Face | None:
    """The face with the largest area inside the image; the surer one of equals; None without faces."""
    return max(faces, key=lambda f: (f.area(height, width), f.probability), default=None)


def stack_points(faces: Sequence[Face], like: Tensor) -> Tensor:
    """Points of the faces, (N, 5, 2) px, float32 or float64 like ``like``; on the CPU, where `align` wants
    them."""
    dtype = like.dtype if like.dtype == torch.float64 else torch.float32
    return torch.tensor([f.points for f in faces], dtype=dtype).reshape(-1, 5, 2)


class FaceDetector:
    """MTCNN for batches of equal-size images, on whatever device they are.

    Args:
        threshold: least probability of a face, in (0, 1).
        smallest: least side of a face as a fraction of the image's shorter side.

    Raises:
        FairAdapterError: facenet-pytorch or its weights are missing.
    """

    def __init__(self, threshold: float = 0.9, smallest: float = SMALLEST_FACE) -> None:
        self.threshold = threshold
        self.smallest = smallest
        self.cascade = Cascade()

    def detect(self, images: Tensor) -> list[list[Face]]:
        """Faces of each image, the largest first.

        Args:
            images: (N, 3, H, W) RGB in [0, 1], any floating type; NaN counts as black.

        Raises:
            FairAdapterError: another shape or type.
        """
        if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise FairAdapterError(
                f"face detection: expected floating point (N, 3, H, W) RGB in [0, 1], found "
                f"{tuple(images.shape)} {images.dtype}; load pictures with shared.images.load_image"
            )
        count, _, height, width = images.shape
        if not count or not height or not width:
            return [[] for _ in range(count)]
        self.cascade.to(images.device)
        size = detection_size(height, width)
        step = max(1, PIXELS // max(size[0] * size[1], height * width))
        found: list[list[Face]] = []
        for first in range(0, count, step):
            found += self._detect(images[first : first + step].detach(), size)
        return found

    def _detect(self, images: Tensor, size: tuple[int, int]) -> list[list[Face]]:
        height, width = images.shape[2:]
        levels = to_bytes(images)
        if size != (height, width):
            resized = F.interpolate(
                levels.float(), size, mode="bilinear", antialias=True, align_corners=False
            )
            levels = resized.round().clamp(0, 255).to(torch.uint8)
        with full_precision(images.device):
            outputs = self.cascade(levels, max(SMALLEST_PX, self.smallest * min(size)))
        boxes, scores, points, owners = (value.cpu() for value in outputs)
        ratio = torch.tensor([width / size[1], height / size[0]])
        boxes, points = boxes * ratio.repeat(2), points * ratio
        found: list[list[Face]] = [[] for _ in range(len(images))]
        for box, score, marks, owner in zip(
            boxes.tolist(), scores.tolist(), points.tolist(), owners.tolist()
        ):
            face = Face(tuple(box), tuple(tuple(p) for p in marks), score)
            if score >= self.threshold and face.area(height, width) > 0:
                found[owner].append(face)
        for faces in found:
            faces.sort(key=lambda f: (-f.area(height, width), -f.probability, f.box))
        return found


def detection_size(height: int, width: int) -> tuple[int, int]:
    """Height and width at which an image of that size is searched: enlarged or reduced to sensible limits."""
    scale = min(max(1.0, SMALL_SIDE / min(height, width)), ENLARGE)
    scale = min(scale, LONG_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))
