"""Perceived attributes and target distributions over them.

A target is a joint probability table over one or more attributes. It is written as text:

    gender=50/50                                shares in class order
    gender=female:75,male:25                    shares by class (this is what `to_text` writes)
    race=equal                                  every class the same
    gender=50/50;race=equal;age=young:75,old:25 independent attributes, separated by ";"
    gender*race=female*black:30,male*asian:70   a joint table: "*" joins attributes and their classes

Shares are percentages (they sum to 100) or fractions (they sum to 1); classes that are left out get
none. A sum off by up to .1% is rounding ("33.3/33.3/33.3") and is normalised; more is an error.
Attributes that are not joined by "*" are independent of each other.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any, Literal

import numpy as np

from .errors import FairAdapterError

RESOLUTION = 10**10  # probabilities are multiples of 1 / RESOLUTION, so that equality and hashing are exact
ROUNDING = 1e-3 + 1e-9  # relative error of a sum that is taken for rounding, "33.3/33.3/33.3"
_WORD = re.compile(r"[a-z0-9][a-z0-9 _\-]*")


@dataclass(frozen=True)
class Attribute:
    """A perceived attribute and its classes in canonical order, e.g. gender: female, male.

    Names and classes are lower-case words (letters, digits, blank, "_" and "-").
    """

    name: str
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        for word in (self.name, *self.classes):
            if not isinstance(word, str) or not _WORD.fullmatch(word):
                raise FairAdapterError(
                    f"attribute {self.name!r}: {word!r} is not a lower-case word of letters, digits, ' _-'"
                )
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise FairAdapterError(f"attribute {self.name!r}: classes must be distinct and at least one")

    def __len__(self) -> int:
        return len(self.classes)

    def index(self, name: str) -> int:
        """Position of a class; an unknown class is an error that suggests the nearest one."""
        return _position(name, self.classes, f"class of {self.name}")


GENDER = Attribute("gender", ("female", "male"))
RACE = Attribute("race", ("wmelh", "black", "asian"))  # wmelh: white, Middle Eastern, Latino
RACE4 = Attribute("race", ("wmelh", "black", "asian", "indian"))
AGE = Attribute("age", ("young", "old"))  # old: perceived as 40 years and more
KNOWN = (GENDER, RACE, AGE)


@dataclass(frozen=True)
class TargetDistribution:
    """A joint distribution over attributes: the proportions that generated faces should have.

    attributes: the axes of the table, in order.
    shares: array-like of shape (K_1, ..., K_A) or flat in row-major order; fractions or percentages.
        Kept as the flat tuple of probabilities, multiples of 1e-10 that sum to exactly 1.

    Equal distributions compare and hash equal, however they were written.
    Raises FairAdapterError for a wrong shape, negative or non-finite shares and a wrong sum.
    """

    attributes: tuple[Attribute, ...]
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        attributes = tuple(self.attributes)
        names = [a.name for a in attributes]
        if not names or len(set(names)) != len(names):
            raise FairAdapterError(f"target: needs one or more different attributes, found {names}")
        object.__setattr__(self, "attributes", attributes)
        object.__setattr__(self, "shares", _canonical(self.shares, attributes))

    # ---- ways to make one

    @classmethod
    def parse(cls, text: str, attributes: Iterable[Attribute] = KNOWN) -> TargetDistribution:
        """Read the text form (grammar: module docstring). `attributes` are those that may be named."""
        blocks = [block.strip() for block in str(text).lower().split(";") if block.strip()]
        if not blocks:
            raise FairAdapterError("target: empty, expected for example 'gender=female:50,male:50'")
        table: dict[str, Any] = {}
        for block in blocks:
            names, separator, shares = block.partition("=")
            names = "*".join(part.strip() for part in names.split("*"))
            if not separator or not shares.strip():
                raise FairAdapterError(
                    f"target {block!r}: expected 'attribute=shares' such as 'gender=50/50'"
                )
            if names in table:
                raise FairAdapterError(f"target {text!r}: {names} is given twice")
            table[names] = _read_shares(shares.strip(), block)
        return cls.from_dict(table, attributes)

    @classmethod
    def from_dict(
        cls, table: Mapping[str, Any], attributes: Iterable[Attribute] = KNOWN
    ) -> TargetDistribution:
        """Independent blocks {"gender": {"female": 75, "male": 25}, "race*age": {"black*old": 100}}.

        A block's value is a mapping from class (joint: "class*class" or a tuple) to share, a sequence in
        class (row-major) order, or "equal".
        """
        known = {a.name: a for a in attributes}
        axes: list[Attribute] = []
        joint = np.ones(())
        for names, shares in table.items():
            block = [known[_nearest(n.strip(), known, "attribute")] for n in names.split("*")]
            joint = np.multiply.outer(joint, cls(tuple(block), _block_table(block, shares)).probabilities)
            axes += block
        return cls(tuple(axes), joint)  # type: ignore[arg-type]

    @classmethod
    def uniform(cls, attributes: Sequence[Attribute]) -> TargetDistribution:
        """Every cell of the joint table the same."""
        cells = int(np.prod([len(a) for a in attributes]))
        return cls(tuple(attributes), (1.0 / cells,) * cells)

    # ---- views

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(a.name for a in self.attributes)

    @property
    def shape(self) -> tuple[int, ...]:
        """(K_1, ..., K_A)."""
        return tuple(len(a) for a in self.attributes)

    @property
    def cells(self) -> tuple[tuple[str, ...], ...]:
        """The classes of every cell, in the row-major order of `shares`."""
        return tuple(itertools.product(*(a.classes for a in self.attributes)))

    @cached_property
    def probabilities(self) -> np.ndarray:
        """The joint table, float64 of shape (K_1, ..., K_A), read-only, sums to 1."""
        table = np.array(self.shares, dtype=np.float64).reshape(self.shape)
        table.flags.writeable = False
        return table

    def attribute(self, name: str) -> Attribute:
        """The axis of that name; an unknown name is an error that suggests the nearest one."""
        return self.attributes[_position(name, self.names, "attribute of this target")]

    def marginal(self, *names: str) -> np.ndarray:
        """Distribution over the named attributes alone: (K,) for one, (K_a, K_b) for two, ..."""
        order = [_position(name, self.names, "attribute of this target") for name in names]
        if not order or len(set(order)) != len(order):
            raise FairAdapterError(f"marginal: needs different attributes out of {self.names}, found {names}")
        return np.einsum(self.probabilities, list(range(len(self.shape))), order)

    def is_equal(self, *names: str) -> bool:
        """Whether all classes of these attributes together, of all without names, have the same share."""
        shares = self.marginal(*(names or self.names))
        return bool(np.abs(shares - 1 / shares.size).max() < 1e-6)

    @property
    def is_product(self) -> bool:
        """Whether the attributes are independent of each other."""
        product = np.ones(())
        for name in self.names:
            product = np.multiply.outer(product, self.marginal(name))
        return bool(np.abs(product - self.probabilities).max() <= 100 / RESOLUTION)

    def as_vector(self, kind: Literal["cells", "marginals"] = "cells") -> np.ndarray:
        """The target as the vector t of a target-conditioned adapter, float32, zero for equal shares.

        "cells": joint probabilities minus 1/K, one per cell: any target.
        "marginals": each attribute's probabilities minus 1/K_a, concatenated: independent attributes
        only (FairAdapterError otherwise, because the correlation would be lost in silence).
        """
        if kind == "cells":
            parts = [self.probabilities.reshape(-1)]
        elif kind == "marginals" and self.is_product:
            parts = [self.marginal(name) for name in self.names]
        elif kind == "marginals":
            raise FairAdapterError(f"target {self.to_text()!r}: marginals do not describe a joint table")
        else:
            raise FairAdapterError(f"as_vector: kind {kind!r}, expected 'cells' or 'marginals'")
        vector = np.concatenate([p - 1.0 / len(p) for p in parts])
        return vector.round(9).astype(np.float32)  # exact zeros where shares are equal up to RESOLUTION

    def to_text(self) -> str:
        """The shortest text that `parse` (given these attributes) reads back as an equal target."""
        for joint in (False, True) if len(self.attributes) > 1 else (False,):
            for decimals in range(9):
                text = self._text(joint, decimals)
                try:
                    if TargetDistribution.parse(text, self.attributes) == self:
                        return text
                except FairAdapterError:
                    continue  # too few decimals: the rounded shares do not sum to 100
        raise AssertionError("8 decimals of a percentage are the resolution, so one text fits")

    def to_dict(self) -> dict[str, dict[str, float]]:
        """JSON form, read back by `from_dict`: one block of fractions per attribute, or one joint block."""
        blocks = {a.name: dict(zip(a.classes, self.marginal(a.name).tolist())) for a in self.attributes}
        if TargetDistribution.from_dict(blocks, self.attributes) == self:
            return blocks
        return {"*".join(self.names): dict(zip(map("*".join, self.cells), self.shares))}

    def __str__(self) -> str:
        return self.to_text()

    def _text(self, joint: bool, decimals: int) -> str:
        if joint:
            cells = [("*".join(c), p) for c, p in zip(self.cells, self.shares) if p > 0]
            return "*".join(self.names) + "=" + _write_shares(cells, decimals)
        blocks = [(a, self.marginal(a.name)) for a in self.attributes]
        return ";".join(f"{a.name}=" + _write_shares(zip(a.classes, p), decimals) for a, p in blocks)


def _write_shares(cells: Iterable[tuple[str, float]], decimals: int) -> str:
    return ",".join(f"{name}:{_short(f'{100 * p:.{decimals}f}')}" for name, p in cells)


def _short(number: str) -> str:
    return number.rstrip("0").rstrip(".") if "." in number else number


def _read_shares(text: str, block: str) -> str | list[float] | dict[str, float]:
    if text == "equal":
        return text
    if ":" not in text:
        return [_number(part, block) for part in text.split("/")]
    shares: dict[str, float] = {}
    for entry in text.split(","):
        cell, separator, share = entry.partition(":")
        cell = "*".join(part.strip() for part in cell.split("*"))
        if not separator:
            raise FairAdapterError(
                f"target {block!r}: {entry.strip()!r} has no share, expected 'class:share'"
            )
        if cell in shares:
            raise FairAdapterError(f"target {block!r}: {cell!r} is given twice")
        shares[cell] = _number(share, block)
    return shares


def _number(text: str, block: str) -> float:
    try:
        return float(text)
    except ValueError:
        remedy = "; write ';' between attributes" if "=" in text else ""
        raise FairAdapterError(f"target {block!r}: {text.strip()!r} is not a number{remedy}") from None


def _block_table(block: Sequence[Attribute], shares: Any) -> Any:
    """Shares of one block of a target as an array-like for the constructor."""
    shape = tuple(len(a) for a in block)
    if isinstance(shares, str):
        if shares != "equal":
            raise FairAdapterError(f"target {'*'.join(a.name for a in block)}={shares!r}: expected 'equal'")
        return np.full(shape, 1.0 / np.prod(shape))
    if not isinstance(shares, Mapping):
        return shares
    table = np.zeros(shape)
    expected = "*".join(a.name for a in block)
    for cell, share in shares.items():
        parts = cell.split("*") if isinstance(cell, str) else cell
        if not isinstance(parts, Sequence) or len(parts) != len(block):
            raise FairAdapterError(f"target {expected}: cell {cell!r} needs one class for each of {expected}")
        if isinstance(share, bool) or not isinstance(share, Real):
            raise FairAdapterError(f"target {expected}: the share of {cell!r} is no number: {share!r}")
        table[tuple(a.index(str(p).strip()) for a, p in zip(block, parts))] = share
    return table


def _canonical(shares: Any, attributes: Sequence[Attribute]) -> tuple[float, ...]:
    """Validate shares and round them to probabilities on the grid of RESOLUTION that sum to exactly 1."""
    names = "*".join(a.name for a in attributes)
    try:
        table = np.asarray(shares, dtype=np.float64)
    except (TypeError, ValueError):
        raise FairAdapterError(f"target {names}: shares are not a table of numbers: {shares!r}") from None
    shape = tuple(len(a) for a in attributes)
    if table.shape != shape and table.shape != (int(np.prod(shape)),):
        classes = " x ".join("/".join(a.classes) for a in attributes)
        raise FairAdapterError(
            f"target {names}: expected shares of {classes}, shape {shape}, found shape {table.shape}"
        )
    table = table.reshape(-1)
    if not np.isfinite(table).all() or (table < 0).any():
        raise FairAdapterError(f"target {names}: shares must be finite and not negative: {table.tolist()}")
    total = float(table.sum())
    if abs(total - 1) > ROUNDING and abs(total - 100) > 100 * ROUNDING:
        raise FairAdapterError(
            f"target {names}: shares sum to {total:g}, expected 100 (or 1); write 'equal' for equal shares"
        )
    units = np.rint(table / total * RESOLUTION).astype(np.int64)
    units[int(units.argmax())] += RESOLUTION - int(units.sum())  # now the sum is exact
    return tuple(int(u) / RESOLUTION for u in units)


def _nearest(name: str, known: Iterable[str], what: str) -> str:
    """`name` if it is known, else an error that suggests the nearest known one."""
    known = tuple(known)
    if name in known:
        return name
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise FairAdapterError(f"unknown {what} {name!r}, expected one of {', '.join(known)}{hint}")


def _position(name: str, known: Sequence[str], what: str) -> int:
    return list(known).index(_nearest(name, known, what))
