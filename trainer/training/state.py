"""Checkpoints: one file that is replaced whole, and stopping when asked to.

What an iteration draws follows from the seed and its number, so that parameters, averages, AdamW's moments,
the loss scale and that number are all there is to a run: resumed, it equals an uninterrupted one bit for bit.
"""

from __future__ import annotations

import io
import json
import pickle
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from ...shared.errors import FairAdapterError, reason
from ...shared.tensor_file import write_bytes
from ..configuration.config import Config, differences
from ..configuration.settings import plain
from .optimizer import Optimizer

FILE = "state.pt"
FORMAT = 1


def save_state(folder: Path, iteration: int, optimizer: Optimizer, config: Config) -> None:
    """Replace the checkpoint: `iteration` iterations are done.

    Raises FairAdapterError if it can't be written; the one before is untouched then.
    """
    data = io.BytesIO()
    state = {
        "format": FORMAT,
        "iteration": iteration,
        "config": json.dumps(plain(config)),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(state, data)
    write_bytes(folder / FILE, data.getvalue(), overwrite=True)


def read_state(folder: Path, adapter: Path, config: Config) -> dict[str, Any] | None:
    """The checkpoint of a folder, None where there is none; its "iteration" is the number of those done.

    Raises FairAdapterError if it is damaged, of another configuration, or gone while its adapter is there.
    """
    path = folder / FILE
    if path.exists():
        state = _read(path)
        _check_config(path, state, config)
        return state
    if adapter.exists():
        raise FairAdapterError(
            f"{adapter}: exists already, without the checkpoint to go on from; choose another run.output"
        )
    return None


def take_up(state: dict[str, Any], folder: Path, optimizer: Optimizer) -> None:
    """Set the optimiser to what `read_state` found in the folder.

    Raises FairAdapterError for a checkpoint that does not hold it.
    """
    try:
        optimizer.load_state_dict(state["optimizer"])
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        raise _damaged(folder / FILE, error) from error


def _check_config(path: Path, state: dict[str, Any], config: Config) -> None:
    changed = differences(json.loads(state["config"]), json.loads(json.dumps(plain(config))))
    if changed:
        raise FairAdapterError(
            f"{path}: holds a run of another configuration ({changed[0]}); choose another run.output, "
            "or delete the folder to start again"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        if state["format"] != FORMAT or not {"iteration", "config", "optimizer"} <= set(state):
            raise ValueError(f"format {state['format']}")
        return state
    except (
        OSError,
        RuntimeError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> FairAdapterError:
    return FairAdapterError(
        f"{path}: expected a checkpoint of this trainer, found {reason(error)}; delete it to start the "
        "run again"
    )


class Interruption:
    """Within it, Ctrl-C and SIGTERM ask to stop after the iteration; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is not threading.main_thread():
            return self  # signals go to the main thread
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
