"""Readings of past generations in a small SQLite file: one row for each picture."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..shared.attributes import class_look
from ..shared.bars import Bar, FaceBars
from ..shared.errors import FairAdapterError
from ..shared.statistics import StatisticsSummary, counted_attributes

TABLE = """
CREATE TABLE IF NOT EXISTS pictures (
    id INTEGER PRIMARY KEY, created REAL NOT NULL, origin TEXT NOT NULL, prompt TEXT NOT NULL,
    seed INTEGER NOT NULL, adapter TEXT NOT NULL, target TEXT NOT NULL, strength REAL NOT NULL,
    model TEXT NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL, faces TEXT NOT NULL
)
"""
# Of the largest face, for the database to count by. Files of earlier versions, and rows that such a version
# adds to a file of ours, lack them (NULL) until they are read off `faces`.
COUNTED = {"labels": "TEXT", "readings": "INTEGER", "uncertain": "INTEGER"}
INDICES = (
    "CREATE INDEX IF NOT EXISTS pictures_not_counted ON pictures (id) WHERE labels IS NULL",
    "CREATE INDEX IF NOT EXISTS pictures_names ON pictures (adapter, model)",
)
VERSION = 1  # of the file, in SQLite's user_version; 0 is without the columns above
NOT_OURS = "?"  # labels of a row whose `faces` this program did not write
ROWS = 2000  # brought up to date at a time; bounds the memory
COLUMNS = (
    "created", "origin", "prompt", "seed", "adapter", "target", "strength", "model", "width", "height",
    "faces",
)  # fmt: skip
COUNT = "SELECT prompt, labels, COUNT(*), SUM(readings), SUM(uncertain), MIN(id) FROM pictures"
BEHIND = "FROM pictures WHERE labels IS NULL"
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
    """prompt: part of the prompt.  adapter, model: the whole name.  Empty takes everything.
    last: only the newest pictures of these, 0 takes all.
    """

    prompt: str = ""
    adapter: str = ""
    model: str = ""
    last: int = 0
    where: str = field(init=False, default="")
    values: tuple[str | int, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        parts: list[tuple[str, str]] = []
        if self.prompt.strip():
            escaped = self.prompt.strip().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
            parts.append(("prompt LIKE ? ESCAPE '\\'", f"%{escaped}%"))
        parts += [
            (f"{name} = ?", getattr(self, name)) for name in ("adapter", "model") if getattr(self, name)
        ]
        where = " WHERE " + " AND ".join(clause for clause, _ in parts) if parts else ""
        values: tuple[str | int, ...] = tuple(value for _, value in parts)
        if self.last:
            where = f" WHERE id IN (SELECT id FROM pictures{where} ORDER BY id DESC LIMIT ?)"
            values = (*values, self.last)
        object.__setattr__(self, "where", where)
        object.__setattr__(self, "values", values)


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
                *_counted(r.faces),
            )
            for r in records
        ]  # fmt: skip
        names = (*COLUMNS, *COUNTED)
        marks = ", ".join("?" * len(names))
        with self._open(write=True) as database:
            database.executemany(f"INSERT INTO pictures ({', '.join(names)}) VALUES ({marks})", rows)

    def count(self, chosen: RecordFilter | None = None) -> int:
        return int(self._select("SELECT COUNT(*) FROM pictures", chosen)[0][0]) if self.path.exists() else 0

    def choices(self, column: str) -> list[str]:
        """The values of "adapter" or "model" that were recorded."""
        if column not in FILTERS or not self.path.exists():
            return []
        return [row[0] for row in self._select(f"SELECT DISTINCT {column} FROM pictures ORDER BY 1", None)]

    def statistics(self, chosen: RecordFilter | None = None) -> StatisticsSummary:
        """Counts over the chosen pictures, kept apart by prompt. Raises FairAdapterError as `add`.

        The database counts: what comes back is a row for each prompt and combination of classes.
        """
        if not self.path.exists():
            return StatisticsSummary()
        rows = self._select(COUNT, chosen, " GROUP BY prompt, labels")
        combinations = {labels: index for index, labels in enumerate(_in_order(rows))}
        if NOT_OURS in combinations:
            self._read_all(chosen)  # tells what is wrong with them
        return _summed(rows, combinations, [_pairs(labels, self.path) for labels in combinations])

    def seen(self, chosen: RecordFilter | None = None) -> list[tuple[dict[str, str], int]]:
        """The chosen pictures by the classes of their largest face, and how many of each; {} is no face."""
        if not self.path.exists():
            return []
        rows = self._select("SELECT labels, COUNT(*) FROM pictures", chosen, " GROUP BY labels")
        if any(labels == NOT_OURS for labels, _ in rows):
            self._read_all(chosen)  # tells what is wrong with them
        return [(dict(_pairs(labels, self.path)), int(number)) for labels, number in rows]

    def to_csv(self, chosen: RecordFilter | None = None) -> str:
        """One line for each picture: its settings, and class and confidence of the largest face."""
        read = self._read_all(chosen) if self.path.exists() else []
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

    def _read_all(self, chosen: RecordFilter | None) -> list[tuple[tuple, list[FaceBars]]]:
        """The chosen pictures' settings and faces."""
        rows = self._select(f"SELECT {', '.join(COLUMNS)} FROM pictures", chosen)
        return [(row[:-1], _faces(row[-1], self.path)) for row in rows]

    def _select(self, what: str, chosen: RecordFilter | None, order: str = "") -> list[tuple]:
        chosen = chosen or RecordFilter()
        with self._open() as database:
            return database.execute(f"{what}{chosen.where}{order}", chosen.values).fetchall()

    @contextmanager
    def _open(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        remedy = "move the file away or make its folder writable"
        with self._lock:
            try:
                own_folder(self.path.parent)
                # without an isolation level, transactions are only those that are begun here
                database = sqlite3.connect(self.path, timeout=10, isolation_level=None)
                try:
                    self._bring_up_to_date(database)
                    with _transaction(database) if write else nullcontext():
                        yield database
                finally:
                    database.close()
            except (sqlite3.Error, OSError) as error:
                raise FairAdapterError(
                    f"{self.path}: expected a statistics file that can be read and written, found: {error}; "
                    f"{remedy}"
                ) from error

    def _bring_up_to_date(self, database: sqlite3.Connection) -> None:
        """Give a file of an earlier version its new columns, all or nothing; others stay as they are."""
        old = database.execute("PRAGMA user_version").fetchone()[0] < VERSION
        if not old and database.execute(f"SELECT 1 {BEHIND} LIMIT 1").fetchone() is None:
            return
        with _transaction(database):
            database.execute(TABLE)
            have = {row[1] for row in database.execute("PRAGMA table_info(pictures)")}
            for name, kind in COUNTED.items():
                if name not in have:  # another process may have been first
                    database.execute(f"ALTER TABLE pictures ADD COLUMN {name} {kind}")
            for index in INDICES:
                database.execute(index)
            while rows := database.execute(f"SELECT id, faces {BEHIND} LIMIT {ROWS}").fetchall():
                values = [(*_counted_text(text, self.path), number) for number, text in rows]
                marks = ", ".join(f"{name} = ?" for name in COUNTED)
                database.executemany(f"UPDATE pictures SET {marks} WHERE id = ?", values)
            if old:
                database.execute(f"PRAGMA user_version = {VERSION}")


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All of what is done inside, or none of it."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


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


def _counted(faces: Sequence[FaceBars]) -> tuple[str, int, int]:
    """The values of `COUNTED`: classes of the largest face as JSON, how many, and how many are uncertain."""
    bars = faces[0].bars if faces else ()
    pairs = [[bar.attribute, bar.label] for bar in bars]
    labels = json.dumps(pairs, ensure_ascii=False) if faces else ""
    return labels, len(bars), sum(not bar.certain for bar in bars)


def _counted_text(text: str, path: Path) -> tuple[str, int, int]:
    try:
        return _counted(_faces(text, path))
    except FairAdapterError:
        return NOT_OURS, 0, 0  # kept as it is, and told when it is counted


def _pairs(labels: str, path: Path) -> list[tuple[str, str]]:
    """Attribute and class of each bar of a face; none without a face."""
    try:
        return [(str(attribute), str(label)) for attribute, label in json.loads(labels or "[]")]
    except (ValueError, TypeError) as error:
        raise _not_ours(path, error) from error


def _in_order(rows: Sequence[tuple]) -> list[str]:
    """The labels of rows of COUNT in the order of their first pictures."""
    first: dict[str, int] = {}
    for _, labels, *_, number in rows:
        if number < first.get(labels, number + 1):
            first[labels] = number
    return sorted(first, key=lambda labels: first[labels])


def _summed(
    rows: Sequence[tuple], combinations: Mapping[str, int], pairs: Sequence[Sequence[tuple[str, str]]]
) -> StatisticsSummary:
    """The statistics of rows of COUNT: prompt, labels, pictures, readings, uncertain, first id.

    combinations: labels -> index.  pairs: attribute and class of each bar, for each of them.
    """
    found: dict[str, dict[str, None]] = {}
    for attribute, label in (pair for bars in pairs for pair in bars):
        found.setdefault(attribute, {})[label] = None
    attributes = counted_attributes({name: tuple(labels) for name, labels in found.items()}) if found else ()
    prompts: dict[str, int] = {}
    owner = np.array([prompts.setdefault(row[0], len(prompts)) for row in rows], dtype=np.int64)
    combination = np.array([combinations[row[1]] for row in rows], dtype=np.int64)
    numbers = np.array([row[2:] for row in rows], dtype=np.int64).reshape(-1, 4)[:, :3]
    counts = {}
    for attribute in attributes:
        of_combination = np.zeros((len(pairs), len(attribute)), dtype=np.int64)
        for index, bars in enumerate(pairs):
            for name, label in bars:
                if name == attribute.name:
                    of_combination[index, attribute.index(label)] += 1
        counts[attribute.name] = np.zeros((len(prompts), len(attribute)), dtype=np.int64)
        np.add.at(counts[attribute.name], owner, of_combination[combination] * numbers[:, :1])
    summary = StatisticsSummary.of_keys(attributes, counts)
    summary.groups = len(prompts)
    summary.pictures, summary.readings, summary.uncertain = numbers.sum(axis=0).tolist()
    summary.without_face = sum(row[2] for row in rows if not row[1])
    return summary


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
    except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as error:
        raise _not_ours(path, error) from error


def _not_ours(path: Path, error: Exception) -> FairAdapterError:
    return FairAdapterError(
        f"{path}: expected readings as this program writes them, found {error!r}; reset the statistics"
    )


def _cell(value: object) -> object:
    """CSV cells that a spreadsheet would take for a formula get a quote before them, empty ones do not."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
