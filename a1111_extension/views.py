"""HTML of the panel and the tab. Whatever comes from a file, a prompt or a class name is escaped here.

Colours of text and ground are gradio's own variables, so that light and dark themes both work; the classes
are styled in the repository's style.css.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from PIL import Image

from ..shared.attributes import Attribute, TargetDistribution, ordered, spelled
from ..shared.bar_grid import hex_colour
from ..shared.bars import FaceBars, draw_faces, resized
from ..shared.drawing import data_url
from ..shared.evaluation import ADAPTED, ORIGINAL, Figures, figures
from ..shared.library import AdapterSummary
from ..shared.statistics import ShareRow, StatisticsSummary

TILE = 176  # px of a picture in the panel
SHOWN = 48  # pictures in the panel
DISCLAIMER = (
    "Classes are what a classifier perceives in a drawn face: coarse, sometimes wrong, and nobody's identity."
)


def message(lines: Iterable[str], kind: str = "warning") -> str:
    """Lines for the user, or nothing.  kind: "warning", "error" or "info"."""
    rows = "".join(f"<div>{escape(line)}</div>" for line in lines if line)
    return f'<div class="fair-message fair-{escape(kind)}">{rows}</div>' if rows else ""


def shares(rows: Sequence[ShareRow]) -> str:
    """A bar for each class: its share, the 95% interval as a line, the target as a tick."""
    groups: dict[str, list[ShareRow]] = {}
    for row in rows:
        groups.setdefault(row.attribute, []).append(row)
    return f'<div class="fair-shares">{"".join(_group(name, g) for name, g in groups.items())}</div>'


def _group(name: str, rows: Sequence[ShareRow]) -> str:
    floor = rows[0].floor
    n = rows[0].n
    hint = f"{n} face{'' if n == 1 else 's'}"
    if floor is not None:
        hint += f"; bias of a perfectly fair model: {floor:.2f}"
    head = f'<div class="fair-group-name">{escape(name)} <small>{hint}</small></div>'
    return f'<div class="fair-group">{head}{"".join(_share(row) for row in rows)}</div>'


def _share(row: ShareRow) -> str:
    colour = hex_colour(row.colour)
    target = ""
    if row.target is not None:
        target = f'<i class="fair-target" style="left:{100 * row.target:.2f}%"></i>'
    name = spelled(row.attribute, row.label)
    title = f"{name}: {row.count} of {row.n}, 95% interval {100 * row.low:.0f} to {100 * row.high:.0f}%"
    title += "" if row.target is None else f", target {100 * row.target:.4g}%"
    interval = f"left:{100 * row.low:.2f}%;width:{100 * (row.high - row.low):.2f}%"
    aim = "" if row.target is None else f" <small>of {100 * row.target:.3g}%</small>"
    return (
        f'<div class="fair-share" title="{escape(title)}"><span class="fair-label">{escape(row.label)}</span>'
        f'<span class="fair-track"><b style="width:{100 * row.share:.2f}%;background:{colour}"></b>'
        f'<u style="{interval}"></u>{target}</span>'
        f'<span class="fair-number">{100 * row.share:.0f}%{aim}</span></div>'
    )


def legend(attributes: Sequence[Attribute], target: bool = True) -> str:
    """Colours of the classes in the order of the bars, and the signs."""
    parts = []
    for attribute in ordered(attributes):
        entries = "".join(
            f'<span><i style="background:{hex_colour(look.colour)}"></i>'
            f"{escape(spelled(attribute.name, label))}</span>"
            for label, look in zip(attribute.classes, attribute.looks)
        )
        parts.append(f"<div><em>{escape(attribute.name)}</em>{entries}</div>")
    signs = (
        '<span><i class="fair-hatch"></i>uncertain</span><span><i class="fair-line"></i>95% interval</span>'
    )
    signs += '<span><i class="fair-tick"></i>target</span>' if target else ""
    return f'<div class="fair-legend">{"".join(parts)}<div><em>signs</em>{signs}</div></div>'


Tile = tuple[Image.Image, Sequence[FaceBars], str]  # a picture at most TILE px, its faces, its caption


def tiles(pictures: Sequence[Tile], total: int = 0) -> str:
    """Small copies with boxes and bars.  total: pictures that there are, if more than are given."""
    cells = []
    for image, faces, caption in pictures[:SHOWN]:
        text = escape(describe_faces(faces))
        drawn = draw_faces(image, faces)
        cells.append(
            f'<figure title="{escape(caption)}"><img src="{data_url(drawn, "JPEG")}" alt="{text}">'
            f"<figcaption>{text}</figcaption></figure>"
        )
    more = max(total, len(pictures)) - len(cells)
    rest = f'<p class="fair-soft">and {more} more, all counted in the shares</p>' if more > 0 else ""
    return f'<div class="fair-tiles">{"".join(cells)}</div>{rest}'


def describe_faces(faces: Sequence[FaceBars]) -> str:
    """The largest face of a picture in words."""
    if not faces:
        return "no face"
    words = [f"{bar.label} {bar.confidence:.2f}" + ("" if bar.certain else "?") for bar in faces[0].bars]
    return ", ".join(words)


@dataclass(frozen=True)
class Section:
    """Pictures that are counted together, under one heading.  target: what their shares are compared with."""

    statistics: StatisticsSummary
    pictures: Sequence[Tile]
    heading: str
    notes: Iterable[str] = ()
    target: TargetDistribution | None = None


def panel(
    statistics: StatisticsSummary,
    pictures: Sequence[Tile],
    heading: str,
    notes: Iterable[str] = (),
    target: TargetDistribution | None = None,
) -> str:
    """What stands under the gallery after a generation."""
    return panels([Section(statistics, pictures, heading, notes, target)])


def panels(sections: Sequence[Section]) -> str:
    """The same after a plot: a section for each of its settings, colours and signs once."""
    aimed = any(section.target is not None for section in sections)
    signs = legend(sections[-1].statistics.attributes, aimed)
    body = "".join(_section(section, signs if len(sections) == 1 else "") for section in sections)
    signs = "" if len(sections) == 1 else signs
    return f'<div class="fair-panel">{body}{signs}<p class="fair-soft">{DISCLAIMER}</p></div>'


def _section(section: Section, signs: str) -> str:
    statistics = section.statistics
    n = statistics.pictures
    head = f"<h4>{escape(section.heading)}</h4>{message(section.notes)}"
    if not n:
        return head
    counted = f"{statistics.faces} of {n} picture{'' if n == 1 else 's'} with a face. {statistics.note()}"
    return (
        f'{head}<div class="fair-columns"><div>{shares(statistics.measure(section.target))}'
        f'<p class="fair-soft">{escape(counted)}</p>{signs}</div>{tiles(section.pictures, n)}</div>'
    )


def statistics_view(statistics: StatisticsSummary, target: TargetDistribution | None) -> str:
    """The statistics of past generations."""
    if not statistics.pictures:
        return message(["No picture fits. Generate with Fair Adapter enabled, or change the filter."], "info")
    biases = [(a.name, statistics.bias(a.name)) for a in statistics.attributes]
    known = ", ".join(f"{name} {value:.2f}" for name, value in biases if value is not None)
    prompts = statistics.groups
    summary = (
        f"{statistics.pictures} pictures of {prompts} prompt{'' if prompts == 1 else 's'}, "
        f"{statistics.without_face} without a face. {statistics.note()}"
    )
    mean = f"Bias, mean over prompts (0 is fair): {known}." if known else ""
    return (
        f'<div class="fair-panel">{shares(statistics.measure(target))}'
        f'<p class="fair-soft">{escape(summary)} {escape(mean)}</p>'
        f"{legend(statistics.attributes, target is not None)}</div>"
    )


# ---- library


def library_table(summaries: Sequence[AdapterSummary]) -> str:
    """All adapters in short."""
    if not summaries:
        return message(["No adapter yet: put a .safetensors file into the adapter folder."], "info")
    head = "".join(
        f"<th>{name}</th>" for name in ("adapter", "base model", "target", "kind", "licence", "size")
    )
    return f'<table class="fair-table"><tr>{head}</tr>{"".join(_library_row(s) for s in summaries)}</table>'


def _library_row(summary: AdapterSummary) -> str:
    if summary.error:
        return (
            f'<tr class="fair-broken"><td>{escape(summary.name)}</td>'
            f'<td colspan="4">{escape(summary.error)}</td>'
            f"<td>{size(summary.size)}</td></tr>"
        )
    follows = "any, default " if summary.conditioned else ""
    base = f"{summary.base} ({summary.architecture})"
    cells = (
        summary.name, base, follows + spaced(summary.target), summary.kind, summary.licence or "not stated",
        size(summary.size),
    )  # fmt: skip
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def adapter_card(summary: AdapterSummary) -> str:
    """Everything a file says about itself."""
    if summary.error:
        return message([summary.error], "error")
    classes = "; ".join(f"{a.name}: {', '.join(a.classes)}" for a in summary.attributes)
    ranges = "; ".join(
        f"{name} {', '.join(f'{c} {100 * low:g} to {100 * high:g}%' for c, (low, high) in t.items())}"
        for name, t in summary.trained_range.items()
    )
    follows = "any target" + (f", trained for {ranges}" if ranges else "")
    facts = {
        "file": f"{summary.name}, {size(summary.size)}",
        "base model": f"{summary.base} ({summary.architecture})",
        "holds": summary.kind,
        "attributes": classes,
        "default target": spaced(summary.target),
        "follows": follows if summary.conditioned else "its default target alone",
        "licence": summary.licence or "not stated",
        "author": summary.author,
        "made": summary.created,
    }
    rows = "".join(f"<tr><th>{k}</th><td>{escape(v)}</td></tr>" for k, v in facts.items() if v)
    about = f"<p>{escape(summary.description)}</p>" if summary.description else ""
    return (
        f'<div class="fair-card"><h4>{escape(summary.title)}</h4>{about}'
        f'<table class="fair-table">{rows}</table>{evaluation_table(summary.evaluation)}</div>'
    )


def evaluation_table(evaluation: Mapping[str, Any]) -> str:
    """Bias before and after as the trainer measured it; nothing if the file holds no such figures."""
    original, adapted = figures(evaluation, ORIGINAL), figures(evaluation, ADAPTED)
    if not original:
        return '<p class="fair-soft">The file holds no measurement.</p>'
    rows = []
    for name, before in original.items():
        if before.bias is not None:
            floor = f"{before.floor:.2f}" if before.floor is not None else ""
            cells = (_bias(before), _bias(adapted.get(name)), floor)
            label = name.replace("_x_", " x ")
            rows.append(f"<tr><th>{escape(label)}</th>{''.join(f'<td>{c}</td>' for c in cells)}</tr>")
    heads = ("bias", "base model", "with the adapter", "a fair model scores")
    head = "".join(f"<th>{h}</th>" for h in heads)
    return f'<table class="fair-table fair-evaluation"><tr>{head}</tr>{"".join(rows)}</table>' if rows else ""


def _bias(measured: Figures | None) -> str:
    if measured is None or measured.bias is None:
        return ""
    low_high = measured.interval
    return f"{measured.bias:.2f}" + (f" [{low_high[0]:.2f}, {low_high[1]:.2f}]" if low_high else "")


# ---- small things


def spaced(target: str) -> str:
    """A target's text with room to break lines; it still reads as the same target."""
    return target.replace(";", "; ").replace(",", ", ")


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def thumbnail(image: Image.Image, faces: Sequence[FaceBars]) -> tuple[Image.Image, list[FaceBars]]:
    """The picture with a longer side of TILE px, and its boxes."""
    return resized(image, faces, TILE)
