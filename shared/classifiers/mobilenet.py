"""MobileNetV3-large checkpoints of the official release (github.com/sail-sg/finetune-fair-diffusion).

The width of the last layer says what a file reads:

| outputs | file in the release                        | meaning                                        |
|---------|--------------------------------------------|------------------------------------------------|
| 80      | CelebA_MobileNetLarge                      | 40 CelebA attributes x 2; attribute 20 is Male |
| 6       | fairface_MobileNetLarge_GenderRace4        | gender 2, race 4                               |
| 8       | fairface_MobileNetLarge_GenderRace4Age2    | gender 2, race 4, age 2                        |
| 4       | fairface-MobileNetLarge-Race4 (test)       | race 4                                         |
| 2       | CelebA-MobileNetLarge-Gender, ...-Age2     | gender 2 or age 2: the path must say which     |

The release orders gender female, male; race WMELH, Black, Indian, Asian; age young, old. Inputs are 224 px
in [-1, 1], without ImageNet's normalisation.

Crop: the release cuts an upright square of 1.5 times the longer side of the detector's box and does not
align it. Measured with our detector over 1,163 portraits that square has 1.14 times the side of our frame
(5%-95%: 1.06-1.22) and lies 12 of 256 px higher. The whole frame (padding 0.5) is the nearest window there
is: the nets see faces about an eighth larger, and upright.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from ..attributes import AGE, GENDER, RACE4, Attribute
from ..errors import FairAdapterError
from ..faces.alignment import window
from ..weight_files import identity
from .base import ClassifierModule, temperatures
from .checkpoints import head_width, load_strictly, read_checkpoint
from .torchvision_nets import torchvision_models

NAME = "mobilenet"
SIZE, PADDING = 224, 0.5
ANCHOR, HEAD = "features.0.0.weight", "classifier.3.weight"
REMEDY = "use a *_MobileNetLarge.pt of github.com/sail-sg/finetune-fair-diffusion and pass 'mobilenet:PATH'"
RACE_ORDER = (0, 1, 3, 2)  # wmelh, black, asian, indian out of WMELH, Black, Indian, Asian
CELEBA_MALE = 20

Columns = dict[str, tuple[int, ...]]  # attribute -> output of each of its classes
_RACE = tuple(2 + i for i in RACE_ORDER)
HEADS: dict[int, Columns] = {
    80: {"gender": (2 * CELEBA_MALE, 2 * CELEBA_MALE + 1)},
    8: {"gender": (0, 1), "race": _RACE, "age": (6, 7)},
    6: {"gender": (0, 1), "race": _RACE},
    4: {"race": RACE_ORDER},
}
ATTRIBUTES: dict[str, Attribute] = {a.name: a for a in (GENDER, RACE4, AGE)}


class MobileNet(ClassifierModule):
    """A checkpoint of the release as classifier of the attributes its head has."""

    def __init__(self, net: nn.Module, columns: Columns, label: str) -> None:
        attributes = tuple(ATTRIBUTES[name] for name in columns)
        super().__init__(NAME, label, attributes, temperatures(NAME, attributes))
        self.net = net
        self.columns = columns
        self.eval()

    def raw_logits(self, faces: Tensor) -> dict[str, Tensor]:
        outputs = self.net(window(faces, PADDING, SIZE) * 2.0 - 1.0)
        return {name: outputs[:, list(columns)] for name, columns in self.columns.items()}


def load(path: Path | None = None, attribute: str | None = None) -> MobileNet:
    """The classifier in a checkpoint of the release.

    Args:
        path: .pt, .pth, .ckpt or .safetensors; plain or Lightning key names.
        attribute: "gender" or "age" for a head of two outputs; read off the path where it is not given.

    Raises:
        FairAdapterError: no such file, a damaged one, another architecture, a head width the release does
            not have, or two outputs of unknown meaning.
    """
    tensors, path = read_checkpoint(path, ANCHOR, NAME, REMEDY)
    width = head_width(tensors, HEAD) if HEAD in tensors else 0
    columns = columns_of(width, path, attribute)
    models = torchvision_models(NAME)
    with torch.device("meta"):  # no random weights that the file replaces anyway
        net = models.mobilenet_v3_large(weights=None, num_classes=width)
    load_strictly(net, tensors, path, "a MobileNetV3-large", REMEDY)
    return MobileNet(net, columns, identity(NAME, path))


def columns_of(width: int, path: Path, attribute: str | None = None) -> Columns:
    """What the outputs of a head of that width mean; for two outputs ``attribute`` or the path says it."""
    if width in HEADS:
        return HEADS[width]
    if width != 2:
        raise FairAdapterError(
            f"{path}: expected a head '{HEAD}' of 80, 8, 6, 4 or 2 outputs, found {width or 'none'}; {REMEDY}"
        )
    if attribute is None:
        words = re.split(r"[^a-z]+", "/".join(path.parts[-2:]).lower())  # the release names the folder
        named = [name for name in ("gender", "age") if name in words]
        attribute = named[0] if len(named) == 1 else None
    if attribute not in ("gender", "age"):
        raise FairAdapterError(
            f"{path}: expected 'Gender' or 'Age' in the name of a checkpoint of 2 outputs or of its folder; "
            "rename it as published or pass attribute='gender' or attribute='age'"
        )
    return {attribute: (0, 1)}
