"""One numerical precision whatever the host has switched on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

_AUTOCAST = ("cpu", "cuda", "xpu")


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No autocast and no TF32 inside: the same result on every device.

    Hosts call us from within their own autocast, and cuDNN rounds float32 convolutions to TF32 by
    default: ten mantissa bits move an over-confident logit by more than CPU and GPU differ otherwise.
    """
    autocast = (
        torch.autocast(device.type, enabled=False) if device.type in _AUTOCAST else contextlib.nullcontext()
    )
    switches = _tf32_switches() if device.type == "cuda" else []
    before = [getattr(owner, name) for owner, name, _ in switches]
    try:
        for owner, name, off in switches:
            setattr(owner, name, off)
        with autocast:
            yield
    finally:
        for (owner, name, _), value in zip(switches, before):
            setattr(owner, name, value)


def _tf32_switches() -> list[tuple[Any, str, Any]]:
    """(owner, attribute, value that means IEEE float32)."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    convolution = getattr(cudnn, "conv", None)
    if convolution is not None:  # torch >= 2.9, where mixing old and new names raises
        return [(convolution, "fp32_precision", "ieee"), (matmul, "fp32_precision", "ieee")]
    return [(cudnn, "allow_tf32", False), (matmul, "allow_tf32", False)]
