"""Target texts for the sliders: what a text means, group by group, and how to write it again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..shared.adapter import FairnessAdapter
from ..shared.adapter_layout import AdapterOutline
from ..shared.attributes import KNOWN, STANDARD, Attribute, TargetDistribution, spelled
from ..shared.bar_grid import hex_colour
from ..shared.errors import FairAdapterError
from ..shared.presets import presets

Described = FairnessAdapter | AdapterOutline  # either knows what it can be asked for
OWN = "sliders or text"  # the preset that is none
PRESETS = (OWN, "equal", "75/25", "as trained", "as the base model does")
DEFAULT = "gender=female:50,male:50;race=equal"


def known_attributes(adapter: Described | None) -> tuple[Attribute, ...]:
    """Those that a target may name: the adapter's, then ours that it does not have."""
    own = adapter.targets.attributes if adapter is not None else ()
    names = {a.name for a in own}
    return (*own, *(a for a in KNOWN if a.name not in names))


def choose(text: str, preset: str, adapter: Described | None) -> TargetDistribution:
    """The target of a text, or of a preset over the adapter's attributes (without one: those of the text).

    Raises FairAdapterError for a text that does not read, and for a preset that needs an adapter.
    """
    known = known_attributes(adapter)
    if preset == OWN:
        if not text.strip() and adapter is not None:
            return adapter.targets.default
        return TargetDistribution.parse(text, known)
    if adapter is not None:
        attributes = adapter.targets.attributes
    elif text.strip():
        attributes = TargetDistribution.parse(text, known).attributes
    else:
        attributes = STANDARD
    found = presets(attributes, adapter)
    if preset in found:
        return found[preset]
    if adapter is None and preset in PRESETS[3:]:
        raise FairAdapterError(
            f"target preset '{preset}': needs an adapter and none is connected; connect Load Fair Adapter "
            "or choose another preset"
        )
    reason = "no attribute has two classes" if preset == "75/25" else "this adapter's file does not tell"
    raise FairAdapterError(f"target preset '{preset}': {reason}; choose one of {', '.join(found)}")


def groups(text: str, attributes: Sequence[Attribute]) -> list[dict[str, Any]]:
    """The blocks of a target text, each with its classes (joint: "female*black"), shares in % and colours.

    Raises FairAdapterError for a text that does not read.
    """
    TargetDistribution.parse(text, attributes)  # the whole first: no attribute twice
    found = []
    for block in (part for part in text.split(";") if part.strip()):
        target = TargetDistribution.parse(block, attributes)
        first = target.attributes[0]
        found.append(
            {
                "name": "*".join(target.names),
                "classes": ["*".join(cell) for cell in target.cells],
                "shares": [100 * share for share in target.shares],
                "colours": [hex_colour(first.looks[first.index(cell[0])].colour) for cell in target.cells],
            }
        )
    return found


def target_dict(text: str, preset: str, adapter: Described | None) -> dict[str, Any]:
    """Everything that the sliders show. An error is told in "error" beside what is known without the text."""
    attributes = known_attributes(adapter)
    table: dict[str, Any] = {
        "attributes": {a.name: list(a.classes) for a in attributes},
        "spelled": {a.name: {label: spelled(a.name, label) for label in a.classes} for a in attributes},
        "groups": [],
        "text": "",
        "warnings": [],
        "error": "",
    }
    try:
        target = choose(text, preset, adapter)
        table["text"] = target.to_text()
        # a text's own blocks stay apart, which the target alone would not tell
        blocks = text if preset == OWN and text.strip() else table["text"]
        table["groups"] = groups(blocks, attributes)
        if adapter is not None:
            table["warnings"] = list(adapter.targets.resolve(target).warnings)
    except FairAdapterError as error:
        table["error"] = str(error)
    return table
