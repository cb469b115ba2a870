"""What the header of a single-file checkpoint says: which tensors it holds, and its metadata. Nothing else of
the file is read for it, whatever its size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ...shared.errors import FairAdapterError, reason

NETWORK = "model.diffusion_model."  # where checkpoints have U-Net or transformer
BARE = "layers.0.adaLN_modulation.0."  # of networks that are published alone, without that beginning
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")  # safetensors' words
PICKLES = (".ckpt", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class Header:
    """shapes, kinds: of the tensors by name; kinds are safetensors' words, such as F16.
    metadata: texts that whoever wrote the file put there."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    kinds: Mapping[str, str]
    metadata: Mapping[str, str]

    @classmethod
    def read(cls, path: Path, remedy: str = "download it again") -> Header:
        """Raises FairAdapterError for a pickle, and for what is no safetensors file or is cut short."""
        if path.suffix.lower() in PICKLES:
            raise FairAdapterError(
                f"{path}: expected a .safetensors checkpoint, found a pickle, which can run code; convert it"
            )
        try:
            with safe_open(path, framework="pt") as file:
                slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
                shapes = {key: tuple(part.get_shape()) for key, part in slices.items()}
                kinds = {key: str(part.get_dtype()) for key, part in slices.items()}
                return cls(path, shapes, kinds, dict(file.metadata() or {}))
        except (OSError, SafetensorError) as error:
            raise FairAdapterError(
                f"{path}: expected a .safetensors checkpoint, found {reason(error)}; {remedy}"
            ) from error

    def in_place(self) -> Header:
        """A bare network's as if it lay where checkpoints have it; others as they are."""
        if not self.has(BARE):
            return self
        shapes = {NETWORK + key: shape for key, shape in self.shapes.items()}
        kinds = {NETWORK + key: kind for key, kind in self.kinds.items()}
        return Header(self.path, shapes, kinds, self.metadata)

    def check_kinds(self, names: Iterable[str]) -> None:
        """Raises FairAdapterError for tensors of these names that are no floating-point numbers."""
        for name in sorted(names):
            if self.kinds[name] not in FLOATS:
                raise FairAdapterError(
                    f"{self.path}: expected weights in float16, bfloat16 or float32, found '{name}' as "
                    f"{self.kinds[name]}, which is nothing without the scales that it was quantised with; "
                    "download the model in float16 or bfloat16"
                )

    @cached_property
    def keys(self) -> frozenset[str]:
        return frozenset(self.shapes)

    def has(self, *beginnings: str) -> bool:
        """Whether there is a tensor for each of these beginnings, and any of them at all."""
        return bool(beginnings) and all(any(key.startswith(b) for key in self.keys) for b in beginnings)
