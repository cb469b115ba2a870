"""Reading weight files: safetensors only, every failure one line with its remedy."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import FairAdapterError

WEIGHTS_FOLDER = Path(__file__).resolve().parent / "weights"
METADATA_KEY = "fair_adapter"  # one JSON entry: several entries would be written in random order
RESTORE = "restore it with `git checkout -- {}` or copy it from the release again"


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of a safetensors file (on the CPU, stored dtypes) and the JSON of its metadata entry.

    Raises:
        FairAdapterError: the file is missing, truncated or no safetensors file.
    """
    remedy = RESTORE.format(path)
    if not path.is_file():
        raise FairAdapterError(f"{path}: expected a weight file, found none; {remedy}")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = (file.metadata() or {}).get(METADATA_KEY, "{}")
            return {key: file.get_tensor(key) for key in list(file.keys())}, json.loads(metadata)
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        size = path.stat().st_size
        raise FairAdapterError(
            f"{path}: expected a complete safetensors file, found {size} bytes that do not read as one "
            f"({error}); {remedy}"
        ) from error


def dequantised(tensors: dict[str, Tensor], ranges: dict[str, list[float]], path: Path) -> dict[str, Tensor]:
    """The tensors, integers that have an entry in ``ranges`` as float32 ``level * scale + low``.

    Args:
        tensors: as stored; float16 is widened, int64 constants stay as they are.
        ranges: [scale, low] of every uint8 and int16 tensor.
        path: named in errors.
    """
    values = {}
    for name, value in tensors.items():
        if value.dtype in (torch.uint8, torch.int16):
            if name not in ranges:
                raise FairAdapterError(
                    f"{path}: expected a quantisation range for each packed tensor, found none for '{name}'; "
                    f"{RESTORE.format(path)}"
                )
            scale, low = ranges[name]
            value = value.float() * scale + low
        values[name] = value.float() if value.is_floating_point() else value
    return values


def take(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...], path: Path) -> Tensor:
    """The tensor ``name`` of ``shape``, or one line that says what the file holds instead."""
    found = tensors.get(name)
    if found is None or tuple(found.shape) != shape:
        what = "none" if found is None else f"shape {tuple(found.shape)}"
        raise FairAdapterError(
            f"{path}: expected tensor '{name}' of shape {shape}, found {what}; {RESTORE.format(path)}"
        )
    return found


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, modified: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digest(path: Path) -> str:
    """sha256 of a file in hex, remembered while size and modification time stay the same."""
    if not path.is_file():
        raise FairAdapterError(f"{path}: expected a weight file, found none; {RESTORE.format(path)}")
    status = path.stat()
    return _digest(path, status.st_size, status.st_mtime_ns)


def identity(name: str, *paths: Path) -> str:
    """``name:`` and twelve hex digits over the contents of ``paths``: which net said so."""
    joined = "".join(digest(path) for path in paths)
    return f"{name}:{hashlib.sha256(joined.encode()).hexdigest()[:12]}"
