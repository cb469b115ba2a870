"""Small drawing tools on PIL images that look the same with every Pillow from 9.5 on."""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

WHITE: Colour = (255, 255, 255)
INK: Colour = (28, 30, 34)
PAPER: Colour = (250, 250, 248)
SOFT: Colour = (118, 122, 130)
RULE: Colour = (206, 208, 211)


@lru_cache(maxsize=64)
def _font(size: int) -> tuple[ImageFont.ImageFont | ImageFont.FreeTypeFont, bool]:
    """Pillow's own font, and whether it has the size: before 10.1 it is one 11 px bitmap."""
    try:
        return ImageFont.load_default(size), True
    except (TypeError, OSError):  # OSError: a Pillow built without FreeType
        return ImageFont.load_default(), False


@lru_cache(maxsize=1024)
def text_mask(text: str, size: int) -> Image.Image:
    """The text as an "L" mask ``size`` px from ascender to descender, tight to left and right."""
    font, scalable = _font(size)
    left, _, right, _ = font.getbbox(text or " ")
    _, _, _, height = font.getbbox("Ag|")
    mask = Image.new("L", (max(1, int(right - left)), max(1, int(height))), 0)
    ImageDraw.Draw(mask).text((-left, 0), text, fill=255, font=font)
    if scalable:
        return mask
    return mask.resize((max(1, round(mask.width * size / mask.height)), size), Image.Resampling.BICUBIC)


def text_size(text: str, size: int) -> tuple[int, int]:
    """Width and height in px of the text drawn at that size."""
    return text_mask(text, size).size


def draw_text(
    image: Image.Image,
    position: tuple[float, float],
    text: str,
    size: int,
    colour: Colour,
    anchor: str = "la",
) -> None:
    """Draws ``text`` with its left, middle or right (l, m, r) and top, middle or bottom (a, m, d) there."""
    mask = text_mask(text, size)
    x = position[0] - {"l": 0, "m": mask.width / 2, "r": mask.width}[anchor[0]]
    y = position[1] - {"a": 0, "m": mask.height / 2, "d": mask.height}[anchor[1]]
    image.paste(colour, (round(x), round(y)), mask)


def fit_text(text: str, size: int, width: int) -> str:
    """The text, or its beginning with "..." where it would be wider than ``width`` px."""
    if text_size(text, size)[0] <= width:
        return text
    while text and text_size(text + "...", size)[0] > width:
        text = text[:-1]
    return text.rstrip() + "..." if text else ""


def hatch_mask(width: int, height: int, period: int, opacity: int = 255) -> Image.Image:
    """Diagonal stripes as an "L" mask, half of each ``period`` px opaque."""
    y, x = np.mgrid[0:height, 0:width]
    stripes = ((x + y) % max(2, period)) < max(2, period) / 2
    return Image.fromarray((stripes * opacity).astype(np.uint8))


def fill(image: Image.Image, box: tuple[int, int, int, int], colour: Colour, opacity: float = 1.0) -> None:
    """Fills x0, y0, x1, y1 (the last column and row not included), clipped to the image."""
    x0, y0 = max(0, box[0]), max(0, box[1])
    x1, y1 = min(image.width, box[2]), min(image.height, box[3])
    if x1 > x0 and y1 > y0:
        image.paste(colour, (x0, y0), Image.new("L", (x1 - x0, y1 - y0), round(255 * opacity)))


def hatch(
    image: Image.Image, box: tuple[int, int, int, int], colour: Colour, period: int, opacity: float
) -> None:
    """Diagonal stripes over x0, y0, x1, y1."""
    if box[2] > box[0] and box[3] > box[1]:
        mask = hatch_mask(box[2] - box[0], box[3] - box[1], period, round(255 * opacity))
        image.paste(colour, (box[0], box[1]), mask)


def outline(
    image: Image.Image, box: tuple[int, int, int, int], colour: Colour, width: int, opacity: float = 1.0
) -> None:
    """Frame of ``width`` px just inside x0, y0, x1, y1."""
    x0, y0, x1, y1 = box
    fill(image, (x0, y0, x1, y0 + width), colour, opacity)
    fill(image, (x0, y1 - width, x1, y1), colour, opacity)
    fill(image, (x0, y0 + width, x0 + width, y1 - width), colour, opacity)
    fill(image, (x1 - width, y0 + width, x1, y1 - width), colour, opacity)


def data_url(image: Image.Image, kind: Literal["PNG", "JPEG"] = "PNG", quality: int = 88) -> str:
    """The picture as text for an <img>: JPEG for photographs, PNG for drawings."""
    data = io.BytesIO()
    image.convert("RGB").save(data, kind, **({"quality": quality} if kind == "JPEG" else {"optimize": True}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
