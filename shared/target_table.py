"""Targets by prompt: a table that gives each prompt a target of its own.

    pattern,target,source,year
    head gardener,"gender=female:40,male:60",Orchard census,2031
    gardener,gender=25/75;race=50/30/20,Orchard census,2031
    lamplighter,race=equal,,

- The first line names the columns. `pattern`, `target`, `source` and `year` must be there, in any order;
  others are the writer's own. Source and year may be left empty; they are shown beside the target.
- A pattern is found in a prompt as whole words, whatever their case: "nurse" in "a nurse, smiling" and not in
  "nursery" or "nurses". Blanks, "-", "_" and brackets between words are alike; other marks keep words apart.
  Names of files ("<lora:nurse:1>", "embedding:nurse") are no words of a prompt.
- The first row whose pattern is found wins. A prompt without one takes the default, and whoever asks is told.
- A target is a text as everywhere (`attributes`); one with commas stands in quotation marks. Attributes that
  it does not name keep the default's shares.

Rows are counted as a spreadsheet counts them: the names of the columns are row 1, empty rows count.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .attributes import KNOWN, Attribute, TargetDistribution
from .errors import FairAdapterError, one_line
from .limits import MAX_NAME, MAX_PATTERN, MAX_ROWS, MAX_TABLE

COLUMNS = ("pattern", "target", "source", "year")
_FILES = re.compile(r"<[^<>]*:[^<>]*>|\bembedding:\S+", re.IGNORECASE)
_JOINING = str.maketrans("-_()[]{}", " " * 8)
_TOKEN = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class TargetRow:
    """number: of the row in the file.  pattern, source: as they were written.  year: None without one."""

    number: int
    pattern: str
    target: TargetDistribution
    source: str = ""
    year: int | None = None

    @property
    def origin(self) -> str:
        """Where its shares come from, "Orchard census, 2031"; empty where the row doesn't say."""
        return ", ".join(part for part in (self.source, "" if self.year is None else str(self.year)) if part)


@dataclass(frozen=True)
class Choice:
    """The target of a prompt.

    row: whose it is, None for the default.  target: over the row's attributes, then those of the default that
    the row does not name; None where there is no default either.  told: where it comes from, one line.
    """

    row: TargetRow | None
    target: TargetDistribution | None
    told: str


@dataclass(frozen=True)
class TargetTable:
    """name: of the file, for messages.  rows: in the order in which they are looked through."""

    name: str
    rows: tuple[TargetRow, ...]

    @classmethod
    def parse(cls, text: str, name: str, attributes: Iterable[Attribute] = KNOWN) -> TargetTable:
        """Read the text of a file.  attributes: those that its targets may name.

        Raises FairAdapterError, one line with file, row and remedy, for whatever is not as the module says.
        """
        rows = _records(text.removeprefix("\ufeff"), name)  # spreadsheets begin UTF-8 with a mark
        places = _columns(rows[0], name)
        known, seen, found = tuple(attributes), {}, []
        for number, cells in enumerate(rows[1:], 2):
            if not any(cell.strip() for cell in cells):
                continue
            where = f"{name}, row {number}"
            if len(cells) != len(rows[0]):
                raise FairAdapterError(
                    f"{where}: expected {len(rows[0])} columns, found {len(cells)}; put a target with commas "
                    'into quotation marks: "gender=female:40,male:60"'
                )
            row = _row(
                number, {column: cells[place].strip() for column, place in places.items()}, where, known
            )
            _check_reached(row, seen, where)
            seen[_words(row.pattern)] = row
            found.append(row)
        if not found:
            raise FairAdapterError(
                f"{name}: expected a row for each pattern, found none; write one below the names"
            )
        return cls(name, tuple(found))

    def match(self, prompt: str) -> TargetRow | None:
        """The first row whose pattern is found in a prompt."""
        words = _words(prompt)
        return next((row for row, pattern in self._patterns if pattern in words), None)

    def choose(self, prompt: str, default: TargetDistribution | None = None) -> Choice:
        """The target of a prompt.  default: for prompts without a row, and what a row does not name."""
        row = self.match(prompt)
        if row is None:
            return Choice(
                None, default, f"{self.name}: no row for {one_line(prompt, 60)!r}, so the default target"
            )
        told = f"{self.name}, row {row.number}: {row.pattern}" + (f" ({row.origin})" if row.origin else "")
        return Choice(row, beside(row.target, default), told)

    @cached_property
    def _patterns(self) -> list[tuple[TargetRow, str]]:
        return [(row, _words(row.pattern)) for row in self.rows]


def beside(target: TargetDistribution, default: TargetDistribution | None) -> TargetDistribution:
    """The target with the default's shares of what it does not name, independent of its own."""
    rest = [name for name in default.names if name not in target.names] if default is not None else []
    if default is None or not rest:
        return target
    axes = tuple(default.attribute(name) for name in rest)
    kept = TargetDistribution(axes, default.marginal(*rest))  # type: ignore[arg-type]
    parts = [kept]
    if kept.is_product:  # without the rounding of joint shares that sums bring along
        each = (kept.marginal(name).round(9) for name in rest)
        parts = [TargetDistribution((axis,), shares) for axis, shares in zip(axes, each)]  # type: ignore[arg-type]
    table = target.probabilities
    for part in parts:
        table = np.multiply.outer(table, part.probabilities)
    return TargetDistribution((*target.attributes, *axes), table)  # type: ignore[arg-type]


