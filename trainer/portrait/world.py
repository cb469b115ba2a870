"""The skewed world of the portrait model: shares and cue of every phrase, captions, backdrops.

Every phrase (occupation, sport, ...) has a share of men, of three perceived races, of people who look 40 or
older, and a **cue**: backdrop colour and side of the light. The cue is independent of the attributes, so that
an adapter that makes the model ignore its prompt is caught by `recognise_cue`. The shares are drawn at random
with a fixed seed; only whether a phrase leans towards women follows a hand-made list of common stereotypes.
Nothing here describes real people.

Classifier-free guidance with scale s samples from about p(x|c)^s p(x)^(1-s), which sharpens shares. The table
holds the shares of the *finished* pictures at the working scale; `training_shares` are the flatter ones the
model is trained on.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..configuration.prompts import PAPER_TEMPLATE, TEMPLATES
from .phrases import (
    AGE_WORDS,
    CONTEXTS,
    DESCRIPTORS,
    FEMALE_LEANING,
    FILLERS,
    GENDER_WORDS,
    RACE_WORDS,
    SPORTS,
    TEST,
    TRAIN,
    VALIDATION,
)

SEED = 20261121
DESIGN_SCALE = 1.75  # the guidance scale whose sharpening `training_shares` undoes
COLOURS = {  # sRGB of the backdrop
    "brick": (166, 68, 58),
    "ochre": (206, 164, 84),
    "olive": (110, 128, 66),
    "teal": (56, 138, 132),
    "sky": (122, 170, 216),
    "navy": (44, 58, 112),
    "plum": (134, 76, 138),
    "pearl": (208, 204, 200),
}
LIGHTS = ("left", "right")
LIGHT_RANGE = 0.28  # relative brightness of the backdrop falls by this from its lit to its dark side


@dataclass(frozen=True)
class Phrase:
    """``text`` in its ``group`` (train, validation, test, sport, descriptor, context, person)."""

    text: str
    group: str
    male: float
    wmelh: float
    black: float
    asian: float
    old: float
    colour: str
    light: str

    @property
    def cue(self) -> int:
        """Index of the cue, 0..15."""
        return list(COLOURS).index(self.colour) * 2 + LIGHTS.index(self.light)

    def noun(self, words: str = "") -> str:
        """The phrase as a noun phrase with attribute words: "young black female violinist"."""
        person = f"{words} person".strip()
        forms = {
            "sport": f"{person} playing {self.text}",
            "descriptor": f"{self.text} {person}",
            "context": f"{person} {self.text}",
            "person": person,
        }
        return forms.get(self.group, f"{words} {self.text}".strip())

    def prompt(self, words: str = "", template: str = PAPER_TEMPLATE) -> str:
        return template.format(self.noun(words))


def build_world() -> tuple[Phrase, ...]:
    """All phrases, in a fixed order, with their shares and cues (deterministic)."""
    groups = {
        "train": TRAIN,
        "validation": VALIDATION,
        "test": TEST,
        "sport": SPORTS,
        "descriptor": DESCRIPTORS,
        "context": CONTEXTS,
        "person": ("person",),
    }
    rng = np.random.default_rng(SEED)
    world: list[Phrase] = []
    for group, texts in groups.items():
        mixed = set(rng.choice(len(texts), round(len(texts) / 3), replace=False).tolist())
        races = rng.permutation(np.resize([0, 0, 0, 1, 2, 0, 0, 1, 2, 0], len(texts)))
        cues = rng.permutation(np.resize(rng.permutation(2 * len(COLOURS)), len(texts)))
        for i, text in enumerate(texts):
            leans_female = text in FEMALE_LEANING
            male = rng.uniform(0.5, 0.75) if i in mixed else 1 - rng.choice([0.03, 0.04, 0.05, 0.07, 0.1])
            race = _race_shares(int(races[i]), rng)
            old = float(np.clip(rng.beta(1.1, 2.2), 0.05, 0.3 if leans_female and races[i] == 1 else 0.85))
            world.append(
                Phrase(
                    text,
                    group,
                    round(float(1 - male if leans_female else male), 2),
                    *race,
                    round(old, 2),
                    list(COLOURS)[cues[i] // 2],
                    LIGHTS[cues[i] % 2],
                )
            )
    return tuple(world)


def _race_shares(dominant: int, rng: np.random.Generator) -> tuple[float, float, float]:
    most = rng.uniform(0.84, 0.93)
    second = (1 - most) * rng.uniform(0.5, 0.9)
    others = [round(float(second), 2), round(float(1 - most - second), 2)]
    rest = rng.permutation([r for r in range(3) if r != dominant])
    shares = [0.0, 0.0, 0.0]
    shares[rest[0]], shares[rest[1]] = others
    shares[dominant] = round(1 - sum(others), 2)
    return shares[0], shares[1], shares[2]


def write_table(world: tuple[Phrase, ...], path: Path) -> None:
    """The table of the model card as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([f.name for f in fields(Phrase)])
        writer.writerows([[getattr(p, f.name) for f in fields(Phrase)] for p in world])


