"""An attribute is added in one place: a row of the table, and a classifier that reads it.

The test adds a row to a copy of the sources and asks both hosts' parts, in a process of its own, for bars,
sliders and statistics. The classifier is CLIP's, described by the row's phrases, with random weights.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROW = """
GLASSES = Attribute(
    "glasses",
    ("none", "reading", "sun"),
    (
        ClassLook((12, 34, 56), "no glasses", ("a person without glasses",), ("barefaced",)),
        ClassLook((78, 90, 12), "", ("a person with reading glasses",), ("bespectacled",)),
        ClassLook((34, 56, 78), "dark ones", ("a person with sunglasses",), ("sunglassed",)),
    ),
)
TABLE = (GENDER, RACE, RACE4, GLASSES, AGE, SKIN_TONE)
"""
PROGRAM = """
import importlib.machinery, importlib.util, json, sys
spec = importlib.machinery.ModuleSpec("fair_adapter", None, is_package=True)
spec.submodule_search_locations = [sys.argv[1]]
sys.modules["fair_adapter"] = importlib.util.module_from_spec(spec)

import open_clip, torch
from pathlib import Path
from fair_adapter.a1111_extension import ui, views
from fair_adapter.a1111_extension.records import PictureRecord, RecordStore
from fair_adapter.comfy_nodes import targets, texts
from fair_adapter.comfy_nodes.collection import statistics_dict
from fair_adapter.shared.attributes import AGE, GENDER, GLASSES, TargetDistribution, ordered
from fair_adapter.shared.bars import read_bars
from fair_adapter.shared.classifiers.zero_shot import DESCRIPTIONS, ZeroShot
from fair_adapter.shared.faces import Face
from fair_adapter.shared.live import readings_dict
from fair_adapter.shared.phrases import PhraseTables
from fair_adapter.shared.statistics import FairnessStatistics, counted_attributes
from fair_adapter.shared.words import draw_words

net = ZeroShot(open_clip.CLIP(**json.loads(sys.argv[2])).eval(), open_clip.SimpleTokenizer(context_length=77))
logits = {name: rows.detach() for name, rows in net(torch.rand(2, 3, 256, 256)).items()}
logits["glasses"] = torch.tensor([[0.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
found = read_bars(logits, net.attributes, [Face((0, 0, 9, 9), torch.zeros(5, 2), 1.0)] * 2)
target = TargetDistribution.parse("glasses=20/30/50;age=equal", (GLASSES, AGE))
statistics = FairnessStatistics(net.attributes)
statistics.add([[face] for face in found])
store = RecordStore(Path(sys.argv[1]) / "records.sqlite")
store.add([PictureRecord(origin="txt2img", prompt="a", faces=tuple(found[:1]))])
slots = ui.slots(ordered((AGE, GLASSES)), target)
panel = targets.target_dict(target.to_text(), targets.OWN, None)
words = draw_words("a cook", target, 10, 0, PhraseTables().load("english"))
kept = draw_words("a sunglassed cook", target, 1, 0, PhraseTables().load("english"))
figures = {name: {"bias": 0.5} for name in ("age", "gender_x_race", "glasses", "race", "gender")}
print(json.dumps({
    "bars": [[bar.attribute, bar.label, bar.colour] for bar in found[1].bars],
    "record": store.statistics().counts("glasses"),
    "legend": views.legend(net.attributes),
    "sliders": [[s["label"], s["value"]] for s in slots if s["visible"]],
    "comfy": panel,
    "live": readings_dict([[found[1]]], net.attributes, target),
    "statistics": statistics_dict("all", statistics, target),
    "counted": [a.name for a in counted_attributes({"age": ["old"], "glasses": ["sun"]})],
    "words": [[p.classes["glasses"], p.prompt] for p in words.pictures],
    "kept": [*kept.prompts, *kept.notes],
    "evaluation": texts.evaluation_lines({"adapter": figures}),
}))
"""
CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict:
    copy = tmp_path_factory.mktemp("repository")
    for folder in ("shared", "a1111_extension", "comfy_nodes"):
        ignored = shutil.ignore_patterns("*.safetensors", "__pycache__", "tokenizer")
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    table = copy / "shared" / "attributes.py"
    before = table.read_text(encoding="utf-8")
    after = before.replace("TABLE = (GENDER, RACE, RACE4, AGE, SKIN_TONE)\n", ROW)
    assert after != before
    table.write_text(after, encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(copy), json.dumps(CLIP)], capture_output=True, text=True, cwd=copy
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_bars_stand_in_the_order_and_colours_of_the_table(told: dict) -> None:
    names = [name for name, _, _ in told["bars"]]
    assert names == ["gender", "race", "glasses", "age"]
    assert told["bars"][2] == ["glasses", "sun", [34, 56, 78]]
    assert "sun (dark ones)" in told["legend"] and "#22384e" in told["legend"]
    (face,) = told["live"]["pictures"][0]
    assert face["bars"][2]["spelled"] == "sun (dark ones)" and face["bars"][2]["colour"] == "#22384e"


def test_both_hosts_have_sliders_for_it(told: dict) -> None:
    assert told["sliders"] == [
        ["glasses: none %", 20.0], ["glasses: reading %", 30.0], ["glasses: sun %", 50.0],
        ["age: young %", 50.0], ["age: old %", 50.0],
    ]  # fmt: skip
    comfy = told["comfy"]
    assert comfy["error"] == "" and comfy["groups"][0]["colours"] == ["#0c2238", "#4e5a0c", "#22384e"]
    assert comfy["attributes"]["glasses"] == ["none", "reading", "sun"]
    assert comfy["spelled"]["glasses"]["none"] == "none (no glasses)"


def test_statistics_count_it_against_the_target(told: dict) -> None:
    rows = told["statistics"]["shares"]["glasses"]
    assert [(row["label"], row["share"], row["target"]) for row in rows] == [
        ("none", 0.0, 0.2), ("reading", 0.5, 0.3), ("sun", 0.5, 0.5),
    ]  # fmt: skip
    assert told["record"] == {"none": 0, "reading": 1, "sun": 0}  # A1111's database
    assert told["counted"] == ["glasses", "age"]
    assert [line.split(" bias")[0] for line in told["evaluation"]] == [
        "gender", "race", "gender x race", "glasses", "age",
    ]  # fmt: skip


def test_prompts_say_it_in_the_words_of_its_row(told: dict) -> None:
    said = {"none": "barefaced", "reading": "bespectacled", "sun": "sunglassed"}
    assert sorted(label for label, _ in told["words"]) == ["none"] * 2 + ["reading"] * 3 + ["sun"] * 5
    assert all(prompt.endswith(f", {said[label]}, a cook") for label, prompt in told["words"])
    prompt, note = told["kept"]
    assert prompt.endswith(", a sunglassed cook") and "glasses (sun)" in note
