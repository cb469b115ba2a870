"""Fairness adapters: one safetensors file with a LoRA, soft tokens or both, for one target or for any.

    lora_te_..., lora_unet_...    kohya LoRA: .lora_down.weight, .lora_up.weight, .alpha at the default target
                                  (SDXL and SD3: lora_te1_, lora_te2_; SD3's transformer: lora_transformer_)
    fair.gate.<kohya name>        (K, rank)   g(t) = 1 + sum_k t_k G_k, multiplies the columns of lora_up
    fair.soft.<encoder>           (n, d)      P_0, the soft tokens at the default target
    fair.soft_target.<encoder>    (K, n, d)   P_k: P(t) = P_0 + sum_k t_k P_k
    fair.soft_neutral.<encoder>   (n, d)      where strength begins; zero if left out
    fair.target                   (K,)        the default target's vector, in files that follow the target
    metadata `fair_adapter`       JSON, see adapter_info.py
    metadata `fair_adapter_layout`            sha256 of names, types and shapes as they were written: a file
                                  of others was converted since, one of the same with other content is damaged

t are the target coordinates (adapter_target.py), zero at the default target: all that a stock loader knows
to read is the default target, and `at(default)` is what stands in the file, bit for bit. Encoders: clip_l,
clip_g, clip_h (SD 2), t5xxl.

A1111, Forge and ComfyUI pass over the `fair.` tensors. diffusers refuses a file that has any without "lora"
in its name, and in silence loads nothing of one that has others: `fair.target` makes sure that it refuses.

`FairnessAdapter.at(target, strength)` is the one definition of what target and strength mean, for every host.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import lora, soft_prompt
from .adapter_info import ENTRY, STRENGTHS, AdapterInfo, BaseModel, public_metadata
from .adapter_layout import (
    VECTOR,
    AdapterParts,
    Layouts,
    check_layouts,
    layouts_hash,
    layouts_of,
    read_outline,
    wrong,
)
from .adapter_target import TargetSpace
from .attributes import TargetDistribution
from .errors import FairAdapterError
from .tensor_file import TensorFile, payload_hash, read_tensors, serialise, write_bytes

LAYOUT = "fair_adapter_layout"
CONVERTED = "converted or changed since it was measured: the figures in the file may not hold"
_HASHES = ("sshs_model_hash", "modelspec.hash_sha256")


@dataclass(frozen=True, eq=False)
class AdapterWeights:
    """An adapter at one target and strength: plain soft tokens and a plain LoRA.

    soft: encoder -> (n, d).  lora: kohya state dict. Both empty at strength 0, which is the base model.
    target: over the adapter's attributes.  warnings: what the adapter was not trained for, one line each.
    """

    soft: Mapping[str, Tensor]
    lora: Mapping[str, Tensor]
    target: TargetDistribution
    strength: float
    warnings: tuple[str, ...] = ()

    @property
    def content_hash(self) -> str:
        """12 hex digits over all tensors: another target, strength or file gives another."""
        digest = hashlib.sha256()
        for key, value in sorted({**self.soft, **self.lora}.items()):
            digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:12]


@dataclass(frozen=True, eq=False)
class FairnessAdapter(AdapterParts):
    """info: what the file says about itself.  tensors: by their keys in the file, on the CPU.
    source: the file, for messages.  warnings: what was noticed as it was read, one line each.

    Raises FairAdapterError for tensors that are missing, unknown, of a wrong shape or type, or not finite.
    """

    info: AdapterInfo
    tensors: Mapping[str, Tensor]
    source: str = "adapter"
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_layouts(layouts_of(self.tensors), self.info, self.source)
        _check_numbers(self.tensors, self.source)

    @property
    def _layouts(self) -> Layouts:
        return layouts_of(self.tensors)

    # ---- what it does

    def at(self, target: TargetDistribution | str | None = None, strength: float = 1.0) -> AdapterWeights:
        """Plain soft tokens and a plain LoRA for a target.

        target: None is the default; see TargetSpace.resolve for texts, attributes it does not name and
            warnings.
        strength: multiplies the LoRA (its `up`) and moves the soft tokens from the neutral embedding N to
            N + strength (P(t) - N). 1 is the trained adapter; 0 gives neither tokens nor LoRA, exactly the
            base model. N is where training began (commas, unless set otherwise), so that for both parts
            strength scales what training added. In the range of `STRENGTHS`.
        """
        if not STRENGTHS[0] <= strength <= STRENGTHS[1]:  # NaN is in no range
            raise FairAdapterError(
                f"{self.source}: strength: expected {STRENGTHS[0]:g} to {STRENGTHS[1]:g}, found {strength}"
            )
        resolved = self.targets.resolve(target)
        if strength == 0:
            return AdapterWeights({}, {}, resolved.target, 0.0, resolved.warnings)
        t = resolved.coordinates
        return AdapterWeights(
            soft=soft_prompt.at_coordinates(self.tensors, t, strength),
            lora=lora.at_coordinates(self.tensors, t, strength),
            target=resolved.target,
            strength=float(strength),
            warnings=resolved.warnings,
        )

    def check_base(self, found: BaseModel) -> tuple[str, ...]:
        """That the adapter fits a loaded model; warnings if it was trained on another one of its kind, and
        those of the file itself.

        Raises FairAdapterError with reason and remedy for another architecture or width, and for a model
        that lacks a text encoder of its soft tokens.
        """
        warnings = (*self.warnings, *self.info.base.check(found, self.source))
        missing = [name for name in self.encoders if found.encoders and name not in found.encoders]
        if missing:
            raise FairAdapterError(
                f"{self.source}: has soft tokens for {', '.join(missing)}, found a model with only "
                f"{', '.join(found.encoders)}; load it with all its text encoders or choose an adapter that "
                "was trained without"
            )
        return warnings

    def check_layers(self, model: Mapping[str, tuple[int, ...]]) -> None:
        """That a model has all LoRA layers.  model: kohya name -> (out, in).  Raises FairAdapterError."""
        lora.check_layers(self.layers, model, self.source)

    # ---- the file

    @classmethod
    def read(cls, path: Path | str) -> FairnessAdapter:
        """Raises FairAdapterError for whatever is not a complete, undamaged fairness adapter. One that
        another program converted, to float16 for example, is read with a warning."""
        info = read_outline(path).info  # what is wrong with names and shapes shows before anything is read
        file = read_tensors(path, "fairness adapter", required=ENTRY)
        warnings = _check_hash(file, str(path))
        _check_vector(file.tensors.pop(VECTOR, None), info.targets, str(path))
        return cls(info, file.tensors, str(path), warnings)

    @staticmethod
    def read_info(path: Path | str) -> AdapterInfo:
        """What the file says about itself, from its header alone: for lists (see `read_outline`, which tells
        what it is made of, too). Raises as `read`, but for wrong numbers in the tensors."""
        return read_outline(path).info

    def write(self, path: Path | str, overwrite: bool = False) -> Path:
        """Write the file atomically; equal adapters give equal bytes.

        Raises FairAdapterError if the file exists and may not be overwritten, or cannot be written.
        """
        tensors = dict(self.tensors)
        if self.conditioned:
            tensors[VECTOR] = self.targets.vector_of_default()
        metadata = public_metadata(self.info, tensors, self.kind, lora_ranks(tensors))
        metadata |= {ENTRY: self.info.to_json(), LAYOUT: layouts_hash(layouts_of(tensors))}
        return write_bytes(path, serialise(tensors, metadata), overwrite)

    @property
    def negative_tokens(self) -> bool:
        """Whether it was trained with the soft tokens before the negative prompt too."""
        return self.info.configuration.get("negative_tokens") is True

    @property
    def kind(self) -> str:
        """modelspec's word for it."""
        return "lora" if self.layers else "textual-inversion"


