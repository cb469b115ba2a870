"""Files that a page offers for download: a few at a time, in one folder that goes with the program."""

from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path

KEPT = 4  # downloads; a page copies a file when it is shown, so that even one would do


class Scratch:
    """One temporary folder, made at the first use and removed at the program's end."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._places: list[Path] = []
        self._lock = threading.Lock()

    def place(self, name: str) -> Path:
        """Where a new file of that name can be written; the oldest ones go."""
        with self._lock:
            if self._folder is None or not Path(self._folder.name).is_dir():  # somebody tidied up
                self._folder, self._places = tempfile.TemporaryDirectory(prefix="fair_adapter_"), []
            place = Path(tempfile.mkdtemp(dir=self._folder.name))
            self._places.append(place)
            while len(self._places) > KEPT:
                shutil.rmtree(self._places.pop(0), ignore_errors=True)
        return place / name
