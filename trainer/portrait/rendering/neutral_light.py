"""Measures which skin tone a picture shows under a fixed neutral light, for `labels._SEEN`.

    BLENDER_PYTHON trainer/portrait/rendering/neutral_light.py ASSETS [COUNT]

ASSETS is the folder `assets` inside render.py's --assets. Each person's skin alone, under an even white sky,
with the pictures' own camera and camera transform; the median individual typology angle over its pixels.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import bpy
import numpy as np

from fair_adapter.trainer.portrait.rendering import plan
from fair_adapter.trainer.portrait.rendering.assets import Assets
from fair_adapter.trainer.portrait.rendering.scene import Quality, Studio
from fair_adapter.trainer.portrait.rendering.skin import rgb_to_lab

KNOTS = (-72, -60, -50, -40, -30, -20, -10, 0, 10, 20, 30, 40, 50, 58)  # of the table, degrees


def seen(studio: Studio, p: plan.Person, path: Path) -> float:
    """The angle of this person's skin in a picture under even white light, degrees."""
    from PIL import Image

    studio.clear()
    studio.build(p)
    for thing in list(bpy.data.objects):
        if thing.name not in ("body", "camera"):
            bpy.data.objects.remove(thing)
    sky = bpy.context.scene.world.node_tree.nodes["Background"].inputs
    sky["Color"].default_value, sky["Strength"].default_value = (1, 1, 1, 1), 1.0
    bpy.context.scene.render.filepath = str(path)
    bpy.ops.render.render(write_still=True)
    with Image.open(path) as image:
        rgba = np.asarray(image.convert("RGBA"), float) / 255
    size = len(rgba)
    face = rgba[size // 4 : 3 * size // 4, size // 4 : 3 * size // 4].reshape(-1, 4)
    shown = face[face[:, 3] > 0.99, :3]
    lab = rgb_to_lab(np.where(shown > 0.04045, ((shown + 0.055) / 1.055) ** 2.4, shown / 12.92))  # sRGB
    return float(np.degrees(np.median(np.arctan2(lab[:, 0] - 50, lab[:, 2]))))


def main(arguments: list[str]) -> int:
    count = int(arguments[1]) if len(arguments) > 1 else 60
    studio = Studio(Assets(Path(arguments[0])), Quality(96, 8))
    with tempfile.TemporaryDirectory() as folder:
        people = [plan.person(0, index) for index in range(count)]
        pairs = np.array([(p.tone, seen(studio, p, Path(folder) / "picture.png")) for p in people])
    fitted = np.polynomial.Polynomial.fit(pairs[:, 0], pairs[:, 1], 3)
    rank = np.corrcoef(pairs.argsort(0).argsort(0).T)[0, 1]
    error = np.abs(pairs[:, 1] - fitted(pairs[:, 0])).mean()
    print(f"{count} people: rank correlation {rank:.3f}, mean distance from the table {error:.1f} degrees")
    print([(knot, round(float(fitted(knot)), 1)) for knot in KNOTS])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
