"""Attribute bars on pictures: what the classifiers read off each face, at a glance.

Beside every face stands one bar for each attribute, gender first, race second, age third. Its colour is
the class, its height the confidence. A reading below the threshold is hatched and marked "?"; an image
without a face says so. The colours stand in the table of `shared/attributes.py`; no class has the colour of
another attribute's. They name what a net perceives, never who somebody is.

Host-free: PIL images in, new PIL images out. `shared/bar_grid.py` draws batches, shares and legends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image
from torch import Tensor

from .attributes import Attribute, ordered
from .drawing import INK, WHITE, Colour, draw_text, fill, hatch, outline, text_size
from .faces.detection import Face

CERTAIN = 0.7  # least probability of the likeliest class that counts as a reading
PREVIEW = 0.5  # opacity of bars on an unfinished picture
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Bar:
    """One reading: the likeliest class of an attribute and its probability in [0, 1].

    probabilities: of every class, in the attribute's order; empty where only the likeliest is known.
    """

    attribute: str
    label: str
    confidence: float
    colour: Colour
    certain: bool = True
    probabilities: tuple[float, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True)
class FaceBars:
    """The readings of one face; ``box`` is x0, y0, x1, y1 in px of its picture."""

    box: tuple[float, float, float, float]
    bars: tuple[Bar, ...]


def read_bars(
    logits: Mapping[str, Tensor],
    attributes: Sequence[Attribute],
    faces: Sequence[Face],
    certain_from: float = CERTAIN,
) -> list[FaceBars]:
    """Bars of M faces of one or several pictures.

    Args:
        logits: calibrated, {attribute: (M, K)}.
        attributes: those to show.
        faces: the M faces, for their boxes.
        certain_from: least probability of a certain reading.
    """
    columns: list[list[Bar]] = []
    for attribute in ordered(attributes):
        probabilities = logits[attribute.name].detach().float().softmax(1).cpu()
        values, indices = probabilities.max(1)
        columns.append(
            [
                Bar(
                    attribute.name,
                    attribute.classes[i],
                    p,
                    attribute.looks[i].colour,
                    p >= certain_from,
                    tuple(row),
                )
                for p, i, row in zip(values.tolist(), indices.tolist(), probabilities.tolist())
            ]
        )
    return [FaceBars(face.box, tuple(column[m] for column in columns)) for m, face in enumerate(faces)]


def resized(
    image: Image.Image, faces: Sequence[FaceBars], side: int, enlarge: bool = True
) -> tuple[Image.Image, list[FaceBars]]:
    """The picture as RGB with a longer side of `side` px, and its faces' boxes moved along.

    enlarge: a picture smaller than that is enlarged too.
    """
    scale = side / max(image.size) if enlarge else min(1.0, side / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    moved = [FaceBars((x0 * scale, y0 * scale, x1 * scale, y1 * scale), face.bars)
             for face in faces for x0, y0, x1, y1 in [face.box]]  # fmt: skip
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS), moved


def draw_faces(image: Image.Image, faces: Sequence[FaceBars], preview: bool = False) -> Image.Image:
    """A copy of the picture with a box and bars for each face, or the words "no face".

    ``preview`` dims all of it: readings of a half-finished picture are guesses.
    """
    plain = image.convert("RGB")
    canvas = plain.copy()
    if not faces:
        _draw_no_face(canvas)
    plates: list[Box] = []
    boxes = [_whole(face.box) for face in faces]
    for box in boxes:
        line = max(1, round(min(canvas.size) / 160))
        outline(canvas, (box[0] - line, box[1] - line, box[2] + line, box[3] + line), INK, 3 * line, 0.55)
        outline(canvas, box, WHITE, line)
    for face, box in zip(faces, boxes):
        if face.bars:
            plate = _place(_plate_size(canvas.size, box, len(face.bars)), box, boxes, plates, canvas.size)
            plates.append(plate)
            _draw_plate(canvas, plate, face.bars)
    return Image.blend(plain, canvas, PREVIEW) if preview else canvas


def _whole(box: tuple[float, float, float, float]) -> Box:
    return (round(box[0]), round(box[1]), round(box[2]), round(box[3]))


def _plate_size(image: tuple[int, int], box: Box, count: int) -> tuple[int, int]:
    """Size of the dark plate: a quarter of the picture high, less beside the small faces of a crowd."""
    height = max(18, min(round(0.30 * min(image)), round(0.8 * (box[3] - box[1]))))
    bar, gap = _bar_width(height)
    return count * bar + (count + 1) * gap, height


def _bar_width(height: int) -> tuple[int, int]:
    """Width of a bar and of the gaps around it on a plate of that height."""
    return max(4, round(0.18 * height)), max(1, round(0.05 * height))


def _place(
    size: tuple[int, int], box: Box, boxes: Sequence[Box], plates: Sequence[Box], image: tuple[int, int]
) -> Box:
    """Where the plate covers least of any face and of other plates: beside the face, else on its corner."""
    width, height = size
    x0, y0, x1, y1 = box
    gap = max(2, height // 12)
    corners = [
        (x1 + gap, y1 - height), (x0 - gap - width, y1 - height), (x1 + gap, y0), (x0 - gap - width, y0),
        (x0, y0 - gap - height), (x1 - width, y0 - gap - height), (x0, y1 + gap), (x1 - width, y1 + gap),
        (x1 - width, y1 - height), (x0, y1 - height),
    ]  # fmt: skip

    def cost(index: int) -> tuple[float, int]:
        plate = _inside(corners[index], size, image)
        covered = sum(_overlap(plate, other) for other in boxes)
        return covered + 4.0 * sum(_overlap(plate, other) for other in plates), index

    return _inside(corners[min(range(len(corners)), key=cost)], size, image)


def _inside(corner: tuple[int, int], size: tuple[int, int], image: tuple[int, int]) -> Box:
    x = max(0, min(corner[0], image[0] - size[0]))
    y = max(0, min(corner[1], image[1] - size[1]))
    return (x, y, x + size[0], y + size[1])


def _overlap(a: Box, b: Box) -> float:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _draw_plate(canvas: Image.Image, plate: Box, bars: Sequence[Bar]) -> None:
    x0, y0, _, y1 = plate
    bar_width, gap = _bar_width(y1 - y0)
    fill(canvas, plate, INK, 0.82)
    top, bottom = y0 + gap, y1 - gap
    for index, bar in enumerate(bars):
        left = x0 + gap + index * (bar_width + gap)
        right = left + bar_width
        tip = bottom - max(1, round((bottom - top) * min(max(bar.confidence, 0.0), 1.0)))
        fill(canvas, (left, top, right, bottom), WHITE, 0.22)  # the full height, to judge the bar by
        fill(canvas, (left, tip, right, bottom), bar.colour)
        if not bar.certain:
            hatch(canvas, (left, tip, right, bottom), INK, max(4, bar_width // 2 * 2), 0.75)
        _draw_initial(canvas, bar, (left, tip, right, bottom))


def _draw_initial(canvas: Image.Image, bar: Bar, box: Box) -> None:
    """First letter of the class, or "?", at the foot of a bar wide enough to read it."""
    width = box[2] - box[0]
    size = round(width * 1.05)
    if width < 9 or box[3] - box[1] < size:
        return
    letter = bar.label[0].upper() if bar.certain else "?"
    middle = ((box[0] + box[2]) / 2, box[3] - size * 0.62)
    if not bar.certain:
        fill(canvas, (box[0], box[3] - round(size * 1.25), box[2], box[3]), INK, 0.9)
        draw_text(canvas, middle, letter, size, WHITE, "mm")
        return
    light = 0.299 * bar.colour[0] + 0.587 * bar.colour[1] + 0.114 * bar.colour[2] > 110
    draw_text(canvas, middle, letter, size, INK if light else WHITE, "mm")


def _draw_no_face(canvas: Image.Image) -> None:
    """Hatched band with the words at the foot of the picture."""
    width, height = canvas.size
    size = max(8, round(min(width, height) / 9))
    while size > 8 and text_size("no face", size)[0] > width * 0.8:
        size -= 1
    band = (0, max(0, height - round(size * 1.7)), width, height)
    fill(canvas, band, INK, 0.82)
    hatch(canvas, band, WHITE, max(4, size // 2), 0.18)
    words = text_size("no face", size)[0] + size
    middle = (band[1] + band[3]) // 2
    fill(canvas, ((width - words) // 2, band[1], (width + words) // 2, band[3]), INK)
    draw_text(canvas, (width / 2, middle), "no face", size, WHITE, "mm")
