"""Loading from a model hub without its client's running commentary."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

from .switches import Switch


def quiet() -> contextlib.AbstractContextManager[None]:
    """No log messages inside. Offline, hub clients log two lines for each of a dozen attempts; the error that
    they raise in the end is what a user is told. Threads may overlap; one that is `switches.apart`, beside a
    sampler, leaves the log as it is."""
    return NO_LOG.changed()


def _switch_log_off() -> Callable[[], None]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    return lambda: logging.disable(before)


NO_LOG = Switch(_switch_log_off)
