"""Which tensors an adapter file holds: what their names, types and shapes alone tell, without a number read.

A list of files needs no more (`read_outline`), and whatever is wrong with the parts shows before the first
tensor is in memory. The names: adapter.py.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from torch import Tensor

from . import lora
from .adapter_info import ENTRY, AdapterInfo
from .adapter_target import TargetSpace
from .errors import FairAdapterError, one_line
from .tensor_file import TensorLayout, read_header

VECTOR = "fair.target"
MAX_TOKENS = 64  # of 75 that a prompt has; the rest is left to the words
_LAYER = r"lora_[a-z][a-z0-9]*_\w+"
_LORA_KEY = re.compile(rf"({_LAYER})(\.lora_down\.weight|\.lora_up\.weight|\.alpha)")
_GATE_KEY = re.compile(rf"fair\.gate\.({_LAYER})")
_SOFT_KEY = re.compile(r"fair\.(soft|soft_target|soft_neutral)\.([a-z][a-z0-9_]*)")
_DTYPES = ("torch.float64", "torch.float32", "torch.float16", "torch.bfloat16")
_SIDES = (("lora_te", "text encoder"), ("lora_unet", "U-Net"), ("lora_transformer", "transformer"))

Layouts = Mapping[str, TensorLayout]


class AdapterParts:
    """What info and tensor layouts tell of an adapter, whether its tensors are read or not."""

    info: AdapterInfo

    @property
    def _layouts(self) -> Layouts:
        raise NotImplementedError

    @property
    def targets(self) -> TargetSpace:
        """Default target, coordinates, trained range."""
        return self.info.targets

    @property
    def conditioned(self) -> bool:
        """Whether it can be asked for other targets than its default."""
        return self.targets.dimension > 0

    @property
    def encoders(self) -> tuple[str, ...]:
        """Text encoders that get soft tokens."""
        return soft_encoders(self._layouts)

    @property
    def layers(self) -> dict[str, tuple[int, int]]:
        """kohya name -> (out, in) of the layers with a LoRA."""
        return lora_layers(self._layouts)


@dataclass(frozen=True, eq=False)
class AdapterOutline(AdapterParts):
    """info: what the file says about itself.  layouts: of its tensors, by key.  source: for messages.

    Raises FairAdapterError for tensors that are missing, unknown, or of a wrong shape or type.
    """

    info: AdapterInfo
    layouts: Layouts
    source: str = "adapter"

    def __post_init__(self) -> None:
        check_layouts(self.layouts, self.info, self.source)

    @property
    def _layouts(self) -> Layouts:
        return self.layouts

    @property
    def tokens(self) -> int:
        """Soft tokens for each text encoder."""
        return self.layouts[f"fair.soft.{self.encoders[0]}"].shape[0] if self.encoders else 0

    @property
    def kind(self) -> str:
        """What it is made of, for people: "5 soft tokens + LoRA of text encoder and U-Net (200 layers)"."""
        parts = [_count(self.tokens, "soft token")] if self.tokens else []
        if self.layers:
            sides = [side for start, side in _SIDES if any(name.startswith(start) for name in self.layers)]
            of = f" of {' and '.join(sides)}" if sides else ""
            parts.append(f"LoRA{of} ({_count(len(self.layers), 'layer')})")
        return " + ".join(parts)


def read_outline(path: Path | str) -> AdapterOutline:
    """What the header of an adapter file tells; the tensors are not read, whatever their size.

    Raises FairAdapterError as FairnessAdapter.read, but for wrong numbers in the tensors.
    """
    header = read_header(path, "fairness adapter", required=ENTRY)
    info = AdapterInfo.from_json(header.metadata[ENTRY], str(path))
    layouts = dict(header.layouts)
    vector = layouts.pop(VECTOR, None)
    if vector is not None and vector.shape != (info.targets.dimension,):
        default = one_line(info.targets.default.to_text())
        wrong(
            str(path), f"tensors for the default target {default}", f"the vector of another, {vector.shape}"
        )
    return AdapterOutline(info, layouts, str(path))


def layouts_of(tensors: Mapping[str, Tensor]) -> dict[str, TensorLayout]:
    """The same of tensors in memory."""
    return {key: TensorLayout(str(value.dtype), tuple(value.shape)) for key, value in tensors.items()}


def layouts_hash(layouts: Layouts) -> str:
    """sha256 in hex of names, types and shapes, in any order: what a conversion changes."""
    lines = sorted(f"{key} {layout.dtype} {list(layout.shape)}" for key, layout in layouts.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def soft_encoders(keys: Iterable[str]) -> tuple[str, ...]:
    """The text encoders with soft tokens among these keys."""
    found = sorted(key for key in keys if key.startswith("fair.soft."))
    return tuple(key.removeprefix("fair.soft.") for key in found)


def lora_layers(layouts: Layouts) -> dict[str, tuple[int, int]]:
    """kohya name -> (out, in) of the layers with a LoRA among these."""
    names = sorted(key.removesuffix(lora.DOWN) for key in layouts if key.endswith(lora.DOWN))
    return {n: (layouts[n + lora.UP].shape[0], layouts[n + lora.DOWN].shape[1]) for n in names}


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


# ---- checks


def check_layouts(layouts: Layouts, info: AdapterInfo, source: str) -> None:
    """Every key known, every part complete, every type and shape right. Raises FairAdapterError."""
    if not layouts:
        raise FairAdapterError(f"{source}: expected a LoRA or soft tokens, found no tensor; export it again")
    dimension = info.targets.dimension
    for key, layout in layouts.items():
        known = any(pattern.fullmatch(key) for pattern in (_LORA_KEY, _GATE_KEY, _SOFT_KEY))
        if not known:
            wrong(source, "tensors of a fairness adapter", f"'{one_line(key, 120)}'")
        if layout.dtype not in _DTYPES:
            wrong(source, f"'{one_line(key, 120)}' in float32 or float16", layout.dtype)
        name = _LORA_KEY.fullmatch(key)
        if name:
            _check_lora(layouts, name[1], dimension, source)
        elif key.startswith(lora.GATE) and key.removeprefix(lora.GATE) + lora.DOWN not in layouts:
            wrong(source, f"the LoRA layer of '{key}'", "none")
        elif key.startswith("fair.soft"):
            _check_soft(layouts, key.rpartition(".")[2], dimension, source)
    widths = info.base.widths
    for name in soft_encoders(layouts):
        if widths and name not in widths:
            wrong(source, f"soft tokens for {' or '.join(widths)}", f"'fair.soft.{name}'")


def _check_lora(layouts: Layouts, name: str, dimension: int, source: str) -> None:
    names = (lora.DOWN, lora.UP, lora.ALPHA)
    down, up, alpha = (layouts.get(name + part) for part in names)
    if down is None or up is None or alpha is None:
        missing = next(part for part in names if name + part not in layouts)
        wrong(source, f"'{name}{missing}'", "none")
    flat = len(down.shape) == 2 and len(up.shape) == 2 and down.shape[0] == up.shape[1]
    if not flat or not math.prod(down.shape) or not math.prod(up.shape):
        found = f"{down.shape} and {up.shape}"
        wrong(source, f"'{name}' as down (rank, in) and up (out, rank)", found)
    if math.prod(alpha.shape) != 1:
        wrong(source, f"one positive number in '{name}.alpha'", f"shape {alpha.shape}")
    gate = layouts.get(lora.GATE + name)
    if gate is not None and gate.shape != (dimension, down.shape[0]):
        wrong(source, f"'{lora.GATE}{name}' of shape {(dimension, down.shape[0])}", f"{gate.shape}")


def _check_soft(layouts: Layouts, encoder: str, dimension: int, source: str) -> None:
    value = layouts.get(f"fair.soft.{encoder}")
    if value is None:
        wrong(source, f"'fair.soft.{encoder}'", "none")
    if len(value.shape) != 2 or not 1 <= value.shape[0] <= MAX_TOKENS or not value.shape[1]:
        wrong(source, f"'fair.soft.{encoder}' of 1 to {MAX_TOKENS} tokens", f"shape {value.shape}")
    shapes = {"soft_target": (dimension, *value.shape), "soft_neutral": value.shape}
    for part, shape in shapes.items():
        other = layouts.get(f"fair.{part}.{encoder}")
        if other is not None and other.shape != shape:
            wrong(source, f"'fair.{part}.{encoder}' of shape {shape}", f"{other.shape}")


def wrong(source: str, expected: str, found: str) -> NoReturn:
    """Raises the FairAdapterError of an adapter whose tensors are not what they should be."""
    raise FairAdapterError(f"{source}: expected {expected}, found {one_line(found)}; export it again")
