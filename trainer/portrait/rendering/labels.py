"""labels.csv: what is true of each picture, by construction."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from ....shared.attributes import SKIN_TONE, TONE_BOUNDS
from ....shared.errors import FairAdapterError
from . import catalogue as have
from .plan import Person

COLUMNS: tuple[str, ...] = (
    "index", "file", "split", "half", "gender", "race", "age_class", "age", "black", "asian",
    "wmelh", "skin_tone", "skin_class", "skin_seen", "hair", "hair_length", "hair_texture",
    "hair_colour", "beard", "outfit", "pattern", "glasses", "earrings", "makeup", "expression",
    "yaw", "pitch", "roll", "turn", "light", "identity",
)
_STYLE = {style.name: style for style in have.HAIR}
# Angle of the skin's reflectance -> angle that a picture of it shows under even white light with the
# pictures' camera transform: neutral_light.py, 60 people, rank correlation .978, mean distance 2.4 degrees
_SEEN = {
    -72: -76.2, -60: -55.6, -50: -40.5, -40: -27.1, -30: -15.1, -20: -4.3, -10: 5.5,
    0: 14.6, 10: 23.3, 20: 31.6, 30: 39.9, 40: 48.5, 50: 57.5, 58: 65.1,
}  # fmt: skip


def file_name(index: int) -> str:
    return f"{index // 1000:03d}/{index:06d}.png"


def skin_class(angle: float) -> str:
    """The published class of an individual typology angle in degrees."""
    return next(name for name, bound in zip(SKIN_TONE.classes, (*TONE_BOUNDS, -91)) if angle > bound)


def skin_seen(angle: float) -> float:
    """The angle that a picture under even white light shows, in degrees."""
    return float(np.interp(angle, list(_SEEN), list(_SEEN.values())))


def row(p: Person) -> dict[str, str]:
    """A line of labels.csv."""
    s, hair = p.slot, _STYLE[p.hair]
    seen = skin_seen(p.tone)
    values = {
        "index": s.index,
        "file": file_name(s.index),
        "split": s.split,
        "half": s.half,
        "gender": s.gender,
        "race": s.race,
        "age_class": s.age_class,
        "age": f"{p.age:.1f}",
        **{race: f"{p.mix[race]:.3f}" for race in have.RACES},
        "skin_tone": f"{p.tone:.1f}",
        "skin_class": skin_class(p.tone),
        "skin_seen": f"{seen:.1f}",
        "hair": p.hair,
        "hair_length": hair.length,
        "hair_texture": hair.texture,
        "hair_colour": p.hair_colour,
        "beard": p.beard,
        "outfit": p.outfit,
        "pattern": p.pattern,
        "glasses": int(p.glasses),
        "earrings": int(p.earrings),
        "makeup": f"{p.makeup:.2f}",
        "expression": p.expression,
        **{name: f"{getattr(p, name):.1f}" for name in ("yaw", "pitch", "roll", "turn")},
        "light": p.light,
        "identity": p.identity,
    }
    return {name: str(values[name]) for name in COLUMNS}


def text(rows: list[dict[str, str]]) -> str:
    """The file's text."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a labels.csv.

    Raises:
        FairAdapterError: it is no such file.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = [r for r in reader if None not in r and None not in r.values()]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FairAdapterError(
            f"{path}: can't be read ({error}); delete it and run the same command again"
        ) from error
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise FairAdapterError(
            f"{path}: expected the columns {COLUMNS[0]}, {COLUMNS[1]}, ..., {COLUMNS[-1]}, found others; "
            "it is of "
            "another version of this program: give another --out"
        )
    return rows
