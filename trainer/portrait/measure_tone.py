"""Measures the ruler for skin tone on rendered people, whose tone under a fixed neutral light is known.

    python trainer/portrait/measure_tone.py --people FOLDER [--split validation test] [--count 200] [--seed 7]

Every picture gets a backdrop of its own, drawn at random: grey, one colour, a gradient or coloured blobs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fair_adapter.shared.attributes import TONE_BOUNDS
from fair_adapter.shared.bars import CERTAIN
from fair_adapter.shared.classifiers.skin_tone import load, soft_classes
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.faces import FaceDetector, align_largest
from fair_adapter.trainer.portrait.rendering import labels

BATCH = 24
DRAWS = 1000  # of the bootstrap


def backdrop(rng: np.random.Generator, side: int) -> np.ndarray:
    """(side, side, 3) in [0, 1]."""
    kind = rng.integers(4)

    def colour() -> np.ndarray:
        return rng.random(3) * rng.uniform(0.3, 1)

    if kind < 2:
        return np.ones((side, side, 3)) * (rng.random() if kind == 0 else colour())
    if kind == 2:
        first, second, t = colour(), colour(), np.linspace(0, 1, side)[:, None, None]
        gradient = first * (1 - t) + second * t + np.zeros((side, side, 3))
        return gradient if rng.random() < 0.5 else gradient.transpose(1, 0, 2)
    cells = int(rng.integers(2, 12))
    blobs = np.clip(rng.random((cells, cells, 3)) * rng.uniform(0.5, 1) * colour() * 2, 0, 1)
    small = Image.fromarray((blobs * 255).astype(np.uint8))
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC)) / 255


def composed(path: Path, seed: int, index: int) -> torch.Tensor:
    """(3, H, W) in 256 levels of [0, 1].  Raises FairAdapterError for a picture that can't be read."""
    try:
        with Image.open(path) as image:
            rgba = np.asarray(image.convert("RGBA"), float) / 255
    except OSError as error:
        raise FairAdapterError(
            f"{path}: can't be read ({error}); delete it and run render.py again"
        ) from error
    colour, cover = rgba[..., :3], rgba[..., 3:]
    behind = backdrop(np.random.default_rng([seed, index]), len(rgba))
    mixed = colour * cover + behind * (1 - cover)
    return torch.from_numpy(np.round(mixed * 255) / 255).float().movedim(-1, 0)


def read(people: Path, rows: list[dict[str, str]], seed: int) -> np.ndarray:
    """(3, n) of the faces found: angle read, whether it is certain, angle known."""
    detector, ruler = FaceDetector(), load()
    found: list[np.ndarray] = []
    for first in range(0, len(rows), BATCH):
        chunk = rows[first : first + BATCH]
        pictures = [composed(people / row["file"], seed, int(row["index"])) for row in chunk]
        faces = align_largest(torch.stack(pictures), detector)
        reading = ruler.read(faces.faces)
        top = soft_classes(reading.angle, reading.doubt).softmax(1).amax(1)
        known = [float(row["skin_seen"]) for row, face in zip(chunk, faces.found) if face is not None]
        found.append(np.stack([reading.angle.numpy(), (top >= CERTAIN).numpy(), np.array(known)]))
    return np.concatenate(found, 1)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, ties at their mean rank."""

    def ranks(values: np.ndarray) -> np.ndarray:
        _, place, count = np.unique(values, return_inverse=True, return_counts=True)
        return (np.cumsum(count) - (count - 1) / 2)[place]

    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def told(name: str, angle: np.ndarray, sure: np.ndarray, known: np.ndarray) -> str:
    """One line of figures."""
    sure = sure > 0
    a, b = angle[sure], known[sure]
    rng = np.random.default_rng(0)
    draws = [rank_correlation(a[i], b[i]) for i in (rng.integers(len(a), size=len(a)) for _ in range(DRAWS))]
    low, high = np.quantile(draws, (0.025, 0.975))
    bounds = np.array(TONE_BOUNDS)
    off = np.abs((a[:, None] <= bounds).sum(1) - (b[:, None] <= bounds).sum(1))
    return (
        f"{name}: n={len(angle)}, certain {sure.mean():.3f}, rank correlation of these "
        f"{rank_correlation(a, b):.3f} [{low:.3f}, {high:.3f}], of all {rank_correlation(angle, known):.3f}; "
        f"off by {np.abs(a - b).mean():.1f} degrees, class right {(off == 0).mean():.3f}, or its neighbour "
        f"{(off <= 1).mean():.3f}"
    )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="The ruler for skin tone on rendered people.")
    parser.add_argument("--people", type=Path, required=True, help="folder of render.py")
    parser.add_argument("--split", nargs="+", default=["validation", "test"])
    parser.add_argument("--count", type=int, help="pictures of each split, the first ones")
    parser.add_argument("--seed", type=int, default=7, help="of the backdrops")
    options = parser.parse_args(arguments)
    try:
        rows = labels.read(options.people / "labels.csv")
        for split in options.split:
            chosen = [row for row in rows if row["split"] == split][: options.count]
            if not chosen:
                raise FairAdapterError(f"{options.people}: expected pictures of split {split}, found none")
            print(told(split, *read(options.people, chosen, options.seed)), flush=True)
    except FairAdapterError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
