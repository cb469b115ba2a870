"""Measures the portrait model against its bars; prints a table, exits 1 if one falls short.

    python trainer/portrait/measure.py [--model DIR] [--per-prompt 48] [--scale S] [--json FILE] [--grid FILE]

Pictures: the 50 held-out occupations and 50 other phrases, the paper's template, DPM-Solver++ 20 steps, noise
seeds that depend on (prompt, index) only. Attributes are read by the default face chain, cues by
``world.recognise_cue``. The pictures are float32's; only the time is taken in what the device computes in
(`--dtype auto` elsewhere). Nothing here is a person's identity: "identity" is an embedding distance.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from fair_adapter.shared.attributes import AGE, GENDER, RACE
from fair_adapter.shared.classifiers.default import load as load_default
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.faces.detection import FaceDetector
from fair_adapter.shared.faces.selection import align_largest
from fair_adapter.shared.metrics import measure_bias, measure_joint
from fair_adapter.shared.seeds import noise_seed
from fair_adapter.trainer.families.loading import weights_dtype
from fair_adapter.trainer.families.portrait import PORTRAIT
from fair_adapter.trainer.families.stable_diffusion import StableDiffusion
from fair_adapter.trainer.portrait.card import read_card
from fair_adapter.trainer.portrait.pool import load_arrays
from fair_adapter.trainer.portrait.world import Phrase, attribute_shares, build_world, recognise_cue

STEPS = 20
ATTRIBUTES = (GENDER, RACE, AGE)


@dataclass(frozen=True)
class Readings:
    """What was read off the pictures of all phrases, n for each.

    labels: attribute -> (P, n) class indices, -1 without a face.
    cues: (P, n) recognised; embeddings: (F, 128) of the faces.
    """

    labels: dict[str, np.ndarray]
    cues: np.ndarray
    embeddings: np.ndarray


@dataclass(frozen=True)
class Bar:
    """One requirement: ``value`` must be at least (or at most) ``bound``."""

    name: str
    value: float
    bound: float
    at_least: bool
    note: str = ""

    @property
    def met(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def chosen_phrases(world: tuple[Phrase, ...]) -> list[Phrase]:
    """The 50 held-out occupations, then 50 others spread over all groups."""
    others = [p for p in world if p.group != "test"]
    return [p for p in world if p.group == "test"] + [others[i * len(others) // 50] for i in range(50)]


def read_pictures(
    model: StableDiffusion, phrases: list[Phrase], per_prompt: int, scale: float, quiet: bool
) -> tuple[Readings, Tensor]:
    """Generates and reads; also returns the first picture of each of 48 phrases (48, 3, 128, 128)."""
    detector, classifier = FaceDetector(), load_default()
    labels: dict[str, list[np.ndarray]] = {a.name: [] for a in ATTRIBUTES}
    cues, embeddings, first = [], [], []
    for phrase in track(phrases, "portraits", disable=quiet):
        prompt = phrase.prompt()
        seeds = [noise_seed(prompt, i) for i in range(per_prompt)]
        images = model.generate([prompt] * per_prompt, seeds, scale, STEPS, batch=24)
        with torch.no_grad():
            aligned = align_largest(images, detector)
            reading = classifier.read(aligned.faces)
        for a in ATTRIBUTES:
            row = np.full(per_prompt, -1)
            row[aligned.owners.numpy()] = reading.logits[a.name].argmax(1).numpy()
            labels[a.name].append(row)
        cues.append(recognise_cue(images).numpy())
        embeddings.append(reading.embedding.numpy())
        first.append(images[0])
    stacked = {name: np.stack(rows) for name, rows in labels.items()}
    return Readings(stacked, np.stack(cues), np.concatenate(embeddings)), torch.stack(first)


def share_error(readings: Readings, phrases: list[Phrase]) -> tuple[float, float]:
    """Mean absolute error of the measured shares against the table, and what sampling alone would give."""
    rng = np.random.default_rng(0)
    errors, floors = [], []
    for i, phrase in enumerate(phrases):
        for attribute, table in zip(ATTRIBUTES, attribute_shares(phrase)):
            row = readings.labels[attribute.name][i]
            row = row[row >= 0]
            if len(row):
                counts = np.bincount(row, minlength=len(table))
                errors.append(np.abs(counts / len(row) - table).mean())
                draws = rng.multinomial(len(row), table / table.sum(), 200) / len(row)
                floors.append(np.abs(draws - table).mean())
    return float(np.mean(errors)), float(np.mean(floors))


def gallery_share(embeddings: np.ndarray, gallery: dict[str, np.ndarray]) -> float:
    """Share of samples whose nearest training face is no closer than that face's own augmentations are."""
    distances = torch.cdist(torch.from_numpy(embeddings), torch.from_numpy(gallery["embedding"]))
    nearest, index = distances.min(1)
    return float((nearest.numpy() >= gallery["radius"][index.numpy()]).mean())


def mean_distance(embeddings: np.ndarray, pairs: int = 20000) -> float:
    """Mean identity distance of random pairs of different rows."""
    rng = np.random.default_rng(0)
    i, j = rng.integers(len(embeddings), size=(2, pairs))
    keep = i != j
    return float(np.linalg.norm(embeddings[i[keep]] - embeddings[j[keep]], axis=1).mean())


