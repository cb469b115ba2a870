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
from .metrics import bias_floor, frequencies, sample_note, target_error, wilson_interval

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


@dataclass(frozen=True)
class Tally:
    """Counts of some pictures: attribute -> faces of each class, and how many of what else is counted."""

    counts: Mapping[str, tuple[int, ...]]
    pictures: int = 0
    without_face: int = 0
    readings: int = 0
    uncertain: int = 0


@dataclass
class _Key:
    counts: dict[str, tuple[int, ...]]
    tallies: int = 0


class StatisticsSummary:
    """What was counted, over all keys together: as little to copy however many pictures and keys there were.

    attributes: those that are counted.  pictures, without_face, uncertain, readings: how many of each.
    groups: number of keys.
    """

    def __init__(self, attributes: Sequence[Attribute] = STANDARD) -> None:
        self.attributes = tuple(ordered(attributes))
        self.pictures = self.without_face = self.uncertain = self.readings = self.groups = 0
        self._total = {a.name: [0] * len(a) for a in self.attributes}
        # attribute -> faces n of a key -> keys with as many, and the sum of n times `bias` over them, in
        # whole numbers of sum_{i<j} |n_i - n_j|: exact, so that adding and taking away end where they began
        self._sizes: dict[str, dict[int, list[int]]] = {a.name: {} for a in self.attributes}

    @classmethod
    def of_keys(cls, attributes: Sequence[Attribute], counts: Mapping[str, np.ndarray]) -> StatisticsSummary:
        """The same from counts of many keys at once; how many of what else there is stays to be set.

        counts: attribute -> faces of each class for each of P keys, (P, K) whole numbers.
        """
        summary = cls(attributes)
        for name, table in counts.items():
            summary.groups = len(table)
            summary._total[name] = table.sum(axis=0).tolist()
            n, differences = _spreads(table)
            sizes, place = np.unique(n, return_inverse=True)
            keys = np.bincount(place, minlength=len(sizes))
            summed = np.zeros(len(sizes), dtype=np.int64)
            np.add.at(summed, place, differences)
            rows = zip(sizes.tolist(), keys.tolist(), summed.tolist())
            summary._sizes[name] = {n: [count, total] for n, count, total in rows if n}
        return summary

    def summary(self) -> StatisticsSummary:
        """A copy that stays as it is when more is counted."""
        copy = StatisticsSummary(self.attributes)
        for name in ("pictures", "without_face", "uncertain", "readings", "groups"):
            setattr(copy, name, getattr(self, name))
        copy._total = {name: list(values) for name, values in self._total.items()}
        copy._sizes = {
            name: {n: list(row) for n, row in sizes.items()} for name, sizes in self._sizes.items()
        }
        return copy

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

    def counts(self, attribute: str) -> dict[str, int]:
        """class -> number of faces, over all keys."""
        known = self.attribute(attribute)
        return dict(zip(known.classes, self._total[known.name]))

    def bias(self, attribute: str) -> float | None:
        """The paper's metric: mean over keys (prompts) with a face of the bias of their shares; None without.

        One key alone is the bias of its pictures; many prompts of one picture each score near the maximum.
        """
        known = self.attribute(attribute)
        sizes = self._sizes[known.name]
        if not sizes or len(known) < 2:
            return None
        summed = sum(differences / n for n, (_, differences) in sorted(sizes.items()))
        return summed / (len(known) * (len(known) - 1) / 2) / sum(keys for keys, _ in sizes.values())

    def bias_floor(self, attribute: str) -> float | None:
        """Mean `bias` of a perfectly fair model with as many faces of each key; None without a face."""
        known = self.attribute(attribute)
        sizes = self._sizes[known.name]
        if not sizes or len(known) < 2:
            return None
        summed = sum(keys * bias_floor(n, len(known)) for n, (keys, _) in sorted(sizes.items()))
        return summed / sum(keys for keys, _ in sizes.values())

    def target_error(self, target: TargetDistribution, attribute: str) -> float | None:
        """Mean distance of the shares from the target's; None without a face or without a target for it."""
        known = self.attribute(attribute)
        total = np.array(self._total[known.name])
        aims = class_aims(known, target)
        return float(target_error(frequencies(total), np.array(aims))) if total.sum() and aims else None

    def measure(self, target: TargetDistribution | None = None) -> list[ShareRow]:
        """One row for each class of each attribute, over all keys together."""
        rows = []
        for attribute in self.attributes:
            total = self._total[attribute.name]
            n, aims = sum(total), class_aims(attribute, target)
            floor = bias_floor(n, len(attribute)) if n and len(attribute) > 1 else None
            for index, (label, count) in enumerate(zip(attribute.classes, total)):
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
        groups = " (mean of the groups)" if self.groups > 1 else ""
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


