"""What a classifier reads off the largest face of each picture of a batch, as arrays of probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .attributes import Attribute
from .bars import CERTAIN, FaceBars
from .errors import FairAdapterError
from .transport import transport_cost

Cell = Mapping[str, str]  # attribute -> class
HALF = 0.5  # of a cell: a picture that fills less of it is more likely of another


@dataclass(frozen=True, eq=False)
class Perceived:
    """N pictures.

    attributes: those that are read.  has_face: (N,) bool.
    probabilities: attribute -> (N, K_a) float64 in the order of the attribute's classes; zero without a face.
    certain: least probability of a class that counts as read, in [0, 1].
    Raises FairAdapterError for attributes without probabilities and for other shapes.
    """

    attributes: tuple[Attribute, ...]
    probabilities: Mapping[str, np.ndarray]
    has_face: np.ndarray
    certain: float = CERTAIN

    def __post_init__(self) -> None:
        for attribute in self.attributes:
            found = np.shape(self.probabilities.get(attribute.name, ()))
            if found != (len(self.has_face), len(attribute)):
                raise FairAdapterError(
                    f"readings of {attribute.name}: expected probabilities of shape "
                    f"({len(self.has_face)}, {len(attribute)}), found {found}"
                )

    @classmethod
    def of_faces(
        cls,
        readings: Sequence[Sequence[FaceBars]],
        attributes: Sequence[Attribute],
        certain: float = CERTAIN,
    ) -> Perceived:
        """From what `FaceReader.read` gives: for each picture its faces, the largest first.

        Of bars that don't tell every class, the other classes share what the likeliest one leaves.
        Raises FairAdapterError for an attribute that the readings lack, and for a class it does not have.
        """
        tables = {a.name: np.zeros((len(readings), len(a))) for a in attributes}
        for row, faces in enumerate(readings):
            for attribute in attributes if faces else ():
                tables[attribute.name][row] = _of_bars(faces[0], attribute)
        has_face = np.array([bool(faces) for faces in readings], dtype=bool)
        return cls(tuple(attributes), tables, has_face, certain)

    @classmethod
    def of_tensors(
        cls,
        probabilities: Mapping[str, Any],
        has_face: Any,
        attributes: Sequence[Attribute],
        certain: float = CERTAIN,
    ) -> Perceived:
        """From tensors or arrays: attribute -> (N, K_a), of which rows without a face may hold anything."""
        faces = np.asarray(_array(has_face), dtype=bool)
        rows = {
            a.name: np.where(faces[:, None], _array(probabilities[a.name]).astype(np.float64), 0.0)
            for a in attributes
            if a.name in probabilities
        }
        return cls(tuple(attributes), rows, faces, certain)

    def __len__(self) -> int:
        return len(self.has_face)

    def replaced(self, places: Sequence[int], other: Perceived, rows: Sequence[int]) -> Perceived:
        """With the rows `rows` of another batch in the given places."""
        tables = {name: table.copy() for name, table in self.probabilities.items()}
        has_face = self.has_face.copy()
        for name, table in tables.items():
            table[list(places)] = other.probabilities[name][list(rows)]
        has_face[list(places)] = other.has_face[list(rows)]
        return replace(self, probabilities=tables, has_face=has_face)

    def cells(self) -> list[dict[str, str] | None]:
        """The likeliest class of every attribute of each picture, None without a face."""
        labels = {a.name: self.probabilities[a.name].argmax(axis=1) for a in self.attributes}
        return [
            {a.name: a.classes[int(labels[a.name][i])] for a in self.attributes} if face else None
            for i, face in enumerate(self.has_face)
        ]

    def fills(self, wanted: Sequence[Cell]) -> np.ndarray:
        """(N, M) in [0, 1]: how much of each of M wanted cells each picture fills.

        A class that is read with certainty counts 1, the others of its attribute 0; of an uncertain reading
        every class counts its probability. Attributes are multiplied; without a face it is 0.
        """
        filled = np.repeat(self.has_face[:, None], len(wanted), axis=1).astype(np.float64)
        for attribute in self.attributes:
            table = self.probabilities[attribute.name]
            sure = table >= max(self.certain, HALF)
            table = np.where(sure.any(axis=1, keepdims=True), sure, table)
            filled *= table[:, [attribute.index(cell[attribute.name]) for cell in wanted]]
        return filled

    def changes(self, wanted: Sequence[Cell]) -> np.ndarray:
        """(N, M): how far each picture is from each wanted cell, sqrt(sum_a |p_a - onehot_a|^2); the same
        number for all cells without a face."""
        rows = [self.probabilities[a.name] for a in self.attributes]
        cost = transport_cost(rows).reshape(len(self), *(len(a) for a in self.attributes))
        places = [[a.index(cell[a.name]) for cell in wanted] for a in self.attributes]
        return cost[(slice(None), *places)]


def _of_bars(face: FaceBars, attribute: Attribute) -> np.ndarray:
    bar = next((bar for bar in face.bars if bar.attribute == attribute.name), None)
    if bar is None:
        read = ", ".join(bar.attribute for bar in face.bars) or "nothing"
        raise FairAdapterError(
            f"exact batch: the target names {attribute.name}, but the classifier reads {read}; choose "
            "another classifier or take it out of the target"
        )
    if len(bar.probabilities) == len(attribute):
        return np.array(bar.probabilities)
    row = np.full(len(attribute), (1 - bar.confidence) / max(1, len(attribute) - 1))
    row[attribute.index(bar.label)] = bar.confidence
    return row


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
