"""The processes that train together, through accelerate: which images are whose, gather, sum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...shared.errors import FairAdapterError


class Processes:
    """One process or many, on one machine or several (`accelerate launch`, `torchrun`).

    device: "auto", "cpu" or "cuda".  images: N of one iteration, which they share evenly.
    Raises FairAdapterError for a device that is not there and an N that the processes can't share.
    """

    def __init__(self, device: str, images: int) -> None:
        from accelerate import Accelerator

        if device == "cuda" and not torch.cuda.is_available():
            raise FairAdapterError(
                "run.device: expected a CUDA GPU, found none; install a CUDA build of PyTorch or set "
                "run.device=cpu"
            )
        self._accelerator: Any = Accelerator(cpu=device == "cpu" or not torch.cuda.is_available())
        self.count: int = self._accelerator.num_processes
        self.rank: int = self._accelerator.process_index
        self.device: torch.device = self._accelerator.device
        if images % self.count:
            raise FairAdapterError(
                f"optimizer.images: expected a multiple of the {self.count} processes, found {images}"
            )

    @property
    def first(self) -> bool:
        """Whether this process writes files and talks to the terminal."""
        return self.rank == 0

    def part(self, images: int) -> slice:
        """Which of the images are this process's."""
        each = images // self.count
        return slice(self.rank * each, (self.rank + 1) * each)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, in the order of `part`."""
        return self._accelerator.gather(rows) if self.count > 1 else rows

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, in all of them."""
        return self._accelerator.reduce(tensor, reduction="sum") if self.count > 1 else tensor

    def wait(self) -> None:
        """Until all processes are here."""
        self._accelerator.wait_for_everyone()

    def close(self) -> None:
        """Leave the group."""
        if self.count > 1:
            self._accelerator.end_training()
