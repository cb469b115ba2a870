"""Glasses and earrings, as thick strands laid out on the shaped head. Runs in Blender's Python only."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from . import materials
from .assets import Assets
from .plan import Person

_METALS = ((0.75, 0.57, 0.25), (0.75, 0.75, 0.77))
_PLASTICS = ((0.015, 0.014, 0.014), (0.09, 0.03, 0.015), (0.02, 0.03, 0.07), (0.3, 0.3, 0.31))


def pieces(p: Person, vertices: np.ndarray, assets: Assets, frame: np.ndarray, rng) -> Iterator[tuple]:
    """(name, paths (n, points, 3), radius, material) of what this person wears."""
    if p.glasses:
        thick = float(rng.choice([0.011, 0.017, 0.024]))
        colour = (
            _PLASTICS[int(rng.integers(len(_PLASTICS)))] if thick > 0.012 else _METALS[int(rng.integers(2))]
        )
        material = materials.plain(colour, 0.3, 0.0 if thick > 0.012 else 0.8)
        rims, rest = _glasses(vertices, assets, frame, rng)
        yield "rims", rims, thick, material
        yield "temples", rest, thick, material
    if p.earrings:
        material = materials.plain(_METALS[int(rng.integers(2))], 0.2, 1.0)
        yield (
            "earrings",
            _earrings(vertices, assets, frame, float(rng.choice([0.035, 0.06, 0.12]))),
            0.012,
            material,
        )


def _glasses(vertices: np.ndarray, assets: Assets, frame: np.ndarray, rng) -> tuple[np.ndarray, np.ndarray]:
    """Rims (2, 33, 3); bridge and temples (3, 8, 3)."""
    eyes = np.array([vertices[assets.joint(f"{s}-eye")].mean(0) for s in "lr"])
    middle = eyes.mean(0)
    local = (vertices - middle) @ frame
    half = 0.5 * abs(float(((eyes[0] - eyes[1]) @ frame)[0]))
    nose = local[(np.abs(local[:, 0]) < 0.06) & (np.abs(local[:, 1]) < 0.06), 2].max()
    lash = local[
        (np.abs(np.abs(local[:, 0]) - half) < 0.2)
        & (np.abs(local[:, 1]) < 0.14)
        & (local[:, 2] < nose + 0.3),
        2,
    ].max()
    z = float(max(nose + 0.03, lash + 0.05))
    ears = [vertices[_ear(assets, side)] for side in "lr"]
    at = [((e - middle) @ frame) for e in ears]
    power = float(rng.choice([2.0, 2.6, 4.0]))  # round to square
    wide, high = half * float(rng.uniform(0.72, 0.84)), half * float(rng.uniform(0.55, 0.72))
    angle = np.linspace(0, 2 * np.pi, 33)
    c, s = np.cos(angle), np.sin(angle)
    ring = np.stack(
        [np.sign(c) * np.abs(c) ** (2 / power) * wide, np.sign(s) * np.abs(s) ** (2 / power) * high, 0 * c], 1
    )
    rims, rest = [], []
    for sign, ear in zip((1, -1), at):
        rims.append(ring + np.array([sign * half * 1.04, -0.03, z]))
        hinge = np.array([sign * (half * 1.04 + wide), 0.03, z])
        edge = np.array(
            [
                np.sign(ear[:, 0].mean()) * np.abs(ear[:, 0]).min() * 1.02,
                ear[:, 1].max() - 0.1,
                ear[:, 2].mean(),
            ]
        )
        corner = np.array([edge[0], hinge[1], z - 0.12])
        knots = np.array([hinge, corner, edge])
        t = np.linspace(0, 2, 8)
        rest.append(np.stack([np.interp(t, (0, 0.35, 2), knots[:, k]) for k in range(3)], 1))
    inner = half * 1.04 - wide
    x = np.linspace(-inner, inner, 8)
    rest.append(np.stack([x, 0.04 - 0.6 * x**2, np.full(8, z + 0.01)], 1))
    return (np.array(rims) @ frame.T + middle), (np.array(rest) @ frame.T + middle)


def _ear(assets: Assets, side: str) -> np.ndarray:
    target = assets.target(f"{side}-ear-wing-incr")
    assert target is not None
    return target[0]


def _earrings(vertices: np.ndarray, assets: Assets, frame: np.ndarray, radius: float) -> np.ndarray:
    """Two rings (2, 17, 3) that hang from the lobes."""
    angle = np.linspace(0, 2 * np.pi, 17)
    ring = np.stack([0.25 * np.sin(angle), np.cos(angle) - 1, np.sin(angle)], 1) * radius
    out = []
    for side in "lr":
        target = assets.target(f"{side}-ear-lobe-incr")
        assert target is not None
        lobe = vertices[target[0]]
        lowest = lobe[np.argsort((lobe @ frame)[:, 1])[:6]].mean(0)
        out.append(ring @ frame.T + lowest)
    return np.array(out)