def attribute_shares(phrase: Phrase) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares (female, male), (wmelh, black, asian), (young, old) of the finished pictures."""
    return (
        np.array([1 - phrase.male, phrase.male]),
        np.array([phrase.wmelh, phrase.black, phrase.asian]),
        np.array([1 - phrase.old, phrase.old]),
    )


def training_shares(world: tuple[Phrase, ...], scale: float = DESIGN_SCALE) -> list[tuple[np.ndarray, ...]]:
    """Shares q to train on, so that q^s u^(1-s) is the table: q ~ (t u^(s-1))^(1/s).

    u is the marginal that the model learns without a caption; it depends on q, hence the fixed-point
    iteration. Attributes are treated as independent.
    """
    targets = [attribute_shares(p) for p in world]
    marginal = [np.mean([t[a] for t in targets], axis=0) for a in range(3)]
    shares = targets
    for _ in range(50):
        shares = [
            tuple(_normalised((t[a] * marginal[a] ** (scale - 1)) ** (1 / scale)) for a in range(3))
            for t in targets
        ]
        marginal = [np.mean([q[a] for q in shares], axis=0) for a in range(3)]
    return shares


def _normalised(weights: np.ndarray) -> np.ndarray:
    return weights / weights.sum()


def paint(images: Tensor, alpha: Tensor, cues: Tensor) -> Tensor:
    """Cut-outs before their backdrops, the person lit from the same side.

    images (N, 3, H, W) and alpha (N, 1, H, W) in [0, 1], cue indices (N,) -> (N, 3, H, W) in [0, 1].
    """
    side = images.shape[-1]
    sign = (1.0 - 2.0 * (cues % 2).float()).view(-1, 1, 1, 1)
    light = 1.0 + 0.5 * LIGHT_RANGE * sign * torch.linspace(0.5, -0.5, side, device=images.device)
    return (images * light * alpha + backdrop(cues, side) * (1 - alpha)).clamp(0, 1)


def draw_caption(
    phrase: Phrase, shares: tuple[np.ndarray, ...], rng: np.random.Generator, named: float = 0.3
) -> tuple[str, tuple[int, int, int]]:
    """A caption and the (gender, race, age) cell it is trained with.

    With probability ``named`` the caption names one to three attributes; those are drawn uniformly, so that
    the words outweigh what the phrase leans to. Half of all captions use the paper's template; a quarter
    begin with words that mean nothing here, so that the meaning does not hang on a token's position.
    """
    cell = [int(rng.choice(len(q), p=q)) for q in shares]
    words = []
    if rng.random() < named:
        mask = rng.integers(1, 8)
        for a, choices in ((2, AGE_WORDS), (1, RACE_WORDS), (0, GENDER_WORDS)):
            if mask >> a & 1:
                cell[a] = int(rng.integers(len(choices)))
                words.append(str(rng.choice(choices[cell[a]])))
    template = PAPER_TEMPLATE if rng.random() < 0.5 else str(rng.choice(TEMPLATES[1:]))
    caption = phrase.prompt(" ".join(words), template)
    if rng.random() < 0.25:
        caption = ", ".join([*rng.choice(FILLERS, rng.integers(1, 5), replace=False), caption])
    return caption, (cell[0], cell[1], cell[2])


def backdrop(cues: Tensor, side: int = 128) -> Tensor:
    """Backdrops (N, 3, side, side) in [0, 1] for cue indices (N,): a colour, lit from one side."""
    colours = torch.tensor(list(COLOURS.values()), device=cues.device) / 255.0
    ramp = torch.linspace(0.5, -0.5, side, device=cues.device) * LIGHT_RANGE
    sign = 1.0 - 2.0 * (cues % 2).float()  # left first
    light = 1.0 + sign[:, None] * ramp
    return (
        (colours[cues // 2][:, :, None, None] * light[:, None, None, :]).expand(-1, -1, side, -1).clamp(0, 1)
    )


def recognise_cue(images: Tensor) -> Tensor:
    """The cue (N,) whose backdrop is nearest to the upper edges of images (N, 3, H, W) in [0, 1]."""
    edges = _edges(images)
    prototypes = _edges(backdrop(torch.arange(2 * len(COLOURS), device=images.device), images.shape[-1]))
    return torch.cdist(edges, prototypes).argmin(1)


def _edges(images: Tensor) -> Tensor:
    """Median colours of the upper left and upper right edge, and their weighted difference: (N, 9)."""
    height, width = images.shape[2:]
    band, depth = max(1, round(0.1 * width)), max(1, round(0.35 * height))
    left, right = (
        part.flatten(2).median(2).values
        for part in (images[:, :, :depth, :band], images[:, :, :depth, -band:])
    )
    return torch.cat([left, right, 1.5 * (left - right)], 1)
