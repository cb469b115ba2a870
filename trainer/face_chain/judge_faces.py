"""Faces with known labels as the judges' nets see them: rendered people, synthetic portraits, photographs.

Each face is read as it is and in `VARIANTS` harder forms (mirrored, coarser, moved, darker, noisy), as
generated faces are. What the nets say is kept in a file: a second fit begins at once, a stopped one goes on.
"""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from fair_adapter.shared.classifiers.default import FaceNets
from fair_adapter.shared.classifiers.evaluator import NET_FILE, FaceResNet
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.faces import FaceDetector, align_largest
from fair_adapter.shared.images import open_image, to_tensor
from fair_adapter.shared.weight_files import WEIGHTS_FOLDER
from fair_adapter.trainer.running.pictures import tell_left_out

VARIANTS = 2
SAVE_EVERY = 200  # pictures
HASH_SIDE, HASH_DISTANCE = 16, 32  # of 256 bits; pairs are rare between 24 and 40, copies lie below
_COARSE = (256, 96, 72, 56)  # pixels across the face, of which a harder form has one
Row = dict[str, str]


@dataclass(frozen=True)
class Faces:
    """N faces. rows: their lines of the table.
    inputs: judge -> (N, 1 + VARIANTS, D + 3), see `heads.head_inputs`; the first is the face as it is.
    hashes: (N, 256) bool, difference hash."""

    rows: list[Row]
    inputs: dict[str, Tensor]
    hashes: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def groups(self) -> list[int]:
        """`picture_groups` of the faces, found once for all attributes and judges."""
        return picture_groups(self.hashes)


class JudgeNets:
    """The nets of both judges in ``folder``, without their heads, and the detector."""

    def __init__(self, folder: Path = WEIGHTS_FOLDER) -> None:
        self.default, self.evaluator = FaceNets(folder), FaceResNet(folder / NET_FILE)
        self.detector = FaceDetector()

    @torch.no_grad()
    def read(self, image: Image.Image, rng: np.random.Generator, variants: int) -> list[Tensor] | None:
        """[inputs of default, of the evaluator (1 + variants, D + 3), hash (256,)] of the largest face."""
        found = align_largest(to_tensor(image)[None], self.detector).faces
        if not len(found):
            return None
        faces = torch.cat([found, *(harder(found, rng) for _ in range(variants))])
        return [self.default(faces)[0], self.evaluator.inputs(faces), difference_hash(found)[0]]


def harder(face: Tensor, rng: np.random.Generator) -> Tensor:
    """One face (1, 3, H, W) in [0, 1] as a generator may draw it: coarser, moved, of other light, noisy."""
    side = face.shape[-1]
    coarse = min(int(rng.choice(_COARSE)), side)
    x = face.flip(-1) if rng.random() < 0.5 else face
    if coarse < side:
        small = F.interpolate(x, size=(coarse, coarse), mode="area")
        x = F.interpolate(small, size=(side, side), mode="bicubic")
    angle, scale = rng.normal(0, 0.05), 1 + rng.uniform(-0.06, 0.06)
    across, down = rng.uniform(-0.03, 0.03, 2)
    turn = [
        [scale * np.cos(angle), -scale * np.sin(angle), across],
        [scale * np.sin(angle), scale * np.cos(angle), down],
    ]
    grid = F.affine_grid(torch.tensor([turn], dtype=x.dtype), list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False).clamp(0, 1)
    x = x ** float(np.exp(rng.normal(0, 0.2))) * float(np.exp(rng.normal(0, 0.1)))
    x = x * torch.from_numpy(np.exp(rng.normal(0, 0.06, (1, 3, 1, 1)))).to(x.dtype)
    return (x + torch.from_numpy(rng.normal(0, 0.02, tuple(x.shape))).to(x.dtype)).clamp(0, 1)


def difference_hash(faces: Tensor) -> Tensor:
    """(N, 256) bool of faces (N, 3, H, W): is each of 16 x 17 grey means brighter than its left one?"""
    grey = F.adaptive_avg_pool2d(faces.mean(1, keepdim=True), (HASH_SIDE, HASH_SIDE + 1))[:, 0]
    return (grey[:, :, 1:] > grey[:, :, :-1]).flatten(1)


def picture_groups(hashes: Tensor) -> list[int]:
    """For each hash (N, 256) the index of the first one of the same picture (single linkage)."""
    bits = hashes.float()
    different = bits @ (1 - bits).T + (1 - bits) @ bits.T  # Hamming distances
    groups = list(range(len(bits)))
    for i, j in (different <= HASH_DISTANCE).triu(1).nonzero().tolist():
        a, b = sorted((groups[i], groups[j]))
        groups = [a if g == b else g for g in groups]
    return groups


