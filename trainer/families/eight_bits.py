"""Frozen weights in 8 bits, by torchao: int8 and a scale for each row; the model's own dtype computes.

The gradient goes through them to what is trained. torchao is maintained with PyTorch; only this needs it.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ...shared.errors import FairAdapterError

LEAST = 256  # inputs or outputs of a layer that is worth it; embeddings of time and the ends stay as they are
OUTER = ("proj_out", "final_layer", "x_embedder", "img_in", "time", "t_embedder", "pos_embed", "modulation")


def wanted(layer: nn.Module, name: str) -> bool:
    """Whether a layer of this name is put into 8 bits."""
    return (
        isinstance(layer, nn.Linear)
        and min(layer.in_features, layer.out_features) >= LEAST
        and not any(part in name for part in OUTER)
    )


def put_into_eight_bits(model: Any) -> None:
    """In place: the large linear layers of the network's blocks and of its language model, where it has one.

    Raises FairAdapterError where torchao is not installed.
    """
    try:
        from torchao.quantization import (  # pyright: ignore[reportMissingImports]
            Int8WeightOnlyConfig,
            quantize_,
        )
    except ImportError as error:
        raise FairAdapterError(
            "model.weights: int8 needs torchao, which is not installed; pip install torchao, or set "
            "model.weights=plain"
        ) from error

    quantize_(model.network, Int8WeightOnlyConfig(), filter_fn=wanted)
    if hasattr(model, "language_model"):
        quantize_(model.language_model, Int8WeightOnlyConfig(), filter_fn=wanted)
