"""What the nodes say in words: an adapter's description, tables of readings and shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..shared.adapter import FairnessAdapter
from ..shared.attributes import CROSS, TargetDistribution, ordered_figures
from ..shared.bars import FaceBars
from ..shared.evaluation import ADAPTED, ORIGINAL, figures
from ..shared.library import AdapterSummary
from ..shared.statistics import StatisticsSummary
from ..shared.words import DrawnWords


def describe(summary: AdapterSummary) -> str:
    """An adapter in a few lines: what it is for, what it was measured as."""
    if summary.error:
        return summary.error
    lines = [summary.title or summary.name]
    lines += [f"{name}: {value}" for name, value in facts(summary)]
    return "\n".join([*lines, *evaluation_lines(summary.evaluation)])


def facts(summary: AdapterSummary) -> list[tuple[str, str]]:
    """Name and value of what a person chooses an adapter by."""
    rows = [
        ("base model", f"{summary.base} ({summary.architecture})"),
        ("attributes", ", ".join(a.name for a in summary.attributes)),
        ("follows targets" if summary.conditioned else "trained for", trained_for(summary)),
        ("holds", summary.kind),
        ("licence", summary.licence),
        ("author", summary.author),
        ("made", summary.created),
    ]
    return [(name, value) for name, value in rows if value]


def trained_for(summary: AdapterSummary) -> str:
    """The trained target, or the trained range of one that follows targets."""
    if not summary.conditioned:
        return summary.target
    ranges = [
        f"{names} {cell} {100 * low:.3g} to {100 * high:.3g}%"
        for names, limits in summary.trained_range.items()
        for cell, (low, high) in limits.items()
    ]
    return f"{', '.join(ranges) or 'any'}; default {summary.target}"


def evaluation_lines(evaluation: Mapping[str, Any]) -> list[str]:
    """ "gender bias .67 -> .16 (floor .08, 96 faces a prompt)" for each attribute that was measured."""
    before, after = figures(evaluation, ORIGINAL), figures(evaluation, ADAPTED)
    lines = []
    measured = {name: found for name, found in after.items() if found.bias is not None}
    for name in ordered_figures(measured):
        new, old = measured[name], before.get(name)
        before_it = "" if old is None or old.bias is None else f"{old.bias:.2f} -> "
        floor = f" (a fair model scores {new.floor:.2f})" if new.floor is not None else ""
        lines.append(f"{' x '.join(name.split(CROSS))} bias {before_it}{new.bias:.2f}{floor}")
    return lines


def summary_dict(summary: AdapterSummary) -> dict[str, Any]:
    """For our panel in the browser."""
    return {
        "name": summary.name,
        "title": summary.title or summary.name,
        "description": summary.description,
        "error": summary.error,
        "facts": [list(row) for row in facts(summary)] if not summary.error else [],
        "evaluation": evaluation_lines(summary.evaluation),
    }


def applied(adapter: FairnessAdapter, layers: tuple[int, int], tokens: Mapping[str, int], target: str) -> str:
    """What was put onto a model.  layers: LoRA layers matched, and all."""
    parts = [f"{count} soft tokens in {name}" for name, count in tokens.items()]
    parts += [f"{layers[0]} of {layers[1]} LoRA layers matched"] if layers[1] else []
    return f"{adapter.info.name} at {target}: {', '.join(parts) or 'nothing (strength 0 is the base model)'}"


def readings_table(readings: Sequence[Sequence[FaceBars]], attributes: Sequence[str]) -> str:
    """A Markdown table with a line for each face; a picture without one says so."""
    rows = [["picture", "face", *attributes], ["---"] * (2 + len(attributes))]
    for picture, faces in enumerate(readings):
        if not faces:
            rows.append([str(picture + 1), "no face", *("" for _ in attributes)])
        for index, face in enumerate(faces):
            cells = {
                bar.attribute: f"{bar.label} {100 * bar.confidence:.0f}%{'' if bar.certain else ' ?'}"
                for bar in face.bars
            }
            rows.append([str(picture + 1), str(index + 1), *(cells.get(name, "") for name in attributes)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def words_table(drawn: DrawnWords) -> str:
    """A Markdown table with a line for each picture: its classes, what its prompt says, its seed."""
    names = list(drawn.pictures[0].classes)
    rows = [["picture", *names, "phrase", "seed"], ["---"] * (3 + len(names))]
    for number, picture in enumerate(drawn.pictures, 1):
        rows.append([str(number), *picture.classes.values(), picture.phrase, str(picture.seed)])
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), *(f"\n{note}" for note in drawn.notes)])


def shares_table(statistics: StatisticsSummary, target: TargetDistribution | None) -> str:
    """A Markdown table of the shares, and what so many faces can tell."""
    lines = ["| attribute | class | faces | share | 95% interval | target |", "|---|---|---|---|---|---|"]
    for row in statistics.measure(target):
        aim = "" if row.target is None else f"{100 * row.target:.4g}%"
        share = f"{100 * row.share:.0f}% | {100 * row.low:.0f} to {100 * row.high:.0f}%" if row.n else " | "
        lines.append(f"| {row.attribute} | {row.label} | {row.count} of {row.n} | {share} | {aim} |")
    return "\n".join([*lines, "", statistics.note(), statistics.bias_note()]).rstrip()
