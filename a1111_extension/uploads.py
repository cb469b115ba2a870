"""A table of targets from the browser into the user's folder of adapters, where nothing is overwritten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..shared.attributes import KNOWN, Attribute
from ..shared.errors import FairAdapterError, one_line
from ..shared.table_files import TABLES, read_table
from ..shared.tensor_file import write_bytes
from . import views
from .service import FairService


def add_table(service: FairService, upload: Any) -> str:
    """Keep an uploaded CSV file under its own name, if it reads; HTML that says so, or why not.

    upload: the path of a temporary file, or an object with it as `name`; None where it was taken back.
    """
    if upload is None:
        return ""
    path = Path(str(getattr(upload, "name", upload)))
    name = one_line(path.name, 120)
    try:
        if path.suffix.lower() != TABLES or not service.tables.folders:
            raise FairAdapterError(f"{name}: expected a {TABLES} file; save it as CSV with commas, in UTF-8")
        rows = read_table(path, _nameable(service), name).rows
        target = service.tables.folders[0] / path.with_suffix(TABLES).name
        write_bytes(target, path.read_bytes())
    except (FairAdapterError, OSError) as error:
        return service.problem(error)
    return views.message(
        [f"{name}: {len(rows)} rows, now in the menu 'Targets by prompt' after Refresh"], "info"
    )


def _nameable(service: FairService) -> list[Attribute]:
    """Attributes of all adapters, then ours that none has."""
    found = [a for entry in service.library.summaries() for a in entry.attributes]
    return list({a.name: a for a in reversed([*found, *KNOWN])}.values())
