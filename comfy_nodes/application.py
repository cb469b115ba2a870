"""An adapter put onto ComfyUI's MODEL and CLIP: what fits, soft tokens, LoRA."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import comfy.lora
from torch import Tensor

from ..shared.adapter import AdapterWeights, FairnessAdapter
from ..shared.adapter_info import BaseModel, weights_hash
from ..shared.attributes import TargetDistribution
from ..shared.errors import FairAdapterError
from ..shared.window import WHOLE, Window
from . import language_tokens, soft_tokens, windows

FAMILIES = {  # ComfyUI's classes of models -> architecture
    **{"SD15": "sd1", "SD20": "sd2", "SDXL": "sdxl", "SDXLRefiner": "sdxl-refiner", "SD3": "sd3"},
    **{"ZImage": "z-image", "Krea2": "krea2"},
}
_PLACES = {  # beginnings of ComfyUI's names -> of ours
    "diffusion_model.": "lora_transformer_",
    "transformer.": "lora_transformer_",
    **{f"text_encoders.{name}.transformer.model.": "lora_te_" for name in language_tokens.NAMES},
}
PROMPTS = ("as trained", "positive prompt", "both prompts")
_ENDS = {  # architecture -> first and last layer of the network, by which weights are told apart
    "sd3": ("x_embedder.proj.weight", "final_layer.linear.weight"),
    "z-image": ("x_embedder.weight", "final_layer.linear.weight"),
}
_log = logging.getLogger("fair_adapter")


@dataclass(frozen=True, eq=False)
class Applied:
    """model, clip: the patched copies.  negative: the CLIP for the negative prompt.
    layers: LoRA layers that were matched, and how many there are.  tokens: encoder -> soft tokens.
    warnings: one line each.
    """

    model: Any
    clip: Any
    negative: Any
    layers: tuple[int, int]
    tokens: Mapping[str, int]
    weights: AdapterWeights
    warnings: tuple[str, ...]


def apply(
    model: Any,
    clip: Any,
    adapter: FairnessAdapter,
    target: TargetDistribution | None,
    strength: float,
    prompts: str = PROMPTS[0],
    window: Window = WHOLE,
) -> Applied:
    """Copies of model and CLIP with the adapter at a target; the originals stay as they are.

    The LoRA acts in both branches of the guidance, as in training. Soft tokens stand before the positive
    prompt, and before the negative one if `prompts` (one of PROMPTS) says so. In a part of the sampling
    (`window`) the network's LoRA comes with what the CLIP encodes, and the model stays as it is.
    Raises FairAdapterError, with the reason and the remedy, for a model that the adapter was not made for.
    """
    if clip is None:
        raise FairAdapterError("CLIP: expected a text encoder, found none; connect the checkpoint's CLIP")
    warnings = adapter.check_base(describe(model, clip))
    weights = adapter.at(target, strength)
    taken, layers = 0, len(adapter.layers) if weights.lora else 0
    plain, patches = model, Patches()
    if weights.lora:
        adapter.check_layers(layer_shapes(model, clip, adapter.layers))
        model, clip, patches = patched(model, clip, weights.lora, adapter.source)
        taken = len(patches.network) + len(patches.text)
    if weights.soft:
        check_widths(clip, weights.soft, adapter.source)
        both = prompts == "both prompts" or (prompts == "as trained" and adapter.negative_tokens)
        clip = soft_tokens.add(clip, weights.soft, adapter.info.name, both, bool(taken))
    if not window.whole and (weights.soft or weights.lora):
        hooks = windows.network_hooks(patches.network) if patches.network else None
        name = soft_tokens.known(clip)[0].name if weights.soft else ""
        model, clip = (
            plain,
            soft_tokens.in_window(clip, windows.Windowed(window, name, tuple(patches.text.values()), hooks)),
        )
    negative = soft_tokens.for_negative(clip)
    for line in (*warnings, *weights.warnings):
        _log.warning("Fair Adapter: %s: %s", adapter.info.name, line)
    tokens = {name: len(value) for name, value in weights.soft.items()}
    return Applied(model, clip, negative, (taken, layers), tokens, weights, (*warnings, *weights.warnings))


# ---- what the model is


def describe(model: Any, clip: Any) -> BaseModel:
    """The connected model in the words of adapter files."""
    config = model.model.model_config
    kinds = (FAMILIES[c.__name__] for c in type(config).__mro__ if c.__name__ in FAMILIES)
    architecture = next(kinds, type(config).__name__)
    widths = {}
    for name, table in _tables(clip).items():
        widths[name] = int(table.shape[1])
    for part, key in (("context", "context_dim"), ("unet", "model_channels")):
        width = config.unet_config.get(key)
        if isinstance(width, int):
            widths[part] = width
    ends = _ends(model, architecture)
    if architecture in _ENDS and ends:
        widths["transformer"] = int(ends[0].shape[0])
    hashed = weights_hash(*ends) if ends else ""
    return BaseModel("the connected model", architecture, widths, hashed)


def _tables(clip: Any) -> dict[str, Tensor]:
    """encoder -> its token embedding (V, d), for the encoders that the CLIP has."""
    found = {}
    for name in soft_tokens.PARTS.values():
        encoder = getattr(clip.cond_stage_model, name, None)
        if encoder is not None:
            found[name] = encoder.transformer.get_input_embeddings().weight
    return found


def _ends(model: Any, architecture: str) -> tuple[Tensor, Tensor] | None:
    """Weights of the network's first and last layer; None where they can't be read (quantised, unknown)."""
    network = model.model.diffusion_model
    first, last = _ENDS.get(architecture, ("input_blocks.0.0.weight", "out.2.weight"))
    try:
        weights = network.get_parameter(first), network.get_parameter(last)
    except AttributeError:
        return None
    real = all(weight.is_floating_point() and weight.device.type != "meta" for weight in weights)
    return weights if real else None


def layer_shapes(model: Any, clip: Any, wanted: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    """kohya name -> (out, in) of the wanted layers that the model or its text encoder has.

    Packed weights (fp4, GGUF) do not tell their shape: the wanted one is taken for granted.
    """
    keys = key_map(model, clip)
    tensors = {**clip.cond_stage_model.state_dict(), **model.model.state_dict()}
    found: dict[str, tuple[int, ...]] = {}
    for name in wanted:
        place = keys.get(name, "")
        key, part = (place, None) if isinstance(place, str) else (place[0], place[1])
        weight = tensors.get(key)
        if weight is None:
            continue
        shape = list(weight.shape[:2])
        if part is not None:  # SD3 keeps query, key and value in one weight: (axis, start, length)
            shape[part[0]] = part[2]
        found[name] = tuple(shape) if weight.is_floating_point() else wanted[name]
    return found


def key_map(model: Any, clip: Any) -> dict[str, Any]:
    """kohya name -> key of the weight, or (key, part, ...) of one that it is a part of."""
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    keys = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, keys)
    return keys | _spelt_out(keys)


def _spelt_out(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Our names of layers that this release knows by their places alone: transformers and language models."""
    ours = {}
    for name, place in keys.items():
        for start, prefix in _PLACES.items():
            if name.startswith(start):
                ours[prefix + name.removeprefix(start).replace(".", "_")] = place
    return {name: place for name, place in ours.items() if name not in keys}


