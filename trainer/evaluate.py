"""Measures a base model, and an adapter on it with the same noises.

    python trainer/evaluate.py                                     the portrait model, 50 held-out occupations
    python trainer/evaluate.py --adapter runs/joint/adapter.safetensors --also off_template no_person
    python trainer/evaluate.py --model DIR --guidance 5 7.5 10 --adapter FILE --target "gender=75/25"
    python trainer/evaluate.py --adapter FILE --table TARGETS.csv  each prompt at its own target, against it
    python trainer/evaluate.py --adapter FILE --window 0 40        the adapter in the first two fifths alone
    python trainer/evaluate.py --config trainer/configs/sd15_exp1_gender.yaml --adapter FILE   as trained
    python trainer/evaluate.py --adapter FILE --exact 12 --images 24   exact batches, by five ways
    torchrun --nproc_per_node=2 trainer/evaluate.py ...            prompts spread over GPUs or machines

Writes report.html, report.json and report.png into --out. Pictures depend on the model, the prompt and their
number alone, so that two runs on different days compare; what is measured already is not measured again.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from fair_adapter.shared.adapter import FairnessAdapter
from fair_adapter.shared.attributes import TargetDistribution
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.quota_steering import PUSH
from fair_adapter.shared.window import Window
from fair_adapter.trainer.configuration.prompts import Prompt
from fair_adapter.trainer.evaluation.command import (
    carry_out,
    open_bench,
    plan_of,
    prompt_facts,
    read_set,
    shared_options,
    warn,
)
from fair_adapter.trainer.evaluation.exact_report import measure_exact, print_exact, write_exact
from fair_adapter.trainer.evaluation.measuring import Bench
from fair_adapter.trainer.evaluation.prompt_targets import PromptTargets, read_targets
from fair_adapter.trainer.evaluation.report import Measured, Report
from fair_adapter.trainer.evaluation.summary import print_summary
from fair_adapter.trainer.families.loading import model_folder


def evaluate(options: argparse.Namespace) -> Report:
    """Measure what the options ask for."""
    began = time.perf_counter()
    prompts = read_set(options.prompts, options)
    more = {name: read_set(name, options) for name in options.also}
    adapter = FairnessAdapter.read(options.adapter) if options.adapter else None
    bench = open_bench(options, options.model, *([adapter] if adapter else []))
    scales = options.guidance or [bench.model.guidance_scale]
    window = Window(*options.window)
    default = _target(adapter, options, bench)
    own = _own_targets(adapter, options, prompts, default) if options.table else None

    def measure(chosen: list[Prompt], scale: float) -> tuple[Measured, Measured | None]:
        plan, part = plan_of(options, scale), (options.strength, window)
        aims = None if options.table is None else read_targets(options.table, chosen, default).targets
        original = bench.original(chosen, plan, aims or default)
        if adapter is None:
            return original, None
        if aims is not None:
            return original, bench.adapted_each(adapter, chosen, plan, original, aims, *part)
        return original, bench.adapted(adapter, chosen, plan, original, options.target, *part)

    original, adapted = measure(prompts, scales[0])
    sections: dict[str, dict[str, Any]] = {}
    for name, chosen in more.items():
        sections[name] = _figures(*measure(chosen, scales[0]))
    for scale in scales[1:]:
        sections[f"guidance {scale:g}"] = _figures(*measure(prompts, scale))
    facts = {
        "date": datetime.date.today().isoformat(),
        **bench.facts(plan_of(options, scales[0])),
        "prompts": prompt_facts(options, prompts),
    }
    if own is not None:
        facts["targets"] = f"each prompt's own, of {options.table}; the target told is their mean"
    if adapter is not None:
        facts["adapter"] = f"{adapter.source}, strength {options.strength:g}"
        facts["adapter"] += "" if window.whole else f", at {window.to_text()} of the sampling"
    return Report(
        title=_title(options, adapter),
        prompts=prompts,
        attributes=bench.attributes,
        target=default if own is None else own.mean,
        own=own,
        original=original,
        adapter=adapted,
        seconds={**bench.seconds, "total": time.perf_counter() - began},
        command=shlex.join(["python", "trainer/evaluate.py", *options.arguments]),
        facts=facts,
        sections=sections,
    )


def _target(adapter: FairnessAdapter | None, options: argparse.Namespace, bench: Bench) -> TargetDistribution:
    """What the figures are compared with: the asked-for target, the adapter's, or equal shares."""
    if adapter is not None:
        resolved = adapter.targets.resolve(options.target)
        warn(*resolved.warnings)
        return bench.observer.target(resolved.target.to_text())
    return bench.observer.target(options.target or ";".join(f"{a.name}=equal" for a in bench.attributes[:2]))


def _own_targets(
    adapter: FairnessAdapter | None,
    options: argparse.Namespace,
    prompts: Sequence[Prompt],
    default: TargetDistribution,
) -> PromptTargets:
    """Of each prompt, by the table. Raises FairAdapterError where none has a row."""
    own = read_targets(options.table, prompts, default)
    if len(own.unmatched) == len(prompts):
        raise FairAdapterError(
            f"{options.table}: expected rows for the prompts, found none, not for {prompts[0].text!r}; "
            "write patterns that stand in them, or leave --table out"
        )
    lines = [*own.unmatched]
    if adapter is not None and adapter.conditioned:
        lines += [line for aim in own.targets for line in adapter.targets.resolve(aim).warnings]
    warn(*dict.fromkeys(lines))
    return own


def _figures(original: Measured, adapted: Measured | None) -> dict[str, Any]:
    figures = {"original": dict(original.figures)}
    return figures if adapted is None else {**figures, "adapter": dict(adapted.figures)}


def _title(options: argparse.Namespace, adapter: FairnessAdapter | None) -> str:
    model = model_folder(options.model).name
    return f"{model} model" if adapter is None else f"{adapter.info.name} on the {model} model"


def program() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[shared_options(sweep=True)],
    )
    add = parser.add_argument
    add("--adapter", type=Path, help="fairness adapter; without one only the base model is measured")
    add("--target", help="target for the adapter, such as gender=75/25 (default: the adapter's)")
    add("--table", type=Path, help="CSV file that gives each prompt a target of its own; others: --target")
    add(
        "--window",
        nargs=2,
        type=float,
        default=[0.0, 100.0],
        metavar=("START", "END"),
        help="percent of the sampling in which the adapter acts (0 100)",
    )
    add("--record", action="store_true", help="write the figures into the adapter file, for the hosts")
    add("--also", nargs="*", default=[], metavar="SET", help="further sets or files")
    add("--exact", type=int, metavar="N", help="measure exact batches of N pictures instead: exact.json")
    add(
        "--cap", type=float, default=2.0, help="pictures drawn of an exact batch at most, in those wanted (2)"
    )
    add("--push", type=float, default=PUSH, help=f"strength for those a second plan finds amiss ({PUSH:g})")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    own = program()
    options = own.parse_args(arguments)
    if options.exact is not None:
        return carry_out(own, arguments, measure_exact, write_exact, print_exact)

    def write(report: Report, folder: Path) -> list[Path]:
        files = report.write(folder)
        if options.record:
            report.record(FairnessAdapter.read(options.adapter)).write(options.adapter, overwrite=True)
        return files

    return carry_out(own, arguments, evaluate, write, print_summary)


if __name__ == "__main__":
    sys.exit(main())
