"""Shares of a target as text and as tables: what `TargetDistribution` reads, writes and rounds."""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import FairAdapterError
from .limits import MAX_ATTRIBUTES, MAX_CELLS

if TYPE_CHECKING:
    from .attributes import Attribute

RESOLUTION = 10**10  # probabilities are multiples of 1 / RESOLUTION, so that equality and hashing are exact
ROUNDING = 1e-3 + 1e-9  # relative error of a sum that is taken for rounding, "33.3/33.3/33.3"


Block = tuple[tuple["Attribute", ...], list[str]]  # attributes and a percentage for each of their cells


def check_axes(attributes: Sequence[Attribute]) -> None:
    """That these can be the axes of one table: different ones, and not too many cells.

    Raises FairAdapterError.
    """
    names = [a.name for a in attributes]
    if not names or len(set(names)) != len(names):
        raise FairAdapterError(f"target: needs one or more different attributes, found {names[:20]}")
    cells = math.prod(len(a) for a in attributes)
    if len(names) > MAX_ATTRIBUTES or cells > MAX_CELLS:
        raise FairAdapterError(
            f"target: expected at most {MAX_ATTRIBUTES} attributes with {MAX_CELLS} joint classes, found "
            f"{len(names)} with {cells}"
        )


def write_block(block: Block) -> str:
    """ "attribute=class:share,..." of a block; joint classes that have no share are left out."""
    attributes, numbers = block
    cells = ("*".join(cell) for cell in itertools.product(*(a.classes for a in attributes)))
    shares = [(cell, _short(number)) for cell, number in zip(cells, numbers)]
    if len(attributes) > 1:
        shares = [(cell, number) for cell, number in shares if number != "0"]
    return "*".join(a.name for a in attributes) + "=" + ",".join(f"{c}:{number}" for c, number in shares)


def _short(number: str) -> str:
    return number.rstrip("0").rstrip(".") if "." in number else number


def read_shares(text: str, block: str) -> str | list[float] | dict[str, float]:
    """The right side of a block: "equal", shares in class order, or shares by class.

    block: the whole block, for the error. Raises FairAdapterError for anything else.
    """
    if text == "equal":
        return text
    if ":" not in text:
        return [_number(part, block) for part in text.split("/")]
    shares: dict[str, float] = {}
    for entry in text.split(","):
        cell, separator, share = entry.partition(":")
        cell = "*".join(part.strip() for part in cell.split("*"))
        if not separator:
            raise FairAdapterError(
                f"target {block!r}: {entry.strip()!r} has no share, expected 'class:share'"
            )
        if cell in shares:
            raise FairAdapterError(f"target {block!r}: {cell!r} is given twice")
        shares[cell] = _number(share, block)
    return shares


def _number(text: str, block: str) -> float:
    try:
        return float(text)
    except ValueError:
        remedy = "; write ';' between attributes" if "=" in text else ""
        raise FairAdapterError(f"target {block!r}: {text.strip()!r} is not a number{remedy}") from None


def block_table(block: Sequence[Attribute], shares: Any) -> Any:
    """Shares of one block of a target as an array-like for the constructor."""
    shape = tuple(len(a) for a in block)
    if isinstance(shares, str):
        if shares != "equal":
            raise FairAdapterError(f"target {'*'.join(a.name for a in block)}={shares!r}: expected 'equal'")
        return np.full(shape, 1.0 / np.prod(shape))
    if not isinstance(shares, Mapping):
        return shares
    table = np.zeros(shape)
    expected = "*".join(a.name for a in block)
    for cell, share in shares.items():
        parts = cell.split("*") if isinstance(cell, str) else cell
        if not isinstance(parts, Sequence) or len(parts) != len(block):
            raise FairAdapterError(f"target {expected}: cell {cell!r} needs one class for each of {expected}")
        if isinstance(share, bool) or not isinstance(share, Real):
            raise FairAdapterError(f"target {expected}: the share of {cell!r} is no number: {share!r}")
        table[tuple(a.index(str(p).strip()) for a, p in zip(block, parts))] = share
    return table


def canonical(shares: Any, attributes: Sequence[Attribute]) -> tuple[float, ...]:
    """Validate shares and round them to probabilities on the grid of RESOLUTION that sum to exactly 1."""
    names = "*".join(a.name for a in attributes)
    try:
        table = np.asarray(shares, dtype=np.float64)
    except (TypeError, ValueError):
        raise FairAdapterError(f"target {names}: shares are not a table of numbers: {shares!r}") from None
    shape = tuple(len(a) for a in attributes)
    if table.shape != shape and table.shape != (int(np.prod(shape)),):
        classes = " x ".join("/".join(a.classes) for a in attributes)
        raise FairAdapterError(
            f"target {names}: expected shares of {classes}, shape {shape}, found shape {table.shape}"
        )
    table = table.reshape(-1)
    if not np.isfinite(table).all() or (table < 0).any():
        raise FairAdapterError(f"target {names}: shares must be finite and not negative: {table.tolist()}")
    total = float(table.sum())
    if abs(total - 1) > ROUNDING and abs(total - 100) > 100 * ROUNDING:
        raise FairAdapterError(
            f"target {names}: shares sum to {total:g}, expected 100 (or 1); write 'equal' for equal shares"
        )
    units = np.rint(table / total * RESOLUTION).astype(np.int64)
    units[int(units.argmax())] += RESOLUTION - int(units.sum())  # now the sum is exact
    return tuple(int(u) / RESOLUTION for u in units)


def nearest(name: str, known: Iterable[str], what: str) -> str:
    """`name` if it is known, else an error that suggests the nearest known one."""
    known = tuple(known)
    if name in known:
        return name
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise FairAdapterError(f"unknown {what} {name!r}, expected one of {', '.join(known)}{hint}")


def position(name: str, known: Sequence[str], what: str) -> int:
    """Place of `name` among the known; an unknown one is the error of `nearest`."""
    return list(known).index(nearest(name, known, what))
