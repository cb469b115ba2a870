"""The settings page as a table, and the settings in force."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from ..shared.bars import CERTAIN

SECTION = ("fair_adapter", "Fair Adapter")
# label -> how the host decodes a latent for a preview (its own codes); none of these touches the model
APPROXIMATIONS = {"Approx cheap": 2, "Approx NN": 1, "TAESD": 3}
AUTOMATIC, FULL = "automatic", "Full"  # by a copy of the model's VAE: if it is small, always
DEVICES = ("automatic", "CPU")


@dataclass(frozen=True)
class Option:
    """One entry: `kind` is "switch", "slider" (choices: least, most, step), "choice" or "text"."""

    name: str
    default: Any
    label: str
    info: str
    kind: str
    choices: tuple[Any, ...]


def option(default: Any, label: str, info: str, kind: str = "switch", choices: tuple[Any, ...] = ()) -> Any:
    """A setting with what the page says of it; see `Option`."""
    metadata = {"label": label, "info": info, "kind": kind, "choices": choices}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class FairOptions:
    """The settings in force."""

    read_final: bool = option(True, "Read the faces of finished pictures", "for the panel and the statistics")
    panel: bool = option(True, "Panel under the gallery", "boxes, bars and shares of the last batch")
    record: bool = option(
        True, "Keep readings in the statistics", "prompt, settings and readings, on this machine"
    )
    live_every: int = option(3, "Live bars: steps between two looks", "more is cheaper", "slider", (1, 20, 1))
    live_decoder: str = option(
        AUTOMATIC,
        "Live bars: decoder",
        "automatic: the model's own VAE in full if it is small, else NN, which reads 512 px pictures at a "
        "quarter of their size in milliseconds; TAESD is sharper and takes seconds on a CPU; cheap suits "
        "small pictures only; Full keeps a copy of the VAE beside the model",
        "choice",
        (AUTOMATIC, *APPROXIMATIONS, FULL),
    )
    live_preview: bool = option(
        True, "Live bars: draw them into the preview", "also in the progress of the API"
    )
    certain: float = option(
        CERTAIN,
        "Least confidence of a certain reading",
        "below it a bar is hatched",
        "slider",
        (0.5, 0.99, 0.01),
    )
    device: str = option(
        "automatic", "Where faces are read", "automatic: where the model is", "choice", DEVICES
    )
    chunk: bool = option(True, "Write readings into saved PNG files", "their own chunk 'fair_adapter'")
    save_bars: bool = option(False, "Draw boxes and bars on saved pictures", "the picture itself is changed")
    keep_files: int = option(
        8,
        "Adapter files kept for the host",
        "one for each target used last, below the folders of embeddings and Loras",
        "slider",
        (1, 64, 1),
    )
    folder: str = option(
        "", "Adapter folder", "empty: models/fair_adapters; needs a restart of the UI", "text"
    )  # fmt: skip
    skin_tone: bool = option(
        False, "Measure skin tone", "a fourth bar: six classes by the colour of the skin's pixels"
    )


OPTIONS = tuple(Option(f.name, f.default, **f.metadata) for f in fields(FairOptions))


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
