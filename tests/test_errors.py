"""Other libraries' exceptions and texts of unknown origin as one line."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fair_adapter.shared.errors import one_line, reason

BOLD, PLAIN = "\x1b[1m", "\x1b[0m"


@given(st.text(alphabet=st.characters(exclude_categories=()), max_size=300), st.integers(10, 80))
def test_any_text_becomes_a_line_that_can_be_shown(text: str, limit: int) -> None:
    line = one_line(text, limit)
    assert len(line) <= limit and line.isprintable()
    json.loads(json.dumps(line, ensure_ascii=False).encode("utf-8"))


def test_terminal_escapes_go_whole() -> None:
    assert one_line(f"two options, {BOLD}only one is safe{PLAIN}.") == "two options, only one is safe."
    assert one_line("\x1b]8;;https://example.com\x07link\x1b]8;;\x07") == "link"
    assert one_line("a\tb\r\nc\x00\u202e") == "a b c"
    assert one_line("x" * 300, 20) == "x" * 17 + "..."


@pytest.mark.parametrize(
    ("text", "type_name"),
    [  # torch 2.1, 2.4, 2.6, and of blocked modules
        ("Weights only load failed. Re-running.\nUnsupported class numpy.core.multiarray.scalar", "scalar"),
        (f"{BOLD}Weights{PLAIN}.\n\tUnsupported global: GLOBAL argparse.Namespace was not", "Namespace"),
        ("Trying to load unsupported GLOBAL posix.system whose module posix is blocked.", "posix.system"),
    ],
)
def test_refused_pickles_name_the_type(text: str, type_name: str) -> None:
    line = reason(RuntimeError(text))
    assert line.startswith("an object of type") and f"{type_name}, which is never opened" in line
    assert "weights_only" not in line


def test_an_exception_without_a_word_is_its_type() -> None:
    assert reason(EOFError()) == "EOFError"
    assert reason(KeyError("a.b.")) == "'a.b.'"
