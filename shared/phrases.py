"""Phrase tables: how a class is said in a prompt, and which words of a prompt name it already.

A table is a CSV file in UTF-8 (commas or semicolons) that a user can copy and translate:

    attribute,class,phrase,names,unless
    (pattern),,"{gender} {age}, {race}",,
    gender,,a person,,
    gender,female,a woman,woman|women|she,
    race,black,Black,black|african american,~ hair|~ and white
    gender*race,female*black,une femme noire,,

The pattern says in which order the phrases stand, and what stands between them; attributes that it lacks
follow after a comma. Alternatives are separated by "|": phrases take turns, names are whole words of any
case, in which a hyphen is a blank. An empty class is what is said of an attribute that is not told. "unless"
holds what a name is no name in, "~" standing for the name. A row of several attributes, joined by "*" as in
targets, goes before those of each, for languages whose words agree with each other. A class without a row,
and a row without phrase or names, take those of the attribute's look (`ClassLook.words`), or the class.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .attributes import Attribute, is_word
from .errors import FairAdapterError, one_line

SHIPPED = Path(__file__).resolve().parent / "phrase_tables"
FOLDER, SUFFIX = "phrases", ".csv"  # of a user's tables, below the folder of adapters
DEFAULT = "english"
COLUMNS = ("attribute", "class", "phrase", "names", "unless")
PATTERN = "(pattern)"
MAX_BYTES, MAX_ROWS, MAX_PHRASE = 100_000, 1000, 200
_PLACE = re.compile(r"\{([^{}]*)\}")

Cell = frozenset[tuple[str, str]]  # (attribute, class) of each attribute of a row
Turn = Callable[[Cell, int], int]  # which of so many alternatives is next


@dataclass(frozen=True)
class Phrase:
    """A row: alternatives of what is said, names that a prompt may hold, and where those are none."""

    said: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()

    def named_in(self, prompt: str) -> bool:
        """Whether a prompt, spelled as by `plain`, holds one of the names where it is one."""
        for name in self.names:
            exceptions = [_words(text.replace("~", plain(name))) for text in self.unless]
            for found in _words(plain(name)).finditer(prompt):
                spans = [other.span() for text in exceptions for other in text.finditer(prompt)]
                if not any(first <= found.start() and found.end() <= last for first, last in spans):
                    return True
        return False


@dataclass(frozen=True)
class Pattern:
    """How phrases are joined.  texts: before, between and after the attributes, one more than those."""

    attributes: tuple[str, ...] = ()
    texts: tuple[str, ...] = ("",)

    def join(self, parts: Mapping[str, str]) -> str:
        """Those parts (attribute -> phrase) that there are; of attributes beyond the pattern after commas."""
        joined = ""
        for between, name in zip(self.texts, self.attributes):
            if name in parts:
                joined += (between if joined else "") + parts[name]
        others = [part for name, part in parts.items() if name not in self.attributes]
        middle = ", ".join([joined, *others] if joined else others)
        return f"{self.texts[0]}{middle}{self.texts[-1] if self.attributes else ''}" if middle else ""


@dataclass(frozen=True)
class PhraseTable:
    """rows: by their classes; what is said of an attribute that is not told by (attribute, "")."""

    name: str
    pattern: Pattern = Pattern()
    rows: Mapping[Cell, Phrase] = field(default_factory=dict)

    def phrase(self, classes: Mapping[str, str], attributes: Sequence[Attribute], turn: Turn) -> str:
        """One phrase that says these classes (attribute -> class), "" for none.

        attributes: those of the classes.  turn: chooses among alternatives.
        """
        if not classes:
            return ""
        return self.pattern.join(self._parts(classes, attributes, turn))

    def _parts(
        self, classes: Mapping[str, str], attributes: Sequence[Attribute], turn: Turn
    ) -> dict[str, str]:
        """Attribute -> what stands in its place; what a row of several says stands in the first one's."""
        order = list(self.pattern.attributes)
        order += [a.name for a in attributes if a.name not in order]
        told = frozenset(classes.items())
        parts: dict[str, str] = {}
        covered: set[str] = set()
        for cell in sorted(self.rows, key=lambda cell: (-len(cell), sorted(cell))):
            names = {name for name, _ in cell}
            if len(cell) > 1 and cell <= told and not names & covered and self.rows[cell].said:
                said = self.rows[cell].said
                parts[min(names, key=order.index)] = said[turn(cell, len(said))]
                covered |= names
        known = {a.name: a for a in attributes}
        for name in order:
            if name in covered:
                continue
            cell = frozenset({(name, classes.get(name, ""))})
            row = self.row(known[name], classes[name]) if name in classes else self.rows.get(cell, Phrase())
            if row.said:
                parts[name] = row.said[turn(cell, len(row.said))]
        return parts

    def row(self, attribute: Attribute, label: str) -> Phrase:
        """The row of a class, with what it lacks taken from the class's look."""
        words = attribute.looks[attribute.index(label)].words or (label,)
        own = self.rows.get(frozenset({(attribute.name, label)}), Phrase())
        return Phrase(own.said or words, own.names or words, own.unless)

    def named(self, prompt: str, attributes: Sequence[Attribute]) -> dict[str, tuple[str, ...]]:
        """Attribute -> the classes that a prompt names, for those it names; classes of the table that the
        attribute lacks are among them."""
        text = plain(prompt)
        found: dict[str, tuple[str, ...]] = {}
        for attribute in attributes:
            rows = {label: self.row(attribute, label) for label in attribute.classes}
            for cell, row in self.rows.items():
                name, label = next(iter(cell))
                if len(cell) == 1 and name == attribute.name and label:
                    rows.setdefault(label, row)
            labels = tuple(label for label, row in rows.items() if row.named_in(text))
            if labels:
                found[attribute.name] = labels
        return found


