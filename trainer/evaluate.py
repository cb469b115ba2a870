"""Measures a base model, and an adapter on it with the same noises.

    python trainer/evaluate.py                                     the portrait model, 50 held-out occupations
    python trainer/evaluate.py --adapter runs/joint/adapter.safetensors --also off_template no_person
    python trainer/evaluate.py --model DIR --guidance 5 7.5 10 --adapter FILE --target "gender=75/25"
    python trainer/evaluate.py --config trainer/configs/sd15_exp1_gender.yaml --adapter FILE   as trained
    torchrun --nproc_per_node=2 trainer/evaluate.py ...            prompts spread over GPUs or machines

Writes report.html, report.json and report.png into --out. Pictures depend on the model, the prompt and their
number alone, so that two runs on different days compare; what is measured already is not measured again.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.machinery
import importlib.util
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

if "fair_adapter" not in sys.modules:  # the repository root under its one import name
    _spec = importlib.machinery.ModuleSpec("fair_adapter", None, is_package=True)
    _spec.submodule_search_locations = [str(Path(__file__).resolve().parents[1])]
    sys.modules["fair_adapter"] = importlib.util.module_from_spec(_spec)

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from fair_adapter.shared.adapter import FairnessAdapter
from fair_adapter.shared.attributes import TargetDistribution
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.trainer.configuration.config import ModelConfig, PromptSource, load_config
from fair_adapter.trainer.configuration.prompts import SETS, Prompt, evenly, read_prompts
from fair_adapter.trainer.evaluation.measuring import INDEPENDENT, Bench, Instruments, asked_encoders
from fair_adapter.trainer.evaluation.readings import REMEDY, Plan
from fair_adapter.trainer.evaluation.report import Measured, Report
from fair_adapter.trainer.evaluation.rows import FEW, counted
from fair_adapter.trainer.running.memory import memory_told
from fair_adapter.trainer.running.processes import Processes, check_device
from fair_adapter.trainer.running.tables import print_table
from fair_adapter.trainer.training.setup import DTYPES, guidance_scale, model_folder

T = TypeVar("T")
PATIENCE = datetime.timedelta(days=7)  # processes meet only when each has measured all its prompts


def evaluate(options: argparse.Namespace) -> Report:
    """Measure what the options ask for."""
    began = time.perf_counter()
    prompts = read_set(options.prompts, options)
    more = {name: read_set(name, options) for name in options.also}
    adapter = FairnessAdapter.read(options.adapter) if options.adapter else None
    bench = open_bench(options, options.model, *([adapter] if adapter else []))
    scales = options.guidance or [_scale(options.model, bench)]
    target = _target(adapter, options, bench)

    def measure(chosen: list[Prompt], scale: float) -> tuple[Measured, Measured | None]:
        plan = _plan(options, scale)
        original = bench.original(chosen, plan, target)
        if adapter is None:
            return original, None
        return original, bench.adapted(adapter, chosen, plan, original, options.target, options.strength)

    original, adapted = measure(prompts, scales[0])
    sections: dict[str, dict[str, Any]] = {}
    for name, chosen in more.items():
        sections[name] = _figures(*measure(chosen, scales[0]))
    for scale in scales[1:]:
        sections[f"guidance {scale:g}"] = _figures(*measure(prompts, scale))
    facts = {
        "date": datetime.date.today().isoformat(),
        **bench.facts(_plan(options, scales[0])),
        "prompts": prompt_facts(options, prompts),
    }
    if adapter is not None:
        facts["adapter"] = f"{adapter.source}, strength {options.strength:g}"
    return Report(
        title=_title(options, adapter),
        prompts=prompts,
        attributes=bench.attributes,
        target=target,
        original=original,
        adapter=adapted,
        seconds={**bench.seconds, "total": time.perf_counter() - began},
        command=shlex.join(["python", "trainer/evaluate.py", *options.arguments]),
        facts=facts,
        sections=sections,
    )


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


def _target(adapter: FairnessAdapter | None, options: argparse.Namespace, bench: Bench) -> TargetDistribution:
    """What the figures are compared with: the asked-for target, the adapter's, or equal shares."""
    if adapter is not None:
        resolved = adapter.targets.resolve(options.target)
        warn(*resolved.warnings)
        return bench.observer.target(resolved.target.to_text())
    return bench.observer.target(options.target or ";".join(f"{a.name}=equal" for a in bench.attributes[:2]))


def _figures(original: Measured, adapted: Measured | None) -> dict[str, Any]:
    figures = {"original": dict(original.figures)}
    return figures if adapted is None else {**figures, "adapter": dict(adapted.figures)}


