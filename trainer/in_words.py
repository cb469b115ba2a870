"""Measures what attributes in words draw: every picture's prompt says what it is to be, without an adapter.

    python trainer/in_words.py --limit 20 --images 24 --dtype bfloat16
    python trainer/in_words.py --model DIR --phrases english --place before --template "a photo of a {}" ...

The pictures of each prompt come in exact batches of --exact: who says what is drawn as by the hosts' Draw
Attributes, from the target, --seed and the number of the batch. Beside it stand the same noises without the
words and, with --adapter, with an adapter at the same target, each by the classifier of training and by the
independent one.
Most other options are those of evaluate.py. Writes in_words.json into --out.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np

from fair_adapter.shared.adapter import FairnessAdapter
from fair_adapter.shared.attributes import Attribute, TargetDistribution
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.phrases import PhraseTables
from fair_adapter.shared.tensor_file import write_bytes
from fair_adapter.shared.words import MARKER, PLACES, WordedPrompt, draw_words
from fair_adapter.trainer.configuration.prompts import Prompt
from fair_adapter.trainer.evaluation import command
from fair_adapter.trainer.evaluation.measuring import Bench
from fair_adapter.trainer.evaluation.report import Measured
from fair_adapter.trainer.evaluation.rows import FEW, Figure, kept_rows, skew_rows
from fair_adapter.trainer.evaluation.worded import batch_figures
from fair_adapter.trainer.running.tables import print_table

TEMPLATE = f"a photo of the face of a {MARKER} {{}}, a person"
TARGET = "gender=equal;race=equal"


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure whatever is not measured yet."""
    if options.exact < 1 or options.images % options.exact:
        raise FairAdapterError(
            f"--exact: expected a divisor of the {options.images} pictures of a prompt, found {options.exact}"
        )
    marked = command.read_set(options.prompts, options)
    prompts = [replace(p, text=_bare(p.text, options)) for p in marked]
    adapter = FairnessAdapter.read(options.adapter) if options.adapter else None
    bench = command.open_bench(options, options.model, *([adapter] if adapter else []))
    plan = command.plan_for(options, bench)
    target = bench.observer.target(options.target)
    drawn = {p.text: _drawn(m, target, options) for p, m in zip(prompts, marked)}
    texts = {text: [picture.prompt for picture in pictures] for text, pictures in drawn.items()}
    original = bench.original(prompts, plan, target)
    models = {"original": original, "words": bench.worded(texts, prompts, plan, original, target)}
    if adapter is not None:
        models["adapter"] = bench.adapted(adapter, prompts, plan, original, target, options.strength)
    told = [_classes(drawn[p.text], target) for p in prompts]
    return {
        "command": shlex.join(["python", "trainer/in_words.py", *options.arguments]),
        "date": datetime.date.today().isoformat(),
        "plan": f"{command.prompt_facts(options, prompts)} in batches of {options.exact}",
        "target": target.to_text(),
        "facts": bench.facts(plan),
        "examples": [picture.prompt for picture in drawn[prompts[0].text][: options.exact]],
        "models": {name: dict(found.figures) for name, found in models.items()},
        "batches": {name: _batches(found, told, target, bench, options) for name, found in models.items()},
    }


def _bare(text: str, options: argparse.Namespace) -> str:
    """A prompt without the marker: what is drawn without words."""
    return text.replace(f"{MARKER} ", "").replace(MARKER, "") if options.place == PLACES[2] else text


def _drawn(prompt: Prompt, target: TargetDistribution, options: argparse.Namespace) -> list[WordedPrompt]:
    """The pictures of a prompt, batch by batch."""
    table = PhraseTables([options.tables] if options.tables else []).load(options.phrases)
    pictures: list[WordedPrompt] = []
    for first in range(0, options.images, options.exact):
        found = draw_words(
            prompt.text, target, options.exact, options.seed + first, table, options.place, first=first
        )
        if any(set(picture.classes) != set(target.names) for picture in found.pictures):
            raise FairAdapterError(f"{prompt.text!r}: {'; '.join(found.notes)}; take it out of the prompts")
        pictures += found.pictures
    return pictures


def _classes(pictures: Sequence[WordedPrompt], target: TargetDistribution) -> np.ndarray:
    """(n, A) classes that the pictures say, in the target's order."""
    return np.array([[a.index(p.classes[a.name]) for a in target.attributes] for p in pictures])


def _batches(
    found: Measured,
    told: Sequence[np.ndarray],
    target: TargetDistribution,
    bench: Bench,
    options: argparse.Namespace,
) -> dict[str, dict[str, float]]:
    """`batch_figures` by each judge that reads the target's attributes."""
    judges: dict[str, tuple[Sequence[Attribute], list[np.ndarray]]] = {
        "training": (bench.attributes, [r.labels for r in found.readings])
    }
    if bench.judge is not None:
        judges["independent"] = (bench.judge.attributes, [r.judged for r in found.readings])
    tables = {}
    for judge, (attributes, labels) in judges.items():
        if all(a in attributes for a in target.attributes):
            places = [list(attributes).index(a) for a in target.attributes]
            rows = [each[:, places] for each in labels]
            tables[judge] = batch_figures(rows, told, target.attributes, options.exact)
    return tables


def write(report: dict[str, Any], folder: Path) -> list[Path]:
    """Raises FairAdapterError if the file can't be written."""
    return [write_bytes(folder / "in_words.json", json.dumps(report, indent=1).encode(), overwrite=True)]


def print_summary(report: dict[str, Any]) -> None:
    """The figures that matter, on the terminal."""
    models = report["models"]
    names = list(models)
    target = TargetDistribution.parse(report["target"])
    figures = list(models.values())
    rows = []
    for within, title in ((None, ""), ("independent", "independent: ")):
        for row in skew_rows(figures, target.attributes, [target] * len(figures), within):
            rows.append(
                [f"{title}{row.name} {row.what}", *(_told(c.figure if c else None) for c in row.cells)]
            )
    rows += [[row.name, *map(_told, row.figures)] for row in kept_rows(figures)]
    for judge in next(iter(report["batches"].values())):
        tables = [report["batches"][name][judge] for name in names]
        rows += [[f"{judge}: {key}", *(f"{table[key]:.3f}" for table in tables)] for key in tables[0]]
    print_table(["measure", *names], rows, f"{report['target']}, {report['plan']}")
    if any(found["prompts"] < 8 for found in figures):
        print(f"few prompts, {FEW}")


def _told(figure: Figure | None) -> str:
    return "-" if figure is None else f"{figure.number} {figure.interval}".rstrip()


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[command.shared_options()],
    )
    add = parser.add_argument
    add("--target", default=TARGET, help=f"what the words ask for ({TARGET})")
    add("--phrases", default="portrait", help="table of phrases (portrait: what that model's captions say)")
    add("--tables", type=Path, help="folder with a folder 'phrases' of your own tables")
    add("--place", choices=PLACES, default=PLACES[2], help=f"of the phrase ({PLACES[2]}, {MARKER})")
    add("--seed", type=int, default=0, help="of who says what (0)")
    add("--exact", type=int, default=12, help="pictures of an exact batch (12)")
    add("--adapter", type=Path, help="fairness adapter to be measured beside it, at the same target")
    parser.set_defaults(out=Path("runs/in_words"), limit=20, images=24, template=[TEMPLATE])
    return command.carry_out(parser, arguments, measure, write, print_summary)


if __name__ == "__main__":
    sys.exit(main())
