"""What an adapter file says: typed, finite and bounded, or one line of error; lists go on past the worst."""

import copy
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fair_adapter.a1111_extension import views
from fair_adapter.a1111_extension.routes import Api
from fair_adapter.a1111_extension.service import FairService
from fair_adapter.comfy_nodes import targets, texts
from fair_adapter.shared import limits
from fair_adapter.shared.adapter import FairnessAdapter
from fair_adapter.shared.adapter_info import AdapterInfo
from fair_adapter.shared.adapter_layout import read_outline
from fair_adapter.shared.attributes import Attribute, TargetDistribution
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.evaluation import ORIGINAL, Figures, figures
from fair_adapter.shared.library import AdapterLibrary, AdapterSummary
from fair_adapter.shared.presets import presets
from fair_adapter.tests.tiny_adapter import FIXED, make_adapter, payload

SHARES = {"female": 0.2, "male": 0.8}
MEASURED = {
    "original": {"gender": {"bias": 0.5, "ci95": [0.4, 0.6], "floor": 0.1, "shares": SHARES}},
    "adapter": {"gender": {"bias": 0.2}},
}
ENTRY = json.loads(make_adapter(evaluation=MEASURED).info.to_json())
# JSON as files hold it: what Python makes of it is another matter
NASTY = (
    "1e999", "-1e999", "NaN", "9" * 400, "-" + "9" * 400, "1e308", "0.1", "-1", "0", "2", "true", "null",
    '""', '"x "', '" x"', '"female"', '"\\ud800"', '"\\u0000\\u001b[1m\\n"', '"<b>&"', '"' + "x" * 400 + '"',
    "[]", "{}", "[1, 2]", '[[["x"]]]', "[" * 40 + "]" * 40, '{"a": ' * 900 + "1" + "}" * 900, '{"female": 1}',
    '["a", "a"]',
    '[{"name": "a", "classes": ["x"]}]', '{"gender*gender*gender": {}}', '{"gender": {"female": [0, 1]}}',
    '{"gender": 5, "gender ": 5}',
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every part of a JSON value is."""
    found = [path] if path else []
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found + [place for key, part in parts for place in places(part, (*path, key))]


def with_raw(entry: dict[str, Any], changes: list[tuple[tuple[Any, ...], str]], renamed: str = "") -> str:
    """The entry's JSON with raw text at some places; `renamed`: a key instead of another's."""
    table = copy.deepcopy(entry)
    marks = {}
    for number, (path, raw) in enumerate(changes):
        holder = table
        try:
            for key in path[:-1]:
                holder = holder[key]
            if isinstance(holder, dict) and renamed and number == 0:
                holder[renamed] = holder.pop(path[-1])
            else:
                holder[path[-1]] = marks.setdefault(f"@{number}@", raw) and f"@{number}@"
        except (KeyError, IndexError, TypeError):  # an earlier change took the place away
            continue
    text = json.dumps(table)
    for mark, raw in marks.items():
        text = text.replace(f'"{mark}"', raw)
    return text


def shown_everywhere(summary: AdapterSummary) -> None:
    """Everything that lists, pages, nodes and routes make of a file."""
    for table in (summary.to_dict(), texts.summary_dict(summary)):
        json.dumps(table, ensure_ascii=False, allow_nan=False).encode("utf-8")
    page = views.library_table([summary]) + views.adapter_card(summary) + texts.describe(summary)
    page.encode("utf-8")
    assert summary.name in page and len(summary.error) <= 1000


def file_with(path: Path, entry: str, adapter: FairnessAdapter | None = None) -> Path:
    header, after = payload((adapter or make_adapter()).write(path, overwrite=True))
    header["__metadata__"]["fair_adapter"] = entry  # type: ignore[index]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + after)
    return path


@settings(max_examples=400)
@given(data=st.data())
def test_any_entry_is_a_value_that_can_be_shown_or_the_one_error(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    everything = places(ENTRY)
    spot = st.tuples(st.sampled_from(everything), st.sampled_from(NASTY))
    changes = data.draw(st.lists(spot, min_size=1, max_size=3))
    names = st.sampled_from(["", "", "x", "gender ", "original", "\ud800", "a" * 100])
    text = with_raw(ENTRY, changes, data.draw(names))
    path = file_with(tmp_path_factory.getbasetemp() / "fuzz" / "a.safetensors", text)
    try:
        outline = read_outline(path)
    except FairAdapterError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error) and len(str(error)) < 1000
    else:
        assert AdapterInfo.from_json(outline.info.to_json(), "again").to_json() == outline.info.to_json()
        default = outline.targets.default
        assert TargetDistribution.parse(default.to_text(), outline.targets.attributes) == default
        for target in presets(outline.targets.attributes, outline).values():
            told = targets.target_dict(target.to_text(), targets.OWN, outline)
            json.dumps(told, ensure_ascii=False, allow_nan=False).encode("utf-8")
    shown_everywhere(AdapterLibrary([path.parent]).summary("a"))


@given(st.text(alphabet='{}[]",:0123456789.eE-+ \\untrfalsx', max_size=200))
def test_any_text_is_no_entry_but_the_one_error(text: str) -> None:
    with pytest.raises(FairAdapterError, match=r"^x: "):
        AdapterInfo.from_json(text, "x")


# ---- what brought lists down, and its kin


def changed(**values: Any) -> Callable[[dict[str, Any]], str]:
    return lambda entry: json.dumps({**entry, **values})


def raw(place: str, text: str) -> Callable[[dict[str, Any]], str]:
    return lambda entry: json.dumps({**entry, place: "@"}).replace('"@"', text)


GENDER = [{"name": "gender", "classes": ["female", "male"]}]
ONE = {"default": {"a": "equal"}, "vector": None, "range": {}}


def following(default: dict[str, Any], ranges: dict[str, Any]) -> Callable[[dict[str, Any]], str]:
    return changed(attributes=GENDER, target={"default": default, "vector": "cells", "range": ranges})


BROKEN = {  # what is said -> the file
    "'female ' is not a lower-case word": changed(
        attributes=[{"name": "gender", "classes": ["female ", "male"]}],
        target={"default": {"gender": "equal"}, "vector": None},
    ),
    "of more than 64 bits": raw("evaluation", f'{{"original": {{"gender": {{"bias": {"9" * 400}}}}}}}'),
    "the number 1e999, beyond 1e+100": raw("evaluation", '{"original": {"gender": {"bias": 1e999}}}'),
    "half a surrogate pair": raw("description", '"\\ud800"'),
    "more than 16 deep": raw("prompts", '{"a": ' + "[" * 30 + "]" * 30 + "}"),
    "deep": raw("prompts", "[" * 100_000),
    "at most 256 classes, found 4096": changed(
        attributes=[{"name": "a", "classes": [f"c{i}" for i in range(4096)]}], target=ONE
    ),
    "more than 12 attributes": changed(
        attributes=[{"name": f"a{i}", "classes": ["x"]} for i in range(500)], target=ONE
    ),
    "of at most 64 characters": changed(attributes=[{"name": "a", "classes": ["x" * 65]}], target=ONE),
    "classes: expected a list": changed(attributes=[{"name": "a", "classes": "xy"}], target=ONE),
    "expected different attributes": following({"gender": "equal"}, {"*".join(["gender"] * 40): {}}),
    "one or more different attributes": changed(
        attributes=[{"name": n, "classes": [f"{n}{i}" for i in range(64)]} for n in "ab"],
        target={"default": {"a*b": "equal", "b*a": "equal", "a": "equal"}, "vector": None},
    ),
    "at most 64 of them": following({"gender": "equal"}, {n * " " + "gender": {} for n in range(100)}),
    "range of female: expected two numbers": following(
        {"gender": "equal"}, {"gender": {"female": [0, 1, 2]}}
    ),
    "width of clip_l": raw("base", '{"name": "x", "architecture": "sd1", "widths": {"clip_l": 1e30}}'),
    "at most 300 characters": changed(name="x" * (limits.MAX_NAME + 1)),
    "more than 1048576": changed(description="x" * limits.MAX_ENTRY),
    "'name' is there twice": lambda entry: json.dumps(entry)[:-1] + ', "name": "y"}',
}


@pytest.mark.parametrize("reason", BROKEN)
def test_a_list_shows_a_broken_file_with_its_reason_and_goes_on(reason: str, tmp_path: Path) -> None:
    fixed = make_adapter(FIXED)
    file_with(tmp_path / "broken.safetensors", BROKEN[reason](json.loads(fixed.info.to_json())), fixed)
    make_adapter(FIXED).write(tmp_path / "good.safetensors")
    service = FairService([tmp_path], tmp_path / "data")
    listed = Api(service).adapters()["adapters"]
    json.dumps(listed, ensure_ascii=False, allow_nan=False).encode("utf-8")
    errors = {entry["name"]: entry["error"] for entry in listed}
    assert errors["broken.safetensors"].startswith("broken.safetensors: ") and not errors["good.safetensors"]
    assert reason in errors["broken.safetensors"]
    assert service.first_choice(own=True) == "good.safetensors"
    page = views.library_table(service.library.summaries())
    assert page.count("fair-broken") == 1 and "tiny-fair" not in errors["broken.safetensors"]
    assert service.attributes("broken.safetensors") == () and service.presets("broken.safetensors") == {}
    assert service.default_target("broken.safetensors") == ""
    assert targets.target_dict("gender=50/50", targets.OWN, None)["error"] == ""


def test_files_that_have_no_such_name_or_are_gone_are_told_too(tmp_path: Path) -> None:
    make_adapter(FIXED).write(tmp_path / "good.safetensors")
    odd = [b"a\xff.safetensors", b"c:d.safetensors"]
    try:
        for name in odd:
            with open(bytes(tmp_path) + b"/" + name, "wb") as file:
                file.write(b"x")
    except OSError:
        pytest.skip("this system has no such names")
    library = AdapterLibrary([tmp_path])
    errors = {entry.name: entry.error for entry in library.summaries()}
    assert list(errors) == ["a?.safetensors", "c:d.safetensors", "good.safetensors"]
    assert "rename the file" in errors["a?.safetensors"] and errors["c:d.safetensors"]
    assert not errors["good.safetensors"]
    library.names = lambda: ["good.safetensors", "gone.safetensors"]  # type: ignore[method-assign]
    assert [bool(entry.error) for entry in library.summaries()] == [False, True]
    with pytest.raises(FairAdapterError, match="found none"):
        library.path("x" * 5000)


def test_what_cannot_be_read_back_is_not_written() -> None:
    for change in ({"name": "x" * 301}, {"evaluation": {"a": 10**400}}, {"prompts": {"a": "\ud800"}}):
        with pytest.raises(FairAdapterError, match="metadata that JSON cannot hold"):
            make_adapter(**change).info.to_json()


def test_names_stay_on_one_line_and_descriptions_keep_theirs() -> None:
    text = json.dumps({**ENTRY, "name": "a\nb\x1b", "description": "one\ntwo\x1b"})
    info = AdapterInfo.from_json(text, "x")
    assert (info.name, info.description) == ("a b ", "one\ntwo ")


def test_the_largest_target_is_written_without_reading_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """`to_text` tries up to 18 forms; each costs a pass over the cells, not a search in all of them."""
    axes = tuple(Attribute(n, tuple(f"{n}{i}" for i in range(64))) for n in "ab")
    shares = [1 + i % 7 for i in range(4096)]
    target = TargetDistribution(axes, tuple(share / sum(shares) for share in shares))
    searches = []
    monkeypatch.setattr(Attribute, "index", lambda self, name: searches.append(name))
    text = target.to_text()
    monkeypatch.undo()
    assert not searches and TargetDistribution.parse(text, axes) == target
    with pytest.raises(FairAdapterError, match="at most 256 classes, found 257"):
        Attribute("a", tuple(f"c{i}" for i in range(257)))
    with pytest.raises(FairAdapterError, match="4096 joint classes, found 2 with 8192"):
        TargetDistribution.uniform((axes[0], Attribute("c", tuple(f"c{i}" for i in range(128)))))


def test_figures_are_numbers_from_0_to_1_or_left_out() -> None:
    odd = {
        "a": {"bias": 2},
        "b": {"bias": True},
        "c": [],
        "d": {"bias": 10**30},
        "independent": {"gender": {}},
    }
    good = {"bias": 1, "ci95": [0.5, 2], "floor": "x", "shares": {"x": 0.5, "y": None}}
    assert figures({"original": {**odd, "gender": good}}, ORIGINAL) == {
        "gender": Figures(1.0, None, None, {"x": 0.5})
    }
    assert figures({"original": 3}, ORIGINAL) == {} == figures({}, ORIGINAL)
    many = {f"a{i}": {"bias": 0.5} for i in range(100)}
    assert len(figures({"original": many}, ORIGINAL)) == limits.MAX_PARTS
