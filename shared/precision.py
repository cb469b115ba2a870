"""One numerical precision whatever the host has switched on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .switches import Switch

_AUTOCAST = ("cpu", "cuda", "xpu")


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No autocast and no TF32 inside: the same result on every device.

    Hosts call us from within their own autocast, and cuDNN rounds float32 convolutions to TF32 by
    default: ten mantissa bits move an over-confident logit by more than CPU and GPU differ otherwise.
    Autocast is this thread's own. TF32 is the whole process': threads may overlap, and one that is
    `switches.apart`, beside a sampler, takes it as it is.
    """
    autocast = (
        torch.autocast(device.type, enabled=False) if device.type in _AUTOCAST else contextlib.nullcontext()
    )
    with NO_TF32.changed() if device.type == "cuda" else contextlib.nullcontext(), autocast:
        yield


def _switch_tf32_off() -> Callable[[], None]:
    switches = _tf32_switches()
    before = [getattr(owner, name) for owner, name, _ in switches]
    for owner, name, off in switches:
        setattr(owner, name, off)

    def restore() -> None:
        for (owner, name, _), value in zip(switches, before):
            setattr(owner, name, value)

    return restore


def _tf32_switches() -> list[tuple[Any, str, Any]]:
    """(owner, attribute, value that means IEEE float32)."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    convolution = getattr(cudnn, "conv", None)
    if convolution is not None:  # torch >= 2.9, where mixing old and new names raises
        return [(convolution, "fp32_precision", "ieee"), (matmul, "fp32_precision", "ieee")]
    return [(cudnn, "allow_tf32", False), (matmul, "allow_tf32", False)]


NO_TF32 = Switch(_switch_tf32_off)
