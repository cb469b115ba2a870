"""What `evaluate.py --exact N` writes and tells: exact.json, and a table of ways on the terminal."""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...shared.adapter import FairnessAdapter
from ...shared.attributes import KNOWN, TargetDistribution
from ...shared.errors import FairAdapterError
from ...shared.metrics import wilson_interval
from ...shared.quota import counts
from ...shared.quota_batch import HALF
from ...shared.tensor_file import write_bytes
from ...shared.window import Window
from ..running.progress import Progress
from ..running.tables import print_table
from .command import open_bench, plan_for, prompt_facts, read_set, warn
from .exact import Drawn, ExactBench, told_classes
from .measures import identity_diversity
from .worded import batch_figures

EQUAL = "gender=equal;race=equal"
COLUMNS = {
    "exact": "exact batches [95%]",
    "cost": "cost",
    "aimed": "hit at first",
    "off": "off, training",
    "judged_off": "off, independent",
    "face_rate": "faces",
    "similarity": "similarity",
    "diversity": "diversity",
}


def measure_exact(options: argparse.Namespace) -> dict[str, Any]:
    """Draw and read what the options ask for, by every way.

    Raises FairAdapterError for a window of the sampling and for sizes and caps that make no sense.
    """
    if not Window(*options.window).whole:
        raise FairAdapterError(
            "--window: expected 0 100 with --exact, whose second plan acts late; leave one out"
        )
    size, budget = options.exact, _budget(options)
    adapter = FairnessAdapter.read(options.adapter) if options.adapter else None
    prompts = read_set(options.prompts, options)
    bench = open_bench(options, options.model, *([adapter] if adapter else []))
    plan = plan_for(options, bench)
    text = options.target or (EQUAL if adapter is None else adapter.targets.default.to_text())
    target = bench.observer.target(text)
    exact = ExactBench(bench, adapter, target, plan, size, budget, options.strength, options.push)
    if adapter is not None:
        warn(*adapter.targets.resolve(target).warnings)
    drawn: dict[str, list[Drawn]] = {way.name: [] for way in exact.ways()}
    batches = options.images // size
    with Progress("exact batches", len(prompts) * batches) as progress:
        for prompt in prompts:
            for number in range(batches):
                for way in exact.ways():
                    drawn[way.name].append(exact.draw(way, prompt, number))
                progress.advance(prompt.text)
    return {
        "command": shlex.join(["python", "trainer/evaluate.py", *options.arguments]),
        "date": datetime.date.today().isoformat(),
        "plan": f"{prompt_facts(options, prompts)} in batches of {size}, at most {options.cap:g} x as many",
        "wanted": counts(target, size).to_text(),
        "target": target.to_text(),
        "facts": {**bench.facts(plan), **({} if adapter is None else {"adapter": adapter.source})},
        "ways": {name: figures(found, exact) for name, found in drawn.items()},
    }


def _budget(options: argparse.Namespace) -> int:
    """Redraws of a batch. Raises FairAdapterError for numbers and targets that make no sense, at once."""
    target = TargetDistribution.parse(options.target or EQUAL, KNOWN)
    counts(target, options.exact)
    if options.images % options.exact:
        raise FairAdapterError(
            f"--exact: expected a divisor of the {options.images} pictures of a prompt, found {options.exact}"
        )
    if not 1 <= options.cap <= 100:
        raise FairAdapterError(f"--cap: expected 1 to 100 times the pictures, found {options.cap:g}")
    return round((options.cap - 1) * options.exact)


def figures(drawn: Sequence[Drawn], exact: ExactBench) -> dict[str, Any]:
    """A way's figures over its batches.

    exact: share of batches all of whose pictures fill their cells, by the training classifier, with "ci95".
    cost: mean rows through the network over those of a plain batch; "cost_of_exact" of those alone that are.
    aimed: share of first pictures that are of the cell they aimed at.  decoded: unfinished pictures decoded
    and read, of a batch.  training, independent: `batch_figures` by each judge.  accepted: redraws that
    were kept, and the share of them that each judge reads as of their cell.  face_rate, similarity,
    diversity. unreached: what was told of batches that are not exact.
    """
    n, whole = len(drawn), [found.batch.exact for found in drawn]
    told = [told_classes(found.batch) for found in drawn]
    attributes, size = exact.target.attributes, exact.size
    table: dict[str, Any] = {
        "batches": n,
        "exact": float(np.mean(whole)),
        "ci95": list(wilson_interval(sum(whole), n)),
        "cost": float(np.mean([found.batch.cost for found in drawn])),
        "aimed": float(np.mean([found.aimed for found in drawn])),
        "filled": float(np.mean([(_fills(found) >= HALF).mean() for found in drawn])),
        "decoded": float(np.mean([found.decoded for found in drawn])),
        "read": float(np.mean([found.batch.drawn + found.decoded for found in drawn])),
        "face_rate": float(np.mean([found.readings.has_face.mean() for found in drawn])),
        "diversity": float(identity_diversity([found.readings for found in drawn]).mean()),
        "similarity": _mean([found.similarity for found in drawn]),
        "training": batch_figures([exact.labels(d.readings, False) for d in drawn], told, attributes, size),
        "unreached": [found.batch.summary() for found in drawn if not found.batch.exact],
    }
    if exact.judged:
        labels = [exact.labels(d.readings, True) for d in drawn]
        table["independent"] = batch_figures(labels, told, attributes, size)
    kept = np.concatenate([found.accepted for found in drawn])
    shares = kept.mean(axis=0).tolist() if len(kept) else [None, None]
    table["accepted"] = {"redraws": len(kept), "training": shares[0], "independent": shares[1]}
    return table


def _fills(found: Drawn) -> np.ndarray:
    return np.zeros(1) if found.batch.check is None else found.batch.check.fills


def _mean(parts: Sequence[np.ndarray]) -> float | None:
    whole = np.concatenate(parts)
    return float(whole.mean()) if len(whole) else None


def write_exact(report: dict[str, Any], folder: Path) -> list[Path]:
    """Raises FairAdapterError if the file can't be written."""
    return [write_bytes(folder / "exact.json", json.dumps(report, indent=1).encode(), overwrite=True)]


def print_exact(report: dict[str, Any]) -> None:
    """A row for each way; "off" is mean |count - wanted| of each attribute's classes."""
    rows = []
    for name, table in report["ways"].items():
        low, high = table["ci95"]
        cells = {
            "exact": f"{table['exact']:.3f} [{low:.2f}, {high:.2f}]",
            "off": _off(table["training"]),
            "judged_off": _off(table.get("independent", {})),
            **{key: _number(table[key]) for key in ("cost", "aimed", "face_rate", "similarity", "diversity")},
        }
        rows.append([name, *(cells[key] for key in COLUMNS)])
    print_table(["way", *COLUMNS.values()], rows, f"{report['wanted']}; {report['plan']}")
    for name, table in report["ways"].items():
        kept = table["accepted"]
        if kept["redraws"]:
            shares = f"{_number(kept['training'])} and {_number(kept['independent'])}"
            print(f"{name}: {kept['redraws']} redraws were kept, of their cell by the two judges: {shares}")


def _off(table: dict[str, float]) -> str:
    names = [key for key in table if key.startswith("off ")]
    return ", ".join(f"{name.removeprefix('off ')} {table[name]:.2f}" for name in names) or "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
