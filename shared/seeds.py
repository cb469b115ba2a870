"""Starting noise that is the same in every process, on every device and for every model.

A seed is a hash of (prompt, index): Python's own `hash` is salted per process and must not be used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def noise_seed(prompt: str, index: int, salt: str = "") -> int:
    """A 63-bit seed for image ``index`` of ``prompt``; ``salt`` separates training from evaluation noise."""
    digest = hashlib.sha256(f"{salt}|{prompt}|{index}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def starting_noise(seeds: Iterable[int], shape: Sequence[int]) -> Tensor:
    """Standard normal (N, *shape), float32 on the CPU; row i depends on seed i only."""
    rows = [torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows) if rows else torch.empty(0, *shape)
