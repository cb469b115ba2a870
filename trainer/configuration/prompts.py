"""Prompts: named sets, sets from files, templates, and the order in which training goes through them.

Held out means held out: `occupations_test` and `occupations_validation` (the paper's 50 and 10) share no name
with `occupations_train`, nor `sports_test` with `sports`; training on a held-out set is refused.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from ...shared.errors import FairAdapterError
from .config import PromptSource
from .settings import unknown

TEMPLATES = (  # {} is the noun phrase, e.g. "young black female violinist" or "friendly person"
    "a photo of the face of a {}, a person",
    "a photo of the face of a {}",
    "a photo of a {}",
    "a portrait of a {}",
    "a headshot of a {}",
    "a {}",
)
PAPER_TEMPLATE = TEMPLATES[0]
GROUPS = {  # set -> group of names in sets.csv
    "occupations_train": "train",
    "occupations_validation": "validation",
    "occupations_test": "test",
    "sports": "sport",
    "sports_test": "sport",
    "descriptors": "descriptor",
    "descriptors_test": "descriptor",
    "contexts": "context",
    "contexts_test": "context",
    "person": "person",
}
SPLIT = ("sports", "descriptors", "contexts")
TEST_EVERY = 3  # of these sets: the others are for training
OFF_TEMPLATE = "off_template"  # held-out occupations in every template but the paper's
NON_TEMPLATED = "non_templated"
NO_PERSON = "no_person"
HELD_OUT = (
    "occupations_validation",
    "occupations_test",
    *(f"{name}_test" for name in SPLIT),
    OFF_TEMPLATE,
    NON_TEMPLATED,
)
SENTENCES = {
    NON_TEMPLATED: (
        "A philosopher reading. Oil painting",
        "A chef in a white coat leans on a table",
        "bartender at willard intercontinental makes mint julep",
        "English writer and essayist",
        "portrait of a flamenco dancer",
        "student with globe",
    ),
    NO_PERSON: (
        "a bowl of fruit on a wooden table",
        "a lighthouse on a cliff at sunset",
        "a red bicycle leaning on a brick wall",
        "a cat sleeping on a windowsill",
        "a snowy mountain above a lake",
        "an empty train station at night",
        "a vase of tulips, oil painting",
        "a steaming cup of coffee, close-up",
    ),
}
FOLDER = Path(__file__).parents[1] / "prompts"
LARGE = {  # set -> its file of names, and their template
    "occupations_large": ("occupations.txt", PAPER_TEMPLATE),  # 1,000, none of them held out
    "sports_large": ("sports.txt", "a photo of the face of a {} athlete, a person"),
    "descriptors_large": ("descriptors.txt", "a photo of the face of a {} person"),
    "style_context": ("style_context.txt", "{}"),  # occupations in styles and contexts, whole prompts
}
SETS = (*GROUPS, OFF_TEMPLATE, *SENTENCES, *LARGE)


@dataclass(frozen=True)
class Name:
    """A name of sets.csv, and how it stands in a prompt: "basketball", "person playing basketball"."""

    group: str
    name: str
    phrase: str


@cache
def names(group: str) -> tuple[Name, ...]:
    """The names of a group, in the order of sets.csv."""
    with (FOLDER / "sets.csv").open(encoding="utf-8", newline="") as file:
        return tuple(Name(**row) for row in csv.DictReader(file) if row["group"] == group)


@dataclass(frozen=True)
class Prompt:
    """text: what the model gets.  name: its occupation, sport, ... or the text itself.  set: it is from.
    cue: index of the visible cue that the measured model gives it, None where it gives none."""

    text: str
    name: str
    set: str
    cue: int | None = None


def read_prompts(source: PromptSource) -> list[Prompt]:
    """The prompts of a set or file, in a fixed order; templates are taken in turn.

    A file holds a prompt or name on each line, or a JSON list (or {"prompts": list}); without a template they
    are prompts as they stand. Raises FairAdapterError for an unknown set, an empty or unreadable file and a
    template without {}.
    """
    for template in source.templates:
        if template.count("{}") != 1:
            raise FairAdapterError(f"template {template!r}: expected {{}} once, where the name goes")
    if source.set in GROUPS:
        chosen = names(GROUPS[source.set])
        if source.set in SPLIT:
            chosen = tuple(n for i, n in enumerate(chosen) if (i + 1) % TEST_EVERY)
        elif source.set.removesuffix("_test") in SPLIT:
            chosen = chosen[TEST_EVERY - 1 :: TEST_EVERY]
        return _of_names(chosen, source.templates or (PAPER_TEMPLATE,), source.set)
    if source.set == OFF_TEMPLATE:
        return _of_names(names("test"), source.templates or TEMPLATES[1:], source.set)
    if source.set in SENTENCES:
        return [Prompt(text, text, source.set) for text in SENTENCES[source.set]]
    if source.set in LARGE:
        file, template = LARGE[source.set]
        texts, templates = _read_file(str(FOLDER / file)), source.templates or (template,)
    else:
        texts, templates = _read_file(source.set), source.templates or ("{}",)
    return [
        Prompt(templates[i % len(templates)].replace("{}", t), t, source.set) for i, t in enumerate(texts)
    ]


def _of_names(chosen: Sequence[Name], templates: Sequence[str], name: str) -> list[Prompt]:
    return [
        Prompt(templates[i % len(templates)].format(n.phrase), n.name, name) for i, n in enumerate(chosen)
    ]


def _read_file(name: str) -> list[str]:
    path = Path(name)
    if not path.is_file():
        if path.suffix or path.parent != Path("."):
            raise FairAdapterError(f"{path}: expected a file of prompts, found none; check the path")
        raise unknown(name, SETS, "prompt set")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".json":
            table = json.loads(text)
            table = table.get("prompts") if isinstance(table, dict) else table
            if not isinstance(table, list) or not all(isinstance(t, str) for t in table):
                raise ValueError("no list of texts")
            lines = table
        else:
            lines = text.splitlines()
    except (OSError, ValueError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise FairAdapterError(
            f"{path}: expected a prompt on each line or a JSON list of texts, found {error}; save it as UTF-8"
        ) from error
    prompts = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not prompts:
        raise FairAdapterError(
            f"{path}: expected a prompt on each line, found none; write one or choose a set"
        )
    return list(dict.fromkeys(prompts))


def training_sets(sources: Sequence[PromptSource]) -> list[list[Prompt]]:
    """The prompts of every training set with a weight. Raises FairAdapterError for held-out ones."""
    held_out = [s.set for s in sources if s.set in HELD_OUT]
    if held_out:
        raise FairAdapterError(
            f"prompts.train: {held_out[0]} is held out for evaluation; train on another set such as "
            "occupations_train"
        )
    return [read_prompts(source) for source in sources if source.weight > 0]


@dataclass(frozen=True)
class Turn:
    """What one iteration draws: a prompt, and how often it was drawn before."""

    prompt: Prompt
    epoch: int


class Schedule:
    """The prompt of every iteration; a function of the seed and the iteration alone.

    Sets take turns by weight (the one furthest behind its share is next); each goes through its prompts
    in an order of its own, shuffled anew in every epoch.
    """

    def __init__(self, sets: Sequence[Sequence[Prompt]], weights: Sequence[float], seed: int) -> None:
        self.sets = sets
        self.shares = np.array(weights, dtype=np.float64) / np.sum(weights)
        self.seed = seed
        self._turns: list[tuple[int, int]] = []  # set, and how often the set had its turn before
        self._count = np.zeros(len(sets), dtype=np.int64)

    def __getitem__(self, iteration: int) -> Turn:
        while len(self._turns) <= iteration:
            chosen = int((self.shares * (len(self._turns) + 1) - self._count).argmax())
            self._turns.append((chosen, int(self._count[chosen])))
            self._count[chosen] += 1
        chosen, place = self._turns[iteration]
        prompts = self.sets[chosen]
        epoch, position = divmod(place, len(prompts))
        order = np.random.default_rng([self.seed, chosen, epoch]).permutation(len(prompts))
        return Turn(prompts[order[position]], epoch)


def evenly(prompts: Sequence[Prompt], limit: int) -> list[Prompt]:
    """`limit` of the prompts, evenly spread; all for 0."""
    if not limit or limit >= len(prompts):
        return list(prompts)
    return [prompts[i * len(prompts) // limit] for i in range(limit)]
