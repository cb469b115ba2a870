"""Faces in images: detection (no gradient) and alignment (differentiable)."""

from .alignment import align, window
from .detection import Face, FaceDetector, largest, stack_points
from .selection import AlignedFaces, align_all, align_largest
from .windows import least_face

__all__ = [
    "AlignedFaces",
    "Face",
    "FaceDetector",
    "align",
    "align_all",
    "align_largest",
    "largest",
    "least_face",
    "stack_points",
    "window",
]
