"""Rendered people as a training pool: the pictures of `render.py` with the cells that are true of them.

The split `test` stays out, so that judges can be measured on hairstyles, outfits and a light that neither
they nor the model saw. Nothing is cut out and nobody is mixed: the pictures come with their alpha.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ...shared.attributes import AGE, GENDER, RACE
from ...shared.classifiers.default import load as load_default
from ...shared.errors import FairAdapterError
from ...shared.faces import FaceDetector, align_largest
from ...shared.images import DECODER_ERRORS
from .pool import Pool
from .portraits import SIDE
from .rendering import labels
from .rendering.folder import LABELS

SPLITS = ("fit", "validation")
AUGMENTATIONS, BATCH = 8, 64


def read_people(folder: Path) -> Pool:
    """The pictures of the splits fit and validation, at 128 px.

    Raises:
        FairAdapterError: no labels, a picture of them is missing or damaged, or a cell has none.
    """
    rows = [row for row in labels.read(folder / LABELS) if row["split"] in SPLITS]
    pictures = [_open(folder / row["file"]) for row in rows]
    cells = [
        (GENDER.index(row["gender"]), RACE.index(row["race"]), AGE.index(row["age_class"])) for row in rows
    ]
    if missing := len(GENDER) * len(RACE) * len(AGE) - len(set(cells)):
        raise FairAdapterError(
            f"{folder / LABELS}: expected pictures of every gender, race and age, found {missing} cells "
            "without; render more (trainer/portrait/render.py --count)"
        )
    stacked = np.stack(pictures)
    return Pool(stacked[..., :3].copy(), stacked[..., 3].copy(), np.array(cells, np.int8))


def _open(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as file:
            file.load()
            if file.mode != "RGBA" or file.width != file.height:
                raise ValueError(f"{file.mode}, {file.width} x {file.height} px")
            small = file if file.width == SIDE else file.resize((SIDE, SIDE), Image.Resampling.BOX)
            return np.array(small)
    except DECODER_ERRORS as error:
        raise FairAdapterError(
            f"{path}: expected a square RGBA picture, found {error}; run trainer/portrait/render.py again, "
            "which draws what is missing or damaged"
        ) from error


@torch.no_grad()
def people_gallery(pool: Pool, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Identity embeddings (S, 128) of the pool's faces, and for each the mean distance (S,) to the same
    picture mirrored, moved and of other light: the yardstick of memorisation. No face: left out."""
    detector, chain = FaceDetector(), load_default()
    embeddings, radii = [], []
    rng = np.random.default_rng([seed, 3])
    for i in range(len(pool.cell)):
        image, alpha = (torch.from_numpy(x[i]).float() / 255 for x in (pool.image, pool.alpha))
        picture = image.permute(2, 0, 1) * alpha + 0.5 * (1 - alpha)
        found = align_largest(torch.stack([picture, *_variations(picture, rng)]), detector)
        if len(found.faces) < 2 or int(found.owners[0]):
            continue
        embedding = chain.embed(found.faces)
        embeddings.append(embedding[0].numpy())
        radii.append(float((embedding[1:] - embedding[0]).norm(dim=1).mean()))
    return np.stack(embeddings).astype(np.float32), np.array(radii, np.float32)


def _variations(picture: torch.Tensor, rng: np.random.Generator) -> Sequence[torch.Tensor]:
    """A picture (3, H, W) mirrored, lit otherwise and moved by a few pixels, as training sees it."""
    copies = []
    for k in range(AUGMENTATIONS):
        x = picture.flip(-1) if k % 2 else picture
        across, down = rng.integers(-3, 4, 2)
        x = torch.roll(x, (int(down), int(across)), (1, 2))
        copies.append((x * float(np.exp(rng.normal(0, 0.15)))).clamp(0, 1))
    return copies