@dataclass(frozen=True, eq=False)
class Patches:
    """What a LoRA put onto weights, by part of the model: key of the weight -> patch."""

    network: Mapping[Any, Any] = field(default_factory=dict)
    text: Mapping[Any, Any] = field(default_factory=dict)


def patched(model: Any, clip: Any, lora: Mapping[str, Tensor], source: str) -> tuple[Any, Any, Patches]:
    """Copies of model and CLIP with the LoRA, and what they took of it.

    Raises FairAdapterError if they took nothing: a LoRA that does nothing looks like one that works.
    """
    loaded = comfy.lora.load_lora(dict(lora), key_map(model, clip))
    model, clip = model.clone(), clip.clone()
    network, text = (part.add_patches(loaded, 1.0) for part in (model, clip))
    if not network and not text:
        raise FairAdapterError(
            f"{source}: 0 of {sum(k.endswith('.alpha') for k in lora)} LoRA layers matched this model; load "
            "the base model that the adapter was trained on"
        )
    return model, clip, Patches(*({key: loaded[key] for key in keys} for keys in (network, text)))


def check_widths(clip: Any, soft: Mapping[str, Tensor], source: str) -> None:
    """Raises FairAdapterError if the CLIP has no encoder of the soft tokens' width (encoder -> (n, d))."""
    tables = _tables(clip)
    for name, rows in soft.items():
        width = tables[name].shape[1] if name in tables else 0
        if width != rows.shape[1]:
            found = f"one of width {width}" if width else f"only {', '.join(tables) or 'other encoders'}"
            raise FairAdapterError(
                f"{source}: soft tokens for {name} of width {rows.shape[1]}, found {found} in this CLIP; "
                "load the base model that the adapter was trained on"
            )
