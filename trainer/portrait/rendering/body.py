"""Shapes and poses the base mesh after a person.

MakeHuman's averages are shy: classifiers read them as labelled only when gender, race and age go past the ends
of its sliders. How far stands in OVERDRAW; measured by what both classifiers read (see docs/rendered_people.md).
"""

from __future__ import annotations

import numpy as np

from .assets import Assets
from .plan import Person

OVERDRAW = {"gender": {"female": 1.5, "male": 1.25}, "race": {"black": 1.4, "asian": 1.4, "wmelh": 1.5}, "age": 1.3}
MAKEHUMAN = {"black": "african", "asian": "asian", "wmelh": "caucasian"}
_ARM = ("upperarm01", "upperarm02", "lowerarm01", "lowerarm02", "wrist", "metacarpal", "finger")
_HEAD = "head jaw levator oculi orbicularis oris risorius special temporalis tongue eye.".split()


def macro_weights(p: Person) -> dict[str, float]:
    """MakeHuman's macro targets with their weights."""
    old = float(np.clip((p.age - 25) / 55, 0, 1)) * OVERDRAW["age"]  # MakeHuman's old is 90; here 80
    ages = {"young": 1 - old, "old": old}
    male = 0.5 + OVERDRAW["gender"][p.slot.gender] * (p.male - 0.5)
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
    brows = 0.75 if p.expression == "raised brows" else 0.3
    for side in ("left", "right"):
        units[f"eye-{side}-slit"] = 0.14 * p.smile
        units[f"eyebrows-{side}-up"] = brows
        units[f"eyebrows-{side}-inner-up"] = 0.2
    if p.expression == "open smile":
        units |= {"mouth-upward-retraction": 0.35 + 0.3 * p.smile, "mouth-open": 0.16, "mouth-part-later": 0.25}
    return units


def details(p: Person) -> dict[str, float]:
    """Face axes of this person with what age and gender add."""
    out = {}
    for name, amount in p.details.items():
        for side in "lr" if name.startswith("*") else " ":
            out[name.replace("*", side)] = amount
    past = float(np.clip((p.age - 42) / 30, 0, 1))
    out["head-age-incr"] = 0.8 * past
    for side in "lr":
        out[f"{side}-eye-bag-incr"] = 0.7 * past
        out[f"{side}-cheek-trans-down"] = out.get(f"{side}-cheek-trans-down", 0) + 0.3 * past
    if p.slot.gender == "female":
        out["head-scale-horiz-incr"] = 0.0
        out["chin-bones-incr"] = out["chin-width-incr"] = 0.0
        for name, extra in (("mouth-lowerlip-volume-incr", 0.2), ("mouth-upperlip-volume-incr", 0.2)):
            out[name] = out.get(name, 0) + extra
        for side in "lr":
            out[f"{side}-eye-height2-incr"] = out.get(f"{side}-eye-height2-incr", 0) + 0.15
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
        weight = sum(assets.bone_weight(*(f"{bone}{tail}.{side.upper()}" for tail in _tails(bone))) for bone in _ARM)
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
