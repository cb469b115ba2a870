"""A ruler for skin tone: the individual typology angle of the skin of an aligned face, no trained net.

The angle is arctan((L* - 50) / b*) of CIELAB (D65), in degrees: large for light skin, negative for dark
(Chardon, Cretois and Hourseau, "Skin colour typology and suntanning pathways", Int. J. Cosmet. Sci. 13,
1991). It is the median over skin pixels of cheeks, nose and forehead, after the exposure is normalised by the
skin's own sheen. Six classes by the published bounds, `attributes.TONE_BOUNDS`, with soft edges.

It measures a picture, not a person: coloured light and a wrong exposure move it. Uneven light, little skin in
view and colours that are no skin's make it say so (`SkinReading.doubt`). Figures: docs/skin_tone.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attributes import SKIN_TONE, TONE_BOUNDS
from ..errors import FairAdapterError
from ..faces.alignment import FRAME
from ..precision import full_precision
from .base import ClassifierModule, check_faces

NAME = "skin_tone"
VERSION = 1  # part of the identity; rises with any number below
SIDE = 64  # px that the frame is averaged to: pores, strands and noise even out
# Both cheeks, nose, forehead: centre and half axes of ellipses, in sides of the frame
PATCHES = ((0.365, 0.535, 0.065, 0.075), (0.635, 0.535, 0.065, 0.075), (0.5, 0.47, 0.035, 0.08),
           (0.5, 0.25, 0.13, 0.05))  # fmt: skip
NEAR = (14.0, 7.0, 8.0)  # L*, a*, b*: skin is within twice this of the patches' median
SHEEN, POWER, USUAL = 0.9, 0.25, 0.30  # quantile of the luminance, exponent, and its usual value
MIDDLE = 0.2  # the median is the mean of this share of the pixels around it: all of them get a gradient
EDGE = 1.0  # degrees: how soft the classes' edges are
# Where a picture is in doubt: quartile range of L* (relative to L*, dark skin would be doubted more often),
# share of the patches that is no skin, degrees of hue from that of skin
UNEVEN, HIDDEN, HUE, OFF_HUE = 22.0, 0.3, 58.0, 28.0
DOUBT = 1.2  # at the limit; the likeliest class then has a probability of less than .7
_TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750),
           (0.0193339, 0.1191920, 0.9503041))  # fmt: skip
_WHITE = (0.95047, 1.0, 1.08883)
_KNEE = 6 / 29


@dataclass(frozen=True)
class SkinReading:
    """What the ruler says of N faces.

    angle: individual typology angle in degrees, (N,), with its gradient.
    doubt: 0 for a face in even light, 1 and more where the reading is uncertain, (N,), without gradient.
    """

    angle: Tensor
    doubt: Tensor


class SkinTone(ClassifierModule):
    """The ruler as a classifier of one attribute, `SKIN_TONE`."""

    def __init__(self) -> None:
        super().__init__(NAME, f"{NAME}:{VERSION}", (SKIN_TONE,))
        self.patches: Tensor
        self.register_buffer("patches", _patches(), persistent=False)
        self.eval()

    def read(self, faces: Tensor) -> SkinReading:
        """Angle and doubt of aligned faces (N, 3, 256, 256) RGB in [0, 1].

        Raises:
            FairAdapterError: ``faces`` is no floating-point tensor of that shape.
        """
        check_faces(faces)
        with full_precision(faces.device):
            small = F.avg_pool2d(faces.to(torch.promote_types(faces.dtype, torch.float32)), FRAME // SIDE)
            light = linear(small[:, :, self.patches])
            colours = lab(light)
            skin, doubt = _skin(colours.detach())
            return SkinReading(_angle(light, skin), doubt)

    def raw_logits(self, faces: Tensor) -> dict[str, Tensor]:
        reading = self.read(faces)
        return {NAME: soft_classes(reading.angle, reading.doubt)}


def soft_classes(angle: Tensor, doubt: Tensor) -> Tensor:
    """Logits (N, 6) of angles (N,) in degrees: each class between its bounds, edges EDGE degrees soft.

    They fall off linearly, so that an angle far from a class still has a gradient towards it. Doubt (N,)
    brings them together: at 1 and more the likeliest class stays below a probability of .7; none changes
    places.
    """
    bounds = torch.tensor(TONE_BOUNDS, dtype=angle.dtype, device=angle.device)
    place = (angle[:, None] - bounds) / EDGE
    over, under = F.logsigmoid(place), F.logsigmoid(-place)
    # log of sigmoid(a) - sigmoid(b) for a > b: log sigmoid(a) + log sigmoid(-b) + log(1 - exp(b - a))
    gap = torch.log1p(-torch.exp((bounds[1:] - bounds[:-1]) / EDGE))
    between = over[:, 1:] + under[:, :-1] + gap
    logits = torch.cat([over[:, :1], between, under[:, -1:]], 1)
    top = logits.detach().topk(2, 1).values
    squeeze = DOUBT * doubt.clamp(max=2.0).pow(8)
    return logits / (1.0 + squeeze * (top[:, 0] - top[:, 1]))[:, None]


def linear(values: Tensor) -> Tensor:
    """Linear light of sRGB values in [0, 1]."""
    curved = ((values.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4
    return torch.where(values > 0.04045, curved, values / 12.92)


def lab(light: Tensor) -> Tensor:
    """CIELAB (N, 3, P) of linear RGB (N, 3, P) under D65."""
    matrix = light.new_tensor(_TO_XYZ) / light.new_tensor(_WHITE)[:, None]
    t = torch.einsum("ij,njp->nip", matrix, light)
    f = torch.where(t > _KNEE**3, t.clamp(min=_KNEE**3) ** (1 / 3), t / (3 * _KNEE**2) + 4 / 29)
    return torch.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


def _skin(colours: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the patches' pixels (N, 3, P) in CIELAB are skin, (N, P) of 0 and 1, and the doubt (N,)."""
    middle = colours.median(2, keepdim=True).values
    distance = (colours - middle) / colours.new_tensor(NEAR)[:, None]
    blown = colours[:, 0] > 99.0  # no colour is left there
    skin = ((distance.square().sum(1) < 4.0) & ~blown).to(colours.dtype)
    lightness = colours[:, 0]
    every = torch.ones_like(lightness)
    spread = _quantile(lightness, every, 0.75) - _quantile(lightness, every, 0.25)
    hue = torch.rad2deg(torch.atan2(middle[:, 2, 0], middle[:, 1, 0]))
    signs = [
        spread / UNEVEN,
        (1.0 - skin.mean(1)) / HIDDEN,
        (hue - HUE).abs() / OFF_HUE,
    ]
    return skin, torch.stack(signs, 1).amax(1)


