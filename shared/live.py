"""Attribute bars of unfinished pictures: what a sampler is about to draw, read while it draws.

A sampler's prediction of the finished latent (x_0) is decoded, read and drawn by one worker thread, `apart`
from everything else: the finished picture is the same to the last bit as without bars. The sampler only hands
over a copy and goes on: there is room for one waiting frame, and a newer one takes its place, so that a slow
decoder costs frames and never time. Whatever fails in the worker ends the bars, not the generation; the first
failure is kept in `error` and logged once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .attributes import Attribute, TargetDistribution, spelled
from .bar_grid import class_shares, draw_wide, hex_colour
from .bars import FaceBars
from .errors import FairAdapterError, reason
from .images import to_pil
from .reader import FaceReader
from .switches import apart

EVERY = 3  # steps between two frames
RELIABLE_FROM = 0.4  # share of the steps before which a prediction is too blurred to be read
_log = logging.getLogger("fair_adapter")


class Cancelled(Exception):
    """What `decode` raises when the user cancelled: the bars end, and there is nothing to tell."""


@dataclass(frozen=True, eq=False)
class LiveFrame:
    """One look at a batch in the making.

    step, total: finished steps and all of them.  reliable: whether the prediction is sharp enough to trust.
    pictures: the batch as it would look, all of one size.  readings: for each its largest face, or none.
    attributes: those of the bars.  target: drawn into `image`.
    """

    step: int
    total: int
    reliable: bool
    pictures: list[Image.Image]
    readings: list[list[FaceBars]]
    attributes: tuple[Attribute, ...]
    target: TargetDistribution | None = None

    @cached_property
    def image(self) -> Image.Image:
        """The pictures with bars beside the shares, low and wide; dimmed while they are not reliable."""
        return draw_wide(
            self.pictures,
            self.readings,
            self.attributes,
            self.target,
            title=f"step {self.step} of {self.total}",
            preview=not self.reliable,
            dark=True,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON form without the image: boxes in px, confidences and shares in [0, 1]."""
        return {
            "step": self.step,
            "total": self.total,
            "reliable": self.reliable,
            "size": list(self.pictures[0].size),
            **readings_dict(self.readings, self.attributes, self.target),
        }


def readings_dict(
    readings: Sequence[Sequence[FaceBars]],
    attributes: Sequence[Attribute],
    target: TargetDistribution | None = None,
) -> dict[str, Any]:
    """JSON form of a batch: "pictures" with their faces, and "shares" of each class, for displays.

    readings: for each picture its faces, the largest first; shares count the largest of each.
    """
    rows = class_shares([faces[0] for faces in readings if faces], attributes, target)
    shares: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        shares.setdefault(row.attribute, []).append(
            {
                "label": row.label,
                "spelled": spelled(row.attribute, row.label),
                "share": row.share,
                "low": row.low,
                "high": row.high,
                "target": row.target,
                "colour": hex_colour(row.colour),
            }
        )
    return {"pictures": [[_face_dict(face) for face in faces] for faces in readings], "shares": shares}


def _face_dict(face: FaceBars) -> dict[str, Any]:
    bars = [
        {
            "attribute": bar.attribute,
            "label": bar.label,
            "spelled": spelled(bar.attribute, bar.label),
            "confidence": bar.confidence,
            "certain": bar.certain,
            "colour": hex_colour(bar.colour),
        }
        for bar in face.bars
    ]
    return {"box": [round(value, 1) for value in face.box], "bars": bars}


class LiveBars:
    """Reads a sampler's predictions on a thread of its own. Ends with `close`.

    reader: its certainty threshold and classifier are used; the largest face of each picture counts.
    decode: latents (N, C, h, w) -> pictures (N, 3, H, W) in [0, 1]; runs on the worker, without gradient.
    show: called on the worker with every frame.
    every: steps between frames; the last step always is one.
    reliable_from: share of the steps in [0, 1] from which on a frame is reliable.
    target: of the frames.
    on_error: called once with the reason when the bars end by a failure, on whatever thread it came up.
    """

    def __init__(
        self,
        reader: FaceReader,
        decode: Callable[[Tensor], Tensor],
        show: Callable[[LiveFrame], None],
        every: int = EVERY,
        reliable_from: float = RELIABLE_FROM,
        target: TargetDistribution | None = None,
        on_error: Callable[[str], None] | None = None,
    ) -> None:
        self._reader, self._decode, self._show, self._on_error = reader, decode, show, on_error
        self._every, self._reliable_from, self._target = max(1, every), reliable_from, target
        self._waiting: tuple[int, int, Tensor, bool | None] | None = None
        self._closed = False
        self._news = threading.Condition()
        self._thread: threading.Thread | None = None
        self.error: str | None = None

    def offer(self, step: int, total: int, x0: Tensor, reliable: bool | None = None) -> bool:
        """Hand over a prediction; returns at once, and whether it was taken.

        step: number of finished steps, 1 to total.  x0: predicted clean latents (N, C, h, w); copied.
        reliable: whether there is little enough noise left; by the steps unless given.
        Not taken: steps between frames, what there is no memory for, and everything after a failure or
        `close`. A waiting frame that was not begun yet is replaced.
        """
        if self.error is not None or self._closed or (step % self._every and step != total):
            return False
        try:
            return self._take(step, total, x0.detach().clone(), reliable)
        except Exception as error:  # no memory, no thread: a preview must never end a generation
            self._fail(error)
            return False

    def _take(self, step: int, total: int, latents: Tensor, reliable: bool | None) -> bool:
        with self._news:
            if self._closed:
                return False
            self._waiting = (step, total, latents, reliable)
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="fair-adapter-live", daemon=True)
                thread.start()
                self._thread = thread
            self._news.notify()
        return True

    def close(self, wait: float = 10.0) -> None:
        """Take no more; wait up to `wait` seconds until the last frame is shown. May be called again."""
        with self._news:
            self._closed = True
            self._news.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(max(0.0, wait))

    def _work(self) -> None:
        while True:
            with self._news:
                while self._waiting is None and not self._closed:
                    self._news.wait()
                if self._waiting is None:
                    return
                frame, self._waiting = self._waiting, None
            try:
                with apart():  # the sampler goes on beside it
                    self._show(self._frame(*frame))
            except Cancelled:
                return self.close(0.0)
            except Exception as error:  # whatever it is: a preview must never end a generation
                self._fail(error)
                return

    @torch.inference_mode()  # hosts sample in it, and a decoder may work in place on what it is handed
    def _frame(self, step: int, total: int, latents: Tensor, reliable: bool | None) -> LiveFrame:
        images = self._decode(latents)
        readings = [faces[:1] for faces in self._reader.read(images)]
        pictures = [to_pil(image) for image in images]
        if reliable is None or self._reliable_from > 1:
            reliable = step >= self._reliable_from * total
        return LiveFrame(step, total, reliable, pictures, readings, self._reader.attributes, self._target)

    def _fail(self, error: Exception) -> None:
        """Keep the first failure as one line; let go of what waits."""
        line = reason(error, 300)
        if not isinstance(error, FairAdapterError):
            line = f"live bars stopped ({type(error).__name__}: {line}); the generation goes on without them"
        with self._news:
            if self.error is not None:
                return
            self.error, self._waiting = line, None
        _log.warning("Fair Adapter: %s", line)
        if self._on_error is not None:
            self._on_error(line)
