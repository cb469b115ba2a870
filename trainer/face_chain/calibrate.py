"""Measures how far a classifier's confidence can be trusted, and the temperatures that correct it.

    python trainer/face_chain/calibrate.py IMAGES.csv [--classifier NAME] [--write]

IMAGES.csv has a column `file` (a picture beside the CSV or in its folder `images/`) and labels: a column
`retrieval_text` whose words are read as labels, or else columns `gender`, `race`, `age` with class names.
Rows without a word about an attribute are left out of it. Printed for each attribute: accuracy, mean
confidence, share of saturated readings, negative log likelihood (NLL) and expected calibration error (ECE)
before and after, with 95% bootstrap intervals. "After" is cross-fitted: each fold is scored with the
temperature of the others. --write stores the temperatures in `shared/weights/calibration.json`.

A temperature is at least 1: it may soften a reading, never sharpen one. The pictures are clean portraits,
generated faces are harder, and the race head was trained on some of them.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fair_adapter.shared.attributes import Attribute
from fair_adapter.shared.classifiers import AttributeClassifier, ClassifierModule, load_classifier
from fair_adapter.shared.classifiers.base import CALIBRATION
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.faces import FaceDetector, align_largest
from fair_adapter.shared.images import to_tensor
from fair_adapter.trainer.running.pictures import open_or_note, tell_left_out
from fair_adapter.trainer.running.tables import print_table

GRID = np.exp(np.linspace(np.log(0.2), np.log(10.0), 393))  # temperatures, 1% apart
BINS, FOLDS, DRAWS = 15, 5, 1000
SATURATED = 0.999

# Words of the search texts. Left out because they name no class or several: native american, non-binary.
WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "gender": {"female": ("female", "woman"), "male": ("male", "man")},
    "race": {
        "wmelh": (
            "caucasian",
            "irish",
            "scandinavian",
            "hispanic",
            "south-american",
            "persian",
            "middle eastern",
        ),
        "black": ("african",),
        "asian": ("asian",),
    },
    "age": {"young": ("30 year",), "old": ("70 year", "old age", "elderly", "middle-aged")},
}


@dataclass(frozen=True)
class Score:
    """How well probabilities fit labels: negative log likelihood and expected calibration error."""

    nll: float
    ece: float


@dataclass(frozen=True)
class Calibration:
    """One attribute of one classifier. ``after`` is cross-fitted; intervals are 95% bootstrap."""

    count: int
    accuracy: float
    confidence: float
    saturated: float
    optimum: float
    optimum_ci: tuple[float, float]
    before: Score
    after: Score
    before_ci: tuple[Score, Score]
    after_ci: tuple[Score, Score]

    @property
    def temperature(self) -> float:
        return round(max(1.0, self.optimum), 2)


def label(row: dict[str, str], attribute: Attribute) -> int | None:
    """Class index of a row: the one class its retrieval text has a word of, or its column of that name.

    Beside a retrieval text such a column holds some net's output, which is no label.
    """
    if "retrieval_text" not in row:
        name = row.get(attribute.name, "").strip().lower()
        return attribute.index(name) if name else None
    text = row["retrieval_text"].lower()
    words = WORDS.get(attribute.name, {})
    named = {
        name
        for name, options in words.items()
        if any(re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text) for word in options)
    }
    return attribute.index(named.pop()) if len(named) == 1 else None


def scores(
    logits: np.ndarray, labels: np.ndarray, temperature: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per-sample negative log likelihood, confidence and correctness of (N, K) logits at a temperature."""
    scaled = logits / np.asarray(temperature, dtype=np.float64).reshape(-1, 1)
    scaled = scaled - scaled.max(1, keepdims=True)
    log_probability = scaled - np.log(np.exp(scaled).sum(1, keepdims=True))
    chosen = log_probability.argmax(1)
    return -log_probability[np.arange(len(labels)), labels], np.exp(log_probability.max(1)), chosen == labels


