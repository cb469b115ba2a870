"""The independent evaluator: it judges adapters and has no part in training them.

An adapter trained against a classifier learns that classifier's blind spots with everything else, so the
shares it is praised for must be measured by nets it never saw. Nothing here is shared with the default
chain:

* faceres, a MobileNet (HSE_FaceRec_tf, Apache-2.0): an embedding of 1,024, one logit of male, 100 years;
* linear heads on it (`heads.py`), fitted on rendered people whose gender, race and age are known, none of
  whom the default chain's heads saw, and on what synthetic portraits were searched for ("african", ...).

Logits carry no gradient: an attempt to train on them fails instead of spoiling the measurement.
Accuracy on people that no judge saw: `Evaluator.accuracy`, `shared/weights/EVALUATOR_LICENSE.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attributes import Attribute
from ..errors import FairAdapterError
from ..faces.alignment import window
from ..weight_files import RESTORE, WEIGHTS_FOLDER, identity, read_tensors, take
from .base import ClassifierModule
from .heads import ATTRIBUTES, Heads, head_inputs

NAME = "evaluator"
NET_FILE, HEADS_FILE = "evaluator_faceres.safetensors", "evaluator_heads.safetensors"
SIZE, PADDING = 224, 0.3  # of the dlib chip; gender and race are read best between 0.2 and 0.4
MEAN_BGR = (103.939, 116.779, 123.68)  # subtracted from BGR in 0..255, as upstream trained it
YEARS, OLD_FROM = 100, 40  # output i is the age i + 1
EMBEDDING, FEATURES = 1024, 256
BATCH = 32  # faces at a time; bounds the memory at about 10 MB a face


@dataclass(frozen=True)
class Accuracy:
    """``correct`` of ``count`` labelled faces, with the 95% Wilson interval of their share."""

    correct: int
    count: int
    low: float
    high: float


class FaceResNet(nn.Module):
    """MobileNet v1 of a file written by `trainer/face_chain/convert_evaluator.py`, float32.

    Raises:
        FairAdapterError: the file lists no layers, or a tensor is missing or of another shape.
    """

    mean: Tensor
    feats_weight: Tensor
    feats_bias: Tensor
    gender_weight: Tensor
    gender_bias: Tensor
    age_weight: Tensor
    age_bias: Tensor

    def __init__(self, path: Path) -> None:
        super().__init__()
        tensors, metadata = read_tensors(path)
        self.layers = _layers(metadata, path)
        channels = 3
        for i, (_, depthwise) in enumerate(self.layers):
            weight = tensors.get(f"{i}.weight", torch.empty(0, 0, 0, 0))
            shape = (channels, 1, 3, 3) if depthwise else (weight.shape[0], channels, *weight.shape[2:])
            weight = take(tensors, f"{i}.weight", shape, path).float()
            channels = shape[0]
            if depthwise:
                weight = weight * take(tensors, f"{i}.scale", (channels,), path).float().view(-1, 1, 1, 1)
            self.register_buffer(f"weight_{i}", weight)
            self.register_buffer(f"bias_{i}", take(tensors, f"{i}.bias", (channels,), path).float())
        dense = {"feats": (FEATURES, EMBEDDING), "gender": (1, FEATURES), "age": (YEARS, FEATURES)}
        for key, shape in dense.items():
            self.register_buffer(f"{key}_weight", take(tensors, f"{key}.weight", shape, path).float())
            self.register_buffer(f"{key}_bias", take(tensors, f"{key}.bias", shape[:1], path).float())
        self.register_buffer("mean", torch.tensor(MEAN_BGR).view(1, 3, 1, 1), persistent=False)

    def forward(self, faces: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Aligned faces (N, 3, 256, 256) -> embedding (N, 1024), logit of male (N,), years (N, 100)."""
        x = window(faces, PADDING, SIZE).flip(1) * 255.0 - self.mean  # RGB in [0, 1] to BGR levels
        for i, (stride, depthwise) in enumerate(self.layers):
            weight, bias = getattr(self, f"weight_{i}"), getattr(self, f"bias_{i}")
            groups = x.shape[1] if depthwise else 1
            x = F.relu6(F.conv2d(_same(x, weight.shape[-1], stride), weight, bias, stride, groups=groups))
        embedding = x.mean((2, 3))
        features = F.relu(F.linear(embedding, self.feats_weight, self.feats_bias))
        male = F.linear(features, self.gender_weight, self.gender_bias)[:, 0]
        return embedding, male, F.linear(features, self.age_weight, self.age_bias)

    def inputs(self, faces: Tensor) -> Tensor:
        """Aligned faces (N, 3, 256, 256) -> what the heads read, (N, 1027)."""
        embedding, male, years = self(faces)
        return head_inputs(embedding, gender_logits(male), two_ages(years), expected_years(years))


