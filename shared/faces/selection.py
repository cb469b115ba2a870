"""From images to aligned faces: the largest of each image, or all of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .alignment import FRAME, align
from .detection import Face, FaceDetector, largest, stack_points


@dataclass(frozen=True)
class AlignedFaces:
    """The largest face of each image that has one.

    faces: (M, 3, 256, 256), differentiable with respect to the images.
    owners: (M,) int64, which image each face comes from, ascending.
    found: for each of the N images its largest face or None.
    """

    faces: Tensor
    owners: Tensor
    found: tuple[Face | None, ...]


def align_largest(images: Tensor, detector: FaceDetector) -> AlignedFaces:
    """Detects (without gradient) and aligns (with gradient) the largest faces of (N, 3, H, W) in [0, 1]."""
    height, width = images.shape[2:]
    found = tuple(largest(faces, height, width) for faces in detector.detect(images))
    members = [i for i, face in enumerate(found) if face is not None]
    owners = torch.tensor(members, dtype=torch.long, device=images.device)
    if not members:
        return AlignedFaces(images.new_zeros(0, 3, FRAME, FRAME), owners, found)
    points = stack_points([face for face in found if face is not None], images)
    return AlignedFaces(align(images.index_select(0, owners), points), owners, found)


def align_all(image: Tensor, faces: Sequence[Face]) -> Tensor:
    """Every one of ``faces`` out of one image (1, 3, H, W), aligned: (M, 3, 256, 256), differentiable.

    One at a time: a crowd in a large picture would need as many copies of it otherwise.
    """
    if not faces:
        return image.new_zeros(0, 3, FRAME, FRAME)
    return torch.cat([align(image, stack_points([face], image)) for face in faces])
