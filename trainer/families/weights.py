"""Whether what was loaded, or is about to be, are weights at all: numbers with a point, and finite ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from ...shared.errors import FairAdapterError
from .base import DiffusionModel
from .file_parts import FilePart
from .header import Header

STEMS = r"(diffusion_pytorch_model|model)"
SHARD = r"(-\d+-of-\d+)?"


def check_folder(folder: Path, kind: type[DiffusionModel], variant: str | None) -> None:
    """Raises FairAdapterError for quantised weights in a diffusers folder, which would be read as numbers."""
    middle = re.escape(f".{variant}") if variant else ""
    wanted = re.compile(rf"{STEMS}({middle}{SHARD}|{SHARD}{middle})\.safetensors")
    for part in kind.file_parts:
        for path in sorted((folder / part.folder).glob("*.safetensors")):
            if wanted.fullmatch(path.name):
                header = Header.read(path, "restore or download it again")
                header.check_kinds(key for key in header.keys if not key.endswith("position_ids"))


@torch.no_grad()
def check_finite(model: DiffusionModel, source: object, vae: str | None) -> None:
    """Raises FairAdapterError for a tensor that holds NaN or infinity, in whatever part.

    source: of the model.  vae: what its VAE was taken from, where it is another one.
    """
    for part in model.file_parts:
        module: Any = getattr(model, part.folder)
        if module is None:
            continue
        for key, tensor in module.state_dict().items():
            if not torch.isfinite(tensor).all():
                place, name = (vae, key) if vae and part.folder == "vae" else (source, None)
                name = name or _name(part, module.config, Path(str(source)), key)
                bad = int((~torch.isfinite(tensor)).sum())
                raise FairAdapterError(
                    f"{place}: expected finite weights, found {bad} of {tensor.numel()} numbers NaN or "
                    f"infinite in '{name}'; download it again, or choose another file"
                )


def _name(part: FilePart, config: Any, source: Path, key: str) -> str:
    """Of a tensor, as the file has it that it was read from."""
    if source.is_file():
        held, name = Header.read(source).keys, part.prefix + part.namer(config)(key)
        found = next((n for n in (name, part.short(name)) if n in held), None)
        if found is not None:
            return found
    return f"{part.folder}/{key}"
