"""Trains a fairness adapter.

    python trainer/train.py CONFIG.yaml [key=value ...]      trainer/configs has examples
    python trainer/train.py --options                        lists every key with its default
    torchrun --nproc_per_node=2 trainer/train.py CONFIG.yaml ...    two GPUs (CPUs: README.md)

Writes into run.output: adapter.safetensors (the averaged weights, for the hosts), state.pt (to go on from),
log.jsonl, samples/ and TensorBoard files. The same command goes on with an interrupted run; Ctrl-C saves
first. (Launchers kill after 30 seconds: TORCH_ELASTIC_SHUTDOWN_TIMEOUT=300 gives a long iteration its time.)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if sys.platform == "linux":  # a GPU's memory in pieces that grow: less of it is lost between sizes
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.trainer.configuration.config import load_config, options
from fair_adapter.trainer.running.exits import STOPPED


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
        from fair_adapter.trainer.training.run import train

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
