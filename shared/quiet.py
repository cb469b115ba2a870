"""Loading from a model hub without its client's running commentary."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No log messages inside. Offline, hub clients log two lines for each of a dozen attempts; the error that
    they raise in the end is what a user is told."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
