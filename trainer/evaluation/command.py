"""What the programs that measure have in common: their options, the bench that these name, how a run ends."""

from __future__ import annotations

import argparse
import datetime
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from ...shared.adapter import FairnessAdapter
from ...shared.errors import FairAdapterError
from ..configuration.config import ModelConfig, PromptSource, load_config
from ..configuration.prompts import SETS, Prompt, evenly, read_prompts
from ..families.loading import DTYPES, model_folder
from ..running.memory import memory_told
from ..running.processes import Processes, check_device
from .measuring import INDEPENDENT, Bench, Instruments, asked_encoders
from .readings import REMEDY, Plan
from .rows import counted

T = TypeVar("T")
PATIENCE = datetime.timedelta(days=7)  # processes meet only when each has measured all its prompts


def open_bench(options: argparse.Namespace, model: str, *adapters: FairnessAdapter) -> Bench:
    """A base model with the instruments that the options name.

    Raises FairAdapterError, before anything is measured, if one of the adapters can't be measured on it.
    """
    instruments = Instruments(
        options.classifier,
        None if options.independent == "none" else options.independent,
        None if options.encoder == "none" else options.encoder,
        options.detector,
        options.cache,
        tuple(options.more_encoders),
        None if options.clip == "none" else options.clip,
    )
    processes, device = options.processes, options.device
    if processes is not None:
        device = processes.device
    config = _model(options, model)
    bench = Bench(model_folder(model), instruments, device, config=config, processes=processes)
    for adapter in adapters:
        adapter.at(None, options.strength)
        warn(*bench.check(adapter))
    return bench


def warn(*warnings: str) -> None:
    """One line each on the terminal."""
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _model(options: argparse.Namespace, path: str) -> ModelConfig:
    """A base model, as training takes it."""
    names = ("vae", "variant", "scheduler", "size", "encoding", "empty_negative")
    return ModelConfig(
        path=path,
        without=tuple(options.without),
        config=options.model_config,
        negative=options.negative,
        dtype=options.dtype or ("float32" if options.device == "cpu" else "auto"),
        **{name: getattr(options, name) for name in names},
    )


def read_set(name: str, options: argparse.Namespace) -> list[Prompt]:
    """The prompts of a set or file, as many as the options ask for."""
    return evenly(read_prompts(PromptSource(name, 1.0, tuple(options.template))), options.limit)


def prompt_facts(options: argparse.Namespace, prompts: Sequence[Prompt]) -> str:
    """What was drawn, for reports."""
    pictures = counted(options.images, "picture")
    return f"{options.prompts}, {counted(len(prompts), 'prompt')}, {pictures} of each"


