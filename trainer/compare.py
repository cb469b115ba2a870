"""Measures several adapters and base models with the same noises and puts them side by side on one page.

    python trainer/compare.py portrait +runs/joint/adapter.safetensors tokens=+runs/soft/adapter.safetensors
    python trainer/compare.py sd15=models/sd15 models/sd15+sd15.safetensors --guidance 7.5

Each model is [NAME=][MODEL][+ADAPTER]; without MODEL it is --model. Most options are those of evaluate.py;
whatever evaluate.py has measured already is not measured again. --target is for adapters that follow one.
Writes comparison.html and comparison.json into --out, with the paper's published tables beside ours, marked
as theirs.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from fair_adapter.shared.adapter import FairnessAdapter
from fair_adapter.shared.attributes import TargetDistribution
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.trainer.evaluation import command
from fair_adapter.trainer.evaluation.comparison import Column, Comparison
from fair_adapter.trainer.evaluation.rows import FEW
from fair_adapter.trainer.families.loading import model_folder
from fair_adapter.trainer.running.tables import print_table


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

    def told(self, strength: float) -> str:
        """What its name stands for."""
        adapter = "" if self.adapter is None else f" + {self.adapter}, strength {strength:g}"
        return f"{self.name}: {self.model}{adapter}"


def compare(options: argparse.Namespace) -> Comparison:
    """Measure whatever is not measured yet."""
    entries = [Entry.parse(text, options.model) for text in options.entries]
    names = [entry.name for entry in entries]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise FairAdapterError(f"two models are called {twice!r}; name them with NAME=")
    adapters = {e.adapter: FairnessAdapter.read(e.adapter) for e in entries if e.adapter is not None}
    targets = {
        entry.name: asked(adapters[entry.adapter], entry.name, options.target)
        for entry in entries
        if entry.adapter is not None
    }
    prompts = command.read_set(options.prompts, options)
    columns: dict[str, Column] = {}
    scales: dict[str, float] = {}
    facts: dict[str, dict[str, str]] = {}
    attributes = ()
    for model in dict.fromkeys(entry.model for entry in entries):  # one in memory at a time
        mine = [entry for entry in entries if entry.model == model]
        bench = command.open_bench(options, model, *(adapters[e.adapter] for e in mine if e.adapter))
        plan = command.plan_for(options, bench)
        scales[model], facts[model] = plan.scale, bench.facts(plan)
        equal = bench.observer.target(";".join(f"{a.name}=equal" for a in bench.attributes[:2]))
        original = bench.original(prompts, plan, equal)
        for entry in mine:
            measured, target = original, targets.get(entry.name)
            if entry.adapter is not None:
                adapter = adapters[entry.adapter]
                measured = bench.adapted(adapter, prompts, plan, original, target, options.strength)
            columns[entry.name] = Column(entry.name, measured, target, bench.model.latent_shape)
        attributes = bench.attributes
        del bench
    facts_of_all = {
        "date": datetime.date.today().isoformat(),
        "models": "; ".join(entry.told(options.strength) for entry in entries),
        "prompts": command.prompt_facts(options, prompts),
        "sampler": f"{options.steps} steps, guidance scale "
        + one_text({model: f"{scale:g}" for model, scale in scales.items()}),
    }
    for name in next(iter(facts.values())):
        if name != "model":  # which of them is in each column is told already
            facts_of_all[name] = one_text({model: table[name] for model, table in facts.items()})
    line = shlex.join(["python", "trainer/compare.py", *options.arguments])
    ordered = [columns[entry.name] for entry in entries]
    return Comparison("Fairness adapters compared", prompts, attributes, ordered, line, facts_of_all)


def asked(adapter: FairnessAdapter, name: str, target: str | None) -> TargetDistribution:
    """The target of one of the adapters: the asked-for one, or its own where it follows none; says so."""
    if target is not None and not adapter.conditioned:
        own = adapter.targets.default
        command.warn(f"{name}: this adapter is trained for {own.to_text()} alone: --target has no effect")
        return own
    resolved = adapter.targets.resolve(target)
    command.warn(*(f"{name}: {warning}" for warning in resolved.warnings))
    return resolved.target


def one_text(texts: Mapping[str, str]) -> str:
    """A fact of several base models: one text where they agree, or each model's."""
    known = set(texts.values())
    return known.pop() if len(known) == 1 else ", ".join(f"{text} ({model})" for model, text in texts.items())


def print_summary(comparison: Comparison) -> None:
    """The figures that matter, on the terminal."""
    rows = []
    for prefix, within in (("", None), ("independent: ", "independent")):
        for row in comparison.skew(within):
            title = f"{prefix}{row.name} {row.what}"
            rows.append([title, *(cell.figure.number if cell else "-" for cell in row.cells)])
            changes = [cell.difference if cell else None for cell in row.cells]
            if any(changes):
                shown = [f"{change.number} {change.interval}" if change else "" for change in changes]
                rows.append(["  to its base model", *shown])
            before = [cell.before if cell else None for cell in row.cells]
            if any(value is not None for value in before):
                rows.append(["  of the base model", *("" if v is None else f"{v:.3f}" for v in before)])
    for row in comparison.kept():
        cells = [f"{figure.number} {figure.note}".strip() if figure else "-" for figure in row.figures]
        rows.append([row.name, *cells])
    print_table(["measure", *(column.name for column in comparison.columns)], rows, comparison.title)
    if comparison.few:
        print(f"few prompts, {FEW}")


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[command.shared_options()],
    )
    parser.add_argument("entries", nargs="+", metavar="MODEL", help="[NAME=][MODEL][+ADAPTER]")
    parser.add_argument("--target", help="for adapters that follow a target (default: each adapter's own)")
    parser.set_defaults(out=Path("runs/compare"))
    return command.carry_out(parser, arguments, compare, Comparison.write, print_summary)


if __name__ == "__main__":
    sys.exit(main())