def seconds_for_32(model: StableDiffusion, scale: float) -> float:
    """Wall-clock of 32 pictures on the threads that torch has, the better of two runs."""
    prompts, seeds = ["a photo of the face of a doctor, a person"] * 32, list(range(32))
    times = []
    for _ in range(2):
        began = time.perf_counter()
        model.generate(prompts, seeds, scale, STEPS)
        times.append(time.perf_counter() - began)
    return min(times)


def all_bars(
    model: StableDiffusion, folder: Path, phrases: list[Phrase], readings: Readings, scale: float
) -> list[Bar]:
    gallery = load_arrays(folder / "identities.npz", "export")
    test = slice(0, 50)
    gender = measure_bias(list(readings.labels["gender"][test]), GENDER.classes)
    race = measure_bias(list(readings.labels["race"][test]), RACE.classes)
    joint = measure_joint(
        {a.name: list(readings.labels[a.name][test]) for a in (GENDER, RACE)}, (GENDER, RACE)
    )
    error, error_floor = share_error(readings, phrases)
    faces = readings.labels["gender"] >= 0
    quick = StableDiffusion.load(folder, dtype=weights_dtype("auto", model.device))
    diversity = mean_distance(readings.embeddings) / mean_distance(gallery["embedding"])
    cue = readings.cues == np.array([p.cue for p in phrases])[:, None]
    size = sum(f.stat().st_size for f in folder.rglob("*.safetensors")) / 1e6
    return [
        Bar("faces found", float(faces.mean()), 0.97, True, f"n={faces.size}"),
        Bar("share error (mean absolute)", error, 0.10, False, f"floor {error_floor:.3f}"),
        Bar("gender bias, held out", gender.bias, 0.60, True, _interval(gender.ci95, gender.floor)),
        Bar("race bias, held out", race.bias, 0.45, True, _interval(race.ci95, race.floor)),
        Bar(
            "gender x race bias",
            joint.bias,
            0.0,
            True,
            _interval(joint.ci95, joint.floor) + ", for information",
        ),
        Bar("cue recognised", float(cue.mean()), 0.90, True, f"held out {cue[test].mean():.3f}"),
        Bar("not a copy of a training face", gallery_share(readings.embeddings, gallery), 0.95, True),
        Bar("identity distance / training set's", diversity, 0.85, True),
        Bar(
            "seconds for 32 pictures",
            seconds_for_32(quick, scale),
            8.0,
            False,
            f"{torch.get_num_threads()} threads, {quick.dtype}".replace("torch.", ""),
        ),
        Bar("megabytes of weights", size, 24.0, False),
    ]


def _interval(ci95: tuple[float, float], floor: float) -> str:
    return f"95% [{ci95[0]:.3f}, {ci95[1]:.3f}], floor {floor:.3f}"


def save_grid(pictures: Tensor, path: Path, columns: int = 8) -> None:
    """Pictures (N, 3, H, W) in [0, 1] side by side."""
    from fair_adapter.shared.images import to_pil

    rows = [
        torch.cat(list(pictures[i : i + columns]), 2)
        for i in range(0, len(pictures) // columns * columns, columns)
    ]
    to_pil(torch.cat(rows, 1)).save(path)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure the portrait model against its bars.")
    parser.add_argument(
        "--model", type=Path, default=PORTRAIT, help="diffusers folder (default: the shipped one)"
    )
    parser.add_argument("--per-prompt", type=int, default=48, help="pictures for each of the 100 phrases")
    parser.add_argument("--scale", type=float, help="guidance scale (default: the card's)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--grid", type=Path, help="write 48 pictures there")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(arguments)
    try:
        model = StableDiffusion.load(options.model)
        scale = options.scale or read_card(options.model).guidance_scale
        phrases = chosen_phrases(build_world())
        readings, first = read_pictures(model, phrases, options.per_prompt, scale, options.quiet)
        bars = all_bars(model, options.model, phrases, readings, scale)
        if options.grid:
            save_grid(first[:48], options.grid)
        if options.json:
            figures = {
                b.name: {"value": b.value, "bound": b.bound, "met": b.met, "note": b.note} for b in bars
            }
            options.json.write_text(
                json.dumps(
                    {
                        "scale": scale,
                        "steps": STEPS,
                        "per_prompt": options.per_prompt,
                        "command": " ".join(sys.argv),
                        "bars": figures,
                    },
                    indent=2,
                )
                + "\n",
                encoding="utf-8",
            )
    except (FairAdapterError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    table = Table(
        "bar", "measured", "bound", "", "", title=f"portrait model, guidance scale {scale}, {STEPS} steps"
    )
    for b in bars:
        table.add_row(
            b.name,
            f"{b.value:.3f}",
            f"{'>=' if b.at_least else '<='} {b.bound}",
            "ok" if b.met else "SHORT",
            b.note,
        )
    Console().print(table)
    return 0 if all(b.met for b in bars) else 1


if __name__ == "__main__":
    sys.exit(main())