class FairnessStatistics(StatisticsSummary):
    """Counts of classes over pictures, kept apart by a key such as the prompt.

    attributes: those that are counted, with the classes of the classifier that reads them.
    """

    def __init__(self, attributes: Sequence[Attribute] = STANDARD) -> None:
        super().__init__(attributes)
        self._keys: dict[str, _Key] = {}

    def reset(self) -> None:
        """Forget everything."""
        self.__init__(self.attributes)

    def tally(self, readings: Sequence[Sequence[FaceBars]]) -> Tally:
        """The counts of one reading for each picture; its first face is the largest.

        Raises FairAdapterError for an attribute or class that these statistics do not count.
        """
        counts = {a.name: [0] * len(a) for a in self.attributes}
        largest = [faces[0] for faces in readings if faces]
        for bar in (bar for face in largest for bar in face.bars):
            if bar.attribute not in counts:
                names = ", ".join(counts)
                raise FairAdapterError(f"statistics: expected readings of {names}, found {bar.attribute}")
            counts[bar.attribute][self.attribute(bar.attribute).index(bar.label)] += 1
        return Tally(
            {name: tuple(values) for name, values in counts.items()},
            len(readings),
            len(readings) - len(largest),
            sum(len(face.bars) for face in largest),
            sum(not bar.certain for face in largest for bar in face.bars),
        )

    def add(self, readings: Sequence[Sequence[FaceBars]], key: str = "") -> None:
        """Count one reading for each picture; its first face is the largest.

        key: what the pictures have in common, such as their prompt; see `bias`.
        Raises FairAdapterError for an attribute or class that these statistics do not count; then none of the
        readings is counted.
        """
        self.add_tally(self.tally(readings), key)

    def add_tally(self, tally: Tally, key: str = "") -> None:
        """Count what `tally` gave, under a key. The work does not grow with what was counted before."""
        if key not in self._keys:
            self._keys[key] = _Key({a.name: (0,) * len(a) for a in self.attributes})
            self.groups += 1
        self._keys[key].tallies += 1
        self._change(tally, key, 1)

    def remove_tally(self, tally: Tally, key: str = "") -> None:
        """Take back what `add_tally` counted; a key goes with its last tally."""
        self._change(tally, key, -1)
        self._keys[key].tallies -= 1
        if not self._keys[key].tallies:
            del self._keys[key]
            self.groups -= 1

    @property
    def keys(self) -> tuple[str, ...]:
        """In the order of their first pictures."""
        return tuple(self._keys)

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
                key: {name: list(values) for name, values in kept.counts.items()}
                for key, kept in self._keys.items()
            },
        }

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> FairnessStatistics:
        """Raises FairAdapterError for anything that `to_dict` does not write."""
        try:
            statistics = cls([Attribute(a["name"], tuple(a["classes"])) for a in table["attributes"]])
            for key, counts in table["counts"].items():
                rows = {a.name: tuple(_count(v) for v in counts[a.name]) for a in statistics.attributes}
                if any(len(rows[a.name]) != len(a) for a in statistics.attributes):
                    raise ValueError(f"counts of '{key}' for other classes")
                statistics.add_tally(Tally(rows), str(key))
            for name in ("pictures", "without_face", "readings", "uncertain"):
                setattr(statistics, name, _count(table[name]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FairAdapterError(
                f"statistics: expected what FairnessStatistics.to_dict writes, found {error!r}; start anew"
            ) from error
        return statistics

    # ---- parts

    def _change(self, tally: Tally, key: str, sign: int) -> None:
        for name in ("pictures", "without_face", "readings", "uncertain"):
            setattr(self, name, getattr(self, name) + sign * getattr(tally, name))
        counts = self._keys[key].counts
        for name, values in tally.counts.items():
            if any(values):
                before, total = counts[name], self._total[name]
                counts[name] = tuple(old + sign * new for old, new in zip(before, values))
                for index, value in enumerate(values):
                    total[index] += sign * value
                _place(self._sizes[name], before, -1)
                _place(self._sizes[name], counts[name], 1)


def _place(sizes: dict[int, list[int]], counts: tuple[int, ...], sign: int) -> None:
    """Add or take a key of so many faces in each class; see `StatisticsSummary`."""
    n, differences = (int(value[0]) for value in _spreads(np.array([counts])))
    if n:
        row = sizes.setdefault(n, [0, 0])
        row[0] += sign
        row[1] += sign * differences
        if not row[0]:
            del sizes[n]


def _spreads(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum of counts n_k, and sum_{i<j} |n_i - n_j|, of each row.  counts: (P, K).  Returns (P,) and (P,)."""
    # sorted ascending, the i-th is the larger one of i pairs and the smaller one of k - 1 - i
    k = counts.shape[1]
    return counts.sum(axis=1), np.sort(counts, axis=1) @ (2 * np.arange(k) - (k - 1))


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
