"""One JSON object from a file as values that can be shown anywhere: the edge of all that adapters say.

JSON knows whole numbers of any length, 1e999 and halves of surrogate pairs, Python reads them all, and they
break where they are formatted, encoded or sent, long after the file was read. Here they are refused.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping
from typing import Any, TypeGuard

from .errors import one_line
from .limits import MAX_DEPTH, MAX_ENTRY, MAX_NAME, MAX_NUMBER, MAX_TEXT, MAX_WHOLE
from .tensor_file import once


def read_object(text: str) -> dict[str, Any]:
    """A JSON object of finite numbers, encodable texts, and lists and objects of these, nothing named twice.

    Raises ValueError for anything else, and beyond the limits of `limits`.
    """
    if len(text) > MAX_ENTRY:
        raise ValueError(f"{len(text)} characters, more than {MAX_ENTRY}")
    try:
        table = json.loads(
            text, parse_int=_whole, parse_float=_float, parse_constant=_constant, object_pairs_hook=once
        )
    except RecursionError:
        raise ValueError(f"lists or objects more than {MAX_DEPTH} deep") from None
    if not isinstance(table, dict):
        raise ValueError(f"a {type(table).__name__} instead of an object")
    _check(table, 0)
    return table


def name_of(table: Mapping[str, Any], key: str, default: str | None = None) -> str:
    """A text of one line, up to MAX_NAME characters; control characters count as blanks.

    default: where the key is missing; without one it must be there. Raises ValueError, or KeyError.
    """
    return _text(table, key, default, MAX_NAME, "")


def text_of(table: Mapping[str, Any], key: str) -> str:
    """A text of any number of lines, up to MAX_TEXT characters; empty if the key is missing.

    Raises ValueError.
    """
    return _text(table, key, "", MAX_TEXT, "\n\t")


def object_of(table: Mapping[str, Any], key: str) -> dict[str, Any]:
    """An object, empty if the key is missing. Raises ValueError."""
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise ValueError(f"{key}: expected an object, found {_kind(value)}")
    return value


def list_of(table: Mapping[str, Any], key: str) -> list[Any]:
    """A list that must be there. Raises ValueError."""
    value = table.get(key)
    if not isinstance(value, list):
        raise ValueError(f"{key}: expected a list, found {_kind(value)}")
    return value


def whole(value: object, what: str, limit: int) -> int:
    """A whole number from 1 to `limit`. Raises ValueError."""
    if type(value) is not int or not 1 <= value <= limit:
        raise ValueError(f"{what}: expected a whole number from 1 to {limit}, found {one_line(value, 40)}")
    return value


def is_number(value: object) -> TypeGuard[float]:
    """Whether this is a finite number within the limits and no truth value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= (MAX_WHOLE if isinstance(value, int) else MAX_NUMBER)


def _text(table: Mapping[str, Any], key: str, default: str | None, limit: int, kept: str) -> str:
    value = table[key] if default is None else table.get(key, default)
    if not isinstance(value, str):
        raise ValueError(f"{key}: expected a text, found {_kind(value)}")
    if len(value) > limit:
        raise ValueError(f"{key}: expected at most {limit} characters, found {len(value)}")
    return "".join(" " if _controls(c) and c not in kept else c for c in value)


def _kind(value: object) -> str:
    return "none" if value is None else f"a {type(value).__name__}"


def _controls(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Zl", "Zp")


def _whole(digits: str) -> int:
    if len(digits) > 21 or abs(int(digits)) > MAX_WHOLE:
        raise ValueError(f"the whole number {one_line(digits, 24)} of more than 64 bits")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value) or abs(value) > MAX_NUMBER:
        raise ValueError(f"the number {one_line(digits, 24)}, beyond {MAX_NUMBER:g}")
    return value


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _check(value: Any, depth: int) -> None:
    """That lists and objects are not too deep and texts are texts."""
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise ValueError(f"half a surrogate pair in {one_line(value, 40)!r}")
    elif isinstance(value, dict | list):
        if depth >= MAX_DEPTH:
            raise ValueError(f"lists or objects more than {MAX_DEPTH} deep")
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            _check(part, depth + 1)
