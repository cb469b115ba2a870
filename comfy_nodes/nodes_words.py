"""The nodes that plan a batch beforehand: attributes in words, and what evens a session out."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..shared.attributes import TargetDistribution
from ..shared.phrases import DEFAULT
from ..shared.quota import MOST_PICTURES
from ..shared.words import MARKER, MOST, PLACES, SEEDS, draw_words
from . import host, session, texts
from .schema import Target, check_choice, known, schema, valid

FIRST = 10**9  # the most that a widget takes


class DrawAttributes(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "DrawAttributes",
            "Draw Attributes",
            "Says in words what each picture is to show: from a target to a prompt for each picture, such as "
            "'a woman of about 60, Black'. Works with every text encoder and without an adapter.",
            search_aliases=["fair", "wildcard", "words", "attributes", "diversity", "prompt"],
            inputs=[
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    tooltip="What all pictures have in common. What it says of gender, race or age itself "
                    "('a female nurse') stays, and only the other attributes are added.",
                ),
                Target.Input("target", tooltip="From Target Distribution: how many pictures say what."),
                io.Int.Input(
                    "pictures", default=12, min=1, max=MOST, tooltip="How many prompts: one for each picture."
                ),
                known(
                    io.Int.Input,
                    "seed",
                    default=0,
                    min=0,
                    max=SEEDS - 1,
                    tooltip="Which picture says what; picture i has this + i in the output 'seeds'.",
                    control_after_generate=True,
                ),
                io.Combo.Input(
                    "place", options=list(PLACES), default=PLACES[0], tooltip="Where the phrase stands."
                ),
                io.String.Input(
                    "marker",
                    default=MARKER,
                    tooltip="What the phrase takes the place of, if it stands at the marker.",
                ),
                io.Int.Input(
                    "first_picture",
                    default=0,
                    min=0,
                    max=FIRST,
                    tooltip="Pictures of this target that came before: batches in a row stay near it, too.",
                ),
                io.Combo.Input(
                    "phrases",
                    options=host.phrases().names(),
                    default=DEFAULT,
                    tooltip="Table of phrases: a shipped one, or your own CSV in "
                    "models/fair_adapters/phrases. 'portrait' says it as the portrait model's captions do.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "prompts",
                    display_name="prompts",
                    is_output_list=True,
                    tooltip="A list: every node behind it runs once for each. For any text encoder.",
                ),
                io.String.Output(
                    "said",
                    display_name="phrases",
                    is_output_list=True,
                    tooltip="The phrases alone, a list.",
                ),
                io.Int.Output(
                    "seeds",
                    display_name="seeds",
                    is_output_list=True,
                    tooltip="A seed for each picture, as a list: for a sampler with batches of 1.",
                ),
                io.String.Output("table", display_name="table", tooltip="Who says what, in Markdown."),
            ],
        )

    @classmethod
    def validate_inputs(cls, place: Any = None, phrases: Any = None) -> bool | str:
        wrong = valid("place", place, PLACES)
        return wrong if wrong is not True else host.valid_file(host.phrases, phrases)

    @classmethod
    def fingerprint_inputs(cls, phrases: str | None = None, **_: Any) -> str:
        """Draw again when the table was edited."""
        return host.file_state(host.phrases, phrases)

    @classmethod
    def execute(
        cls,
        prompt: str,
        target: TargetDistribution,
        pictures: int,
        seed: int,
        place: str,
        marker: str,
        first_picture: int,
        phrases: str,
    ) -> io.NodeOutput:
        check_choice("place", place, PLACES)
        table = host.phrases().load(phrases)
        drawn = draw_words(prompt, target, pictures, seed, table, place, marker, first_picture)
        said = [picture.phrase for picture in drawn.pictures]
        panel = {"fair_words": [{"phrases": said, "warnings": list(drawn.notes)}]}
        seeds = [picture.seed for picture in drawn.pictures]
        return io.NodeOutput(drawn.prompts, said, seeds, texts.words_table(drawn), ui=panel)


class SessionStatistics(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "Session",
            "Session Statistics",
            "The composition of the last pictures that Face Attributes read, across prompts, adapters and "
            "workflows, against a target. As a switch: what the next batch must be to even them out.",
            is_output_node=True,
            search_aliases=["fair", "session", "even out", "statistics", "quota", "history"],
            inputs=[
                Target.Input("target", tooltip="What the session as a whole should be."),
                io.Int.Input(
                    "last",
                    default=100,
                    min=1,
                    max=session.MOST,
                    tooltip="How many pictures are looked back on, the newest first.",
                ),
                io.Boolean.Input(
                    "even_out",
                    default=False,
                    tooltip="On: the output is what the next batch must be for the whole to come nearest to "
                    "the target. Off: the target as it came.",
                ),
                io.Int.Input(
                    "pictures",
                    default=12,
                    min=1,
                    max=MOST_PICTURES,
                    tooltip="Pictures of the next batch, as set there.",
                ),
            ],
            outputs=[
                Target.Output(
                    "next",
                    display_name="TARGET",
                    tooltip="For Draw Attributes and exact batches. Evened out it may be one-sided, which an "
                    "adapter that draws shares by chance was not trained for.",
                ),
                io.String.Output("text", display_name="next batch", tooltip="Its counts, in a line."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, even_out: bool | None = None, **_: Any) -> int:
        """Switched on, it runs again when pictures were read; off, nothing behind it runs anew."""
        return session.SESSION.version if even_out is not False else -1

    @classmethod
    def execute(cls, target: TargetDistribution, last: int, even_out: bool, pictures: int) -> io.NodeOutput:
        aimed, line = target, session.planned(target, pictures)
        if even_out:
            batch = session.next_batch(target, last, pictures)
            aimed, line = batch.target, batch.to_text()
        told = session.session_dict(last, target)
        panel = {"fair_session": [{**told, "next": line, "target": target.to_text()}]}
        return io.NodeOutput(aimed, line, ui=panel)
