"""The picture side of the portrait model's training set: cut-outs, new identities, backdrops.

A source portrait (``faces/images``, 192 px, one of 1,128 synthetic adults) becomes many training portraits:

1. the person is cut out (GrabCut, seeded by the aligned face) and laid on a common geometry,
2. the inner face of another person of the same perceived cell (gender x race x age) is blended in, and the
   whole head is warped smoothly, so that no training identity is one of the source pictures,
3. only results in which the face chain still sees the intended cell, with confidence, are kept.

Backdrops (the visible cue of a phrase, see ``world.py``) are painted behind the cut-out at training time.
Arrays are numpy: RGB uint8 (128, 128, 3), alpha uint8 (128, 128); points are (5, 2) in pixels.
"""

# pyright: reportArgumentType=false, reportCallIssue=false
# (OpenCV's stubs do not know its optional arguments)

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

SIDE = 128
CHIP = 82.0  # side, in pixels, of the dlib face chip (padding 0.2) in a 128 px portrait
CHIP_CENTRE = (64.0, 66.0)
# Where MTCNN's five points lie in a dlib chip of padding 0.2, as a fraction of its side.
TEMPLATE = np.array(
    [[0.3068, 0.2901], [0.6910, 0.2892], [0.4963, 0.5195], [0.3389, 0.7237], [0.6561, 0.7211]]
)


@dataclass(frozen=True)
class Source:
    """One source portrait.

    image: RGB uint8 (192, 192, 3); alpha: the cut-out (192, 192) in [0, 1]; points: (5, 2) px.
    cell: (gender, race, age) class indices.
    turn: sideways shift of the nose in chip widths, the sign of the yaw; light: left minus right luminance
        of the face in 8-bit levels. A donor must agree in both, or its face looks pasted.
    donor_only: the head is cut off by the picture's edge, so it lends its inner face only.
    """

    name: str
    image: np.ndarray
    alpha: np.ndarray
    points: np.ndarray
    cell: tuple[int, int, int]
    turn: float
    light: float
    donor_only: bool


@dataclass(frozen=True)
class Portrait:
    """A composed portrait: RGB uint8 (128, 128, 3), alpha uint8 (128, 128), the face's points (5, 2) px."""

    image: np.ndarray
    alpha: np.ndarray
    points: np.ndarray


