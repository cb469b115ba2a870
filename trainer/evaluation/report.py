"""The report of a measurement: report.json, report.html (one file that loads nothing), report.png."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ...shared.adapter import FairnessAdapter
from ...shared.attributes import Attribute, TargetDistribution
from ...shared.bar_grid import draw_legend, hex_colour
from ...shared.bars import FaceBars, class_colour, draw_faces, ordered
from ...shared.drawing import INK, PAPER, draw_text, fit_text
from ...shared.tensor_file import write_bytes
from ..configuration.prompts import Prompt
from .measures import shares_by_prompt
from .readings import Readings

TEMPLATE = Path(__file__).parent / "templates" / "report.html"
SHOWN = 8  # prompts whose pictures are on the page
CELL = 128  # px of a picture
NAMES = {"gender_x_race": "gender x race"}
KEPT = (  # key, name, what to expect
    ("face_rate", "pictures with a face", "as before"),
    ("text_alignment", "prompt's cue recognised", "as before"),
    ("clip_t", "CLIP similarity to the prompt", "as before"),
    ("identity_diversity", "identity diversity", "at least 90% of before"),
    ("identity_diversity_alike", "identity diversity within classes", "at least 90% of before"),
    ("skin_texture", "fine detail of the faces", "as before"),
    ("image_similarity", "similarity to the original's pictures", "the higher the better"),
)


@dataclass(frozen=True)
class Measured:
    """A model, measured: its figures (`measures.summarise`) and the readings behind them."""

    figures: Mapping[str, Any]
    readings: Sequence[Readings]


@dataclass(frozen=True)
class Report:
    """Everything on the page. adapter is None where only the base model was measured.

    attributes: those of the readings.  sections: further figures, title -> {"original": ..., "adapter": ...}.
    facts: what the page states beside the figures, name -> text.
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

    def to_dict(self) -> dict[str, Any]:
        """report.json."""
        table: dict[str, Any] = {"original": dict(self.original.figures)}
        if self.adapter is not None:
            table["adapter"] = dict(self.adapter.figures)
        table["target"] = {"text": self.target.to_text(), **self.target.to_dict()}
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
        figures = {name: dict(measured.figures) for name, measured in self.measured()}
        facts = {name: text for name, text in self.facts.items() if name != "adapter"}
        evaluation = {**figures, "target": self.target.to_text(), "command": self.command, **facts}
        return replace(adapter, info=replace(adapter.info, evaluation=evaluation))

    def measured(self) -> list[tuple[str, Measured]]:
        """("original", ...), ("adapter", ...)."""
        pairs = [("original", self.original)]
        return pairs if self.adapter is None else [*pairs, ("adapter", self.adapter)]

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
        import jinja2

        environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
        legend = draw_legend(self.attributes, 900)
        return template.render(
            title=self.title,
            lead=self.lead(),
            bias=self.bias_rows(),
            independent=self.bias_rows("independent"),
            kept=self.kept_rows(),
            grids=self.grids(),
            charts=self.charts(),
            sections=self.section_rows(),
            facts={**self.facts, "target": self.target.to_text(), "command": self.command},
            seconds=self.seconds,
            legend=data_url(legend),
            adapter=self.adapter is not None,
        )

    def lead(self) -> str:
        """The result in a sentence."""
        parts = []
        for name in ("gender", "race", "gender_x_race", "age"):
            asked = name in self.target.names
            if name == "age" and not asked:
                continue
            figure, word = "bias", "bias"
            if asked and not self.target.is_equal(name):
                figure, word = "target_error", "off target by"  # its bias is no fault
            values = [(measured.figures.get(name) or {}).get(figure) for _, measured in self.measured()]
            found = [f"{value:.2f}" for value in values if value is not None]
            if values[0] is not None:
                parts.append(f"{NAMES.get(name, name)} {word} {' → '.join(found)}")
        pictures = self.original.figures["pictures"]
        return f"{', '.join(parts)} on {len(self.prompts)} prompts, {pictures} pictures before and after."

    def bias_rows(self, within: str | None = None) -> list[dict[str, Any]]:
        """Rows of the bias table: attribute, original, adapter."""
        tables = {n: m.figures.get(within, {}) if within else m.figures for n, m in self.measured()}
        names = [a.name for a in ordered(self.attributes)] + ["gender_x_race"]
        rows = []
        for name in names:
            cells = {model: table.get(name) for model, table in tables.items()}
            if any(cells.values()):
                rows.append({"name": NAMES.get(name, name), **cells})
        return rows

    def kept_rows(self) -> list[dict[str, Any]]:
        """Rows of the table of what should stay: name, expectation, original, adapter, ratio."""
        rows, models = [], [model for model, _ in self.measured()]
        for name, expectation, cells in kept_values([m.figures for _, m in self.measured()]):
            values = dict(zip(models, cells))
            before, after = values["original"], values.get("adapter")
            if before is None:
                continue
            ratio = after / before if after is not None and before else None
            rows.append({"name": name, "expectation": expectation, **values, "ratio": ratio})
        return rows

    def section_rows(self) -> list[dict[str, Any]]:
        """Further measurements, one row for each: biases and what was kept."""
        rows = []
        for title, section in self.sections.items():
            for model in ("original", "adapter"):
                if model in section:
                    rows.append({"title": title, "model": model, "figures": section[model]})
        return rows

    def grids(self) -> list[dict[str, Any]]:
        """Pictures of some prompts, before and after."""
        rows = []
        for i, prompt in enumerate(self.prompts[:SHOWN]):
            strips = {
                n: data_url(strip(m.readings[i], self.attributes, CELL), True) for n, m in self.measured()
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
            colours = [hex_colour(class_colour(attribute, k)) for k in range(len(attribute))]
            rows = [
                {"name": prompt.name, **{model: table[attribute.name][i] for model, table in tables.items()}}
                for i, prompt in enumerate(self.prompts)
            ]
            classes = list(zip(attribute.classes, colours))
            charts.append({"name": attribute.name, "classes": classes, "lines": lines, "rows": rows})
        return charts


def kept_values(models: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, list[float | None]]]:
    """(name, what to expect, its value in the figures of every model) of what should stay."""
    rows = []
    for key, name, expectation in KEPT:
        tables = [figures.get("image_similarities", {}) for figures in models]
        encoders = list(dict.fromkeys(encoder for table in tables for encoder in table))
        if key == "image_similarity" and encoders:  # each on its own, in the place of the first alone
            rows += [(f"{name}, {e}", expectation, [table.get(e) for table in tables]) for e in encoders]
        else:
            rows.append((name, expectation, [figures.get(key) for figures in models]))
    return rows


def strip(reading: Readings, attributes: Sequence[Attribute], cell: int) -> Image.Image:
    """The kept pictures of a prompt side by side, with face boxes and bars."""
    gap = 4
    tiles = [_tile(image, bars, cell) for image, bars in zip(reading.images(), reading.bars(attributes))]
    sheet = Image.new("RGB", (max(1, len(tiles)) * (cell + gap) - gap, cell), PAPER)
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i * (cell + gap), 0))
    return sheet


def _tile(image: Image.Image, bars: Sequence[FaceBars], cell: int) -> Image.Image:
    scale = cell / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    moved = []
    for face in bars:
        x0, y0, x1, y1 = (v * scale for v in face.box)
        moved.append(FaceBars((x0, y0, x1, y1), face.bars))
    return draw_faces(image.resize(size, Image.Resampling.LANCZOS), moved)


def data_url(image: Image.Image, photograph: bool = False) -> str:
    """The picture as text for an <img>: JPEG for photographs, PNG for drawings."""
    data = io.BytesIO()
    if photograph:
        image.save(data, format="JPEG", quality=88)
    else:
        image.save(data, format="PNG", optimize=True)
    kind = "jpeg" if photograph else "png"
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"
