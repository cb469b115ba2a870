"""A part of the sampling in a CLIP: what it encodes are stock conditionings with ranges of their own.

Where an adapter acts, a prompt is encoded with its soft tokens and its LoRA of the text encoder, and carries
its LoRA of the network as a hook; elsewhere all three are left out. The ranges are the sampler's own
`clip_start_percent` and `clip_end_percent`, which leave Conditioning Set Timestep Range to the user.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.hooks

from ..shared.window import Window, stretches

KEPT = "fair_adapter_windows"  # our attribute on the copies of a CLIP


@dataclass(frozen=True, eq=False)
class Windowed:
    """What of a CLIP acts in a part of the sampling alone.

    tokens: name of the embedding that stands for the soft tokens, "" for none.
    patches: of the text encoder's weights, told by identity.
    hooks: the LoRA of the network, None for none.
    """

    window: Window
    tokens: str
    patches: tuple[Any, ...]
    hooks: Any


def network_hooks(patches: Mapping[Any, Any]) -> Any:
    """ComfyUI's hook that puts patches (key of the weight -> patch) onto the network where a conditioning
    carries it."""
    hook = comfy.hooks.WeightHook(strength_model=1.0, strength_clip=0.0)
    hook.weights, hook.weights_clip, hook.need_weight_init = dict(patches), {}, False
    group = comfy.hooks.HookGroup()
    group.add(hook)
    return group


def known(clip: Any) -> tuple[Windowed, ...]:
    return getattr(clip, KEPT, ())


def keep(clip: Any, windows: Sequence[Windowed]) -> None:
    setattr(clip, KEPT, tuple(windows))


def scheduled(
    clip: Any, tokens: Any, without: Callable[[Any, set[str]], Any], encode: Callable[..., Any]
) -> Any:
    """The conditionings of a prompt, one for each stretch of the sampling in which the same adapters act.

    without: the tokens without the soft tokens of these names.  encode: CLIP and tokens -> conditionings.
    """
    windows, result = known(clip), []
    for low, high, acting in stretches(each.window for each in windows):
        off = [each for each, acts in zip(windows, acting) if not acts]
        hooks = [each.hooks for each, acts in zip(windows, acting) if acts and each.hooks is not None]
        names = {each.tokens for each in off if each.tokens}
        for values, more in encode(_bare(clip, off), without(tokens, names)):
            begin, end = (
                max(low, more.get("clip_start_percent", 0.0)),
                min(high, more.get("clip_end_percent", 1.0)),
            )
            if begin >= end:
                continue
            told = {**more, "clip_start_percent": begin, "clip_end_percent": end}
            if hooks:
                others = [told["hooks"]] if told.get("hooks") is not None else []
                told["hooks"] = comfy.hooks.HookGroup.combine_all_hooks([*others, *hooks])
            result.append([values, told])
    return result


def _bare(clip: Any, off: Sequence[Windowed]) -> Any:
    """A copy of the CLIP without windows, and without the patches of those that are off."""
    result = clip.clone()
    keep(result, ())
    gone = {id(patch) for each in off for patch in each.patches}
    if gone:
        kept = {
            key: [entry for entry in entries if id(entry[1]) not in gone]
            for key, entries in result.patcher.patches.items()
        }
        result.patcher.patches = {key: entries for key, entries in kept.items() if entries}
        result.patcher.patches_uuid = uuid.uuid4()
    return result
