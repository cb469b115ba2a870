"""Measures whether a target-conditioned adapter draws the shares that it is asked for.

    python trainer/target_sweep.py --adapter FILE.safetensors [--targets TEXT ...] [option ...]

Twelve targets for gender and race (four move gender, four race, four both), 10 held-out prompts and 48
pictures of each, unless told otherwise; the other options are those of evaluate.py. The figure of a target is
the mean distance between its shares and those of all its pictures pooled, in the classifier that training
used and in one that it did not. Writes target_sweep.json and target_sweep.png into --out.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.machinery
import importlib.util
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if "fair_adapter" not in sys.modules:  # the repository root under its one import name
    _spec = importlib.machinery.ModuleSpec("fair_adapter", None, is_package=True)
    _spec.submodule_search_locations = [str(Path(__file__).resolve().parents[1])]
    sys.modules["fair_adapter"] = importlib.util.module_from_spec(_spec)

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np

from fair_adapter.shared.adapter import FairnessAdapter
from fair_adapter.shared.attributes import Attribute, TargetDistribution
from fair_adapter.shared.bars import class_colour
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.metrics import target_error_floor
from fair_adapter.shared.tensor_file import write_bytes
from fair_adapter.trainer import evaluate
from fair_adapter.trainer.evaluation.readings import Readings
from fair_adapter.trainer.figures import subplots, to_png
from fair_adapter.trainer.tables import print_table

TARGETS = (
    *(f"gender=female:{f},male:{100 - f};race=equal" for f in (10, 30, 70, 90)),
    *(f"gender=equal;race={race}" for race in ("80/10/10", "10/80/10", "10/10/80", "50/40/10")),
    "gender=20/80;race=60/20/20",
    "gender=80/20;race=20/60/20",
    "gender=35/65;race=15/25/60",
    "gender=65/35;race=45/10/45",
)


def pooled(
    labels: Sequence[np.ndarray], attributes: Sequence[Attribute], name: str
) -> tuple[np.ndarray, int]:
    """Shares (K,) of an attribute's classes among all faces, and the number of faces."""
    index = next(i for i, a in enumerate(attributes) if a.name == name)
    column = np.concatenate([rows[:, index] for rows in labels])
    counts = np.bincount(column[column >= 0], minlength=len(attributes[index]))
    if not counts.sum():
        raise FairAdapterError("target sweep: not one face in the pictures of a target")
    return counts / counts.sum(), int(counts.sum())


def against(
    target: TargetDistribution, labels: Sequence[np.ndarray], attributes: Sequence[Attribute]
) -> dict[str, Any]:
    """{"error": mean distance, "floor": a fair model's, "shares": {attribute: {class: [asked, found]}}}."""
    known = [
        a for a in attributes if a.name in target.names and a.classes == target.attribute(a.name).classes
    ]
    distances, floors, shares = [], [], {}
    for attribute in known:
        wanted = target.marginal(attribute.name)
        found, faces = pooled(labels, attributes, attribute.name)
        distances += np.abs(found - wanted).tolist()
        floors += [target_error_floor(faces, wanted)] * len(wanted)
        rows = zip(attribute.classes, wanted.tolist(), found.tolist())
        shares[attribute.name] = {label: [asked, got] for label, asked, got in rows}
    return {"error": float(np.mean(distances)), "floor": float(np.mean(floors)), "shares": shares}


def sweep(options: argparse.Namespace) -> dict[str, Any]:
    """Measure whatever is not measured yet."""
    if options.adapter is None:
        raise FairAdapterError("--adapter: expected a target-conditioned adapter, found none")
    adapter = FairnessAdapter.read(options.adapter)
    if not adapter.conditioned:
        raise FairAdapterError(
            f"{options.adapter}: expected a target-conditioned adapter, found one for "
            f"{adapter.targets.default.to_text()} alone; train one with target_conditioned.yaml"
        )
    targets = [adapter.targets.resolve(text).target for text in options.targets]
    prompts = evaluate.read_set(options.prompts, options)
    bench = evaluate.open_bench(options, options.model, adapter)
    plan = evaluate.plan_for(options, options.model, bench)
    original = bench.original(prompts, plan, adapter.targets.default)

    def figures(target: TargetDistribution, readings: Sequence[Readings]) -> dict[str, Any]:
        found = {"training": against(target, [r.labels for r in readings], bench.attributes)}
        if bench.judge is not None:
            found["independent"] = against(target, [r.judged for r in readings], bench.judge.attributes)
        return found

    rows = []
    for target in targets:
        measured = bench.adapted(adapter, prompts, plan, original, target, options.strength)
        before = figures(target, original.readings)
        rows.append(
            {"target": target.to_text(), "after": figures(target, measured.readings), "before": before}
        )
    judges = list(rows[0]["after"])
    return {
        "command": shlex.join(["python", "trainer/target_sweep.py", *options.arguments]),
        "date": datetime.date.today().isoformat(),
        "plan": f"{len(prompts)} prompts of {options.prompts}, {options.images} pictures of each, "
        f"{options.steps} steps, guidance scale {plan.scale:g}",
        "mean": {
            judge: {
                key: float(np.mean([row[key][judge]["error"] for row in rows])) for key in ("before", "after")
            }
            | {"floor": float(np.mean([row["after"][judge]["floor"] for row in rows]))}
            for judge in judges
        },
        "targets": rows,
    }


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
                for index, (label, pair) in enumerate(classes.items()):
                    points.setdefault((name, label), []).append(pair)
                    colours[name, label] = np.array(class_colour(attribute, index)) / 255
        for key, pairs in points.items():
            asked, found = np.array(pairs).T
            axis.scatter(asked, found, color=colours[key], edgecolors="black", linewidths=0.4, label=key[1])
        axis.plot([0, 1], [0, 1], color="black", linewidth=0.8)
        axis.set(xlabel="asked for", ylabel="share of the faces", xlim=(0, 1), ylim=(0, 1))
        axis.set_title(
            f"{judge} classifier: off by {report['mean'][judge]['after']:.3f} on average", fontsize=10
        )
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
    rows = [[r["target"], *(f"{r['after'][j]['error']:.3f}" for j in judges)] for r in report["targets"]]
    for name in ("after", "before", "floor"):
        title = {"after": "mean", "before": "mean without the adapter", "floor": "a perfect model's"}[name]
        rows.append([title, *(f"{report['mean'][j][name]:.3f}" for j in judges)])
    print_table(["target", *(f"{j} classifier" for j in judges)], rows, report["plan"])


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[evaluate.parser(False)],
    )
    parser.add_argument(
        "--targets", nargs="+", default=TARGETS, metavar="TEXT", help="in place of the twelve"
    )
    parser.set_defaults(out=Path("runs/target_sweep"), limit=10, images=48)
    return evaluate.carry_out(parser, arguments, sweep, write, print_summary)


if __name__ == "__main__":
    sys.exit(main())