def calibration_error(
    confidence: np.ndarray, correct: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Expected calibration error over 15 equal bins (Guo et al. 2017, equation 3), of weighted samples."""
    weights = np.ones(len(confidence)) if weights is None else weights
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gap = np.bincount(bins, weights * (confidence - correct), BINS)
    return float(np.abs(gap).sum() / weights.sum())


def best_temperature(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Temperature of least negative log likelihood for each row of sample weights (B, N); (B,)."""
    weights = np.ones((1, len(labels))) if weights is None else weights
    losses = np.stack([scores(logits, labels, t)[0] for t in GRID], 1)
    return GRID[(weights @ losses).argmin(1)]


def calibrate(logits: np.ndarray, labels: np.ndarray, seed: int = 0) -> Calibration:
    """Fits and scores one attribute: logits (N, K) float64, labels (N,) int."""
    generator = np.random.default_rng(seed)
    count = len(labels)
    fold = generator.permutation(count) % FOLDS
    crossed = np.ones(count)
    for k in range(FOLDS):
        held = fold == k
        crossed[held] = max(1.0, best_temperature(logits[~held], labels[~held])[0])
    draws = generator.multinomial(count, np.full(count, 1.0 / count), size=DRAWS).astype(np.float64)
    before, before_ci = _summary(*scores(logits, labels, 1.0), draws)
    after, after_ci = _summary(*scores(logits, labels, crossed), draws)
    _, confidence, correct = scores(logits, labels, 1.0)
    low, high = np.quantile(best_temperature(logits, labels, draws), (0.025, 0.975))
    return Calibration(
        count=count,
        accuracy=float(correct.mean()),
        confidence=float(confidence.mean()),
        saturated=float((confidence > SATURATED).mean()),
        optimum=float(best_temperature(logits, labels)[0]),
        optimum_ci=(float(low), float(high)),
        before=before,
        after=after,
        before_ci=before_ci,
        after_ci=after_ci,
    )


def _summary(
    losses: np.ndarray, confidence: np.ndarray, correct: np.ndarray, draws: np.ndarray
) -> tuple[Score, tuple[Score, Score]]:
    nll = np.quantile(draws @ losses / draws.sum(1), (0.025, 0.975))
    ece = np.quantile([calibration_error(confidence, correct, w) for w in draws], (0.025, 0.975))
    score = Score(float(losses.mean()), calibration_error(confidence, correct))
    return score, (Score(float(nll[0]), float(ece[0])), Score(float(nll[1]), float(ece[1])))


def read_rows(path: Path, attributes: tuple[Attribute, ...]) -> list[tuple[Path, dict[str, int]]]:
    """Pictures of the CSV that have at least one label, with their labels {attribute: class index}."""
    if not path.is_file():
        raise FairAdapterError(f"{path}: expected a CSV file with the column 'file', found none")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or "file" not in rows[0]:
        raise FairAdapterError(f"{path}: expected a CSV file with the column 'file', found none")
    labelled = []
    for row in rows:
        found = {a.name: label(row, a) for a in attributes}
        labels = {name: value for name, value in found.items() if value is not None}
        if labels:
            beside, inside = path.parent / row["file"], path.parent / "images" / row["file"]
            labelled.append((beside if beside.is_file() or not inside.is_file() else inside, labels))
    if not labelled:
        raise FairAdapterError(
            f"{path}: expected labels in {'/'.join(a.name for a in attributes)}, found none"
        )
    return labelled


def read_logits(
    rows: list[tuple[Path, dict[str, int]]], classifier: AttributeClassifier, device: torch.device
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{attribute: (logits (N, K), labels (N,))} of the largest face of each picture that shows one."""
    detector = FaceDetector()
    logits: dict[str, list[np.ndarray]] = {a.name: [] for a in classifier.attributes}
    labels: dict[str, list[int]] = {a.name: [] for a in classifier.attributes}
    lost: list[str] = []
    for path, known in rows:
        image = open_or_note(path, lost)
        if image is None:
            continue
        faces = align_largest(to_tensor(image)[None].to(device), detector).faces
        if not len(faces):
            continue
        with torch.no_grad():
            outputs = classifier(faces)
        for name, value in known.items():
            logits[name].append(outputs[name][0].double().cpu().numpy())
            labels[name].append(value)
    tell_left_out(lost)
    return {
        name: (np.array(logits[name]), np.array(labels[name]))
        for name in logits
        if len(set(labels[name])) > 1
    }


def write_calibration(
    path: Path, classifier: AttributeClassifier, name: str, source: str, found: dict[str, Calibration]
) -> None:
    """Replaces the entry ``name`` of the calibration file."""
    entry: dict[str, Any] = {}
    for attribute, c in found.items():
        entry[attribute] = {
            "temperature": c.temperature,
            "optimum": round(c.optimum, 3),
            "optimum_ci95": [round(v, 3) for v in c.optimum_ci],
            "n": c.count,
            "nll": [round(c.before.nll, 4), round(c.after.nll, 4)],
            "ece": [round(c.before.ece, 4), round(c.after.ece, 4)],
            "measured_on": source,
            "identity": classifier.identity,
        }
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    stored[name] = entry
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)


def report(name: str, found: dict[str, Calibration]) -> None:
    """Prints the table."""

    def interval(value: float, low: float, high: float, digits: int = 3) -> str:
        return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    rows = []
    for attribute, c in found.items():
        cells = [attribute, str(c.count), f"{c.accuracy:.3f}", f"{c.confidence:.3f}", f"{c.saturated:.2f}"]
        for score, ci in ((c.before, c.before_ci), (c.after, c.after_ci)):
            cells.append(interval(score.nll, ci[0].nll, ci[1].nll))
            cells.append(interval(score.ece, ci[0].ece, ci[1].ece))
        rows.append([*cells, interval(c.optimum, *c.optimum_ci, digits=2), f"{c.temperature:.2f}"])
    columns = [
        "attribute",
        "n",
        "accuracy",
        "confidence",
        f">{SATURATED}",
        "NLL before",
        "ECE before",
        "NLL after",
    ]
    print_table(
        [*columns, "ECE after", "optimal T", "stored T"], rows, f"calibration of '{name}' (95% intervals)"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path, metavar="IMAGES.csv")
    parser.add_argument("--classifier", default="default", help="NAME or NAME:PATH")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--write", action="store_true", help=f"store the temperatures in {CALIBRATION.name}")
    options = parser.parse_args(arguments)
    name = options.classifier.split(":", 1)[0]
    try:
        device = torch.device(options.device)
        classifier = load_classifier(options.classifier)
        if not isinstance(classifier, ClassifierModule):
            raise FairAdapterError(f"classifier '{name}': expected one with temperatures, found none")
        classifier.temperatures = {a.name: 1.0 for a in classifier.attributes}
        data = read_logits(read_rows(options.images, classifier.attributes), classifier.to(device), device)
        found = {attribute: calibrate(*pair) for attribute, pair in data.items()}
        if not found:
            raise FairAdapterError(f"{options.images}: expected faces of two classes or more, found too few")
        if options.write:
            write_calibration(CALIBRATION, classifier, name, options.images.name, found)
    except (FairAdapterError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    report(name, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
