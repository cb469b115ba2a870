"""Grows strand hair on a shaped head: some hundred combed guides, thousands of strands that follow them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Style:
    """How hair falls; lengths in decimetres."""

    length: tuple[float, float]
    comb: str  # side, back, radial, forward
    lift: float  # 0 lies on the head, 1 stands off it
    gravity: float
    strands: int
    points: int = 8
    curl: float = 0.0  # of the length
    turns: float = 2.0
    clump: float = 0.4
    volume: float = 1.04  # of the head
    guides: int = 700
    stick: float = 0.0  # how far it is pressed onto the head
    radius: float = 0.008
    fringe: float = 0.0  # length of hair over the forehead
    knot: tuple[float, float, float] | None = None  # y, z and radius of a bun, in radii of the head


STYLES = {
    "buzz": Style((0.05, 0.07), "back", 0.5, 0.0, 9000, 3, clump=0.1, radius=0.009),
    "crew": Style((0.16, 0.28), "back", 0.5, 0.04, 9000, 4, clump=0.2, radius=0.010),
    "fringe": Style((0.34, 0.5), "forward", 0.24, 0.05, 9000, 6, clump=0.3),
    "sidepart": Style((0.45, 0.75), "side", 0.28, 0.06, 9000, 7, clump=0.35, stick=0.3),
    "quiff": Style((0.35, 0.55), "back", 0.3, 0.02, 9000, 7, clump=0.3, volume=1.06, stick=0.35),
    "slick": Style((0.5, 0.8), "back", 0.10, 0.03, 9000, 7, clump=0.35, volume=1.03, stick=0.8),
    "curlytop": Style((0.28, 0.45), "radial", 0.6, 0.05, 8000, 9, curl=0.14, turns=3, clump=0.6),
    "coils": Style((0.12, 0.2), "radial", 0.9, 0.0, 10000, 6, curl=0.22, turns=2, clump=0.5),
    "twists": Style((0.3, 0.42), "radial", 0.75, 0.04, 6000, 9, curl=0.07, turns=5, clump=0.93, guides=260),
    "afro": Style((0.4, 0.75), "radial", 0.95, 0.0, 11000, 10, curl=0.10, turns=4, clump=0.3),
    "bob": Style((1.4, 1.8), "side", 0.22, 0.28, 9000, 10, clump=0.35, volume=1.05, stick=0.4, radius=0.009),
    "lob": Style(
        (1.9, 2.3),
        "side",
        0.26,
        0.28,
        9000,
        10,
        curl=0.012,
        turns=1,
        clump=0.3,
        volume=1.07,
        stick=0.35,
        radius=0.009,
    ),
    "bangs": Style(
        (1.7, 2.4),
        "side",
        0.22,
        0.28,
        9000,
        11,
        clump=0.35,
        volume=1.05,
        stick=0.4,
        radius=0.009,
        fringe=0.55,
    ),
    "shoulder": Style(
        (2.2, 2.8), "side", 0.22, 0.3, 9000, 11, curl=0.006, clump=0.35, volume=1.05, stick=0.4, radius=0.009
    ),
    "long": Style(
        (3.2, 4.2), "side", 0.2, 0.3, 9000, 12, curl=0.006, clump=0.35, volume=1.05, stick=0.45, radius=0.009
    ),
    "wavy": Style(
        (2.3, 3.4),
        "side",
        0.25,
        0.27,
        9000,
        18,
        curl=0.022,
        turns=3,
        clump=0.5,
        volume=1.06,
        stick=0.4,
        radius=0.009,
    ),
    "curly": Style(
        (1.5, 2.4), "side", 0.4, 0.22, 8000, 24, curl=0.035, turns=6, clump=0.6, volume=1.12, radius=0.009
    ),
    "ringlets": Style(
        (1.7, 2.5),
        "side",
        0.3,
        0.25,
        8000,
        24,
        curl=0.022,
        turns=9,
        clump=0.85,
        volume=1.08,
        guides=420,
        radius=0.009,
    ),
    "locs": Style(
        (1.4, 2.6),
        "side",
        0.3,
        0.26,
        6500,
        12,
        curl=0.006,
        turns=6,
        clump=0.95,
        volume=1.07,
        guides=230,
        radius=0.012,
    ),
    "tied": Style(
        (0.9, 1.2), "back", 0.02, 0.02, 9000, 8, clump=0.4, volume=1.025, stick=1.0, knot=(-0.1, -1.12, 0.30)
    ),
    "bun": Style(
        (0.9, 1.2), "back", 0.02, 0.0, 9000, 8, clump=0.4, volume=1.025, stick=1.0, knot=(0.95, -0.5, 0.36)
    ),
    "puff": Style(
        (0.7, 0.9), "back", 0.02, 0.0, 8000, 8, clump=0.4, volume=1.02, stick=1.0, knot=(0.85, -0.55, 0.62)
    ),
}
BEARDS = {  # strands, length range in decimetres
    "moustache": (1100, (0.06, 0.09)),
    "goatee": (3000, (0.06, 0.16)),
    "full": (8000, (0.06, 0.2)),
}


def unit(v: np.ndarray) -> np.ndarray:
    """Vectors (..., 3) of length 1."""
    return v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-6)


def grow(
    style: Style, root: np.ndarray, normal: np.ndarray, skull: np.ndarray, frame: np.ndarray, rng
) -> np.ndarray:
    """Paths (n, points, 3) of strands that root at `root` (n, 3) with the skin's `normal` (n, 3).

    skull: (v, 3) vertices of the head; frame: (3, 3) its rotation, so that the parting turns along.
    """
    head = _Head(skull, frame, style)
    lead = min(style.guides, len(root))
    guide = _comb(style, head, head.inward(root[:lead]), normal[:lead] @ frame, rng)
    if style.curl:
        guide = _curl(style, guide, normal[:lead] @ frame, rng)
    return _follow(style, root, head.outward(guide), root[:lead], rng)


class _Head:
    """The head as an ellipsoid in its own axes."""

    def __init__(self, skull: np.ndarray, frame: np.ndarray, style: Style) -> None:
        centre = 0.5 * (skull.min(0) + skull.max(0))
        local = (skull - centre) @ frame
        self.frame = frame
        self.centre = centre + (0.5 * (local.min(0) + local.max(0))) @ frame.T
        self.radii = 0.5 * np.ptp(local, axis=0)
        self.shell = self.radii * style.volume
        self.down = np.array([0, -1.0, 0]) @ frame

    def inward(self, points: np.ndarray) -> np.ndarray:
        return (points - self.centre) @ self.frame

    def outward(self, points: np.ndarray) -> np.ndarray:
        return points @ self.frame.T + self.centre

    def level(self, points: np.ndarray) -> np.ndarray:
        """1 on the shell, less inside."""
        return np.sqrt(((points / self.shell) ** 2).sum(1, keepdims=True))


def _directions(
    style: Style, head: _Head, pos: np.ndarray, nor: np.ndarray, rng
) -> tuple[np.ndarray, np.ndarray]:
    """Where hair is combed to at its root, (n, 3), and which side of the parting it is on, (n, 1)."""
    radii = head.radii
    part = rng.choice([-1, 1]) * rng.uniform(0.05, 0.38) * radii[0] if style.comb == "side" else 0.0
    part = part + 0.05 * radii[0] * rng.normal(size=(len(pos), 1))  # no ruled line
    side = np.where(pos[:, :1] > part, 1.0, -1.0)
    if style.comb == "side":
        behind = np.clip((radii[2] * 0.1 - pos[:, 2:]) / (0.5 * radii[2]), 0, 1)
        lateral = np.clip((np.abs(nor[:, :1]) - 0.5) / 0.35, 0, 1)
        top = side * np.array([1.0, 0, 0]) + np.array([0, -0.15, -0.35])
        front = top * (1 - lateral) + np.array([0, -1.0, -0.1]) * lateral
        crown = unit(pos * [1, 0, 1]) * np.clip(nor[:, 1:2], 0, 1) + [0, -0.6, -0.1]
        return front * (1 - behind) + behind * crown, side
    if style.comb == "radial":
        return nor + 0.3 * rng.normal(size=nor.shape), side
    if style.knot:
        aim = np.array([0, style.knot[0], style.knot[1]]) * radii
        return aim - pos, side
    if style.comb == "back":
        comb = np.array([0, 0.15, -1.0]) + 0.25 * pos * [1, 0, 0]
    else:
        comb = np.array([rng.uniform(-0.6, 0.6), 0.05, 0.8]) + 0.3 * unit(pos * [1, 0, 1])
    temple = np.clip((np.abs(pos[:, :1]) / radii[0] - 0.55) / 0.3, 0, 1) * (pos[:, 1:2] < 0.55 * radii[1])
    return comb * (1 - temple) + temple * np.array([0, -0.9, -0.5]), side


def _comb(style: Style, head: _Head, pos: np.ndarray, nor: np.ndarray, rng) -> np.ndarray:
    """The guides (n, points, 3) in the head's axes."""
    comb, side = _directions(style, head, pos, nor, rng)
    n, radii = len(pos), head.radii
    flat = unit(comb - (comb * nor).sum(1, keepdims=True) * nor)
    direction = unit(style.lift * nor + (1 - style.lift) * flat + 0.05 * rng.normal(size=nor.shape))
    size = rng.uniform(*style.length)
    each = size * rng.uniform(0.85, 1.1, (n, 1)) / (style.points - 1)
    front = (
        (pos[:, 2:] > 0.5 * radii[2])
        & (np.abs(pos[:, :1]) < 0.62 * radii[0])
        & (pos[:, 1:2] > 0.3 * radii[1])
    )
    fringe = front if style.fringe else np.zeros_like(front)
    if style.fringe:
        ahead = unit(np.array([0, -0.25, 1.0]) + 0.15 * pos * [1, 0, 0] + 0.06 * rng.normal(size=pos.shape))
        direction = np.where(fringe, ahead, direction)
        each = np.where(
            fringe,
            (style.fringe + 0.25 * np.clip(radii[2] * 0.95 - pos[:, 2:], 0, 1)) / (style.points - 1),
            each,
        )
    if size < 1 and style.comb != "radial" and not style.knot:  # short at the sides and the neck
        each = each * (0.4 + 0.6 * np.clip((pos[:, 1:2] / radii[1] + 0.15) / 0.5, 0, 1))
    at_root, path = head.level(pos), [pos]
    goal = np.array([0, style.knot[0], style.knot[1]]) * radii if style.knot else None
    for step in range(1, style.points):
        if goal is not None:
            direction = unit(goal - pos)
            each = np.minimum(each, np.linalg.norm(goal - pos, axis=1, keepdims=True))
        pull = np.where(fringe, 0.42, style.gravity)
        direction = unit(direction * (1 - pull) + head.down * pull + 0.02 * rng.normal(size=direction.shape))
        pos, direction = _collide(style, head, pos + each * direction, direction, at_root, step, size)
        if style.comb == "side":
            pos = _clear_face(head, pos, side, fringe)
        path.append(pos)
    return np.stack(path, 1)


