"""Rows of the tables on pages and terminal, from the figures of several models (`measures.summarise`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...shared.attributes import JOINT, PAIR, Attribute, TargetDistribution, ordered_figures
from ...shared.metrics import FEW_PROMPTS

Figures = Mapping[str, Any]
Aim = TargetDistribution | Sequence[TargetDistribution] | None  # of a model: for all prompts, or of each
NAMES = {PAIR: " x ".join(JOINT)}
FEW = f"fewer than {FEW_PROMPTS} prompts: intervals are probably too narrow"
USED = "used in training"
BIAS = ("bias", "ci95", "floor")
OFF_TARGET = ("target_error", "target_ci95", "target_floor")
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
class Figure:
    """A number and its 95% interval, where it has one.

    few: of so few prompts that the interval is probably too narrow.  note: said beside it.
    signed: a difference.
    """

    value: float
    ci95: Sequence[float] | None = None
    few: bool = False
    note: str = ""
    signed: bool = False

    @property
    def number(self) -> str:
        return self._spelled(self.value)

    @property
    def interval(self) -> str:
        """[low, high], or nothing without one."""
        return "" if self.ci95 is None else f"[{', '.join(self._spelled(end) for end in self.ci95)}]"

    def _spelled(self, value: float) -> str:
        return f"{value:+.3f}" if self.signed else f"{value:.3f}"


@dataclass(frozen=True)
class Cell:
    """What was found of an attribute's classes in a model.

    figure: its bias, or how far its shares are off target.  floor: of a perfect model.
    difference: to the base model; None for one.  before: the base model's own, off the same target.
    """

    figure: Figure
    floor: float
    faces: float
    shares: Mapping[str, float]
    difference: Figure | None
    before: float | None


@dataclass(frozen=True)
class SkewRow:
    """An attribute in every model, None where nothing was found; at least one has it.

    what: "bias" or "off target".
    """

    name: str
    what: str
    cells: Sequence[Cell | None]

    @property
    def last(self) -> Cell:
        """The adapter's beside its base model's, where there is one."""
        return next(cell for cell in reversed(self.cells) if cell is not None)


@dataclass(frozen=True)
class KeptRow:
    """A measure of what should stay in every model, None where it has none."""

    name: str
    expectation: str
    figures: Sequence[Figure | None]


def counted(number: int, word: str) -> str:
    """ "1 prompt", "2 prompts"."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def parts(name: str) -> tuple[str, ...]:
    """The attributes of a figure."""
    return JOINT if name == PAIR else (name,)


def uneven(target: Aim, name: str) -> bool:
    """Whether a target asks for unequal shares of a figure's classes, so that their bias is no fault."""
    if isinstance(target, Sequence):
        return any(uneven(one, name) for one in target)
    if target is None or not set(parts(name)) <= set(target.names):
        return False
    return not target.is_equal(*parts(name))


def skew_rows(
    models: Sequence[Figures],
    attributes: Sequence[Attribute],
    targets: Sequence[Aim],
    within: str | None = None,
) -> list[SkewRow]:
    """The bias of every attribute, then how far the shares are off each model's target where that is unequal.

    within: "independent" for that classifier's.
    """
    names = ordered_figures([*(a.name for a in attributes), PAIR])
    rows = []
    for name in names:
        cells = [_cell(model, within, name, BIAS) for model in models]
        rows.append(SkewRow(NAMES.get(name, name), "bias", cells))
    for name in names:
        cells = [
            _cell(model, within, name, OFF_TARGET) if uneven(target, name) else None
            for model, target in zip(models, targets, strict=True)
        ]
        rows.append(SkewRow(NAMES.get(name, name), "off target", cells))
    return [row for row in rows if any(row.cells)]


def _cell(model: Figures, within: str | None, name: str, keys: tuple[str, str, str]) -> Cell | None:
    value, interval, floor = keys
    table, added = model, model.get("difference", {})
    if within is not None:
        table, added = table.get(within, {}), added.get(within, {})
    found, change = table.get(name), added.get(name)
    if not found or value not in found:
        return None
    few = found["prompts"] < FEW_PROMPTS
    return Cell(
        figure=Figure(found[value], found[interval], few),
        floor=found[floor],
        faces=found["n_per_prompt"],
        shares=found["shares"],
        difference=Figure(change[value], change[interval], few, signed=True) if change else None,
        before=change.get(f"{value}_before") if change else None,
    )


def kept_rows(models: Sequence[Figures]) -> list[KeptRow]:
    """What should stay, as far as a model has it; similarities by each of several image encoders."""
    rows = []
    for key, name, expectation in KEPT:
        tables = [model.get("image_similarities", {}) for model in models]
        encoders = list(dict.fromkeys(encoder for table in tables for encoder in table))
        if key == "image_similarity" and encoders:  # each on its own, in the place of the first alone
            for encoder in encoders:
                figures = [_kept(model, key, encoder) for model in models]
                rows.append(KeptRow(f"{name}, {encoder}", expectation, figures))
        else:
            rows.append(KeptRow(name, expectation, [_kept(model, key) for model in models]))
    return [row for row in rows if any(figure is not None for figure in row.figures)]


def _kept(model: Figures, key: str, encoder: str | None = None) -> Figure | None:
    """A measure, or the similarity by one of several encoders."""
    used = model.get("trained_encoders", ())
    table, intervals = model, model["intervals"]
    if encoder is None:
        note = USED if key == "image_similarity" and used else ""
    else:
        table, intervals = (place.get("image_similarities", {}) for place in (model, intervals))
        key, note = encoder, USED if encoder in used else ""
    if table.get(key) is None:
        return None
    return Figure(table[key], intervals[key], model["prompts"] < FEW_PROMPTS, note)


def few_prompts(models: Iterable[Figures]) -> bool:
    """Whether there are figures of so few prompts that their intervals are probably too narrow."""
    tables = [table for model in models for table in (model, *model.values()) if isinstance(table, Mapping)]
    return any(table["prompts"] < FEW_PROMPTS for table in tables if "prompts" in table)
