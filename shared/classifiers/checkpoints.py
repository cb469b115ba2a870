"""Weights that users bring: torch checkpoints and safetensors files, read without running their code.

Published checkpoints wrap the same tensors differently: a bare state dict, Lightning's ``state_dict``
entry, names under ``model.``, ``net.`` or ``module.``. One tensor that every file of the architecture has
(the anchor) tells the prefix.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import FairAdapterError, reason

_UNREADABLE = (
    OSError, EOFError, RuntimeError, ValueError, KeyError, IndexError, TypeError, AttributeError,
    AssertionError, pickle.UnpicklingError, SafetensorError,
)  # fmt: skip  # what torch.load raises on damaged files depends on where the damage is


def read_checkpoint(path: Path | None, anchor: str, name: str, remedy: str) -> tuple[dict[str, Tensor], Path]:
    """The state dict in a checkpoint, prefix removed, and its path.

    Args:
        path: .safetensors, or a torch file that ``torch.load(weights_only=True)`` accepts.
        anchor: name of a tensor that the architecture has, without prefix.
        name: the back end, for errors.
        remedy: where the weights come from, for errors.

    Raises:
        FairAdapterError: no path, no file, a damaged one, one that needs pickled code, or one without
            the anchor.
    """
    if path is None:
        raise FairAdapterError(f"{name}: expected the path of its weight file, found none; {remedy}")
    if not path.is_file():
        what = "a folder" if path.is_dir() else "none"
        raise FairAdapterError(f"{path}: expected the weight file of {name}, found {what}; {remedy}")
    try:
        loaded = _load(path)
    except _UNREADABLE as error:
        raise FairAdapterError(
            f"{path}: expected a complete checkpoint of {name}, found {path.stat().st_size} bytes that do "
            f"not load safely ({reason(error)}); {remedy}"
        ) from error
    return _unwrap(loaded, anchor, name, path, remedy), path


def _load(path: Path) -> Any:
    if path.suffix.lower() == ".safetensors":
        return load_file(str(path))
    return torch.load(str(path), map_location="cpu", weights_only=True)


def _unwrap(loaded: Any, anchor: str, name: str, path: Path, remedy: str) -> dict[str, Tensor]:
    """The tensors beside ``anchor``, named as in the architecture."""
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    entries = loaded.items() if isinstance(loaded, Mapping) else ()
    tensors = {k: v for k, v in entries if isinstance(v, Tensor)}
    prefixes = [k[: -len(anchor)] for k in tensors if k == anchor or k.endswith("." + anchor)]
    if len(prefixes) != 1:
        raise FairAdapterError(
            f"{path}: expected one tensor '{anchor}' of {name}, found {len(prefixes)} among {len(tensors)} "
            f"tensors; {remedy}"
        )
    return {k[len(prefixes[0]) :]: v for k, v in tensors.items() if k.startswith(prefixes[0])}


def load_strictly(
    module: nn.Module, tensors: Mapping[str, Tensor], path: Path, name: str, remedy: str
) -> None:
    """Gives ``module`` the tensors, float32, and freezes it in evaluation mode.

    The module may be built on the meta device, without weights of its own. BatchNorm's counters may be
    missing: files of old torch versions have none and evaluation reads none.

    Raises:
        FairAdapterError: missing, surplus, misshapen or non-finite tensors.
    """
    wanted = module.state_dict()
    missing = [k for k in wanted if k not in tensors and not k.endswith("num_batches_tracked")]
    surplus = [k for k in tensors if k not in wanted]
    shapes = [k for k in wanted if k in tensors and wanted[k].shape != tensors[k].shape]
    broken = [k for k in wanted if k in tensors and not bool(torch.isfinite(tensors[k]).all())]
    for what, keys in (("lacks", missing), ("also has", surplus), ("has of another shape", shapes),
                       ("has not finite", broken)):  # fmt: skip
        if keys:
            raise FairAdapterError(
                f"{path}: expected the tensors of {name}, but it {what} {', '.join(keys[:3])}"
                f"{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}; {remedy}"
            )
    values = {
        k: tensors[k] if k in tensors else torch.zeros(v.shape, dtype=v.dtype) for k, v in wanted.items()
    }
    values = {k: v.float() if v.is_floating_point() else v for k, v in values.items()}
    module.load_state_dict(values, assign=True)
    module.eval().requires_grad_(False)


def head_width(tensors: Mapping[str, Tensor], key: str) -> int:
    """Number of outputs of the last layer, or 0 where it is no matrix."""
    weight = tensors[key]
    return int(weight.shape[0]) if weight.dim() == 2 else 0
