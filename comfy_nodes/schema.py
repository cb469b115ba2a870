"""Our socket types, and schemas that every ComfyUI since 0.3.75 takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from comfy_api.latest import io

from ..shared.errors import FairAdapterError

CATEGORY = "Fair Adapter"
Adapter = io.Custom("FAIR_ADAPTER")  # shared.adapter.FairnessAdapter
Target = io.Custom("FAIR_TARGET")  # shared.attributes.TargetDistribution
Readings = io.Custom("FAIR_READINGS")  # collection.Batch


def known(make: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call `make` with those of the options that this ComfyUI release knows.

    A keyword that came later (`search_aliases`, `advanced`) would fail the import of the whole pack.
    """
    parameters = inspect.signature(make).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return make(*args, **options)
    names = {p.name for p in parameters}
    return make(*args, **{name: value for name, value in options.items() if name in names})


def schema(node_id: str, display_name: str, description: str, **options: Any) -> Any:
    """A schema in our category; `node_id` never changes once it is published."""
    return known(
        io.Schema,
        node_id=f"FairAdapter_{node_id}",
        display_name=display_name,
        category=CATEGORY,
        description=description,
        **{"search_aliases": ["fair", "fairness", "bias", "diversity"], **options},
    )


def check_choice(name: str, value: object, options: Sequence[str]) -> None:
    """Raises FairAdapterError for a value that a combo of this name does not offer.

    ComfyUI does not check combos of V3 nodes. A list of values is that of a node which takes lists.
    """
    for each in value if isinstance(value, (list, tuple)) else [value]:
        if each not in options:
            raise FairAdapterError(
                f"{name}: expected one of {', '.join(map(repr, options))}, found {str(each)[:80]!r}; "
                "choose one of these"
            )


def valid(name: str, value: object, options: Sequence[str]) -> bool | str:
    """The same before a prompt is queued: True, or the reason.  value: None or [None] is a connection."""
    if value is None or value == [None] or value == (None,):
        return True
    try:
        check_choice(name, value, options)
    except FairAdapterError as error:
        return str(error)
    return True


def target_input() -> Any:
    """The optional target of several nodes."""
    return Target.Input(
        "target",
        optional=True,
        tooltip="Target distribution, from the node of that name. Without one, the adapter's own default.",
    )
