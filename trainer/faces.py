"""Shows what the classifiers see in your own pictures.

    python trainer/faces.py IMAGE_OR_FOLDER [--out DIR] [--classifier NAME] [--all-faces]

Prints a table (file, face, what was read with its probability, what is uncertain) and writes copies with
boxes and bars into DIR, for several pictures also `overview.png` with the shares and their intervals. Only
the largest face of a picture is read, as in training, unless --all-faces is given. Faces are looked for from
5% of a picture's shorter side on, and from 16 px of the 1024 px that it is reduced to; rows of many faces and
very large pictures are searched part by part. Where none is found, the table says from which size on one is
seen. Inputs are never overwritten. Exit code 2 and one line on bad input; a folder goes on past pictures
that can't be read, and the end says which and why.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch
from PIL import Image

from fair_adapter.shared.bar_grid import draw_grid
from fair_adapter.shared.bars import CERTAIN, FaceBars, draw_faces, resized
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.faces import least_face
from fair_adapter.shared.images import image_files, other_files, to_tensor
from fair_adapter.shared.reader import FaceReader, PictureReading
from fair_adapter.trainer.running.pictures import open_or_note, tell_left_out
from fair_adapter.trainer.running.processes import check_device
from fair_adapter.trainer.running.tables import print_table

OVERVIEW = 120  # pictures on the overview
TILE = 256  # px


def table_rows(name: str, reading: PictureReading, names: list[str], least: int) -> list[list[str]]:
    """One line for each face of a picture, or one that says "no face".  least: px that a face needs."""
    if not reading.faces:
        return [[name, f"no face of {least} px", *("" for _ in names), ""]]
    rows = []
    for index, face in enumerate(reading.faces):
        cells = {bar.attribute: f"{bar.label} {bar.confidence:.2f}" for bar in face.bars}
        if reading.years and "age" in cells:
            cells["age"] += f", {reading.years[index]:.0f} years"
        unsure = ", ".join(bar.attribute for bar in face.bars if not bar.certain)
        rows.append([name, str(index + 1), *(cells[attribute] for attribute in names), unsure])
    return rows


def prepare_folder(out: Path) -> None:
    """Makes the folder and proves that it can be written to."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise FairAdapterError(
            f"{out}: expected a folder that can be written to, found one that can't ({error.strerror}); "
            "choose another with --out"
        ) from error


def output_paths(files: list[Path], out: Path) -> dict[Path, Path]:
    """Where each picture's copy goes: never onto an input, never two onto one."""
    stems = Counter(path.stem.lower() for path in files)
    taken = {path.resolve() for path in files}
    targets = {}
    for path in files:
        stem = path.stem if stems[path.stem.lower()] == 1 else f"{path.stem}_{path.suffix[1:]}"
        targets[path] = out / f"{stem}_faces.png"
    clash = next((t for t in [*targets.values(), out / "overview.png"] if t.resolve() in taken), None)
    if clash is not None:
        raise FairAdapterError(
            f"{clash}: is one of the pictures and would be overwritten; choose another --out"
        )
    return targets


def run(options: argparse.Namespace) -> int:
    """Reads, draws and prints; returns the exit code."""
    files = image_files(options.path)
    targets = output_paths(files, options.out)
    device = check_device(options.device, "--device")
    reader = FaceReader(options.classifier, device, options.all_faces, options.certain)
    names = [a.name for a in reader.attributes]
    prepare_folder(options.out)
    rows: list[list[str]] = []
    tiles: list[tuple[Image.Image, list[FaceBars]]] = []
    bad: list[str] = []
    for path in files:
        image = open_or_note(path, bad)
        if image is None:
            continue
        reading = reader.examine(to_tensor(image)[None])[0]
        draw_faces(image, reading.faces).save(targets[path])
        rows += table_rows(path.name, reading, names, least_face(image.height, image.width))
        if len(tiles) < OVERVIEW:
            tiles.append(resized(image, reading.faces, TILE, enlarge=False))
    if not rows:
        for line in bad:
            print(f"error: {line}", file=sys.stderr)
        return 2
    print_table(["file", "face", *names, "uncertain"], rows, f"classifier {reader.classifier.identity}")
    if len(files) > 1:
        everything = len(tiles) == len(files) - len(bad)
        title = f"{options.path}" + ("" if everything else f": first {len(tiles)} pictures")
        pictures, readings = zip(*tiles)
        draw_grid(pictures, readings, reader.attributes, title=title).save(options.out / "overview.png")
    print(f"{len(files) - len(bad)} of {len(files)} pictures read; copies with bars in {options.out}")
    tell_left_out(bad, other_files(options.path))
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, metavar="IMAGE_OR_FOLDER")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/faces"), help="folder of the copies (runs/faces)"
    )
    parser.add_argument("--classifier", default="default", help="NAME or NAME:PATH")
    parser.add_argument("--all-faces", action="store_true", help="read every face, not only the largest")
    parser.add_argument(
        "--certain", type=float, default=CERTAIN, help=f"least certain probability ({CERTAIN})"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    try:
        return run(parser.parse_args(arguments))
    except (FairAdapterError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