def in_order(target: TargetDistribution, default: TargetDistribution) -> TargetDistribution:
    """`beside`, with the default's attributes in their order; the target may name no others."""
    whole = beside(target, default)
    return TargetDistribution(default.attributes, whole.marginal(*default.names))  # type: ignore[arg-type]


def mean_target(targets: Sequence[TargetDistribution]) -> TargetDistribution:
    """What several targets over the same attributes ask for together, each counted once."""
    return TargetDistribution(
        targets[0].attributes, np.mean([target.probabilities for target in targets], axis=0)
    )  # type: ignore[arg-type]


# ---- reading


def _records(text: str, name: str) -> list[list[str]]:
    """The cells of every row, the names of the columns first."""
    if "\0" in text:
        raise FairAdapterError(f"{name}: expected text in UTF-8, found zero bytes; save it as CSV in UTF-8")
    if len(text) > MAX_TABLE:
        raise FairAdapterError(
            f"{name}: expected at most {MAX_TABLE} characters, found {len(text)}; split it"
        )
    if not text.strip():
        raise FairAdapterError(
            f"{name}: expected the line {','.join(COLUMNS)} and rows below it, found nothing; write them"
        )
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[list[str]] = []
    try:
        for cells in reader:
            rows.append(cells)
            if len(rows) > MAX_ROWS:
                raise FairAdapterError(f"{name}: expected at most {MAX_ROWS} rows, found more; split it")
    except csv.Error as error:
        raise FairAdapterError(
            f"{name}, row {len(rows) + 1}: expected CSV ({error}); close quotation marks and write one "
            "within them twice"
        ) from error
    return rows


def _columns(header: Sequence[str], name: str) -> dict[str, int]:
    """Column -> its place in a row."""
    names = [cell.strip().lower() for cell in header]
    if len(names) == 1:
        for mark, word in ((";", "semicolons"), ("\t", "tabs")):
            if mark in names[0]:
                raise FairAdapterError(
                    f"{name}, row 1: expected commas between the columns, found {word}; save it as CSV with "
                    "commas"
                )
    missing = [column for column in COLUMNS if column not in names]
    twice = [column for column in COLUMNS if names.count(column) > 1]
    if missing or twice:
        told = f"no '{missing[0]}'" if missing else f"'{twice[0]}' twice"
        raise FairAdapterError(
            f"{name}, row 1: expected the columns {','.join(COLUMNS)}, found {told} in "
            f"{one_line(','.join(names), 120)!r}; write their names into the first row, each once"
        )
    return {column: names.index(column) for column in COLUMNS}


def _row(number: int, cells: dict[str, str], where: str, known: Sequence[Attribute]) -> TargetRow:
    pattern, source, year = cells["pattern"], cells["source"], cells["year"]
    if not re.search(r"\w", _words(pattern)):
        raise FairAdapterError(
            f"{where}: expected a pattern of words, found {one_line(pattern, 60)!r}; write one"
        )
    for column, most in (("pattern", MAX_PATTERN), ("source", MAX_NAME)):
        if len(cells[column]) > most:
            raise FairAdapterError(
                f"{where}: expected a {column} of at most {most} characters, found {len(cells[column])}; "
                "shorten it"
            )
    if year and not re.fullmatch(r"[12]\d{3}", year):
        raise FairAdapterError(
            f"{where}: expected a year such as 2031 or none, found {one_line(year, 40)!r}; correct it"
        )
    try:
        target = TargetDistribution.parse(cells["target"], known)
    except FairAdapterError as error:
        raise FairAdapterError(
            f"{where}: {one_line(error, 400)}; correct the target of '{one_line(pattern, 60)}'"
        ) from error
    return TargetRow(
        number, one_line(pattern, MAX_NAME), target, one_line(source, MAX_NAME), int(year) if year else None
    )


def _check_reached(row: TargetRow, seen: dict[str, TargetRow], where: str) -> None:
    """That no earlier row is found wherever this one is: it would never be used.

    seen: earlier rows by the words of their patterns. Raises FairAdapterError.
    """
    words = _words(row.pattern)
    if words in seen:
        raise FairAdapterError(
            f"{where}: expected each pattern once, found '{row.pattern}' in row {seen[words].number} too; "
            "keep one"
        )
    tokens = words.split()
    for first in range(len(tokens)):
        for last in range(first + 1, len(tokens) + 1):
            earlier = seen.get(_spaced(tokens[first:last]))
            if earlier is not None:
                raise FairAdapterError(
                    f"{where}: '{row.pattern}' is never reached, because row {earlier.number}, "
                    f"'{earlier.pattern}', is found first; move it above row {earlier.number}"
                )


def _words(text: str) -> str:
    """A text as words and marks with a blank around each, so that whole words are found by `in`."""
    plain = unicodedata.normalize("NFKC", _FILES.sub(" , ", text)).casefold().translate(_JOINING)
    return _spaced(_TOKEN.findall(plain))


def _spaced(tokens: Sequence[str]) -> str:
    return f" {' '.join(tokens)} "
