"""A whole run: iterations from the last checkpoint to the last iteration, the adapter file along the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...shared.errors import FairAdapterError
from ..configuration.config import Config
from ..configuration.settings import plain
from ..running.processes import Processes
from ..running.progress import Progress
from .labels import adapter_info, relabel
from .logs import Log
from .means import RunningMeans, figures
from .samples import Samples
from .setup import left_to_chance, prepare
from .state import Interruption, read_state, save_state, take_up

# Iterations in a row that are not finite: twice what finding a scale for float16 takes; else there is none
MOST_SKIPPED, MOST_SKIPPED_UNSCALED = 25, 3


def train(config: Config, watch: Callable[[int], None] = lambda iteration: None) -> tuple[Path, bool]:
    """Train, or go on where a checkpoint is. Returns the adapter file and whether it is finished.

    watch: called after every iteration with the number of those done.
    """
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
        running = RunningMeans()

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
