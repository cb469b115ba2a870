"""Measures whether a target-conditioned adapter draws the shares that it is asked for.

    python trainer/target_sweep.py --adapter FILE.safetensors [--targets TEXT ...] [option ...]

Twelve targets for gender and race (four move gender, four race, four both), 10 held-out prompts and 48
pictures of each, unless told otherwise; most other options are those of evaluate.py. A figure is the mean
distance between the shares that a target asks for and those that were drawn, in the classifier that training
used and in one that it did not: pooled, of the pictures of all prompts together, in which opposite
stereotypes cancel, and by prompt, the mean of every prompt's own. Writes target_sweep.json and
target_sweep.png into --out.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np

from fair_adapter.shared.adapter import FairnessAdapter
from fair_adapter.shared.attributes import Attribute, TargetDistribution
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.metrics import (
    FEW_PROMPTS,
    Statistic,
    frequencies,
    mean_over_prompts,
    prompt_interval,
    target_error,
    target_error_floor,
)
from fair_adapter.shared.tensor_file import write_bytes
from fair_adapter.trainer.evaluation import command
from fair_adapter.trainer.evaluation.readings import Readings
from fair_adapter.trainer.evaluation.rows import FEW, Figure
from fair_adapter.trainer.running.figures import subplots, to_png
from fair_adapter.trainer.running.tables import print_table

TARGETS = (
    *(f"gender=female:{f},male:{100 - f};race=equal" for f in (10, 30, 70, 90)),
    *(f"gender=equal;race={race}" for race in ("80/10/10", "10/80/10", "10/10/80", "50/40/10")),
    "gender=20/80;race=60/20/20",
    "gender=80/20;race=20/60/20",
    "gender=35/65;race=15/25/60",
    "gender=65/35;race=45/10/45",
)


@dataclass(frozen=True)
class Tally:
    """Faces of every class of some attributes, and the shares that were asked for, side by side.

    counts: (P, C) of each prompt.  wanted: (C,).  widths: number of classes of each attribute, C in all.
    """

    counts: np.ndarray
    wanted: np.ndarray
    widths: tuple[int, ...]

    def parts(self, counts: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """(counts (..., P, K), wanted (K,)) of each attribute.  counts: (..., P, C)."""
        ends = np.cumsum(self.widths)[:-1]
        return list(zip(np.split(counts, ends, axis=-1), np.split(self.wanted, ends)))

    def by_prompt(self, counts: np.ndarray) -> np.ndarray:
        """Mean distance over prompts and classes.  counts: (..., P, C).  Returns (...)."""
        means = [
            len(wanted) * mean_over_prompts(faces, partial(target_error, target=wanted))
            for faces, wanted in self.parts(counts)
        ]
        return np.sum(means, axis=0) / sum(self.widths)

    def pooled(self, counts: np.ndarray) -> np.ndarray:
        """Mean distance over classes of the shares among the faces of all prompts."""
        return self.by_prompt(counts.sum(axis=-2, keepdims=True))

    def floor(self, counts: np.ndarray) -> float:
        """What `by_prompt` of a perfect model is by chance.  counts: (P, C)."""
        floors = [
            [target_error_floor(int(n), wanted) for n in faces.sum(axis=1) if n] * len(wanted)
            for faces, wanted in self.parts(counts)
        ]
        return float(np.mean(np.concatenate(floors)))

    def figures(self) -> dict[str, Any]:
        """{"error", "ci95", "floor"} of the pooled shares, and the same under "by_prompt"."""
        counts = self.counts

        def table(of: Statistic, faces: np.ndarray) -> dict[str, Any]:
            interval = prompt_interval(counts, of, within=(0.0, 1.0))
            ci95 = None if interval is None else list(interval)
            return {"error": float(of(counts)), "ci95": ci95, "floor": self.floor(faces)}

        whole = counts.sum(axis=0, keepdims=True)
        return {**table(self.pooled, whole), "by_prompt": table(self.by_prompt, counts)}


def tally(
    target: TargetDistribution, labels: Sequence[np.ndarray], attributes: Sequence[Attribute]
) -> tuple[Tally, list[Attribute]]:
    """The faces of each prompt, labels (n, A), and the attributes of the target that they are read of."""
    known = [
        a for a in attributes if a.name in target.names and a.classes == target.attribute(a.name).classes
    ]
    if not known:
        raise FairAdapterError(
            f"target sweep: expected a classifier of {' or '.join(target.names)} with the target's classes, "
            f"found one of {', '.join(a.name for a in attributes)}; set --classifier or --independent"
        )
    columns = []
    for attribute in known:
        index = list(attributes).index(attribute)
        found = [rows[:, index] for rows in labels]
        columns.append([np.bincount(row[row >= 0], minlength=len(attribute)) for row in found])
        if not np.sum(columns[-1]):
            raise FairAdapterError("target sweep: not one face in the pictures of a target")
    wanted = [target.marginal(attribute.name) for attribute in known]
    widths = tuple(len(attribute) for attribute in known)
    return Tally(np.concatenate(columns, axis=1), np.concatenate(wanted), widths), known


def joined(tallies: Sequence[Tally]) -> Tally:
    """Several targets on the same prompts as one, whose mean distance is that over all of them."""
    return Tally(
        np.concatenate([t.counts for t in tallies], axis=1),
        np.concatenate([t.wanted for t in tallies]),
        tuple(width for t in tallies for width in t.widths),
    )


def against(
    target: TargetDistribution, labels: Sequence[np.ndarray], attributes: Sequence[Attribute]
) -> tuple[dict[str, Any], Tally]:
    """The figures of a target with its pooled "shares": {attribute: {class: [asked, found]}}."""
    found, known = tally(target, labels, attributes)
    shares = {}
    for attribute, (counts, wanted) in zip(known, found.parts(found.counts)):
        rows = zip(attribute.classes, wanted.tolist(), frequencies(counts.sum(axis=0)).tolist())
        shares[attribute.name] = {label: [asked, got] for label, asked, got in rows}
    return {**found.figures(), "shares": shares}, found


def sweep(options: argparse.Namespace) -> dict[str, Any]:
    """Measure whatever is not measured yet."""
    adapter = FairnessAdapter.read(options.adapter)
    if not adapter.conditioned:
        raise FairAdapterError(
            f"{options.adapter}: expected a target-conditioned adapter, found one for "
            f"{adapter.targets.default.to_text()} alone; train one with target_conditioned.yaml"
        )
    targets = []
    for text in options.targets:
        resolved = adapter.targets.resolve(text)
        command.warn(*(f"{text}: {warning}" for warning in resolved.warnings))
        targets.append(resolved.target)
    prompts = command.read_set(options.prompts, options)
    bench = command.open_bench(options, options.model, adapter)
    plan = command.plan_for(options, bench)
    original = bench.original(prompts, plan, adapter.targets.default)
    tallies: dict[str, dict[str, list[Tally]]] = {}

    def figures(target: TargetDistribution, readings: Sequence[Readings], when: str) -> dict[str, Any]:
        labels = {"training": ([r.labels for r in readings], bench.attributes)}
        if bench.judge is not None:
            labels["independent"] = ([r.judged for r in readings], bench.judge.attributes)
        tables = {}
        for judge, (rows, attributes) in labels.items():
            tables[judge], found = against(target, rows, attributes)
            tallies.setdefault(judge, {}).setdefault(when, []).append(found)
        return tables

    rows = []
    for target in targets:
        measured = bench.adapted(adapter, prompts, plan, original, target, options.strength)
        after = figures(target, measured.readings, "after")
        before = figures(target, original.readings, "before")
        rows.append({"target": target.to_text(), "after": after, "before": before})
    return {
        "command": shlex.join(["python", "trainer/target_sweep.py", *options.arguments]),
        "date": datetime.date.today().isoformat(),
        "plan": f"{command.prompt_facts(options, prompts)}, {options.steps} steps, "
        f"guidance scale {plan.scale:g}",
        "facts": {**bench.facts(plan), "adapter": f"{adapter.source}, strength {options.strength:g}"},
        "error": "pooled, of the shares among the faces of all prompts; by_prompt: mean of each one's",
        "few_prompts": len(prompts) < FEW_PROMPTS,
        "mean": {
            judge: over_all({when: joined(found) for when, found in models.items()})
            for judge, models in tallies.items()
        },
        "targets": rows,
    }


def over_all(models: Mapping[str, Tally]) -> dict[str, Any]:
    """The figures of all targets together, "before" and "after": their prompts are drawn anew as one."""
    tables = {when: found.figures() for when, found in models.items()}

    def told(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        errors = {when: table["error"] for when, table in tables.items()}
        intervals = {f"{when}_ci95": table["ci95"] for when, table in tables.items()}
        return {**errors, **intervals, "floor": tables["after"]["floor"]}

    return {**told(tables), "by_prompt": told({when: table["by_prompt"] for when, table in tables.items()})}


def plot(report: dict[str, Any]) -> bytes:
    """Asked and measured share of every class of every target as a PNG, one panel for each classifier."""
    judges = list(report["mean"])
    figure, axes = subplots(1, len(judges), 5 * len(judges), 4.6)
    for axis, judge in zip(axes[0], judges):
        points: dict[tuple[str, str], list[list[float]]] = {}
        colours = {}
        for row in report["targets"]:
            for name, classes in row["after"][judge]["shares"].items():
                attribute = Attribute(name, tuple(classes))
                for look, (label, pair) in zip(attribute.looks, classes.items()):
                    points.setdefault((name, label), []).append(pair)
                    colours[name, label] = np.array(look.colour) / 255
        for key, pairs in points.items():
            asked, found = np.array(pairs).T
            axis.scatter(asked, found, color=colours[key], edgecolors="black", linewidths=0.4, label=key[1])
        axis.plot([0, 1], [0, 1], color="black", linewidth=0.8)
        axis.set(xlabel="asked for", ylabel="share of all prompts' faces", xlim=(0, 1), ylim=(0, 1))
        mean = report["mean"][judge]
        off = f"off by {mean['after']:.3f} pooled, {mean['by_prompt']['after']:.3f} by prompt"
        axis.set_title(f"{judge} classifier: {off}", fontsize=10)
        axis.legend(fontsize=8)
    return to_png(figure)


def write(report: dict[str, Any], folder: Path) -> list[Path]:
    """Write both files. Raises FairAdapterError if they can't be."""
    files = {"json": json.dumps(report, indent=1).encode(), "png": plot(report)}
    return [
        write_bytes(folder / f"target_sweep.{kind}", data, overwrite=True) for kind, data in files.items()
    ]


