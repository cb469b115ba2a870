"""Converts what the trainer makes, and the authors' released adapters, into files that other programs load.

python trainer/export.py adapter FILE [--target gender=50/50] [--name NAME] [--out DIR]
    a kohya LoRA and a textual-inversion embedding at one target, for any host's stock loaders (Stable
    Diffusion 3: for those of ComfyUI and, but for the embedding, diffusers alone)
python trainer/export.py official FILE_OR_FOLDER ... --target gender=50/50 --out adapter.safetensors
    the official release's .pth files as a fairness adapter
python trainer/export.py portrait [--out portrait.safetensors]
    a portrait model as one checkpoint with its yaml, for AUTOMATIC1111: one whose widths are whole multiples
    of the first and of 32 (the shipped one's, 64, 64, 96, 96, are not: it is refused)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fair_adapter.shared.adapter import FairnessAdapter
from fair_adapter.shared.adapter_export import export_adapter, hosts_note
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.trainer.families.portrait import PORTRAIT
from fair_adapter.trainer.official import import_official
from fair_adapter.trainer.portrait.single_file import write_single_file


def export_at_target(options: argparse.Namespace) -> list[str]:
    """Writes LoRA and embedding; returns what to tell the user."""
    adapter = FairnessAdapter.read(options.file)
    name = options.name or options.file.stem
    written = export_adapter(
        adapter, options.target, name, options.out, options.out, options.strength, options.overwrite
    )
    paths = [path for path in (written.lora, written.embedding) if path is not None]
    warnings = (*written.weights.warnings, *hosts_note(adapter))
    return [*(f"warning: {text}" for text in warnings), *(f"wrote {path}" for path in paths)]


def convert_official(options: argparse.Namespace) -> list[str]:
    """Writes one adapter of the release's .pth files."""
    name = options.name or options.out.stem
    path = import_official(options.files, options.target, name).write(options.out, options.overwrite)
    return [f"wrote {path}"]


def write_portrait(options: argparse.Namespace) -> list[str]:
    """Writes the checkpoint, its yaml and its text encoder's folder."""
    write_single_file(options.model, options.out)
    return [f"wrote {options.out}", f"wrote {options.out.with_suffix('.yaml')}"]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Convert models and adapters for other programs.")
    commands = parser.add_subparsers(dest="what", required=True)
    adapter = commands.add_parser("adapter", help="LoRA and embedding of an adapter at one target")
    adapter.add_argument("file", type=Path)
    adapter.add_argument("--target", help="e.g. gender=50/50 (default: the one it was trained for)")
    adapter.add_argument("--strength", type=float, default=1.0)
    adapter.add_argument("--name", help="of the files (default: that of the adapter's file)")
    adapter.add_argument("--out", type=Path, default=Path("runs/export"), help="folder")
    adapter.set_defaults(run=export_at_target)
    official = commands.add_parser("official", help="the official release's .pth files as an adapter")
    official.add_argument("files", type=Path, nargs="+", help=".pth files, or the folder that holds them")
    official.add_argument("--target", required=True, help="what they were trained for: exp-1 ... or a target")
    official.add_argument("--name", help="of the adapter (default: that of the file)")
    official.add_argument("--out", type=Path, required=True, help="the adapter file to write")
    official.set_defaults(run=convert_official)
    portrait = commands.add_parser("portrait", help="a portrait model as one checkpoint with its yaml")
    portrait.add_argument("--model", type=Path, default=PORTRAIT, help="diffusers folder")
    portrait.add_argument("--out", type=Path, default=Path("runs/portrait.safetensors"))
    portrait.set_defaults(run=write_portrait)
    for command in (adapter, official):
        command.add_argument("--overwrite", action="store_true", help="replace files that exist")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        lines = options.run(options)
    except FairAdapterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
