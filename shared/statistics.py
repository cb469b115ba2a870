"""Running statistics of generated faces: shares against a target, with what so few faces can say.

Counts the largest face of every picture, as training does. Uncertain readings count as what they most likely
are (leaving them out would bend the shares) and are counted beside. No I/O: CSV is a text, a drawing is an
image.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from .attributes import STANDARD, TABLE, Attribute, TargetDistribution, ordered, spelled
from .bar_grid import ClassShare, class_aims, draw_notes, draw_shares, hex_colour
from .bars import FaceBars
from .errors import FairAdapterError
from .metrics import bias, bias_floor, frequencies, sample_note, target_error, wilson_interval

COLUMNS = ("attribute", "class", "count", "faces", "share", "low", "high", "target", "bias_floor")


@dataclass(frozen=True)
class ShareRow:
    """One class: `count` of `n` faces, its share with the 95% Wilson interval `low` to `high`, in [0, 1].

    target: its share in the target, None without one.  floor: `bias` that `n` faces of a perfectly fair model
    score on average, for the whole attribute; None without a face.
    """

    attribute: str
    label: str
    count: int
    n: int
    share: float
    low: float
    high: float
    target: float | None
    floor: float | None
    colour: tuple[int, int, int]

    def to_dict(self) -> dict[str, Any]:
        """JSON form under the names of `COLUMNS`, the colour as #rrggbb and the class as people read it."""
        values = (self.attribute, self.label, self.count, self.n, self.share, self.low, self.high)
        table = dict(zip(COLUMNS, (*values, self.target, self.floor)))
        said = spelled(self.attribute, self.label)
        return {**table, "colour": hex_colour(self.colour), "spelled": said}


