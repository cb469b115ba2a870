"""The one exception family of the project."""

from __future__ import annotations


class FairAdapterError(ValueError):
    """Something a user can put right.

    The message is one line: it names the file or option, what was expected, what was found and the
    remedy. Command-line scripts print it as ``error: ...`` and exit with code 2.
    """
