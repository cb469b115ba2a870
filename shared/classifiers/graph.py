"""Runs a small feed-forward net whose layers are listed in its weight file.

The gender and age nets are published as ONNX files. `trainer/face_chain/convert_weights.py` copies the
weights and the list of nodes into one safetensors file; this module runs the few operators they use in
torch, so that neither onnx nor onnxruntime is needed and gradients reach the image. The list ends at the
logits: the closing softmax is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import FairAdapterError
from ..weight_files import RESTORE, dequantised, read_tensors, take

Attributes = Mapping[str, Any]


class Graph(nn.Module):
    """Float32 net of a converted file: (N, C, H, W) in, the tensor named ``output`` out.

    Args:
        tensors: weights by ONNX name, float32, and integer constants.
        program: {"input": name, "output": name, "shapes": {tensor: shape},
            "nodes": [[operator, inputs, output, attributes], ...]}.
        path: named in errors.

    Raises:
        FairAdapterError: an unknown operator, or a tensor that is missing or of another shape.
    """

    def __init__(self, tensors: dict[str, Tensor], program: Mapping[str, Any], path: Path) -> None:
        super().__init__()
        try:
            self.input, self.output = str(program["input"]), str(program["output"])
            self.nodes = [
                (str(o), [str(i) for i in ins], str(out), dict(a)) for o, ins, out, a in program["nodes"]
            ]
            self.constants = {name: tuple(shape) for name, shape in program["shapes"].items()}
        except (KeyError, TypeError, ValueError) as error:
            raise FairAdapterError(
                f"{path}: expected a list of layers beside the weights, found none; {RESTORE.format(path)}"
            ) from error
        unknown = sorted({operator for operator, *_ in self.nodes} - set(OPERATORS))
        if unknown:
            raise FairAdapterError(
                f"{path}: expected the layers {', '.join(OPERATORS)}, found {', '.join(unknown)}; "
                f"{RESTORE.format(path)}"
            )
        for name, shape in self.constants.items():
            self.register_buffer(name, take(tensors, name, shape, path))
        for _, inputs, _, attributes in (node for node in self.nodes if node[0] == "Pad"):
            attributes["pads"] = getattr(self, inputs.pop()).tolist()  # numbers: no wait for a GPU

    @classmethod
    def load(cls, path: Path) -> Graph:
        """The net in a file written by `trainer/face_chain/convert_weights.py`; errors as the class."""
        tensors, metadata = read_tensors(path)
        values = dequantised(tensors, metadata.get("quantization", {}), path)
        return cls(values, metadata.get("program", {}), path)

    def forward(self, x: Tensor) -> Tensor:
        values: dict[str, Tensor] = {name: getattr(self, name) for name in self.constants}
        values[self.input] = x
        for operator, inputs, output, attributes in self.nodes:
            values[output] = OPERATORS[operator](attributes, *(values[name] for name in inputs))
        return values[self.output]


def _padded(x: Tensor, attributes: Attributes, value: float) -> Tensor:
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    return F.pad(x, (left, right, top, bottom), value=value) if top or left or bottom or right else x


def _conv(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(_padded(x, attributes, 0.0), weight, bias, attributes.get("strides", 1))


def _max_pool(attributes: Attributes, x: Tensor) -> Tensor:
    return F.max_pool2d(
        _padded(x, attributes, float("-inf")), attributes["kernel_shape"], attributes["strides"]
    )


def _average_pool(attributes: Attributes, x: Tensor) -> Tensor:
    return F.avg_pool2d(x, attributes["kernel_shape"], attributes["strides"])


def _pad(attributes: Attributes, x: Tensor) -> Tensor:
    amounts: Sequence[int] = attributes["pads"]
    half = len(amounts) // 2
    reverse = [amount for axis in reversed(range(half)) for amount in (amounts[axis], amounts[half + axis])]
    return F.pad(x, reverse)


def _gemm(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias, x, weight)


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Conv": _conv,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda _, x: x.mean((2, 3), keepdim=True),
    "Pad": _pad,
    "Gemm": _gemm,
    "Flatten": lambda _, x: x.flatten(1),
    "Relu": lambda _, x: x.relu(),
    "Add": lambda _, x, y: x + y,
    "Mul": lambda _, x, y: x * y,
}
