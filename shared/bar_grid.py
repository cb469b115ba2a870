"""A batch at a glance: the pictures with their bars, the share of each class against its target, a legend.

Host-free: PIL images in, one PIL image out. The bars on the pictures are `shared/bars.py`'s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from .attributes import Attribute, TargetDistribution, ordered, spelled
from .bars import Bar, FaceBars, draw_faces, resized
from .drawing import INK, PAPER, RULE, SOFT, Colour, draw_text, fill, fit_text, hatch, outline, text_size
from .errors import FairAdapterError
from .metrics import wilson_interval

Sign = Colour | str | None


@dataclass(frozen=True)
class ClassShare:
    """Share of one class among the faces, its 95% interval and its target, if one is set; all in [0, 1]."""

    attribute: str
    label: str
    share: float
    low: float
    high: float
    colour: Colour
    target: float | None = None


def hex_colour(colour: Colour) -> str:
    """#rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def class_aims(attribute: Attribute, target: TargetDistribution | None) -> list[float] | None:
    """The target's shares in the order of the attribute's classes; a class it does not know gets 0.

    None without a target for the attribute.
    """
    if target is None or attribute.name not in target.names:
        return None
    shares = dict(zip(target.attribute(attribute.name).classes, target.marginal(attribute.name).tolist()))
    return [shares.get(label, 0.0) for label in attribute.classes]


def class_shares(
    faces: Sequence[FaceBars], attributes: Sequence[Attribute], target: TargetDistribution | None = None
) -> list[ClassShare]:
    """Share of every class among the likeliest classes of the faces, with Wilson intervals.

    Uncertain readings count as what they most likely are: leaving them out would bend the shares.
    """
    shares: list[ClassShare] = []
    for attribute in ordered(attributes):
        labels = [bar.label for face in faces for bar in face.bars if bar.attribute == attribute.name]
        aims = class_aims(attribute, target)
        for index, label in enumerate(attribute.classes):
            low, high = wilson_interval(labels.count(label), len(labels))
            share = labels.count(label) / len(labels) if labels else 0.0
            aim = None if aims is None else aims[index]
            shares.append(
                ClassShare(attribute.name, label, share, low, high, attribute.looks[index].colour, aim)
            )
    return shares


def count_readings(readings: Sequence[Sequence[FaceBars]]) -> str:
    """How many images have a face, and how many readings are uncertain, in words."""
    faces, total = sum(bool(reading) for reading in readings), len(readings)
    bars: list[Bar] = [bar for reading in readings for face in reading for bar in face.bars]
    unsure = sum(not bar.certain for bar in bars)
    text = f"{faces} of {total} {'image' if total == 1 else 'images'} with a face"
    return f"{text}, {unsure} of {len(bars)} readings uncertain" if bars else text


