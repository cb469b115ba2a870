"""Shapes and poses the base mesh after a person.

MakeHuman's averages are shy: classifiers read them as labelled only when gender, race and age go past the
ends of its sliders. How far stands in OVERDRAW; measured by what both classifiers read (see
docs/rendered_people.md).
"""

from __future__ import annotations

import numpy as np

from .assets import Assets
from .plan import Person

OVERDRAW = {
    "female": {"black": 2.3, "asian": 1.8, "wmelh": 1.8},
    "male": {"black": 1.3, "asian": 1.35, "wmelh": 1.5},
    "race": {"black": 1.5, "asian": 1.55, "wmelh": 1.4},
}
_OLD = ((20, 30, 36, 44, 56, 76), (-0.1, 0.08, 0.24, 0.62, 1.0, 1.45))  # years -> how far to MakeHuman's 90
MAKEHUMAN = {"black": "african", "asian": "asian", "wmelh": "caucasian"}
# What classifiers look for beside the macro targets, added on top of a person's own face
_ADDED = {
    "black": {
        "mouth-upperlip-volume-incr": 0.4,
        "mouth-lowerlip-volume-incr": 0.3,
        "nose-width3-incr": 0.35,
        "nose-nostrils-width-incr": 0.3,
        "nose-flaring-incr": 0.25,
    },
    "asian": {
        "*-eye-epicanthus-in": 0.5,
        "*-eye-eyefold-down": 0.35,
        "*-eye-height1-decr": 0.25,
        "*-eye-height3-decr": 0.25,
        "nose-scale-depth-decr": 0.2,
        "*-cheek-bones-incr": 0.2,
    },
    "wmelh": {"nose-scale-depth-incr": 0.2, "*-eye-eyefold-up": 0.2, "nose-width1-decr": 0.15},
}
_FEMALE = {
    "mouth-lowerlip-volume-incr": 0.2,
    "mouth-upperlip-volume-incr": 0.2,
    "*-eye-height2-incr": 0.2,
    "nose-scale-horiz-decr": 0.15,
    "nose-volume-decr": 0.15,
    "chin-width-decr": 0.2,
    "eyebrows-trans-up": 0.25,
    "measure-neck-circ-decr": 0.3,
}
_MALE = {
    "chin-width-incr": 0.15,
    "chin-bones-incr": 0.2,
    "measure-neck-circ-incr": 0.25,
    "eyebrows-trans-forward": 0.15,
}
_ARM = ("upperarm01", "upperarm02", "lowerarm01", "lowerarm02", "wrist", "metacarpal", "finger")
_HEAD = (
    "head", "jaw", "levator", "oculi", "orbicularis", "oris", "risorius", "special", "temporalis",
    "tongue", "eye.",
)


def macro_weights(p: Person) -> dict[str, float]:
    """MakeHuman's macro targets with their weights."""
    old = float(np.interp(p.age, *_OLD))
    ages = {"young": 1 - old, "old": old}
    male = 0.5 + OVERDRAW[p.slot.gender][p.slot.race] * (p.male - 0.5)
    genders = {"male": male, "female": 1 - male}
    push = OVERDRAW["race"][p.slot.race]
    races = {MAKEHUMAN[race]: 1 / 3 + push * (share - 1 / 3) for race, share in p.mix.items()}
    out = {}
    for g, wg in genders.items():
        for a, wa in ages.items():
            for race, wr in races.items():
                out[f"{race}-{g}-{a}"] = wg * wa * wr
            for m, wm in _three(p.muscle, "muscle").items():
                for w, ww in _three(p.weight, "weight").items():
                    out[f"universal-{g}-{a}-{m}-{w}"] = wg * wa * wm * ww
    return {k: v for k, v in out.items() if abs(v) > 1e-4}


def _three(value: float, kind: str) -> dict[str, float]:
    return {
        f"min{kind}": max(0, 1 - 2 * value),
        f"average{kind}": 1 - abs(2 * value - 1),
        f"max{kind}": max(0, 2 * value - 1),
    }


