"""Rendered people as the portrait model's training pool."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.tests.fixture_faces import images
from fair_adapter.trainer.portrait import bundle, people, train
from fair_adapter.trainer.portrait.pool import Pool, load_arrays
from fair_adapter.trainer.portrait.rendering import labels, plan

COUNT = 36


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as render.py leaves it: its own labels, a fixture face as each picture."""
    out = tmp_path / "people"
    rows = [labels.row(plan.person(0, index)) for index in range(COUNT)]
    for row in rows:
        path = out / row["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        face = (images()[int(row["index"])].permute(1, 2, 0) * 255).round().byte().numpy()
        alpha = np.full((*face.shape[:2], 1), 255, np.uint8)
        Image.fromarray(np.concatenate([face, alpha], 2)).save(path)
    (out / "labels.csv").write_text(labels.text(rows), encoding="utf-8")
    return out


def test_the_pool_has_the_true_cells_and_leaves_the_test_split_out(folder: Path) -> None:
    pool = people.read_people(folder)
    rows = [row for row in labels.read(folder / "labels.csv") if row["split"] != "test"]
    assert len(rows) < COUNT and pool.image.shape == (len(rows), 128, 128, 3)
    names = (("female", "male"), ("wmelh", "black", "asian"), ("young", "old"))
    told = [tuple(n[k] for n, k in zip(names, cell)) for cell in pool.cell]
    assert told == [(row["gender"], row["race"], row["age_class"]) for row in rows]
    assert pool.alpha.min() == 255


def test_a_damaged_or_missing_picture_names_the_remedy(folder: Path) -> None:
    row = next(row for row in labels.read(folder / "labels.csv") if row["split"] != "test")
    path = folder / row["file"]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FairAdapterError, match=rf"{row['file']}.*render\.py again"):
        people.read_people(folder)
    path.unlink()
    with pytest.raises(FairAdapterError, match=rf"{row['file']}.*render\.py again"):
        people.read_people(folder)


def test_a_cell_without_pictures_is_refused(folder: Path) -> None:
    rows = [row for row in labels.read(folder / "labels.csv") if row["race"] != "asian"]
    (folder / "labels.csv").write_text(labels.text(rows), encoding="utf-8")
    with pytest.raises(FairAdapterError, match="4 cells without"):
        people.read_people(folder)


def test_the_stage_writes_the_pool_and_the_gallery_reads_it(folder: Path, tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    assert train.main(["pool", "--people", str(folder), "--work", str(work)]) == 0
    whole = Pool.load(work / "pool.npz")
    Pool(whole.image[:3], whole.alpha[:3], whole.cell[:3]).save(work / "pool.npz")
    out.mkdir()
    bundle.write_gallery(work, out, seed=1)
    gallery = load_arrays(out / "identities.npz", "export")
    assert gallery["embedding"].shape == (3, 128)
    assert ((gallery["radius"] > 0.01) & (gallery["radius"] < 0.6)).all()  # .6 parts two persons


def test_training_without_a_source_says_which_there_are(tmp_path: Path, capsys) -> None:
    assert train.main(["all", "--work", str(tmp_path / "work")]) == 2
    assert "--people FOLDER" in capsys.readouterr().err