def print_summary(report: dict[str, Any]) -> None:
    """The figures that matter, on the terminal."""
    judges = list(report["mean"])

    def cells(tables: Mapping[str, Any], key: str, interval: str) -> list[str]:
        """Of every classifier, pooled and by prompt."""
        kinds = [kind for judge in judges for kind in (tables[judge], tables[judge]["by_prompt"])]
        figures = [Figure(kind[key], kind.get(interval)) for kind in kinds]
        return [f"{figure.number} {figure.interval}".rstrip() for figure in figures]

    rows = [[row["target"], *cells(row["after"], "error", "ci95")] for row in report["targets"]]
    titles = {"after": "mean", "before": "mean without the adapter", "floor": "a perfect model's"}
    rows += [[title, *cells(report["mean"], key, f"{key}_ci95")] for key, title in titles.items()]
    columns = [f"{judge} classifier, {kind}" for judge in judges for kind in ("pooled", "by prompt")]
    print_table(["target", *columns], rows, f"distance to the target [95%], {report['plan']}")
    if report["few_prompts"]:
        print(f"few prompts, {FEW}")


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[command.shared_options()],
    )
    parser.add_argument("--adapter", type=Path, required=True, help="target-conditioned fairness adapter")
    parser.add_argument(
        "--targets", nargs="+", default=TARGETS, metavar="TEXT", help="in place of the twelve"
    )
    parser.set_defaults(out=Path("runs/target_sweep"), limit=10, images=48)
    return command.carry_out(parser, arguments, sweep, write, print_summary)


if __name__ == "__main__":
    sys.exit(main())
