"""Renders the pictures whose numbers come in on standard input. Runs in Blender's Python, started by
render.py.

    python worker.py ASSETS OUT SEED SIZE SAMPLES BOUNCES DENOISE

Answers each number with one line of JSON: {"index": 3, "seconds": 1.2} (of the processor) or {"error":
"..."}. Ends when the input ends, also when render.py was killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path


def one_core() -> None:
    """Blender counts the processors once, when it is loaded: one here, a quarter less work in all."""
    if hasattr(os, "sched_setaffinity"):
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {sorted(allowed)[os.getpid() % len(allowed)]})
        import bpy  # noqa: F401  # pyright: ignore[reportMissingImports]

        os.sched_setaffinity(0, allowed)


def main(arguments: list[str]) -> int:
    assets, out = Path(arguments[0]), Path(arguments[1])
    seed, size, samples, bounces, denoise = map(int, arguments[2:])
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # render.py closes the input; the picture at hand is finished
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Blender tells of every tile
    one_core()
    from fair_adapter.trainer.portrait.rendering.assets import Assets
    from fair_adapter.trainer.portrait.rendering.labels import file_name
    from fair_adapter.trainer.portrait.rendering.plan import person
    from fair_adapter.trainer.portrait.rendering.scene import Quality, Studio

    try:
        studio = Studio(Assets(assets), Quality(size, samples, bounces, bool(denoise)))
        for line in sys.stdin:
            index, began = int(line), time.process_time()
            target = out / file_name(index)
            render_whole(studio, person(seed, index), target)
            print(
                json.dumps({"index": index, "seconds": time.process_time() - began}), file=answers, flush=True
            )
    except (OSError, ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())
        print(json.dumps({"error": text, "kind": type(error).__name__}), file=answers, flush=True)
        return 1
    return 0


def render_whole(studio, p, target: Path) -> None:
    """Writes the picture whole or not at all."""
    from PIL import Image

    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.stem}.{os.getpid()}.partial.png")
    try:
        studio.render(p, partial)
        with Image.open(partial) as image:
            image.load()
        os.replace(partial, target)
    except (OSError, RuntimeError, SyntaxError) as error:  # Blender tells of a full disk by a RuntimeError
        raise OSError(f"{target}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
