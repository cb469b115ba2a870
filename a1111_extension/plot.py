"""Axes of the host's X/Y/Z plot: target, strength, adapter and table of targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .job import CHANGES

AXES: tuple[tuple[str, str, type], ...] = (
    ("[Fair Adapter] Target", "target", str),
    ("[Fair Adapter] Strength", "strength", float),
    ("[Fair Adapter] Adapter", "adapter", str),
    ("[Fair Adapter] Targets by prompt", "table", str),
)


def setter(name: str) -> Callable[[Any, Any, Any], None]:
    """What the plot calls for a cell; the values travel on p and win over the accordion's."""

    def apply(p: Any, value: Any, values: Any) -> None:
        setattr(p, CHANGES, {**(getattr(p, CHANGES, None) or {}), name: value})

    return apply


def add_axes(loaded_scripts: Iterable[Any]) -> int:
    """Append our axes to the plot script, once; returns how many were added (0: no such script)."""
    added = 0
    for data in loaded_scripts:
        module = getattr(data, "module", None)
        options, make = getattr(module, "axis_options", None), getattr(module, "AxisOption", None)
        if options is None or make is None:
            continue
        for label, name, kind in AXES:
            if not any(option.label == label for option in options):
                options.append(make(label, kind, setter(name)))
                added += 1
    return added