def launched(device: str) -> Processes | None:
    """Those of `accelerate launch` or `torchrun`; None where this is the only one."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    return Processes("cpu" if device == "cpu" else "auto", patience=PATIENCE)


def shared_options(sweep: bool = False) -> argparse.ArgumentParser:
    """The options that the programs share, as a parent of each one's own.

    sweep: several guidance scales may be given.
    """
    parser = argparse.ArgumentParser(add_help=False)
    add = parser.add_argument
    add("--config", type=Path, help="a configuration of trainer/train.py, in place of all that follow")
    add("--model", default="portrait", help="diffusers folder, .safetensors checkpoint or hub id (portrait)")
    add("--model-config", help="folder or hub id that describes a checkpoint")
    add("--vae", help="in the place of the model's own: .safetensors file, diffusers folder or hub id")
    add("--variant", help="of the files in a folder, such as fp16")
    add("--without", nargs="*", default=[], help="text encoders that are left out, such as t5xxl of SD 3")
    add("--scheduler", help="of diffusers (the model's own)")
    add("--size", type=int, help="of the pictures in px (the model's own)")
    add("--encoding", choices=("host", "paper"), default="host", help="of the prompts (host)")
    add(
        "--empty-negative",
        choices=("encoded", "zeros"),
        default="encoded",
        help="an empty negative prompt of SDXL (encoded, as by ComfyUI; zeros as in A1111 and Forge)",
    )
    add("--strength", type=float, default=1.0, help="of the adapter (1)")
    add("--prompts", default="occupations_test", help=f"a set ({', '.join(SETS)}) or a file")
    add("--template", nargs="*", default=[], help="templates with {} for the names")
    add("--limit", type=int, default=0, help="prompts of a set, evenly spread (0: all)")
    add("--images", type=int, default=160, help="pictures of each prompt (160)")
    add("--steps", type=int, default=20, help="of the sampler (20)")
    usual = "the model's own or its family's usual one"
    several = f"scales; the first is the report's, others a sweep ({usual})"
    add(
        "--guidance",
        nargs="*" if sweep else 1,
        type=float,
        default=[],
        metavar="SCALE",
        help=several if sweep else f"scale ({usual})",
    )
    add("--negative", default="", help="prompt of the unconditional branch")
    add("--classifier", default="default", help="NAME or NAME:PATH, the one of training")
    add("--independent", default=INDEPENDENT, help="NAME or NAME:PATH of one it did not use, or none")
    add("--encoder", default="embedded", help="image encoder of the similarity, or none")
    add(
        "--more-encoders",
        nargs="*",
        default=[],
        help="further ones; the paper's: open_clip_big dinov2_giant",
    )
    add("--clip", help="measure similarity to the prompt too: open_clip or open_clip_big (none)")
    add("--detector", choices=("mtcnn", "fixed"), default="mtcnn", help=argparse.SUPPRESS)
    add("--batch", type=int, default=32, help="pictures drawn at a time (32)")
    add("--dtype", choices=(*DTYPES, "auto"), help="of the model's weights (auto; float32 on a CPU)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--cache", type=Path, default=Path("runs/cache"), help="what was measured is kept there (runs/cache)")
    add("--out", type=Path, default=Path("runs/evaluate"), help="folder of the report (runs/evaluate)")
    return parser


def with_config(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """The options, where what is not given is as in the configuration that --config names.

    Raises FairAdapterError for a configuration that does not load.
    """
    options = parser.parse_args(arguments)
    if options.config is None:
        return options
    config = load_config(options.config)
    model, asked, encoders = config.model, config.evaluation, asked_encoders(config)
    names = ("vae", "variant", "without", "scheduler", "size", "encoding", "empty_negative", "negative")
    parser.set_defaults(
        **{name: getattr(model, name) for name in names},
        model=model.path,
        model_config=model.config,
        dtype=model.dtype,
        guidance=[] if model.guidance_scale is None else [model.guidance_scale],
        classifier=config.faces.classifier,
        encoder=encoders[0] if encoders else "none",
        more_encoders=list(encoders[1:]),
        clip=asked.clip,
        prompts=asked.prompts,
        limit=asked.limit,
        images=asked.images,
        steps=asked.steps,
    )
    return parser.parse_args(arguments)


def check(options: argparse.Namespace) -> None:
    """Raises FairAdapterError for numbers that make no sense."""
    if options.images < 1 or options.steps < 1 or options.batch < 1 or options.limit < 0:
        raise FairAdapterError("--images, --steps and --batch: expected 1 or more, --limit 0 or more")
    check_device(options.device, "--device")
    if getattr(options, "record", False) and not options.adapter:
        raise FairAdapterError("--record: expected an adapter to write into; name one with --adapter")


def plan_for(options: argparse.Namespace, bench: Bench) -> Plan:
    """What is drawn of each prompt, at the first scale that the options name or else the model's."""
    return plan_of(options, options.guidance[0] if options.guidance else bench.model.guidance_scale)


def plan_of(options: argparse.Namespace, scale: float) -> Plan:
    return Plan(options.images, options.steps, scale, options.negative, options.batch)


def carry_out(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str],
    measure: Callable[[argparse.Namespace], T],
    write: Callable[[T, Path], Sequence[Path]],
    show: Callable[[T], None],
) -> int:
    """A program with the options of `parser`: measures, writes into --out, tells; returns the exit code.

    measure: gets the options with their `arguments` and the `processes` that share the work.
    """
    try:
        options = with_config(parser, arguments)
        options.arguments = list(arguments)
        check(options)
        options.processes = launched(options.device)
        with memory_told(REMEDY):
            found = measure(options)
        if options.processes is not None:
            options.processes.close()
            if not options.processes.first:
                return 0
        files = write(found, options.out)
    except FairAdapterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    show(found)
    print(f"wrote {', '.join(str(f) for f in files)}")
    return 0
