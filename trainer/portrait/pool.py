"""Builds the pool of training portraits: cut-outs of new identities, a fixed number for each perceived cell.

Two steps, each deterministic: `read_sources` (detect, cut out) and `build_pool` (compose, keep what the face
chain reads as intended). Class labels are outputs of the face chain on the finished portrait: perceived
attributes, never identities. Both steps run in worker processes, one face each on one thread.
"""

from __future__ import annotations

import csv
import os
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from ...shared.classifiers.default import DefaultClassifier
from ...shared.classifiers.default import load as load_default
from ...shared.errors import FairAdapterError
from ...shared.faces.alignment import align
from ...shared.faces.detection import FaceDetector, largest
from ..running.pictures import open_or_note, tell_left_out
from .portraits import Portrait, Source, compose, cut_out, matching_donors, pose, usable

Cell = tuple[int, int, int]  # gender, race, age class indices

# Left out after looking at the rare cells: men or children read as Black women, and repeated pictures.
EXCLUDED = frozenset(f"{n:04d}.jpg" for n in (125, 237, 321, 344, 599, 650, 713, 716, 819, 894))
CELLS: tuple[Cell, ...] = tuple(product(range(2), range(3), range(2)))
SURE = {"gender": 0.75, "race": 0.65, "age": 0.65}  # least probability of the intended class
BATCH = 32


@dataclass(frozen=True)
class Pool:
    """image uint8 (N, 128, 128, 3), alpha uint8 (N, 128, 128), cell int8 (N, 3)."""

    image: np.ndarray
    alpha: np.ndarray
    cell: np.ndarray

    def save(self, path: Path) -> None:
        save_arrays(path, image=self.image, alpha=self.alpha, cell=self.cell)

    @classmethod
    def load(cls, path: Path) -> Pool:
        return cls(**load_arrays(path, "pool"))


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Writes an .npz whole or not at all.

    Raises:
        FairAdapterError: the folder can't be written.
    """
    partial = path.with_suffix(".partial.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(partial, **arrays)  # type: ignore[arg-type]
        partial.replace(path)
    except OSError as error:
        raise FairAdapterError(
            f"{path}: can't write it ({error.strerror}); give a writable folder with space with --work"
        ) from error


def load_arrays(path: Path, stage: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz; a clear error names the stage that makes it."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise FairAdapterError(
            f"{path}: expected what the stage '{stage}' writes, found {error}; run "
            f"`python trainer/portrait/train.py {stage}`"
        ) from error


def save_sources(path: Path, sources: list[Source]) -> None:
    save_arrays(
        path,
        name=np.array([s.name for s in sources]),
        image=np.stack([s.image for s in sources]),
        alpha=np.stack([s.alpha for s in sources]),
        points=np.stack([s.points for s in sources]),
        cell=np.array([s.cell for s in sources]),
        rest=np.array([(s.turn, s.light, s.donor_only) for s in sources]),
    )


def load_sources(path: Path) -> list[Source]:
    arrays = load_arrays(path, "sources")
    return [
        Source(
            str(name),
            image,
            alpha,
            points,
            (int(cell[0]), int(cell[1]), int(cell[2])),
            float(rest[0]),
            float(rest[1]),
            bool(rest[2]),
        )
        for name, image, alpha, points, cell, rest in zip(*arrays.values())
    ]


def read_sources(faces: Path) -> list[Source]:
    """The usable portraits of ``faces`` (``faces.csv`` beside ``images/``), cut out, in the table's order.

    A picture that is missing or can't be read is left out; the error stream says which and why.

    Raises:
        FairAdapterError: the table is missing.
    """
    table = faces / "faces.csv"
    if not table.is_file():
        raise FairAdapterError(
            f"{table}: expected the table of source portraits, found nothing; "
            "give the folder that holds faces.csv and images/ with --faces"
        )
    with table.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["file"] not in EXCLUDED]
    read = _in_workers(_read_source, [(faces / "images" / row["file"], _cell(row)) for row in rows])
    found = list(read)
    tell_left_out([source for source in found if isinstance(source, str)])
    return [source for source in found if isinstance(source, Source)]


def _in_workers(function: Callable, jobs: list[tuple]) -> Iterable:
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        yield from pool.map(function, *zip(*jobs))


@cache
def _detector() -> FaceDetector:
    return FaceDetector()


@cache
def _classifier() -> DefaultClassifier:
    return load_default()


def _read_source(path: Path, cell: Cell) -> Source | str | None:
    """A portrait, None for one that is of no use, or why it can't be read."""
    lost: list[str] = []
    picture = open_or_note(path, lost)
    if picture is None:
        return lost[0]
    image = np.array(picture)
    found = _detector().detect(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)[0]
    face = largest(found, *image.shape[:2])
    if face is None:
        return None
    points = np.array(face.points)
    alpha = cut_out(image, points)
    fault = usable(image, alpha, points)
    if fault in ("grey", "turned"):
        return None
    turn, light = pose(image, points)
    return Source(
        path.name,
        image,
        alpha,
        points,
        cell,
        turn,
        light,
        donor_only=fault == "spill" or bool(alpha[:3].mean() > 0.12),
    )


