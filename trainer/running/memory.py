"""Running out of memory: the micro-batch is halved, for the rest of the run, and the work is done again.

Micro-batches are sums over images, so that their size changes no gradient but in the last bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from ...shared.errors import FairAdapterError
from ..configuration.config import SamplingConfig

T = TypeVar("T")
REMEDY = "set sampling.checkpoint=all, model.dtype=bfloat16 or a smaller model.size"
_MESSAGES = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "cublas_status_not_initialized",  # what its handle's allocation fails with
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)
# What cuDNN makes of a workspace that it could not allocate, and of much else
_NO_PLAN = ("unable to find an engine to execute", "unable to find a valid cudnn algorithm")
SCARCE = 2**30  # bytes of a GPU that are free where such a message is about memory


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the host."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    text = str(error).lower()
    if any(message in text for message in _NO_PLAN):
        return torch.cuda.mem_get_info()[0] < SCARCE
    return any(message in text for message in _MESSAGES)


@contextmanager
def memory_told(remedy: str, kind: type[FairAdapterError] = FairAdapterError) -> Iterator[None]:
    """Makes an error of that kind, which scripts tell in one line, of memory that runs out within."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise kind(f"out of memory; {remedy}, or free memory elsewhere") from error


def halving(
    work: Callable[[int], T], size: int, what: str, say: Callable[[str], None], remedy: str
) -> tuple[T, int]:
    """`work(size)`, tried again with half the size where memory runs out; and the size that it was done with.

    work: has to be able to start again.  what: the size's name.  say: told of every halving.
    Raises FairAdapterError with the remedy if one at a time is too much.
    """
    while True:
        try:
            return work(size), size
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if size == 1:
                raise FairAdapterError(
                    f"out of memory with {what}=1; {remedy}, or free memory elsewhere"
                ) from error
        # Out of the handler, whose traceback holds on to the tensors of the failed attempt.
        size //= 2
        say(f"out of memory: {what} is {size} from now on, the result is the same")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class MicroBatches:
    """sizes: how much is done at a time, by the setting's name: network, gradient, decode.

    say: told of every halving.
    """

    def __init__(self, config: SamplingConfig, say: Callable[[str], None]) -> None:
        self.say = say
        self.sizes = {
            "network": config.network_batch,
            "gradient": config.gradient_batch,
            "decode": config.decode_batch,
        }

    def fit(self, name: str, work: Callable[[int], T], most: int) -> T:
        """`work(size)`, tried again with half the size where memory runs out.

        work: has to be able to start again.  most: more than that is never done at a time.
        Raises FairAdapterError if one at a time is too much.
        """
        size = max(1, min(self.sizes[name], most))
        result, fitting = halving(work, size, f"sampling.{name}_batch", self.say, REMEDY)
        if fitting < size:
            self.sizes[name] = fitting
        return result
