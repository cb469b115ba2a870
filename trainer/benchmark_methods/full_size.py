"""What training a soft prompt for Z-Image-Turbo and Krea 2 Turbo takes in memory, counted at full size.

The networks are built from their configuration classes on PyTorch's meta device, which allocates nothing;
what is alive at one time is counted (`memory.Meter`), part by part: one picture, one prompt, bfloat16,
everything checkpointed. Attention counts with its whole matrix, which the kernels of GPUs do not keep; what
face chain and image encoders take is not among the parts.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
# (diffusers and transformers annotate these wrongly)

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Krea2Transformer2DModel,
    ZImageTransformer2DModel,
)
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3Model, Qwen3VLConfig, Qwen3VLModel

from ...shared.soft_prompt import spliced
from ..families.eight_bits import wanted
from ..families.krea2 import CUT, Krea2
from ..families.language import POSITIONS, LanguageFamily
from ..families.z_image import ZImage
from .memory import Meter

PIXELS, TOKENS, WORDS = (
    512,
    5,
    64,
)  # WORDS: positions of a prompt in sentences, template and soft tokens included
OPENING_TOKENS = 3  # of Z-Image's template, before the user's words
GIB = 2**30
QWEN3_4B: dict[str, Any] = {  # Qwen/Qwen3-4B's config.json, and that of Qwen3-VL-4B's text model
    "vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
}  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """weights: part -> bytes in bfloat16.  eight_bits: the same with the large linear layers in int8.
    block: most bytes that one block's int8 weights take when they are computed with.
    work: stage -> most bytes alive beside the weights."""

    weights: Mapping[str, int]
    eight_bits: Mapping[str, int]
    block: int
    work: Mapping[str, int]

    def together(self, eight_bits: bool) -> int:
        """With all networks in the GPU's memory."""
        held, extra = (self.eight_bits, self.block) if eight_bits else (self.weights, 0)
        return sum(held.values()) + max(self.work.values()) + extra


def z_image_turbo() -> LanguageFamily:
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=16,
        scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    encoder = Qwen3Model(Qwen3Config(**QWEN3_4B))
    return ZImage(None, encoder, ZImageTransformer2DModel(), vae, FlowMatchEulerDiscreteScheduler(shift=3.0))


def krea2_turbo() -> LanguageFamily:
    text = {**QWEN3_4B, "rope_parameters": {"rope_type": "default", "mrope_section": [24, 20, 20]}}
    vision = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "out_hidden_size": 2560}
    encoder = Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision))
    taps = tuple(range(2, 36, 3))
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return Krea2(None, encoder, Krea2Transformer2DModel(), AutoencoderKLQwenImage(), scheduler, taps)


MODELS: dict[str, Callable[[], LanguageFamily]] = {
    "z-image-turbo": z_image_turbo,
    "krea2-turbo": krea2_turbo,
}


def count(name: str, pixels: int = PIXELS) -> Parts:
    """Of a name in `MODELS`."""
    with torch.device("meta"):
        model = MODELS[name]()
        for part in networks(model).values():
            nn.Module.to(part, torch.bfloat16).requires_grad_(False).eval()
        if isinstance(model, Krea2):
            _keep_norms(model.transformer)
        model.resize(pixels)
        model.checkpoint(decoder=True, network=True)
        work = {"text encoder, there and back": _encoder(model), **_network(model), **_decoder(model)}
    parts = networks(model)
    weights = {part: _bytes(module.parameters()) for part, module in parts.items()}
    small = {part: weights[part] - _saved(module) for part, module in parts.items() if part != "VAE"}
    blocks = [*model.transformer.modules()]
    block = max(2 * _saved(layer) for layer in blocks if type(layer).__name__.endswith("TransformerBlock"))
    return Parts(weights, {**small, "VAE": weights["VAE"]}, block, work)


