"""What of the ComfyUI nodes needs no ComfyUI: targets for the sliders, texts, collections of statistics."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

from fair_adapter.comfy_nodes import session as sessions
from fair_adapter.comfy_nodes import targets, texts
from fair_adapter.comfy_nodes.collection import Batch, Collections, statistics_dict
from fair_adapter.shared.attributes import (
    AGE,
    GENDER,
    KNOWN,
    RACE,
    RACE4,
    SKIN_TONE,
    TargetDistribution,
)
from fair_adapter.shared.bars import Bar, FaceBars
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.library import AdapterSummary
from fair_adapter.tests.tiny_adapter import FIXED, SPACE, make_adapter

ROOT = Path(__file__).resolve().parents[1]
RACES = type(SPACE)(TargetDistribution.uniform([RACE4]))


def face(label: str, confidence: float = 0.9, attribute: str = "gender") -> FaceBars:
    return FaceBars((0, 0, 10, 10), (Bar(attribute, label, confidence, (1, 2, 3), confidence >= 0.7),))


# ---- targets


def test_a_text_is_taken_apart_into_its_groups() -> None:
    text = "gender*race=female*black:30,male*asian:70;age=75/25"
    first, second = targets.groups(text, KNOWN)
    assert first["name"] == "gender*race" and first["classes"][1] == "female*black"
    assert first["shares"] == pytest.approx([0, 30, 0, 0, 0, 70])
    assert second["classes"] == ["young", "old"] and second["shares"] == [75, 25]
    assert len(second["colours"]) == 2 and all(re.fullmatch("#[0-9a-f]{6}", c) for c in second["colours"])


@pytest.mark.parametrize("text", ["gender=50/50;gender=50/50", "gender*race=equal;race=equal"])
def test_an_attribute_in_two_groups_is_an_error(text: str) -> None:
    with pytest.raises(FairAdapterError):
        targets.groups(text, KNOWN)


def test_presets_take_the_place_of_the_text() -> None:
    adapter = make_adapter(
        FIXED, evaluation={"original": {"gender": {"shares": {"female": 0.2, "male": 0.8}}}}
    )
    assert targets.choose("gender=10/90", targets.OWN, adapter).to_text() == "gender=female:10,male:90"
    assert targets.choose("", targets.OWN, adapter) == FIXED.default
    assert targets.choose("gender=10/90", "as trained", adapter) == FIXED.default
    assert targets.choose("", "as the base model does", adapter).to_text() == "gender=female:20,male:80"
    assert targets.choose("race=equal;gender=1/99", "equal", None) == TargetDistribution.parse(
        "race=equal;gender=equal"
    )
    assert targets.choose("", "75/25", None).names == ("gender", "race", "age")


@pytest.mark.parametrize(
    ("preset", "adapter", "expected"),
    [
        ("as trained", None, "needs an adapter and none is connected"),
        ("as the base model does", make_adapter(), "this adapter's file does not tell"),
        ("75/25", make_adapter(RACES), "no attribute has two classes"),
        (targets.OWN, None, "empty"),
    ],
)
def test_presets_that_cannot_be(preset: str, adapter: object, expected: str) -> None:
    with pytest.raises(FairAdapterError, match=expected):
        targets.choose("", preset, adapter)  # type: ignore[arg-type]


def test_an_adapters_own_classes_come_first() -> None:
    known = targets.known_attributes(make_adapter(RACES))
    assert known == (RACE4, GENDER, AGE, SKIN_TONE)
    assert targets.known_attributes(None) == (GENDER, RACE, AGE, SKIN_TONE)


def test_what_the_sliders_show() -> None:
    told = targets.target_dict("gender=95/5", targets.OWN, make_adapter())
    assert told["text"] == "gender=female:95,male:5"
    assert "outside 10 to 90%" in told["warnings"][0] and told["error"] == ""
    wrong = targets.target_dict("gender=60/60", targets.OWN, None)
    assert "sum to 120" in wrong["error"] and wrong["groups"] == []
    assert wrong["attributes"] == {
        "gender": ["female", "male"],
        "race": list(RACE.classes),
        "age": ["young", "old"],
        "skin_tone": list(SKIN_TONE.classes),
    }


# ---- texts


def test_an_adapter_in_words() -> None:
    figures = {"gender": {"bias": 0.66, "floor": 0.08}, "race": {"bias": "?"}, "gender_x_race": {"bias": 0.2}}
    summary = AdapterSummary(
        "a.safetensors", 10, title="Any target", base="portrait", architecture="sd1", attributes=(GENDER,),
        target="gender=female:50,male:50", conditioned=True, licence="MIT", kind="5 soft tokens",
        trained_range={"gender": {"female": (0.1, 0.9)}},
        evaluation={"original": figures, "adapter": {**figures, "gender": {"bias": 0.16, "floor": 0.08}}},
    )  # fmt: skip
    text = texts.describe(summary)
    assert "follows targets: gender female 10 to 90%; default gender=female:50,male:50" in text
    assert "gender bias 0.66 -> 0.16 (a fair model scores 0.08)" in text and "gender x race bias 0.20" in text
    assert "race bias ?" not in text
    assert texts.summary_dict(summary)["facts"][0] == ["base model", "portrait (sd1)"]
    broken = AdapterSummary("b.safetensors", 1, error="b.safetensors: expected more")
    assert texts.describe(broken) == broken.error == texts.summary_dict(broken)["error"]


@pytest.mark.parametrize(
    "evaluation", [{}, {"adapter": 3}, {"adapter": {"gender": []}}, {"original": {"gender": {"bias": 1}}}]
)
def test_an_evaluation_of_any_form(evaluation: dict[str, object]) -> None:
    assert texts.evaluation_lines(evaluation) == []


def test_tables() -> None:
    table = texts.readings_table([[face("female"), face("male", 0.6)], []], ["gender", "race"])
    assert table.splitlines()[2:] == [
        "| 1 | 1 | female 90% |  |",
        "| 1 | 2 | male 60% ? |  |",
        "| 2 | no face |  |  |",
    ]


# ---- collections


def batch(identity: str, *labels: str | None) -> Batch:
    """Pictures with one face of a gender each, None without a face."""
    return Batch([[face(label)] if label else [] for label in labels], (GENDER,), identity)


def test_pictures_count_once_and_collections_are_apart() -> None:
    kept = Collections()
    first = batch("1", "female", "male", None)
    for _ in range(2):
        assert kept.add("a", first).pictures == 3
    assert kept.add("b", first).faces == 2
    target = TargetDistribution.parse("gender=50/50")
    again = kept.add("a", batch("2", "female"), target, "nurse")
    assert again.counts("gender") == {"female": 2, "male": 1} and again.groups == 2
    statistics, aim = kept.get("a")
    assert statistics.pictures == 4 and aim is target


def test_pictures_that_are_read_again_count_as_they_were_read_last() -> None:
    kept = Collections()
    kept.add("a", batch("1", "female", None))
    kept.add("a", batch("2", "female"))
    unsure = Batch([[face("male", 0.6)], [face("male")]], (GENDER,), "1")
    assert kept.add("a", unsure, group="nurse").counts("gender") == {"female": 1, "male": 2}
    statistics, _ = kept.get("a")
    assert (statistics.pictures, statistics.uncertain, statistics.groups) == (3, 1, 2)


class Counted(list):
    """Readings that note each time they are gone through."""

    looked = 0

    def __iter__(self):
        Counted.looked += 1
        return super().__iter__()


def calls_of(action) -> int:
    """How many functions an action calls, Python's and C's."""
    calls = []
    sys.setprofile(lambda frame, event, argument: calls.append(event) if event.endswith("call") else None)
    try:
        action()
    finally:
        sys.setprofile(None)
    return len(calls)


def test_one_more_run_is_the_same_work_after_thousands_and_earlier_ones_are_left_alone() -> None:
    def run(number: int) -> Batch:
        labels = ["female", "male", "female", None] if number % 3 else ["male", "male", "female", "male"]
        return Batch(Counted([face(label)] if label else [] for label in labels), (GENDER,), str(number))

    def add(number: int) -> None:
        statistics_dict("a", kept.add("a", run(number), group=f"prompt {number}"), None)

    kept, work, looked = Collections(), {}, {}
    for number in range(1, 2002):
        if number % 1000 == 1:
            before = Counted.looked
            work[number] = calls_of(lambda number=number: add(number))
            looked[number] = Counted.looked - before
        else:
            kept.add("a", run(number), group=f"prompt {number}")
    assert abs(work[2001] - work[1001]) < 20, work
    assert looked[2001] == looked[1001] == looked[1]
    kept.add("a", run(1), group="prompt 1")  # the same pictures again
    found = kept.get("a")[0]
    assert (found.pictures, found.groups) == (4 * 2001, 2001)
    assert found.counts("gender") == {"female": 1334 * 2 + 667, "male": 1334 + 667 * 3}


def test_what_is_handed_out_stays_as_it_is() -> None:
    kept = Collections()
    first = kept.add("a", batch("1", "female"))
    kept.add("a", batch("2", "male"), group="x")
    assert first.counts("gender") == {"female": 1, "male": 0} and (first.pictures, first.groups) == (1, 1)
    assert first.bias("gender") == 1.0


def test_groups_are_measured_apart() -> None:
    kept = Collections()
    kept.add("a", batch("1", "female", "female"), group="nurse")
    kept.add("a", batch("2", "male", "male"), group="doctor")
    target = TargetDistribution.parse("gender=50/50")
    statistics, _ = kept.get("a")
    told = statistics_dict("a", statistics, target)
    assert told["faces"] == 4 and told["bias"] == {"gender": 1.0}
    assert [(row["label"], row["share"], row["target"]) for row in told["shares"]["gender"]] == [
        ("female", 0.5, 0.5),
        ("male", 0.5, 0.5),
    ]
    note = "Bias (mean of the groups): gender 1.00 (a fair model: 0.50)."
    assert told["notes"][1] == note
    lines = texts.shares_table(statistics, target).splitlines()
    assert lines[2] == "| gender | female | 2 of 4 | 50% | 15 to 85% | 50% |" and lines[-1] == note
    assert texts.shares_table(Collections().add("b", batch("3", None)), None).endswith("No face yet.")


def test_a_reset_counts_anew() -> None:
    kept = Collections()
    first = batch("1", "female")
    kept.add("a", first)
    assert kept.resets("a") == 0
    kept.reset("a")
    kept.reset("never there")
    assert kept.resets("a") == 1 and kept.resets("never there") == 0
    with pytest.raises(FairAdapterError, match="expected a collection"):
        kept.get("a")
    assert kept.add("a", first).pictures == 1


def test_readings_of_another_classifier_are_refused_and_nothing_is_lost() -> None:
    kept = Collections()
    kept.add("a", batch("1", "female"))
    other = Batch([[face("indian", attribute="race")]], (RACE4,), "2")
    with pytest.raises(FairAdapterError, match="reset or rename it"):
        kept.add("a", other)
    assert kept.get("a")[0].pictures == 1


def test_collections_are_bounded() -> None:
    kept = Collections()
    for index in range(256):
        kept.add(str(index), batch("1", "female"))
    with pytest.raises(FairAdapterError, match="reset some"):
        kept.add("one more", batch("1", "female"))


# ---- what is shipped


def test_templates_name_adapters_that_fit_their_model() -> None:
    """Those that come with the pack are for the portrait model alone."""
    shipped = {path.name for path in (ROOT / "shared" / "adapters").glob("*.safetensors")}
    for path in sorted((ROOT / "example_workflows").glob("*.json")):
        nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
        named = {n["widgets_values"][0] for n in nodes if n["type"] == "FairAdapter_LoadAdapter"}
        own_model = any(n["type"] == "CheckpointLoaderSimple" for n in nodes)
        in_words = any(n["type"] == "FairAdapter_DrawAttributes" for n in nodes)  # needs no adapter
        assert (named or in_words) and (not named & shipped if own_model else named <= shipped), path.name


def test_the_entry_does_nothing_outside_comfyui() -> None:
    spec = importlib.util.spec_from_file_location("fair_adapter_entry", ROOT / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert not hasattr(module, "comfy_entrypoint") and not hasattr(module, "WEB_DIRECTORY")


# ---- the session


def batch_of(name: str, *labels: str) -> Batch:
    return Batch([[face(label)] if label else [] for label in labels], (GENDER,), name)


def test_a_session_keeps_pictures_in_order_and_the_same_ones_once() -> None:
    log = sessions.SessionLog()
    log.add([batch_of("a", "female", "male"), batch_of("b", "male", "")])
    version = log.version
    log.add([batch_of("a", "female", "male")])
    assert log.version == version and len(log.last(100)) == 4
    log.add([batch_of("a", "male", "male")])  # read again, with other settings
    assert log.version != version
    assert [faces[0].bars[0].label if faces else "" for faces in log.last(3)] == ["male", "male", ""]
    version = log.version
    log.reset()
    assert log.last(5) == [] and log.version != version


def test_a_session_forgets_the_oldest_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MOST", 5)
    log = sessions.SessionLog()
    for name in "abcd":
        log.add([batch_of(name, "female", "male")])
    assert len(log.last(100)) == 6  # as many as are needed for the last five


def test_what_a_session_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "SESSION", sessions.SessionLog())
    target = TargetDistribution.parse("gender=50/50")
    empty = sessions.session_dict(10, target, 4)
    assert empty["pictures"] == 0 and empty["next"].startswith("next 4: gender female 2, male 2")
    sessions.SESSION.add([batch_of("a", "male", "male", "male", "female", "")])
    told = sessions.session_dict(10, target, 4)
    assert (told["pictures"], told["faces"]) == (5, 4) and told["shares"]["gender"][0]["target"] == 0.5
    assert told["next"].startswith("next 4: gender female 3, male 1 (evens out 4 pictures; 1 without")
    assert sessions.session_dict(2, None)["pictures"] == 2
    for text in ("0", "x", "1.5", "9" * 30, "٣"):
        with pytest.raises(FairAdapterError, match="last: expected a whole number from 1 to 9"):
            sessions.read_number("last", text, 1, 9)
