"""Running out of memory: the micro-batch is halved, for the rest of the run, and the work is done again.

Micro-batches are sums over images, so that their size changes no gradient but in the last bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from ...shared.errors import FairAdapterError
from ..configuration.config import SamplingConfig

T = TypeVar("T")
_MESSAGES = ("can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the host."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MESSAGES)


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
        while True:
            size = max(1, min(self.sizes[name], most))
            try:
                return work(size)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if size == 1:
                    raise FairAdapterError(
                        f"out of memory with sampling.{name}_batch=1; set sampling.checkpoint=all, "
                        "model.dtype=bfloat16 or a smaller model.size, or free memory elsewhere"
                    ) from error
            # Out of the handler, whose traceback holds on to the tensors of the failed attempt.
            self.sizes[name] = size // 2
            self.say(
                f"out of memory: sampling.{name}_batch is {size // 2} from now on, the gradient is the same"
            )
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
