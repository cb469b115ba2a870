"""The processes that train together, through accelerate: which images are whose, gather, sum."""

from __future__ import annotations

import atexit
import datetime
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...shared.errors import FairAdapterError, reason
from .memory import out_of_memory

T = TypeVar("T")
PATIENCE = datetime.timedelta(minutes=30)  # with a process that does not answer: longer than an iteration


def check_device(name: str, option: str) -> torch.device:
    """A device that is there. Raises FairAdapterError, which names the option, for any other."""
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:  # a context on the first GPU is not free
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.zeros(1, device=device)
        return device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # as PyTorch's builds have it
        raise FairAdapterError(
            f"{option}: expected cpu or a GPU that this PyTorch can use, found {name!r} "
            f"({reason(error, 80)}); install a CUDA build of PyTorch or choose cpu"
        ) from error


class Processes:
    """One process or many, on one machine or several (`accelerate launch`, `torchrun`).

    device: "auto", "cpu" or "cuda".  images: N of one iteration, which they share evenly.
    patience: with a process that does not answer, before it counts as gone.
    Raises FairAdapterError for a device that is not there and an N that the processes can't share.
    """

    def __init__(self, device: str, images: int = 0, patience: datetime.timedelta = PATIENCE) -> None:
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs

        if device != "auto":
            check_device(device, "run.device")
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # raise in Python instead of aborting
        self._accelerator: Any = Accelerator(
            cpu=device == "cpu" or not torch.cuda.is_available(),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=patience)],
        )
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
        return self._together(lambda: self._accelerator.gather(rows)) if self.count > 1 else rows

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, in all of them."""
        if self.count == 1:
            return tensor
        return self._together(lambda: self._accelerator.reduce(tensor, reduction="sum"))

    def gather_objects(self, mine: Sequence[T]) -> list[list[T]]:
        """What each process has, in their order, in all of them."""
        if self.count == 1:
            return [list(mine)]
        everyone: list[Any] = [None] * self.count
        self._together(lambda: torch.distributed.all_gather_object(everyone, list(mine)))
        return everyone

    def interleaved(self, mine: Sequence[T], total: int) -> list[T]:
        """The results of `total` pieces of work, of which this process did those from `rank` on in steps of
        `count`."""
        shares = self.gather_objects(mine)
        return [shares[i % self.count][i // self.count] for i in range(total)]

    def from_first(self, work: Callable[[], T]) -> T:
        """What the first process finds, in all of them; only there is it looked for.

        Raises in all of them the FairAdapterError that it raises there.
        """
        found: list[Any] = [None]
        if self.first:
            try:
                found = [work()]
            except FairAdapterError as error:
                found = [error]
        if self.count > 1:
            self._together(lambda: torch.distributed.broadcast_object_list(found, src=0))
        if isinstance(found[0], FairAdapterError):
            raise found[0]
        return found[0]

    def _together(self, work: Callable[[], T]) -> T:
        """Raises FairAdapterError where another process is gone."""
        try:
            return work()
        except RuntimeError as error:  # what gloo and NCCL raise
            if out_of_memory(error):
                raise
            atexit.register(_leave)
            raise FairAdapterError(
                "another process of this run is gone, killed or stopped by an error of its own (see its "
                f"output; here: {reason(error, 120)}); the same command goes on from the last checkpoint"
            ) from error

    def close(self) -> None:
        """Leave the group, when all are done: a launcher ends those that outlive another."""
        if self.count > 1:
            self._together(self._accelerator.wait_for_everyone)
            self._accelerator.end_training()


def _leave() -> None:
    """The end of a program whose group is broken: its threads can't be joined, Python would abort."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2)
