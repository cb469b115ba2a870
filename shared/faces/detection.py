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
from .windows import SMALLEST_FACE, Layer, Sighting, detection_size, is_cut, layers, merged, smallest_side

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

    def moved(self, right: float, down: float) -> Face:
        """The same face in an image that goes on so many px to the left and above."""
        x0, y0, x1, y1 = self.box
        points = tuple((x + right, y + down) for x, y in self.points)
        return Face((x0 + right, y0 + down, x1 + right, y1 + down), points, self.probability)


def _by_size(faces: Sequence[Face], height: int, width: int) -> list[Face]:
    return sorted(faces, key=lambda f: (-f.area(height, width), -f.probability, f.box))


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
        FairAdapterError: the weight file is missing, damaged or another one.
    """

    def __init__(self, threshold: float = 0.9, smallest: float = SMALLEST_FACE) -> None:
        self.threshold = threshold
        self.smallest = smallest
        self.cascade = Cascade()

    def detect(self, images: Tensor) -> list[list[Face]]:
        """Faces of each image, the largest first; see `windows` for rows of faces and very large images.

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
        parts = layers(height, width)
        if sum(len(layer.corners) for layer in parts) > 1:
            return [self._in_windows(image.detach(), parts) for image in images]
        return self._batched(images.detach())

    def _batched(self, images: Tensor) -> list[list[Face]]:
        height, width = images.shape[2:]
        size = detection_size(height, width)
        step = max(1, PIXELS // max(size[0] * size[1], height * width))
        found: list[list[Face]] = []
        for first in range(0, len(images), step):
            found += self._detect(images[first : first + step], size)
        return found

    def _in_windows(self, image: Tensor, parts: Sequence[Layer]) -> list[Face]:
        """The faces of an image (3, H, W), each once, though several windows may show it."""
        height, width = image.shape[1:]
        faces: list[Face] = []
        sightings: list[Sighting] = []
        number = 0
        for depth, layer in enumerate(parts):
            rows, columns = layer.size
            step = max(1, PIXELS // (rows * columns))
            for first in range(0, len(layer.corners), step):
                corners = layer.corners[first : first + step]
                crops = torch.stack([image[:, y : y + rows, x : x + columns] for y, x in corners])
                for (top, left), found in zip(corners, self._batched(crops)):
                    number += 1
                    for face in (face.moved(left, top) for face in found):
                        cut = is_cut(face.box, (top, left), layer.size, (height, width))
                        faces.append(face)
                        rank = (depth, cut, -face.probability, *face.box)
                        sightings.append(Sighting(face.box, number, rank, cut))
        return _by_size([faces[i] for i in merged(sightings)], height, width)

    def _detect(self, images: Tensor, size: tuple[int, int]) -> list[list[Face]]:
        height, width = images.shape[2:]
        levels = to_bytes(images)
        if size != (height, width):
            resized = F.interpolate(
                levels.float(), size, mode="bilinear", antialias=True, align_corners=False
            )
            levels = resized.round().clamp(0, 255).to(torch.uint8)
        with full_precision(images.device):
            outputs = self.cascade(levels, smallest_side(size, self.smallest))
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
        return [_by_size(faces, height, width) for faces in found]
