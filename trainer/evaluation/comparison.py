"""Several adapters and base models side by side: comparison.json and comparison.html, which loads nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...shared.attributes import JOINT, PAIR, Attribute, TargetDistribution
from ...shared.bar_grid import draw_legend
from ...shared.drawing import data_url
from ...shared.tensor_file import write_bytes
from ..configuration.prompts import Prompt
from .pages import render
from .published import NOTE, SOURCE, TABLES
from .report import CELL, SHOWN, Measured, strip
from .rows import FEW, NAMES, KeptRow, SkewRow, counted, few_prompts, kept_rows, skew_rows


@dataclass(frozen=True)
class Column:
    """A model, with an adapter or without.

    target: what its shares are held against; None for a base model.  latents: shape of its noises.
    """

    name: str
    measured: Measured
    target: TargetDistribution | None
    latents: tuple[int, ...]

    @property
    def asked(self) -> str:
        """The target as text."""
        return "-" if self.target is None else self.target.to_text()


@dataclass(frozen=True)
class Comparison:
    """columns: of the same prompts, and of the same noises where these fit.  attributes: of the readings."""

    title: str
    prompts: Sequence[Prompt]
    attributes: Sequence[Attribute]
    columns: Sequence[Column]
    command: str
    facts: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """comparison.json. The published tables are under a key of their own."""
        return {
            "columns": {c.name: {"target": c.asked, **c.measured.figures} for c in self.columns},
            "prompts": [p.text for p in self.prompts],
            "command": self.command,
            "facts": dict(self.facts),
            "published": {
                "source": SOURCE,
                "note": f"{NOTE} {self.ceilings()}",
                "tables": {t.title: [list(t.columns), *map(list, t.rows)] for t in TABLES},
            },
        }

    def write(self, folder: Path) -> list[Path]:
        """Write both files. Raises FairAdapterError if they can't be."""
        files = {
            "comparison.json": (json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n").encode(),
            "comparison.html": self.to_html().encode(),
        }
        return [write_bytes(folder / name, data, overwrite=True) for name, data in files.items()]

    def to_html(self) -> str:
        """The page, complete in itself."""
        return render(
            "comparison.html",
            title=self.title,
            lead=self.lead(),
            columns=self.columns,
            skew=self.skew(),
            independent=self.skew("independent"),
            kept=self.kept(),
            few=FEW if self.few else "",
            same_noises=self.same_noises,
            grids=self.grids(),
            legend=data_url(draw_legend(self.attributes, 900)),
            facts={**self.facts, "command": self.command},
            tables=TABLES,
            note=NOTE,
            ceilings=self.ceilings(),
            source=SOURCE,
        )

    @property
    def same_noises(self) -> bool:
        """Whether the pictures of all models began with the same noises: their latents have one shape."""
        return len({column.latents for column in self.columns}) < 2

    def lead(self) -> str:
        """What is compared, in a sentence or two."""
        prompts = counted(len(self.prompts), "prompt")
        count = f"{counted(len(self.columns), 'model')} on the same {prompts}"
        if self.same_noises:
            return f"{count} and noises."
        shapes: dict[tuple[int, ...], list[str]] = {}
        for column in self.columns:
            shapes.setdefault(column.latents, []).append(column.name)
        groups = [f"{', '.join(names)} ({' x '.join(map(str, s))})" for s, names in shapes.items()]
        return (
            f"{count}. Latents of different shapes begin with different noises, so that only models of the "
            f"same shape share theirs: {' and '.join(groups)}."
        )

    def ceilings(self) -> str:
        """The largest possible biases with the classes at hand."""
        classes = {a.name: len(a) for a in self.attributes}
        if set(JOINT) <= set(classes):
            classes[PAIR] = math.prod(classes[name] for name in JOINT)
        most = [f"{NAMES.get(name, name)} {2 / count:.2f}" for name, count in classes.items()]
        return f"With the classes measured here biases are at most: {', '.join(most)}."

    def skew(self, within: str | None = None) -> list[SkewRow]:
        """Bias, and how far off their target the adapters are that have an unequal one.

        within: "independent" for that classifier's.
        """
        targets = [column.target for column in self.columns]
        return skew_rows(self._figures(), self.attributes, targets, within)

    def kept(self) -> list[KeptRow]:
        """What should stay as it was."""
        return kept_rows(self._figures())

    @property
    def few(self) -> bool:
        """Whether there are too few prompts for good intervals."""
        return few_prompts(self._figures())

    def _figures(self) -> list[Mapping[str, Any]]:
        return [column.measured.figures for column in self.columns]

    def grids(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """(prompt, [(column, its pictures)]) of some prompts, the same noises above each other."""
        return [
            (
                prompt.text,
                [
                    (c.name, data_url(strip(c.measured.readings[i], self.attributes, CELL), "JPEG"))
                    for c in self.columns
                ],
            )
            for i, prompt in enumerate(self.prompts[:SHOWN])
        ]