def _title(options: argparse.Namespace, adapter: FairnessAdapter | None) -> str:
    model = model_folder(options.model).name
    return f"{model} model" if adapter is None else f"{adapter.info.name} on the {model} model"


def prompt_facts(options: argparse.Namespace, prompts: Sequence[Prompt]) -> str:
    """What was drawn, for reports."""
    pictures = counted(options.images, "picture")
    return f"{options.prompts}, {counted(len(prompts), 'prompt')}, {pictures} of each"


def print_summary(report: Report) -> None:
    """The figures that matter, on the terminal."""
    tables, models = report.tables(report.models()), [name for name, _ in report.measured()]
    adapted = report.adapter is not None
    rows = []
    for prefix, skew in (("", "skew"), ("independent: ", "independent")):
        for row in tables[skew]:
            change = row.last.difference
            cells = [cell.figure.number if cell else "-" for cell in row.cells]
            if adapted:
                cells.append(f"{change.number} {change.interval}" if change else "-")
            rows.append([f"{prefix}{row.name} {row.what}", *cells, f"floor {row.last.floor:.3f}"])
    for row in tables["kept"]:
        cells = [f"{figure.number} {figure.note}".strip() if figure else "-" for figure in row.figures]
        rows.append([row.name, *cells, *([""] if adapted else []), row.expectation])
    columns = ["measure", *models, *(["difference [95%]"] if adapted else []), ""]
    print_table(columns, rows, report.title)
    _print_sections(report)
    if tables["few"]:
        print(f"few prompts, {FEW}")


def _print_sections(report: Report) -> None:
    """A line for each further measurement: every bias and distance to the target before and after."""
    lines = {
        title: {
            f"{row.name} {row.what}": " -> ".join(cell.figure.number if cell else "-" for cell in row.cells)
            for row in report.tables(section)["skew"]
        }
        for title, section in report.sections.items()
    }
    columns = list(dict.fromkeys(name for line in lines.values() for name in line))
    rows = [[title, *(line.get(name, "-") for name in columns)] for title, line in lines.items()]
    if rows:
        print_table(["measured on", *columns], rows, "other prompts and guidance scales")


def launched(device: str) -> Processes | None:
    """Those of `accelerate launch` or `torchrun`; None where this is the only one."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    return Processes("cpu" if device == "cpu" else "auto", patience=PATIENCE)


def parser(alone: bool = True) -> argparse.ArgumentParser:
    """The options of this program; not `alone` those that programs of several measurements share, without
    --help and without what one measurement has only one of."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, add_help=alone
    )
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
    if alone:
        add("--adapter", type=Path, help="fairness adapter; without one only the base model is measured")
        add("--target", help="target for the adapter, such as gender=75/25 (default: the adapter's)")
        add("--record", action="store_true", help="write the figures into the adapter file, for the hosts")
        add("--also", nargs="*", default=[], metavar="SET", help="further sets or files")
    add("--strength", type=float, default=1.0, help="of the adapter (1)")
    add("--prompts", default="occupations_test", help=f"a set ({', '.join(SETS)}) or a file")
    add("--template", nargs="*", default=[], help="templates with {} for the names")
    add("--limit", type=int, default=0, help="prompts of a set, evenly spread (0: all)")
    add("--images", type=int, default=160, help="pictures of each prompt (160)")
    add("--steps", type=int, default=20, help="of the sampler (20)")
    usual = "the model's own or its family's usual one"
    sweep = f"scales; the first is the report's, others a sweep ({usual})"
    add(
        "--guidance",
        nargs="*" if alone else 1,
        type=float,
        default=[],
        metavar="SCALE",
        help=sweep if alone else f"scale ({usual})",
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


def plan_for(options: argparse.Namespace, model: str, bench: Bench) -> Plan:
    """What is drawn of each prompt, at the first scale that the options name or else the model's."""
    return _plan(options, options.guidance[0] if options.guidance else _scale(model, bench))


def _scale(model: str, bench: Bench) -> float:
    """The guidance scale on a model's card, or else its family's usual one."""
    return guidance_scale(None, model, bench.model.guidance_scale)


def _plan(options: argparse.Namespace, scale: float) -> Plan:
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


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    program = parser()
    options = program.parse_args(arguments)

    def write(report: Report, folder: Path) -> list[Path]:
        files = report.write(folder)
        if options.record:
            report.record(FairnessAdapter.read(options.adapter)).write(options.adapter, overwrite=True)
        return files

    return carry_out(program, arguments, evaluate, write, print_summary)


if __name__ == "__main__":
    sys.exit(main())