def draw_shares(shares: Sequence[ClassShare], width: int, size: int = 14, dark: bool = False) -> Image.Image:
    """Panel ``width`` px wide: for each class its bar, 95% interval and target line, grouped by attribute."""
    ink, _, paper, rule = _theme(dark)
    names = [s.attribute for s in shares]
    groups = sum(1 for i, name in enumerate(names) if i == 0 or name != names[i - 1])
    row, space, margin = round(size * 1.75), round(size * 0.9), size
    panel = Image.new("RGB", (width, 2 * margin + len(shares) * row + max(0, groups - 1) * space), paper)
    label_width = min(max((text_size(s.label, size)[0] for s in shares), default=0), width // 3)
    number_width = text_size("100%", size)[0]
    left, right = margin + label_width + size // 2, width - margin - number_width - size // 2
    y = margin
    for index, share in enumerate(shares):
        if index and share.attribute != shares[index - 1].attribute:
            y += space
        middle = y + row // 2
        draw_text(
            panel, (left - size // 2, middle), fit_text(share.label, size, label_width), size, ink, "rm"
        )
        outline(panel, (left, y + 2, right, y + row - 2), rule, 1)
        _draw_share(panel, share, (left, y + 2, right, y + row - 2), ink, paper, max(2, size // 6))
        draw_text(panel, (width - margin, middle), f"{100 * share.share:.0f}%", size, ink, "rm")
        y += row
    return panel


def draw_notes(notes: Sequence[str], width: int, size: int = 14, dark: bool = False) -> Image.Image:
    """Panel ``width`` px wide with a paragraph for each text, wrapped between words."""
    _, soft, paper, _ = _theme(dark)
    lines: list[str] = []
    for note in notes:
        begun = ""
        for word in note.split():
            longer = f"{begun} {word}".lstrip()
            if begun and text_size(longer, size)[0] > width - 2 * size:
                lines.append(begun)
                longer = word
            begun = longer
        lines.append(begun)
    row = round(size * 1.4)
    panel = Image.new("RGB", (width, len(lines) * row + size), paper)
    for index, line in enumerate(lines):
        draw_text(panel, (size, index * row), fit_text(line, size, width - 2 * size), size, soft)
    return panel


def _draw_share(
    panel: Image.Image,
    share: ClassShare,
    box: tuple[int, int, int, int],
    ink: Colour,
    paper: Colour,
    line: int,
) -> None:
    left, top, right, bottom = box

    def at(value: float) -> int:
        return left + round((right - left) * value)

    fill(panel, (left, top, at(share.share), bottom), share.colour)
    outline(panel, (left, top, at(share.share), bottom), ink, 1, 0.35)
    middle, thin = (top + bottom) // 2, max(1, line // 2)
    low, high, cap = at(share.low), at(share.high), max(2, (bottom - top) // 6)
    fill(panel, (low - thin, middle - cap - thin, high + thin, middle + cap + thin), paper, 0.55)
    fill(panel, (low, middle - (thin + 1) // 2, high, middle + (thin + 2) // 2), ink)
    for end in (low, high):
        fill(panel, (end - (thin + 1) // 2, middle - cap, end + (thin + 2) // 2, middle + cap), ink)
    if share.target is not None:
        x = at(share.target)
        fill(panel, (x - line, top - 2, x + line, bottom + 2), paper)
        fill(panel, (x - line // 2, top - 2, x + line - line // 2, bottom + 2), ink)


def draw_legend(
    attributes: Sequence[Attribute], width: int, size: int = 14, dark: bool = False, target: bool = False
) -> Image.Image:
    """Colour of every class in the order of the bars, and the signs; wraps at ``width`` px."""
    ink, soft, paper, _ = _theme(dark)
    gap, row = size, round(size * 1.8)
    placed: list[tuple[int, int, str, Sign]] = []
    x, y = gap, 0
    for group in _legend_groups(attributes, target):
        rooms = [
            text_size(text, size)[0] + (0 if sign is None else round(size * 1.3)) + gap
            for text, sign in group
        ]
        if x > gap and x + sum(rooms) > width:
            x, y = gap, y + row
        for (text, sign), room in zip(group, rooms):
            if x > gap and x + room > width:
                x, y = gap, y + row
            placed.append((x, y, text, sign))
            x += room
    legend = Image.new("RGB", (width, y + row + gap // 2), paper)
    for x, y, text, sign in placed:
        middle = y + row // 2
        if sign is not None:
            _draw_sign(legend, (x, middle - size // 2, x + size, middle - size // 2 + size), sign, ink, paper)
            x += round(size * 1.3)
        draw_text(legend, (x, middle), text, size, soft if sign is None else ink, "lm")
    return legend


def _legend_groups(attributes: Sequence[Attribute], target: bool) -> list[list[tuple[str, Sign]]]:
    """What belongs on one line if it fits: text and sign of each entry."""
    groups: list[list[tuple[str, Sign]]] = []
    for place, attribute in enumerate(ordered(attributes)):
        heading: tuple[str, Sign] = (f"{_ordinal(place)} bar: {attribute.name}", None)
        classes = [(spelled(attribute.name, c), k.colour) for c, k in zip(attribute.classes, attribute.looks)]
        groups.append([heading, *classes])
    groups.append([("height = confidence", None), ("uncertain", "hatch")])
    return [*groups, [("95% interval", "interval"), ("target", "target")]] if target else groups


def _draw_sign(
    image: Image.Image, box: tuple[int, int, int, int], sign: Sign, ink: Colour, paper: Colour
) -> None:
    x0, y0, x1, y1 = box
    middle = ((x0 + x1) // 2, (y0 + y1) // 2)
    if isinstance(sign, tuple):
        fill(image, box, sign)
        outline(image, box, ink, 1, 0.35)
    elif sign == "hatch":
        fill(image, box, paper)
        hatch(image, box, ink, max(4, (x1 - x0) // 3), 1.0)
        outline(image, box, ink, 1)
    elif sign == "target":
        fill(image, (middle[0] - 1, y0 - 1, middle[0] + 2, y1 + 1), ink)
    else:
        fill(image, (x0, middle[1], x1, middle[1] + 1), ink)
        for x in (x0, x1 - 1):
            fill(image, (x, middle[1] - 3, x + 1, middle[1] + 4), ink)


def draw_grid(
    images: Sequence[Image.Image],
    readings: Sequence[Sequence[FaceBars]],
    attributes: Sequence[Attribute],
    target: TargetDistribution | None = None,
    title: str = "",
    columns: int | None = None,
    cell: int = 128,
    preview: bool = False,
    dark: bool = False,
) -> Image.Image:
    """The batch as one picture: title, tiles with bars, shares of the largest faces, legend.

    Args:
        images: N pictures of any sizes; each is fitted into a square of ``cell`` px.
        readings: for each picture its faces, the largest first; boxes in px of that picture.
        attributes: those of the bars.
        target: drawn as a line through the share bars of its attributes.
        columns: tiles in a row; default: about as many as rows, at least 3 tiles wide.
        preview: dims the bars and says so.
        dark: light text on a dark ground.

    Raises:
        FairAdapterError: no image, or not one reading for each.
    """
    _check_batch(images, readings)
    ink, soft, paper, _ = _theme(dark)
    size = max(12, round(cell / 9.5))
    columns = columns or min(len(images), max(3, math.ceil(math.sqrt(1.6 * len(images)))))
    tiles = _tiles(images, readings, columns, cell, preview, paper)
    width = max(tiles.width, 26 * size) + 2 * size
    representatives = [reading[0] for reading in readings if reading]
    shares = draw_shares(class_shares(representatives, attributes, target), width, size, dark)
    legend = draw_legend(attributes, width, size, dark, target is not None)
    header = [(title, round(size * 1.35), ink)] if title else []
    header.append((("preview: " if preview else "") + count_readings(readings), size, soft))
    head = size // 2 + sum(round(1.5 * height) for _, height, _ in header) + size // 2
    sheet = Image.new("RGB", (width, head + tiles.height + shares.height + legend.height), paper)
    y = size // 2
    for text, height, colour in header:
        draw_text(sheet, (size, y), fit_text(text, height, width - 2 * size), height, colour)
        y += round(1.5 * height)
    sheet.paste(tiles, (size, head))
    sheet.paste(shares, (0, head + tiles.height))
    sheet.paste(legend, (0, head + tiles.height + shares.height))
    return sheet


def draw_wide(
    images: Sequence[Image.Image],
    readings: Sequence[Sequence[FaceBars]],
    attributes: Sequence[Attribute],
    target: TargetDistribution | None = None,
    title: str = "",
    preview: bool = False,
    dark: bool = False,
    size: int = 22,
) -> Image.Image:
    """The batch as a low wide picture, for places such as an empty gallery: tiles left, shares right.

    It stays readable a hand's breadth high: as high as its rows of shares, whatever the batch.

    Args:
        images, readings, attributes, target, preview, dark: as for `draw_grid`.
        title: above the tiles.
        size: of the text in px.

    Raises:
        FairAdapterError: no image, or not one reading for each.
    """
    _check_batch(images, readings)
    ink, soft, paper, _ = _theme(dark)
    representatives = [reading[0] for reading in readings if reading]
    panel = draw_shares(class_shares(representatives, attributes, target), 21 * size, size, dark)
    height = max(panel.height, 12 * size)
    head = round(3.4 * size)
    room, gap = height - head - size // 2, 8
    columns = max(range(1, len(images) + 1), key=lambda n: (_cell(len(images), n, 2 * height, room, gap), -n))
    tiles = _tiles(
        images, readings, columns, _cell(len(images), columns, 2 * height, room, gap), preview, paper, gap
    )
    left = max(tiles.width, 16 * size)
    sheet = Image.new("RGB", (size + left + panel.width, height), paper)
    draw_text(sheet, (size, size // 2), fit_text(title, round(1.15 * size), left), round(1.15 * size), ink)
    counted = ("preview: " if preview else "") + f"{len(representatives)} of {len(images)} with a face"
    draw_text(sheet, (size, 2 * size), fit_text(counted, round(0.9 * size), left), round(0.9 * size), soft)
    sheet.paste(tiles, (size, head))
    sheet.paste(panel, (size + left, (height - panel.height) // 2))
    return sheet


def _cell(count: int, columns: int, width: int, height: int, gap: int) -> int:
    """Side of the largest squares of which `count` fit in so many columns."""
    rows = math.ceil(count / columns)
    return max(16, min((width - (columns - 1) * gap) // columns, (height - (rows - 1) * gap) // rows))


def _check_batch(images: Sequence[Image.Image], readings: Sequence[Sequence[FaceBars]]) -> None:
    if not images or len(images) != len(readings):
        raise FairAdapterError(
            f"batch grid: expected images and as many readings, found {len(images)} and {len(readings)}"
        )


def _tiles(
    images: Sequence[Image.Image],
    readings: Sequence[Sequence[FaceBars]],
    columns: int,
    cell: int,
    preview: bool,
    paper: Colour,
    gap: int | None = None,
) -> Image.Image:
    """All pictures in rows of ``columns`` squares, ``gap`` px apart."""
    step = cell + (max(4, cell // 24) if gap is None else gap)
    rows = math.ceil(len(images) / columns)
    tiles = Image.new("RGB", ((columns - 1) * step + cell, (rows - 1) * step + cell), paper)
    for index, (image, reading) in enumerate(zip(images, readings)):
        place = (index % columns * step, index // columns * step)
        tiles.paste(_tile(image, reading, cell, preview, paper), place)
    return tiles


def _tile(
    image: Image.Image, reading: Sequence[FaceBars], cell: int, preview: bool, paper: Colour
) -> Image.Image:
    """The picture fitted into a square, with bars drawn at the size they are seen at."""
    small, moved = resized(image, reading, cell)
    x0, y0 = (cell - small.width) // 2, (cell - small.height) // 2
    square = Image.new("RGB", (cell, cell), paper)
    square.paste(small, (x0, y0))
    shifted = [FaceBars((a + x0, b + y0, c + x0, d + y0), face.bars)
               for face in moved for a, b, c, d in [face.box]]  # fmt: skip
    return draw_faces(square, shifted, preview)


def _theme(dark: bool) -> tuple[Colour, Colour, Colour, Colour]:
    """Ink, soft ink, ground and rule."""
    return (PAPER, (168, 172, 180), INK, (62, 65, 72)) if dark else (INK, SOFT, PAPER, RULE)


def _ordinal(place: int) -> str:
    return ("1st", "2nd", "3rd")[place] if place < 3 else f"{place + 1}th"
