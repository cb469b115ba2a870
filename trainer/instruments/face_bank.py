"""Face banks: files of them, and faces that the base model draws for one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...shared.attributes import Attribute, ordered
from ...shared.errors import FairAdapterError
from ...shared.preservation import FaceBank
from ...shared.seeds import noise_seed
from ...shared.tensor_file import read_tensors, serialise, write_bytes
from ..configuration.prompts import names
from .observer import Observer, View

ENTRY = "fair_adapter_faces"
CERTAIN = 0.8  # least probability of a class that is written down
ROUNDS = 8  # of drawing faces of a combination before taking what there is
PROMPT = "a photo of the face of a {}, a person"


def write_bank(bank: FaceBank, path: Path, observer: Observer) -> Path:
    """A face bank as a file. Raises FairAdapterError if it can't be written."""
    table = {
        "classifier": observer.classifier.identity,
        "features": observer.chain.identity,
        "attributes": {a.name: list(a.classes) for a in observer.attributes},
    }
    tensors = {"features": bank.features, **{f"labels.{n}": v for n, v in bank.labels.items()}}
    return write_bytes(path, serialise(tensors, {ENTRY: json.dumps(table, sort_keys=True)}), overwrite=True)


def read_bank(path: Path, observer: Observer) -> FaceBank:
    """A face bank from a file.

    Raises:
        FairAdapterError: no such file, another kind of file, or one made with another classifier.
    """
    file = read_tensors(path, "face bank", required=ENTRY)
    try:
        table = json.loads(file.metadata[ENTRY])
        labels = {a.name: file.tensors[f"labels.{a.name}"] for a in observer.attributes}
        bank = FaceBank(file.tensors["features"], labels)
        made_with = (table["classifier"], table["features"])
    except (ValueError, KeyError, TypeError) as error:
        raise FairAdapterError(
            f"{path}: expected a face bank with labels of {', '.join(a.name for a in observer.attributes)}, "
            f"found another ({error}); build it again with trainer/face_bank.py"
        ) from error
    if made_with != (observer.classifier.identity, observer.chain.identity):
        raise FairAdapterError(
            f"{path}: expected a face bank made with {observer.classifier.identity}, found {made_with[0]}; "
            "build it again with trainer/face_bank.py"
        )
    return bank


def certain_labels(view: View, certain: float) -> dict[str, Tensor]:
    """attribute -> (N,) class of at least that probability, otherwise -1."""
    best = {name: p.max(dim=1) for name, p in view.probabilities().items()}
    return {name: torch.where(b.values >= certain, b.indices, -1) for name, b in best.items()}


# ---- from the base model


DrawnFace = tuple[Tensor, dict[str, Tensor]]  # feature (128,), attribute -> class or -1


def faces_of_cell(
    draw: Callable[[list[str], list[int]], Tensor],
    observer: Observer,
    attributes: Sequence[Attribute],
    cell: Sequence[str],
    count: int,
    certain: float = CERTAIN,
) -> list[DrawnFace]:
    """Faces that the base model draws when it is told a combination of classes. Deterministic.

    draw: prompts and noise seeds -> images (N, 3, H, W) in [0, 1].
    cell: a class of each of the attributes.
    count: of the faces, or as many as ROUNDS of that give; where none is certain, the likeliest.
    """
    wanted = {a.name: a.index(c) for a, c in zip(attributes, cell)}
    rows: list[tuple[float, Tensor, dict[str, Tensor]]] = []  # probability, feature, labels
    for attempt in range(ROUNDS):
        if sum(probability >= certain for probability, _, _ in rows) >= count:
            break
        prompts = [_cell_prompt(attributes, cell, attempt * count + i) for i in range(count)]
        seeds = [noise_seed(p, attempt * count + i, "face bank") for i, p in enumerate(prompts)]
        with torch.no_grad():
            view = observer.look(draw(prompts, seeds))
        probabilities, read = view.probabilities(), certain_labels(view, certain)
        for i in view.has_face.nonzero().squeeze(1).tolist():
            probability = min(float(probabilities[name][i, k]) for name, k in wanted.items())
            known = {name: value[i].cpu() for name, value in read.items()}
            rows.append((probability, view.features[i].cpu(), known))
    sure = [(feature, known) for probability, feature, known in rows if probability >= certain]
    if sure:
        return sure[:count]
    # a class that this model draws rarely: its likeliest faces stand for it
    likely = sorted((row for row in rows if row[0] > 0.5), key=lambda row: -row[0])
    as_wanted = {name: torch.tensor(k) for name, k in wanted.items()}
    return [(feature, {**known, **as_wanted}) for _, feature, known in likely[:count]]


def bank_of(faces: Sequence[DrawnFace], observer: Observer) -> FaceBank:
    """The drawn faces as a bank. Raises FairAdapterError if there is none."""
    if not faces:
        raise FairAdapterError(
            "face bank: the base model draws no face that is read as asked for; give a file of "
            "trainer/face_bank.py with faces.bank, or set faces.bank=null"
        )
    labels = {a.name: torch.stack([known[a.name] for _, known in faces]) for a in observer.attributes}
    return FaceBank(torch.stack([feature for feature, _ in faces]), labels)


def _cell_prompt(attributes: Sequence[Attribute], cell: Sequence[str], index: int) -> str:
    """The index-th prompt that names the classes: "... a young black female carpenter, a person"."""
    words = []
    named = dict(zip((a.name for a in attributes), cell))
    for attribute in reversed(ordered(attributes)):  # English puts age before race before gender
        name = named[attribute.name]
        choices = attribute.looks[attribute.index(name)].words or (name,)
        words.append(choices[index % len(choices)])
    occupations = names("train")
    return PROMPT.format(" ".join([*words, occupations[(7 * index) % len(occupations)].phrase]))