def _cell(row: dict[str, str]) -> Cell:
    race = int(np.argmax([float(row[f"p_{name}"]) for name in ("white_me_latino", "black", "asian")]))
    return int(float(row["p_male"]) > 0.5), race, int(float(row["age"]) >= 40)


def build_pool(sources: list[Source], per_cell: tuple[int, int, int], seed: int) -> Pool:
    """Composes portraits until each cell has its number, or the face chain refuses nearly all.

    Args:
        sources: from `read_sources`.
        per_cell: portraits for each gender x age cell of wmelh, black and asian faces.
        seed: of the random draws.
    """
    jobs = [(cell, [s for s in sources if s.cell == cell], per_cell[cell[1]], seed) for cell in CELLS]
    parts = list(_in_workers(_fill_cell, jobs))
    portraits = [p for part in parts for p in part]
    cells = np.repeat(np.array(CELLS, np.int8), [len(part) for part in parts], axis=0)
    return Pool(np.stack([p.image for p in portraits]), np.stack([p.alpha for p in portraits]), cells)


def _fill_cell(cell: Cell, sources: list[Source], count: int, seed: int) -> list[Portrait]:
    rng = np.random.default_rng([seed, *cell])
    composer = Composer(sources)
    kept: list[Portrait] = []
    for _ in range(12 * count // BATCH + 1):
        batch = [composer.draw(rng) for _ in range(BATCH)]
        kept += [p for p, good in zip(batch, _as_intended(batch, cell)) if good]
        if len(kept) >= count:
            break
    return kept[:count]


class Composer:
    """Draws composed portraits from sources of one cell: four in five with a donor's inner face."""

    def __init__(self, sources: list[Source]) -> None:
        self.heads = [s for s in sources if not s.donor_only]
        self.donors = [matching_donors(head, sources) for head in self.heads]

    def draw(self, rng: np.random.Generator) -> Portrait:
        k = rng.integers(len(self.heads))
        donor = self.donors[k][rng.integers(len(self.donors[k]))] if rng.random() < 0.8 else None
        return compose(self.heads[k], donor, rng)


@torch.no_grad()
def _as_intended(batch: list[Portrait], cell: Cell) -> np.ndarray:
    alpha = torch.from_numpy(np.stack([p.alpha for p in batch]))[:, None].float() / 255
    images = torch.from_numpy(np.stack([p.image for p in batch])).permute(0, 3, 1, 2).float() / 255
    images = images * alpha + 0.5 * (1 - alpha)
    logits = _classifier()(align(images, torch.from_numpy(np.stack([p.points for p in batch])).float()))
    good = torch.ones(len(batch), dtype=torch.bool)
    for index, (name, least) in zip(cell, SURE.items()):
        good &= logits[name].softmax(1)[:, index] >= least
    return good.numpy()


def identity_gallery(
    sources: list[Source], seed: int, augmentations: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """Identity embeddings (S, 128) of the source faces, and for each the mean distance (S,) to its own
    augmentations (warped, recoloured, no other face blended in): the yardstick of memorisation."""
    read = list(_in_workers(_gallery_entry, [(s, seed, augmentations) for s in sources]))
    return np.stack([e for e, _ in read]).astype(np.float32), np.array([d for _, d in read], np.float32)


@torch.no_grad()
def _gallery_entry(source: Source, seed: int, augmentations: int) -> tuple[np.ndarray, float]:
    rng = np.random.default_rng([seed, *source.name.encode()])
    copies = [compose(source, None, rng) for _ in range(augmentations)]
    images = torch.from_numpy(np.stack([c.image for c in copies])).permute(0, 3, 1, 2).float() / 255
    original = torch.from_numpy(np.ascontiguousarray(source.image)).permute(2, 0, 1)[None].float() / 255
    faces = torch.cat(
        [
            align(original, torch.from_numpy(source.points)[None].float()),
            align(images, torch.from_numpy(np.stack([c.points for c in copies])).float()),
        ]
    )
    embeddings = _classifier().embed(faces)
    return embeddings[0].numpy(), float((embeddings[1:] - embeddings[0]).norm(dim=1).mean())
