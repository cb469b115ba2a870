"""The file of past generations: counted by the database, and brought up to date without losing a row."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from fair_adapter.a1111_extension import records
from fair_adapter.shared.attributes import RACE
from fair_adapter.shared.bars import Bar, FaceBars
from fair_adapter.shared.errors import FairAdapterError

BOX = '"box": [1.0, 2.0, 30.0, 40.0]'
WOMAN = f'{{{BOX}, "bars": [["gender", "female", 0.91, true], ["race", "black", 0.55, false]]}}'
MAN = f'{{{BOX}, "bars": [["gender", "male", 0.99, true], ["race", "wmelh", 0.8, true]]}}'
GLAD = '{"box": [1.0, 2.0, 30.0, 40.0], "bars": [["mood", "glad", 0.7, true]]}'
EARLIER = f"""
CREATE TABLE pictures (
    id INTEGER PRIMARY KEY, created REAL NOT NULL, origin TEXT NOT NULL, prompt TEXT NOT NULL,
    seed INTEGER NOT NULL, adapter TEXT NOT NULL, target TEXT NOT NULL, strength REAL NOT NULL,
    model TEXT NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL, faces TEXT NOT NULL
);
INSERT INTO "pictures" VALUES(1,1700000001.5,'txt2img','a nurse',7,'x.safetensors','gender=50/50',0.8,
    'portrait',512,512,'[{WOMAN}, {MAN}]');
INSERT INTO "pictures" VALUES(2,1700000002.5,'img2img','a nurse',8,'x.safetensors','',1.0,'portrait',512,640,
    '[{MAN}]');
INSERT INTO "pictures" VALUES(3,1700000003.5,'txt2img','it''s a hill',-1,'None','',0.0,'',0,0,'[]');
INSERT INTO "pictures" VALUES(4,1700000004.5,'txt2img','a doctor',9,'None','',0.0,'m2',0,0,'[{WOMAN}]');
INSERT INTO "pictures" VALUES(5,1700000005.5,'studio','a doctor',10,'None','',0.0,'',0,0,'[{GLAD}]');
"""  # the dump of a file that the version before the columns wrote


@pytest.fixture
def earlier(tmp_path: Path) -> records.RecordStore:
    path = tmp_path / "statistics.sqlite"
    with sqlite3.connect(path) as database:
        database.executescript(EARLIER)
    database.close()
    return records.RecordStore(path)


def rows_of(path: Path) -> list[tuple]:
    database = sqlite3.connect(path)
    try:
        return database.execute(
            f"SELECT id, {', '.join(records.COLUMNS)} FROM pictures ORDER BY id"
        ).fetchall()
    finally:
        database.close()


def state_of(path: Path) -> tuple[int, set[str]]:
    database = sqlite3.connect(path)
    try:
        names = {row[1] for row in database.execute("PRAGMA table_info(pictures)")}
        return database.execute("PRAGMA user_version").fetchone()[0], names
    finally:
        database.close()


def test_a_file_of_an_earlier_version_is_counted_and_keeps_every_row(earlier: records.RecordStore) -> None:
    before, lines = rows_of(earlier.path), earlier.path.read_bytes()
    statistics = earlier.statistics()
    assert lines != earlier.path.read_bytes() and rows_of(earlier.path) == before and len(before) == 5
    assert state_of(earlier.path) == (1, {"id", *records.COLUMNS, "labels", "readings", "uncertain"})
    seen = (statistics.pictures, statistics.without_face, statistics.readings, statistics.uncertain)
    assert seen == (5, 1, 7, 2) and statistics.groups == 3
    assert [a.name for a in statistics.attributes] == ["gender", "race", "mood"]
    assert statistics.counts("gender") == {"female": 2, "male": 1}
    assert statistics.attribute("race") == RACE
    assert statistics.counts("race") == {"wmelh": 1, "black": 2, "asian": 0}
    assert statistics.bias("gender") == pytest.approx((0 + 1) / 2)  # of the nurse and of the doctor
    chosen = earlier.statistics(records.RecordFilter("nurse", "x.safetensors", "portrait"))
    assert (chosen.pictures, chosen.groups, chosen.counts("gender")) == (2, 1, {"female": 1, "male": 1})
    assert len(earlier.to_csv().splitlines()) == 6


def test_bringing_a_file_up_to_date_is_all_or_nothing(earlier: records.RecordStore, monkeypatch: Any) -> None:
    before, read = earlier.path.read_bytes(), []

    def interrupted(text: str, path: Path) -> Any:
        read.append(text)
        if len(read) == 3:
            raise KeyboardInterrupt
        return whole(text, path)

    whole = records._counted_text
    monkeypatch.setattr(records, "ROWS", 2)
    monkeypatch.setattr(records, "_counted_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        earlier.statistics()
    assert earlier.path.read_bytes() == before and state_of(earlier.path)[0] == 0
    assert earlier.statistics().pictures == 5  # the next time


def test_a_row_that_an_earlier_version_adds_later_counts(earlier: records.RecordStore) -> None:
    assert earlier.statistics().counts("gender")["female"] == 2
    with sqlite3.connect(earlier.path) as database:
        marks = ", ".join("?" * len(records.COLUMNS))
        database.execute(
            f"INSERT INTO pictures ({', '.join(records.COLUMNS)}) VALUES ({marks})",
            (1.0, "txt2img", "a nurse", 1, "None", "", 0.0, "", 8, 8, f"[{WOMAN}]"),
        )
    assert earlier.statistics().counts("gender")["female"] == 3


def test_a_row_that_is_not_ours_keeps_no_other_from_being_read(earlier: records.RecordStore) -> None:
    with sqlite3.connect(earlier.path) as database:
        database.execute("UPDATE pictures SET faces = 'mine' WHERE id = 4")
    assert earlier.statistics(records.RecordFilter("nurse")).pictures == 2
    with pytest.raises(FairAdapterError, match="expected readings as this program writes them"):
        earlier.statistics()
    assert rows_of(earlier.path)[3][-1] == "mine"


def test_the_database_counts_and_only_groups_come_back(tmp_path: Path, monkeypatch: Any) -> None:
    store = records.RecordStore(tmp_path / "s.sqlite")

    def face(label: str) -> FaceBars:
        return FaceBars((0.0, 0.0, 9.0, 9.0), (Bar("gender", label, 0.9, (0, 0, 0)),))

    labels = ("female", "male", "female", None, "female")
    store.add(
        [
            records.PictureRecord(f"prompt {i % 4}", [face(x)] if (x := labels[i % 5]) else [])
            for i in range(600)
        ]
    )
    came, select = [], store._select
    monkeypatch.setattr(store, "_select", lambda *a: came.append(select(*a)) or came[-1])
    monkeypatch.setattr(records, "_faces", None)  # no picture's readings are read
    statistics = store.statistics()
    assert [len(rows) for rows in came] == [12]  # four prompts, three combinations of classes
    assert (statistics.pictures, statistics.without_face, statistics.groups) == (600, 120, 4)
    assert statistics.counts("gender") == {"female": 360, "male": 120}
    said: list[str] = []
    connect = sqlite3.connect

    def traced(*given: Any, **options: Any) -> sqlite3.Connection:
        database = connect(*given, **options)
        database.set_trace_callback(said.append)
        return database

    monkeypatch.setattr(sqlite3, "connect", traced)
    store.statistics()
    assert not [line for line in said if line.startswith(("UPDATE", "ALTER", "BEGIN", "CREATE"))], said
    assert len(said) == 3  # two looks whether the file is up to date, and the count
