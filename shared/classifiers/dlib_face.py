"""dlib's face recognition net: aligned face -> 128 numbers whose distance tells persons apart.

A 29-layer residual net (dlib_face_recognition_resnet_model_v1, Davis King, public domain), stored as the
8-bit integers its face-api.js edition ships. Two photos show the same person when their embeddings are
closer than about 0.6. The distance is what the face realism loss and the diversity measures use.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..weight_files import dequantised, read_tensors, take

SIZE = 150  # side of the chip in px
PADDING = 0.25  # of dlib's chip geometry
WIDTH = 128  # of the embedding
MEAN = (122.782, 117.001, 104.298)  # RGB levels subtracted by every dlib net
STAGES = ((32, 3), (64, 4), (128, 3), (256, 3))  # width, blocks; later stages halve the map first


class DlibFaceNet(nn.Module):
    """(N, 3, 150, 150) RGB in [0, 1], dlib chip of padding 0.25 -> embeddings (N, 128), not normalised.

    Raises:
        FairAdapterError: a tensor of the file is missing or of another shape.
    """

    mean: Tensor
    fc: Tensor

    def __init__(self, weights: dict[str, Tensor], path: Path) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1) / 255.0, persistent=False)
        self.stem = _Convolution(weights, "conv32_down", 3, 32, 7, path, stride=2, padding=0)
        blocks: list[nn.Module] = []
        inner = 32
        for width, count in STAGES:
            for index in range(count):
                down = index == 0 and width > 32
                name = f"conv{width}_down" if down else f"conv{width}_{index + (width == 32)}"
                blocks.append(_Block(weights, name, inner, width, path, down))
                inner = width
        blocks.append(_Block(weights, "conv256_down_out", 256, 256, path, down=True))
        self.blocks = nn.Sequential(*blocks)
        self.register_buffer("fc", take(weights, "fc", (256, WIDTH), path).float())

    @classmethod
    def load(cls, path: Path) -> DlibFaceNet:
        """The net of a file written by `trainer/face_chain/convert_weights.py`."""
        tensors, metadata = read_tensors(path)
        return cls(dequantised(tensors, metadata.get("quantization", {}), path), path)

    def forward(self, chips: Tensor) -> Tensor:
        # dlib divides levels by 256, not 255 (input_rgb_image)
        x = (chips - self.mean) * (255.0 / 256.0)
        x = F.max_pool2d(self.stem(x).relu(), 3, 2)
        return self.blocks(x).mean((2, 3)) @ self.fc


class _Convolution(nn.Module):
    """Convolution with dlib's affine layer folded in."""

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        weights: dict[str, Tensor],
        name: str,
        inner: int,
        outer: int,
        kernel: int,
        path: Path,
        stride: int = 1,
        padding: int = 1,
    ) -> None:
        super().__init__()
        shape = (kernel, kernel, inner, outer)
        filters = take(weights, f"{name}/conv/filters", shape, path).permute(3, 2, 0, 1)
        bias = take(weights, f"{name}/conv/bias", (outer,), path)
        gain = take(weights, f"{name}/scale/weights", (outer,), path)
        offset = take(weights, f"{name}/scale/biases", (outer,), path)
        self.register_buffer("weight", (filters * gain[:, None, None, None]).contiguous())
        self.register_buffer("bias", bias * gain + offset)
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)


class _Block(nn.Module):
    """Residual block; a ``down`` block halves the map and its shortcut is an average pool, zero-padded."""

    def __init__(
        self, weights: dict[str, Tensor], name: str, inner: int, outer: int, path: Path, down: bool
    ) -> None:
        super().__init__()
        stride, padding = (2, 0) if down else (1, 1)
        self.first = _Convolution(weights, f"{name}/conv1", inner, outer, 3, path, stride, padding)
        self.second = _Convolution(weights, f"{name}/conv2", outer, outer, 3, path)
        self.down = down

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x).relu())
        if not self.down:
            return (x + y).relu()
        shortcut = F.avg_pool2d(x, 2, 2)
        height, width = shortcut.shape[2] - y.shape[2], shortcut.shape[3] - y.shape[3]
        channels = y.shape[1] - shortcut.shape[1]
        return (F.pad(y, (0, width, 0, height)) + F.pad(shortcut, (0, 0, 0, 0, 0, channels))).relu()
