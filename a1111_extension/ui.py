"""The accordion in txt2img and img2img, for gradio 3.41, 4.40 and later.

The target is a text; the sliders write it and follow it. An adapter says which attributes there are, so the
sliders are slots, enough for every attribute of the table in `shared/attributes.py`; what does not fit is
written as text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from ..shared.adapter_info import STRENGTHS, BaseModel
from ..shared.attributes import TABLE, Attribute, TargetDistribution
from ..shared.errors import FairAdapterError
from ..shared.library import SUFFIX
from ..shared.presets import linked
from ..shared.table_files import TABLES
from . import infotext, views
from .request import HIDDEN, NO_ADAPTER, PLACES
from .service import FairService, LastResult

ATTRIBUTES, CLASSES = len({attribute.name for attribute in TABLE}), max(map(len, TABLE))
SLOTS = ATTRIBUTES * CLASSES
CUSTOM = "custom"
NEAR = 0.06  # a slider closer than this to the target's share stays where it is

JOINT = "This target is a joint one, which sliders can't change: edit its text, or choose a preset."

Base = Callable[[], BaseModel | None]


def build(
    service: FairService, accordion: Callable[..., Any], elem_id: Callable[[str], str], base: Base | None
) -> tuple[list[Any], list[tuple[Any, infotext.PasteField]]]:
    """The widgets of `request.ARGUMENTS`, in that order, and how pictures and other tabs set them.

    accordion: makes the host's accordion with a check mark.  elem_id: the host's ids for widgets.
    base: the loaded model, for warnings; None if unknown.
    """
    first = service.first_choice(own=True)
    with accordion(elem_id=elem_id("enable")) as enabled:
        with gr.Row():
            adapter = gr.Dropdown(
                choices=service.choices(), value=first, label="Adapter", allow_custom_value=True,
                elem_id=elem_id("adapter"), scale=4,
            )  # fmt: skip
            preset = gr.Dropdown(
                choices=[CUSTOM, *service.presets(first)], value=CUSTOM, label="Preset",
                elem_id=elem_id("preset"), scale=2,
            )  # fmt: skip
            refresh = gr.Button("Refresh", elem_id=elem_id("refresh"), scale=1, min_width=80)
        sliders, rows = target_sliders(service, first, elem_id)
        target = gr.Textbox(
            value=service.default_target(first), label="Target", lines=2, max_lines=6,
            elem_id=elem_id("target"),
            info="what the sliders say; joint targets such as gender*race=... are written here",
        )  # fmt: skip
        table = gr.Dropdown(
            choices=service.table_choices(), value=NO_ADAPTER, label="Targets by prompt",
            allow_custom_value=True, elem_id=elem_id("table"),
            info="a table gives each prompt its own target; the sliders are for prompts without a row",
        )  # fmt: skip
        with gr.Row():
            strength = gr.Slider(
                *STRENGTHS, value=1.0, step=0.05, label="Strength", elem_id=elem_id("strength")
            )
            place = gr.Radio(
                list(PLACES), value=HIDDEN, label="Soft tokens", elem_id=elem_id("place"),
                info="in the prompt: for ADetailer and other scripts that copy the prompt",
            )  # fmt: skip
        with gr.Row():
            live = gr.Checkbox(True, label="Live bars while sampling", elem_id=elem_id("live"))
            overlay = gr.Checkbox(
                False, label="Add copies with bars to the gallery", elem_id=elem_id("overlay")
            )
        advice = gr.HTML(service.advice(first, "", None), elem_id=elem_id("advice"))
        settled = gr.Checkbox(False, visible=False, elem_id=elem_id("settled"))
    choices: list[Any] = [adapter, preset, target, table, settled, *sliders]
    for component in choices:
        component.do_not_save_to_config = True  # the host would remember labels and values of other adapters
    connect_target(service, adapter, preset, sliders, rows, target, advice, base, table)
    enabled.change(
        lambda *now: on_open(service, _known(base), first, *now), [enabled, settled, adapter, target, table],
        [adapter, target, settled, advice], queue=False, show_progress="hidden",
    )  # fmt: skip
    refresh.click(
        lambda name, chosen: [*refreshed(service, name), refreshed_tables(service, chosen)],
        [adapter, table], [adapter, preset, table], queue=False,
    )  # fmt: skip
    controls: list[Any] = [enabled, adapter, target, strength, place, live, overlay, table]
    fields = [*zip(controls, infotext.FIELDS), (table, infotext.TABLE_FIELD)]
    return controls, [*fields, (settled, infotext.SETTLED)]


def on_open(
    service: FairService,
    base: BaseModel | None,
    first: str,
    is_open: bool,
    settled: bool,
    name: str,
    text: str,
    table: str = "",
) -> list[Any]:
    """Updates of adapter, target, settled and advice when the accordion opens.

    The page was made before a model was loaded, with the first adapter by name; where nobody has chosen yet,
    one that fits takes its place.  settled: whether somebody has, here or where the settings came from.
    """
    keep = gr.update()
    untouched = not settled and name == first and (text or "") == service.default_target(first)
    if is_open and untouched and base is not None:
        name = service.fitting_choice(base) or name
        if name != first:
            text = service.default_target(name)
            return [name, text, True, service.advice(name, text, base, table)]
    told = service.advice(name, text or "", base, table or "")
    return [keep, keep, settled or (is_open and base is not None), told]


# ---- sliders


def target_sliders(
    service: FairService, name: str, elem_id: Callable[[str], str]
) -> tuple[list[Any], list[Any]]:
    """All slots (SLOTS sliders) and the rows of the attributes."""
    updates = slots(service.attributes(name), _read(service, name, service.default_target(name)))
    sliders, rows = [], []
    for a in range(ATTRIBUTES):
        group = updates[a * CLASSES : (a + 1) * CLASSES]
        with gr.Row(visible=any(u["visible"] for u in group), elem_id=elem_id(f"row_{a}")) as row:
            for c, state in enumerate(group):
                sliders.append(
                    gr.Slider(
                        0,
                        100,
                        value=state["value"],
                        step=0.1,
                        label=state["label"],
                        visible=state["visible"],
                        elem_id=elem_id(f"share_{a}_{c}"),
                        interactive=True,
                        min_width=120,
                    )
                )
        rows.append(row)
    return sliders, rows


def slots(attributes: Sequence[Attribute], target: TargetDistribution | None) -> list[dict[str, Any]]:
    """State of every slot: value in percent, label, visible. A class without a slot hides its attribute."""
    states: list[dict[str, Any]] = []
    for a in range(ATTRIBUTES):
        attribute = attributes[a] if a < len(attributes) and len(attributes[a]) <= CLASSES else None
        for c in range(CLASSES):
            if attribute is None or c >= len(attribute):
                states.append({"value": 0.0, "label": "-", "visible": False})
                continue
            share = 1 / len(attribute)
            if target is not None and attribute.name in target.names:
                share = _share(target, attribute, c)
            label = f"{attribute.name}: {attribute.classes[c]} %"
            states.append({"value": round(100 * share, 1), "label": label, "visible": True})
    return states


def moved(
    service: FairService, slot: int, name: str, values: Sequence[float], before: str = ""
) -> tuple[list[Any], str]:
    """One slider was moved: values of its attribute's sliders, and the target's text.

    before: the text until now; what it says of attributes without sliders stays.
    """
    attributes = service.attributes(name)[:ATTRIBUTES]
    a, c = divmod(slot, CLASSES)
    table: dict[str, list[float]] = {}
    for index, attribute in enumerate(attributes):
        if len(attribute) > CLASSES:
            continue
        first = index * CLASSES
        shares = [float(v or 0.0) for v in values[first : first + len(attribute)]]
        position = c if index == a else 0
        table[attribute.name] = linked(shares, position, shares[position])
    own = table.get(attributes[a].name, []) if a < len(attributes) else []
    blocks = [infotext.readable(TargetDistribution.from_dict(table, attributes))] if table else []
    others = before.lower().split(";") if _read(service, name, before) is not None else []
    blocks += [b.strip() for b in others if b.strip() and b.partition("=")[0].strip() not in table]
    return [*own, *(0.0 for _ in range(CLASSES - len(own)))], ";".join(blocks)


def released(service: FairService, slot: int, name: str, values: Sequence[float], text: str) -> list[Any]:
    """Updates of the sliders of an attribute, text, preset and advice after one of them was moved."""
    if "*" not in text:
        shares, text = moved(service, slot, name, values, text)
        return [*shares, text, CUSTOM, gr.update()]  # the text's change brings the advice
    first = slot // CLASSES * CLASSES
    states = slots(service.attributes(name), _read(service, name, text))
    return [*(s["value"] for s in states[first : first + CLASSES]), text, gr.update(), views.message([JOINT])]


def connect_target(
    service: FairService,
    adapter: Any,
    preset: Any,
    sliders: Sequence[Any],
    rows: Sequence[Any],
    target: Any,
    advice: Any,
    base: Base | None,
    table: Any = None,
) -> None:
    """Events. `input` and `release` come from people alone, `change` also from a paste; all are quick."""
    quick: dict[str, Any] = {"queue": False, "show_progress": "hidden"}

    by_prompt = [] if table is None else [table]

    def advise(name: str, text: str, chosen: str = "") -> str:
        return service.advice(name, text or "", _known(base), chosen or "")

    for slot, slider in enumerate(sliders):
        first = slot // CLASSES * CLASSES
        group = sliders[first : first + CLASSES]

        def on_move(name: str, text: str, *values: float, slot: int = slot) -> list[Any]:
            return released(service, slot, name, values, text or "")

        slider.release(on_move, [adapter, target, *sliders], [*group, target, preset, advice], **quick)

    def on_text(name: str, text: str, *now: Any) -> list[Any]:
        values, chosen = now[: len(sliders)], now[len(sliders) :]
        states = slots(service.attributes(name), _read(service, name, text))
        updates = [
            gr.update() if abs((value or 0.0) - state["value"]) < NEAR else gr.update(value=state["value"])
            for value, state in zip(values, states)
        ]
        return [*updates, advise(name, text, *chosen)]

    def on_adapter(name: str, text: str, *chosen: str) -> list[Any]:
        return [*shown_sliders(service, name, text), advise(name, text, *chosen)]

    def on_preset(name: str, chosen: str) -> Any:
        found = service.presets(name).get(chosen)
        return gr.update() if found is None else infotext.readable(found)

    adapter.input(service.default_target, [adapter], [target], **quick)
    adapter.change(on_adapter, [adapter, target, *by_prompt], [*sliders, *rows, preset, advice], **quick)
    preset.input(on_preset, [adapter, preset], [target], **quick)
    target.change(on_text, [adapter, target, *sliders, *by_prompt], [*sliders, advice], **quick)
    if table is not None:
        table.change(advise, [adapter, target, table], [advice], **quick)


def shown_sliders(service: FairService, name: str, text: str) -> list[Any]:
    """Sliders, rows and presets of a freshly chosen adapter."""
    states = slots(service.attributes(name), _read(service, name, text))
    groups = [states[a * CLASSES : (a + 1) * CLASSES] for a in range(ATTRIBUTES)]
    rows = [gr.update(visible=any(state["visible"] for state in group)) for group in groups]
    menu = gr.update(choices=[CUSTOM, *service.presets(name)], value=CUSTOM)
    return [*(gr.update(**state) for state in states), *rows, menu]


def refreshed(service: FairService, name: str) -> list[Any]:
    """Menus after files were added or removed; a name from an infotext may lack its ending."""
    known = service.choices()
    value = next((full for full in (name, f"{name}{SUFFIX}") if full in known), NO_ADAPTER)
    return [
        gr.update(choices=known, value=value),
        gr.update(choices=[CUSTOM, *service.presets(name)], value=CUSTOM),
    ]


def refreshed_tables(service: FairService, name: str) -> Any:
    """The menu of tables after files were added or removed."""
    known = service.table_choices()
    value = next((full for full in (name, f"{name}{TABLES}") if full in known), NO_ADAPTER)
    return gr.update(choices=known, value=value)


# ---- the panel under the gallery

_places: dict[str, dict[str, Any]] = {}


def place_panel(service: FairService, component: Any, elem_id: str | None) -> None:
    """Called for every component of the host: puts the panel beside the log, fills it after each job."""
    for origin in ("txt2img", "img2img"):
        names = {f"html_log_{origin}": "log", f"generation_info_{origin}": "information"}
        part = names.get(elem_id or "")
        place = _places.setdefault(origin, {})
        if part is None or place.get(part) is component:
            continue
        if "wired" in place:  # the host builds its page anew
            place.clear()
        place[part] = component
        if part == "log":
            place["panel"] = gr.HTML("", elem_id=f"fair_panel_{origin}")
        if "panel" in place and "information" in place:

            def fill(_: Any, *, origin: str = origin) -> str:
                return service.last.get(origin, LastResult()).html

            place["information"].change(fill, [place["information"]], [place["panel"]], queue=False)
            place["wired"] = True


# ---- small things


def _read(service: FairService, name: str, text: str) -> TargetDistribution | None:
    try:
        return service.target(name, text or "")
    except FairAdapterError:
        return None


def _share(target: TargetDistribution, attribute: Attribute, index: int) -> float:
    """Share of a class; a target that knows the attribute by other classes has none for it."""
    theirs = target.attribute(attribute.name)
    label = attribute.classes[index]
    return float(target.marginal(attribute.name)[theirs.index(label)]) if label in theirs.classes else 0.0


def _known(base: Base | None) -> BaseModel | None:
    """The loaded model, or None while the host has none: warnings then wait for the generation."""
    if base is None:
        return None
    try:
        return base()
    except Exception:  # a host without a loaded model raises whatever its loader does
        return None
