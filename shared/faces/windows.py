"""Windows over pictures that one reduced copy does not show well: rows of many faces, and very large ones.

A picture is searched at most `LONG_SIDE` px long. In a row of 32 portraits, 16384 x 512 px, that leaves 32 px
of height and no face. Such a picture is searched window by window, each like an ordinary picture; windows
overlap by as much as the largest face that could lie across their edges, so that each face is whole in one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

Box = tuple[float, float, float, float]

SMALL_SIDE = 128  # px; images with a shorter side are enlarged to it, at most by ENLARGE
ENLARGE = 4.0
LONG_SIDE = 1024  # px; larger images are reduced to it: no generator draws portraits this does not show
SMALLEST_FACE = 0.05  # of the shorter side
SMALLEST_PX = 16.0
ROW = 4  # a picture more than so many times as long as it is high, or as high as it is long, is a row
LARGE = 4096  # px; from this shorter side on, a picture is searched by tiles as well
TILE = 2048  # px, their side
SAME = 0.6  # two windows' boxes that share so much of the smaller one are one face
SAME_CUT = 0.3  # the same where the edge of a window cuts one of them
EDGE = 0.05  # of a box's side: as near to an edge, it may be cut


@dataclass(frozen=True)
class Layer:
    """Windows of one size, (height, width) px, that cover a picture.  corners: (top, left) px of each."""

    size: tuple[int, int]
    corners: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Sighting:
    """A box, px of the whole picture, as one window shows it.

    rank: which of two boxes of one face stays: the smaller.  cut: whether the window's edge may cut the face.
    """

    box: Box
    window: int
    rank: tuple[float, ...]
    cut: bool


def layers(height: int, width: int) -> list[Layer]:
    """How a picture of that size is searched: as a whole, in a row of windows, or in tiles beside either.

    One layer with the one window of the whole picture for all that are at most LONG_SIDE long, and for all
    others that are no row and less than LARGE.
    """
    long, short = max(height, width), min(height, width)
    found = [Layer((height, width), ((0, 0),))]
    if long > max(LONG_SIDE, ROW * short):
        length = min(long, max(2 * short, round(LONG_SIDE / _enlarged(short))))
        starts = _starts(long, length, short)
        if width >= height:
            found = [Layer((height, length), tuple((0, start) for start in starts))]
        else:
            found = [Layer((length, width), tuple((start, 0) for start in starts))]
    if short >= LARGE:
        overlap = max(TILE // 4, short // 16 + 1)  # the layer above finds what is larger
        rows, columns = (_starts(side, TILE, overlap) for side in (height, width))
        found.append(Layer((TILE, TILE), tuple((top, left) for top in rows for left in columns)))
    return found


def _starts(whole: int, length: int, overlap: int) -> list[int]:
    """Where windows of a length begin that cover a side evenly and overlap by `overlap` px or more."""
    count = max(1, ceil((whole - overlap) / (length - overlap)))
    return [round(i * (whole - length) / max(1, count - 1)) for i in range(count)]


def _enlarged(short: int) -> float:
    return min(max(1.0, SMALL_SIDE / short), ENLARGE)


def detection_size(height: int, width: int) -> tuple[int, int]:
    """Height and width at which a window of that size is searched: enlarged or reduced to sensible limits."""
    scale = min(_enlarged(min(height, width)), LONG_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def smallest_side(size: tuple[int, int], smallest: float = SMALLEST_FACE) -> float:
    """Least side of a face, px, at a `detection_size`.  smallest: as a fraction of the shorter side."""
    return max(SMALLEST_PX, smallest * min(size))


def least_face(height: int, width: int, smallest: float = SMALLEST_FACE) -> int:
    """Least side of a face that is looked for in a picture of that size, px of the picture, rounded up."""
    sides = []
    for layer in layers(height, width):
        size = detection_size(*layer.size)
        sides.append(smallest_side(size, smallest) * max(layer.size) / max(size))
    return ceil(round(min(sides), 6))


def is_cut(box: Box, corner: tuple[int, int], size: tuple[int, int], whole: tuple[int, int]) -> bool:
    """Whether a box, px of the whole picture, lies at an edge of its window that is none of the picture."""
    (top, left), (height, width) = corner, size
    near_x, near_y = EDGE * (box[2] - box[0]), EDGE * (box[3] - box[1])
    return (
        (left > 0 and box[0] < left + near_x)
        or (top > 0 and box[1] < top + near_y)
        or (left + width < whole[1] and box[2] > left + width - near_x)
        or (top + height < whole[0] and box[3] > top + height - near_y)
    )


def merged(sightings: Sequence[Sighting]) -> list[int]:
    """Indices of the sightings that stay: of several of one face in different windows, one."""
    kept: list[int] = []
    for index in sorted(range(len(sightings)), key=lambda i: sightings[i].rank):
        seen = sightings[index]
        others = (sightings[k] for k in kept if sightings[k].window != seen.window)
        if not any(_shared(seen.box, o.box) > (SAME_CUT if seen.cut or o.cut else SAME) for o in others):
            kept.append(index)
    return kept


def _shared(a: Box, b: Box) -> float:
    """Area that two boxes share, as a fraction of the smaller one."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(0.0, wide) * max(0.0, high) / max(smaller, 1e-9)
