"""The report of a measurement: report.json, report.html (one file that loads nothing), report.png."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ...shared.adapter import FairnessAdapter
from ...shared.attributes import JOINT, PAIR, Attribute, TargetDistribution, ordered, ordered_figures
from ...shared.bar_grid import draw_legend, hex_colour
from ...shared.bars import FaceBars, draw_faces, resized
from ...shared.drawing import INK, PAPER, data_url, draw_text, fit_text
from ...shared.tensor_file import write_bytes
from ..configuration.prompts import Prompt
from .measures import shares_by_prompt
from .pages import render
from .prompt_targets import PromptTargets
from .readings import Readings
from .rows import FEW, NAMES, Aim, Figures, counted, few_prompts, kept_rows, parts, skew_rows, uneven

SHOWN = 8  # prompts whose pictures are on the page
CELL = 128  # px of a picture


@dataclass(frozen=True)
class Measured:
    """A model, measured: its figures (`measures.summarise`) and the readings behind them."""

    figures: Figures
    readings: Sequence[Readings]


@dataclass(frozen=True)
class Report:
    """Everything on the page. adapter is None where only the base model was measured.

    attributes: those of the readings.  sections: further figures, title -> {"original": ..., "adapter": ...}.
    facts: what the page states beside the figures, name -> text.
    own: the targets of prompts that each have their own; target is their mean then.
    """

    title: str
    prompts: Sequence[Prompt]
    attributes: Sequence[Attribute]
    target: TargetDistribution
    original: Measured
    adapter: Measured | None
    seconds: Mapping[str, float]
    command: str
    facts: Mapping[str, str] = field(default_factory=dict)
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    own: PromptTargets | None = None

    @property
    def aim(self) -> Aim:
        """What shares are held against: the target, or each prompt's own."""
        return self.target if self.own is None else self.own.targets

    def to_dict(self) -> dict[str, Any]:
        """report.json."""
        table: dict[str, Any] = {"original": dict(self.original.figures)}
        if self.adapter is not None:
            table["adapter"] = dict(self.adapter.figures)
        table["target"] = {"text": self.target.to_text(), **self.target.to_dict()}
        if self.own is not None:
            table["prompt_targets"] = self.own.to_dict(self.prompts)
        table["seconds"] = {name: round(value, 1) for name, value in self.seconds.items()}
        table["command"] = self.command
        table["facts"] = dict(self.facts)
        if self.sections:
            table["sections"] = {title: dict(section) for title, section in self.sections.items()}
        prompts = [p.text for p in self.prompts]
        table["shares_by_prompt"] = {"prompts": prompts} | {
            name: shares_by_prompt(measured.readings, self.attributes) for name, measured in self.measured()
        }
        return table

    def record(self, adapter: FairnessAdapter) -> FairnessAdapter:
        """The adapter with these figures in what its file says about itself, for the hosts to show."""
        figures = {name: dict(table) for name, table in self.models().items()}
        facts = {name: text for name, text in self.facts.items() if name != "adapter"}
        evaluation = {**figures, "target": self.target.to_text(), "command": self.command, **facts}
        return replace(adapter, info=replace(adapter.info, evaluation=evaluation))

    def measured(self) -> list[tuple[str, Measured]]:
        """("original", ...), ("adapter", ...)."""
        pairs = [("original", self.original)]
        return pairs if self.adapter is None else [*pairs, ("adapter", self.adapter)]

    def models(self) -> dict[str, Figures]:
        """The figures of these."""
        return {name: measured.figures for name, measured in self.measured()}

    def write(self, folder: Path) -> list[Path]:
        """Write the three files. Raises FairAdapterError if they can't be."""
        picture = io.BytesIO()
        self.overview().save(picture, format="PNG")
        files = {
            "report.json": (json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n").encode(),
            "report.html": self.to_html().encode(),
            "report.png": picture.getvalue(),
        }
        return [write_bytes(folder / name, data, overwrite=True) for name, data in files.items()]

    # ---- pictures

    def overview(self, prompts: int = 4) -> Image.Image:
        """Some prompts before and after, the same noises above each other, with bars and legend."""
        strips: list[tuple[str, Image.Image]] = []
        for i in range(min(prompts, len(self.prompts))):
            for name, measured in self.measured():
                label = f"{self.prompts[i].name}: {'original' if name == 'original' else 'with the adapter'}"
                strips.append((label, strip(measured.readings[i], self.attributes, CELL)))
        width = max((image.width for _, image in strips), default=CELL) + 32
        legend = draw_legend(self.attributes, width)
        line = 26
        height = sum(image.height + line + 6 for _, image in strips) + legend.height + 20
        sheet = Image.new("RGB", (width, height), PAPER)
        y = 10
        for label, image in strips:
            draw_text(sheet, (16, y), fit_text(label, 16, width - 32), 16, INK)
            sheet.paste(image, (16, y + line - 4))
            y += image.height + line + 6
        sheet.paste(legend, (0, y + 4))
        return sheet

    # ---- page

    def to_html(self) -> str:
        """The page, complete in itself."""
        return render(
            "report.html",
            title=self.title,
            lead=self.lead(),
            measured=self.tables(self.models()),
            grids=self.grids(),
            charts=self.charts(),
            sections={title: self.tables(section) for title, section in self.sections.items()},
            facts={**self.facts, "target": self.target.to_text(), "command": self.command},
            seconds=self.seconds,
            few=FEW,
            legend=data_url(draw_legend(self.attributes, 900)),
            adapter=self.adapter is not None,
        )

    def lead(self) -> str:
        """The result in a sentence."""
        sentence = []
        for name in ordered_figures([*(a.name for a in self.attributes), PAIR]):
            if not set(parts(name)) & {*JOINT, *self.target.names}:
                continue  # nobody asked for it
            off = uneven(self.aim, name)  # its bias is no fault then
            if not off and any(uneven(self.aim, part) for part in parts(name)):
                continue  # nothing is asked of the pair, and one of them shall be unequal
            figure, word = ("target_error", "off target by") if off else ("bias", "bias")
            values = [(measured.figures.get(name) or {}).get(figure) for _, measured in self.measured()]
            found = [f"{value:.2f}" for value in values if value is not None]
            if values[0] is not None:
                sentence.append(f"{NAMES.get(name, name)} {word} {' → '.join(found)}")
        pictures = counted(self.original.figures["pictures"], "picture")
        if self.adapter is not None:
            pictures += " before and after"
        return f"{', '.join(sentence)} on {counted(len(self.prompts), 'prompt')}, {pictures}."

    def tables(self, models: Mapping[str, Figures]) -> dict[str, Any]:
        """The rows of everything that was measured of "original" and "adapter" on some prompts."""
        columns = list(models.values())
        targets = [self.aim] * len(columns)
        counts = [counted(columns[0][f"{what}s"], what) for what in ("prompt", "picture")]
        return {
            "extent": ", ".join(counts),
            "skew": skew_rows(columns, self.attributes, targets),
            "independent": skew_rows(columns, self.attributes, targets, "independent"),
            "kept": kept_rows(columns),
            "few": few_prompts(columns),
        }

    def grids(self) -> list[dict[str, Any]]:
        """Pictures of some prompts, before and after."""
        rows = []
        for i, prompt in enumerate(self.prompts[:SHOWN]):
            strips = {
                n: data_url(strip(m.readings[i], self.attributes, CELL), "JPEG") for n, m in self.measured()
            }
            rows.append({"prompt": prompt.text, **strips})
        return rows

    def charts(self) -> list[dict[str, Any]]:
        """For each attribute the share of each class by prompt, and the target's lines."""
        charts = []
        tables = {n: shares_by_prompt(m.readings, self.attributes) for n, m in self.measured()}
        for attribute in ordered(self.attributes):
            lines: list[float] = []
            if attribute.name in self.target.names:
                marginal = self.target.marginal(attribute.name)
                lines = [float(marginal[: k + 1].sum()) for k in range(len(attribute) - 1)]
            colours = [hex_colour(look.colour) for look in attribute.looks]
            rows = [
                {"name": prompt.name, **{model: table[attribute.name][i] for model, table in tables.items()}}
                for i, prompt in enumerate(self.prompts)
            ]
            classes = list(zip(attribute.classes, colours))
            charts.append({"name": attribute.name, "classes": classes, "lines": lines, "rows": rows})
        return charts


def strip(reading: Readings, attributes: Sequence[Attribute], cell: int) -> Image.Image:
    """The kept pictures of a prompt side by side, with face boxes and bars."""
    gap = 4
    tiles = [_tile(image, bars, cell) for image, bars in zip(reading.images(), reading.bars(attributes))]
    sheet = Image.new("RGB", (max(1, len(tiles)) * (cell + gap) - gap, cell), PAPER)
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i * (cell + gap), 0))
    return sheet


def _tile(image: Image.Image, bars: Sequence[FaceBars], cell: int) -> Image.Image:
    return draw_faces(*resized(image, bars, cell))
