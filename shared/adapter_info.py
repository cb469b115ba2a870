"""What an adapter file says about itself: the metadata entry `fair_adapter`, and those of other programs.

`fair_adapter` is one JSON object with `"format": 1`. `modelspec.*` (Stability AI's model specification
1.0.0), `ss_*` and `sshs_*` (kohya's sd-scripts) are what A1111, Forge and model managers show and sort by.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from .adapter_target import TargetSpace
from .entry import name_of, object_of, read_object, text_of, whole
from .errors import FairAdapterError, one_line
from .limits import MAX_PARTS, MAX_WIDTH, MAX_WORD
from .tensor_file import payload_hash, serialise

ENTRY = "fair_adapter"
FORMAT = 1
STRENGTHS = (-2.0, 4.0)  # least and most that an adapter is applied with, in every host and program
NETWORK_PARTS = ("context", "unet", "transformer")  # of `BaseModel.widths`; the others are text encoders


@dataclass(frozen=True)
class FamilyNames:
    """What other programs call the models of a family, in the metadata of files for them.

    modelspec: architecture.  kohya: `ss_base_model_version`.  v2: `ss_v2`.
    peft: whether hosts know the layers of its LoRA by diffusers' names, not by kohya's.
    """

    modelspec: str
    kohya: str
    v2: bool = False
    peft: bool = False


SD1_NAMES = FamilyNames("stable-diffusion-v1", "sd_v1")


@dataclass(frozen=True)
class BaseModel:
    """A model that adapters are trained on or put on.

    name: for people.  architecture: "sd1", "sd2", "sdxl", ...
    widths: what must agree, as far as it is known: "clip_l", "clip_g", "t5xxl" (token embedding), "context"
        (cross-attention), "unet" (first level), "transformer" (its width).
    hash: `weights_hash` of the network; empty if not known.
    names: what its family says of itself; None if not known.
    """

    name: str
    architecture: str
    widths: Mapping[str, int] = field(default_factory=dict)
    hash: str = ""
    names: FamilyNames | None = None

    @property
    def family(self) -> FamilyNames:
        """`names`; files from before there were any are for SD 1, whose names they need not say."""
        known = SD1_NAMES if self.architecture == "sd1" else FamilyNames(self.architecture, self.architecture)
        return self.names or known

    @property
    def encoders(self) -> tuple[str, ...]:
        """Its text encoders, all of them or, where a host does not tell, none."""
        return tuple(part for part in self.widths if part not in NETWORK_PARTS)

    def check(self, found: BaseModel, source: str) -> tuple[str, ...]:
        """That something trained on this model fits `found`; warnings if its weights or encoders are others.

        Raises FairAdapterError for another architecture or another width.
        """
        remedy = f"load {self.name} or choose an adapter made for {found.name}"
        if found.architecture != self.architecture:
            raise FairAdapterError(
                f"{source}: made for {self.name} ({self.architecture}), found {found.name} "
                f"({found.architecture}); {remedy}"
            )
        for part, width in self.widths.items():
            if found.widths.get(part, width) != width:
                raise FairAdapterError(
                    f"{source}: made for {self.name} ({part} of width {width}), found {found.name} "
                    f"({part} of width {found.widths[part]}); {remedy}"
                )
        warnings = []
        if self.hash and found.hash and self.hash != found.hash:
            warnings.append(f"trained on {self.name}, but {found.name} has other weights: shares may differ")
        if self.encoders and found.encoders and set(self.encoders) != set(found.encoders):
            warnings.append(
                f"trained with the text encoders {', '.join(self.encoders)}, but {found.name} has "
                f"{', '.join(found.encoders)}: shares may differ"
            )
        return tuple(warnings)


def weights_hash(input_layer: Tensor, output_layer: Tensor) -> str:
    """Which network this is, in every host's layout: the weights of its first and last layer.

    diffusers calls them `conv_in.weight` and `conv_out.weight`, checkpoints `input_blocks.0.0.weight` and
    `out.2.weight`; SD3's are `pos_embed.proj.weight` and `proj_out.weight`, in checkpoints
    `x_embedder.proj.weight` and `final_layer.linear.weight`. Taken in float16, so that float16 and float32
    files of a model agree. 64 hex digits; empty for weights in anything coarser (bfloat16, float8), which
    have lost too much to tell.
    """
    if not {input_layer.dtype, output_layer.dtype} <= {torch.float16, torch.float32, torch.float64}:
        return ""
    digest = hashlib.sha256()
    for weight in (input_layer, output_layer):
        digest.update(weight.detach().cpu().to(torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class AdapterInfo:
    """What is written into the file beside the tensors.

    name: for people, also kohya's output name.  base: the model it was trained on.
    targets: default target, kind of coordinates, trained range.
    classifier: `identity` of the classifier of training.
    prompts, evaluation, configuration: JSON objects: what it was trained on, measured as and set to.
        Of finite numbers, but of any form: `evaluation.figures` reads what can be shown.
    created: date in ISO form.
    """

    name: str
    base: BaseModel
    targets: TargetSpace
    classifier: str = ""
    prompts: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    configuration: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""
    author: str = ""
    licence: str = ""
    created: str = ""

    def to_json(self) -> str:
        """The entry `fair_adapter`.

        Raises FairAdapterError for what JSON cannot hold, such as NaN, and what `from_json` would refuse.
        """
        base = self.base
        table: dict[str, Any] = {
            "format": FORMAT,
            "name": self.name,
            "base": {
                "name": base.name,
                "architecture": base.architecture,
                "widths": dict(base.widths),
                "hash": base.hash,
                **({} if base.names is None else {"names": asdict(base.names)}),
            },
            **self.targets.to_dict(),
        }
        table |= {key: dict(getattr(self, key)) for key in _TABLES}
        table |= {key: getattr(self, key) for key in (*_NAMES, *_TEXTS)}
        try:
            text = json.dumps(table, allow_nan=False, ensure_ascii=False)
            _read(text)
            return text
        except (TypeError, ValueError, RecursionError) as error:
            raise FairAdapterError(
                f"adapter {one_line(repr(self.name), 80)}: metadata that JSON cannot hold "
                f"({one_line(error, 300)})"
            ) from error

    @classmethod
    def from_json(cls, text: str, source: str) -> AdapterInfo:
        """The reverse of `to_json`: typed, finite and within the limits of `limits`.

        Raises FairAdapterError if it is no such object or of another format.
        """
        try:
            return _read(text)
        except FairAdapterError as error:
            raise FairAdapterError(f"{source}: {one_line(error, 400)}") from error
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
            raise FairAdapterError(
                f"{source}: expected a complete metadata entry '{ENTRY}', found {one_line(repr(error))}; "
                "export it again"
            ) from error


_TABLES = ("prompts", "evaluation", "configuration")
_NAMES = ("classifier", "created")
_TEXTS = ("description", "author", "licence")


def _read(text: str) -> AdapterInfo:
    table = read_object(text)
    if table.get("format") != FORMAT:
        found = one_line(table.get("format"), 40)
        raise FairAdapterError(f"expected adapter format {FORMAT}, found {found!r}; update Fair Adapter")
    rest: dict[str, Any] = {key: object_of(table, key) for key in _TABLES}
    rest |= {key: name_of(table, key, "") for key in _NAMES} | {key: text_of(table, key) for key in _TEXTS}
    return AdapterInfo(
        name_of(table, "name"), _base_model(object_of(table, "base")), TargetSpace.from_dict(table), **rest
    )


def _base_model(table: Mapping[str, Any]) -> BaseModel:
    widths, names = object_of(table, "widths"), table.get("names")
    if len(widths) > MAX_PARTS or any(len(part) > MAX_WORD for part in widths):
        raise ValueError(f"widths: expected at most {MAX_PARTS} parts with short names, found {len(widths)}")
    return BaseModel(
        name_of(table, "name"),
        name_of(table, "architecture"),
        {part: whole(width, f"width of {part}", MAX_WIDTH) for part, width in widths.items()},
        name_of(table, "hash", ""),
        None if names is None else _family_names(object_of(table, "names")),
    )


def _family_names(table: Mapping[str, Any]) -> FamilyNames:
    flags = {key: table.get(key, False) is True for key in ("v2", "peft")}
    return FamilyNames(name_of(table, "modelspec"), name_of(table, "kohya"), **flags)


# ---- metadata of other programs


def public_metadata(
    info: AdapterInfo,
    tensors: Mapping[str, Tensor],
    kind: str = "lora",
    ranks: Iterable[tuple[int, float]] = (),
    title: str = "",
) -> dict[str, str]:
    """`modelspec.*`, `ss_*` and `sshs_*` for a file of these tensors.

    kind: "lora" or "textual-inversion".  ranks: (rank, alpha) of the LoRA layers.
    title: instead of the adapter's name.
    `sshs_model_hash` is the sha256 of all bytes after the header, `sshs_legacy_hash` (sd-scripts and A1111's
    first hash) 8 digits of that of 64 KiB from 1 MiB on, in a file whose metadata are the `ss_*` alone.
    """
    name, base = title or info.name, info.base
    family = base.family
    kohya = {
        "ss_output_name": name,
        "ss_sd_model_name": base.name,
        "ss_base_model_version": family.kohya,
        "ss_v2": str(family.v2),
        "ss_training_comment": f"fairness adapter for {info.targets.default.to_text()}",
    }
    for rank, alpha in sorted(set(ranks))[-1:]:  # one rank for all layers, or the highest
        kohya |= {"ss_network_module": "networks.lora", "ss_network_dim": str(rank)}
        kohya["ss_network_alpha"] = f"{alpha:g}"
    data = serialise(tensors, kohya)
    digest = payload_hash(data)
    spec = {
        "sai_model_spec": "1.0.0",
        "architecture": f"{family.modelspec}/{kind}",
        "implementation": "diffusers",
        "title": name,
        "description": info.description,
        "author": info.author,
        "date": info.created,
        "license": info.licence,
        "tags": "fairness, " + ", ".join(a.name for a in info.targets.attributes),
        "hash_sha256": f"0x{digest}",
    }
    return {
        **{f"modelspec.{key}": value for key, value in spec.items() if value},
        **kohya,
        "sshs_model_hash": digest,
        "sshs_legacy_hash": hashlib.sha256(data[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8],
    }
