"""Progress on the terminal: bar, time left, figures beside it; a line now and then in pipes and files."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
Say = Callable[[str], None]  # tells people a line
LINE_EVERY = 20.0  # seconds between lines where there is no terminal
PERIOD = 86400.0  # seconds


class Progress:
    """A bar for `total` rounds of work, more if it comes to that, with figures beside it.

    quiet: says nothing (processes but the first, tests).
    """

    def __init__(self, what: str, total: int, done: int = 0, quiet: bool = False) -> None:
        self.what, self.total, self.done, self.quiet = what, total, done, quiet
        self._began, self._at_first = time.monotonic(), done
        self._last_line = 0.0
        self._bar: Any = None
        self._task: Any = None
        if not quiet and sys.stdout.isatty():
            self._open_bar()

    def _open_bar(self) -> None:
        from rich import progress as rich

        columns = (
            rich.TextColumn("{task.description}"),
            rich.BarColumn(),
            rich.MofNCompleteColumn(),
            rich.TimeElapsedColumn(),
            rich.TextColumn("left"),
            rich.TimeRemainingColumn(),
            rich.TextColumn("{task.fields[figures]}"),
        )
        # a round may take minutes: its pace is that of all rounds, not of rich's last half a minute
        self._bar = rich.Progress(*columns, speed_estimate_period=PERIOD)
        self._task = self._bar.add_task(self.what, total=self.total, completed=self.done, figures="")
        self._bar.start()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self) -> None:
        """The pace is measured from here on: what came before was no work, or other work."""
        self._began, self._at_first = time.monotonic(), self.done
        if self._bar is not None:
            self._bar.reset(self._task, completed=self.done)

    def advance(self, figures: str = "") -> None:
        """One more round is done."""
        self.done += 1
        self.total = max(self.total, self.done)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, total=self.total, figures=figures)
        elif not self.quiet:
            now = time.monotonic()
            if now - self._last_line >= LINE_EVERY or self.done == self.total:
                self._last_line = now
                left = (now - self._began) / max(self.done - self._at_first, 1) * (self.total - self.done)
                print(f"{self.what} {self.done}/{self.total}, {_clock(left)} left  {figures}", flush=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        elif not self.quiet:
            print(text, flush=True)


def tracked(items: Iterable[T], what: str, total: int, quiet: bool = False) -> Iterator[T]:
    """The items, with a progress bar."""
    with Progress(what, total, quiet=quiet) as progress:
        for item in items:
            yield item
            progress.advance()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
