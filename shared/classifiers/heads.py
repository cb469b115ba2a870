"""Linear heads that read a face net: what both judges, the default chain and the evaluator, end with.

A published net draws its line between women and men, or between young and old, where its training set did:
Black women are read as men and lined faces as young. The truth is in the net all the same. A head reads it
from the unit-length embedding and from what the net says itself, and was fitted on faces whose labels are
known (`trainer/face_chain/fit_judges.py`), each judge's on other people than the other's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attributes import AGE, GENDER, RACE, Attribute
from ..weight_files import read_tensors, take

ATTRIBUTES: tuple[Attribute, ...] = (GENDER, RACE, AGE)
OWN = 3  # what a net says itself: log-odds of male and of old, expected years
YEARS = "years"


def head_inputs(embedding: Tensor, gender: Tensor, age: Tensor, years: Tensor) -> Tensor:
    """What the heads read, (N, D + 3): the embedding at unit length, then the net's own answers.

    embedding (N, D), logits of gender (N, 2) and age (N, 2), expected years (N,). Keeps the gradient.
    """
    odds = [(logits[:, 1] - logits[:, 0]) / 10 for logits in (gender, age)]
    return torch.cat([F.normalize(embedding), torch.stack([*odds, years / 100], 1)], 1)


class Heads(nn.Module):
    """The heads of a file: a weight and a bias for each of gender, race, age and, in years, the age.

    Args:
        path: a file written by `trainer/face_chain/fit_judges.py`.
        width: D of the net's embedding.

    Raises:
        FairAdapterError: a tensor is missing or of another shape.
    """

    def __init__(self, path: Path, width: int) -> None:
        super().__init__()
        tensors, self.notes = read_tensors(path)
        for name, count in (*((a.name, len(a)) for a in ATTRIBUTES), (YEARS, 1)):
            weight = take(tensors, f"{name}.weight", (count, width + OWN), path)
            self.register_buffer(f"{name}_weight", weight.float())
            self.register_buffer(f"{name}_bias", take(tensors, f"{name}.bias", (count,), path).float())

    notes: Mapping[str, Any]

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """`head_inputs` (N, D + 3) -> uncalibrated logits {attribute: (N, K)}."""
        return {a.name: self._read(a.name, inputs) for a in ATTRIBUTES}

    def years(self, inputs: Tensor) -> Tensor:
        """`head_inputs` (N, D + 3) -> expected age in years (N,)."""
        return self._read(YEARS, inputs)[:, 0].clamp_min(0)

    def _read(self, name: str, inputs: Tensor) -> Tensor:
        return F.linear(inputs, getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias"))
