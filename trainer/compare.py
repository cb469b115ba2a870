"""Measures several adapters and base models with the same noises and puts them side by side on one page.

    python trainer/compare.py portrait +runs/joint/adapter.safetensors tokens=+runs/soft/adapter.safetensors
    python trainer/compare.py sd15=models/sd15 models/sd15+sd15.safetensors --guidance 7.5

Each model is [NAME=][MODEL][+ADAPTER]; without MODEL it is --model. The options are those of evaluate.py;
whatever evaluate.py has measured already is not measured again. Writes comparison.html and comparison.json
into --out, with the paper's published tables beside ours, marked as theirs.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.machinery
import importlib.util
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if "fair_adapter" not in sys.modules:  # the repository root under its one import name
    _spec = importlib.machinery.ModuleSpec("fair_adapter", None, is_package=True)
    _spec.submodule_search_locations = [str(Path(__file__).resolve().parents[1])]
    sys.modules["fair_adapter"] = importlib.util.module_from_spec(_spec)

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from fair_adapter.shared.adapter import FairnessAdapter
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.trainer import evaluate
from fair_adapter.trainer.evaluation.comparison import Column, Comparison
from fair_adapter.trainer.tables import print_table
from fair_adapter.trainer.training.setup import model_folder


@dataclass(frozen=True)
class Entry:
    """One model of the comparison.  adapter: a file, or None for the base model alone."""

    name: str
    model: str
    adapter: Path | None

    @classmethod
    def parse(cls, text: str, model: str) -> Entry:
        """[NAME=][MODEL][+ADAPTER], `model` where none is named. FairAdapterError if it names nothing."""
        name, equals, rest = text.partition("=")
        name, rest = (name, rest) if equals else ("", text)
        base, plus, file = rest.partition("+")
        if (not base and not file) or (plus and not file) or (equals and not name):
            raise FairAdapterError(
                f"{text!r}: expected [NAME=][MODEL][+ADAPTER], such as portrait+a.safetensors"
            )
        shown = model_folder(base or model).name
        if file:
            path = Path(file)
            shown = path.parent.name if path.stem == "adapter" and path.parent.name else path.stem
        return cls(name or shown, base or model, Path(file) if file else None)


def compare(options: argparse.Namespace) -> Comparison:
    """Measure whatever is not measured yet."""
    entries = [Entry.parse(text, options.model) for text in options.entries]
    names = [entry.name for entry in entries]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise FairAdapterError(f"two models are called {twice!r}; name them with NAME=")
    adapters = {e.adapter: FairnessAdapter.read(e.adapter) for e in entries if e.adapter is not None}
    prompts = evaluate.read_set(options.prompts, options)
    columns: dict[str, Column] = {}
    scales: dict[str, float] = {}
    attributes, classifier = (), ""
    for model in dict.fromkeys(entry.model for entry in entries):  # one in memory at a time
        mine = [entry for entry in entries if entry.model == model]
        bench = evaluate.open_bench(options, model, *(adapters[e.adapter] for e in mine if e.adapter))
        plan = evaluate.plan_for(options, model, bench)
        scales[model] = plan.scale
        equal = bench.observer.target(";".join(f"{a.name}=equal" for a in bench.attributes[:2]))
        original = bench.original(prompts, plan, equal)
        for entry in mine:
            if entry.adapter is None:
                columns[entry.name] = Column(entry.name, original, "-")
                continue
            adapter = adapters[entry.adapter]
            asked = options.target if adapter.conditioned else None
            measured = bench.adapted(adapter, prompts, plan, original, asked, options.strength)
            target = adapter.targets.resolve(asked).target.to_text()
            columns[entry.name] = Column(entry.name, measured, target)
        attributes, classifier = bench.attributes, bench.observer.classifier.identity
        del bench
    by_model = ", ".join(f"{scale:g} ({model})" for model, scale in scales.items())
    known = {f"{scale:g}" for scale in scales.values()}
    facts = {
        "date": datetime.date.today().isoformat(),
        "prompts": f"{options.prompts}, {len(prompts)} prompts, {options.images} pictures of each",
        "sampler": f"{options.steps} steps, guidance scale {known.pop() if len(known) == 1 else by_model}",
        "classifier": classifier,
    }
    command = shlex.join(["python", "trainer/compare.py", *options.arguments])
    ordered = [columns[entry.name] for entry in entries]
    return Comparison("Fairness adapters compared", prompts, attributes, ordered, command, facts)


def print_summary(comparison: Comparison) -> None:
    """The figures that matter, on the terminal."""
    rows = [
        [f"{name} bias", *(f"{cell['bias']:.3f}" if cell else "-" for cell in cells)]
        for name, cells in comparison.bias_rows()
    ]
    for name, values in comparison.kept_rows():
        rows.append([name, *("-" if value is None else f"{value:.3f}" for value in values)])
    print_table(["measure", *(column.name for column in comparison.columns)], rows, comparison.title)


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[evaluate.parser(False)],
    )
    parser.add_argument("entries", nargs="+", metavar="MODEL", help="[NAME=][MODEL][+ADAPTER]")
    parser.set_defaults(out=Path("runs/compare"))
    return evaluate.carry_out(parser, arguments, compare, Comparison.write, print_summary)


if __name__ == "__main__":
    sys.exit(main())
