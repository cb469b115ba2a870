"""Renders portraits of people who don't exist, with known gender, race mix, age and skin tone.

    python trainer/portrait/render.py --out FOLDER --count N [--processes P] [--size 160] [--seed 0]
        [--assets DIR]

Picture and labels of an index depend on the seed and the index alone. The same command again, whenever it was
stopped, renders what is missing; a larger --count goes on from there. FOLDER gets 000/000000.png, ... (RGBA:
put any backdrop behind them), labels.csv and render.json. The first start downloads the assets (MakeHuman's,
CC0) and Blender's Python module (PyPI bpy, GPL-3.0) into DIR; --source NAME=PATH gives them from elsewhere.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.trainer.portrait.rendering import environment, folder, plan, sources
from fair_adapter.trainer.portrait.rendering.pool import Workers
from fair_adapter.trainer.running.exits import exit_code
from fair_adapter.trainer.running.progress import Progress

VERSION = 2  # of the design and the looks; raised whenever a picture or label of an index changes
LABELS_EVERY = 60.0  # seconds
WORKER = Path(__file__).resolve().parent / "rendering/worker.py"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Render labelled portraits of people who don't exist.")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the pictures, outside the repository"
    )
    parser.add_argument(
        "--count", type=_positive, required=True, help="how many pictures the folder is to hold"
    )
    parser.add_argument("--processes", type=_positive, default=1, help="one processor core each")
    parser.add_argument("--size", type=_positive, default=160, help="pixels a side")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other people")
    parser.add_argument("--samples", type=_positive, default=16, help="light paths a pixel")
    parser.add_argument("--bounces", type=_positive, default=2, help="of light")
    parser.add_argument("--no-denoise", action="store_true", help="for 64 samples and more")
    parser.add_argument(
        "--assets",
        type=Path,
        default=Path("runs/portrait_assets"),
        help="assets and Blender, kept between runs",
    )
    parser.add_argument(
        "--source", action="append", default=[], metavar="NAME=PATH", help="a source that is already here"
    )
    parser.add_argument("--blender", type=Path, help="an interpreter that has bpy, numpy and Pillow")
    options = parser.parse_args(arguments)
    if options.seed < 0 or not 32 <= options.size <= 1024:
        parser.error("--seed: expected 0 or more; --size: expected 32 to 1024")
    return options


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {value}")
    return value


def ready_assets(options: argparse.Namespace) -> str:
    """The fingerprint of the assets, laid out if they aren't there."""
    given = {}
    for text in options.source:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise FairAdapterError(f"--source {text}: expected NAME=PATH")
        given[name] = Path(path)
    place = options.assets / "assets"
    return sources.fingerprint(place) or sources.lay_out(place, given)


def render(options: argparse.Namespace) -> None:
    """Everything that `options` ask for and that isn't there yet."""
    person = partial(plan.person, options.seed)
    mark = ready_assets(options)
    settings = {
        "version": VERSION,
        "seed": options.seed,
        "size": options.size,
        "samples": options.samples,
        "bounces": options.bounces,
        "denoise": not options.no_denoise,
        "assets": mark,
        "blender": environment.BLENDER,
    }
    folder.check(options.out, settings)
    folder.check_labels(options.out, person)
    done = folder.Done(options.out, options.count, options.size)
    todo = done.missing(options.count)
    if done.damaged:
        print(f"{done.damaged} damaged pictures are rendered again", flush=True)
    if todo:
        python = _blender(options)
        numbers = (options.seed, options.size, options.samples, options.bounces, int(not options.no_denoise))
        command = [
            str(python),
            str(WORKER),
            str(options.assets / "assets"),
            str(options.out),
            *map(str, numbers),
        ]
        _work(Workers(command, options.processes, options.out), todo, done, options.count, person)
    done.write_labels(person)
    print(f"{options.out}: {len(done.indices)} pictures, {folder.LABELS}", flush=True)


def _blender(options: argparse.Namespace) -> Path:
    if options.blender is None:
        return environment.ready_environment(options.assets / "blender")
    if not environment.has_blender(options.blender):
        raise FairAdapterError(
            f"--blender {options.blender}: expected a Python {'.'.join(map(str, environment.PYTHON))} "
            "that imports bpy "
            "(PyPI bpy, GPL-3.0), numpy and PIL, found none; leave the option out and one is set up"
        )
    return options.blender


def _work(workers: Workers, todo: list[int], done: folder.Done, count: int, person) -> None:
    seconds, written = 0.0, time.monotonic()
    try:
        with Progress("pictures", count, count - len(todo)) as progress:
            for n, (index, cost) in enumerate(workers.run(todo), 1):
                done.indices.add(index)
                seconds += cost
                progress.advance(f"{seconds / n:.2f} processor seconds each")
                if time.monotonic() - written > LABELS_EVERY:
                    done.write_labels(person)
                    written = time.monotonic()
    except BaseException:
        with suppress(FairAdapterError):  # a full disk: the next start writes them
            done.write_labels(person)
        raise


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    return exit_code(lambda: render(options))


if __name__ == "__main__":
    sys.exit(main())
