"""Where on the skin is what: masks over the texture, painted in the coordinates of the unshaped head.

A position map says for each texel which point of the base mesh it colours, so that hairline, beard, make-up
and furrows are functions of that point. Decimetres: the eyes' joints lie at (+-.31, 7.28, 1.25), the mouth at
6.66, the nose's tip at 6.93, the chin at 6.17, the crown at 8.49; the face looks along z.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .assets import Assets

SIZE = 512  # texels a side
MOUTH = 6.66
# lowest point of the scalp's hair over depth: nape, behind the ear, over it, sideburn, temple, forehead
_SCALP_Z = (-0.45, 0.0, 0.2, 0.33, 0.40, 0.62, 0.66, 0.84, 0.92, 1.05, 1.22, 1.36, 1.5)
_SCALP_Y = (6.48, 6.48, 6.62, 7.0, 7.42, 7.42, 7.02, 7.05, 7.45, 7.66, 7.82, 7.90, 7.92)
_FURROWS = {  # front view (x, y); mirrored
    "forehead": [
        [(0.0, 7.70 + 0.075 * k), (0.2, 7.72 + 0.075 * k), (0.44, 7.68 + 0.07 * k)] for k in range(3)
    ],
    "frown": [[(0.07, 7.42), (0.09, 7.56)]],
    "crow": [[(0.53, 7.29), (0.66, 7.37)], [(0.54, 7.26), (0.68, 7.26)], [(0.53, 7.23), (0.65, 7.15)]],
    "lid": [[(0.2, 7.13), (0.32, 7.08), (0.45, 7.12)], [(0.17, 7.10), (0.26, 7.02)]],
    "fold": [[(0.22, 6.93), (0.31, 6.80), (0.36, 6.64)]],
    "mouth": [[(0.31, 6.60), (0.34, 6.50), (0.32, 6.38)]],
}
_START = {"forehead": 35, "frown": 40, "crow": 35, "lid": 33, "fold": 31, "mouth": 41}  # years when they show


def smooth(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high` (or the other way round), a smooth step between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


@dataclass(frozen=True)
class Maps:
    """Texel maps (SIZE, SIZE), top row first; `point` (SIZE, SIZE, 3) is nan where no skin is."""

    point: np.ndarray
    ear: np.ndarray
    lips: np.ndarray
    head: np.ndarray  # bool
    face: np.ndarray  # bool: cheeks and forehead, whose mean is the skin's tone
    furrows: dict[str, np.ndarray]

    def sample(self, values: np.ndarray, uv: np.ndarray) -> np.ndarray:
        """Values (SIZE, SIZE) at texture coordinates (n, 2)."""
        x = np.clip((uv[:, 0] * SIZE).astype(int), 0, SIZE - 1)
        return values[np.clip(((1 - uv[:, 1]) * SIZE).astype(int), 0, SIZE - 1), x]


def build(assets: Assets) -> Maps:
    """The maps of the base mesh."""
    ear = np.zeros(len(assets.base.vertices))
    for side in "lr":
        target = assets.target(f"{side}-ear-wing-incr")
        if target is not None:
            ear[target[0][np.linalg.norm(target[1], axis=1) > 0.02]] = 1
    drawn = _rasterise(assets, np.column_stack([assets.base.vertices, ear]))
    point, ear_map = drawn[..., :3], np.nan_to_num(drawn[..., 3])
    x, y, z = np.abs(point[..., 0]), point[..., 1], point[..., 2]
    lips = assets.picture("base/textures/mpfb_lips.jpg", SIZE)[..., 0]
    with np.errstate(invalid="ignore"):
        head = (y > 5.6) & (x < 1.0)
        cheek = (y > 6.75) & (y < 7.12) & (x > 0.3) & (x < 0.56) & (z > 0.95)
        forehead = (y > 7.6) & (y < 7.85) & (x < 0.4) & (z > 1.2)
    furrows = {name: _furrow(point, lines) for name, lines in _FURROWS.items()}
    return Maps(point, ear_map, lips * head, head, (cheek | forehead) & (lips < 0.2), furrows)


def _rasterise(assets: Assets, values: np.ndarray) -> np.ndarray:
    """Vertex values (v, c) of the body drawn into the texture (SIZE, SIZE, c), nan elsewhere."""
    mesh = assets.base
    out = np.full((SIZE, SIZE, values.shape[1]), np.nan)
    for f in mesh.groups["body"]:
        face, corner = mesh.faces[f], mesh.corners[f]
        if mesh.vertices[face, 1].max() < 4:
            continue
        uv = mesh.uv[corner] * SIZE
        uv[:, 1] = SIZE - uv[:, 1]
        for triple in ((0, 1, 2), (0, 2, 3)):
            _triangle(out, uv[list(triple)], values[[face[k] for k in triple]])
    return out


def _triangle(out: np.ndarray, corner: np.ndarray, value: np.ndarray) -> None:
    """Draws one triangle, a texel wider than it is."""
    low = np.maximum(np.floor(corner.min(0)).astype(int) - 1, 0)
    high = np.minimum(np.ceil(corner.max(0)).astype(int) + 1, SIZE)
    x, y = np.meshgrid(np.arange(low[0], high[0]) + 0.5, np.arange(low[1], high[1]) + 0.5)
    a, b, c = corner
    area = (b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1])
    if abs(area) < 1e-9:
        return
    v = ((x - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (y - a[1])) / area
    w = ((b[0] - a[0]) * (y - a[1]) - (x - a[0]) * (b[1] - a[1])) / area
    share = np.stack([1 - v - w, v, w], -1)
    inside = share.min(-1) > -0.02 - 0.6 / np.sqrt(abs(area))
    share = np.clip(share, 0, 1)
    share /= share.sum(-1, keepdims=True)
    patch = out[low[1] : high[1], low[0] : high[0]]
    empty_or_in = inside & ((share.min(-1) > 0) | np.isnan(patch[..., 0]))
    patch[empty_or_in] = (share @ value)[empty_or_in]


def _furrow(point: np.ndarray, lines: list[list[tuple[float, float]]], width: float = 0.022) -> np.ndarray:
    """Depth 0..1 of furrows along polylines of the front view, fading to their ends."""
    out = np.zeros(point.shape[:2])
    ok = np.nan_to_num(point[..., 2]) > 0.85
    q = np.column_stack([np.abs(point[ok][:, 0]), point[ok][:, 1]])
    depth = np.zeros(len(q))
    for line in lines:
        nodes = np.array(line)
        count = len(nodes) - 1
        for k in range(count):
            a, d = nodes[k], nodes[k + 1] - nodes[k]
            t = np.clip(((q - a) @ d) / (d @ d), 0, 1)
            distance = np.linalg.norm(q - a - t[:, None] * d, axis=1)
            along = (k + t) / count
            ends = np.minimum(1, 3 * (1 - along)) * np.minimum(1, 0.4 + 3 * along)
            depth = np.maximum(depth, ends * np.exp(-((distance / width) ** 2)))
    out[ok] = depth
    return out


def furrow_depth(maps: Maps, age: float, rng: np.random.Generator) -> np.ndarray:
    """Furrows of this age (SIZE, SIZE), 0..1, each group a little deeper or shallower than the rest."""
    out = np.zeros((SIZE, SIZE))
    for name, depth in maps.furrows.items():
        out += float(np.clip((age - _START[name]) / 26, 0, 1) * rng.uniform(0.6, 1.1)) * depth
    return np.clip(out, 0, 1)


def scalp(maps: Maps, recede: float = 0.0) -> np.ndarray:
    """Hair density of the scalp (SIZE, SIZE), 0..1; `recede` 0..1 moves the hairline back."""
    p = maps.point
    x, z = np.abs(p[..., 0]), p[..., 2]
    back = 0.34 * recede * smooth(x, 0.1, 0.42) + 0.10 * recede
    low = np.interp(
        np.nan_to_num(z) + back * smooth(z, 0.8, 1.1), _SCALP_Z, _SCALP_Y
    ) + 0.30 * recede * smooth(z, 1.1, 1.3)
    wave = 0.012 * np.sin(23 * p[..., 0] + 3 * z) + 0.008 * np.sin(61 * p[..., 0] + 17 * z)
    return np.nan_to_num(smooth(p[..., 1] - low - wave, -0.03, 0.09)) * (maps.ear < 0.3) * maps.head


def beard(maps: Maps) -> np.ndarray:
    """Density of a full beard without the moustache (SIZE, SIZE), 0..1."""
    p = maps.point
    x, y, z = np.abs(p[..., 0]), p[..., 1], p[..., 2]
    line = np.interp(
        np.nan_to_num(x), (0.0, 0.24, 0.40, 0.58, 0.72, 0.8), (6.56, 6.60, 6.70, 6.82, 7.06, 7.2)
    )
    area = smooth(line - y, -0.02, 0.16) * smooth(y, 5.98, 6.2) * smooth(z, 0.42, 0.62)
    below_lip = 1 - smooth(x, 0.26, 0.18) * smooth(y, 6.44, 6.5)  # bare beside the soul patch
    patch = smooth(x, 0.10, 0.05) * smooth(y, 6.56, 6.5)
    return (
        np.nan_to_num(area * np.maximum(below_lip, patch)) * (maps.lips < 0.15) * maps.head * (maps.ear < 0.3)
    )


def moustache(maps: Maps) -> np.ndarray:
    """Density of a moustache (SIZE, SIZE), 0..1."""
    p = maps.point
    x, y, z = np.abs(p[..., 0]), p[..., 1], p[..., 2]
    top = np.interp(np.nan_to_num(x), (0.0, 0.1, 0.25, 0.36), (6.80, 6.81, 6.76, 6.66))
    low = np.interp(np.nan_to_num(x), (0.0, 0.2, 0.36), (6.70, 6.66, 6.52))
    area = (
        smooth(top - y, 0.0, 0.05)
        * smooth(y - low, -0.02, 0.03)
        * smooth(x, 0.37, 0.29)
        * smooth(z, 1.3, 1.42)
    )
    return np.nan_to_num(area) * (maps.lips < 0.2)


def goatee(maps: Maps) -> np.ndarray:
    """The beard's part on the chin."""
    x = np.abs(np.nan_to_num(maps.point[..., 0]))
    return beard(maps) * smooth(x, 0.30, 0.2) * (np.nan_to_num(maps.point[..., 2]) > 1.0)
