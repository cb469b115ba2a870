"""What is written into a picture's parameters, and how it is read back.

`Fair adapter`, `Fair target`, `Fair strength`, `Fair hash` (of the weights that were used) and, only where
they say something, `Fair tokens` and `Fair error`. The host quotes values with commas itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..shared.attributes import TargetDistribution
from ..shared.errors import FairAdapterError
from .injection import strip
from .request import HIDDEN, IN_PROMPT, NO_ADAPTER, FairRequest

ADAPTER, TARGET, STRENGTH = "Fair adapter", "Fair target", "Fair strength"
HASH, TOKENS, ERROR = "Fair hash", "Fair tokens", "Fair error"
KEYS = (ADAPTER, TARGET, STRENGTH, HASH, TOKENS, ERROR)
PROMPTS = ("Prompt", "Negative prompt", "Hires prompt", "Hires negative prompt")


def describe(request: FairRequest, target: str = "", content_hash: str = "") -> dict[str, Any]:
    """Entries of the generation parameters.

    target: as the adapter resolved it.  content_hash: of the weights; empty without an adapter.
    """
    if not request.has_adapter:
        return {ADAPTER: NO_ADAPTER, **({TARGET: request.target} if request.target else {})}
    entries: dict[str, Any] = {ADAPTER: request.adapter, TARGET: target, STRENGTH: request.strength}
    entries |= {HASH: content_hash} if content_hash else {}
    return entries | ({TOKENS: request.place} if request.place != HIDDEN else {})


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


def is_on(parameters: Mapping[str, Any]) -> bool:
    """Whether a pasted infotext was made with us; decides the accordion."""
    return ADAPTER in parameters


def pasted_place(parameters: Mapping[str, Any]) -> str | None:
    """Where the tokens went; None leaves the choice as it is."""
    if not is_on(parameters):
        return None
    return IN_PROMPT if parameters.get(TOKENS) == IN_PROMPT else HIDDEN


def pasted_target(parameters: Mapping[str, Any]) -> str | None:
    return str(parameters.get(TARGET, "")) if is_on(parameters) else None


def clean_pasted(parameters: dict[str, Any]) -> None:
    """Take our own words out of pasted prompts, in place: they come back when the picture is made again."""
    for key in PROMPTS:
        if isinstance(parameters.get(key), str):
            parameters[key] = strip(parameters[key])
