"""Trains the evaluator's race head, measures its temperatures and states its accuracy.

    python trainer/face_chain/fit_evaluator.py FACES                     a folder with faces.csv and images/
    python trainer/face_chain/fit_evaluator.py FACES --compare default   also compare with another classifier

Labels are the words that the pictures were searched for (column retrieval_text of faces.csv), never another
net's reading. They are what CLIP retrieved for those words, so a few per cent are wrong, and they bound the
accuracy that can be measured. Each picture counts once: copies are found by difference hash.

The race head is a logistic regression on unit-length embeddings. Its accuracy and temperature come from the
predictions of ten-fold cross-validation, the stored head from all labelled faces. Gender and age were
trained elsewhere and are only measured. Run it again after `trainer/face_chain/convert_evaluator.py`.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fair_adapter.shared.attributes import AGE, GENDER, RACE, Attribute
from fair_adapter.shared.classifiers import load_classifier
from fair_adapter.shared.classifiers.evaluator import (
    BATCH,
    HEAD_FILE,
    NET_FILE,
    Accuracy,
    FaceResNet,
    gender_logits,
    two_ages,
)
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.faces import FaceDetector, align_largest
from fair_adapter.shared.images import to_tensor
from fair_adapter.shared.metrics import wilson_interval
from fair_adapter.shared.weight_files import WEIGHTS_FOLDER
from fair_adapter.trainer.face_chain.calibrate import Calibration, calibrate, label
from fair_adapter.trainer.face_chain.convert_weights import fit_linear, write
from fair_adapter.trainer.running.pictures import open_or_note, tell_left_out

ATTRIBUTES = (GENDER, RACE, AGE)
FOLDS = 10
HASH_SIDE, HASH_DISTANCE = 16, 32  # of 256 bits; pairs are rare between 24 and 40, copies lie below


@dataclass(frozen=True)
class Portraits:
    """Faces of N pictures. faces: (N, 3, 256, 256) aligned.  rows: their rows of faces.csv."""

    faces: Tensor
    rows: list[dict[str, str]]


@dataclass(frozen=True)
class Judged:
    """Readings of one attribute against the labels. logits: (M, K), uncalibrated.  classes: (M,)."""

    attribute: Attribute
    logits: Tensor
    classes: Tensor
    calibration: Calibration

    @property
    def accuracy(self) -> Accuracy:
        correct, count = int((self.logits.argmax(1) == self.classes).sum()), len(self.classes)
        low, high = wilson_interval(correct, count)
        return Accuracy(correct, count, round(low, 4), round(high, 4))

    def lines(self) -> list[str]:
        """Accuracy, calibration and confusion, to print."""
        a, c, classes = self.accuracy, self.calibration, self.attribute.classes
        table = confusion(self.classes, self.logits.argmax(1), len(classes))
        return [
            f"{self.attribute.name}: {a.correct}/{a.count} = {a.correct / a.count:.3f} "
            f"(95%: {a.low:.3f}-{a.high:.3f}); mean confidence {c.confidence:.3f}, calibration error "
            f"{c.before.ece:.3f}, best temperature {c.optimum:.2f}, stored {c.temperature:.2f}",
            *(f"  {name:>8} read as {'/'.join(classes)}: {row}" for name, row in zip(classes, table)),
        ]


def read_portraits(folder: Path) -> Portraits:
    """The portraits of ``folder`` that show a face, the largest of each, in the order of faces.csv."""
    table = folder / "faces.csv"
    if not table.is_file():
        raise FairAdapterError(
            f"{table}: expected the table of portraits, found none; pass the folder that has it"
        )
    detector, faces, rows = FaceDetector(), [], []
    lost: list[str] = []
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            image = open_or_note(folder / "images" / row["file"], lost)
            if image is None:
                continue
            found = align_largest(to_tensor(image)[None], detector)
            if len(found.faces):
                faces.append(found.faces[0])
                rows.append(row)
    tell_left_out(lost)
    if not faces:
        raise FairAdapterError(f"{table}: expected portraits with faces, found none")
    return Portraits(torch.stack(faces), rows)


def picture_groups(faces: Tensor) -> list[int]:
    """For each face (N, 3, H, W) the index of the first one that shows the same picture (single linkage).

    Difference hash: whether each of 16 x 17 grey means is brighter than its left neighbour.
    """
    grey = F.adaptive_avg_pool2d(faces.mean(1, keepdim=True), (HASH_SIDE, HASH_SIDE + 1))[:, 0]
    bits = (grey[:, :, 1:] > grey[:, :, :-1]).flatten(1).float()
    different = bits @ (1 - bits).T + (1 - bits) @ bits.T  # Hamming distances
    groups = list(range(len(faces)))
    for i, j in (different <= HASH_DISTANCE).triu(1).nonzero().tolist():
        a, b = sorted((groups[i], groups[j]))
        groups = [a if g == b else g for g in groups]
    return groups


def labelled(rows: list[dict[str, str]], groups: list[int], attribute: Attribute) -> tuple[list[int], Tensor]:
    """Indices of the labelled faces, each picture once, and their classes (M,).

    Pictures whose copies were found under words for different classes are left out.
    """
    named: dict[int, dict[int, int]] = {}  # group -> class -> first face
    for i, (group, row) in enumerate(zip(groups, rows)):
        found = label(row, attribute)
        if found is not None:
            named.setdefault(group, {}).setdefault(found, i)
    pairs = [(i, found) for classes in named.values() if len(classes) == 1 for found, i in classes.items()]
    if len({found for _, found in pairs}) < len(attribute):
        raise FairAdapterError(
            f"faces.csv: expected search texts for {', '.join(attribute.classes)}, found too few"
        )
    return [i for i, _ in pairs], torch.tensor([found for _, found in pairs])


@torch.no_grad()
def read_faces(net: FaceResNet, faces: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Unit-length embeddings (N, 1024) and uncalibrated logits of gender and age of aligned faces."""
    embedding, male, years = (torch.cat(values) for values in zip(*map(net, faces.split(BATCH))))
    return F.normalize(embedding), {"gender": gender_logits(male), "age": two_ages(years)}


