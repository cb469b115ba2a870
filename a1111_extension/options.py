"""The settings page as a table, and the settings in force."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..shared.bars import CERTAIN

SECTION = ("fair_adapter", "Fair Adapter")
# label -> how the host decodes a latent for a preview (its own codes)
DECODERS = {"Approx cheap": 2, "Approx NN": 1, "TAESD": 3, "Full": 0}
DEVICES = ("automatic", "CPU")


@dataclass(frozen=True)
class Option:
    """One entry: `kind` is "switch", "slider" (choices: least, most, step), "choice" or "text"."""

    name: str
    default: Any
    label: str
    info: str
    kind: str = "switch"
    choices: tuple[Any, ...] = ()


OPTIONS = (
    Option("read_final", True, "Read the faces of finished pictures", "for the panel and the statistics"),
    Option("panel", True, "Panel under the gallery", "boxes, bars and shares of the last batch"),
    Option(
        "record", True, "Keep readings in the statistics", "prompt, settings and readings, on this machine"
    ),
    Option(
        "live_every", 3, "Live bars: steps between two looks", "more is cheaper", "slider", (1, 20, 1)
    ),
    Option(
        "live_decoder", "Approx NN", "Live bars: decoder",
        "NN reads 512 px pictures at a quarter of their size in milliseconds; TAESD is sharper and takes "
        "seconds on a CPU; cheap suits small pictures only", "choice", tuple(DECODERS),
    ),
    Option("live_preview", True, "Live bars: draw them into the preview", "also in the progress of the API"),
    Option(
        "certain", CERTAIN, "Least confidence of a certain reading", "below it a bar is hatched", "slider",
        (0.5, 0.99, 0.01),
    ),
    Option("device", "automatic", "Where faces are read", "automatic: where the model is", "choice", DEVICES),
    Option("chunk", True, "Write readings into saved PNG files", "their own chunk 'fair_adapter'"),
    Option("save_bars", False, "Draw boxes and bars on saved pictures", "the picture itself is changed"),
    Option(
        "keep_files", 8, "Adapter files kept for the host", "one for each target used last, below the "
        "folders of embeddings and Loras", "slider", (1, 64, 1),
    ),
    Option(
        "folder", "", "Adapter folder", "empty: models/fair_adapters; needs a restart of the UI", "text"
    ),
)  # fmt: skip


@dataclass(frozen=True)
class FairOptions:
    """The settings in force; see `OPTIONS` for their meaning."""

    read_final: bool = True
    panel: bool = True
    record: bool = True
    live_every: int = 3
    live_decoder: str = "Approx NN"
    live_preview: bool = True
    certain: float = CERTAIN
    device: str = "automatic"
    chunk: bool = True
    save_bars: bool = False
    keep_files: int = 8
    folder: str = ""


def read_options(value: Callable[[str], Any]) -> FairOptions:
    """Settings as the host holds them; one that is missing or of the wrong kind keeps its default.

    value: host's name of a setting ("fair_live_every") -> its value or None.
    """
    found: dict[str, Any] = {}
    for option in OPTIONS:
        given = value(f"fair_{option.name}")
        kind = type(option.default)
        if kind is float and isinstance(given, int) and not isinstance(given, bool):
            given = float(given)
        if kind is int and isinstance(given, float):
            given = round(given)
        if type(given) is kind and (option.kind != "choice" or given in option.choices):
            found[option.name] = given
    return FairOptions(**found)
