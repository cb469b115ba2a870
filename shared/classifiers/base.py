"""What every attribute classifier is: aligned faces in, calibrated logits out.

* Input: the canonical frame of `shared/faces/alignment.py`, (N, 3, 256, 256) RGB in [0, 1].
* Output: one (N, K) tensor of logits for each attribute, classes in the order of `Attribute.classes`.
* Logits, not probabilities: an over-confident softmax saturates to exactly 0 or 1 on easy faces and
  then has no gradient, its logits do.
* Calibration divides the logits by a temperature measured on labelled faces (Guo et al., "On
  Calibration of Modern Neural Networks", ICML 2017, section 4.2). It moves no decision.

A back end subclasses `ClassifierModule` and writes `raw_logits`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from ..attributes import Attribute
from ..errors import FairAdapterError
from ..faces.alignment import FRAME
from ..precision import full_precision
from ..weight_files import WEIGHTS_FOLDER

CALIBRATION = WEIGHTS_FOLDER / "calibration.json"


@runtime_checkable
class AttributeClassifier(Protocol):
    """Anything that reads attributes off aligned faces."""

    attributes: tuple[Attribute, ...]
    identity: str  # name and weights hash, written into every adapter and report

    def __call__(self, faces: Tensor) -> dict[str, Tensor]:
        """faces (N, 3, 256, 256) RGB in [0, 1] -> {attribute name: calibrated logits (N, K)}."""
        ...

    def with_years(self, faces: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """The same logits, and the expected age in years (N,) of a classifier that tells it."""
        ...


class ClassifierModule(nn.Module):
    """Base of the back ends: checks the faces, runs them at full precision, applies temperatures.

    Args:
        name: entry of the registry; the key of its temperatures in `weights/calibration.json`.
        identity: name and weights hash.
        attributes: what `raw_logits` returns, in this order.
        temperatures: positive divisor of the logits for each attribute; 1 where none is given.
    """

    def __init__(
        self,
        name: str,
        identity: str,
        attributes: tuple[Attribute, ...],
        temperatures: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.identity = identity
        self.attributes = attributes
        given = dict(temperatures or {})
        self.temperatures = {a.name: float(given.get(a.name, 1.0)) for a in attributes}
        wrong = [f"{k}={v}" for k, v in self.temperatures.items() if not 0.0 < v < float("inf")]
        if wrong:
            raise FairAdapterError(
                f"{CALIBRATION}: expected positive temperatures for '{name}', found {', '.join(wrong)}; "
                "measure them again with trainer/face_chain/calibrate.py"
            )

    def raw_logits(self, faces: Tensor) -> dict[str, Tensor]:
        """Uncalibrated logits {attribute: (N, K)} of aligned faces (N, 3, 256, 256) in [0, 1]."""
        raise NotImplementedError

    def forward(self, faces: Tensor) -> dict[str, Tensor]:
        """Calibrated logits {attribute: (N, K)} of aligned faces (N, 3, 256, 256) RGB in [0, 1].

        Raises:
            FairAdapterError: ``faces`` is no floating-point tensor of that shape.
        """
        check_faces(faces)
        with full_precision(faces.device):
            return self.calibrate(self.raw_logits(faces))

    def with_years(self, faces: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """Calibrated logits, and no ages: most classifiers know classes alone."""
        return self(faces), None

    def calibrate(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits divided by the temperature of their attribute."""
        return {name: value / self.temperatures[name] for name, value in logits.items()}


def check_faces(faces: Tensor) -> None:
    """Raises FairAdapterError unless faces are floating point (N, 3, 256, 256)."""
    if faces.dim() != 4 or tuple(faces.shape[1:]) != (3, FRAME, FRAME) or not faces.is_floating_point():
        raise FairAdapterError(
            f"aligned faces: expected floating point (N, 3, {FRAME}, {FRAME}) in [0, 1], found "
            f"{tuple(faces.shape)} {faces.dtype}; make them with shared.faces.alignment.align"
        )


def temperatures(name: str, attributes: tuple[Attribute, ...], path: Path = CALIBRATION) -> dict[str, float]:
    """The stored temperatures of the classifier ``name``; 1 for an attribute nobody measured.

    Raises:
        FairAdapterError: the file is missing or no JSON of the expected form.
    """
    remedy = "restore it with git or measure again with trainer/face_chain/calibrate.py"
    try:
        measured = json.loads(path.read_text(encoding="utf-8")).get(name, {})
        return {a.name: float(measured[a.name]["temperature"]) for a in attributes if a.name in measured}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FairAdapterError(
            f"{path}: expected JSON {{classifier: {{attribute: {{'temperature': t}}}}}}, "
            f"found {error!r}; {remedy}"
        ) from error