def _angle(light: Tensor, skin: Tensor) -> Tensor:
    """Median angle (N,) over the skin of linear RGB (N, 3, P), at the usual exposure."""
    luminance = torch.einsum("j,njp->np", light.new_tensor(_TO_XYZ[1]), light)
    sheen = _quantile(luminance, skin, SHEEN).clamp(min=1e-3)
    colours = lab(light * ((USUAL / sheen) ** POWER)[:, None, None])
    angles = torch.rad2deg(torch.atan2(colours[:, 0] - 50.0, colours[:, 2]))
    return _middle(angles, skin)


def _quantile(values: Tensor, weights: Tensor, share: float) -> Tensor:
    """Quantile (N,) of values (N, P) with weights."""
    ordered, index = values.sort(1)
    weights = weights.gather(1, index)
    reached = weights.cumsum(1) >= share * weights.sum(1, keepdim=True)
    return ordered.gather(1, reached.to(torch.uint8).argmax(1, keepdim=True))[:, 0]


def _middle(values: Tensor, weights: Tensor) -> Tensor:
    """Mean (N,) of the MIDDLE share of values (N, P) around their weighted median."""
    ordered, index = values.sort(1)
    weights = weights.gather(1, index)
    # without any skin every pixel counts; the doubt says so
    weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, torch.ones_like(weights))
    ends = weights.cumsum(1) / weights.sum(1, keepdim=True)
    low, high = 0.5 - MIDDLE / 2, 0.5 + MIDDLE / 2
    starts = F.pad(ends[:, :-1], (1, 0))
    inside = (ends.clamp(low, high) - starts.clamp(low, high)) / MIDDLE
    return (ordered * inside).sum(1)


def _patches() -> Tensor:
    """Mask (SIDE, SIDE) of the patches."""
    centres = (torch.arange(SIDE) + 0.5) / SIDE
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    inside = [((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1 for cx, cy, rx, ry in PATCHES]
    return torch.stack(inside).any(0)


def load(path: Path | None = None) -> SkinTone:
    """The ruler. It has no weights: raises FairAdapterError for a path."""
    if path is not None:
        raise FairAdapterError(f"classifier '{NAME}': expected no file, found {path}; it has no weights")
    return SkinTone()