def cross_validate(inputs: Tensor, classes: Tensor) -> Tensor:
    """Logits (M, K) of each face by a head that was trained without its fold; folds have equal shares."""
    count = int(classes.max()) + 1
    fold = torch.empty_like(classes)
    for member in range(count):
        chosen = (classes == member).nonzero()[:, 0]
        fold[chosen] = torch.arange(len(chosen)) % FOLDS
    logits = torch.empty(len(inputs), count)
    for k in range(FOLDS):
        weight, bias = fit_linear(inputs[fold != k], classes[fold != k], count)
        logits[fold == k] = inputs[fold == k] @ weight.T + bias
    return logits


def confusion(rows: Tensor, columns: Tensor, size: int) -> list[list[int]]:
    """How often each pair of classes occurs, (size, size)."""
    return torch.bincount(rows * size + columns, minlength=size * size).view(size, size).tolist()


def fit(portraits: Portraits, folder: Path) -> list[str]:
    """Writes the head into ``folder``, beside the net; returns the report's lines."""
    groups = picture_groups(portraits.faces)
    embeddings, logits = read_faces(FaceResNet(folder / NET_FILE), portraits.faces)
    judged: dict[str, Judged] = {}
    head: dict[str, Tensor] = {}
    for attribute in ATTRIBUTES:
        chosen, classes = labelled(portraits.rows, groups, attribute)
        if attribute == RACE:
            found = cross_validate(embeddings[chosen], classes)
            head["weight"], head["bias"] = fit_linear(embeddings[chosen], classes, len(RACE))
        else:
            found = logits[attribute.name][chosen]
        calibration = calibrate(found.double().numpy(), classes.numpy())
        judged[attribute.name] = Judged(attribute, found, classes, calibration)
    notes = {
        "source": f"own head on the embedding of {NET_FILE}, trained on the training portraits' search texts",
        "licence": "MIT",
        "classes": list(RACE.classes),
        "temperatures": {name: j.calibration.temperature for name, j in judged.items()},
        "accuracy": {name: asdict(j.accuracy) for name, j in judged.items()},
    }
    write(folder / HEAD_FILE, head, notes)
    pictures = f"{len(groups)} faces, {len(set(groups))} different pictures"
    return [pictures, *(line for j in judged.values() for line in j.lines())]


@torch.no_grad()
def compare(portraits: Portraits, name: str, folder: Path) -> list[str]:
    """Where classifier ``name`` and the evaluator in ``folder`` differ, on every face; lines to print."""
    classifier, judge = load_classifier(name), load_classifier("evaluator", folder)
    parts = portraits.faces.split(BATCH)
    readings: list[Mapping[str, Tensor]] = [
        {
            a.name: torch.cat([reading[a.name].argmax(1) for reading in map(net, parts)])
            for a in net.attributes
        }
        for net in (classifier, judge)
    ]
    lines = []
    for attribute in (a for a in classifier.attributes if a in judge.attributes):
        first, second = (reading[attribute.name] for reading in readings)
        same, count, classes = int((first == second).sum()), len(first), attribute.classes
        low, high = wilson_interval(same, count)
        lines.append(
            f"{attribute.name}: {name} and evaluator agree on {same}/{count} = {same / count:.3f} "
            f"(95%: {low:.3f}-{high:.3f})"
        )
        table = confusion(first, second, len(classes))
        lines += [
            f"  {c:>8} by {name}, by evaluator {'/'.join(classes)}: {row}" for c, row in zip(classes, table)
        ]
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("faces", type=Path, help="folder with faces.csv and images/")
    parser.add_argument(
        "--out", type=Path, default=WEIGHTS_FOLDER, help=f"folder of {NET_FILE} and {HEAD_FILE}"
    )
    parser.add_argument(
        "--compare", metavar="CLASSIFIER", help="compare with this classifier, for example default"
    )
    options = parser.parse_args(arguments)
    try:
        portraits = read_portraits(options.faces)
        lines = fit(portraits, options.out)
        if options.compare:
            lines += compare(portraits, options.compare, options.out)
    except (FairAdapterError, OSError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
