"""What an adapter can be asked for: its default target, and the coordinates of every other one.

The coordinates t of a target are `TargetDistribution.as_vector(target) - as_vector(default)`: zero at the
default target, one per cell of the joint table ("cells": any target) or one per class of every attribute
("marginals": independent attributes). A fixed adapter has none (K = 0): it knows its default target alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .attributes import KNOWN, Attribute, TargetDistribution
from .entry import is_number, list_of, object_of
from .errors import FairAdapterError
from .limits import MAX_ATTRIBUTES, MAX_CELLS, MAX_RANGES

Vector = Literal["cells", "marginals"]
Range = Mapping[str, Mapping[str, tuple[float, float]]]
NOISE = 1e-6  # shares nearer than this are the same
TOLERANCE = 1e-4  # of a share against the limits of a range


@dataclass(frozen=True)
class Resolved:
    """A target in an adapter's own terms.

    target: over the adapter's attributes, in its order.  coordinates: (K,) float32.
    warnings: what the adapter was not trained for, one line each.  ignored: those of them that say what of
    the wish is not in `target`.
    """

    target: TargetDistribution
    coordinates: Tensor
    warnings: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class TargetSpace:
    """default: what the file as it stands is for.  vector: kind of coordinates; None for a fixed adapter.

    trained: the targets that training drew, {"gender": {"female": (.1, .9), ...}, "gender*race": ...}: lowest
        and highest share of classes; joint classes ("female*black") where it drew dependent attributes.
    Raises FairAdapterError for a range of unknown classes, and for "marginals" with a dependent default.
    """

    default: TargetDistribution
    vector: Vector | None = None
    trained: Range = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.vector is not None:
            self.default.as_vector(self.vector)
        elif self.trained:
            raise FairAdapterError("target range: a fixed adapter has none")
        if len(self.trained) > MAX_RANGES:
            raise FairAdapterError(
                f"target range: expected at most {MAX_RANGES} of them, found {len(self.trained)}"
            )
        for names, limits in self.trained.items():
            cells = dict.fromkeys(self._cells(names))
            for cell, (low, high) in limits.items():
                if cell not in cells or not 0 <= low <= high <= 1:
                    raise FairAdapterError(
                        f"target range {names}: expected shares from 0 to 1 of {', '.join(cells)}, found "
                        f"{cell}: {low} to {high}"
                    )

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        return self.default.attributes

    @property
    def dimension(self) -> int:
        """K, the number of coordinates; 0 for a fixed adapter."""
        return 0 if self.vector is None else len(self.default.as_vector(self.vector))

    def vector_of_default(self) -> Tensor:
        """(K,) float32: what is subtracted from a target's vector; empty for a fixed adapter."""
        return (
            torch.zeros(0) if self.vector is None else torch.from_numpy(self.default.as_vector(self.vector))
        )

    def resolve(self, target: TargetDistribution | str | None) -> Resolved:
        """Any target in the adapter's terms.

        target: a distribution or its text; None is the default. Attributes that it does not name keep their
            default shares; those that the adapter does not know are ignored with a warning, as is whatever a
            fixed adapter cannot do. Outside the trained range is a warning too.
        Raises FairAdapterError for a text that does not read and for an attribute with other classes.
        """
        if target is None:
            return Resolved(self.default, torch.zeros(self.dimension))
        if isinstance(target, str):
            own = {a.name for a in self.attributes}
            known = (*self.attributes, *(a for a in KNOWN if a.name not in own))
            target = TargetDistribution.parse(target, known)
        wanted, warnings = self._complete(target)
        if self.vector is None:
            return self._fixed(wanted, warnings)
        if self.vector == "marginals" and not wanted.is_product:
            warnings.append(
                "this adapter sets each attribute on its own: how they depend on each other is ignored"
            )
            table = np.ones(())
            for name in wanted.names:
                table = np.multiply.outer(table, wanted.marginal(name))
            wanted = TargetDistribution(wanted.attributes, table)  # type: ignore[arg-type]
        step = torch.from_numpy(wanted.as_vector(self.vector)) - self.vector_of_default()
        step[step.abs() < NOISE] = 0
        return Resolved(wanted, step, (*warnings, *self._outside(wanted)), tuple(warnings))

    def _complete(self, target: TargetDistribution) -> tuple[TargetDistribution, list[str]]:
        """The target over the adapter's attributes, and what of it was left out."""
        own = {a.name: a for a in self.attributes}
        foreign = [name for name in target.names if name not in own]
        warnings = [f"this adapter does not know {', '.join(foreign)}: ignored"] if foreign else []
        shared = [name for name in target.names if name in own]
        for name in shared:
            if target.attribute(name) != own[name]:
                raise FairAdapterError(
                    f"target: this adapter knows {name} as {'/'.join(own[name].classes)}, found "
                    f"{'/'.join(target.attribute(name).classes)}; use the adapter's classes"
                )
        kept = [name for name in own if name not in shared]
        table = target.marginal(*shared) if shared else np.ones(())
        if kept:
            table = np.multiply.outer(table, self.default.marginal(*kept))
        order = [(*shared, *kept).index(name) for name in own]
        return TargetDistribution(self.attributes, table.transpose(order)), warnings  # type: ignore[arg-type]

    def _fixed(self, wanted: TargetDistribution, warnings: list[str]) -> Resolved:
        if np.abs(wanted.probabilities - self.default.probabilities).max() >= NOISE:
            warnings.append(
                f"this adapter is trained for {self.default.to_text()} alone: the target has no effect"
            )
        return Resolved(self.default, torch.zeros(0), tuple(warnings), tuple(warnings))

    def _outside(self, target: TargetDistribution) -> list[str]:
        """One line for each share outside the trained range."""
        found = []
        for names, limits in self.trained.items():
            shares = dict(zip(self._cells(names), target.marginal(*names.split("*")).reshape(-1).tolist()))
            for cell, (low, high) in limits.items():
                if not low - TOLERANCE <= shares[cell] <= high + TOLERANCE:
                    found.append(
                        f"{names} {cell} {100 * shares[cell]:.4g}% is outside {100 * low:.4g} to "
                        f"{100 * high:.4g}%, the range of training"
                    )
        joint = any("*" in names for names in self.trained)
        if self.trained and not joint and not target.is_product:
            found.append("training drew independent attributes alone: a joint target is outside its range")
        return found

    def _cells(self, names: str) -> list[str]:
        """Joint classes of "a*b" in the order of `marginal("a", "b")`."""
        cells, parts = [""], names.split("*")
        if len(set(parts)) < len(parts):
            raise FairAdapterError(f"target range {names}: expected different attributes")
        for name in parts:
            classes = self.default.attribute(name).classes
            cells = [f"{cell}*{c}" if cell else c for cell in cells for c in classes]
        return cells

    # ---- JSON

    def to_dict(self) -> dict[str, Any]:
        """JSON form, read back by `from_dict`."""
        return {
            "attributes": [{"name": a.name, "classes": list(a.classes)} for a in self.attributes],
            "target": {
                "default": self.default.to_dict(),
                "text": self.default.to_text(),
                "vector": self.vector,
                "range": {n: {c: list(limits) for c, limits in t.items()} for n, t in self.trained.items()},
            },
        }

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> TargetSpace:
        """Raises FairAdapterError for wrong shares, KeyError, TypeError or ValueError for another form."""
        attributes = _attributes(list_of(table, "attributes"))
        target = object_of(table, "target")
        if target["vector"] not in (None, "cells", "marginals"):
            raise ValueError(f"target vector {target['vector']!r}")
        trained = {names: _limits(limits) for names, limits in object_of(target, "range").items()}
        default = TargetDistribution.from_dict(object_of(target, "default"), attributes)
        if set(default.attributes) != set(attributes):
            raise ValueError(f"a default target over {default.names} alone")
        joint = default.marginal(*(a.name for a in attributes))  # JSON objects have no order, axes do
        return cls(TargetDistribution(attributes, joint), target["vector"], trained)  # type: ignore[arg-type]


def _attributes(entries: list[Any]) -> tuple[Attribute, ...]:
    if len(entries) > MAX_ATTRIBUTES:
        raise ValueError(f"more than {MAX_ATTRIBUTES} attributes or {MAX_CELLS} joint classes")
    return tuple(Attribute(entry["name"], tuple(list_of(entry, "classes"))) for entry in entries)


def _limits(table: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    limits = {}
    for name, pair in table.items():
        if not isinstance(pair, list) or len(pair) != 2 or not all(is_number(value) for value in pair):
            raise ValueError(f"range of {name}: expected two numbers")
        limits[name] = (float(pair[0]), float(pair[1]))
    return limits
