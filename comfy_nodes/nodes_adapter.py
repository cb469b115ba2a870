"""The nodes around an adapter: load it, set a target, put it onto a model, export it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..shared.adapter import AdapterWeights, FairnessAdapter
from ..shared.adapter_export import embedding_file, export_adapter, hosts_note, lora_file
from ..shared.adapter_info import STRENGTHS
from ..shared.attributes import TargetDistribution
from ..shared.window import Window
from . import application, host, targets, texts
from .schema import Adapter, Target, check_choice, known, schema, target_input, valid

_log = logging.getLogger("fair_adapter")


class LoadAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "LoadAdapter",
            "Load Fair Adapter",
            "A fairness adapter from models/fair_adapters, or one that comes with the pack. The panel tells "
            "which model it is for, what it was trained for and how it was measured.",
            inputs=[
                io.Combo.Input(
                    "adapter",
                    options=host.library().names(),
                    tooltip="A file in models/fair_adapters or a shipped adapter. Press R to see new files.",
                )
            ],
            outputs=[
                Adapter.Output(
                    "loaded", display_name="ADAPTER", tooltip="For Fair Adapter and Target Distribution."
                ),
                io.String.Output(
                    "description", display_name="description", tooltip="What the file says about itself."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, adapter: Any = None) -> bool | str:
        return host.valid_file(host.library, adapter)

    @classmethod
    def fingerprint_inputs(cls, adapter: str | None = None) -> str:
        """Load again when the file changed; a missing one fails when it runs, with the reason."""
        return host.file_state(host.library, adapter)

    @classmethod
    def execute(cls, adapter: str) -> io.NodeOutput:
        loaded = host.library().load(adapter)
        summary = host.library().summary(adapter)
        for warning in loaded.warnings:
            _log.warning("Fair Adapter: %s: %s", adapter, warning)
        panel = {"fair_adapter": [{**texts.summary_dict(summary), "warnings": list(loaded.warnings)}]}
        return io.NodeOutput(loaded, "\n".join([texts.describe(summary), *loaded.warnings]), ui=panel)


class SetTarget(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "TargetDistribution",
            "Target Distribution",
            "The shares that the faces should have. Move the sliders (the others make room, the sum stays "
            "100%), choose a preset, or write a text such as gender=female:75,male:25;race=equal.",
            inputs=[
                Adapter.Input(
                    "adapter",
                    optional=True,
                    tooltip="With it, the sliders offer its attributes, the presets know its target, and a "
                    "target outside its trained range warns.",
                ),
                io.Combo.Input(
                    "preset",
                    options=list(targets.PRESETS),
                    default=targets.OWN,
                    tooltip="Takes the place of the text. '75/25' is for attributes of two classes, others "
                    "stay equal; the last two need an adapter.",
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    default=targets.DEFAULT,
                    tooltip="attribute=class:share,... and ; between attributes. Joint targets: "
                    "gender*race=female*black:30,male*asian:70. 'race=equal' and 'gender=50/50' work too. "
                    "Empty: the adapter's own.",
                ),
            ],
            outputs=[
                Target.Output(
                    "target", display_name="TARGET", tooltip="For Fair Adapter and the statistics."
                ),
                io.String.Output("written", display_name="text", tooltip="The target as a text."),
            ],
        )

    @classmethod
    def validate_inputs(cls, preset: Any = None) -> bool | str:
        return valid("preset", preset, targets.PRESETS)

    @classmethod
    def execute(cls, preset: str, text: str, adapter: FairnessAdapter | None = None) -> io.NodeOutput:
        check_choice("preset", preset, targets.PRESETS)
        target = targets.choose(text, preset, adapter)
        warnings = adapter.targets.resolve(target).warnings if adapter is not None else ()
        for line in warnings:
            _log.warning("Fair Adapter: target: %s", line)
        written = target.to_text()
        panel = {"fair_target": [{"text": written, "warnings": list(warnings)}]}
        return io.NodeOutput(target, written, ui=panel)


class ApplyAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "Apply",
            "Fair Adapter",
            "Puts a fairness adapter onto a model: its LoRA, and soft tokens before every prompt that the "
            "CLIP encodes. Nothing has to be typed into the prompt.",
            search_aliases=["fair", "fairness", "apply adapter", "bias", "lora"],
            inputs=[
                io.Model.Input("model", tooltip="The model that the adapter was made for."),
                io.Clip.Input("clip", tooltip="The CLIP of the same checkpoint."),
                Adapter.Input("adapter", tooltip="From Load Fair Adapter."),
                target_input(),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=STRENGTHS[0],
                    max=STRENGTHS[1],
                    step=0.05,
                    tooltip="1 is as trained, 0 is exactly the base model, more is an exaggeration.",
                ),
                known(
                    io.Combo.Input,
                    "soft_tokens",
                    options=list(application.PROMPTS),
                    default=application.PROMPTS[0],
                    optional=True,
                    tooltip="Where the soft tokens go. The last output is the CLIP for the negative prompt; "
                    "it has the LoRA in any case, as in training.",
                    advanced=True,
                ),
                *_percent_inputs(),
            ],
            outputs=[
                io.Model.Output("patched", display_name="MODEL", tooltip="For the sampler."),
                io.Clip.Output("positive", display_name="CLIP", tooltip="For the positive prompt."),
                io.Clip.Output(
                    "negative",
                    display_name="CLIP (negative)",
                    tooltip="For the negative prompt, so that it gets what it had in training.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, soft_tokens: Any = None) -> bool | str:
        return valid("soft_tokens", soft_tokens, application.PROMPTS)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        adapter: FairnessAdapter,
        strength: float,
        target: TargetDistribution | None = None,
        soft_tokens: str = application.PROMPTS[0],
        start: float = 0.0,
        end: float = 100.0,
    ) -> io.NodeOutput:
        check_choice("soft_tokens", soft_tokens, application.PROMPTS)
        window = Window(start, end)
        done = application.apply(model, clip, adapter, target, strength, soft_tokens, window)
        line = texts.applied(adapter, done.layers, done.tokens, done.weights.target.to_text())
        line += "" if window.whole else f", at {window.to_text()} of the sampling"
        panel = {"fair_applied": [{"text": line, "warnings": list(done.warnings)}]}
        return io.NodeOutput(done.model, done.clip, done.negative, ui=panel)


def _percent_inputs() -> list[Any]:
    """The part of the sampling in which the adapter acts."""
    told = {
        "start": (0.0, "Percent of the sampling at which the adapter begins to act; 0 is pure noise."),
        "end": (
            100.0,
            "Percent of the sampling at which it stops, as in Conditioning Set Timestep Range. Both prompts "
            "must come from this node's CLIPs. A shorter part keeps more of the picture and moves less.",
        ),
    }
    return [
        known(
            io.Float.Input,
            name,
            default=default,
            min=0.0,
            max=100.0,
            step=1.0,
            optional=True,
            tooltip=tooltip,
            advanced=True,
        )
        for name, (default, tooltip) in told.items()
    ]


class ExportAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "Export",
            "Export Adapter",
            "Writes the adapter at this target as files that every ComfyUI and WebUI loads (those for Stable "
            "Diffusion 3: ComfyUI alone): a LoRA into models/loras and an embedding into models/embeddings. "
            "Stock Load LoRA at strength 1 and embedding:NAME at the beginning of the prompt give exactly "
            "the picture of Fair Adapter.",
            is_output_node=True,
            search_aliases=["fair", "export", "save lora", "embedding"],
            inputs=[
                Adapter.Input("adapter", tooltip="From Load Fair Adapter."),
                target_input(),
                io.String.Input(
                    "name",
                    default="fair",
                    tooltip="Name of both files: letters, digits, '_' and '-' (it stands in prompts).",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=STRENGTHS[0],
                    max=STRENGTHS[1],
                    step=0.05,
                    tooltip="As of the Fair Adapter node; it becomes part of the files.",
                ),
                io.Boolean.Input(
                    "overwrite", default=False, tooltip="Replace files of this name that hold something else."
                ),
            ],
            outputs=[
                io.String.Output(
                    "lora", display_name="LoRA file", tooltip="In models/loras; empty for soft tokens alone."
                ),
                io.String.Output(
                    "prompt",
                    display_name="prompt prefix",
                    tooltip="embedding:NAME, to stand before the prompt (of some adapters the negative one "
                    "too: the panel says so); empty for a LoRA alone.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str | None = None, **_: Any) -> str:
        """Run again when an exported file was deleted or changed."""
        if name is None:  # a connection, whose value is not known yet
            return ""
        states = []
        for folder in _folders() if Path(name).name == name else ():
            path = folder / f"{name}.safetensors"
            try:
                status = path.stat()
                states.append(f"{status.st_mtime_ns}:{status.st_size}")
            except (OSError, ValueError):
                states.append("none")
        return ",".join(states)

    @classmethod
    def execute(
        cls,
        adapter: FairnessAdapter,
        name: str,
        strength: float,
        overwrite: bool,
        target: TargetDistribution | None = None,
    ) -> io.NodeOutput:
        loras, embeddings = _folders()
        weights = adapter.at(target, strength)
        same = _exported(adapter, weights, name)
        tokens = name
        if not same:
            files = export_adapter(adapter, target, name, loras, embeddings, strength, overwrite)
            tokens = files.embedding.stem if files.embedding is not None else name
        lora = f"{name}.safetensors" if weights.lora else ""
        prompt = f"embedding:{tokens}" if weights.soft else ""
        lines = [f"models/loras/{lora}"] if lora else []
        lines += [f"{prompt} before the prompt"] if prompt else []
        if prompt and adapter.negative_tokens:
            lines.append("and before the negative prompt too, as in training")
        lines += ["already there, unchanged"] if same else []
        warnings = [*weights.warnings, *hosts_note(adapter)]
        panel = {"fair_exported": [{"lines": lines, "warnings": warnings}]}
        return io.NodeOutput(lora, prompt, ui=panel)


def _exported(adapter: FairnessAdapter, weights: AdapterWeights, name: str) -> bool:
    """Whether both files are there already and hold just this: then queueing again is no mistake."""
    loras, embeddings = _folders()
    if Path(name).name != name or not (weights.lora or weights.soft) or loras == embeddings:
        return False
    wanted = {}
    if weights.lora:
        wanted[loras / f"{name}.safetensors"] = lora_file(adapter, weights, name)
    if weights.soft:
        wanted[embeddings / f"{name}.safetensors"] = embedding_file(adapter, weights, name)
    return all(_holds(path, data) for path, data in wanted.items())


def _folders() -> tuple[Path, Path]:
    """Where exported LoRAs and embeddings go: ComfyUI's own folders."""
    first = (folder_paths.get_folder_paths(kind)[0] for kind in ("loras", "embeddings"))
    return Path(next(first)), Path(next(first))


def _holds(path: Path, data: bytes) -> bool:
    try:
        return path.is_file() and path.read_bytes() == data
    except (OSError, ValueError):
        return False
