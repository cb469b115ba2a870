"""FairFace (Karkkainen & Joo, WACV 2021): ResNet-34 with 18 outputs, weights brought by the user.

Two files are published (github.com/dchen236/FairFace, CC BY 4.0), each with a ResNet-34 of 18 outputs:

* ``res34_fair_align_multi_7_20190809.pt``: race 7 (White, Black, Latino_Hispanic, East Asian, Southeast
  Asian, Indian, Middle Eastern), gender 2 (Male, Female), age 9 (0-2, 3-9, 10-19, 20-29, 30-39, 40-49,
  50-59, 60-69, 70+).
* ``res34_fair_align_multi_4_20190809.pt``: race 4 (White, Black, Asian, Indian). The published script reads
  nothing else from it, and neither do we.

Only the file's name tells them apart. Classes are merged by log-sum-exp of their logits, which adds their
probabilities exactly. Input: dlib chip of padding 0.25 at 224 px, ImageNet normalisation.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..attributes import AGE, GENDER, RACE4, Attribute
from ..errors import FairAdapterError
from ..faces.alignment import window
from ..weight_files import identity
from .base import ClassifierModule, temperatures
from .checkpoints import head_width, load_strictly, read_checkpoint
from .torchvision_nets import IMAGENET_MEAN, IMAGENET_STD, torchvision_models

NAME = "fairface"
OUTPUTS = 18
ANCHOR = "layer1.0.conv1.weight"  # blocks too have a conv1.weight
SIZE, PADDING = 224, 0.25
REMEDY = (
    "download res34_fair_align_multi_7_20190809.pt (or the 4-race file) from github.com/dchen236/FairFace "
    "and pass 'fairface:PATH'"
)
# For each class of ours, the outputs it gathers.
RACES = {
    7: ((0, 2, 6), (1,), (3, 4), (5,)),  # wmelh, black, asian, indian
    4: ((0,), (1,), (2,), (3,)),
}
GENDERS = ((8,), (7,))  # female, male
AGES = ((9, 10, 11, 12, 13), (14, 15, 16, 17))  # young: up to 30-39; old: from 40-49


class FairFace(ClassifierModule):
    """A FairFace file as classifier of gender, race (with Indian) and age; of race alone with 4 races."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, races: int, label: str) -> None:
        attributes: tuple[Attribute, ...] = (GENDER, RACE4, AGE) if races == 7 else (RACE4,)
        super().__init__(NAME, label, attributes, temperatures(NAME, attributes))
        self.net = net
        self.races = races
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.eval()

    def raw_logits(self, faces: Tensor) -> dict[str, Tensor]:
        return split(self.net((window(faces, PADDING, SIZE) - self.mean) / self.std), self.races)


def split(outputs: Tensor, races: int) -> dict[str, Tensor]:
    """FairFace outputs (N, 18) -> {attribute: logits (N, K)} in our classes; ``races`` is 7 or 4."""
    race = gather(outputs, RACES[races])
    if races == 4:
        return {"race": race}
    return {"gender": gather(outputs, GENDERS), "race": race, "age": gather(outputs, AGES)}


def gather(outputs: Tensor, groups: tuple[tuple[int, ...], ...]) -> Tensor:
    """Logits (N, len(groups)); each the log-sum-exp of its group, so that the probabilities add up."""
    return torch.stack([outputs[:, list(group)].logsumexp(1) for group in groups], 1)


def load(path: Path | None = None, races: int | None = None) -> FairFace:
    """The classifier in a FairFace file.

    Args:
        path: the file (.pt, or the same tensors as .safetensors).
        races: 7 or 4; read off the file's name where it is not given.

    Raises:
        FairAdapterError: no such file, a damaged one, another architecture, or a name that does not tell
            the number of races.
    """
    tensors, path = read_checkpoint(path, ANCHOR, NAME, REMEDY)
    races = races_of(path) if races is None else races
    if races not in RACES:
        raise FairAdapterError(f"{path}: expected races=7 or races=4, found {races}")
    if "fc.weight" not in tensors or head_width(tensors, "fc.weight") != OUTPUTS:
        found = head_width(tensors, "fc.weight") if "fc.weight" in tensors else "no fc.weight"
        raise FairAdapterError(
            f"{path}: expected a ResNet-34 of {OUTPUTS} outputs (race, gender, age), found {found}; {REMEDY}"
        )
    models = torchvision_models(NAME)
    with torch.device("meta"):  # no random weights that the file replaces anyway
        net = models.resnet34(weights=None, num_classes=OUTPUTS)
    load_strictly(net, tensors, path, "a FairFace ResNet-34", REMEDY)
    return FairFace(net, races, identity(f"{NAME}-{races}", path))


def races_of(path: Path) -> int:
    """7 or 4, as the published names say: multi_7, multi_4, 4race, alldata (7)."""
    name = path.name.lower()
    if "multi_4" in name or "4race" in name:
        return 4
    if "multi_7" in name or "alldata" in name:
        return 7
    raise FairAdapterError(
        f"{path}: expected 'multi_7' or 'multi_4' in the file name, which alone tells 7 from 4 races; rename "
        "it as published or pass races=7"
    )
