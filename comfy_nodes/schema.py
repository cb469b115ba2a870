"""Our socket types, and schemas that every ComfyUI since 0.3.75 takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from comfy_api.latest import io

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


def target_input() -> Any:
    """The optional target of several nodes."""
    return Target.Input(
        "target",
        optional=True,
        tooltip="Target distribution, from the node of that name. Without one, the adapter's own default.",
    )