def networks(model: LanguageFamily) -> dict[str, Any]:
    return {"text encoder": model.text_encoder, "transformer": model.transformer, "VAE": model.vae}


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _saved(module: nn.Module) -> int:
    """By int8: a byte of each weight, but for a scale of two bytes for each row."""
    layers = [layer for name, layer in module.named_modules() if wanted(layer, name)]
    return sum(layer.weight.numel() - 2 * layer.weight.shape[0] for layer in layers)  # type: ignore[union-attr]


def _keep_norms(transformer: nn.Module) -> None:
    """In float32, as diffusers loads them."""
    for name, module in transformer.named_modules():
        if "norm" in name.rpartition(".")[2]:
            module.float()


def _measured(model: LanguageFamily, work: Callable[[], object]) -> int:
    known = [value for part in networks(model).values() for value in (*part.parameters(), *part.buffers())]
    with Meter(known) as meter:
        work()
    return meter.peak


def _text(model: LanguageFamily, rows: Tensor) -> dict[str, Tensor]:
    """The conditioning of one prompt, as the family's `encode` makes it of token ids."""
    whole = isinstance(model, Krea2)
    length, first = (CUT + POSITIONS, CUT) if whole else (WORDS, OPENING_TOKENS)
    options: dict[str, Any] = {"attention_mask": torch.zeros(1, 1, length, length, dtype=torch.bfloat16)}
    if whole:
        options["position_ids"] = torch.zeros(3, 1, length, dtype=torch.long)
    ids = torch.zeros(1, length, dtype=torch.long)
    with spliced(model.text_encoder, rows, first):
        states = model.text_encoder(
            input_ids=ids, output_hidden_states=True, use_cache=False, **options
        ).hidden_states
    if isinstance(model, Krea2):
        text = torch.stack([states[tap][:, CUT:] for tap in model.taps], dim=2)
        return {"text": text, "mask": torch.ones(1, POSITIONS, dtype=torch.bool)}
    return {"text": states[-2], "lengths": torch.tensor([length], device="cpu")}


def _encoder(model: LanguageFamily) -> int:
    rows = torch.zeros(TOKENS, QWEN3_4B["hidden_size"], requires_grad=True)
    return _measured(model, lambda: _text(model, rows)["text"].float().sum().backward())


def _network(model: LanguageFamily) -> dict[str, int]:
    with torch.no_grad():
        conditioning = _text(model, torch.zeros(TOKENS, QWEN3_4B["hidden_size"]))
    latents, timesteps = torch.zeros(1, *model.latent_shape), torch.zeros(1)

    def there() -> None:
        with torch.no_grad():
            model.denoise(latents, timesteps, conditioning)

    def and_back() -> None:
        text = conditioning["text"].float().requires_grad_()
        model.denoise(latents, timesteps, {**conditioning, "text": text}).float().sum().backward()

    return {
        "transformer, without gradient": _measured(model, there),
        "transformer, there and back": _measured(model, and_back),
    }


def _decoder(model: LanguageFamily) -> dict[str, int]:
    latents = torch.zeros(1, *model.latent_shape, requires_grad=True)
    return {"VAE, there and back": _measured(model, lambda: model.decode(latents).square().mean().backward())}


def table() -> str:
    """All models, for people."""
    lines = []
    for name in MODELS:
        parts = count(name)
        lines.append(f"{name}, {PIXELS} px, one picture at a time, GiB")
        for part, size in parts.weights.items():
            lines.append(
                f"  weights of the {part}: {size / GIB:.2f}; in int8 {parts.eight_bits[part] / GIB:.2f}"
            )
        lines += [f"  {stage}: {size / GIB:.2f}" for stage, size in parts.work.items()]
        lines.append(f"  one block's int8 weights computed with: {parts.block / GIB:.2f}")
        for label, eight in (("bfloat16", False), ("int8", True)):
            lines.append(f"  in all, {label}: {parts.together(eight) / GIB:.2f}")
    return "\n".join(lines)
