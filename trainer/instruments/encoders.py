"""What the image semantics loss looks through: encoders of whole images (`SemanticEncoder`).

    embedded            shipped with the project: the first 14 blocks of MobileNetV2 trained on ImageNet, on
                        128 px, averaged over a 4 x 4 grid, so that it knows where things are (1.1 MB)
    open_clip[:FILE]    ViT-H-14 of open_clip, laion2b_s32b_b79k, as in the paper
    dinov2[:FOLDER]     DINOv2 ViT-B/14 of transformers, as in the paper
    open_clip_big[:FILE], dinov2_giant[:FOLDER]   ViT-bigG-14 and DINOv2 ViT-g/14: the paper's for evaluation

Images are resized antialiased (the release aliases) and differentiably.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...shared.errors import FairAdapterError
from ...shared.precision import full_precision
from ...shared.preservation import SemanticEncoder, scale_gradient
from ...shared.quiet import quiet
from ...shared.weight_files import RESTORE, WEIGHTS_FOLDER, identity, read_tensors, take
from ..configuration.settings import unknown

FILE = "semantics.safetensors"
SIZE, GRID = 128, 4  # px of the input, cells of the averages
HALF_SCALE = 2.0**12  # of gradients within a float16 encoder, which would lose those of single pixels
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB in [0, 1]
CLIPS = {  # name -> architecture and weights of open_clip
    "open_clip": ("ViT-H-14", "laion2b_s32b_b79k"),
    "open_clip_big": ("ViT-bigG-14", "laion2b_s39b_b160k"),
}
DINOS = {"dinov2": "facebook/dinov2-base", "dinov2_giant": "facebook/dinov2-giant"}
DINO_SIZE = 224


class EmbeddedEncoder(nn.Module):
    """MobileNetV2's inverted residuals with their batch norms folded in, float32. See `convert_semantics.py`.

    Raises:
        FairAdapterError: the file is missing or another one.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, path: Path = WEIGHTS_FOLDER / FILE) -> None:
        super().__init__()
        self.identity = identity("embedded", path)
        tensors, metadata = read_tensors(path)
        try:
            self.layers = [(int(s), bool(d), bool(a), int(k)) for s, d, a, k in metadata["layers"]]
        except (KeyError, TypeError, ValueError) as error:
            raise FairAdapterError(
                f"{path}: expected the list of layers beside the weights, found none; {RESTORE.format(path)}"
            ) from error
        for i in range(len(self.layers)):
            weight = tensors.get(f"{i}.weight", torch.empty(0))
            self.register_buffer(
                f"weight_{i}", take(tensors, f"{i}.weight", tuple(weight.shape), path).float()
            )
            self.register_buffer(f"bias_{i}", take(tensors, f"{i}.bias", weight.shape[:1], path).float())
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """images (N, 3, H, W) in [0, 1] -> unit features (N, 1536)."""
        with full_precision(images.device):
            x = (resize(images.float(), SIZE) - self.mean) / self.std
            before: list[Tensor] = []
            for i, (stride, depthwise, activation, add) in enumerate(self.layers):
                weight, bias = getattr(self, f"weight_{i}"), getattr(self, f"bias_{i}")
                groups = x.shape[1] if depthwise else 1
                before.append(x)
                x = F.conv2d(x, weight, bias, stride, weight.shape[-1] // 2, groups=groups)
                x = F.relu6(x) if activation else x
                if add >= 0:  # a residual connection from the input of layer `add`
                    x = x + before[add]
            return F.normalize(F.adaptive_avg_pool2d(x, GRID).flatten(1))


class ForeignEncoder(nn.Module):
    """A vision network of another library: resize, normalise, embed.

    Args:
        identity: name and weights.
        network: (N, 3, size, size) -> (N, D).
        size, mean, std: its preprocessing.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, identity: str, network: nn.Module, size: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.identity, self.network, self.size = identity, network.eval().requires_grad_(False), size
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """images (N, 3, H, W) in [0, 1] -> unit features (N, D), float32."""
        x = (resize(images.float(), self.size) - self.mean) / self.std
        dtype = next(self.network.parameters()).dtype
        scale = HALF_SCALE if dtype == torch.float16 else 1.0
        features = self.network(scale_gradient(x, 1 / scale).to(dtype)).float()
        return F.normalize(scale_gradient(features, scale))


class _DinoFeatures(nn.Module):
    """The class token of a transformers Dinov2Model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixel_values=pixels).last_hidden_state[:, 0]


def resize(images: Tensor, size: int) -> Tensor:
    """(N, 3, H, W) -> (N, 3, size, size), antialiased."""
    if tuple(images.shape[2:]) == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)


def load_encoders(names: Sequence[str], device: torch.device | str = "cpu") -> list[SemanticEncoder]:
    """Encoders by name, ``NAME`` or ``NAME:PATH``; weights of foreign ones in float16 on a GPU.

    Raises:
        FairAdapterError: an unknown name, or weights that are missing while there is no network.
    """
    known = ["embedded", *CLIPS, *DINOS]
    encoders = []
    for name in names:
        kind, _, path = name.partition(":")
        if kind not in known:
            raise unknown(kind, known, "image encoder")
        encoders.append(as_loaded(_embedded(path) if kind == "embedded" else _foreign(kind, path), device))
    return encoders


