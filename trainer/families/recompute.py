"""Gradient checkpointing: layers keep their inputs alone, the rest is computed again for the gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

DECODER_LAYERS = (ResnetBlock2D, Upsample2D, Attention)
# No dropout: the state of the random numbers, which a GPU is slow to give, need not be kept.
RECOMPUTED: Callable[..., Any] = functools.partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


def recompute(layers: Iterable[nn.Module], wanted: bool) -> None:
    """Keep the inputs of these layers alone, or, not `wanted`, what their gradient takes, as usual."""
    for layer in layers:
        vars(layer).pop("forward", None)
        if wanted:
            vars(layer)["forward"] = functools.partial(RECOMPUTED, layer.forward)


def recompute_decoder(decoder: nn.Module, wanted: bool) -> None:
    """The same of a VAE's decoder (AutoencoderKL's)."""
    end: Any = decoder
    head = (end.conv_norm_out, end.conv_act, end.conv_out)  # the largest tensors of all
    for layer in head:
        vars(layer).pop("forward", None)
    recompute((layer for layer in decoder.modules() if isinstance(layer, DECODER_LAYERS)), wanted)
    if wanted:
        in_turn = functools.partial(_in_turn, [layer.forward for layer in head])
        for layer in head[:-1]:  # the last does the work of all
            vars(layer)["forward"] = _pass
        vars(head[-1])["forward"] = functools.partial(RECOMPUTED, in_turn)


def _pass(hidden: Tensor) -> Tensor:
    return hidden


def _in_turn(layers: Sequence[Callable[[Tensor], Tensor]], hidden: Tensor) -> Tensor:
    for layer in layers:
        hidden = layer(hidden)
    return hidden
