"""Builds a face bank: features of real-looking faces, the nearest of which keeps a changed face real.

    python trainer/face_bank.py FOLDER [--out FILE.safetensors] [--classifier NAME] [--certain .8]

FOLDER holds pictures, also in folders within it: CelebA, FairFace or your own. The file holds 128 numbers for
each face, and its perceived classes where the classifier is certain: no picture and no name. They can tell
whether a face is among them, so treat a bank of people's photographs as you treat the photographs. Without a
folder of your own, training builds a bank from faces that the base model itself draws.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.images import image_files, other_files, to_tensor
from fair_adapter.shared.preservation import FaceBank
from fair_adapter.trainer.instruments.face_bank import CERTAIN, certain_labels, write_bank
from fair_adapter.trainer.instruments.observer import Observer, load_observer
from fair_adapter.trainer.running.pictures import open_or_note, tell_left_out
from fair_adapter.trainer.running.processes import check_device
from fair_adapter.trainer.running.tables import print_table


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
