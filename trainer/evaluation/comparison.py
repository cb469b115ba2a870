"""Several adapters and base models side by side: comparison.json and comparison.html, which loads nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...shared.attributes import Attribute
from ...shared.bar_grid import draw_legend
from ...shared.bars import ordered
from ...shared.tensor_file import write_bytes
from ..configuration.prompts import Prompt
from .published import NOTE, SOURCE, TABLES
from .report import CELL, NAMES, SHOWN, Measured, data_url, kept_values, strip

TEMPLATE = Path(__file__).parent / "templates" / "comparison.html"


@dataclass(frozen=True)
class Column:
    """A model, with an adapter or without.  target: what its shares are held against, as text."""

    name: str
    measured: Measured
    target: str


@dataclass(frozen=True)
class Comparison:
    """columns: of the same prompts and noises.  attributes: those of the readings."""

    title: str
    prompts: Sequence[Prompt]
    attributes: Sequence[Attribute]
    columns: Sequence[Column]
    command: str
    facts: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """comparison.json. The published tables are under a key of their own."""
        return {
            "columns": {c.name: {"target": c.target, **c.measured.figures} for c in self.columns},
            "prompts": [p.text for p in self.prompts],
            "command": self.command,
            "facts": dict(self.facts),
            "published": {
                "source": SOURCE,
                "note": NOTE,
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
        import jinja2

        environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
        return template.render(
            title=self.title,
            columns=self.columns,
            bias=self.bias_rows(),
            independent=self.bias_rows("independent"),
            kept=self.kept_rows(),
            grids=self.grids(),
            legend=data_url(draw_legend(self.attributes, 900)),
            facts={**self.facts, "command": self.command},
            tables=TABLES,
            note=NOTE,
            source=SOURCE,
        )

    def bias_rows(self, within: str | None = None) -> list[tuple[str, list[Any]]]:
        """(attribute, its figures in every column); those that no column has are left out."""
        tables = [c.measured.figures.get(within, {}) if within else c.measured.figures for c in self.columns]
        names = [*(a.name for a in ordered(self.attributes)), "gender_x_race"]
        rows = [(NAMES.get(name, name), [table.get(name) for table in tables]) for name in names]
        return [(name, cells) for name, cells in rows if any(cells)]

    def kept_rows(self) -> list[tuple[str, list[float | None]]]:
        """(measure, its value in every column)."""
        rows = kept_values([c.measured.figures for c in self.columns])
        return [(name, cells) for name, _, cells in rows if any(cell is not None for cell in cells)]

    def grids(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """(prompt, [(column, its pictures)]) of some prompts, the same noises above each other."""
        return [
            (
                prompt.text,
                [
                    (c.name, data_url(strip(c.measured.readings[i], self.attributes, CELL), True))
                    for c in self.columns
                ],
            )
            for i, prompt in enumerate(self.prompts[:SHOWN])
        ]
