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

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from .errors import FairAdapterError, one_line
from .limits import MAX_CLASSES, MAX_WORD
from .shares import (
    RESOLUTION,
    Block,
    block_table,
    canonical,
    check_axes,
    nearest,
    position,
    read_shares,
    write_block,
)

_WORD = re.compile(r"[a-z0-9](?:[a-z0-9 _\-]*[a-z0-9_\-])?")  # parsing a target strips outer blanks


Colour = tuple[int, int, int]  # RGB, 0 to 255


@dataclass(frozen=True)
class ClassLook:
    """How a class is shown and said.

    colour: of its bars.  legend: what its name stands for, "" where the name says it.
    phrases: for CLIP, such as "a woman".  words: of a prompt that asks for it, such as "female".
    """

    colour: Colour
    legend: str = ""
    phrases: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Attribute:
    """A perceived attribute and its classes in canonical order, e.g. gender: female, male.

    Names and classes are lower-case words (letters, digits, "_", "-", blanks within) of up to MAX_WORD
    characters; there are at most MAX_CLASSES classes. Raises FairAdapterError for others.
    looks: one for each class; by default those of `TABLE`, and the colours in turn for classes it lacks.
        Attributes of the same name and classes are equal however they look.
    """

    name: str
    classes: tuple[str, ...]
    looks: tuple[ClassLook, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        name = one_line(repr(self.name), 80)
        if len(self.classes) > MAX_CLASSES:
            raise FairAdapterError(
                f"attribute {name}: expected at most {MAX_CLASSES} classes, found {len(self.classes)}"
            )
        for word in (self.name, *self.classes):
            if not is_word(word):
                raise FairAdapterError(
                    f"attribute {name}: {one_line(repr(word), 80)} is not a lower-case word of letters, "
                    f"digits, ' _-', without outer blanks and of at most {MAX_WORD} characters"
                )
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise FairAdapterError(f"attribute {name}: classes must be distinct and at least one")
        if not self.looks:
            looks = tuple(class_look(self.name, label, i) for i, label in enumerate(self.classes))
            object.__setattr__(self, "looks", looks)
        if len(self.looks) != len(self.classes):
            raise FairAdapterError(f"attribute {name}: expected one look for each class")

    def __len__(self) -> int:
        return len(self.classes)

    def index(self, name: str) -> int:
        """Position of a class; an unknown class is an error that suggests the nearest one."""
        return position(name, self.classes, f"class of {self.name}")


def is_word(word: object) -> bool:
    """Whether an attribute or a class can be called so."""
    return isinstance(word, str) and len(word) <= MAX_WORD and _WORD.fullmatch(word) is not None


def class_look(attribute: str, label: str, index: int = 0) -> ClassLook:
    """How a class is shown: as `TABLE` says, else in the colour of its place, `index`."""
    for known in TABLE:
        if known.name == attribute and label in known.classes:
            return known.looks[known.classes.index(label)]
    colours = list(dict.fromkeys(look.colour for known in TABLE for look in known.looks))
    return ClassLook(colours[index % len(colours)])


def spelled(attribute: str, label: str) -> str:
    """A class with what its name stands for: "wmelh (white, Middle Eastern, Latino)"."""
    legend = class_look(attribute, label).legend
    return f"{label} ({legend})" if legend else label


def ordered(attributes: Iterable[Attribute]) -> list[Attribute]:
    """In the order of `TABLE`, then the others as they come: the order of bars, rows and sliders."""
    return sorted(attributes, key=lambda a: _place(a.name))


def ordered_figures(names: Iterable[str]) -> list[str]:
    """Names of figures in the order of `TABLE`; a pair, "gender_x_race", follows its attributes."""
    return sorted(names, key=lambda n: (max(map(_place, n.split(CROSS))), n.count(CROSS)))


def _place(name: str) -> int:
    names = list(dict.fromkeys(a.name for a in TABLE))
    return names.index(name) if name in names else len(names)


# Every attribute that has a look of its own, in the order of the bars; a name may come with several lists of
# classes. The colours are Okabe and Ito's ("Color Universal Design", 2008) and a grey, dealt out so that the
# classes of one attribute are as far apart as possible for colour-blind eyes too.
GENDER = Attribute(
    "gender",
    ("female", "male"),
    (
        ClassLook(
            (230, 159, 0),  # orange
            phrases=("a woman", "a lady", "a female person"),
            words=("female",),
        ),
        ClassLook(
            (0, 158, 115),  # bluish green
            phrases=("a man", "a gentleman", "a male person"),
            words=("male",),
        ),
    ),
)
RACE4 = Attribute(
    "race",
    ("wmelh", "black", "asian", "indian"),
    (
        ClassLook(
            (213, 94, 0),  # vermilion
            "white, Middle Eastern, Latino",
            ("a white person", "a Middle Eastern person", "a Latino person"),
            ("white", "latino", "middle eastern"),
        ),
        ClassLook(
            (240, 228, 66),  # yellow
            phrases=("a Black person", "an African person", "an African American person"),
            words=("black",),
        ),
        ClassLook(
            (0, 114, 178),  # blue
            phrases=("an East Asian person", "a Chinese person", "a Southeast Asian person"),
            words=("asian",),
        ),
        ClassLook(
            (204, 121, 167),  # reddish purple
            phrases=("an Indian person", "a South Asian person"),
            words=("indian",),
        ),
    ),
)
RACE = Attribute("race", RACE4.classes[:3], RACE4.looks[:3])
AGE = Attribute(
    "age",
    ("young", "old"),
    (
        ClassLook(
            (86, 180, 233),  # sky blue
            "under 40 years",
            ("a young person", "a person in their twenties", "a person in their thirties"),
            ("young",),
        ),
        ClassLook(
            (187, 187, 187),  # grey
            "40 years and more",
            ("a middle-aged person", "an elderly person", "a person over forty"),
            ("old",),
        ),
    ),
)
# Del Bino and Bernerd, "Variations in skin colour and the biological consequences of ultraviolet radiation
# exposure", Br. J. Dermatol. 169 (2013): lower bounds of the individual typology angle, degrees
TONE_BOUNDS = (55.0, 41.0, 28.0, 10.0, -30.0)
SKIN_TONE = Attribute(
    "skin_tone",
    ("very light", "light", "intermediate", "tan", "brown", "dark"),
    (  # skin of an angle within each class
        ClassLook((252, 234, 222), "over 55\N{DEGREE SIGN}", words=("very light skin",)),
        ClassLook((236, 199, 170), "41 to 55\N{DEGREE SIGN}", words=("light skin",)),
        ClassLook((214, 163, 124), "28 to 41\N{DEGREE SIGN}", words=("intermediate skin tone",)),
        ClassLook((178, 122, 84), "10 to 28\N{DEGREE SIGN}", words=("tan skin",)),
        ClassLook((126, 80, 52), "-30 to 10\N{DEGREE SIGN}", words=("brown skin",)),
        ClassLook((70, 44, 34), "under -30\N{DEGREE SIGN}", words=("dark skin",)),
    ),
)
TABLE = (GENDER, RACE, RACE4, AGE, SKIN_TONE)
KNOWN = tuple(next(a for a in TABLE if a.name == name) for name in dict.fromkeys(a.name for a in TABLE))
STANDARD = (GENDER, RACE, AGE)  # what the default classifier reads
JOINT = (GENDER.name, RACE.name)  # whose joint shares are measured too, as the paper does
CROSS = "_x_"
PAIR = CROSS.join(JOINT)


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
        check_axes(attributes)
        object.__setattr__(self, "attributes", attributes)
        object.__setattr__(self, "shares", canonical(self.shares, attributes))

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
            table[names] = read_shares(shares.strip(), block)
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
            block = [known[nearest(n.strip(), known, "attribute")] for n in names.split("*")]
            check_axes([*axes, *block])  # before the table is made
            joint = np.multiply.outer(joint, cls(tuple(block), block_table(block, shares)).probabilities)
            axes += block
        return cls(tuple(axes), joint)  # type: ignore[arg-type]

    @classmethod
    def uniform(cls, attributes: Sequence[Attribute]) -> TargetDistribution:
        """Every cell of the joint table the same."""
        check_axes(attributes)
        cells = math.prod(len(a) for a in attributes)
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
        return self.attributes[position(name, self.names, "attribute of this target")]

    def marginal(self, *names: str) -> np.ndarray:
        """Distribution over the named attributes alone: (K,) for one, (K_a, K_b) for two, ..."""
        order = [position(name, self.names, "attribute of this target") for name in names]
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
                blocks = self._rounded(joint, decimals)
                try:
                    if self._is(blocks):
                        return ";".join(map(write_block, blocks))
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

    def _rounded(self, joint: bool, decimals: int) -> list[Block]:
        """The blocks of the text with percentages of so many decimals: one of all attributes, or one each."""
        if joint:
            return [(self.attributes, [f"{100 * p:.{decimals}f}" for p in self.shares])]
        return [
            ((a,), [f"{100 * p:.{decimals}f}" for p in self.marginal(a.name).tolist()])
            for a in self.attributes
        ]

    def _is(self, blocks: Sequence[Block]) -> bool:
        """Whether this target is what `parse` makes of these blocks. Raises FairAdapterError as it does."""
        joint = np.ones(())
        for attributes, numbers in blocks:
            shares = tuple(float(number) for number in numbers)
            joint = np.multiply.outer(joint, TargetDistribution(attributes, shares).probabilities)
        return TargetDistribution(self.attributes, joint) == self  # type: ignore[arg-type]