def plain(text: str) -> str:
    """Lower case, with every hyphen and line break a blank and single blanks."""
    return " ".join(re.sub(r"[-\u2010-\u2015]", " ", text).lower().split())


def _words(text: str) -> re.Pattern[str]:
    """These words as whole ones."""
    return re.compile(rf"(?<!\w){re.escape(' '.join(text.split()))}(?!\w)")


# ---- reading


class PhraseTables:
    """The tables of some folders by name; the first folder's of a name wins, the shipped come last."""

    def __init__(self, folders: Sequence[Path | str] = ()) -> None:
        self.folders = (*(Path(folder) / FOLDER for folder in folders), SHIPPED)

    def names(self) -> list[str]:
        """The default first, the others in alphabetical order."""
        found = {path.stem for folder in self.folders for path in folder.glob(f"*{SUFFIX}")}
        return [DEFAULT, *sorted(found - {DEFAULT})]

    def path(self, name: str) -> Path:
        """The file of a table. Raises FairAdapterError for a name that there is not."""
        names = self.names()
        if name in names:  # a name from the network is only compared
            return next(path for folder in self.folders if (path := folder / f"{name}{SUFFIX}").is_file())
        raise FairAdapterError(
            f"phrases {one_line(name, 80)!r}: expected one of {', '.join(names[:12])}, found no such table; "
            f"put NAME{SUFFIX} into the folder '{FOLDER}' beside your adapters"
        )

    def load(self, name: str) -> PhraseTable:
        """Raises FairAdapterError as `path` and `read_table`."""
        path = self.path(name)
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
            text = data.decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise FairAdapterError(
                f"{path}: expected a table of phrases in UTF-8, found {error}; save it as CSV in UTF-8"
            ) from error
        if len(data) > MAX_BYTES:
            raise FairAdapterError(
                f"{path}: expected a table of at most {MAX_BYTES} bytes, found more; shorten it"
            )
        return read_table(text, str(path), name)


