"""LoRA of text encoders and U-Nets, fixed or with gates that follow the target distribution.

    W(t) = W + strength * (alpha / rank) * B diag(g(t)) A,        g(t) = 1 + sum_k t_k G_k

A is `down` (rank, in), B is `up` (out, rank), G is `gate` (K, rank), and t the K target coordinates
(`adapter_target.TargetSpace`), which are zero at the adapter's default target. So g is affine in the target
and exactly 1 at the default: the constant that an affine gate g_0 + G t has besides is nothing but a scale of
the columns of B, and lives there. What a stock loader reads (up, down, alpha) therefore *is* the default
target, with nothing to bake and nothing to divide by. A fixed LoRA is one without G.

Layers have kohya's names, the ones that A1111, Forge, ComfyUI and diffusers read:
`lora_te_text_model_encoder_layers_0_self_attn_q_proj` (SDXL: `lora_te1_`, `lora_te2_`),
`lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q`; transformers (SD3) have
`lora_transformer_transformer_blocks_0_attn_to_q`, as ComfyUI reads them. Which layers, the rank of 50 and the
initial values (down ~ N(0, 1/rank^2), up = 0) are the official ones; the gates start random, so that every
rank answers to another mixture of the coordinates from the first step on (at up = 0 this changes no image).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .errors import FairAdapterError

RANK = 50
# Targets between 10/90 and 90/10 are .3 to .6 long: over them a gate varies by about its own size.
GATE_STD = 2.0
DOWN, UP, ALPHA, GATE = ".lora_down.weight", ".lora_up.weight", ".alpha", "fair.gate."
TEXT_PREFIX = "lora_te"  # the encoder of SD1 and SD2; SDXL has lora_te1 (clip_l) and lora_te2 (clip_g)
_TEXT_LAYER = re.compile(r"\.(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.(fc1|fc2))$")
_LANGUAGE_LAYER = re.compile(r"\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)$")
_UNET_LAYER = re.compile(r"\.attn[12]\.(to_q|to_k|to_v|to_out\.0)$")


def text_layers(encoder: nn.Module, prefix: str = TEXT_PREFIX) -> dict[str, nn.Linear]:
    """Attention and MLP layers of a CLIP text encoder by kohya name.

    transformers before 5 says `text_model.encoder...`, from 5 on `encoder...`; the kohya name is the same.
    """
    return _layers(
        encoder, _TEXT_LAYER, lambda name: f"{prefix}.text_model.{name.removeprefix('text_model.')}"
    )


def language_layers(encoder: nn.Module, prefix: str = TEXT_PREFIX) -> dict[str, nn.Linear]:
    """Attention and MLP layers of a language model (Qwen3's stack) as ComfyUI names them:
    `lora_te_layers_0_self_attn_q_proj`."""
    return _layers(encoder, _LANGUAGE_LAYER, lambda name: f"{prefix}.{name}")


def unet_layers(unet: nn.Module) -> dict[str, nn.Linear]:
    """Query, key, value and output layers of self- and cross-attention of a diffusers U-Net by kohya name."""
    return _layers(unet, _UNET_LAYER, lambda name: f"lora_unet.{name}")


def transformer_layers(transformer: nn.Module, wanted: re.Pattern[str]) -> dict[str, nn.Linear]:
    """Those layers of a diffusers transformer whose names `wanted` finds, as OneTrainer and ComfyUI name
    them: `lora_transformer_transformer_blocks_0_attn_to_q`."""
    return _layers(transformer, wanted, lambda name: f"lora_transformer.{name}")


def _layers(model: nn.Module, wanted: re.Pattern[str], rename: Callable[[str], str]) -> dict[str, nn.Linear]:
    found = {
        rename(name).replace(".", "_"): module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and wanted.search(name)
    }
    if not found:
        raise FairAdapterError(
            f"{type(model).__name__}: expected the attention layers of a text encoder or U-Net, found none"
        )
    return found


class LoraLayer(nn.Module):
    """The low-rank part of one linear layer.

    down: (rank, in).  up: (out, rank).  alpha: its scale times the rank.
    gate: (K, rank), or None for a layer that does not follow the target.
    """

    def __init__(self, down: Tensor, up: Tensor, alpha: float, gate: Tensor | None = None) -> None:
        super().__init__()
        self.alpha = float(torch.tensor(float(alpha)))  # as the file will hold it
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(up)
        self.gate = None if gate is None else nn.Parameter(gate)

    @classmethod
    def for_linear(
        cls,
        linear: nn.Linear,
        rank: int = RANK,
        alpha: float | None = None,
        coordinates: int = 0,
        gate_std: float = GATE_STD,
        generator: torch.Generator | None = None,
    ) -> LoraLayer:
        """Freshly initialised: adds exactly nothing.

        alpha: None is the rank, a scale of 1.  coordinates: K, 0 for no gate.
        gate_std: standard deviation of the initial gates, drawn with `generator` (a CPU one).
        The parameters are float32, or float64 where the layer is, on its device.
        """
        weight = linear.weight
        place = {"dtype": torch.promote_types(weight.dtype, torch.float32), "device": weight.device}
        down = torch.randn(rank, linear.in_features, generator=generator) / rank
        up = torch.zeros(linear.out_features, rank)
        gate = torch.randn(coordinates, rank, generator=generator) * gate_std if coordinates else None
        gate = None if gate is None else gate.to(**place)
        return cls(down.to(**place), up.to(**place), rank if alpha is None else alpha, gate)

    @property
    def rank(self) -> int:
        return len(self.down)

    def forward(self, inputs: Tensor, coordinates: Tensor | None = None) -> Tensor:
        """What is added to the layer's output: (B, ..., in) -> (B, ..., out).

        In the parameters' dtype; for bfloat16 inputs in bfloat16, which is many times as fast on a GPU and no
        coarser than what it is added to. (float16 would overflow in scaled gradients.)
        coordinates: (1, K) or one row for each of the B inputs; None is the default target.
        """
        dtype = inputs.dtype if inputs.dtype == torch.bfloat16 else self.down.dtype
        hidden = functional.linear(inputs.to(dtype), self.down.to(dtype))
        if self.gate is not None and coordinates is not None:
            gates = 1 + coordinates.to(self.gate) @ self.gate  # (1 or B, rank)
            hidden = hidden * gates.reshape(len(gates), *[1] * (hidden.ndim - 2), self.rank).to(dtype)
        return functional.linear(hidden, self.up.to(dtype)) * (self.alpha / self.rank)


class LoraSet(nn.Module):
    """LoRA layers by kohya name, and the model that they are attached to.

    Attached, every named linear layer answers with its own output plus that of its LoRA layer, in its own
    dtype. `coordinates` (1 or B rows of K; None is the default target) is what the next call follows. Not
    `enabled`, they answer as if there were none (a compiled model need not be compiled anew for that).
    """

    def __init__(self, layers: Mapping[str, LoraLayer]) -> None:
        super().__init__()
        self.layers: Mapping[str, LoraLayer] = cast(Any, nn.ModuleDict(dict(layers)))
        self.coordinates: Tensor | None = None
        self.enabled = True
        self._hooks: list[Any] = []

    @classmethod
    def create(
        cls,
        modules: Mapping[str, nn.Linear],
        rank: int = RANK,
        alpha: float | None = None,
        coordinates: int = 0,
        gate_std: float = GATE_STD,
        generator: torch.Generator | None = None,
    ) -> LoraSet:
        """One fresh layer for each of `text_layers` or `unet_layers`; arguments: LoraLayer.for_linear."""
        options = (rank, alpha, coordinates, gate_std, generator)
        return cls({name: LoraLayer.for_linear(linear, *options) for name, linear in modules.items()})

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> LoraSet:
        """From a kohya state dict, with the gates `fair.gate.<name>` where there are any."""
        layers = {}
        for name in lora_names(tensors):
            down, up = (tensors[name + part].detach().to(dtype, copy=True) for part in (DOWN, UP))
            gate = tensors.get(GATE + name)
            gate = None if gate is None else gate.detach().to(dtype, copy=True)
            layers[name] = LoraLayer(down, up, float(tensors[name + ALPHA]), gate)
        return cls(layers)

    def tensors(self) -> dict[str, Tensor]:
        """The kohya state dict at the default target and the gates, detached copies on the CPU."""
        tensors = {}
        for name, layer in self.layers.items():
            tensors[name + DOWN], tensors[name + UP] = layer.down, layer.up
            tensors[name + ALPHA] = torch.tensor(layer.alpha)
            if layer.gate is not None:
                tensors[GATE + name] = layer.gate
        return {key: value.detach().to("cpu", copy=True) for key, value in tensors.items()}

    @property
    def attached(self) -> bool:
        return bool(self._hooks)

    def attach(self, modules: Mapping[str, nn.Linear]) -> None:
        """Put the layers on a model's `text_layers` or `unet_layers`, all of them or none.

        Raises FairAdapterError if a layer is not in the model or of another shape.
        """
        if self.attached:
            raise FairAdapterError("LoRA: attached already; detach it first")
        shapes = {name: (module.out_features, module.in_features) for name, module in modules.items()}
        check_layers({n: (len(layer.up), layer.down.shape[1]) for n, layer in self.layers.items()}, shapes)
        self._hooks = [
            modules[name].register_forward_hook(partial(self._add, layer))
            for name, layer in self.layers.items()
        ]

    def detach(self) -> None:
        """Leave the model as it was before `attach`."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _add(self, layer: LoraLayer, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not self.enabled:
            return output
        return output + layer(inputs[0], self.coordinates).to(output.dtype)


def lora_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """The kohya layer names in a state dict, sorted."""
    return sorted(key.removesuffix(DOWN) for key in tensors if key.endswith(DOWN))


def check_layers(
    layers: Mapping[str, tuple[int, ...]], model: Mapping[str, tuple[int, ...]], source: str = "LoRA"
) -> None:
    """That a model has every layer of a LoRA in the same shape.

    layers, model: kohya name -> (out, in).
    Raises FairAdapterError that counts the layers that do not fit and names the first.
    """
    wrong = [name for name, shape in layers.items() if tuple(model.get(name, ())) != tuple(shape)]
    if wrong:
        found = f"one of {tuple(model[wrong[0]])}" if wrong[0] in model else "none"
        raise FairAdapterError(
            f"{source}: {len(wrong)} of {len(layers)} LoRA layers do not fit this model, first {wrong[0]}: "
            f"expected a layer of shape {tuple(layers[wrong[0]])}, found {found}; load the base model that "
            "it was trained on"
        )


def at_coordinates(
    tensors: Mapping[str, Tensor], coordinates: Tensor, strength: float = 1.0
) -> dict[str, Tensor]:
    """The plain kohya state dict of a LoRA with gates, at one target and strength.

    coordinates: (K,), zero at the default target.  Only `up` differs from the stored tensors: it becomes
    strength * B diag(g(t)), in float32 or more, so that at the default target and strength 1 every tensor is
    the stored one, bit for bit.
    """
    plain: dict[str, Tensor] = {}
    for name in lora_names(tensors):
        up, gate = tensors[name + UP], tensors.get(GATE + name)
        wide = torch.promote_types(up.dtype, torch.float32)
        factor = torch.full((up.shape[1],), strength, dtype=wide)
        if gate is not None and coordinates.any():
            factor = factor * (1 + coordinates.to(wide) @ gate.to(wide))
        plain[name + DOWN], plain[name + ALPHA] = tensors[name + DOWN], tensors[name + ALPHA]
        plain[name + UP] = up if bool((factor == 1).all()) else up.to(wide) * factor
    return plain


_TRANSFORMER_NAME = re.compile(r"lora_transformer_transformer_blocks_(\d+)_(attn2?)_(\w+)")
_Z_IMAGE_NAME = re.compile(r"lora_transformer_layers_(\d+)_attention_(\w+)")
_LANGUAGE_NAME = re.compile(r"lora_te_layers_\d+_\w+")
_TEXT_NAME = re.compile(r"lora_te(\d)_text_model_encoder_layers_(\d+)_(self_attn|mlp)_(\w+)")


def peft_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A plain kohya state dict under the names of diffusers and peft: `transformer....lora_A.weight`,
    `diffusion_model....` for Z-Image, as ComfyUI and diffusers know it there.

    Such a file has no alpha that all its readers know: the scale is multiplied into `lora_B`. A language
    model's layers keep their names and alpha: ComfyUI alone reads a LoRA of theirs.
    Raises FairAdapterError for a layer of another architecture.
    """
    renamed: dict[str, Tensor] = {}
    for name in lora_names(tensors):
        block, text = _TRANSFORMER_NAME.fullmatch(name), _TEXT_NAME.fullmatch(name)
        z_image = _Z_IMAGE_NAME.fullmatch(name)
        if _LANGUAGE_NAME.fullmatch(name):
            renamed |= {name + part: tensors[name + part] for part in (DOWN, UP, ALPHA)}
            continue
        if z_image:
            layer = z_image[2].replace("to_out_0", "to_out.0")
            target = f"diffusion_model.layers.{z_image[1]}.attention.{layer}"
        elif block:
            layer = block[3].replace("to_out_0", "to_out.0")
            target = f"transformer.transformer_blocks.{block[1]}.{block[2]}.{layer}"
        elif text:
            encoder = "text_encoder" if text[1] == "1" else f"text_encoder_{text[1]}"
            target = f"{encoder}.text_model.encoder.layers.{text[2]}.{text[3]}.{text[4]}"
        else:
            raise FairAdapterError(f"LoRA layer {name}: expected one of a transformer or a numbered encoder")
        down, up = tensors[name + DOWN], tensors[name + UP]
        scale = float(tensors[name + ALPHA]) / len(down)
        renamed[f"{target}.lora_A.weight"] = down
        renamed[f"{target}.lora_B.weight"] = up if scale == 1 else up * scale
    return renamed
