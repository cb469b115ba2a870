"""The node that gives each prompt its own target, by a table."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io

from ..shared.adapter import FairnessAdapter
from ..shared.attributes import TargetDistribution
from ..shared.errors import FairAdapterError
from . import host, targets
from .schema import Adapter, Target, schema

_log = logging.getLogger("fair_adapter")


class TargetByPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "TargetByPrompt",
            "Target by Prompt",
            "Gives the prompt its own target, such as what statistics tell of an occupation: a CSV table in "
            "models/fair_adapters with the columns pattern,target,source,year. The first row whose pattern "
            "stands in the prompt wins; a prompt without one takes the default.",
            search_aliases=["fair", "table", "csv", "world statistics", "target", "occupation"],
            inputs=[
                Adapter.Input(
                    "adapter",
                    optional=True,
                    tooltip="With it, rows may name its attributes, its own target is the default, and a "
                    "target outside its trained range warns.",
                ),
                Target.Input(
                    "default",
                    optional=True,
                    tooltip="From Target Distribution: for prompts without a row, and for attributes that a "
                    "row does not name.",
                ),
                io.Combo.Input(
                    "table",
                    options=host.tables().names(),
                    tooltip="A CSV file in models/fair_adapters or the shipped example. Press R to see new "
                    "files.",
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    tooltip="The same text that the prompt is encoded from: connect the node that writes it "
                    "to both.",
                ),
            ],
            outputs=[
                Target.Output(
                    "target", display_name="TARGET", tooltip="For Fair Adapter and the statistics."
                ),
                io.String.Output("written", display_name="text", tooltip="The target as a text."),
                io.String.Output("told", display_name="row", tooltip="Which row it is, with its source."),
            ],
        )

    @classmethod
    def validate_inputs(cls, table: Any = None) -> bool | str:
        return host.valid_file(host.tables, table)

    @classmethod
    def fingerprint_inputs(cls, table: str | None = None, **_: Any) -> str:
        """Read the table again when it was edited; a missing one fails when it runs, with the reason."""
        return host.file_state(host.tables, table)

    @classmethod
    def execute(
        cls,
        table: str,
        prompt: str,
        adapter: FairnessAdapter | None = None,
        default: TargetDistribution | None = None,
    ) -> io.NodeOutput:
        rows = host.tables().load(table, targets.known_attributes(adapter))
        if default is None and adapter is not None:
            default = adapter.targets.default
        choice = rows.choose(prompt, default)
        if choice.target is None:
            raise FairAdapterError(f"{choice.told}, found none; connect Target Distribution to 'default'")
        warnings = () if adapter is None else adapter.targets.resolve(choice.target).warnings
        if choice.row is None:
            warnings = (choice.told, *warnings)
        for line in warnings:
            _log.warning("Fair Adapter: target by prompt: %s", line)
        written = choice.target.to_text()
        told = "" if choice.row is None else choice.told
        panel = {"fair_chosen": [{"text": written, "told": told, "warnings": list(warnings)}]}
        return io.NodeOutput(choice.target, written, choice.told, ui=panel)