class FairnessStatistics:
    """Counts of classes over pictures, kept apart by a key such as the prompt.

    attributes: those that are counted, with the classes of the classifier that reads them.
    """

    def __init__(self, attributes: Sequence[Attribute] = STANDARD) -> None:
        self.attributes = tuple(ordered(attributes))
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.pictures = 0
        self.without_face = 0
        self.uncertain = 0
        self.readings = 0
        self._counts: dict[str, dict[str, np.ndarray]] = {}

    def add(self, readings: Sequence[Sequence[FaceBars]], key: str = "") -> None:
        """Count one reading for each picture; its first face is the largest.

        key: what the pictures have in common, such as their prompt; see `bias`.
        Raises FairAdapterError for an attribute or class that these statistics do not count; then none of the
        readings is counted.
        """
        added = {a.name: np.zeros(len(a), dtype=np.int64) for a in self.attributes}
        largest = [faces[0] for faces in readings if faces]
        for bar in (bar for face in largest for bar in face.bars):
            if bar.attribute not in added:
                names = ", ".join(added)
                raise FairAdapterError(f"statistics: expected readings of {names}, found {bar.attribute}")
            added[bar.attribute][self.attribute(bar.attribute).index(bar.label)] += 1
        counts = self._counts.setdefault(key, {a.name: np.zeros(len(a), np.int64) for a in self.attributes})
        for name, values in added.items():
            counts[name] += values
        self.pictures += len(readings)
        self.without_face += len(readings) - len(largest)
        self.readings += sum(len(face.bars) for face in largest)
        self.uncertain += sum(not bar.certain for face in largest for bar in face.bars)

    def attribute(self, name: str) -> Attribute:
        """The attribute of that name. Raises FairAdapterError for one that is not counted."""
        for attribute in self.attributes:
            if attribute.name == name:
                return attribute
        names = ", ".join(a.name for a in self.attributes)
        raise FairAdapterError(f"statistics: expected one of {names}, found {name!r}")

    @property
    def faces(self) -> int:
        """Pictures with a face."""
        return self.pictures - self.without_face

    @property
    def keys(self) -> tuple[str, ...]:
        """In the order of their first pictures."""
        return tuple(self._counts)

    def counts(self, attribute: str) -> dict[str, int]:
        """class -> number of faces, over all keys."""
        known = self.attribute(attribute)
        return dict(zip(known.classes, self._total(known).tolist()))

    def bias(self, attribute: str) -> float | None:
        """The paper's metric: mean over keys (prompts) with a face of the bias of their shares; None without.

        One key alone is the bias of its pictures; many prompts of one picture each score near the maximum.
        """
        known = self.attribute(attribute)
        rows = [c[known.name] for c in self._counts.values() if c[known.name].sum()]
        return float(bias(frequencies(np.stack(rows))).mean()) if rows and len(known) > 1 else None

    def bias_floor(self, attribute: str) -> float | None:
        """Mean `bias` of a perfectly fair model with as many faces of each key; None without a face."""
        known = self.attribute(attribute)
        faces = [int(counts[known.name].sum()) for counts in self._counts.values()]
        floors = [bias_floor(n, len(known)) for n in faces if n] if len(known) > 1 else []
        return sum(floors) / len(floors) if floors else None

    def target_error(self, target: TargetDistribution, attribute: str) -> float | None:
        """Mean distance of the shares from the target's; None without a face or without a target for it."""
        known = self.attribute(attribute)
        total = self._total(known)
        aims = class_aims(known, target)
        return float(target_error(frequencies(total), np.array(aims))) if total.sum() and aims else None

    def measure(self, target: TargetDistribution | None = None) -> list[ShareRow]:
        """One row for each class of each attribute, over all keys together."""
        rows = []
        for attribute in self.attributes:
            total = self._total(attribute)
            n, aims = int(total.sum()), class_aims(attribute, target)
            floor = bias_floor(n, len(attribute)) if n and len(attribute) > 1 else None
            for index, (label, count) in enumerate(zip(attribute.classes, total.tolist())):
                low, high = wilson_interval(count, n)
                share, aim = (count / n if n else 0.0), (aims[index] if aims else None)
                colour = attribute.looks[index].colour
                rows.append(ShareRow(attribute.name, label, count, n, share, low, high, aim, floor, colour))
        return rows

    def note(self) -> str:
        """What so many faces can say, in a sentence or two."""
        if not self.faces:
            return "No face yet."
        unsure = f" {self.uncertain} of {self.readings} readings are uncertain." if self.uncertain else ""
        return sample_note(self.faces) + unsure

    def bias_note(self) -> str:
        """`bias` of each attribute beside that of a fair model, in a sentence; empty without a face."""
        found = [(a.name, self.bias(a.name), self.bias_floor(a.name)) for a in self.attributes]
        parts = [
            f"{name} {value:.2f} (a fair model: {floor:.2f})"
            for name, value, floor in found
            if value is not None
        ]
        groups = " (mean of the groups)" if len(self.keys) > 1 else ""
        return f"Bias{groups}: {', '.join(parts)}." if parts else ""

    def to_csv(self, target: TargetDistribution | None = None) -> str:
        """`measure` as CSV with a header line; shares with 6 decimals."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in self.measure(target):
            table = row.to_dict()
            values = [table[name] for name in COLUMNS]
            writer.writerow([f"{v:.6f}" if isinstance(v, float) else "" if v is None else v for v in values])
        return out.getvalue()

    def draw(
        self, target: TargetDistribution | None = None, width: int = 480, dark: bool = False
    ) -> Image.Image:
        """The shares as a picture `width` px wide: bars, intervals, target lines, and the notes below."""
        shares = [
            ClassShare(r.attribute, r.label, r.share, r.low, r.high, r.colour, r.target)
            for r in self.measure(target)
        ]
        counted = f"{self.faces} faces in {self.pictures} pictures."
        texts = [text for text in (counted, self.note(), self.bias_note()) if text]
        bars, notes = draw_shares(shares, width, dark=dark), draw_notes(texts, width, dark=dark)
        sheet = Image.new("RGB", (width, bars.height + notes.height))
        sheet.paste(bars, (0, 0))
        sheet.paste(notes, (0, bars.height))
        return sheet

    # ---- JSON

    def to_dict(self) -> dict[str, Any]:
        """JSON form, read back by `from_dict`."""
        return {
            "attributes": [{"name": a.name, "classes": list(a.classes)} for a in self.attributes],
            "pictures": self.pictures,
            "without_face": self.without_face,
            "readings": self.readings,
            "uncertain": self.uncertain,
            "counts": {
                key: {name: values.tolist() for name, values in table.items()}
                for key, table in self._counts.items()
            },
        }

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> FairnessStatistics:
        """Raises FairAdapterError for anything that `to_dict` does not write."""
        try:
            statistics = cls([Attribute(a["name"], tuple(a["classes"])) for a in table["attributes"]])
            for name in ("pictures", "without_face", "readings", "uncertain"):
                setattr(statistics, name, _count(table[name]))
            for key, counts in table["counts"].items():
                rows = {a.name: [_count(v) for v in counts[a.name]] for a in statistics.attributes}
                if any(len(rows[a.name]) != len(a) for a in statistics.attributes):
                    raise ValueError(f"counts of '{key}' for other classes")
                statistics._counts[str(key)] = {n: np.array(v, dtype=np.int64) for n, v in rows.items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FairAdapterError(
                f"statistics: expected what FairnessStatistics.to_dict writes, found {error!r}; start anew"
            ) from error
        return statistics

    # ---- parts

    def _total(self, attribute: Attribute) -> np.ndarray:
        """Faces of each class over all keys, (K,)."""
        rows = [counts[attribute.name] for counts in self._counts.values()]
        return np.sum(rows, axis=0) if rows else np.zeros(len(attribute), dtype=np.int64)


def counted_attributes(found: Mapping[str, Sequence[str]]) -> tuple[Attribute, ...]:
    """Attributes that hold the classes found: ours where they fit, others with the classes as they came.

    found: attribute -> classes, as read off stored readings.
    """
    result = []
    for name, classes in found.items():
        fitting = [a for a in TABLE if a.name == name and set(classes) <= set(a.classes)]
        result.append(fitting[0] if fitting else Attribute(name, tuple(dict.fromkeys(classes))))
    return tuple(ordered(result))


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"expected a count, found {value!r}")
    return value
