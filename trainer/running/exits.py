"""How the programs end: exit codes, and one line where something is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable

from ...shared.errors import FairAdapterError

WRONG = 2  # exit code after an error that was told
STOPPED = 130  # after Ctrl-C, as shells have it


def exit_code(work: Callable[[], None], *also: type[Exception]) -> int:
    """Does the work of a program that goes on where it was stopped; returns its exit code.

    also: errors that are told in one line too, besides `FairAdapterError` and `OSError`.
    """
    try:
        work()
    except (FairAdapterError, OSError, *also) as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return STOPPED
    return 0
