"""The 36 fixture faces and the default chain, loaded once for all test files."""

import csv
from functools import lru_cache
from pathlib import Path

import torch

from fair_adapter.shared.classifiers.default import DefaultClassifier, load
from fair_adapter.shared.faces import AlignedFaces, FaceDetector, align_largest
from fair_adapter.shared.images import load_image

FOLDER = Path(__file__).parent / "data" / "faces"


@lru_cache(maxsize=1)
def rows() -> list[dict[str, str]]:
    """Labels of the fixture: file, gender, race, age_group and where each face comes from."""
    with (FOLDER / "labels.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@lru_cache(maxsize=1)
def images() -> torch.Tensor:
    """(36, 3, 256, 256)."""
    return torch.stack([load_image(FOLDER / row["file"]) for row in rows()])


@lru_cache(maxsize=1)
def detector() -> FaceDetector:
    return FaceDetector()


@lru_cache(maxsize=1)
def chain() -> DefaultClassifier:
    return load()


@lru_cache(maxsize=1)
def aligned() -> AlignedFaces:
    return align_largest(images(), detector())
