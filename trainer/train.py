"""Trains a fairness adapter.

    python trainer/train.py CONFIG.yaml [key=value ...]      trainer/configs has examples
    python trainer/train.py --options                        lists every key with its default
    torchrun --nproc_per_node=2 trainer/train.py CONFIG.yaml ...    two GPUs (CPUs: README.md)

Writes into run.output: adapter.safetensors (the averaged weights, for the hosts), state.pt (to go on from),
log.jsonl, samples/ and TensorBoard files. The same command goes on with an interrupted run; Ctrl-C saves
first. (Launchers kill after 30 seconds: TORCH_ELASTIC_SHUTDOWN_TIMEOUT=300 gives a long iteration its time.)
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

if "fair_adapter" not in sys.modules:  # the repository root under its one import name
    _spec = importlib.machinery.ModuleSpec("fair_adapter", None, is_package=True)
    _spec.submodule_search_locations = [str(Path(__file__).resolve().parents[1])]
    sys.modules["fair_adapter"] = importlib.util.module_from_spec(_spec)

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if sys.platform == "linux":  # a GPU's memory in pieces that grow: less of it is lost between sizes
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.trainer.configuration.config import Config, load_config, options

STOPPED = 130  # exit code after Ctrl-C, as shells have it
# Iterations in a row that are not finite: twice what finding a scale for float16 takes; else there is none
MOST_SKIPPED, MOST_SKIPPED_UNSCALED = 25, 3


def train(config: Config, watch: Callable[[int], None] = lambda iteration: None) -> tuple[Path, bool]:
    """Train, or go on where a checkpoint is. Returns the adapter file and whether it is finished.

    watch: called after every iteration with the number of those done.
    """
    from fair_adapter.trainer.configuration.settings import plain
    from fair_adapter.trainer.running.processes import Processes
    from fair_adapter.trainer.running.progress import Progress, Running, figures
    from fair_adapter.trainer.training.logs import Log
    from fair_adapter.trainer.training.samples import Samples
    from fair_adapter.trainer.training.setup import adapter_info, left_to_chance, prepare, relabel
    from fair_adapter.trainer.training.state import Interruption, read_state, save_state, take_up

    run, total, folder = config.run, config.optimizer.iterations, Path(config.run.output)
    path = folder / "adapter.safetensors"
    processes = Processes(run.device, config.optimizer.images)
    # read by the first process alone: machines need not share the folder
    state, written = processes.from_first(lambda: (read_state(folder, path, config), path.exists()))
    iteration = state["iteration"] if state else 0
    if iteration >= total and written:
        processes.from_first(lambda: relabel(path, config))
        return path, True
    with Progress(run.name, total, iteration, quiet=not processes.first) as progress:
        training = prepare(config, processes, progress.say)
        chance = left_to_chance(config, training.space.default)
        if chance and processes.first:
            progress.say(chance)
        if state:
            take_up(state, folder, training.optimizer)
        samples = Samples(training) if run.sample_every and processes.first else None
        running = Running()

        def save() -> None:
            """The adapter first: a checkpoint says that everything up to it is written. The very first time
            the checkpoint: an adapter without one is nothing to go on from."""
            if not processes.first:
                return
            if not iteration:
                save_state(folder, iteration, training.optimizer, config)
            with training.optimizer.averaged():
                adapter = training.adaptation.to_adapter(adapter_info(training, iteration))
                adapter.write(path, overwrite=True)
            if iteration:
                save_state(folder, iteration, training.optimizer, config)

        if not iteration or not written:
            save()  # shows before any work that the folder can be written to
        log = Log(folder, run, iteration, plain(config)) if processes.first else None
        skipped = 0  # in a row
        most = MOST_SKIPPED if config.model.dtype == "float16" else MOST_SKIPPED_UNSCALED
        with Interruption() as interruption:
            progress.begin()
            while iteration < total:
                outcome = training.iterate(iteration, lambda: interruption.asked)
                iteration += 1
                means = running.add(outcome)
                progress.advance(figures(means))
                skipped = skipped + 1 if outcome.skipped else 0
                if outcome.skipped:
                    progress.say(f"iteration {iteration}: a number was not finite, no step was taken")
                if log:
                    log.iteration(outcome, means)
                if samples and log and iteration % run.sample_every == 0:
                    log.sample(*samples.draw(folder, iteration), iteration)
                if skipped == most or (skipped and iteration == total):
                    raise FairAdapterError(
                        f"the last {skipped} of {iteration} iterations gave numbers that are not finite, and "
                        "no step was taken; train with model.dtype=bfloat16 or float32, or with a lower "
                        "optimizer.lr, into another run.output"
                    )
                if outcome.stop or iteration % run.save_every == 0 or iteration == total:
                    save()
                watch(iteration)
                if outcome.stop:
                    break
            if log:
                log.close()
            processes.close()
        training.adaptation.detach()
    return path, iteration >= total


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if arguments[:1] == ["--options"]:
            from fair_adapter.trainer.running.tables import print_table

            print_table(["key", "default", "what it is"], [list(row) for row in options()])
            return 0
        if not arguments or arguments[0].startswith("-"):
            print(__doc__)
            return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
        from fair_adapter.trainer.running.memory import REMEDY, memory_told

        with memory_told(REMEDY):
            path, finished = train(load_config(arguments[0], arguments[1:]))
    except FairAdapterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped at once; the last checkpoint is what the same command goes on from", file=sys.stderr)
        return STOPPED
    if not finished:
        print("stopped and saved; the same command goes on from here", file=sys.stderr)
        return STOPPED
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
