"""Tables of targets: what a row is found by, what a prompt gets, and how a file can be wrong."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fair_adapter.shared.attributes import AGE, GENDER, RACE, Attribute, TargetDistribution
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.library import SHIPPED
from fair_adapter.shared.table_files import TableLibrary, read_table
from fair_adapter.shared.target_table import TargetTable, beside, mean_target

HEAD = "pattern,target,source,year\n"
ROWS = HEAD + (
    'head gardener,"gender=female:40,male:60",Orchard census,2031\n'
    "\n"
    "gardener,gender=25/75;race=50/30/20,Orchard census,\n"
    "lamp-lighter,race=equal,,\n"
)
DEFAULT = TargetDistribution.parse("gender=50/50;race=20/30/50")


def table(text: str = ROWS) -> TargetTable:
    return TargetTable.parse(text, "orchard.csv")


def fault(text: str) -> str:
    with pytest.raises(FairAdapterError) as caught:
        table(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- what a prompt gets


@pytest.mark.parametrize(
    ("prompt", "row"),
    [
        ("a photo of a gardener, a person", 4),
        ("A photo of the Head  Gardener", 2),
        ("(head gardener:1.3), smiling", 2),
        ("head, gardener", 4),
        ("the lamp lighter", 5),
        ("lamp_lighter", 5),
        ("gardeners", None),
        ("gardenery", None),
        ("a doctor <lora:gardener:1>", None),
        ("embedding:gardener a doctor", None),
        ("", None),
    ],
)
def test_the_first_row_whose_words_are_in_the_prompt_wins(prompt: str, row: int | None) -> None:
    found = table().match(prompt)
    assert (found.number if found else None) == row  # as a spreadsheet counts, with the empty row


def test_a_prompt_without_a_row_takes_the_default_and_says_so() -> None:
    choice = table().choose("a photo of a pilot", DEFAULT)
    assert choice.row is None and choice.target == DEFAULT
    assert choice.told == "orchard.csv: no row for 'a photo of a pilot', so the default target"
    assert table().choose("a pilot").target is None


def test_what_a_row_does_not_name_keeps_the_shares_of_the_default() -> None:
    choice = table().choose("a head gardener", DEFAULT)
    assert choice.target == TargetDistribution.parse("gender=40/60;race=20/30/50")
    assert choice.told == "orchard.csv, row 2: head gardener (Orchard census, 2031)"
    joint = TargetDistribution.parse("gender*race=female*black:50,male*asian:50")
    told = beside(TargetDistribution.parse("gender=equal"), joint)
    assert told.marginal("race").tolist() == [0, 0.5, 0.5] and told.is_product
    assert beside(DEFAULT, None) is DEFAULT


def test_the_mean_of_targets_counts_each_once() -> None:
    one, other = (TargetDistribution.parse(f"gender={shares}") for shares in ("20/80", "60/40"))
    assert mean_target([one, other]) == TargetDistribution.parse("gender=40/60")


def test_targets_may_name_the_attributes_of_an_adapter() -> None:
    hat = Attribute("hat", ("with", "without"))
    text = HEAD + "gardener,hat=90/10,,\n"
    assert TargetTable.parse(text, "x.csv", [hat]).rows[0].target.attributes == (hat,)
    assert "unknown attribute 'hat'" in fault(text)


words = st.text("abc", min_size=1, max_size=3)


@given(st.lists(words, min_size=1, max_size=6), st.lists(words, min_size=1, max_size=2))
def test_a_pattern_is_found_where_its_words_follow_each_other(prompt: list[str], pattern: list[str]) -> None:
    found = table(HEAD + f"{' '.join(pattern)},gender=equal,,\n").match(" ".join(prompt)) is not None
    n = len(pattern)
    assert found == any(prompt[i : i + n] == pattern for i in range(len(prompt)))


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    for content in (text, HEAD + text):
        try:
            table(content)
        except FairAdapterError as error:
            assert str(error).startswith("orchard.csv") and len(str(error).splitlines()) == 1


# ---- what is wrong with a file


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "orchard.csv: expected the line pattern,target,source,year and rows below it, found nothing"),
        (HEAD, "expected a row for each pattern, found none"),
        ("pattern;target;source;year\na;gender=equal;;\n", "row 1: expected commas between the columns"),
        ("pattern\ttarget\tsource\tyear\n", "row 1: expected commas between the columns, found tabs"),
        ("pattern,target,year\n", "row 1: expected the columns pattern,target,source,year, found no"),
        ("pattern,target,source,year,year\n", "found 'year' twice"),
        (HEAD + "a,gender=female:40,male:60,,\n", "row 2: expected 4 columns, found 5; put a target"),
        (HEAD + "a,gender=equal\n", "row 2: expected 4 columns, found 2"),
        (HEAD + "...,gender=equal,,\n", "row 2: expected a pattern of words, found '...'"),
        (HEAD + "a,gender=equal,,soon\n", "row 2: expected a year such as 2031 or none, found 'soon'"),
        (HEAD + "a,gender=equal,,\n\nA,gender=20/80,,\n", "row 4: expected each pattern once, found 'A'"),
        (
            HEAD + "gardener,gender=equal,,\nhead gardener,gender=20/80,,\n",
            "row 3: 'head gardener' is never reached, because row 2, 'gardener', is found first",
        ),
        (HEAD + "a,gender=60/60,,\n", "row 2: target gender: shares sum to 120, expected 100 (or 1)"),
        (HEAD + 'a,"gender=female:50,mal:50",,\n', "row 2: unknown class of gender 'mal', expected one of"),
        (HEAD + "a,,,\n", "row 2: target: empty"),
        (HEAD + 'a,"gender=equal,,\n', "row 2: expected CSV"),
        (HEAD + f"{'word ' * 40},gender=equal,,\n", "row 2: expected a pattern of at most 120 characters"),
        (HEAD + "a,gender=equal,,\n" * 5001, "expected at most 5000 rows"),
        ("a\0b", "expected text in UTF-8, found zero bytes"),
    ],
)  # fmt: skip
def test_a_fault_names_file_row_and_remedy_in_one_line(text: str, expected: str) -> None:
    told = fault(text)
    assert told.startswith("orchard.csv") and expected in told and ";" in told


def test_further_columns_any_order_and_the_mark_of_spreadsheets_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "saved.csv"
    text = 'Year,notes,Source,TARGET,pattern\r\n2031,"two\r\nlines",census,gender=25/75,gardener\r\n'
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    row = read_table(path).rows[0]
    assert (row.pattern, row.origin, row.number) == ("gardener", "census, 2031", 2)
    assert row.target == TargetDistribution.parse("gender=25/75")


# ---- files


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_another_encoding_is_told_with_its_row(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "saved.csv"
    path.write_bytes((HEAD + "gärtner,gender=equal,,\n").encode(encoding))
    with pytest.raises(
        FairAdapterError, match=r"row \d: expected text in UTF-8, found .*; save it as CSV in UTF-8$"
    ):
        read_table(path)


def test_names_are_checked_and_the_users_file_wins(tmp_path: Path) -> None:
    library = TableLibrary([tmp_path, SHIPPED])
    (tmp_path / "phrases").mkdir()
    (tmp_path / "phrases" / "german.csv").write_text("", encoding="utf-8")  # of another kind
    assert library.names() == ["invented_occupations.csv"]
    (tmp_path / "invented_occupations.csv").write_text(ROWS, encoding="utf-8")
    assert [row.number for row in library.load("invented_occupations").rows] == [2, 4, 5]
    with pytest.raises(FairAdapterError, match=r"target table '\.\./x': expected a file name below"):
        library.path("../x")
    with pytest.raises(FairAdapterError, match="did you mean 'invented_occupations"):
        library.path("invented_occupation")
    with pytest.raises(FairAdapterError, match="can't be read"):
        read_table(tmp_path / "none.csv")


def test_the_example_is_read_and_every_row_is_reached() -> None:
    example = TableLibrary().load("invented_occupations.csv")
    for row in example.rows:
        assert example.match(f"a photo of the face of a {row.pattern}, a person") is row
        assert set(row.target.attributes) <= {GENDER, RACE, AGE}