def table_rows(table: Path) -> list[tuple[Path, Row]]:
    """Pictures of a table with the column `file`, beside it or in its folder images/, with their lines."""
    try:
        with table.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise FairAdapterError(
            f"{table}: expected the table of pictures, found none ({error.strerror}); give its folder"
        ) from error
    if not rows or "file" not in rows[0]:
        raise FairAdapterError(f"{table}: expected a table with the column 'file', found none")
    inside = table.parent / "images"
    beside = [(table.parent / row["file"], row) for row in rows]
    return [
        (path if path.is_file() or not inside.is_dir() else inside / row["file"], row) for path, row in beside
    ]


def folder_rows(folder: Path) -> list[tuple[Path, Row]]:
    """The PNG pictures of a folder, without labels."""
    found = sorted(folder.rglob("*.png"))
    if not found:
        raise FairAdapterError(f"{folder}: expected PNG pictures, found none")
    return [(path, {"file": str(path.relative_to(folder))}) for path in found]


def read_faces(
    pictures: Sequence[tuple[Path, Row]], nets: JudgeNets, kept: Path, variants: int = VARIANTS
) -> Faces:
    """Reads the largest face of each picture, those of ``kept`` from there.

    kept: an .npz of earlier readings, which gets the new ones every 200 pictures. Pictures without a face or
    that can't be opened are left out; the error stream says which.
    """
    store = _Store(kept, variants)
    lost: list[str] = []
    todo = [(path, row) for path, row in pictures if row["file"] not in store.known]
    for path, row in tqdm(todo, desc=kept.stem, disable=None):
        rng = np.random.default_rng([*row["file"].encode()])
        try:
            image = on_backdrop(path, rng)
        except FairAdapterError as error:
            lost.append(str(error))
            continue
        store.add(row["file"], nets.read(image, rng, variants))
    tell_left_out(lost)
    store.save()
    return store.faces([row for _, row in pictures])


def on_backdrop(path: Path, rng: np.random.Generator) -> Image.Image:
    """A picture; one with transparency before a backdrop that shades from one drawn colour to another.

    Raises FairAdapterError for a file that is missing or no whole picture.
    """
    flat = open_image(path)
    with Image.open(path) as file:
        if file.mode != "RGBA":
            return flat
        colours = rng.integers(20, 236, (2, 3))
        ramp = np.linspace(0, 1, file.width)[None, :, None]
        shade = (colours[0] * (1 - ramp) + colours[1] * ramp).astype(np.uint8).repeat(file.height, 0)
        backdrop = Image.fromarray(shade).convert("RGBA")
        backdrop.alpha_composite(file)
    return backdrop.convert("RGB")


class _Store:
    """Readings by file name; `known` holds also the names of pictures without a face."""

    NAMES = ("default", "evaluator", "hashes")

    def __init__(self, path: Path, variants: int) -> None:
        self.path, self.variants = path, variants
        self.known: dict[str, int] = {}  # -> row, -1 without a face
        self.parts: list[list[Tensor]] = [[] for _ in self.NAMES]
        if path.is_file():
            self._load()

    def add(self, name: str, found: list[Tensor] | None) -> None:
        self.known[name] = -1 if found is None else len(self.parts[0])
        for part, value in zip(self.parts, found or ()):
            part.append(value)
        if len(self.known) % SAVE_EVERY == 0:
            self.save()

    def save(self) -> None:
        partial = self.path.with_suffix(".partial.npz")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {n: torch.stack(p).numpy() for n, p in zip(self.NAMES, self.parts) if p}
        arrays |= {"known": np.array(json.dumps(self.known)), "variants": np.array(self.variants)}
        np.savez(partial, **arrays)  # type: ignore
        partial.replace(self.path)

    def _load(self) -> None:
        try:
            with np.load(self.path, allow_pickle=False) as file:
                if int(file["variants"]) != self.variants:
                    raise ValueError(f"{file['variants']} variants")
                self.known = json.loads(str(file["known"]))
                for name, part in zip(self.NAMES, self.parts):
                    part.extend(torch.from_numpy(file[name]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise FairAdapterError(
                f"{self.path}: expected readings of an earlier run, found {error}; delete it to read again"
            ) from error

    def faces(self, rows: Sequence[Row]) -> Faces:
        seen = [row for row in rows if self.known.get(row["file"], -1) >= 0]
        if not seen:
            raise FairAdapterError(f"{self.path.stem}: expected pictures with faces, found none")
        index = [self.known[row["file"]] for row in seen]
        default, evaluator, hashes = (torch.stack([part[i] for i in index]) for part in self.parts)
        return Faces(seen, {"default": default, "evaluator": evaluator}, hashes)
