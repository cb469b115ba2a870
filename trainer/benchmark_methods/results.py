"""What was measured: ratios, table, JSON, plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..running.figures import subplots, to_png
from .methods import EXACT, Method, methods

OURS = ("both_branches", "conditional", "cached", "subset")
BASELINE, CACHED_BASELINE = "one_graph", "one_graph_cached"


@dataclass(frozen=True)
class Line:
    """One method. seconds: of every round.  bytes: peak above the weights.  allocated: peak with them.
    gradient: flat, None where it did not fit in float32."""

    method: Method
    seconds: tuple[float, ...]
    bytes: int
    allocated: int
    tflop: float
    gradient: Tensor | None

    @property
    def second(self) -> float:
        """Median of the rounds."""
        return float(np.median(self.seconds))


@dataclass(frozen=True)
class Measurement:
    """All methods on one model. missing: names of those that did not fit.
    sweeps: name -> {"x": [...], method: [...]}."""

    model: str
    images: int
    micro_batch: int
    steps: int
    peak_tflops: float
    lines: Mapping[str, Line]
    missing: tuple[str, ...] = ()
    sweeps: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def cosine(self, name: str) -> float | None:
        """With the full adjusted gradient over the same branches where these are a mode's choice; None where
        that was not measured."""
        reference = EXACT.get(name, "one_graph_conditional" if name == "subset" else BASELINE)
        found, expected = self._gradient(name), self._gradient(reference)
        if found is None or expected is None:
            return None
        return float(torch.cosine_similarity(found, expected, dim=0))

    def gradient_error(self, name: str) -> float | None:
        """Relative distance from the one-graph gradient over the same branches; None where there is none."""
        found, expected = self._gradient(name), self._gradient(EXACT.get(name, ""))
        if found is None or expected is None:
            return None
        return float((found - expected).norm() / expected.norm())

    def _gradient(self, name: str) -> Tensor | None:
        return self.lines[name].gradient if name in self.lines else None

    def ratios(self) -> dict[str, dict[str, float]]:
        """Baseline over ours; time as the median over rounds of the ratio within a round. Only of what was
        measured."""
        table = {}
        for name in OURS if BASELINE in self.lines else ():
            if name not in self.lines:
                continue
            line = self.lines[name]
            cached = line.method.cached and CACHED_BASELINE in self.lines
            entry = {
                "time": _ratio(self.lines[BASELINE], line),
                "time_cached_baseline": _ratio(self.lines[CACHED_BASELINE], line) if cached else None,
                "memory": self.lines[BASELINE].bytes / line.bytes,
                "gradient_error": self.gradient_error(name),
                "cosine": self.cosine(name),
            }
            table[name] = {key: value for key, value in entry.items() if value is not None}
        return table

    @property
    def memory_growth(self) -> float | None:
        """Of ours from 10 to 50 steps, relative; None if that was not measured."""
        sweep = self.sweeps.get("memory over steps")
        if sweep is None or "both_branches" not in sweep or not {10.0, 50.0} <= set(sweep["x"]):
            return None
        ours = dict(zip(sweep["x"], sweep["both_branches"]))
        return ours[50.0] / ours[10.0] - 1

    def to_dict(self) -> dict[str, Any]:
        table = {}
        for name, line in self.lines.items():
            table[name] = {
                "title": line.method.title.strip(),
                "seconds_per_iteration": line.second,
                "seconds": list(line.seconds),
                "images_per_second": self.images / line.second,
                "peak_bytes": line.bytes,
                "allocated_bytes": line.allocated,
                "tflop": line.tflop,
                "tflop_per_second": line.tflop / line.second,
                "share_of_peak": line.tflop / line.second / self.peak_tflops,
                "cosine": self.cosine(name),
            }
        return {
            "images": self.images,
            "micro_batch": self.micro_batch,
            "steps": self.steps,
            "peak_tflops": self.peak_tflops,
            "does_not_fit": list(self.missing),
            "methods": table,
            "ratios": self.ratios(),
            "memory_growth_10_to_50_steps": self.memory_growth,
            "sweeps": self.sweeps,
        }

    def rows(self) -> list[list[str]]:
        """For the table on the terminal."""
        base, cells = self.lines.get(BASELINE), []
        for name, line in self.lines.items():
            rate = line.tflop / line.second
            cosine, error = self.cosine(name), self.gradient_error(name)
            cells.append(
                [
                    line.method.title,
                    f"{line.second:.2f}",
                    f"{self.images / line.second:.2f}",
                    f"{_ratio(base, line):.2f}x" if base else "",
                    f"{line.bytes / 2**20:.0f}",
                    f"{base.bytes / line.bytes:.1f}x" if base else "",
                    f"{line.allocated / 2**30:.2f}",
                    f"{rate:.3g}",
                    f"{100 * rate / self.peak_tflops:.0f}%",
                    "" if cosine is None else f"{cosine:.4f}",
                    "" if error is None else f"{error:.1e}",
                ]
            )
        known = methods(self.steps)
        return cells + [[known[name].title, "does not fit", *[""] * 9] for name in self.missing]


COLUMNS = (
    "method",
    "s/it",
    "images/s",
    "time",
    "MiB",
    "memory",
    "GiB in all",
    "TFLOP/s",
    "of peak",
    "cosine",
    "error",
)


def _ratio(base: Line, line: Line) -> float:
    return float(np.median([a / b for a, b in zip(base.seconds, line.seconds, strict=True)]))


def worst(measurements: Sequence[Measurement]) -> dict[str, dict[str, float]]:
    """Of each ratio the smallest over the models that have it; of each error the largest."""
    found: dict[str, dict[str, float]] = {}
    for measurement in measurements:
        for name, entry in measurement.ratios().items():
            for key, value in entry.items():
                choose = max if key == "gradient_error" else min
                known = found.setdefault(name, {})
                known[key] = choose(known.get(key, value), value)
    return found


def plot(measurements: Sequence[Measurement]) -> bytes | None:
    """A PNG of all sweeps, one row for each model; None if there are none."""
    swept = [m for m in measurements if m.sweeps]
    if not swept:
        return None
    wide = max(len(m.sweeps) for m in swept)
    figure, axes = subplots(len(swept), wide, 5 * wide, 3.6 * len(swept))
    for row, measurement in zip(axes, swept):
        for axis, (title, sweep) in zip(row, measurement.sweeps.items()):
            for name, values in sweep.items():
                if name != "x":
                    axis.plot(
                        sweep["x"], values, marker="o", label=measurement.lines[name].method.title.strip()
                    )
            axis.set_title(f"{measurement.model}: {title}", fontsize=10)
            axis.set_xlabel("images" if "images" in title else "steps")
            axis.set_ylabel("MiB above the weights" if "memory" in title else "seconds per iteration")
            axis.set_ylim(bottom=0)
            axis.legend(fontsize=7)
    return to_png(figure)
