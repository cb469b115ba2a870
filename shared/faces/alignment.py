"""Five points -> the canonical aligned face, differentiable with respect to the image.

The frame all classifiers share: 256 px, dlib's chip geometry with padding 0.5, which is the widest crop
any back end needs. A back end takes its centred window out of it. Sampling is antialiased at any
reduction: a box-filtered image pyramid first, then two samples per pixel and axis where that still
shrinks; each face is treated by its own scale, so that a batch gives what its faces give one by one.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import FairAdapterError
from ..precision import full_precision

FRAME = 256  # side of an aligned face in px
PADDING = 0.5
# Where the detector's five points (eyes, nose, mouth corners) lie in a dlib chip of padding 0.2, as
# fractions of its side: median over 408 synthetic faces.
CHIP_02 = ((0.3068, 0.2901), (0.6910, 0.2892), (0.4963, 0.5195), (0.3389, 0.7237), (0.6561, 0.7211))


def template(padding: float = PADDING) -> Tensor:
    """The five points in a chip of that padding, (5, 2) float64, fractions of its side."""
    points = torch.tensor(CHIP_02, dtype=torch.float64)
    return (points * 1.4 + (padding - 0.2)) / (1.0 + 2.0 * padding)


def similarity(source: Tensor, target: Tensor) -> Tensor:
    """Least-squares rotation, scale and shift (N, 2, 3) that take source (N, 5, 2) to target (N, 5, 2).

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns", PAMI
    1991, in the plane and without reflection. Points that coincide give a finite transform.
    """
    source_mean, target_mean = source.mean(1, keepdim=True), target.mean(1, keepdim=True)
    s, t = source - source_mean, target - target_mean
    spread = (s * s).sum((1, 2)).clamp(min=1e-6)
    cosine = (s * t).sum((1, 2)) / spread
    sine = (s[..., 0] * t[..., 1] - s[..., 1] * t[..., 0]).sum(1) / spread
    rotation = torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)
    shift = target_mean - source_mean @ rotation.transpose(1, 2)
    return torch.cat([rotation, shift.transpose(1, 2)], 2)


def align(images: Tensor, points: Tensor, size: int = FRAME, padding: float = PADDING) -> Tensor:
    """Aligned faces (N, 3, size, size), RGB like the images; the image's edge is repeated outside it.

    Args:
        images: (N, 3, H, W) floating point; half types are computed and returned in float32.
        points: the detector's five points (N, 5, 2) in px of the images, one face per image. On the CPU they
            cost a GPU no wait.
        size: side of the result in px.
        padding: of the dlib chip geometry; 0.5 is the canonical frame.

    Raises:
        FairAdapterError: images and points do not go together.
    """
    if images.dim() != 4 or tuple(points.shape) != (len(images), 5, 2):
        raise FairAdapterError(
            f"alignment: expected images (N, 3, H, W) and points (N, 5, 2), found {tuple(images.shape)} and "
            f"{tuple(points.shape)}; pass one face for each image"
        )
    with full_precision(images.device):
        return _align(images.to(torch.promote_types(images.dtype, torch.float32)), points, size, padding)


def _align(images: Tensor, points: Tensor, size: int, padding: float) -> Tensor:
    points = points.to(images.dtype).detach()
    target = (template(padding) * size).to(points).expand(len(points), 5, 2)
    transform = similarity(points, target)
    shrink = _determinant(transform).rsqrt()  # source px per result px
    plans = [_plan(s, min(images.shape[2:])) for s in shrink.tolist()]
    transform = transform.to(images.device)
    if len(set(plans)) == 1:
        return _sample(images, transform, size, *plans[0])
    faces: list[Tensor | None] = [None] * len(images)
    for plan in sorted(set(plans)):
        members = [i for i, p in enumerate(plans) if p == plan]
        chosen = torch.tensor(members, device=images.device)
        samples = _sample(images.index_select(0, chosen), transform.index_select(0, chosen), size, *plan)
        for i, face in zip(members, samples):
            faces[i] = face
    return torch.stack(faces) if faces else images.new_zeros(0, 3, size, size)  # type: ignore[arg-type]


def _plan(shrink: float, short: int) -> tuple[int, int]:
    """Side of the box filter (a power of two) and samples per pixel and axis for a reduction."""
    level = math.floor(math.log2(shrink)) if shrink > 1.0 else 0
    level = max(0, min(level, math.floor(math.log2(short))))
    return 1 << level, 2 if shrink > 1.0 else 1


def _determinant(transform: Tensor) -> Tensor:
    """Of the rotation and scale of similarities (N, 2, 3), kept from zero; (N,)."""
    return transform[:, :, 0].square().sum(1).clamp(min=1e-12)


def _sample(images: Tensor, transform: Tensor, size: int, block: int, samples: int) -> Tensor:
    """Bilinear samples of box-filtered images at the inverse of ``transform`` (N, 2, 3)."""
    height, width = images.shape[2:]
    if block > 1:
        bottom, right = -height % block, -width % block
        images = F.avg_pool2d(F.pad(images, (0, right, 0, bottom), mode="replicate"), block)
        height, width = height + bottom, width + right
    count = size * samples
    centres = (torch.arange(count, device=images.device, dtype=images.dtype) + 0.5) / samples
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    target = torch.stack([x, y], -1).view(1, -1, 2)
    # a similarity's inverse is its transpose over its determinant; source = inverse @ (target - shift)
    source = (
        (target - transform[:, None, :, 2]) @ transform[:, :, :2] / _determinant(transform)[:, None, None]
    )
    grid = torch.stack([source[..., 0] / width, source[..., 1] / height], -1) * 2.0 - 1.0
    faces = F.grid_sample(
        images, grid.view(-1, count, count, 2), mode="bilinear", padding_mode="border", align_corners=False
    )
    return F.avg_pool2d(faces, samples) if samples > 1 else faces


def window(faces: Tensor, padding: float, size: int) -> Tensor:
    """The centred window of dlib padding ``padding`` out of aligned faces, resized to (N, 3, size, size).

    Args:
        faces: (N, 3, 256, 256) from `align`.
        padding: between 0 and 0.5; the window is (1 + 2 padding) / 2 of the frame's side.
        size: side of the result in px. A result pixel is the mean of the bilinearly interpolated face
            over its area: antialiased at any reduction, linear in the face, so differentiable.
    """
    length = faces.shape[-1]
    side = length * (1.0 + 2.0 * padding) / (1.0 + 2.0 * PADDING)
    weights = _area_weights(length, (length - side) / 2.0, side / size, size, faces.dtype, faces.device)
    return weights @ faces @ weights.T


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _area_weights(
    length: int, start: float, scale: float, size: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Resampling matrix (size, length): integrals of the hat functions of ``length`` pixels over ``size``
    intervals of ``scale`` px that begin at ``start``."""
    edges = start + torch.arange(size + 1, dtype=torch.float64) * scale
    distance = (edges[:, None] - torch.arange(length, dtype=torch.float64)[None] - 0.5).clamp(-1.0, 1.0)
    primitive = 0.5 + distance - 0.5 * distance * distance.abs()  # of the hat 1 - |x| on [-1, 1]
    weights = primitive[1:] - primitive[:-1]
    return (weights / weights.sum(1, keepdim=True)).to(device, dtype)
