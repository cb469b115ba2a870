"""Converts what the trainer makes into files that other programs load.

python trainer/export.py portrait [--out portrait.safetensors]   one checkpoint + yaml for AUTOMATIC1111
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import sys
from pathlib import Path

if "fair_adapter" not in sys.modules:  # the repository root under its one import name
    _spec = importlib.machinery.ModuleSpec("fair_adapter", None, is_package=True)
    _spec.submodule_search_locations = [str(Path(__file__).resolve().parents[1])]
    sys.modules["fair_adapter"] = importlib.util.module_from_spec(_spec)

from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.trainer.families.stable_diffusion import PORTRAIT
from fair_adapter.trainer.portrait.single_file import write_single_file


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Convert models and adapters for other programs.")
    commands = parser.add_subparsers(dest="what", required=True)
    portrait = commands.add_parser("portrait", help="the portrait model as one checkpoint with its yaml")
    portrait.add_argument("--model", type=Path, default=PORTRAIT, help="diffusers folder")
    portrait.add_argument("--out", type=Path, default=Path("runs/portrait.safetensors"))
    options = parser.parse_args(arguments)
    try:
        write_single_file(options.model, options.out)
    except FairAdapterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {options.out} and {options.out.with_suffix('.yaml')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
