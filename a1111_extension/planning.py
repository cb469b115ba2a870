"""Pictures that are planned before they are drawn: attributes in words, what evens the last ones out."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import gradio as gr

from ..shared.attributes import TargetDistribution
from ..shared.errors import FairAdapterError
from ..shared.phrases import DEFAULT
from ..shared.session import NextBatch, evened
from ..shared.words import MARKER, MOST, PLACES, DrawnWords, draw_words
from . import views
from .infotext import readable
from .records import RecordFilter
from .request import NO_ADAPTER
from .service import FairService

ANY = "all"  # of the menus
LAST = 100  # pictures that are looked back on
NEXT = 12
SEEDS = 2**31  # that a random seed is drawn from
ASKED = ("prompt", "target", "pictures", "seed", "first", "place", "marker", "phrases", "last")  # of the tool


def whole(name: str, value: Any, low: int, high: int = 10**9) -> int:
    """A whole number of a field or a query. Raises FairAdapterError for anything else."""
    try:
        number = float(value)
        if number != int(number) or not low <= number <= high:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise FairAdapterError(
            f"{name}: expected a whole number from {low} to {high}, found {str(value)[:40]!r}; set it again"
        ) from None
    return int(number)


def aimed(service: FairService, text: str, adapter: str = NO_ADAPTER) -> TargetDistribution:
    """The target of a text, which is needed here. Raises FairAdapterError."""
    target = service.target(adapter, text or "")
    if target is None:
        raise FairAdapterError("target: empty, expected for example 'gender=50/50;race=equal'")
    return target


def next_batch(
    service: FairService, target: TargetDistribution, images: int, chosen: RecordFilter
) -> NextBatch:
    """What the next pictures should be after the chosen ones. Raises FairAdapterError."""
    return evened(target, service.records.seen(chosen), images)


def drawn(service: FairService, given: Mapping[str, Any]) -> tuple[DrawnWords, str]:
    """The prompts that the fields of the tool or a query ask for, and a line on what evens out.

    given: prompt, target, pictures, seed (-1 is random), place, marker, first, phrases, last (0 evens nothing
    out); what is left out is as in the tool. Raises FairAdapterError.
    """
    target = aimed(service, given.get("target", ""))
    pictures = whole("pictures", given.get("pictures", NEXT), 1, MOST)
    first = whole("first", given.get("first", 0), 0)
    seed = whole("seed", given.get("seed", -1), -1, 2**53)
    last = whole("last", given.get("last", 0), 0)
    line = ""
    if last:
        batch = next_batch(service, target, pictures, RecordFilter(last=last))
        target, first, line = batch.target, 0, batch.to_text()
    found = draw_words(
        str(given.get("prompt", "") or ""),
        target,
        pictures,
        random.randrange(SEEDS) if seed < 0 else seed,
        service.phrases.load(str(given.get("phrases") or DEFAULT)),
        str(given.get("place") or PLACES[0]),
        str(given.get("marker", MARKER)),
        first,
    )
    return found, line


def lines(found: DrawnWords) -> str:
    """One prompt in each line, as prompt files and wildcards hold them."""
    return "\n".join(" ".join(prompt.split("\n")) for prompt in found.prompts)


# ---- the tool in the tab


def words_tool(service: FairService) -> None:
    """The part of the tab, inside an open page."""
    gr.HTML(
        '<p class="fair-soft">From a target to one prompt for each picture, "a woman of about 60, Black": '
        "for <i>Prompts from file or textbox</i>, a wildcard file or a model that rewrites prompts. Needs no "
        "adapter. What the prompt names itself stays.</p>"
    )
    with gr.Row():
        with gr.Column():
            prompt = gr.Textbox("", label="Prompt", lines=2, elem_id="fair_words_prompt")
            target = gr.Textbox(
                service.default_target(NO_ADAPTER), label="Target", elem_id="fair_words_target",
                info="how many pictures say what; the counts are those of an exact batch",
            )  # fmt: skip
            with gr.Row():
                pictures = gr.Number(NEXT, label="Pictures", precision=0, elem_id="fair_words_pictures")
                seed = gr.Number(
                    -1, label="Seed", precision=0, elem_id="fair_words_seed",
                    info="who says what; -1 is random",
                )  # fmt: skip
                first = gr.Number(
                    0, label="First picture", precision=0, elem_id="fair_words_first",
                    info="pictures of this target before",
                )  # fmt: skip
            with gr.Row():
                place = gr.Radio(list(PLACES), value=PLACES[0], label="Phrase", elem_id="fair_words_place")
                marker = gr.Textbox(MARKER, label="Marker", elem_id="fair_words_marker")
                phrases = gr.Dropdown(
                    service.phrases.names(), value=DEFAULT, label="Phrases", elem_id="fair_words_phrases",
                    info="own tables: CSV in the folder 'phrases' beside your adapters",
                )  # fmt: skip
            with gr.Row():
                even = gr.Checkbox(
                    False, label="Even out the last pictures", elem_id="fair_words_even",
                    info="across prompts and adapters: what the statistics hold",
                )  # fmt: skip
                last = gr.Number(LAST, label="Last pictures", precision=0, elem_id="fair_words_last")
            start = gr.Button("Draw attributes", variant="primary", elem_id="fair_words_draw")
        with gr.Column():
            told = gr.HTML("", elem_id="fair_words_told")
            result = gr.Textbox(
                "", label="Prompts, one in each line", lines=NEXT, max_lines=30, elem_id="fair_words_result"
            )
            file = gr.File(label="The same as a file", visible=False, elem_id="fair_words_file")

    def on_draw(evens: bool, *values: Any) -> list[Any]:
        given: dict[str, Any] = dict(zip(ASKED, values))
        if not evens:
            given["last"] = 0
        try:
            found, line = drawn(service, given)
        except FairAdapterError as error:
            return [service.problem(error), "", gr.update(visible=False)]
        text = lines(found)
        path = service.scratch.place("fair_prompts.txt")
        path.write_text(f"{text}\n", encoding="utf-8")
        notes = views.message([line], "info") + views.message(found.notes)
        return [notes, text, gr.update(value=str(path), visible=True)]

    fields = [even, prompt, target, pictures, seed, first, place, marker, phrases, last]
    start.click(on_draw, fields, [told, result, file], queue=False)


# ---- what evens out, beside the statistics


def even_out(service: FairService, filters: list[Any]) -> None:
    """A row below the statistics.  filters: prompt, adapter, model, target and last pictures of the view."""
    with gr.Row():
        number = gr.Number(NEXT, label="Next pictures", precision=0, elem_id="fair_next_pictures")
        start = gr.Button("What evens them out?", elem_id="fair_next")
        target = gr.Textbox(
            "", label="Target of the next pictures", elem_id="fair_next_target",
            info="for Draw attributes and exact shares: whole pictures of each class",
        )  # fmt: skip
    told = gr.HTML("", elem_id="fair_next_told")

    def on_start(images: Any, *chosen: Any) -> list[str]:
        try:
            *which, text, last = chosen
            wanted = aimed(service, text, NO_ADAPTER if which[1] in (ANY, None) else which[1])
            batch = next_batch(
                service, wanted, whole("next pictures", images, 1), filtered(*which, last=last)
            )
            return [readable(batch.target), views.message([batch.to_text()], "info")]
        except FairAdapterError as error:
            return ["", service.problem(error)]

    start.click(on_start, [number, *filters], [target, told], queue=False)


def filtered(prompt: str, adapter: str, model: str, last: Any = 0) -> RecordFilter:
    """The filter of the view's fields, where ANY and an empty number take everything."""
    adapter, model = ("" if name in (ANY, None) else name for name in (adapter, model))
    return RecordFilter(prompt or "", adapter, model, whole("last pictures", last or 0, 0))
