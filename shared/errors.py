"""The one exception family of the project, and what other people's exceptions say in one line."""

from __future__ import annotations

import re

_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")  # of terminals
_BREAK = re.compile(r" *\n[ \n]*")  # blanks alone stay: a path may have two of them
_REFUSED = re.compile(  # how torch 2.1, 2.4 and 2.6 on tell what `weights_only=True` does not open
    r"Unsupported (?:class|operand|global: GLOBAL)[ ]([A-Za-z_][\w.]*)|unsupported GLOBAL ([A-Za-z_][\w.]*)"
)


class FairAdapterError(ValueError):
    """Something a user can put right.

    The message is one line: it names the file or option, what was expected, what was found and the
    remedy. Command-line scripts print it as ``error: ...`` and exit with code 2.
    """


def one_line(text: object, limit: int = 200) -> str:
    """A text of unknown origin on one line that every terminal, page and JSON encoder takes.

    Terminal escapes go; line ends and control characters become blanks, halves of surrogate pairs question
    marks; at most `limit` characters, a longer text ends in "...".
    """
    plain = _ESCAPE.sub("", str(text)).encode("utf-8", "replace").decode()
    plain = _BREAK.sub(" ", "".join(c if c.isprintable() else "\n" for c in plain)).strip()
    return plain if len(plain) <= limit else plain[: limit - 3].rstrip() + "..."


def reason(error: BaseException, limit: int = 200) -> str:
    """What another library's exception says, as `one_line`; its type if it says nothing.

    Of torch's page-long refusal to run a pickle's code only the refused type is told: the rest advises to
    run the code.
    """
    refused = _REFUSED.search(str(error))
    if refused:
        return one_line(f"an object of type {refused[1] or refused[2]}, which is never opened", limit)
    return one_line(str(error).strip().rstrip("."), limit) or type(error).__name__