def lora_ranks(tensors: Mapping[str, Tensor]) -> list[tuple[int, float]]:
    """(rank, alpha) of each LoRA layer."""
    names = lora.lora_names(tensors)
    return [(len(tensors[n + lora.DOWN]), float(tensors[n + lora.ALPHA])) for n in names]


# ---- checks


def _check_hash(file: TensorFile, source: str) -> tuple[str, ...]:
    """A warning if the content is another than what was measured: converted, or changed by other programs.

    They keep the metadata or make new hashes, write them in capitals or with "0x", or leave them empty.
    Raises FairAdapterError where nothing but damage explains other content than `sshs_model_hash` tells; the
    model specification's hash is one that programs keep as it was.
    """
    written = file.metadata.get(LAYOUT)
    if written and written != layouts_hash(layouts_of(file.tensors)):
        return (CONVERTED,)
    stated, spec = (_digits(file.metadata.get(key, "")) for key in _HASHES)  # an empty one agrees with all
    if all(file.payload_hash.startswith(digits) for digits in (stated, spec)):
        return ()
    ordered = payload_hash(serialise(file.tensors, {}))
    if all(ordered.startswith(digits) for digits in (stated, spec)):  # the same tensors in another order
        return ()
    if file.payload_hash.startswith(stated):  # nothing is damaged: this one is missing, or was made anew
        return (CONVERTED,)
    if not written and all(_coarse(value) for value in file.tensors.values()):  # from before there was LAYOUT
        return (CONVERTED,)
    raise FairAdapterError(
        f"{source}: expected content of sha256 {stated[:12]}, found {file.payload_hash[:12]}: the file is "
        "damaged; download or export it again"
    )


def _digits(text: str) -> str:
    """A hash as other programs write it, or its beginning, in plain form; empty if it is none."""
    plain = text.strip().lower().removeprefix("0x")
    return plain if re.fullmatch("[0-9a-f]{8,64}", plain) else ""


def _coarse(value: Tensor) -> bool:
    """Whether the numbers are, or once were, in half precision."""
    half = (value.to(dtype).to(value.dtype) for dtype in (torch.float16, torch.bfloat16))
    return any(torch.equal(value, coarser) for coarser in half)


def _check_vector(stored: Tensor | None, targets: TargetSpace, source: str) -> None:
    """That the metadata name the target that the tensors are for: another would shift every coordinate."""
    if stored is None:
        return
    expected = targets.vector_of_default()
    near = 1e-6 if stored.dtype in (torch.float32, torch.float64) else torch.finfo(stored.dtype).eps / 2
    if stored.shape != expected.shape or not torch.allclose(stored.float(), expected, rtol=near, atol=1e-6):
        found = f"the vector of another, {[round(x, 4) for x in stored.reshape(-1)[:8].tolist()]}"
        wrong(source, f"tensors for the default target {targets.default.to_text()}", found)


def _check_numbers(tensors: Mapping[str, Tensor], source: str) -> None:
    """Every number finite, every alpha positive."""
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            wrong(source, f"finite numbers in '{key}'", "NaN or infinity")
        if key.endswith(lora.ALPHA) and float(value) <= 0:
            wrong(source, f"one positive number in '{key}'", f"{float(value)}")
