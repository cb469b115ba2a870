"""Attributes in words: a target as one plain phrase for each picture, "a woman of about 60, Black".

Words need no adapter: they reach every model that understands its prompt, and models whose prompts are
rewritten by another one, where words win over adapters. How many pictures say what is that of an exact batch
(`quota.cells`); which picture says what, and which of several phrases of a class, follows from a seed. What
the prompt names itself stays as it is: only the other attributes are added, in the shares that the target
asks of such people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .attributes import TargetDistribution
from .errors import FairAdapterError, one_line
from .phrases import Cell, PhraseTable
from .quota import cells

PLACES = ("before", "after", "at the marker")
MARKER = "[person]"
MOST = 1000  # pictures
SEEDS = 2**64  # of the hosts' samplers


@dataclass(frozen=True)
class WordedPrompt:
    """One picture: what it says (attribute -> class), the phrase, the whole prompt, a seed for its noise."""

    classes: Mapping[str, str]
    phrase: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class DrawnWords:
    """notes: one line each on what the prompt keeps."""

    pictures: tuple[WordedPrompt, ...]
    notes: tuple[str, ...] = ()

    @property
    def prompts(self) -> list[str]:
        return [picture.prompt for picture in self.pictures]


def draw_words(
    prompt: str,
    target: TargetDistribution,
    images: int,
    seed: int,
    table: PhraseTable,
    place: str = PLACES[0],
    marker: str = MARKER,
    first: int = 0,
) -> DrawnWords:
    """One prompt for each of some pictures.

    images: 1 to MOST.  seed: 0 or more; that of picture i is seed + i.  place: one of PLACES; the marker is
    replaced wherever it stands.  first: pictures of the same target that came before, as in `quota.counts`.
    Raises FairAdapterError for other values, and for a marker that the prompt lacks.
    """
    _check(prompt, images, seed, place, marker)
    bare = prompt.replace(marker, " ") if place == PLACES[2] else prompt
    named = table.named(bare, target.attributes)
    rest = narrowed(target, named)
    rng = np.random.default_rng([seed % SEEDS, first])
    found: list[dict[str, str]] = [{}] * images
    if rest is not None:
        in_turn = cells(rest, images, first)
        found = [in_turn[i] for i in rng.permutation(images)]
    turns = _Turns(rng)
    pictures = []
    for i, classes in enumerate(found):
        phrase = table.phrase(classes, rest.attributes if rest else (), turns)
        whole = placed(prompt, phrase, place, marker)
        pictures.append(WordedPrompt(classes, phrase, whole, (seed + i) % SEEDS))
    return DrawnWords(tuple(pictures), _notes(named, target))


def narrowed(target: TargetDistribution, named: Mapping[str, Sequence[str]]) -> TargetDistribution | None:
    """What a target asks of the attributes that a prompt does not name; None if it names all.

    Of a joint target, the shares among people of the named classes; where the target has none of them, or
    knows the attribute by other classes, the shares among all.
    """
    rest = [a for a in target.attributes if a.name not in named]
    if not rest or len(rest) == len(target.attributes):
        return target if rest else None
    table = target.probabilities
    for axis, attribute in enumerate(target.attributes):
        keep = [label in named.get(attribute.name, ()) for label in attribute.classes]
        chosen = np.compress(keep, table, axis=axis)
        if any(keep) and chosen.sum() > 0:
            table = chosen
    gone = tuple(axis for axis, a in enumerate(target.attributes) if a.name in named)
    shares = table.sum(axis=gone)
    return TargetDistribution(tuple(rest), tuple((shares / shares.sum()).reshape(-1).tolist()))


def placed(prompt: str, phrase: str, place: str, marker: str = MARKER) -> str:
    """The prompt with the phrase at its place; without a phrase a marker goes, too."""
    if place == PLACES[2]:
        return prompt.replace(marker, phrase) if phrase else _without(prompt, marker)
    parts = [part for part in (phrase, prompt) if part.strip()]
    return ", ".join(parts if place == PLACES[0] else parts[::-1])


def _without(prompt: str, marker: str) -> str:
    """No marker, and one blank where it stood between two."""
    return prompt.replace(f"{marker} ", "").replace(marker, "").strip()


class _Turns:
    """Alternatives in turn, each cell's beginning at one that the generator draws."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._next: dict[Cell, int] = {}

    def __call__(self, cell: Cell, count: int) -> int:
        place = self._next.get(cell)
        if place is None:
            place = int(self._rng.integers(count))
        self._next[cell] = place + 1
        return place % count


def _notes(named: Mapping[str, Sequence[str]], target: TargetDistribution) -> tuple[str, ...]:
    return tuple(
        f"the prompt names {name} ({', '.join(labels)}): it stays, and no word is added"
        for name, labels in named.items()
        if name in target.names
    )


def _check(prompt: str, images: int, seed: int, place: str, marker: str) -> None:
    for name, value, low, high in (("pictures", images, 1, MOST), ("seed", seed, 0, SEEDS - 1)):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise FairAdapterError(
                f"draw attributes: {name}: expected a whole number from {low} to {high}, found {value!r}"
            )
    if place not in PLACES:
        raise FairAdapterError(
            f"draw attributes: place: expected one of {', '.join(PLACES)}, found {one_line(place, 60)!r}"
        )
    if place == PLACES[2] and (not marker or marker not in prompt):
        raise FairAdapterError(
            f"draw attributes: expected the marker {one_line(marker, 60)!r} in the prompt, found none; write "
            f"it where the phrase goes, or place it {PLACES[0]} or {PLACES[1]} the prompt"
        )
