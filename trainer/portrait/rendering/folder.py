"""The folder of pictures: what is done, what is to do, and whether it is of the same design."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from ....shared.errors import FairAdapterError
from . import labels
from .plan import Person

SETTINGS, LABELS = "render.json", "labels.csv"
_HEAD = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_TAIL = b"\x00\x00\x00\x00IEND\xaeB`\x82"


def write_whole(path: Path, text: str) -> None:
    """Writes a text file whole or not at all.

    Raises:
        FairAdapterError: it can't be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise FairAdapterError(cannot_write(path, error.strerror or str(error))) from error


def cannot_write(path: Path, cause: str) -> str:
    return (
        f"{path}: can't be written ({cause}); make room or the folder writable and run the same command "
        "again, "
        "finished pictures stay"
    )


def whole(path: Path, size: int) -> bool:
    """Whether a PNG of size x size lies there to its last byte; does not decode it."""
    try:
        with path.open("rb") as file:
            head = file.read(24)
            file.seek(-len(_TAIL), os.SEEK_END)
            return head == _HEAD + size.to_bytes(4, "big") * 2 and file.read() == _TAIL
    except OSError:
        return False


def check(folder: Path, settings: dict[str, object]) -> None:
    """Make sure that `folder` is new or of these settings; a new one is marked with them.

    Raises:
        FairAdapterError: it holds pictures of other settings, or something else.
    """
    path = folder / SETTINGS
    try:
        there = json.loads(path.read_text("utf-8")) if path.exists() else None
    except (OSError, ValueError) as error:
        raise FairAdapterError(
            f"{path}: expected the settings of earlier pictures, found {error}; give another --out"
        ) from error
    if there is None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FairAdapterError(
                f"{folder}: expected a new folder or one that this program began, found another; give "
                "another --out"
            )
        write_whole(path, json.dumps(settings, indent=1) + "\n")
        return
    there = there if isinstance(there, dict) else {}
    for name, value in settings.items():
        if there.get(name) != value:
            raise FairAdapterError(
                f"{path}: the pictures there have {name} {there.get(name)}, asked for {value}; give "
                "another --out, or "
                f"the same {name} as there (nothing was changed)"
            )


def check_labels(folder: Path, person: Callable[[int], Person]) -> None:
    """Make sure that the labels there are those of this design.

    Raises:
        FairAdapterError: a row says something else of its picture.
    """
    path = folder / LABELS
    if not path.exists():
        return
    for found in labels.read(path):
        index = int(found["index"]) if found["index"].isdigit() else -1
        expected = labels.row(person(index)) if index >= 0 else {}
        if wrong := [name for name in labels.COLUMNS if found[name] != expected.get(name)]:
            raise FairAdapterError(
                f"{path}: picture {found['index']} has {wrong[0]} {found[wrong[0]]!r}, expected "
                f"{expected.get(wrong[0])!r}; the file was changed or is of another version: put it back, "
                "or delete "
                "it and it is written anew"
            )


class Done:
    """Which of the first `count` pictures are there."""

    def __init__(self, folder: Path, count: int, size: int) -> None:
        self.folder, self.size = folder, size
        paths = {index: folder / labels.file_name(index) for index in range(count)}
        self.indices = {index for index, path in paths.items() if whole(path, size)}
        self.damaged = sum(path.exists() for path in paths.values()) - len(self.indices)
        for left in folder.glob("*/.*.partial*"):  # of a worker that was killed
            left.unlink(missing_ok=True)

    def missing(self, count: int) -> list[int]:
        return [index for index in range(count) if index not in self.indices]

    def write_labels(self, person: Callable[[int], Person]) -> None:
        """labels.csv of all pictures that are there, more than `count` too if there are."""
        more = {int(path.stem) for path in self.folder.glob("*/*.png") if path.stem.isdigit()}
        there = self.indices | {
            i for i in more - self.indices if whole(self.folder / labels.file_name(i), self.size)
        }
        rows = [labels.row(person(index)) for index in sorted(there)]
        write_whole(self.folder / LABELS, labels.text(rows))
