"""The figures of a report that matter, on the terminal."""

from __future__ import annotations

from ..running.tables import print_table
from .report import Report
from .rows import FEW


def print_summary(report: Report) -> None:
    """The figures that matter, on the terminal."""
    tables, models = report.tables(report.models()), [name for name, _ in report.measured()]
    adapted = report.adapter is not None
    rows = []
    for prefix, skew in (("", "skew"), ("independent: ", "independent")):
        for row in tables[skew]:
            change = row.last.difference
            cells = [cell.figure.number if cell else "-" for cell in row.cells]
            if adapted:
                cells.append(f"{change.number} {change.interval}" if change else "-")
            rows.append([f"{prefix}{row.name} {row.what}", *cells, f"floor {row.last.floor:.3f}"])
    for row in tables["kept"]:
        cells = [f"{figure.number} {figure.note}".strip() if figure else "-" for figure in row.figures]
        rows.append([row.name, *cells, *([""] if adapted else []), row.expectation])
    columns = ["measure", *models, *(["difference [95%]"] if adapted else []), ""]
    print_table(columns, rows, report.title)
    _print_sections(report)
    if tables["few"]:
        print(f"few prompts, {FEW}")


def _print_sections(report: Report) -> None:
    """A line for each further measurement: every bias and distance to the target before and after."""
    lines = {
        title: {
            f"{row.name} {row.what}": " -> ".join(cell.figure.number if cell else "-" for cell in row.cells)
            for row in report.tables(section)["skew"]
        }
        for title, section in report.sections.items()
    }
    columns = list(dict.fromkeys(name for line in lines.values() for name in line))
    rows = [[title, *(line.get(name, "-") for name in columns)] for title, line in lines.items()]
    if rows:
        print_table(["measured on", *columns], rows, "other prompts and guidance scales")
