"""The three nets of the MTCNN cascade and their weights, `shared/weights/mtcnn.safetensors`.

Zhang et al., "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional Networks", IEEE SPL
2016, section II-B. Layers and weights are those of the package facenet-pytorch 2.6.0 (MIT), in its order, so
that every number is the same to the bit (tests/test_faces.py). In the file a layer has the package's name
after that of its net: "pnet.conv1.weight".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from ..weight_files import WEIGHTS_FOLDER, read_tensors, take

FILE = WEIGHTS_FOLDER / "mtcnn.safetensors"


class _Net(nn.Module):
    """Layers one after the other, then heads side by side, of which the first tells the probability.

    trunk, heads: layers by their names in the file, in the order in which they run.
    """

    def __init__(self, trunk: Mapping[str, nn.Module], heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.trunk = list(trunk)
        self.heads = list(heads)
        for name, layer in (*trunk.items(), *heads.items()):
            self.add_module(name, layer)
        self.softmax = nn.Softmax(dim=1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        for name in self.trunk:
            layer = self.get_submodule(name)
            if isinstance(layer, nn.Linear):  # the weights' order is that of columns first, as in Matlab
                x = x.permute(0, 3, 2, 1).contiguous().flatten(1)
            x = layer(x)
        values = [self.get_submodule(name)(x) for name in self.heads]
        return (*values[1:], self.softmax(values[0]))


def _stage(number: int, inner: int, outer: int, kernel: int, pool: int = 0) -> dict[str, nn.Module]:
    """Convolution, PReLU and, for a ``pool`` of 2 or 3, the largest of so many pixels at every second one."""
    layers: dict[str, nn.Module] = {
        f"conv{number}": nn.Conv2d(inner, outer, kernel),
        f"prelu{number}": nn.PReLU(outer),
    }
    if pool:
        layers[f"pool{number}"] = nn.MaxPool2d(pool, 2, ceil_mode=True)
    return layers


def _dense(number: int, inner: int, outer: int) -> dict[str, nn.Module]:
    return {f"dense{number}": nn.Linear(inner, outer), f"prelu{number}": nn.PReLU(outer)}


def proposal_net() -> _Net:
    """Pictures (N, 3, H, W) -> shifts of the box (N, 4, h, w), probabilities (N, 2, h, w): cells of 12 px,
    each 2 px from the next."""
    trunk = {**_stage(1, 3, 10, 3, pool=2), **_stage(2, 10, 16, 3), **_stage(3, 16, 32, 3)}
    return _Net(trunk, {"conv4_1": nn.Conv2d(32, 2, 1), "conv4_2": nn.Conv2d(32, 4, 1)})


def refinement_net() -> _Net:
    """Crops (N, 3, 24, 24) -> shifts of the box (N, 4) and probabilities (N, 2)."""
    trunk = {**_stage(1, 3, 28, 3, pool=3), **_stage(2, 28, 48, 3, pool=3), **_stage(3, 48, 64, 2)}
    heads = {"dense5_1": nn.Linear(128, 2), "dense5_2": nn.Linear(128, 4)}
    return _Net({**trunk, **_dense(4, 576, 128)}, heads)


def output_net() -> _Net:
    """Crops (N, 3, 48, 48) -> shifts (N, 4), five points (N, 10) as x then y, and probabilities (N, 2)."""
    trunk = {
        **_stage(1, 3, 32, 3, pool=3),
        **_stage(2, 32, 64, 3, pool=3),
        **_stage(3, 64, 64, 3, pool=2),
        **_stage(4, 64, 128, 2),
    }
    heads = {"dense6_1": nn.Linear(256, 2), "dense6_2": nn.Linear(256, 4), "dense6_3": nn.Linear(256, 10)}
    return _Net({**trunk, **_dense(5, 1152, 256)}, heads)


def load_nets(path: Path = FILE) -> tuple[_Net, _Net, _Net]:
    """Proposal, refinement and output net in evaluation mode, float32, on the CPU.

    path: a file that `trainer/face_chain/convert_weights.py` wrote.

    Raises:
        FairAdapterError: the file is missing, damaged or another one.
    """
    tensors, _ = read_tensors(path)
    nets = {"pnet": proposal_net(), "rnet": refinement_net(), "onet": output_net()}
    for prefix, net in nets.items():
        wanted = {name: tuple(value.shape) for name, value in net.state_dict().items()}
        net.load_state_dict(
            {name: take(tensors, f"{prefix}.{name}", shape, path) for name, shape in wanted.items()}
        )
        net.eval().requires_grad_(False)
    return nets["pnet"], nets["rnet"], nets["onet"]
