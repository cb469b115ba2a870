"""What a piece of work holds in memory at its peak, and how many floating-point operations it does."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

# TFLOP/s of dense matrix products as the makers state them: (float16 and bfloat16, float32 without TF32)
PEAKS = {"H200": (989.0, 67.0), "H100": (989.0, 67.0), "A100": (312.0, 19.5), "4090": (165.0, 82.6)}


# PyTorch's formulas, and for attention on a CPU, which it leaves out, those of attention on a GPU
OPERATIONS = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
}


class Meter(TorchDispatchMode):
    """What is done and what is alive within.

    peak: most bytes, at one time, of tensors that were made within. Counts storages: views cost nothing.
    flop: floating-point operations of matrix products, convolutions and attention, 2 for a multiply-add.
    known: what is there before, such as weights; the attribute is its size in bytes.
    (One mode for both: PyTorch's FlopCounterMode alone makes small networks four times as slow.)
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.current = self.peak = self.flop = 0
        self._seen: dict[int, Any] = {}
        self._known = {storage._cdata: storage for storage in (tensor.untyped_storage() for tensor in known)}
        self.known = sum(storage.nbytes() for storage in self._known.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        operations = OPERATIONS.get(func._overloadpacket)
        if operations is not None:
            self.flop += operations(*args, **kwargs, out_val=result)
        for value in (result,) if isinstance(result, Tensor) else tree_leaves(result):
            if isinstance(value, Tensor) and value.layout == torch.strided:
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        name = storage._cdata
        if name in self._known or name in self._seen:
            return
        size = storage.nbytes()
        self._seen[name] = weakref.ref(storage, partial(self._free, name, size))
        self.current += size
        self.peak = max(self.peak, self.current)

    def _free(self, name: int, size: int, storage: object) -> None:
        self._seen.pop(name, None)
        self.current -= size


@dataclass(frozen=True)
class Cost:
    """bytes: peak above the weights.  allocated: peak with them: what has to fit.
    tflop: floating-point operations, 2 for a multiply-add, in 10^12."""

    bytes: int
    allocated: int
    tflop: float


def cost(work: Callable[[], object], device: torch.device, weights: Iterable[Tensor]) -> Cost:
    """Of a call. On a GPU memory is the allocator's peak, in a call of its own, elsewhere that of live
    tensors."""
    before = allocated = 0
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        allocated = torch.cuda.max_memory_allocated(device)
    # under a mode nothing is compiled, and what comes by then would not be compiled later either
    with torch.compiler.set_stance("force_eager"), Meter(weights) as meter:
        work()
    if device.type != "cuda":
        before, allocated = meter.known, meter.known + meter.peak
    return Cost(allocated - before, allocated, meter.flop / 1e12)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock of one call, to the end of what it started on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def peak_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s that the device can do: its maker's figure where it is known, else that of a product."""
    name = device_name(device)
    for key, (half, single) in PEAKS.items():
        if device.type == "cuda" and key in name:
            return single if dtype == torch.float32 else half
    side = 1024 if device.type == "cpu" else 8192
    a = torch.randn(side, side, device=device).to(dtype)
    product = torch.empty_like(a)
    best = min(seconds(lambda: torch.mm(a, a, out=product), device) for _ in range(5))
    return 2 * side**3 / best / 1e12