def similarity(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least-squares rotation + scale + shift taking ``points`` to ``target`` (n, 2); returns (2, 3)."""
    mean_p, mean_t = points.mean(0), target.mean(0)
    p, t = points - mean_p, target - mean_t
    norm = (p * p).sum()
    a = (p * t).sum() / norm
    b = (p[:, 0] * t[:, 1] - p[:, 1] * t[:, 0]).sum() / norm
    rotation = np.array([[a, -b], [b, a]])
    return np.concatenate([rotation, (mean_t - rotation @ mean_p)[:, None]], 1)


def portrait_points() -> np.ndarray:
    """Where the five points of a portrait belong, (5, 2) pixels of a 128 px picture."""
    return (TEMPLATE - 0.5) * CHIP + np.array(CHIP_CENTRE)


def chip_frame(points: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (u, v) of every pixel of a (side, side) picture in units of the face chip, centre 0."""
    to_chip = similarity(points, TEMPLATE - 0.5)
    y, x = np.mgrid[0:side, 0:side].astype(np.float64)
    return (
        to_chip[0, 0] * x + to_chip[0, 1] * y + to_chip[0, 2],
        to_chip[1, 0] * x + to_chip[1, 1] * y + to_chip[1, 2],
    )


def cut_out(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Alpha (side, side) in [0, 1] of the person in an RGB picture: GrabCut, seeded with the aligned face."""
    side = image.shape[0]
    u, v = chip_frame(points, side)
    face = (u / 0.36) ** 2 + ((v - 0.02) / 0.48) ** 2 < 1
    likely = ((u / 0.62) ** 2 + ((v + 0.05) / 0.75) ** 2 < 1) | (
        (v > 0.55) & (np.abs(u) < 0.3 + 0.9 * (v - 0.45))
    )
    mask = np.where(likely, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    mask[face | ((v > 0.62) & (np.abs(u) < 0.22))] = cv2.GC_FGD
    border = max(2, side // 40)
    upper = int(0.55 * side)
    for edge in (mask[:upper, :border], mask[:upper, -border:], mask[:border]):
        edge[edge != cv2.GC_FGD] = cv2.GC_BGD
    cv2.setRNGSeed(0)
    cv2.grabCut(
        image[..., ::-1].copy(), mask, None, np.zeros((1, 65)), np.zeros((1, 65)), 4, cv2.GC_INIT_WITH_MASK
    )
    person = ((mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)).astype(np.uint8)
    _, labels = cv2.connectedComponents(person)
    centre = np.clip(points[2].round().astype(int), 0, side - 1)
    person = (labels == labels[centre[1], centre[0]]).astype(np.uint8)
    person = _fill_holes(person)
    person = cv2.morphologyEx(person, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    return np.clip(cv2.GaussianBlur(person.astype(np.float32), (0, 0), 1.6), 0, 1)


def _fill_holes(person: np.ndarray) -> np.ndarray:
    side = person.shape[0]
    count, labels, stats, _ = cv2.connectedComponentsWithStats(1 - person)
    for k in range(1, count):
        x, y, w, h, _area = stats[k]
        if x > 0 and y > 0 and x + w < side and y + h < side:
            person[labels == k] = 1
    return person


def usable(image: np.ndarray, alpha: np.ndarray, points: np.ndarray) -> str:
    """Why a source is left out: '' (keep), 'grey', 'turned', or 'spill' (the cut-out holds backdrop)."""
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32) - 128
    u, v = chip_frame(points, image.shape[0])
    face = (u / 0.3) ** 2 + (v / 0.4) ** 2 < 1
    if np.hypot(lab[..., 1], lab[..., 2])[face].mean() < 7:
        return "grey"
    if abs(pose(image, points)[0]) > 0.075:
        return "turned"
    corner = alpha[: int(alpha.shape[0] * 0.3)]
    wide = int(alpha.shape[1] * 0.14)
    if max(corner[:, :wide].mean(), corner[:, -wide:].mean()) > 0.35:
        return "spill"
    return ""


def pose(image: np.ndarray, points: np.ndarray) -> tuple[float, float]:
    """``turn`` and ``light`` of a portrait, see `Source`."""
    matrix = similarity(points, TEMPLATE)
    nose = float(matrix[0, :2] @ points[2] + matrix[0, 2] - TEMPLATE[2, 0])
    u, v = chip_frame(points, image.shape[0])
    grey = image.astype(np.float32).mean(-1)
    rows = np.abs(v) < 0.3
    left, right = grey[rows & (u > -0.3) & (u < -0.05)].mean(), grey[rows & (u < 0.3) & (u > 0.05)].mean()
    return nose, float(left - right)


def mirrored(source: Source) -> Source:
    """The source seen in a mirror; left and right points change places."""
    side = source.image.shape[1]
    points = (source.points * [-1, 1] + [side - 1, 0])[[1, 0, 2, 4, 3]]
    return replace(
        source,
        image=source.image[:, ::-1],
        alpha=source.alpha[:, ::-1],
        points=points,
        turn=-source.turn,
        light=-source.light,
    )


def matching_donors(head: Source, sources: list[Source]) -> list[Source]:
    """The third of ``sources`` whose pose and light agree best with the head's, mirrored where that helps."""

    def mismatch(s: Source) -> float:
        return abs(s.turn - head.turn) / 0.03 + abs(s.light - head.light) / 20

    both = [min(s, mirrored(s), key=mismatch) for s in sources if s.name != head.name]
    return sorted(both, key=mismatch)[: max(4, len(both) // 3)]


def compose(head: Source, donor: Source | None, rng: np.random.Generator) -> Portrait:
    """A new portrait: ``head``'s head and hair, ``donor``'s inner face."""
    target = portrait_points()
    matrix = similarity(head.points, target)
    picture = cv2.warpAffine(
        head.image, matrix, (SIDE, SIDE), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE
    )
    alpha = cv2.warpAffine(
        head.alpha, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    points = head.points @ matrix[:, :2].T + matrix[:, 2]
    if donor is not None:
        picture = _blend_face(picture, points, donor, rng)
    picture, alpha, points = _warp(picture, alpha, points, rng)
    return Portrait(_photometric(picture, rng), (alpha * 255).round().astype(np.uint8), points)


def _blend_face(
    picture: np.ndarray, points: np.ndarray, donor: Source, rng: np.random.Generator
) -> np.ndarray:
    """The donor's inner face, its colour matched to the head's, blended in by a soft ellipse."""
    matrix, *_ = np.linalg.lstsq(np.c_[donor.points, np.ones(5)], points, rcond=None)  # affine, 6 parameters
    face = cv2.warpAffine(
        donor.image, matrix.T, (SIDE, SIDE), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE
    )
    u, v = chip_frame(points, SIDE)
    radius = np.sqrt((u / 0.36) ** 2 + ((v - 0.03) / 0.46) ** 2)
    inner = radius < 0.85
    ours = cv2.cvtColor(picture, cv2.COLOR_RGB2LAB).astype(np.float32)
    theirs = cv2.cvtColor(face, cv2.COLOR_RGB2LAB).astype(np.float32)
    mean, std = ours[inner].mean(0), ours[inner].std(0) + 1
    theirs = (theirs - theirs[inner].mean(0)) / (theirs[inner].std(0) + 1)
    share = rng.uniform(0.5, 0.95) * np.clip((1.0 - radius) / 0.28, 0, 1)[..., None]
    mixed = ours * (1 - share) + (theirs * std + mean) * share
    return cv2.cvtColor(np.clip(mixed, 0, 255).astype(np.uint8), cv2.COLOR_LAB2RGB)


def _warp(
    picture: np.ndarray, alpha: np.ndarray, points: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Small rotation, scale, shift, stretch and a smooth random field: other proportions, another face."""
    angle, scale, stretch = (
        np.deg2rad(rng.normal(0, 2.0)),
        np.exp(rng.normal(0, 0.03)),
        np.exp(rng.normal(0, 0.035)),
    )
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    inverse = turn @ np.diag([1 / (scale * stretch), stretch / scale])  # result pixel -> source pixel
    centre, shift = points.mean(0), rng.normal(0, 1.2, 2)
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    source = (np.stack([x, y], -1) - centre) @ inverse.T + centre + shift
    field = cv2.resize(rng.normal(0, 1.5, (5, 5, 2)), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    maps = (source + field).astype(np.float32)
    moved = (points - centre - shift) @ np.linalg.inv(
        inverse
    ).T + centre  # the field is too small to matter here
    picture, alpha = (
        cv2.remap(a, maps, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for a in (picture, alpha)
    )
    return picture, alpha, moved


def _photometric(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    out = (picture.astype(np.float32) / 255) ** np.exp(rng.normal(0, 0.10))
    grey = out.mean(-1, keepdims=True)
    out = grey + (out - grey) * np.exp(rng.normal(0, 0.10))
    return (np.clip(out * np.exp(rng.normal(0, 0.05)), 0, 1) * 255).astype(np.uint8)
