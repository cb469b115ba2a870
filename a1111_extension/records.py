"""Readings of past generations in a small SQLite file: one row for each picture."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..shared.attributes import class_look
from ..shared.bars import Bar, FaceBars
from ..shared.errors import FairAdapterError
from ..shared.statistics import FairnessStatistics, counted_attributes

TABLE = """
CREATE TABLE IF NOT EXISTS pictures (
    id INTEGER PRIMARY KEY, created REAL NOT NULL, origin TEXT NOT NULL, prompt TEXT NOT NULL,
    seed INTEGER NOT NULL, adapter TEXT NOT NULL, target TEXT NOT NULL, strength REAL NOT NULL,
    model TEXT NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL, faces TEXT NOT NULL
)
"""
COLUMNS = (
    "created", "origin", "prompt", "seed", "adapter", "target", "strength", "model", "width", "height",
    "faces",
)  # fmt: skip
FILTERS = ("prompt", "adapter", "model")
FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # what spreadsheets begin a formula with


@dataclass(frozen=True)
class PictureRecord:
    """A picture and what was read off it.

    origin: "txt2img", "img2img", "studio".  adapter: "None" without one.  faces: the largest first.
    created: seconds since 1970; 0 is now.
    """

    prompt: str
    faces: Sequence[FaceBars] = ()
    seed: int = -1
    adapter: str = "None"
    target: str = ""
    strength: float = 0.0
    model: str = ""
    width: int = 0
    height: int = 0
    origin: str = "txt2img"
    created: float = 0.0


@dataclass(frozen=True)
class RecordFilter:
    """prompt: part of the prompt.  adapter, model: the whole name.  Empty takes everything."""

    prompt: str = ""
    adapter: str = ""
    model: str = ""
    where: str = field(init=False, default="")
    values: tuple[str, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        parts: list[tuple[str, str]] = []
        if self.prompt.strip():
            escaped = self.prompt.strip().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
            parts.append(("prompt LIKE ? ESCAPE '\\'", f"%{escaped}%"))
        parts += [
            (f"{name} = ?", getattr(self, name)) for name in ("adapter", "model") if getattr(self, name)
        ]
        where = " WHERE " + " AND ".join(clause for clause, _ in parts) if parts else ""
        object.__setattr__(self, "where", where)
        object.__setattr__(self, "values", tuple(value for _, value in parts))


class RecordStore:
    """The file is made at the first record. Safe to use from several threads and processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def add(self, records: Sequence[PictureRecord]) -> None:
        """Raises FairAdapterError if the file can't be written or is no database."""
        rows = [
            (
                r.created or time.time(), r.origin, r.prompt, r.seed, r.adapter, r.target, r.strength,
                r.model, r.width, r.height, json.dumps([face_to_list(face) for face in r.faces]),
            )
            for r in records
        ]  # fmt: skip
        marks = ", ".join("?" * len(COLUMNS))
        with self._open(write=True) as database:
            database.executemany(f"INSERT INTO pictures ({', '.join(COLUMNS)}) VALUES ({marks})", rows)

    def count(self, chosen: RecordFilter | None = None) -> int:
        return int(self._select("SELECT COUNT(*) FROM pictures", chosen)[0][0]) if self.path.exists() else 0

    def choices(self, column: str) -> list[str]:
        """The values of "adapter" or "model" that were recorded."""
        if column not in FILTERS or not self.path.exists():
            return []
        return [row[0] for row in self._select(f"SELECT DISTINCT {column} FROM pictures ORDER BY 1", None)]

    def statistics(self, chosen: RecordFilter | None = None) -> FairnessStatistics:
        """Counts over the chosen pictures, kept apart by prompt. Raises FairAdapterError as `add`."""
        if not self.path.exists():
            return FairnessStatistics()
        rows = self._select("SELECT prompt, faces FROM pictures", chosen)
        read = [(prompt, _faces(text, self.path)) for prompt, text in rows]
        found: dict[str, list[str]] = {}
        for bar in (bar for _, faces in read for face in faces[:1] for bar in face.bars):
            labels = found.setdefault(bar.attribute, [])
            if bar.label not in labels:
                labels.append(bar.label)
        statistics = FairnessStatistics(counted_attributes(found) if found else ())
        for prompt, faces in read:
            statistics.add([faces], prompt)
        return statistics

    def to_csv(self, chosen: RecordFilter | None = None) -> str:
        """One line for each picture: its settings, and class and confidence of the largest face."""
        order = f"SELECT {', '.join(COLUMNS)} FROM pictures"
        rows = self._select(order, chosen) if self.path.exists() else []
        read = [(row[:-1], _faces(row[-1], self.path)) for row in rows]
        names = list(dict.fromkeys(b.attribute for _, faces in read for f in faces[:1] for b in f.bars))
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        heads = [column for name in names for column in (name, f"{name}_confidence")]
        writer.writerow([*COLUMNS[:-1], "faces", *heads])
        for values, faces in read:
            bars = {bar.attribute: bar for bar in faces[0].bars} if faces else {}
            cells = [(bars[n].label, f"{bars[n].confidence:.4f}") if n in bars else ("", "") for n in names]
            writer.writerow([*map(_cell, values), len(faces), *(cell for pair in cells for cell in pair)])
        return out.getvalue()

    def reset(self, chosen: RecordFilter | None = None) -> int:
        """Forget the chosen pictures (all without a filter); returns how many."""
        if not self.path.exists():
            return 0
        chosen = chosen or RecordFilter()
        with self._open(write=True) as database:
            return database.execute(f"DELETE FROM pictures{chosen.where}", chosen.values).rowcount

    def _select(self, what: str, chosen: RecordFilter | None) -> list[tuple]:
        chosen = chosen or RecordFilter()
        with self._open() as database:
            return database.execute(f"{what}{chosen.where}", chosen.values).fetchall()

    @contextmanager
    def _open(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        remedy = "move the file away or make its folder writable"
        with self._lock:
            try:
                own_folder(self.path.parent)
                database = sqlite3.connect(self.path, timeout=10)
                try:
                    database.execute(TABLE)
                    yield database
                    database.commit() if write else None
                finally:
                    database.close()
            except (sqlite3.Error, OSError) as error:
                raise FairAdapterError(
                    f"{self.path}: expected a statistics file that can be read and written, found: {error}; "
                    f"{remedy}"
                ) from error


def own_folder(folder: Path) -> Path:
    """A folder for what we write, made if needed, that git passes over."""
    folder.mkdir(parents=True, exist_ok=True)
    ignore = folder / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n", encoding="utf-8")
    return folder


def face_to_list(face: FaceBars) -> dict[str, object]:
    """JSON form of one face."""
    bars = [[bar.attribute, bar.label, round(bar.confidence, 4), bar.certain] for bar in face.bars]
    return {"box": [round(value, 1) for value in face.box], "bars": bars}


def _faces(text: str, path: Path) -> list[FaceBars]:
    try:
        faces = []
        for face in json.loads(text):
            bars = tuple(
                Bar(str(a), str(c), float(p), class_look(a, c).colour, bool(sure))
                for a, c, p, sure in face["bars"]
            )
            x0, y0, x1, y1 = (float(value) for value in face["box"])
            faces.append(FaceBars((x0, y0, x1, y1), bars))
        return faces
    except (ValueError, KeyError, TypeError) as error:
        raise FairAdapterError(
            f"{path}: expected readings as this program writes them, found {error!r}; reset the statistics"
        ) from error


def _cell(value: object) -> object:
    """CSV cells that a spreadsheet would take for a formula get a quote before them, empty ones do not."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
