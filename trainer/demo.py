"""What `python install.py demo` runs: measure the portrait model, train an adapter, measure again.

    python trainer/demo.py [key=value ...]      settings of trainer/configs/demo.yaml

Measures the skew of the model on held-out occupations, trains, exports the adapter, loads the exported file
and measures with the same noises. Writes report.html, report.json and report.png into run.output. What is
there from an earlier call is used again, so that a stopped demo goes on and a finished one is done at once.
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

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.trainer.configuration.config import Config, PromptSource, load_config
from fair_adapter.trainer.running.exits import STOPPED

CONFIG = Path(__file__).parent / "configs" / "demo.yaml"


def run(config: Config, command: str) -> int:
    """The demo; returns the exit code."""
    from fair_adapter.shared.adapter import FairnessAdapter
    from fair_adapter.trainer.configuration.prompts import evenly, read_prompts
    from fair_adapter.trainer.evaluation.measuring import Bench, Instruments, asked_encoders
    from fair_adapter.trainer.evaluation.readings import Plan
    from fair_adapter.trainer.evaluation.report import Report
    from fair_adapter.trainer.evaluation.rows import counted
    from fair_adapter.trainer.evaluation.summary import print_summary
    from fair_adapter.trainer.families.loading import model_folder
    from fair_adapter.trainer.running.processes import Processes
    from fair_adapter.trainer.training.logs import logged_seconds
    from fair_adapter.trainer.training.run import train

    began, asked = time.perf_counter(), config.evaluation
    prompts = evenly(read_prompts(PromptSource(asked.prompts)), asked.limit)
    cache = None if config.references.cache is None else Path(config.references.cache)
    encoders = asked_encoders(config)
    instruments = Instruments(
        config.faces.classifier,
        encoder=encoders[0] if encoders else None,
        detector=config.faces.detector,
        cache=cache,
        more=encoders[1:],
        alignment=asked.clip,
    )
    folder = model_folder(config.model.path)

    print(
        f"1 of 3: how skewed is the {folder.name} model on {len(prompts)} occupations it was not trained on?"
    )
    bench = Bench(folder, instruments, Processes(config.run.device).device, config=config.model)
    scale = bench.model.guidance_scale if config.model.guidance_scale is None else config.model.guidance_scale
    plan = Plan(asked.images, asked.steps, scale, config.model.negative, config.sampling.network_batch)
    target = bench.observer.target(config.target.text)
    original = bench.original(prompts, plan, target)

    print(f"2 of 3: training an adapter for {target.to_text()}")
    output, before, earlier = Path(config.run.output), time.perf_counter(), None
    if (output / "adapter.safetensors").is_file():
        earlier = (output / "adapter.safetensors").read_bytes()
    path, finished = train(config)
    if not finished:
        print("stopped and saved; the same command goes on from here", file=sys.stderr)
        return STOPPED
    bench.seconds["training"] = max(time.perf_counter() - before, logged_seconds(output))
    new = path.read_bytes() != earlier

    print(f"3 of 3: measuring {path} with the same noises")
    adapter = FairnessAdapter.read(path)
    adapted = bench.adapted(adapter, prompts, plan, original)
    report = Report(
        title=f"{adapter.info.name}: fairness adapter on the {folder.name} model",
        prompts=prompts,
        attributes=bench.attributes,
        target=target,
        original=original,
        adapter=adapted,
        seconds={**bench.seconds, "total": time.perf_counter() - began},
        command=command,
        facts={
            "date": datetime.date.today().isoformat(),
            **bench.facts(plan),
            "prompts": f"{asked.prompts}, {counted(len(prompts), 'prompt')}, {asked.images} pictures of each",
            "adapter": f"{path}, strength 1",
        },
    )
    print_summary(report)
    if not new and not bench.reader.drawn and (output / "report.json").is_file():
        print(f"nothing to draw or to train; {output / 'report.html'} is there")
        return 0
    files = report.write(output)
    report.record(adapter).write(path, overwrite=True)
    print(f"wrote {', '.join(str(f) for f in files)}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", nargs="*", metavar="key=value", help=f"settings over {CONFIG.name}")
    settings = parser.parse_args(arguments).settings
    try:
        from fair_adapter.trainer.running.memory import REMEDY, memory_told

        with memory_told(REMEDY):
            return run(load_config(CONFIG, settings), shlex.join(["python", "install.py", "demo", *settings]))
    except FairAdapterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return STOPPED


if __name__ == "__main__":
    sys.exit(main())
