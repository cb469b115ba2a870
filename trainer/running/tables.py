"""Tables on the terminal: rich where it is installed, aligned text elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Prints ``rows`` under ``columns``; a rich table on a terminal, plain columns in pipes and files."""
    if sys.stdout.isatty():
        try:
            from rich.console import Console
            from rich.markup import escape
            from rich.table import Table
        except ImportError:
            pass
        else:
            table = Table(title=escape(title) or None)
            for column in columns:
                table.add_column(escape(column))
            for row in rows:
                table.add_row(*(escape(cell) for cell in row))
            Console().print(table)
            return
    widths = [max(len(line[i]) for line in (columns, *rows)) for i in range(len(columns))]
    for line in [title] if title else []:
        print(line)
    for line in (columns, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
