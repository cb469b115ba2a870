"""Paints the skin of a person: tone, age, hair under the skin, make-up; and the height map of its furrows.

MakeHuman's skins give the pattern only: each is divided by its own mean over cheeks and forehead and
multiplied
by the person's tone, which is thereby known exactly, whatever the texture, the light and the backdrop.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from .assets import Assets
from .body import MAKEHUMAN
from .maps import SIZE, Maps, beard, furrow_depth, goatee, moustache, scalp, smooth
from .plan import Person

_KNOTS = (("young", 28.0), ("middleage", 44.0), ("old", 64.0))
_WHITE = np.array([0.95047, 1.0, 1.08883])  # D65
_TO_RGB = np.array(
    [
        [3.2404542, -1.5371385, -0.4985314],
        [-0.969266, 1.8760108, 0.041556],
        [0.0556434, -0.2040259, 1.0572252],
    ]
)


def tone_rgb(angle: float, warmth: float = 0.0) -> np.ndarray:
    """Linear RGB (3,) of skin with this individual typology angle (degrees), arctan((L* - 50) / b*).

    Along the line from dark to light skin of CIELAB: b* is 11 for the darkest, 20 for tanned, 15 for the
    fairest; a* 9 to 12. `warmth` (about -1..1) shifts a* and b* as people differ, and keeps the angle.
    """
    b = float(np.interp(angle, (-72, -40, -10, 20, 45, 64), (10.5, 15.0, 19.0, 20.0, 17.0, 13.0))) * (
        1 + 0.08 * warmth
    )
    a = float(np.interp(angle, (-72, -40, 0, 30, 64), (9.0, 12.0, 12.5, 11.0, 9.0))) * (1 - 0.1 * warmth)
    lightness = 50 + b * float(np.tan(np.radians(angle)))
    f = (lightness + 16) / 116 + np.array([a / 500, 0, -b / 200])
    xyz = _WHITE * np.where(f > 6 / 29, f**3, (f - 4 / 29) * 3 * (6 / 29) ** 2)
    return np.clip(_TO_RGB @ xyz, 0.004, 1)


def rgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB (n, 3) of linear RGB (n, 3) under D65."""
    t = rgb @ np.linalg.inv(_TO_RGB).T / _WHITE
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