class Evaluator(ClassifierModule):
    """Gender, race and age by nets of its own. Build it with `load`."""

    accuracy: Mapping[str, Accuracy]  # by attribute, on rendered people of the test split

    def __init__(self, folder: Path) -> None:
        net, head = folder / NET_FILE, folder / HEADS_FILE
        heads = Heads(head, EMBEDDING)
        scales, accuracy = _measured(heads.notes, ATTRIBUTES, head)
        super().__init__(NAME, identity(NAME, net, head), ATTRIBUTES, scales)
        self.accuracy = accuracy
        self.net, self.heads = FaceResNet(net), heads
        self.eval()

    @torch.no_grad()
    def raw_logits(self, faces: Tensor) -> dict[str, Tensor]:
        parts = [self.heads(self.net.inputs(part)) for part in faces.split(BATCH)]
        return {a.name: torch.cat([part[a.name] for part in parts]) for a in self.attributes}


def gender_logits(male: Tensor) -> Tensor:
    """Logit of male (N,) -> logits of female, male (N, 2)."""
    return torch.stack([-male / 2, male / 2], 1)


def two_ages(years: Tensor) -> Tensor:
    """Logits of the ages 1..100 (N, 100) -> of under 40, and 40 and more (N, 2); probabilities add up."""
    young, old = years[:, : OLD_FROM - 1], years[:, OLD_FROM - 1 :]
    return torch.stack([young.logsumexp(1), old.logsumexp(1)], 1)


def expected_years(years: Tensor) -> Tensor:
    """Mean age (N,) under the softmax of (N, 100)."""
    return years.softmax(1) @ torch.arange(1, YEARS + 1, dtype=years.dtype, device=years.device)


def load(path: Path | None = None) -> Evaluator:
    """The evaluator from ``path``, a folder of its two files (default: the shipped one).

    Raises:
        FairAdapterError: a file is missing, truncated or of another net.
    """
    folder = path or WEIGHTS_FOLDER
    if not folder.is_dir():
        raise FairAdapterError(f"{folder}: expected the folder with {NET_FILE} and {HEADS_FILE}, found none")
    return Evaluator(folder)


def _same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """TensorFlow's SAME padding of a picture whose side the stride divides: the odd pixel goes after."""
    total = max(kernel - stride, 0)
    return F.pad(x, (total // 2, total - total // 2) * 2) if total else x


def _layers(metadata: Mapping[str, Any], path: Path) -> list[tuple[int, bool]]:
    try:
        return [(int(stride), bool(depthwise)) for stride, depthwise in metadata["layers"]]
    except (KeyError, TypeError, ValueError) as error:
        raise FairAdapterError(
            f"{path}: expected the list of layers beside the weights, found none; {RESTORE.format(path)}"
        ) from error


def _measured(
    metadata: Mapping[str, Any], attributes: tuple[Attribute, ...], path: Path
) -> tuple[dict[str, float], dict[str, Accuracy]]:
    """Temperature and accuracy of each attribute, which `trainer/face_chain/fit_judges.py` measured."""
    try:
        scales = {a.name: float(metadata["temperatures"][a.name]) for a in attributes}
        return scales, {a.name: Accuracy(**metadata["accuracy"][a.name]) for a in attributes}
    except (KeyError, TypeError, ValueError) as error:
        raise FairAdapterError(
            f"{path}: expected temperatures and accuracies beside the heads, found none; "
            f"{RESTORE.format(path)}"
        ) from error
