"""Who is in picture `index`: a pure function of seed and index, whatever the count and the order.

Twelve pictures in a row are the twelve cells of gender x race x age, in shuffled order: of any first N
pictures each cell has N/12, rounded down or up. Ten such blocks in a row hold, in shuffled order,

    6  `fit`         for judges and models; half of them `a`, half `b`, so that two judges share no identity
    2  `validation`  the same hair, clothes and light, other people
    2  `test`        hair, clothes and light that no other split has

so that every split is balanced as the whole is. Each index is another person: splits share no identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from . import catalogue as have

CELLS = tuple(product(have.GENDERS, have.RACES, have.AGES))
SPLITS = ("fit a", "fit b") * 3 + ("validation",) * 2 + ("test",) * 2
_SMILES = {  # how far the corners of the mouth are pulled
    "neutral": (0.0, 0.15),
    "slight smile": (0.25, 0.55),
    "smile": (0.55, 0.85),
    "open smile": (0.45, 0.8),
    "raised brows": (0.1, 0.5),
}
_CELL, _SPLIT, _PERSON = 1, 2, 3  # which stream of random numbers


@dataclass(frozen=True)
class Slot:
    """What the design fixes of a picture."""

    index: int
    gender: str  # female, male
    race: str  # black, asian, wmelh
    age_class: str  # young, old
    split: str  # fit, validation, test
    half: str  # a, b or "" where it is no `fit`


@dataclass(frozen=True)
class Person:
    """All that is drawn of a picture; angles in degrees, lengths in decimetres unless said otherwise."""

    slot: Slot
    identity: int  # seed of everything random about the picture
    age: float  # years
    male: float  # 0 female .. 1 male, of the shape
    mix: dict[str, float]  # shares of the races in the shape, sum 1
    weight: float
    muscle: float
    details: dict[str, float]  # face axis end -> amount
    tone: float  # individual typology angle of the skin
    hair: str
    hair_colour: str
    hair_rgb: tuple[float, float, float]  # linear
    brow: int
    eyes: str
    beard: str
    outfit: str
    outfit_hue: float  # 0..1
    outfit_saturation: float
    outfit_value: float
    pattern: str
    glasses: bool
    earrings: bool
    makeup: float  # 0 none .. 1
    expression: str
    smile: float
    yaw: float  # of the head against the shoulders
    pitch: float
    roll: float
    turn: float  # of the body
    light: str
    light_side: int  # -1, 1

    @property
    def brow_rgb(self) -> tuple[float, float, float]:
        """Colour of brows and beard: that of the hair unless it is dyed."""
        dyed = self.slot.race != "wmelh" and self.hair_colour in ("auburn", "blond")
        return have.HAIR_COLOURS["darkbrown"] if dyed else self.hair_rgb


def slot(seed: int, index: int) -> Slot:
    """What the design fixes of picture `index` (from 0)."""
    block, place = divmod(index, len(CELLS))
    order = np.random.default_rng((seed, _CELL, block)).permutation(len(CELLS))
    gender, race, age_class = CELLS[order[place]]
    rows, row = divmod(block, len(SPLITS))
    shuffled = np.random.default_rng((seed, _SPLIT, rows)).permutation(len(SPLITS))
    split, _, half = SPLITS[shuffled[row]].partition(" ")
    return Slot(index, gender, race, age_class, split, half)


def person(seed: int, index: int) -> Person:
    """The person of picture `index`."""
    s = slot(seed, index)
    r = np.random.default_rng((seed, _PERSON, index))
    identity = int(r.integers(2**53))
    age = float(r.uniform(*have.AGES[s.age_class]))
    man = s.gender == "male"
    details = _details(r)
    colour = _hair_colour(r, s.race, age)
    rgb = np.array(have.HAIR_COLOURS[colour]) * r.uniform(0.8, 1.25)
    expression = _pick(r, have.EXPRESSIONS)
    mean, spread, least, most = have.TONE[s.race]
    beard = _pick(r, have.BEARDS[s.race])
    makeup = float(r.uniform(0.25, 1.0)) if r.random() < 0.75 else 0.0
    test = s.split == "test"
    return Person(
        slot=s,
        identity=identity,
        age=age,
        male=float(np.clip(r.normal(0.97 if man else 0.03, 0.04), 0, 1)),
        mix=_mix(r, s.race),
        weight=float(np.clip(r.normal(0.5, 0.16), 0.15, 0.92)),
        muscle=float(np.clip(r.normal(0.5, 0.14), 0.15, 0.85)),
        details=details,
        tone=float(np.clip(r.normal(mean, spread), least, most)),
        hair=_hair(r, s, age),
        hair_colour=colour,
        hair_rgb=(float(rgb[0]), float(rgb[1]), float(rgb[2])),
        brow=int(r.choice(have.BROWS[s.gender])),
        eyes=_pick(r, have.EYES[s.race]),
        beard=beard if man else "none",
        outfit=str(r.choice(have.HELD_OUT_OUTFITS if test else have.OUTFITS)),
        outfit_hue=float(r.uniform()),
        outfit_saturation=float(r.beta(1.3, 1.6)),
        outfit_value=float(r.uniform(0.05, 0.8)),
        pattern=_pick(r, have.PATTERNS),
        glasses=bool(r.random() < have.GLASSES),
        earrings=bool(r.random() < have.EARRINGS[s.gender]),
        makeup=0.0 if man else makeup,
        expression=expression,
        smile=float(r.uniform(*_SMILES[expression])),
        yaw=float(np.clip(r.normal(0, 10), -24, 24)),
        pitch=float(np.clip(r.normal(0, 4), -9, 9)),
        roll=float(np.clip(r.normal(0, 3), -7, 7)),
        turn=float(np.clip(r.normal(0, 11), -24, 24)),
        light=str(r.choice(have.HELD_OUT_LIGHTS if test else have.LIGHTS)),
        light_side=int(r.choice((-1, 1))),
    )


def _pick(r: np.random.Generator, odds: dict[str, float]) -> str:
    weights = np.array(list(odds.values()))
    return str(r.choice(list(odds), p=weights / weights.sum()))


def _mix(r: np.random.Generator, race: str) -> dict[str, float]:
    """Shares of the races: the main one has .82 to 1."""
    main = float(r.uniform(0.82, 1.0))
    rest = r.dirichlet((1, 1)) * (1 - main)
    others = [x for x in have.RACES if x != race]
    return {race: main, others[0]: float(rest[0]), others[1]: float(rest[1])}


def _details(r: np.random.Generator) -> dict[str, float]:
    """The face: about half of all axes, moved to one end."""
    details: dict[str, float] = {}
    for low, high in have.AXES:
        value, used = float(np.clip(r.normal(0, 0.26), -0.62, 0.62)), bool(r.random() < 0.6)
        value *= 0.5 if "neck" in low else 1.0  # collars are cut for the average
        if used:
            details[low if value < 0 else high] = abs(value)
    for shape in r.choice(have.SHAPES, 2, replace=False):
        details[f"head-{shape}"] = float(r.uniform(0, 0.28))
    for frown in ("eyebrows-angle-down", "mouth-angles-down"):  # read as a mood, not as a face
        details.pop(frown, None)
    return details


def _hair_colour(r: np.random.Generator, race: str, age: float) -> str:
    grey, white = bool(r.random() < np.clip((age - 38) / 24, 0, 0.9)), bool(r.random() < 0.55)
    natural = _pick(r, have.COLOUR_ODDS[race])
    if not grey:
        return natural
    return "white" if age > 60 and white else "grey"


def _hair(r: np.random.Generator, s: Slot, age: float) -> str:
    """Length by gender, texture by race, style at random among those."""
    styles = [h for h in have.HAIR if h.held_out == (s.split == "test")]
    length = _pick(r, have.LENGTH[s.gender])
    there = {h.texture for h in styles if h.length == length}
    odds = {t: p for t, p in have.TEXTURE[s.race].items() if t in there}
    texture = _pick(r, odds)
    weights = {h.name: h.weight for h in styles if h.length == length and h.texture == texture}
    if "bald" in weights:
        weights["bald"] *= 0.25 if s.gender == "female" else 1 + 2 * np.clip((age - 35) / 30, 0, 1)
    return _pick(r, weights)