def _collide(style: Style, head: _Head, pos, direction, at_root, step: int, size: float):
    """Keeps hair out of the skull and, where it sticks, on it."""
    above = pos[:, 1:2] > -1.1 * head.radii[1]
    level, out = head.level(pos), unit(pos / head.shell**2)
    if style.comb != "radial" and size > 0.3:
        wanted = np.minimum(0.995, at_root + 0.02 + 0.5 * step / (style.points - 1))
        under = (level < wanted) & above
        pos = np.where(under, pos * wanted / np.maximum(level, 0.3), pos)
        inward = (direction * out).sum(1, keepdims=True)
        direction = np.where(under & (inward < 0), unit(direction - inward * out), direction)
    if style.stick:
        level, out = head.level(pos), unit(pos / head.shell**2)
        most = np.maximum(1, at_root + 0.02)
        pulled = pos * ((1 - style.stick) + style.stick * most / np.maximum(level, 1))
        pos = np.where((level > most) & (pos[:, 1:2] > -0.6 * head.radii[1]), pulled, pos)
        away = np.maximum((direction * out).sum(1, keepdims=True), 0)
        direction = unit(direction - style.stick * away * out)
    return pos, direction


def _clear_face(head: _Head, pos, side, fringe):
    """Pushes hair off the face to its side, and in on the neck below the chin."""
    radii = head.radii
    low = np.clip((-0.75 * radii[1] - pos[:, 1:2]) / radii[1], 0, 1)
    away = np.linalg.norm(pos[:, ::2], axis=1, keepdims=True) / radii[0]
    pos = pos * np.where(np.arange(3) == 1, 1.0, np.where(away > 0.75, 1 - 0.05 * low, 1.0))
    temple = 0.84 * radii[0]
    face = (
        (pos[:, 2] > 0.15 * radii[2])
        & (np.abs(pos[:, 0]) < temple)
        & (pos[:, 1] < 0.5 * radii[1])
        & ~fringe[:, 0]
    )
    pos[:, 0] = np.where(face, side[:, 0] * (0.35 * np.abs(pos[:, 0]) + 0.65 * temple), pos[:, 0])
    return pos