def read_table(text: str, source: str, name: str = "") -> PhraseTable:
    """A table from its text.  source: what errors call it.  Raises FairAdapterError, with the row."""
    head = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text), delimiter=";" if head.count(";") > head.count(",") else ",")
    try:
        lines = [(reader.line_num, [cell.strip() for cell in line]) for line in reader if any(line)]
    except csv.Error as error:
        raise FairAdapterError(f"{source}: expected a CSV table, found {error}; save it as CSV") from error
    if not lines or tuple(lines[0][1]) not in (COLUMNS, COLUMNS[:-1], COLUMNS[:-2]):
        found = one_line(",".join(lines[0][1]) if lines else "nothing", 80)
        raise FairAdapterError(
            f"{source}, row 1: expected the columns {','.join(COLUMNS)}, found {found}; write them"
        )
    if len(lines) > MAX_ROWS:
        raise FairAdapterError(f"{source}: expected at most {MAX_ROWS} rows, found {len(lines)}; shorten it")
    pattern: Pattern | None = None
    rows: dict[Cell, Phrase] = {}
    for number, line in lines[1:]:
        where = f"{source}, row {number}"
        attribute, label, *rest = _cells(line, where)
        if attribute == PATTERN:
            if pattern is not None or label:
                _refuse(where, "one pattern, without a class", "another", "keep one")
            pattern = _pattern(rest[0], where)
            continue
        cell = _cell(attribute, label, where)
        if cell in rows:
            _refuse(where, "each class once", f"{attribute},{label} again", "take one out")
        said, names, unless = (tuple(p.strip() for p in part.split("|") if p.strip()) for part in rest)
        if any("~" not in text for text in unless):
            _refuse(where, "'~' for the name in 'unless'", repr(unless), "write for example '~ hair'")
        rows[cell] = Phrase(said, names, unless)
    return PhraseTable(name or source, pattern or Pattern(), rows)


def _cells(line: Sequence[str], where: str) -> list[str]:
    """Five cells, each on one line and not too long."""
    if not 3 <= len(line) <= len(COLUMNS):
        _refuse(where, f"3 to {len(COLUMNS)} cells", str(len(line)), "quote a text with commas in it")
    for cell in line:
        if (
            not cell.isprintable()
            or len(cell.split("|")) > 100
            or max(map(len, cell.split("|"))) > MAX_PHRASE
        ):
            _refuse(
                where, f"texts on one line of at most {MAX_PHRASE} characters", repr(one_line(cell, 60)),
                "shorten it",
            )  # fmt: skip
    return [*line, *[""] * (len(COLUMNS) - len(line))]


def _cell(attribute: str, label: str, where: str) -> Cell:
    names = [name.strip() for name in attribute.split("*")]
    labels = [part.strip() for part in label.split("*")] if label else [""]
    words = [*names, *(part for part in labels if label)]
    if not all(map(is_word, words)) or len(set(names)) != len(names) or len(names) != len(labels):
        _refuse(
            where, "an attribute and one of its classes", repr(one_line(f"{attribute},{label}", 80)),
            "write for example gender,female or gender*race,female*black",
        )  # fmt: skip
    return frozenset(zip(names, labels))


def _pattern(text: str, where: str) -> Pattern:
    pieces = _PLACE.split(text)
    names = [name.strip() for name in pieces[1::2]]
    wrong = not names or len(set(names)) != len(names) or not all(map(is_word, names))
    if wrong or any(brace in piece for piece in pieces[::2] for brace in "{}"):
        _refuse(
            where,
            "a pattern such as '{gender} {age}, {race}', each attribute once",
            repr(text),
            "write it so",
        )
    return Pattern(tuple(names), tuple(pieces[::2]))


def _refuse(where: str, expected: str, found: str, remedy: str) -> None:
    raise FairAdapterError(f"{where}: expected {expected}, found {found}; {remedy}")
