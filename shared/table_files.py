"""The tables of targets that a host offers: CSV files beside the adapters, the user's and the shipped one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from .attributes import KNOWN, Attribute
from .errors import FairAdapterError, one_line
from .folders import FileFolders
from .library import SHIPPED
from .phrases import FOLDER as PHRASES
from .target_table import TargetTable

TABLES = ".csv"
MOST_BYTES = 2**23  # what MAX_TABLE characters take at most


class TableLibrary(FileFolders):
    """Folders of tables; the first is the user's. Files are read anew each time: people edit them."""

    def __init__(self, folders: Sequence[Path | str] = (SHIPPED,)) -> None:
        super().__init__(folders, TABLES, "target table")

    def names(self) -> list[str]:
        """As of all folders; tables of phrases have a folder of their own there."""
        return [name for name in super().names() if not name.startswith(f"{PHRASES}/")]

    def load(self, name: str, attributes: Iterable[Attribute] = KNOWN) -> TargetTable:
        """The table of a name. Raises FairAdapterError as `path` and as `read_table`."""
        return read_table(self.path(name), attributes, name)


def read_table(path: Path | str, attributes: Iterable[Attribute] = KNOWN, name: str = "") -> TargetTable:
    """A table from a file in UTF-8.  name: for messages, the path by default.

    Raises FairAdapterError for a file that can't be read, and as TargetTable.parse.
    """
    return TargetTable.parse(_text(Path(path), name or str(path)), name or str(path), attributes)


def _text(path: Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise FairAdapterError(
            f"{name}: expected a CSV file of targets, can't be read ({error.strerror}); check the path"
        ) from error
    if len(data) > MOST_BYTES:
        raise FairAdapterError(f"{name}: expected at most {MOST_BYTES} bytes, found more; split it")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        row = data[: error.start].count(b"\n") + 1
        found = one_line(repr(data[error.start : error.end]), 20)
        raise FairAdapterError(
            f"{name}, row {row}: expected text in UTF-8, found {found}; save it as CSV in UTF-8"
        ) from error
