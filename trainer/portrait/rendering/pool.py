"""Hands pictures out to worker processes and takes their answers."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ....install import clean_environ
from ....shared.errors import FairAdapterError

TRIES = 2  # of a picture at which its process dies


class Workers:
    """`processes` copies of a command that reads a number a line and answers each with a line of JSON."""

    def __init__(self, command: list[str], processes: int, out: Path) -> None:
        self.command, self.out = command, out
        self.answers: queue.Queue[tuple[int, str]] = queue.Queue()
        self.running: dict[int, subprocess.Popen] = {}
        self.at: dict[int, int] = {}  # which worker is at which picture
        self.processes, self.started = processes, 0

    def _start(self) -> int:
        number = self.started
        self.started += 1
        process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env=clean_environ(),
        )
        self.running[number] = process
        threading.Thread(target=self._listen, args=(number, process), daemon=True).start()
        return number

    def _listen(self, number: int, process: subprocess.Popen) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.answers.put((number, line))
        self.answers.put((number, ""))

    def _give(self, number: int, index: int) -> None:
        process = self.running[number]
        self.at[number] = index
        assert process.stdin is not None
        try:
            process.stdin.write(f"{index}\n")
            process.stdin.flush()
        except OSError:  # it died: its empty answer tells
            pass

    def run(self, indices: list[int]) -> Iterator[tuple[int, float]]:
        """(picture, processor seconds) as they are done, in any order.

        Raises:
            FairAdapterError: a worker tells of an error, or dies twice at the same picture.
        """
        waiting, tries = deque(indices), dict.fromkeys(indices, 0)
        try:
            for _ in range(min(self.processes, len(indices))):
                self._give(self._start(), waiting.popleft())
            while self.at:
                number, line = self.answers.get()
                if number not in self.at:
                    continue
                index = self.at.pop(number)
                if not line:
                    tries[index] += 1
                    status = self.running.pop(number).wait()
                    if tries[index] >= TRIES:
                        raise FairAdapterError(self._died(index, status))
                    self._give(self._start(), index)
                    continue
                yield index, self._seconds(line)
                if waiting:
                    self._give(number, waiting.popleft())
        finally:
            self.close()

    def _seconds(self, line: str) -> float:
        answer = json.loads(line)
        if "error" in answer:
            raise FairAdapterError(
                f"{answer['error']}; finished pictures stay: put this right (make room, repair the "
                "assets) and run "
                "the same command again"
                if answer.get("kind") == "OSError"
                else answer["error"]
            )
        return float(answer["seconds"])

    def _died(self, index: int, status: int) -> str:
        return (
            f"{self.out}: Blender stopped twice at picture {index} (exit status {status}; without memory "
            "it is "
            "killed); use fewer --processes and run the same command again, finished pictures stay"
        )

    def close(self) -> None:
        """Ends the workers; a picture at hand is finished."""
        for process in self.running.values():
            if process.stdin is not None:
                with suppress(OSError):
                    process.stdin.close()
        for process in self.running.values():
            process.wait()
        self.running.clear()