def as_loaded(encoder: Any, device: torch.device | str) -> Any:
    """Frozen on its device; foreign networks in float16 on a GPU."""
    if isinstance(encoder, ForeignEncoder) and torch.device(device).type == "cuda":
        encoder.network.half()
    return encoder.to(device).requires_grad_(False)


def _embedded(path: str) -> Any:
    return EmbeddedEncoder(Path(path)) if path else EmbeddedEncoder()


def _foreign(kind: str, path: str) -> ForeignEncoder:
    if kind in DINOS:
        return dino_encoder(_mark(path, DINOS[kind]), _dinov2(kind, path))
    return clip_encoder(kind, _mark(path, CLIPS[kind][1]), _open_clip(kind, path))


def _open_clip(kind: str, path: str) -> Any:
    architecture, weights = CLIPS[kind]
    try:
        import open_clip

        with quiet():
            return open_clip.create_model(architecture, pretrained=path or weights)
    except Exception as error:  # hub clients and torch.load raise dozens of kinds, all of one meaning here
        raise _missing(kind, architecture, path or weights, error) from error


def clip_encoder(kind: str, weights: str, model: Any) -> ForeignEncoder:
    """The image half of a CLIP of open_clip.  kind: of CLIPS.  weights: how its identity names them."""
    import open_clip

    visual = model.visual
    mean, std = (
        visual.image_mean or open_clip.OPENAI_DATASET_MEAN,
        visual.image_std or open_clip.OPENAI_DATASET_STD,
    )
    size = visual.image_size if isinstance(visual.image_size, int) else visual.image_size[0]
    return ForeignEncoder(f"open_clip:{CLIPS[kind][0]}:{weights}", visual, size, mean, std)


def dino_encoder(weights: str, model: Any) -> ForeignEncoder:
    """A DINOv2 of transformers.  weights: how its identity names them."""
    return ForeignEncoder(f"dinov2:{weights}", _DinoFeatures(model), DINO_SIZE, MEAN, STD)


def _dinov2(kind: str, path: str) -> Any:
    weights = DINOS[kind]
    try:
        from transformers import Dinov2Model

        with quiet():
            return Dinov2Model.from_pretrained(path or weights)
    except Exception as error:  # hub clients raise dozens of kinds, all of one meaning here
        raise _missing(kind, "DINOv2", path or weights, error) from error


class TextAlignment(nn.Module):
    """CLIP-T: the cosine of images and a text in CLIP's space.

    model: an open_clip CLIP.  tokenizer: list of texts -> token tensor of it.
    """

    def __init__(self, visual: ForeignEncoder, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.identity = f"text {visual.identity}"
        self.visual, self.model, self.tokenizer = visual, model, tokenizer
        self._texts: dict[str, Tensor] = {}

    @torch.no_grad()
    def forward(self, images: Tensor, text: str) -> Tensor:
        """images (N, 3, H, W) in [0, 1] -> (N,) float32 in [-1, 1]."""
        if text not in self._texts:
            tokens = self.tokenizer([text]).to(images.device)
            self._texts[text] = F.normalize(self.model.encode_text(tokens).float(), dim=-1)
        return self.visual(images) @ self._texts[text][0]


def load_text_alignment(name: str, device: torch.device | str = "cpu") -> TextAlignment:
    """By the name of a CLIP: open_clip or open_clip_big, with :FILE for a local copy.

    Raises:
        FairAdapterError: an unknown name, or weights that are missing while there is no network.
    """
    kind, _, path = name.partition(":")
    if kind not in CLIPS:
        raise unknown(kind, list(CLIPS), "CLIP")
    model = _open_clip(kind, path)
    import open_clip

    architecture, weights = CLIPS[kind]
    visual = clip_encoder(kind, _mark(path, weights), model)
    aligned = TextAlignment(visual, model, open_clip.get_tokenizer(architecture))
    if torch.device(device).type == "cuda":
        model.half()
    return aligned.to(device).eval().requires_grad_(False)


def _mark(path: str, weights: str) -> str:
    """Tag of published weights, or a short hash of where own ones are, with size and time."""
    if not path:
        return weights
    files = [Path(path)] if Path(path).is_file() else sorted(f for f in Path(path).rglob("*") if f.is_file())
    facts = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def _missing(name: str, model: str, weights: str, error: Exception) -> FairAdapterError:
    lines = str(error).strip().splitlines()
    reason = lines[0].rstrip(".")[:160] if lines else type(error).__name__
    return FairAdapterError(
        f"image encoder {name}: expected the weights {weights} of {model}, which do not load ({reason}); go "
        f"online once, give a local copy as '{name}:PATH', or do without (training: loss.encoders=[embedded])"
    )
