"""Reading settings: YAML files and `key=value` overrides into documented, checked dataclasses.

A key that does not exist is an error that suggests the nearest one; a value of another type or out of bounds
is an error that says what was expected.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml

from ...shared.errors import FairAdapterError, reason

T = TypeVar("T")
LARGEST = {int: 2**31 - 1, float: 3.4e38}  # where no bound is given: what is trained is float32
SHOWN = 80  # characters of a wrong value
# PyYAML's own errors; dates and numbers that Python can't make; lists too deep in each other
UNREADABLE = (yaml.YAMLError, ValueError, OverflowError, RecursionError)


def option(default: Any, doc: str, **bounds: float) -> Any:
    """A documented field.

    bounds: of every number in it, also in lists and mappings: `least`, `most`, `below` and `above` (which it
    may not reach). Whatever they are, numbers are finite and no larger than 32 bits hold.
    """
    return field(default=default, metadata={"doc": doc, **bounds})


def read_tree(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The settings in a YAML file, those of `key=value` texts laid over them."""
    tree = _read_yaml(path)
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator or not key.strip():
            raise FairAdapterError(f"{text!r}: expected key=value, such as optimizer.lr=1e-4")
        _set(tree, key.strip(), _value(value, text))
    return tree


def _value(text: str, setting: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except UNREADABLE as error:
        raise FairAdapterError(f"{setting!r}: the value does not read as YAML ({reason(error)})") from error


class _Loader(yaml.SafeLoader):
    """YAML 1.2's floats: 5e-5 is a number. A key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$"),
    list("-+0123456789."),
)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        known = sorted(p.name for p in (Path(__file__).parents[1] / "configs").glob("*.yaml"))
        raise FairAdapterError(
            f"{path}: expected a configuration, found none that can be read; trainer/configs has "
            f"{', '.join(known)}"
        ) from error
    except UNREADABLE as error:
        raise FairAdapterError(f"{path}: expected YAML, found {reason(error)}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise FairAdapterError(f"{path}: expected sections such as 'optimizer:', found {type(tree).__name__}")
    return tree


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for part in parents:
        if not isinstance(tree.get(part), dict):
            tree[part] = {}
        tree = tree[part]
    if isinstance(value, dict) and isinstance(tree.get(leaf), dict):
        tree[leaf] = {**tree[leaf], **value}
    else:
        tree[leaf] = value


# ---- from plain values to dataclasses


def build(
    kind: type[T], tree: Mapping[str, Any], source: str, prefix: str = "", keys: Sequence[str] = ()
) -> T:
    """A dataclass from a mapping, every value checked against the annotation of its field.

    source: the file, for messages.  keys: all keys there are, for suggestions.
    """
    if not isinstance(tree, Mapping):
        raise FairAdapterError(f"{source}: {prefix.rstrip('.')}: expected settings, found {_shown(tree)}")
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values = {}
    for key, value in tree.items():
        if key not in known:
            raise FairAdapterError(
                f"{source}: unknown key '{prefix}{key}'{_suggestion(f'{prefix}{key}', keys)}"
            )
        if dataclasses.is_dataclass(hints[key]):
            values[key] = build(hints[key], value, source, f"{prefix}{key}.", keys)  # type: ignore[arg-type]
        else:
            values[key] = _convert(hints[key], value, f"{prefix}{key}", source)
            _check_bounds(known[key].metadata, values[key], f"{prefix}{key}", source)
    return kind(**values)


def _convert(hint: Any, value: Any, key: str, source: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, source, f"{key}.", [f"{key}.{f.name}" for f in dataclasses.fields(hint)])  # pyright: ignore[reportArgumentType]
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, key, source)
    if origin is Literal and value in arguments:
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        variable = len(arguments) == 2 and arguments[1] is Ellipsis
        if variable or len(value) == len(arguments):
            kinds = [arguments[0]] * len(value) if variable else arguments
            return tuple(_convert(k, v, f"{key}[{i}]", source) for i, (k, v) in enumerate(zip(kinds, value)))
    if origin is dict and isinstance(value, Mapping):
        return {str(k): _convert(arguments[1], v, f"{key}.{k}", source) for k, v in value.items()}
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        with suppress(OverflowError):
            return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise FairAdapterError(f"{source}: {key}: expected {_spelled(hint)}, found {_shown(value)}")


def _spelled(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    if hint in names:
        return names[hint]
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        return "a list" if kinds[-1] is Ellipsis else f"a list of {len(kinds)}"
    return "a mapping such as {name: value}"


def _check_bounds(metadata: Mapping[str, Any], value: Any, key: str, source: str) -> None:
    """Every number in a value, however deep."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            _check_bounds(metadata, item, f"{key}.{name}", source)
    elif isinstance(value, tuple):
        for i, item in enumerate(value):
            _check_bounds(metadata, item, f"{key}[{i}]", source)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        expected = _broken(metadata, value)
        if expected:
            raise FairAdapterError(f"{source}: {key}: expected {expected}, found {_shown(value)}")


def _broken(metadata: Mapping[str, Any], value: int | float) -> str | None:
    """The bounds that a number does not keep to, in words; None if it keeps to them."""
    if not math.isfinite(value):
        return "a finite number"
    least, most, below, above = (metadata.get(name) for name in ("least", "most", "below", "above"))
    if above is not None:
        return None if value > above else f"more than {above}"
    words = f"{least} or more"
    if most is not None:
        words = f"{least} to {most}"
    elif below is not None:
        words = f"{least} or more and less than {below}"
    elif abs(value) > LARGEST[type(value)]:
        return f"at most {LARGEST[type(value)]}"
    low, high = least is not None and value < least, most is not None and value > most
    return words if low or high or (below is not None and value >= below) else None


def _shown(value: Any) -> str:
    """A wrong value, short and on one line."""
    if isinstance(value, int) and value.bit_length() > 128:  # Python refuses to write out the longest
        return f"a whole number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _suggestion(key: str, keys: Sequence[str]) -> str:
    """The existing key that is most like an unknown one, by its full or its last name."""
    leaves = {name.rpartition(".")[2]: name for name in reversed(keys)}
    close = difflib.get_close_matches(key, keys, 1, 0.7)
    close += [leaves[n] for n in difflib.get_close_matches(key.rpartition(".")[2], leaves, 1, 0.5)]
    close += difflib.get_close_matches(key, keys, 1, 0.4)
    return f"; did you mean '{close[0]}'?" if close else "; `trainer/train.py --options` lists all keys"


def unknown(name: str, known: Sequence[str], what: str) -> FairAdapterError:
    """The error for a name that is none of the known ones; it suggests the nearest."""
    close = difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return FairAdapterError(f"unknown {what} '{name}', expected one of {', '.join(known)}{hint}")


# ---- views


def listed(default: Any, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(key, default, what it is) of every setting of nested dataclasses."""
    for f in dataclasses.fields(default):
        value = getattr(default, f.name)
        if dataclasses.is_dataclass(value):
            yield from listed(value, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", yaml_value(value), f.metadata["doc"]


def yaml_value(value: Any) -> str:
    """A setting as it is written in YAML, on one line."""
    text = yaml.safe_dump(plain(value), default_flow_style=True, width=10**6, sort_keys=False)
    return text.replace("\n...", "").strip()


def plain(value: Any) -> Any:
    """A configuration as JSON values: mappings, lists, texts, numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def differing(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """(key, old value, new value) where two trees differ."""
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from differing(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key}", a, b
