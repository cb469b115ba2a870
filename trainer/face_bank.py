"""Builds a face bank: features of real-looking faces, the nearest of which keeps a changed face real.

    python trainer/face_bank.py FOLDER [--out FILE.safetensors] [--classifier NAME] [--certain .8]

FOLDER holds pictures, also in folders within it: CelebA, FairFace or your own. The file holds 128 numbers for
each face, and its perceived classes where the classifier is certain: no picture and no name. They can tell
whether a face is among them, so treat a bank of people's photographs as you treat the photographs. Without a
folder of your own, training builds a bank from faces that the base model itself draws.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

if "fair_adapter" not in sys.modules:  # the repository root under its one import name
    _spec = importlib.machinery.ModuleSpec("fair_adapter", None, is_package=True)
    _spec.submodule_search_locations = [str(Path(__file__).resolve().parents[1])]
    sys.modules["fair_adapter"] = importlib.util.module_from_spec(_spec)

import torch
from torch import Tensor

from fair_adapter.shared.attributes import Attribute, ordered
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.images import image_files, other_files, to_tensor
from fair_adapter.shared.preservation import FaceBank
from fair_adapter.shared.seeds import noise_seed
from fair_adapter.shared.tensor_file import read_tensors, serialise, write_bytes
from fair_adapter.trainer.instruments.observer import Observer, View, load_observer
from fair_adapter.trainer.portrait.phrases import TRAIN
from fair_adapter.trainer.running.pictures import open_or_note, tell_left_out
from fair_adapter.trainer.running.processes import check_device
from fair_adapter.trainer.running.tables import print_table

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


# ---- from pictures


def picture_files(folder: Path) -> list[Path]:
    """All pictures below a folder in a fixed order. Raises FairAdapterError if there is none."""
    if not folder.is_dir():
        raise FairAdapterError(f"{folder}: expected a folder of pictures, found none; check the path")
    return image_files(folder, below=True)


@torch.no_grad()
def bank_from_folder(
    files: Sequence[Path], observer: Observer, certain: float = CERTAIN
) -> tuple[FaceBank, int]:
    """A bank of the largest face of each picture, and how many pictures had none.

    Those that can't be read are left out; the error stream says which and why.
    """
    features, labels, faceless, lost = [], [], 0, []
    for image in _pictures(files, lost):
        view = observer.look(image[None])
        if view.found[0] is None:
            faceless += 1
            continue
        features.append(view.features.cpu())
        labels.append({name: value.cpu() for name, value in certain_labels(view, certain).items()})
    tell_left_out(lost)
    if not features:
        raise FairAdapterError(f"face bank: none of the {len(files)} pictures shows a face; use portraits")
    joined = {a.name: torch.cat([row[a.name] for row in labels]) for a in observer.attributes}
    return FaceBank(torch.cat(features), joined), faceless


def _pictures(files: Sequence[Path], lost: list[str]) -> Iterator[Tensor]:
    from rich.progress import track

    for path in track(files, "faces", disable=not sys.stderr.isatty()):
        image = open_or_note(path, lost)
        if image is not None:
            yield to_tensor(image)


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
    return PROMPT.format(" ".join([*words, TRAIN[(7 * index) % len(TRAIN)]]))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=Path("runs/faces.safetensors"), help="the file to write")
    parser.add_argument("--classifier", default="default", help="NAME or NAME:PATH")
    parser.add_argument("--certain", type=float, default=CERTAIN, help=f"least probability ({CERTAIN})")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    try:
        files = picture_files(options.folder)
        observer = load_observer(options.classifier, device=check_device(options.device, "--device"))
        bank, faceless = bank_from_folder(files, observer, options.certain)
        write_bank(bank, options.out, observer)
    except (FairAdapterError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = []
    for attribute in observer.attributes:
        labels = bank.labels[attribute.name]
        counts = [f"{name} {int((labels == i).sum())}" for i, name in enumerate(attribute.classes)]
        rows.append([attribute.name, ", ".join(counts), str(int((labels < 0).sum()))])
    print_table(["attribute", "faces", "uncertain"], rows, f"{len(bank.features)} faces, {faceless} without")
    print(f"wrote {options.out}")
    tell_left_out([], other_files(options.folder, below=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
