"""Attributes in words: what is said, where it stands, what a prompt keeps; tables that are wrong."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fair_adapter.shared.attributes import AGE, GENDER, RACE, RACE4, Attribute, TargetDistribution
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.phrases import COLUMNS, PhraseTables, read_table
from fair_adapter.shared.quota import counts
from fair_adapter.shared.words import draw_words, narrowed
from fair_adapter.trainer import in_words as program
from fair_adapter.trainer.configuration.config import PromptSource
from fair_adapter.trainer.configuration.prompts import read_prompts
from fair_adapter.trainer.evaluation.worded import batch_figures

ENGLISH, PORTRAIT = (PhraseTables().load(name) for name in ("english", "portrait"))
TARGET = TargetDistribution.parse("gender=50/50;race=equal;age=75/25")
HEAD = ",".join(COLUMNS)
FRENCH = f"""{HEAD}
(pattern),,"{{gender}} {{age}} {{race}}",,
gender,,une personne,,
gender,female,une femme,femme|femmes,
gender,male,un homme,homme|hommes,
gender*race,female*black,une femme noire,,
race,black,noire,noir|noire,~ et blanc
age,old,d'une soixantaine d'années,âgé|âgée,
"""


# ---- what is drawn


def test_the_counts_are_those_of_an_exact_batch_and_the_phrases_say_them() -> None:
    drawn = draw_words("a doctor", TARGET, 12, 7, ENGLISH)
    told = Counter(tuple(picture.classes.values()) for picture in drawn.pictures)
    assert told == Counter(tuple(cell.values()) for cell in counts(TARGET, 12).cells)
    assert [p.prompt for p in drawn.pictures] == [f"{p.phrase}, a doctor" for p in drawn.pictures]
    for picture in drawn.pictures:
        person = {"female": "a woman of about ", "male": "a man of about "}[picture.classes["gender"]]
        assert picture.phrase.startswith(person)
        age = int(picture.phrase.removeprefix(person)[:2])
        assert (age < 40) == (picture.classes["age"] == "young")
        assert picture.phrase.endswith(
            {"black": "Black", "asian": "East Asian"}.get(picture.classes["race"], "")
        )
    assert [picture.seed for picture in drawn.pictures] == list(range(7, 19))
    assert draw_words("a doctor", TARGET, 12, 7, ENGLISH) == drawn
    assert draw_words("a doctor", TARGET, 12, 8, ENGLISH).prompts != drawn.prompts


def test_alternatives_take_turns_in_a_batch() -> None:
    races = TargetDistribution.parse("race=wmelh:100,black:0,asian:0")
    said = [picture.phrase for picture in draw_words("x", races, 6, 3, ENGLISH).pictures]
    people = ["a person, white", "a person, Middle Eastern", "a person, Latin American"]
    assert Counter(said) == Counter(people * 2)
    assert all(people[(people.index(a) + 1) % 3] == b for a, b in pairwise(said))


def test_batches_in_a_row_stay_near_the_target() -> None:
    three = TargetDistribution.parse("race=equal")
    rows = [draw_words("x", three, 1, n, ENGLISH, first=n).pictures[0].classes["race"] for n in range(30)]
    for n in range(1, 31):
        assert all(abs(rows[:n].count(label) - n / 3) < 1 for label in RACE.classes)


@pytest.mark.parametrize(
    ("place", "prompt", "expected"),
    [
        ("before", "a doctor", "a woman, a doctor"),
        ("after", "a doctor", "a doctor, a woman"),
        ("at the marker", "photo of [person], a doctor", "photo of a woman, a doctor"),
        ("at the marker", "[person] and [person]", "a woman and a woman"),
        ("before", "", "a woman"),
        ("after", " ", "a woman"),
    ],
)
def test_where_the_phrase_stands(place: str, prompt: str, expected: str) -> None:
    target = TargetDistribution.parse("gender=female:100")
    assert draw_words(prompt, target, 1, 0, ENGLISH, place).prompts == [expected]


def test_the_portrait_models_own_words_stand_as_in_its_captions() -> None:
    target = TargetDistribution.parse("gender=male:100;race=asian:100;age=old:100")
    drawn = draw_words("a photo of a [person] cook", target, 1, 0, PORTRAIT, "at the marker")
    assert drawn.prompts == ["a photo of a old asian male cook"]


def test_wrong_input_is_one_line_each() -> None:
    for changes, message in (
        ({"images": 0}, "pictures: expected a whole number from 1 to 1000, found 0"),
        ({"seed": -1}, "seed: expected a whole number from 0"),
        ({"place": "inside"}, "place: expected one of before, after, at the marker, found 'inside'"),
        ({"place": "at the marker"}, r"expected the marker '\[person\]' in the prompt, found none; write it"),
        ({"place": "at the marker", "marker": ""}, "expected the marker ''"),
    ):
        given = {"images": 1, "seed": 0, "place": "before", **changes}
        with pytest.raises(FairAdapterError, match=message):
            draw_words("a doctor", TARGET, table=ENGLISH, **given)


# ---- what a prompt names


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("a photo of the face of a doctor, a person", {}),
        ("a female nurse", {"gender": ("female",)}),
        ("Portrait of a WOMAN, oil painting", {"gender": ("female",)}),
        ("a man and a woman", {"gender": ("female", "male")}),
        ("a teacher in her classroom", {"gender": ("female",)}),
        ("a salesman, a manager", {}),  # whole words alone
        ("a young African-American violinist", {"age": ("young",), "race": ("black",)}),
        ("a Black doctor", {"race": ("black",)}),
        ("a black and white photo of a doctor", {}),
        ("a doctor with black hair in a white coat, white background", {}),
        ("a black woman in a black dress", {"gender": ("female",), "race": ("black",)}),
        ("a violinist in black", {}),
        ("an old photo of a doctor", {}),
        ("an old fisher, old photo", {"age": ("old",)}),
        ("a middle-aged chef", {"age": ("old",)}),
        ("a 30-year-old cook", {"age": ("young", "old")}),  # an age, which decides for none of the two
        ("a chinese chef", {"race": ("asian",)}),
        ("a chef in a chinese restaurant", {}),
        ("a South Asian cook", {"race": ("indian",)}),
        ("a child psychologist, a childcare worker", {}),
        ("a boy", {"gender": ("male",), "age": ("young",)}),
    ],
)
def test_words_that_name_a_class(prompt: str, named: dict) -> None:
    assert ENGLISH.named(prompt, (GENDER, RACE, AGE)) == named


def test_no_occupation_of_the_prompt_sets_names_a_class() -> None:
    for name in ("occupations_train", "occupations_test", "occupations_validation", "sports", "contexts"):
        for prompt in read_prompts(PromptSource(name, 1.0, ())):
            assert ENGLISH.named(prompt.text, (GENDER, RACE4, AGE)) == {}, prompt.text


def test_what_a_prompt_names_it_keeps_and_the_rest_follows_the_target() -> None:
    drawn = draw_words("a female nurse", TARGET, 12, 0, ENGLISH)
    assert drawn.notes == ("the prompt names gender (female): it stays, and no word is added",)
    assert Counter(p.classes["race"] for p in drawn.pictures) == {"wmelh": 4, "black": 4, "asian": 4}
    assert all("gender" not in p.classes and p.phrase.startswith("a person of about") for p in drawn.pictures)
    whole = draw_words("a young black woman", TARGET, 2, 0, ENGLISH)
    assert whole.prompts == ["a young black woman"] * 2 and len(whole.notes) == 3
    marked = draw_words("a young black woman [person]", TARGET, 1, 0, ENGLISH, "at the marker")
    assert marked.prompts == ["a young black woman"]


def test_of_a_joint_target_the_named_people_keep_their_own_shares() -> None:
    joint = TargetDistribution.parse("gender*race=female*black:30,female*asian:10,male*wmelh:60")
    women = narrowed(joint, {"gender": ("female",)})
    assert women is not None and women.names == ("race",)
    assert np.allclose(women.probabilities, [0, 0.75, 0.25])
    none = narrowed(joint, {"race": ("indian",)})  # no class of this target: all of its people
    assert none is not None and np.allclose(none.probabilities, [0.4, 0.6])
    both = narrowed(joint, {"gender": ("female", "male")})
    assert both is not None and np.allclose(both.probabilities, [0.6, 0.3, 0.1])
    assert narrowed(joint, {}) is joint and narrowed(joint, {"gender": ("male",), "race": ("asian",)}) is None


# ---- tables


def test_a_translated_table_says_and_recognises_its_own_language() -> None:
    table = read_table(FRENCH, "french.csv")
    target = TargetDistribution.parse("gender=female:100;race=black:100;age=old:100")
    said = draw_words("un médecin", target, 1, 0, table, "after").prompts
    assert said == ["un médecin, une femme noire d'une soixantaine d'années"]
    assert draw_words("une femme", target, 1, 0, table).prompts == [
        "une personne d'une soixantaine d'années noire, une femme"
    ]
    assert table.named("photo en noir et blanc", (RACE,)) == {}
    assert read_table(FRENCH.replace(",", ";"), "semicolons.csv").rows == table.rows


def test_an_attribute_without_rows_is_said_by_its_look_or_its_class() -> None:
    mood = Attribute("mood", ("smiling", "stern"))
    target = TargetDistribution.parse("gender=female:100;mood=stern:100", (GENDER, mood))
    assert draw_words("a cook", target, 1, 0, ENGLISH).prompts == ["a woman, stern, a cook"]
    assert ENGLISH.named("a stern cook", (mood,)) == {"mood": ("stern",)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "row 1: expected the columns attribute,class,phrase,names,unless, found nothing"),
        ("gender,female,a woman", "row 1: expected the columns"),
        (f"{HEAD}\ngender,female", "row 2: expected 3 to 5 cells, found 2; quote a text with commas"),
        (f"{HEAD}\nGender,female,a woman", "row 2: expected an attribute and one of its classes"),
        (f"{HEAD}\ngender*race,female,x", r"row 2: .* found 'gender\*race,female'"),
        (
            f"{HEAD}\ngender,female,a\ngender,female,b",
            "row 3: expected each class once, found gender,female again",
        ),
        (f"{HEAD}\n(pattern),,a person", "row 2: expected a pattern such as"),
        (f"{HEAD}\n(pattern),,{{age}} {{age}}", "row 2: expected a pattern .* each attribute once"),
        (f"{HEAD}\n(pattern),,{{age}}\n(pattern),,{{race}}", "row 3: expected one pattern"),
        (f"{HEAD}\nrace,black,Black,black,hair", "row 2: expected '~' for the name in 'unless'"),
        (f"{HEAD}\nrace,black,{'x' * 201}", "row 2: expected texts on one line of at most 200 characters"),
        (f'{HEAD}\nrace,black,"a\nb"', "row 3: expected texts on one line"),
    ],
)
def test_a_wrong_table_names_its_row(text: str, message: str) -> None:
    with pytest.raises(FairAdapterError, match=message):
        read_table(text, "mine.csv")


def test_own_tables_lie_beside_the_adapters(tmp_path: Path) -> None:
    folder = tmp_path / "phrases"
    folder.mkdir()
    (folder / "french.csv").write_text(FRENCH, encoding="utf-8-sig")
    (folder / "latin.csv").write_bytes(FRENCH.encode("utf-16"))
    (folder / "large.csv").write_text(HEAD + "\n" * 100_000)
    tables = PhraseTables([tmp_path, tmp_path / "none"])
    assert tables.names() == ["english", "french", "large", "latin", "portrait"]
    assert tables.load("french").rows and tables.load("portrait") == PORTRAIT
    for name, message in (
        ("latin", r"latin\.csv: expected a table of phrases in UTF-8"),
        ("large", "expected a table of at most 100000 bytes"),
        ("../french", "expected one of english, french, .* found no such table; put NAME.csv into"),
    ):
        with pytest.raises(FairAdapterError, match=message):
            tables.load(name)


# ---- measuring


def test_figures_of_batches() -> None:
    told = np.array([[0, 0], [0, 1], [1, 2], [1, 0]])
    found = np.array([[0, 1], [0, 0], [1, 2], [-1, -1]])
    figures = batch_figures([found], [told], (GENDER, RACE), 2)
    assert figures["gender"] == 0.75 and figures["race"] == 0.25 and figures["all"] == 0.25
    assert figures["exact"] == 0.5  # the first two changed places
    assert figures["off gender"] == 1 / 4 and figures["off race"] == 1 / 6


def test_program_refuses_what_it_cannot_measure(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--images", "10", "--exact", "4"]) == 2
    assert "--exact: expected a divisor of the 10 pictures of a prompt, found 4" in capsys.readouterr().err


def test_words_reach_the_pictures_that_they_are_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one noise the portrait model draws who the words say; without words the noises are the same."""
    arguments = ["--limit", "1", "--images", "6", "--exact", "6", "--steps", "12", "--target", "gender=50/50"]
    places = ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out"), "--encoder", "none"]
    assert program.main([*arguments, *places]) == 0
    report = json.loads((tmp_path / "out" / "in_words.json").read_text())
    assert sorted(prompt.split(" ")[7] for prompt in report["examples"]) == ["female"] * 3 + ["male"] * 3
    assert all("[person]" not in prompt for prompt in report["examples"])
    found = report["batches"]["words"]
    assert min(found["training"]["gender"], found["independent"]["gender"]) >= 5 / 6
    assert report["models"]["original"]["pictures"] == report["models"]["words"]["pictures"] == 6
    assert report["models"]["words"]["gender"]["bias"] <= 1 / 3
    assert "independent: off gender" in capsys.readouterr().out
