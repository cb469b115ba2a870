"""What belongs to the whole process, and may be needed by several threads at once: switches, random numbers.

A host samples in one thread while others read faces, load networks or show previews. Whatever they change in
the process changes the picture in the making, or stays changed when two of them overlap.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_here = threading.local()
_TWINS = {"default": "generator", "low": "low_generator"}


class Switch:
    """A setting of the process: the first thread that needs it changes it, the last restores what was there.

    change: makes the change and returns how to take it back.
    """

    def __init__(self, change: Callable[[], Callable[[], None]]) -> None:
        self._change, self._lock, self._users = change, threading.Lock(), 0
        self._restore: Callable[[], None] = lambda: None

    @contextlib.contextmanager
    def changed(self) -> Iterator[None]:
        """Changed inside, but for a thread that is `apart`, which takes the setting as it is."""
        if is_apart():
            yield
            return
        with self._lock:
            if not self._users:
                self._restore = self._change()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._restore()


def is_apart() -> bool:
    """Whether this thread is in `apart`."""
    return getattr(_here, "apart", 0) > 0


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """For work beside a sampler that it must not notice: in this thread no `Switch` is changed, and networks
    that are made draw no number that the sampler would have drawn."""
    _here.apart = getattr(_here, "apart", 0) + 1
    try:
        with OwnNumbers():
            yield
    finally:
        _here.apart -= 1


class OwnNumbers(TorchDispatchMode):
    """Random numbers of this thread come from generators of its own, seeded with 0, unless they have one.

    Making a network draws weights, which are then replaced by those of a file; torch's global generator, from
    which samplers draw, must not have moved. (What draws like another tensor, `rand_like`, is left alone.)
    """

    def __init__(self) -> None:
        super().__init__()
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None:
            # `rand` and others take a generator in an overload of their own
            twin = getattr(func.overloadpacket, _TWINS.get(func._overloadname, ""), func)
            if any(argument.name == "generator" for argument in twin._schema.arguments):
                func, kwargs["generator"] = twin, self._generator(args, kwargs)
        return func(*args, **kwargs)

    def _generator(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Generator | None:
        given = next((value.device for value in args if isinstance(value, Tensor)), None)
        device = given or torch.device(kwargs.get("device") or "cpu")
        if device.type == "meta":
            return None  # nothing is drawn there
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(0)
        return self._generators[device]
