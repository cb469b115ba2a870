"""What a generation asks of us: the script's arguments, from the UI or from the API.

The order of `ARGUMENTS` is the order of the API's positional list: names are only ever appended. The API may
also send one object with the same names.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ..shared.adapter_info import STRENGTHS
from ..shared.errors import FairAdapterError

NO_ADAPTER = "None"  # only reads the faces
HIDDEN, IN_PROMPT = "hidden", "in the prompt"
PLACES = (HIDDEN, IN_PROMPT)


@dataclass(frozen=True)
class FairRequest:
    """enabled: everything else has no effect without it.
    adapter: a name of the library, or "None" to measure only.
    target: text of a target distribution; empty is the adapter's default.
    strength: 1 is the trained adapter.
    place: where the soft tokens go: "hidden" (infotext keeps the user's prompt) or "in the prompt".
    live: bars while sampling.  overlay: copies with bars are added to the gallery.
    table: name of a table that gives prompts targets of their own, "" or "None" for none; target then is for
        the others.
    """

    enabled: bool = False
    adapter: str = NO_ADAPTER
    target: str = ""
    strength: float = 1.0
    place: str = HIDDEN
    live: bool = True
    overlay: bool = False
    table: str = ""

    def __post_init__(self) -> None:
        for name in ("adapter", "target", "table"):
            value = getattr(self, name)
            object.__setattr__(self, name, "" if value is None else value)
            if not isinstance(getattr(self, name), str):
                _wrong(name, "a text", value)
        for name in ("enabled", "live", "overlay"):
            if not isinstance(getattr(self, name), bool):
                _wrong(name, "true or false", getattr(self, name))
        number = self.strength
        if isinstance(number, bool) or not isinstance(number, (int, float)) or number != number:
            _wrong("strength", "a number such as 1.0", number)
        if not STRENGTHS[0] <= number <= STRENGTHS[1]:
            _wrong("strength", f"{STRENGTHS[0]:g} to {STRENGTHS[1]:g}", number)
        object.__setattr__(self, "strength", float(number))
        if self.place not in PLACES:
            _wrong("place", f"one of {', '.join(PLACES)}", self.place)

    @property
    def has_adapter(self) -> bool:
        return self.adapter not in ("", NO_ADAPTER)

    @property
    def has_table(self) -> bool:
        return self.table not in ("", NO_ADAPTER)


ARGUMENTS = tuple(f.name for f in fields(FairRequest))


def is_enabled(arguments: Sequence[Any]) -> bool:
    """Whether a list of arguments asks for anything; never raises."""
    if not arguments:
        return False
    if isinstance(arguments[0], Mapping):
        return arguments[0].get("enabled", True) is not False
    return arguments[0] not in (False, None)  # whatever else is wrong, `FairRequest` says so


def given_values(arguments: Sequence[Any]) -> dict[str, Any]:
    """Values by name: of a positional list, whose tail may be missing, or of one object in its place."""
    if arguments and isinstance(arguments[0], Mapping):
        return {"enabled": True, **arguments[0]}
    return dict(zip(ARGUMENTS, arguments))


def read_request(arguments: Sequence[Any]) -> FairRequest:
    """The request of a list of arguments.

    Raises FairAdapterError for an unknown name and for a value of the wrong kind.
    """
    given = given_values(arguments)
    unknown = next((name for name in given if name not in ARGUMENTS), None)
    if unknown is not None:
        near = difflib.get_close_matches(str(unknown), ARGUMENTS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "leave it out"
        raise FairAdapterError(
            f"arguments: expected {', '.join(ARGUMENTS)}, found {str(unknown)[:40]!r}; {hint}"
        )
    return FairRequest(**given)


def readable_part(
    arguments: Sequence[Any], changes: Mapping[str, Any] | None = None
) -> tuple[FairRequest, tuple[str, ...]]:
    """What of a request reads, and the names of what does not: for saying what was asked for where
    `read_request` refuses it."""
    given = {**given_values(arguments), **(changes or {})}
    kept: dict[str, Any] = {}
    for name, value in given.items():
        try:
            FairRequest(**{name: value})
        except (FairAdapterError, TypeError):
            continue  # a wrong value, a name that there is not
        kept[name] = value
    return FairRequest(**kept), tuple(str(name) for name in given if name not in kept)


def with_changes(request: FairRequest, changes: Mapping[str, Any]) -> FairRequest:
    """The request with some values replaced, as an X/Y/Z plot does."""
    return FairRequest(**{**{name: getattr(request, name) for name in ARGUMENTS}, **changes})


def _wrong(name: str, expected: str, found: Any) -> None:
    raise FairAdapterError(f"argument '{name}': expected {expected}, found {str(found)[:60]!r}; set it again")
