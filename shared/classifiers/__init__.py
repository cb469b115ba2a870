"""Attribute classifiers by name. Each back end is imported when it is first asked for."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import Any

from ..errors import FairAdapterError
from .base import AttributeClassifier, ClassifierModule
from .combined import JOIN, Combined

# name -> (module, function); the function takes (path: Path | None, **options) and returns the classifier
BACK_ENDS: dict[str, tuple[str, str]] = {
    "default": ("default", "load"),
    "evaluator": ("evaluator", "load"),
    "fairface": ("fairface", "load"),
    "mobilenet": ("mobilenet", "load"),
    "skin_tone": ("skin_tone", "load"),
    "zero_shot": ("zero_shot", "load"),
}
RULER = f"{JOIN}skin_tone"  # at the end of a name: the ruler reads beside that classifier


def load_classifier(
    name: str = "default", path: Path | str | None = None, **options: Any
) -> AttributeClassifier:
    """The classifier ``name`` in evaluation mode, float32, on the CPU.

    Args:
        name: a key of `BACK_ENDS`; ``NAME:PATH`` is accepted as well. ``+skin_tone`` adds the ruler.
        path: weight file or folder, for back ends that have one.
        options: passed to the back end.

    Raises:
        FairAdapterError: unknown name, or what the back end finds wrong with its files.
    """
    if name.endswith(RULER):
        first = load_classifier(name.removesuffix(RULER).strip(), path, **options)
        return Combined([first, load_classifier("skin_tone")])
    if ":" in name and path is None and name not in BACK_ENDS:
        name, path = name.split(":", 1)
    if name not in BACK_ENDS:
        near = difflib.get_close_matches(name, BACK_ENDS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "use one of them, or NAME{RULER}"
        raise FairAdapterError(f"classifier '{name}': expected one of {', '.join(BACK_ENDS)}; {hint}")
    module, function = BACK_ENDS[name]
    load = getattr(importlib.import_module(f".{module}", __name__), function)
    return load(None if path is None else Path(path), **options)


__all__ = ["BACK_ENDS", "RULER", "AttributeClassifier", "ClassifierModule", "load_classifier"]
