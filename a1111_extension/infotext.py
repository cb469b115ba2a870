"""What is written into a picture's parameters, and how it is read back.

`Fair adapter`, `Fair target`, `Fair strength`, `Fair hash` (of the weights that were used) and, only where
they say something, `Fair tokens`, `Fair table` and `Fair error`. The host quotes values with commas itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..shared.adapter_info import STRENGTHS
from ..shared.attributes import TargetDistribution
from ..shared.errors import FairAdapterError
from .injection import strip
from .request import HIDDEN, IN_PROMPT, NO_ADAPTER, FairRequest

ADAPTER, TARGET, STRENGTH = "Fair adapter", "Fair target", "Fair strength"
HASH, TOKENS, ERROR, TABLE = "Fair hash", "Fair tokens", "Fair error", "Fair table"
KEYS = (ADAPTER, TARGET, STRENGTH, HASH, TOKENS, ERROR, TABLE)
ENABLED = "Fair enabled"  # stands in no picture: the name by which the hosts' buttons know the accordion
PROMPTS = ("Prompt", "Negative prompt", "Hires prompt", "Hires negative prompt")


def describe(request: FairRequest, target: str = "", content_hash: str = "") -> dict[str, Any]:
    """Entries of the generation parameters.

    target: as the adapter resolved it.  content_hash: of the weights; empty without an adapter.
    """
    table = {TABLE: request.table} if request.has_table else {}
    if not request.has_adapter:
        asked = target or request.target
        return {ADAPTER: NO_ADAPTER, **({TARGET: asked} if asked else {}), **table}
    entries: dict[str, Any] = {ADAPTER: request.adapter, TARGET: target, STRENGTH: request.strength}
    entries |= {HASH: content_hash} if content_hash else {}
    return entries | ({TOKENS: request.place} if request.place != HIDDEN else {}) | table


def describe_failure(request: FairRequest, reason: str, refused: Sequence[str] = ()) -> dict[str, Any]:
    """Entries where the adapter could not be used: what was asked for, as it was written, and why not.

    refused: names of values that did not read; the request's own are defaults.
    """
    entries = {**describe(request, request.target), ERROR: reason}
    unknown = [STRENGTH] if "strength" in refused else []
    return {k: v for k, v in entries.items() if v != "" and k not in unknown}


def readable(target: TargetDistribution) -> str:
    """The shortest text that is the target to a millionth; exact texts of thirds have eight decimals."""
    for decimals in range(4):
        blocks = [
            f"{a.name}="
            + ",".join(f"{c}:{_percent(p, decimals)}" for c, p in zip(a.classes, target.marginal(a.name)))
            for a in target.attributes
        ]
        text = ";".join(blocks)
        try:
            again = TargetDistribution.parse(text, target.attributes)
        except FairAdapterError:
            continue  # so rounded, the shares do not sum to 100
        if abs(again.probabilities - target.probabilities).max() < 1e-6:
            return text
    return target.to_text()


def _percent(share: float, decimals: int) -> str:
    return f"{round(100 * share, decimals):g}"


# ---- back into the widgets


class PasteField(str):
    """How one widget is set, whichever way the settings travel.

    The hosts' "send to" buttons copy the widgets whose label is a text that the script names; PNG info, the
    arrow button and the API's `infotext` call what can be called with the parameters of a picture. This is
    both: a plain function would be left out by the buttons, a plain text can't read the accordion.
    """

    read: Callable[[Mapping[str, Any]], Any]

    def __new__(cls, label: str, read: Callable[[Mapping[str, Any]], Any]) -> PasteField:
        field = super().__new__(cls, label)
        field.read = read
        return field

    def __call__(self, parameters: Mapping[str, Any]) -> Any:
        """The widget's value; None leaves it as it is."""
        return self.read(parameters)


def is_on(parameters: Mapping[str, Any]) -> bool:
    """Whether a pasted infotext was made with us; decides the accordion."""
    return ADAPTER in parameters


def pasted_adapter(parameters: Mapping[str, Any]) -> str | None:
    return str(parameters[ADAPTER]) if is_on(parameters) else None


def pasted_target(parameters: Mapping[str, Any]) -> str | None:
    return str(parameters.get(TARGET, "")) if is_on(parameters) else None


def pasted_strength(parameters: Mapping[str, Any]) -> float | None:
    """None for what is no strength: a text of elsewhere must not end a request of the API."""
    try:
        strength = float(parameters.get(STRENGTH, ""))
    except (TypeError, ValueError):
        return None
    low, high = STRENGTHS
    return strength if math.isfinite(strength) and low <= strength <= high else None


def pasted_place(parameters: Mapping[str, Any]) -> str | None:
    """Where the tokens went."""
    if not is_on(parameters):
        return None
    return IN_PROMPT if parameters.get(TOKENS) == IN_PROMPT else HIDDEN


def pasted_table(parameters: Mapping[str, Any]) -> str | None:
    """The table of targets, "None" of a picture without one."""
    return str(parameters.get(TABLE, NO_ADAPTER)) if is_on(parameters) else None


FIELDS = (  # of the first widgets of `request.ARGUMENTS`, in that order
    PasteField(ENABLED, is_on),
    PasteField(ADAPTER, pasted_adapter),
    PasteField(TARGET, pasted_target),
    PasteField(STRENGTH, pasted_strength),
    PasteField(TOKENS, pasted_place),
)
TABLE_FIELD = PasteField(TABLE, pasted_table)
SETTLED = PasteField(
    "Fair settled", is_on
)  # that somebody has chosen: the page then chooses nothing by itself


def clean_pasted(parameters: dict[str, Any]) -> None:
    """Take our own words out of pasted prompts, in place: they come back when the picture is made again."""
    for key in PROMPTS:
        if isinstance(parameters.get(key), str):
            parameters[key] = strip(parameters[key])