def noise(rng: np.random.Generator, cell: int) -> np.ndarray:
    """Smooth noise (SIZE, SIZE) in 0..1 with lumps of `cell` texels."""
    from PIL import Image

    grid = (rng.random((SIZE // cell, SIZE // cell)) * 255).astype(np.uint8)
    big = Image.fromarray(grid).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(big, np.float32) / 255


class Painter:
    """Paints skins; patterns are kept from person to person."""

    def __init__(self, assets: Assets, maps: Maps) -> None:
        self.assets, self.maps = assets, maps
        self.pattern = cache(self._pattern)

    def _pattern(self, age: str, race: str, gender: str) -> np.ndarray:
        """A skin over its own mean (SIZE, SIZE, 3), linear; the drawn-on hair of the scalp is taken out."""
        linear = self.assets.picture(f"skin_{age}_{MAKEHUMAN[race]}_{gender}", SIZE)[..., :3] ** 2.2
        ratio = linear / linear[self.maps.face].mean(0)
        hair = scalp(self.maps)[..., None] > 0.02
        ratio = np.where(hair, 1, ratio)
        grey = ratio.mean(-1, keepdims=True)
        keep = (
            0.35 + 0.65 * self.maps.lips[..., None]
        )  # blotches are light and dark, hardly of another colour
        return np.clip(grey + keep * (ratio - grey), 0.05, 2.2).astype(np.float32)

    def paint(self, p: Person, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(sRGB (SIZE, SIZE, 4) and height (SIZE, SIZE)), both in 0..1, top row first."""
        maps = self.maps
        pattern = self._aged(p)
        furrows = furrow_depth(maps, p.age, rng)
        mottle = 1 + (0.05 + 0.05 * smooth(np.array(p.age), 40, 75)) * (
            2 * noise(rng, 16) - 1 + noise(rng, 5) - 0.5
        )
        linear = tone_rgb(p.tone, float(rng.normal(0, 0.7))) * pattern * mottle[..., None]
        linear = linear * (1 - furrows[..., None] * np.array([0.44, 0.50, 0.52]))
        linear = self._spots(linear, p, rng)
        linear = self._blush(linear, p)
        linear = self._hair(linear, p, rng)
        if p.makeup:
            linear = self._makeup(linear, p, rng)
        out = np.ones((SIZE, SIZE, 4), np.float32)
        out[..., :3] = np.clip(linear, 0, 1) ** (1 / 2.2)
        height = 0.7 - 0.55 * furrows + 0.12 * noise(rng, 4)
        return out, np.clip(height, 0, 1)

    def _aged(self, p: Person) -> np.ndarray:
        """The patterns of the ages around this one, mixed; those of older ones deepened in lightness."""
        from PIL import Image, ImageFilter

        years = [y for _, y in _KNOTS]
        k = int(np.clip(np.searchsorted(years, p.age), 1, 2))
        share = float(np.clip((p.age - years[k - 1]) / (years[k] - years[k - 1]), 0, 1))
        names = (_KNOTS[k - 1][0], _KNOTS[k][0])
        young, old = (self.pattern(name, p.slot.race, p.slot.gender) for name in names)
        mixed = (1 - share) * young + share * old
        boost = 1.3 * float(np.clip((p.age - 36) / 30, 0, 1))
        grey = Image.fromarray((np.clip(mixed.mean(-1) / 2.2, 0, 1) * 255).astype(np.uint8))
        soft = np.asarray(grey.filter(ImageFilter.GaussianBlur(5)), np.float32) / 255 * 2.2
        detail = np.clip(mixed.mean(-1) / np.maximum(soft, 0.05), 0.4, 1.5)
        return mixed * np.where(self.maps.head, detail**boost, 1)[..., None]

    def _spots(self, linear: np.ndarray, p: Person, rng: np.random.Generator) -> np.ndarray:
        """Freckles on fair skin, spots of age, a mole or two."""
        freckled = rng.random() < 0.2 and p.tone > 25
        grain = noise(rng, 3)
        amount = 0.14 * freckled * smooth(grain, 0.6, 0.85)
        if p.age > 50:
            amount = amount + 0.35 * (p.age - 50) / 25 * smooth(noise(rng, 7), 0.74, 0.86)
        cheeks = smooth(np.nan_to_num(self.maps.point[..., 2]), 0.5, 1.0)
        return linear * (1 - (np.clip(amount, 0, 0.5) * cheeks)[..., None] * np.array([0.5, 0.75, 0.9]))

    def _blush(self, linear: np.ndarray, p: Person) -> np.ndarray:
        """Redder cheeks, nose and ears, as blood shows through."""
        q = self.maps.point
        x, y, z = np.abs(q[..., 0]), q[..., 1], q[..., 2]
        cheek = np.exp(-(((x - 0.42) / 0.16) ** 2) - ((y - 6.98) / 0.16) ** 2) * smooth(z, 0.9, 1.2)
        nose = np.exp(-((x / 0.14) ** 2) - ((y - 6.93) / 0.1) ** 2) * smooth(z, 1.4, 1.55)
        amount = np.nan_to_num((0.3 + 0.5 * p.makeup) * cheek + 0.3 * nose) + 0.2 * self.maps.ear
        return linear * (1 + amount[..., None] * np.array([0.10, -0.13, -0.10]))

    def _hair(self, linear: np.ndarray, p: Person, rng: np.random.Generator) -> np.ndarray:
        """Hair as it shows through the skin: shaved scalp, roots, stubble, the shadow of a beard."""
        man = p.slot.gender == "male"
        head = {"bald": 0.22, "buzz": 0.72}.get(p.hair, 1.2)
        jaw = {"none": 0.13 if p.slot.race != "asian" else 0.05, "stubble": 0.5, "full": 0.62, "goatee": 0.14}
        lip = {"none": 0.12, "stubble": 0.45, "moustache": 0.6, "full": 0.55, "goatee": 0.5}
        cover = head * scalp(self.maps, recede(p))
        if man:
            cover = np.maximum(cover, jaw.get(p.beard, 0.13) * beard(self.maps))
            cover = np.maximum(cover, lip[p.beard] * moustache(self.maps))
            if p.beard == "goatee":
                cover = np.maximum(cover, 0.6 * goatee(self.maps))
        grain = np.repeat(np.repeat(rng.random((SIZE // 2, SIZE // 2), np.float32), 2, 0), 2, 1)
        cover = np.clip(cover * (0.7 + 0.6 * grain), 0, 0.95)[..., None]
        tone = tone_rgb(p.tone)
        tint = np.clip(np.array(p.brow_rgb) * 1.1, 0, 0.4) + 0.08 * tone
        tint = np.minimum(tint, 2 * tone + 0.02)  # grey stubble on dark skin would look like paint
        return linear * (1 - cover) + tint * cover

    def _makeup(self, linear: np.ndarray, p: Person, rng: np.random.Generator) -> np.ndarray:
        """Lipstick, shaded lids and a line along the lashes."""
        shades = np.array([[0.40, 0.05, 0.06], [0.32, 0.03, 0.09], [0.42, 0.12, 0.10], [0.20, 0.03, 0.04]])
        shade = shades[int(rng.integers(len(shades)))] * (0.45 + 0.55 * np.clip((p.tone + 60) / 100, 0, 1))
        lips = (0.65 * p.makeup * self.maps.lips)[..., None]
        linear = linear * (1 - lips) + shade * lips
        q = self.maps.point
        x, y, z = np.abs(q[..., 0]), q[..., 1], q[..., 2]
        lid = np.exp(-(((x - 0.33) / 0.17) ** 4) - ((y - 7.41) / 0.07) ** 2) * smooth(z, 1.1, 1.3)
        return linear * (1 - 0.45 * p.makeup * np.nan_to_num(lid)[..., None] * np.array([0.8, 1.0, 0.9]))


def recede(p: Person) -> float:
    """How far the hairline has moved back, 0..1: by age, with men, differently from man to man."""
    if p.slot.gender == "female":
        return 0.0
    return float(np.clip((p.age - 28) / 50, 0, 1) * (p.identity % 97) / 97)
