"""Colours an outfit: its folds and seams stay, its colour and pattern are drawn."""

from __future__ import annotations

import colorsys

import numpy as np

from .plan import Person


def paint(p: Person, rgba: np.ndarray) -> np.ndarray:
    """RGBA (h, w, 4) in 0..1, sRGB, from the outfit's own picture."""
    from PIL import Image, ImageFilter

    size = rgba.shape[0]
    grey = (rgba[..., :3] @ np.array([0.3, 0.6, 0.1], np.float32)).clip(0, 1)
    soft = Image.fromarray((grey * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(10))
    folds = np.clip((grey + 0.15) / (np.asarray(soft, np.float32) / 255 + 0.15), 0.55, 1.35)
    colour = np.array(colorsys.hsv_to_rgb(p.outfit_hue, p.outfit_saturation, p.outfit_value), np.float32)
    second = np.array(
        colorsys.hsv_to_rgb((p.outfit_hue + 0.45) % 1, 0.3, 0.85 if p.outfit_value < 0.5 else 0.25),
        np.float32,
    )
    amount = _pattern(p.pattern, size, p.identity)[..., None]
    # a suit keeps its pale shirt, a jacket its buttons: what is much lighter than the rest of a dark outfit
    pale = np.clip((grey - 0.55) / 0.2, 0, 1)[..., None] * (p.outfit == "male_elegantsuit01")
    cloth = (colour * (1 - amount) + second * amount) * folds[..., None]
    cloth = cloth * (1 - pale) + pale * grey[..., None] * np.array([1.0, 1.0, 1.0], np.float32)
    return np.concatenate([np.clip(cloth, 0.01, 1), rgba[..., 3:]], -1)


def _pattern(name: str, size: int, identity: int) -> np.ndarray:
    """Share (size, size) of the second colour."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    width = 7 + identity % 9
    if name == "stripes":
        return 0.8 * ((x if identity % 2 else y) % (2 * width) < width / (1 + identity % 3))
    if name == "check":
        return 0.35 * (x % (2 * width) < width) + 0.35 * (y % (2 * width) < width)
    if name == "dots":
        step = 1.6 * width
        return 0.9 * (((x % step) - step / 2) ** 2 + ((y % step) - step / 2) ** 2 < (0.24 * step) ** 2)
    return np.zeros((size, size), np.float32)