def expression(p: Person) -> dict[str, float]:
    """Expression units with their weights."""
    units = {"mouth-corner-puller": p.smile}
    brows = 0.85 if p.expression == "raised brows" else 0.42
    for side in ("left", "right"):
        units[f"eye-{side}-slit"] = 0.14 * p.smile
        units[f"eyebrows-{side}-up"] = brows
        units[f"eyebrows-{side}-inner-up"] = 0.3
    if p.expression == "open smile":
        units |= {
            "mouth-upward-retraction": 0.25 + 0.25 * p.smile,
            "mouth-open": 0.1,
            "mouth-part-later": 0.2,
        }
    return units


def details(p: Person) -> dict[str, float]:
    """Face axes of this person with what age and gender add."""
    given = dict(p.details)
    for extra in (_ADDED[p.slot.race], _FEMALE if p.slot.gender == "female" else _MALE):
        for name, amount in extra.items():
            given[name] = given.get(name, 0) + amount
    out = {}
    for name, amount in given.items():
        for side in "lr" if name.startswith("*") else " ":
            out[name.replace("*", side)] = amount
    past = float(np.interp(p.age, (36, 44, 74), (0, 0.3, 1)))
    out["head-age-incr"] = 0.9 * past
    for side in "lr":
        out[f"{side}-eye-bag-incr"] = 0.7 * past
        out[f"{side}-cheek-trans-down"] = out.get(f"{side}-cheek-trans-down", 0) + 0.3 * past
    return out


def rotation(axis: str, degrees: float) -> np.ndarray:
    """A rotation matrix (3, 3) about x, y or z."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    rows = {
        "x": [[1, 0, 0], [0, c, -s], [0, s, c]],
        "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]],
        "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]],
    }
    return np.array(rows[axis])


def head_frame(p: Person) -> np.ndarray:
    """The head's rotation (3, 3); its columns point to its left, up and forward."""
    return rotation("y", p.turn) @ rotation("z", p.roll) @ rotation("y", p.yaw) @ rotation("x", p.pitch)


def shape(p: Person, assets: Assets) -> np.ndarray:
    """The base mesh (v, 3) of this person, posed: arms down, head and body turned."""
    vertices = assets.base.vertices.copy()
    weights = {**macro_weights(p), **details(p)}
    for unit, value in expression(p).items():
        for race, share in p.mix.items():
            weights[f"expression/{MAKEHUMAN[race]}/{unit}"] = value * share
    for name, weight in weights.items():
        target = assets.target(name)
        if target is not None and weight:
            vertices[target[0]] += weight * target[1]
    return _pose(vertices, p, assets)


def _pose(vertices: np.ndarray, p: Person, assets: Assets) -> np.ndarray:
    for side, sign in (("l", 1), ("r", -1)):
        weight = sum(
            assets.bone_weight(*(f"{bone}{tail}.{side.upper()}" for tail in _tails(bone))) for bone in _ARM
        )
        pivot = vertices[assets.joint(f"{side}-shoulder")].mean(0)
        turned = (vertices - pivot) @ rotation("z", -sign * 29).T + pivot
        vertices += np.clip(weight, 0, 1)[:, None] * (turned - vertices)
    pivot = 0.5 * (vertices[assets.joint("neck")].mean(0) + vertices[assets.joint("head")].mean(0))
    neck = ((0.67, "neck03"), (0.4, "neck02"), (0.15, "neck01"))
    weight = assets.bone_weight(*_HEAD) + sum(share * assets.bone_weight(bone) for share, bone in neck)
    turn = rotation("z", p.roll) @ rotation("y", p.yaw) @ rotation("x", p.pitch)
    turned = (vertices - pivot) @ turn.T + pivot
    vertices += np.clip(weight, 0, 1)[:, None] * (turned - vertices)
    middle = vertices[assets.joint("neck")].mean(0)
    return (vertices - middle) @ rotation("y", p.turn).T + middle


def _tails(bone: str) -> tuple[str, ...]:
    if bone == "metacarpal":
        return tuple(map(str, range(1, 5)))
    if bone == "finger":
        return tuple(f"{n}-{k}" for n in range(1, 6) for k in range(1, 4))
    return ("",)
