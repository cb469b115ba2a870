"""Fine detail of faces, which finetuning smears or overdoes first (Figure 5 of Shen et al., ICLR 2024)."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

WINDOW = slice(64, 192)  # px of an aligned face's 256: from brow to mouth, no hair and no background
SIGMA = 3.0  # px; wrinkles, pores and smears are finer, eyes and shading coarser
LUMINANCE = (0.299, 0.587, 0.114)  # of RGB, Rec. 601


def skin_texture(faces: Tensor) -> Tensor:
    """Contrast of the detail finer than `SIGMA`, (N,): root mean square over the mean luminance around.

    faces: (N, 3, 256, 256) aligned, RGB in [0, 1]. Does not change with brightness, so that skins of
    different tone compare; 0 for a smooth face.
    """
    light = torch.einsum("nchw,c->nhw", faces.float(), faces.new_tensor(LUMINANCE).float())[:, None]
    blurred = gaussian_blur(light, [2 * round(3 * SIGMA) + 1] * 2, [SIGMA] * 2)
    contrast = (light - blurred) / blurred.clamp_min(1 / 255)
    return contrast[:, 0, WINDOW, WINDOW].square().mean(dim=(1, 2)).sqrt()
