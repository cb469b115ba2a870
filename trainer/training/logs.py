"""What a run writes down: one line of JSON for each iteration, TensorBoard, and Weights & Biases if asked."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...shared.errors import FairAdapterError, reason
from ...shared.tensor_file import write_bytes
from ..configuration.config import RunConfig
from .loop import Outcome

FILE = "log.jsonl"


def record(outcome: Outcome) -> dict[str, Any]:
    """An iteration as JSON values; numbers that are not finite become null."""
    table = {
        "iteration": outcome.iteration + 1,
        "prompt": outcome.turn.prompt.text,
        "set": outcome.turn.prompt.set,
        "target": outcome.target.to_text(),
        "steps": outcome.steps,
        "loss": dict(outcome.losses),
        "faces": outcome.faces,
        "targeted": dict(outcome.targeted),
        "shares": dict(outcome.shares),
        "gradient_norm": outcome.gradient_norm,
        "lr": outcome.lr,
        "skipped": outcome.skipped,
        "seconds": round(outcome.seconds, 3),
        "allocated_bytes": outcome.allocated,
    }
    return _finite(table)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def logged_seconds(folder: Path) -> float:
    """What the iterations in a folder's log took together, in however many calls."""
    lines = (folder / FILE).read_text(encoding="utf-8").splitlines()
    return float(sum(json.loads(line)["seconds"] for line in lines))


class Log:
    """Writes into `folder`; lines of iterations that the checkpoint does not hold are dropped on resuming.

    done: iterations that are done.  configuration: for Weights & Biases.
    Raises FairAdapterError where a file can't be written or wandb is asked for and missing.
    """

    def __init__(self, folder: Path, run: RunConfig, done: int, configuration: Mapping[str, Any]) -> None:
        self.path = folder / FILE
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() and done else []
        write_bytes(self.path, "".join(line + "\n" for line in lines[:done]).encode(), overwrite=True)
        self._board: Any = None
        with self._written():
            self._lines = self.path.open("a", encoding="utf-8")
            if run.tensorboard:
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)
        self._wandb: Any = _wandb(run, folder, configuration) if run.wandb else None

    def iteration(self, outcome: Outcome, deviations: Mapping[str, float]) -> None:
        """One line, flushed: what was logged survives a kill."""
        table = record(outcome)
        with self._written():
            self._lines.write(json.dumps(table) + "\n")
            self._lines.flush()
        scalars = {f"loss/{name}": value for name, value in table["loss"].items()}
        scalars |= {f"train/{name}": value for name, value in deviations.items()}
        scalars |= {f"train/{name}": table[name] for name in ("faces", "gradient_norm", "lr", "seconds")}
        self._scalars(scalars, outcome.iteration + 1)

    def sample(self, picture: Image.Image, measured: Mapping[str, float], iteration: int) -> None:
        """A picture of the samples and what was measured on them."""
        if self._board is not None:
            with self._written():
                self._board.add_image("samples", np.asarray(picture), iteration, dataformats="HWC")
        if self._wandb is not None:
            import wandb  # type: ignore[import-not-found]

            self._wandb.log({"samples": wandb.Image(picture)}, step=iteration)
        self._scalars({f"samples/{name}": value for name, value in measured.items()}, iteration)

    def _scalars(self, scalars: Mapping[str, float | None], step: int) -> None:
        known = {name: value for name, value in scalars.items() if value is not None}
        if self._board is not None:
            with self._written():
                for name, value in known.items():
                    self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(known, step=step)

    @contextmanager
    def _written(self) -> Iterator[None]:
        """Raises FairAdapterError for what a full disk raises."""
        try:
            yield
        except OSError as error:
            raise FairAdapterError(
                f"{self.path.parent}: cannot be written ({error.strerror or error}); make room, the same "
                "command goes on from the last checkpoint"
            ) from error

    def close(self) -> None:
        self._lines.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def _wandb(run: RunConfig, folder: Path, configuration: Mapping[str, Any]) -> Any:
    try:
        import wandb  # type: ignore[import-not-found]
    except ImportError as error:
        raise FairAdapterError(
            "run.wandb: expected the package wandb, which is not installed; pip install wandb or set "
            "run.wandb=null"
        ) from error
    mark = folder / "wandb_id.txt"  # a run that goes on keeps its page, one in a new folder gets its own
    name = mark.read_text(encoding="utf-8").strip() if mark.is_file() else uuid.uuid4().hex[:8]
    write_bytes(mark, name.encode(), overwrite=True)
    try:
        return wandb.init(
            project=run.wandb,
            id=name,
            name=run.name,
            dir=str(folder),
            config=dict(configuration),
            resume="allow",
        )
    except Exception as error:  # of the network, the login and the service, of many kinds
        raise FairAdapterError(
            f"run.wandb: expected Weights & Biases to open a run, found {reason(error)}; log in with "
            "`wandb login` or set run.wandb=null"
        ) from error