def _curl(style: Style, guide: np.ndarray, nor: np.ndarray, rng) -> np.ndarray:
    n, points = guide.shape[:2]
    size = np.linalg.norm(np.diff(guide, axis=1), axis=-1).sum(1)[:, None, None]
    t = np.linspace(0, 1, points)[None, :, None]
    along = unit(np.gradient(guide, axis=1))
    across = unit(np.cross(along, nor[:, None] + 0.01))
    over = np.cross(along, across)
    angle = 2 * np.pi * style.turns * t * rng.uniform(0.85, 1.15, (n, 1, 1)) + rng.uniform(
        0, 2 * np.pi, (n, 1, 1)
    )
    return guide + style.curl * size * np.minimum(1, 3 * t) * (np.sin(angle) * across + np.cos(angle) * over)


def _follow(style: Style, root: np.ndarray, guide: np.ndarray, lead: np.ndarray, rng) -> np.ndarray:
    """Each strand takes the way of the guide whose root is nearest, tied to it more and more."""
    level = (lead**2).sum(1)
    nearest = np.concatenate(
        [(level - 2 * part @ lead.T).argmin(1) for part in np.array_split(root, len(root) // 1500 + 1)]
    )
    t = np.linspace(0, 1, style.points)[None, :, None]
    spread = (root - lead[nearest])[:, None] * (1 - style.clump * t)
    size = np.linalg.norm(np.diff(guide, axis=1), axis=-1).sum(1)[nearest][:, None, None]
    wild = rng.normal(size=(len(root), 1, 3)) * 0.035 * size * t**1.5 * (1 - 0.8 * style.clump)
    return guide[nearest] + spread + wild


def knot(
    style: Style, skull: np.ndarray, frame: np.ndarray, rng, coily: bool, count: int = 2600
) -> np.ndarray:
    """Strands (count, points, 3) of the bun or puff that `style` is tied to."""
    head = _Head(skull, frame, style)
    y, z, radius = style.knot or (0, 0, 0)
    centre = np.array([0, y, z]) * head.radii
    size = radius * head.radii[0] * np.array([1.0, 0.9, 0.9])
    outward = unit(rng.normal(size=(count, 3)))
    if coily:
        t = np.linspace(0.3, 1, 7)[None, :, None]
        path = outward[:, None] * t + 0.10 * t * rng.normal(size=(count, 7, 3))
    else:  # wound around the axis from the head outwards
        axis = unit(centre)
        across = unit(np.cross(axis, outward))
        angle = np.linspace(-0.9, 0.9, 7)[None, :, None]
        path = np.cos(angle) * outward[:, None] + np.sin(angle) * across[:, None]
    return head.outward(centre + path.reshape(-1, 3) * size).reshape(path.shape)


def grow_beard(root, normal, density, length: float, coily: bool, rng) -> np.ndarray:
    """Paths (n, 5, 3) of a beard: shorter where it thins out, falling along the skin."""
    want = np.array([0, -1.0, 0.25])
    flow = unit(want - (want * normal).sum(1, keepdims=True) * normal)
    size = length * (0.3 + 0.7 * density) * rng.uniform(0.6, 1.2, len(root))
    start = unit(0.30 * normal + 0.7 * flow + 0.25 * rng.normal(size=normal.shape))
    end = unit(flow + 0.2 * rng.normal(size=normal.shape))
    t = np.linspace(0, 1, 5)[None, :, None]
    bend = t * start[:, None] * (1 - t / 2) + t * t / 2 * end[:, None]
    path = root[:, None] + size[:, None, None] * bend
    return path + (0.014 if coily else 0.004) * t * rng.normal(size=path.shape)
