"""The default chain: gender, race and age from three small nets that anybody may pass on, and heads on them.

* gender: 32 px net of dlib-models (CC0), two logits.
* age: 64 px net of dlib-models (CC0), 81 logits, one for each year from 0 to 80. As an attribute it has
  two classes: young (under 40) and old (40 and more), the log-sum-exp of their years.
* identity: dlib's recognition net (public domain), 128 numbers.
* heads: linear (`heads.py`), fitted on rendered people whose gender, race and age are known and on
  licence-clean synthetic portraits. They say the last word on all three attributes and on the years.

Sources, licences and data caveats: `shared/weights/LICENSES.md`. All of these are perceived attributes,
read by imperfect nets; none is a person's identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import FairAdapterError
from ..faces.alignment import window
from ..precision import full_precision
from ..weight_files import WEIGHTS_FOLDER, identity
from .base import ClassifierModule, check_faces, temperatures
from .dlib_face import MEAN, DlibFaceNet
from .dlib_face import PADDING as EMBEDDING_PADDING
from .dlib_face import SIZE as EMBEDDING_SIZE
from .graph import Graph
from .heads import ATTRIBUTES, Heads, head_inputs

NAME = "default"
FILES = {
    "gender": "gender.safetensors",
    "age": "age.safetensors",
    "face": "dlib_face.safetensors",
    "heads": "default_heads.safetensors",
}
EMBEDDING = 128
GENDER_SIZE, AGE_SIZE, CHIP_PADDING = 32, 64, 0.2
OLD_FROM = 40  # years


@dataclass(frozen=True)
class FaceReading:
    """What the chain says of N faces. Tensors keep their gradient.

    logits: calibrated, {attribute: (N, K)}.
    years: expected age in years, (N,).
    embedding: identity, (N, 128), not normalised.
    """

    logits: dict[str, Tensor]
    years: Tensor
    embedding: Tensor


class FaceNets(nn.Module):
    """The three published nets in ``folder``, without the heads.

    Raises:
        FairAdapterError: a file is missing, truncated or of another net.
    """

    mean: Tensor

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.gender_net = Graph.load(folder / FILES["gender"])
        self.age_net = Graph.load(folder / FILES["age"])
        self.face_net = DlibFaceNet.load(folder / FILES["face"])
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1) / 255.0, persistent=False)
        self.eval()

    def embed(self, faces: Tensor) -> Tensor:
        """Identity embeddings (N, 128) of aligned faces (N, 3, 256, 256)."""
        return self.face_net(window(faces, EMBEDDING_PADDING, EMBEDDING_SIZE))

    def forward(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        """Aligned faces (N, 3, 256, 256) -> what the heads read (N, 131), identity embeddings (N, 128)."""
        embedding, ages = self.embed(faces), self.age_net(self._chip(faces, AGE_SIZE))
        gender = self.gender_net(self._chip(faces, GENDER_SIZE))
        return head_inputs(embedding, gender, two_ages(ages), expected_years(ages)), embedding

    def _chip(self, faces: Tensor, size: int) -> Tensor:
        return (window(faces, CHIP_PADDING, size) - self.mean) * (255.0 / 256.0)


class DefaultClassifier(ClassifierModule):
    """The chain as one module. Build it with `load`."""

    def __init__(self, folder: Path, scales: Mapping[str, float]) -> None:
        paths = {key: folder / file for key, file in FILES.items()}
        super().__init__(NAME, identity(NAME, *paths.values()), ATTRIBUTES, scales)
        self.nets = FaceNets(folder)
        self.heads = Heads(paths["heads"], EMBEDDING)
        self.eval()

    def raw_logits(self, faces: Tensor) -> dict[str, Tensor]:
        return self.heads(self.nets(faces)[0])

    def embed(self, faces: Tensor) -> Tensor:
        """Identity embeddings (N, 128) of aligned faces (N, 3, 256, 256); closer than 0.6 is one person."""
        check_faces(faces)
        with full_precision(faces.device):
            return self.nets.embed(faces)

    def years(self, faces: Tensor) -> Tensor:
        """Expected age in years (N,) of aligned faces (N, 3, 256, 256)."""
        return self.read(faces).years

    def read(self, faces: Tensor) -> FaceReading:
        """Logits, years and embedding of aligned faces (N, 3, 256, 256) in one pass of every net."""
        check_faces(faces)
        with full_precision(faces.device):
            inputs, embedding = self.nets(faces)
            return FaceReading(self.calibrate(self.heads(inputs)), self.heads.years(inputs), embedding)

    def with_years(self, faces: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        reading = self.read(faces)
        return reading.logits, reading.years


def two_ages(years: Tensor) -> Tensor:
    """Logits of 81 years (N, 81) -> logits (N, 2) of under 40, and 40 and more; the softmax sums agree."""
    return torch.stack([years[:, :OLD_FROM].logsumexp(1), years[:, OLD_FROM:].logsumexp(1)], 1)


def expected_years(years: Tensor) -> Tensor:
    """Mean age (N,) under the softmax of (N, 81)."""
    return years.softmax(1) @ torch.arange(years.shape[1], dtype=years.dtype, device=years.device)


def load(path: Path | None = None) -> DefaultClassifier:
    """The default chain from ``path``, a folder of its four files (default: the shipped one).

    Raises:
        FairAdapterError: a file is missing, truncated or of another net.
    """
    folder = path or WEIGHTS_FOLDER
    if not folder.is_dir():
        raise FairAdapterError(f"{folder}: expected the folder with {', '.join(FILES.values())}, found none")
    return DefaultClassifier(folder, temperatures(NAME, ATTRIBUTES))
