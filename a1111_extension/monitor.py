"""What the live bars show right now, for the route that the page polls."""

from __future__ import annotations

import threading
from typing import Any

from ..shared.live import LiveFrame

IDLE: dict[str, Any] = {"active": False}


class LiveMonitor:
    """Keeps the newest frame of the sampling pass in progress; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: object = None
        self._state: dict[str, Any] = dict(IDLE)
        self._serial = 0

    def begin(self, owner: object, origin: str, drawn: bool = False) -> None:
        """A sampling pass starts; frames of an earlier one are not shown any more.

        drawn: whether the bars stand in the host's preview, so that the page need not show them again.
        """
        with self._lock:
            self._owner = owner
            self._state = {"active": True, "origin": origin, "drawn": drawn, "frame": 0}

    def show(self, owner: object, frame: LiveFrame) -> bool:
        """Take a frame of the pass of `owner`; False if that pass is over."""
        with self._lock:
            if owner is not self._owner:
                return False
            self._serial += 1
            self._state = {**self._state, "frame": self._serial, **frame.to_dict()}
            return True

    def end(self, owner: object = None) -> None:
        """The pass of `owner` is over (any pass without one)."""
        with self._lock:
            if owner is None or owner is self._owner:
                self._owner, self._state = None, dict(IDLE)

    def to_dict(self) -> dict[str, Any]:
        with self._lock:
            return dict(self._state)
