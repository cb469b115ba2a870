"""An adapter at one target as the files that stock programs load: a kohya LoRA and a textual inversion.

With both, the stock LoRA loader at weight 1 and the embedding before the prompt (ComfyUI `embedding:NAME`,
A1111 `NAME`) do what our own loader does at that target: the tensors are those of `FairnessAdapter.at`.
SD3's LoRA has diffusers' names and is for ComfyUI and diffusers alone, its embedding for ComfyUI alone:
Forge's LoRA loader does not know the transformer's layers, A1111's not the text encoders', and neither has
embeddings for T5.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .adapter import AdapterWeights, FairnessAdapter, lora_ranks
from .adapter_info import public_metadata
from .attributes import TargetDistribution
from .errors import FairAdapterError
from .lora import peft_tensors
from .tensor_file import serialise, write_bytes

EXPORT_ENTRY = "fair_adapter_export"  # where a stock file comes from; it is no adapter any more
LANGUAGE_MODELS = ("qwen3_4b", "qwen3vl_4b")  # text encoders that ComfyUI knows by these names
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-]{0,99}")


@dataclass(frozen=True)
class ExportedFiles:
    """lora, embedding: the files written; None for a part that the adapter does not have.
    weights: what they hold, with warnings."""

    lora: Path | None
    embedding: Path | None
    weights: AdapterWeights


def hosts_note(adapter: FairnessAdapter) -> tuple[str, ...]:
    """What to tell people about the files: what was noticed of the adapter, and where they work."""
    if not adapter.info.base.family.peft:
        return adapter.warnings
    return (
        *adapter.warnings,
        f"files for {adapter.info.base.name} work in ComfyUI and, but for the embedding, in diffusers alone: "
        "AUTOMATIC1111 and Forge do not load them",
    )


def lora_file(adapter: FairnessAdapter, weights: AdapterWeights, name: str) -> bytes:
    """A LoRA as the hosts of its family read it, with `ss_*`, `sshs_*` and `modelspec.*`."""
    tensors = dict(weights.lora)
    if adapter.info.base.family.peft:
        tensors = peft_tensors(tensors)
    return _file(adapter, weights, tensors, "lora", name)


def embedding_file(adapter: FairnessAdapter, weights: AdapterWeights, name: str) -> bytes:
    """A textual inversion: the single tensor `emb_params`, or one for each encoder (SDXL, SD3)."""
    return _file(adapter, weights, embedding_tensors(weights.soft), "textual-inversion", name)


def embedding_tensors(soft: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Soft tokens under the names that hosts look for. A1111 wants exactly one tensor for one encoder; of a
    language model ComfyUI wants the encoder's name."""
    if len(soft) == 1 and not any(encoder in LANGUAGE_MODELS for encoder in soft):
        return {"emb_params": next(iter(soft.values()))}
    return dict(soft)


def export_adapter(
    adapter: FairnessAdapter,
    target: TargetDistribution | str | None,
    name: str,
    lora_folder: Path | str,
    embedding_folder: Path | str,
    strength: float = 1.0,
    overwrite: bool = False,
) -> ExportedFiles:
    """Write NAME.safetensors into both folders (NAME_tokens.safetensors if they are the same folder).

    Raises FairAdapterError for strength 0, for a name that prompts cannot hold, for a file that exists and
    may not be overwritten, and for a folder that cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise FairAdapterError(
            f"export name {name[:100]!r}: expected letters, digits, '_' and '-' alone, so that it can stand "
            "in a prompt"
        )
    weights = adapter.at(target, strength)
    if not weights.lora and not weights.soft:
        raise FairAdapterError(f"{adapter.source}: strength 0 is the base model: there is nothing to export")
    same = Path(lora_folder).resolve() == Path(embedding_folder).resolve()
    tokens = f"{name}_tokens" if same and weights.lora and weights.soft else name
    lora = Path(lora_folder) / f"{name}.safetensors" if weights.lora else None
    embedding = Path(embedding_folder) / f"{tokens}.safetensors" if weights.soft else None
    for path in (lora, embedding):  # both or none
        if path is not None and path.exists() and not overwrite:
            raise FairAdapterError(f"{path}: exists already; choose another name or ask to overwrite it")
    if lora is not None:
        write_bytes(lora, lora_file(adapter, weights, name), overwrite)
    if embedding is not None:
        write_bytes(embedding, embedding_file(adapter, weights, tokens), overwrite)
    return ExportedFiles(lora, embedding, weights)


def _file(
    adapter: FairnessAdapter, weights: AdapterWeights, tensors: dict[str, Tensor], kind: str, name: str
) -> bytes:
    if not tensors:
        raise FairAdapterError(f"{adapter.source}: has no part for a {kind} file at this strength")
    ranks = lora_ranks(weights.lora) if kind == "lora" else []
    metadata = public_metadata(adapter.info, tensors, kind, ranks, title=name)
    origin = {
        "adapter": adapter.info.name,
        "target": weights.target.to_text(),
        "strength": weights.strength,
    }
    metadata[EXPORT_ENTRY] = json.dumps(origin, sort_keys=True)
    return serialise(tensors, metadata)
