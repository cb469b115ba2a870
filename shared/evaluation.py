"""The figures that an adapter's file holds of its evaluation, as far as they can be shown.

`AdapterInfo.evaluation` is whatever JSON object the trainer, or another program, wrote there:

    {"original": {"gender": {"bias": .57, "ci95": [.36, .76], "floor": .08, "shares": {...}}, ...},
     "adapter": {...}}

The hosts' pages, nodes and presets show what reads as figures and pass over the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from .entry import is_number
from .limits import MAX_CELLS, MAX_NAME, MAX_PARTS

ORIGINAL, ADAPTED = "original", "adapter"


@dataclass(frozen=True)
class Figures:
    """What was measured of one attribute, or of attributes together.

    bias: in [0, 1], 0 is fair; None if the file holds shares alone.  interval: its 95% interval.
    floor: what a perfectly fair model scores with so many faces.  shares: class -> share of faces, as stored.
    """

    bias: float | None
    interval: tuple[float, float] | None = None
    floor: float | None = None
    shares: Mapping[str, float] = field(default_factory=dict)


def figures(evaluation: Mapping[str, Any], model: str) -> dict[str, Figures]:
    """name -> figures of one model, ORIGINAL or ADAPTED: "gender", "race", "gender_x_race", ...

    At most MAX_PARTS of them, in the order of the file; empty if it holds none.
    """
    table = evaluation.get(model)
    found: dict[str, Figures] = {}
    for name, entry in table.items() if isinstance(table, Mapping) else ():
        if len(found) < MAX_PARTS and len(name) <= MAX_NAME and isinstance(entry, Mapping):
            read = _figures(entry)
            found |= {name: read} if read is not None else {}
    return found


def _figures(entry: Mapping[str, Any]) -> Figures | None:
    bias, interval, floor = (entry.get(key) for key in ("bias", "ci95", "floor"))
    pair = [v for v in interval if _fraction(v)] if isinstance(interval, list | tuple) else []
    shares = entry.get("shares")
    shares = shares if isinstance(shares, Mapping) and len(shares) <= MAX_CELLS else {}
    numbers = {name: float(share) for name, share in shares.items() if is_number(share)}
    if not _fraction(bias) and not numbers:
        return None
    return Figures(
        float(bias) if _fraction(bias) else None,
        (float(pair[0]), float(pair[1])) if len(pair) == 2 else None,
        float(floor) if _fraction(floor) else None,
        numbers,
    )


def _fraction(value: Any) -> TypeGuard[float]:
    """A number from 0 to 1, give or take what arithmetic rounds."""
    return is_number(value) and -1e-6 <= value <= 1 + 1e-6
