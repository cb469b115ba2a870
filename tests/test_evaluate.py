"""Measuring: figures with closed-form values, shared noise, the report, evaluate.py and demo.py."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fair_adapter.shared.adapter import FairnessAdapter
from fair_adapter.shared.adapter_info import AdapterInfo, BaseModel
from fair_adapter.shared.adapter_target import TargetSpace
from fair_adapter.shared.attributes import AGE, GENDER, RACE, Attribute, TargetDistribution
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.images import open_image
from fair_adapter.shared.seeds import noise_seed
from fair_adapter.tests.tiny_pipeline import write_tiny_pipeline
from fair_adapter.trainer import demo, evaluate
from fair_adapter.trainer.configuration.prompts import Prompt
from fair_adapter.trainer.evaluation import readings as module
from fair_adapter.trainer.evaluation.measures import identity_diversity, shares_by_prompt, summarise
from fair_adapter.trainer.evaluation.measuring import Bench, Instruments, trained_encoders
from fair_adapter.trainer.evaluation.readings import SALT, Plan, Readings
from fair_adapter.trainer.evaluation.report import SHOWN, Measured, Report
from fair_adapter.trainer.evaluation.rows import kept_rows
from fair_adapter.trainer.evaluation.summary import print_summary
from fair_adapter.trainer.portrait.card import FILE as CARD
from fair_adapter.trainer.training.logs import logged_seconds
from fair_adapter.trainer.training.means import deviation

ATTRIBUTES = (GENDER, RACE, AGE)
SEEDS = (8555226588886727098, 375653326645870945)  # of pictures 0 and 1 of the prompt "a nurse"


def readings(labels, cues=0, faces=None, features=None, judged=None) -> Readings:
    """Of one prompt; labels (n, 3) with -1 for no face."""
    labels = np.array(labels)
    n = len(labels)
    boxes = np.where(labels[:, :1] >= 0, np.array([[10.0, 10, 50, 50]]), np.nan)
    rng = np.random.default_rng(n)
    return Readings(
        labels=labels,
        confidence=np.full(labels.shape, 0.9),
        judged=np.zeros((n, 0), int) if judged is None else np.array(judged),
        faces=np.eye(n, 128) if faces is None else faces,
        features=np.eye(n, 16) if features is None else features,
        cues=np.full(n, cues),
        boxes=boxes,
        pictures=rng.integers(0, 255, (min(n, 3), 64, 64, 3), dtype=np.uint8),
    )


def prompts(*cues) -> list[Prompt]:
    return [Prompt(f"prompt {i}", f"name {i}", "test", cue) for i, cue in enumerate(cues)]


# ---- figures


def test_figures_with_known_values():
    one = readings([[0, 0, 0], [0, 1, 0], [0, 2, 0], [1, 0, 1]], cues=4)
    two = readings([[1, 0, 0], [1, 1, 0], [-1, -1, -1], [1, 2, 1]], cues=5)
    target = TargetDistribution.parse("gender=50/50;age=young:75,old:25")
    figures = summarise([one, two], prompts(4, 7), ATTRIBUTES, target)
    assert figures["gender"]["bias"] == pytest.approx((0.5 + 1.0) / 2)
    assert figures["gender"]["shares"]["female"] == pytest.approx((0.75 + 0.0) / 2)
    assert figures["gender"]["target_error"] == pytest.approx((0.25 + 0.5) / 2)
    assert figures["race"]["bias"] == pytest.approx((2 / 3 * 0.25 + 0.0) / 2)
    assert "target_error" not in figures["race"]
    assert figures["age"]["target_error"] == pytest.approx((0.0 + (0.25 - 0.25 + 1 / 12)) / 2)
    assert figures["face_rate"] == pytest.approx(7 / 8) and figures["text_alignment"] == 0.5
    assert figures["identity_diversity"] == pytest.approx(np.sqrt(2)) and figures["image_similarity"] == 1.0
    assert figures["gender_x_race"]["n_per_prompt"] == 3.5 and figures["pictures"] == 8
    low, high = figures["gender"]["ci95"]
    assert low <= figures["gender"]["bias"] <= high and 0 < figures["gender"]["floor"] < 0.5
    low, high = figures["age"]["target_ci95"]
    assert low <= figures["age"]["target_error"] <= high
    low, high = figures["intervals"]["face_rate"]
    assert low <= 7 / 8 <= high and low < high and figures["prompts"] == 2
    assert figures["intervals"]["image_similarity"] is None  # 1 for every prompt
    json.dumps(figures, allow_nan=False)


def test_joint_targets_are_compared_cell_by_cell_and_other_classes_not_at_all():
    rows = [[0, 1, 0], [0, 1, 0], [1, 2, 0], [1, 2, 0]]
    only = readings(rows, judged=rows)
    joint = TargetDistribution.parse("gender*race=female*black:50,male*asian:50")
    figures = summarise([only], prompts(0), ATTRIBUTES, joint)["gender_x_race"]
    assert figures["target_error"] == 0 and 0 < figures["target_floor"] < 0.2
    crossed = readings([[0, 2, 0], [0, 2, 0], [1, 1, 0], [1, 1, 0]])  # the marginals are right all the same
    figures = summarise([crossed], prompts(0), ATTRIBUTES, joint)
    assert figures["gender"]["target_error"] == 0 and figures["race"]["target_error"] == 0
    assert figures["gender_x_race"]["target_error"] == pytest.approx(4 * 0.5 / 6)

    four = Attribute("race", ("wmelh", "asian", "black", "indian"))  # as the official release's classifiers
    target = TargetDistribution.uniform([GENDER, four])
    figures = summarise([only], prompts(0), ATTRIBUTES, target, judges=ATTRIBUTES)
    assert "target_error" in figures["gender"] and "target_error" in figures["independent"]["gender"]
    assert "target_error" not in figures["race"] and "target_error" not in figures["gender_x_race"]


def test_figures_without_a_face_or_a_cue():
    nobody = readings([[-1, -1, -1]] * 3)
    figures = summarise([nobody], prompts(None), ATTRIBUTES, TargetDistribution.parse("gender=50/50"))
    assert figures["gender"] is None and figures["gender_x_race"] is None and figures["face_rate"] == 0
    assert figures["text_alignment"] is None and figures["identity_diversity"] is None


def test_similarity_compares_the_same_noises_and_the_judge_is_its_own():
    base = readings([[0, 0, 0]] * 2, features=np.eye(2, 16), judged=[[0, 0, 0], [0, 0, 0]])
    other = readings([[1, 0, 0], [0, 0, 0]], features=np.eye(2, 16)[::-1], judged=[[0, 0, 0], [1, 0, 0]])
    figures = summarise([other], prompts(0), ATTRIBUTES, None, [base], ATTRIBUTES)
    assert figures["image_similarity"] == 0.0 and figures["gender"]["bias"] == 0.0
    assert figures["independent"]["gender"]["bias"] == 0.0
    assert summarise([base], prompts(0), ATTRIBUTES, None, [base])["image_similarity"] == 1.0


def test_difference_pairs_pictures_and_holds_both_against_the_same_target():
    base = readings([[0, 0, 0]] * 4, judged=[[1, 0, 0]] * 4)
    other = readings([[0, 0, 0], [0, 1, 0], [1, 2, 0], [-1, -1, -1]], judged=[[1, 0, 0]] * 4)
    target = TargetDistribution.parse("gender=75/25")
    figures = summarise([other], prompts(0), ATTRIBUTES, target, [base], ATTRIBUTES)
    before = summarise([base], prompts(0), ATTRIBUTES, target)
    gender = figures["difference"]["gender"]
    for key in ("bias", "target_error"):
        assert gender[key] == pytest.approx(figures["gender"][key] - before["gender"][key])
    assert gender["target_error_before"] == pytest.approx(0.25)
    assert gender["ci95"][0] <= gender["bias"] <= gender["ci95"][1]
    assert "target_error" not in figures["difference"]["race"] and "difference" not in before
    same = figures["difference"]["independent"]["gender"]
    assert (same["bias"], same["ci95"]) == (0.0, [0.0, 0.0])
    nobody = readings([[-1, -1, -1]] * 4)
    assert summarise([nobody], prompts(0), ATTRIBUTES, target, [base])["difference"]["gender"] is None


def test_diversity_within_classes_does_not_grow_when_shares_even_out():
    spread = np.zeros((4, 128))
    spread[:, 0] = [1, 1, -1, -1]  # two faces of each of two far clusters
    mixed = readings([[0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0]], faces=spread)
    assert identity_diversity([mixed]).tolist() == pytest.approx([4 / 6 * 2])
    assert identity_diversity([mixed], alike=True).tolist() == pytest.approx([0.0])
    assert len(identity_diversity([readings([[0, 0, 0]])])) == 0


@given(st.lists(st.integers(-1, 1), min_size=1, max_size=20))
def test_shares_by_prompt_sum_to_one(column):
    reading = readings([[c, max(c, -1), c] if c >= 0 else [-1, -1, -1] for c in column])
    shares = shares_by_prompt([reading], ATTRIBUTES)["gender"][0]
    faces = sum(c >= 0 for c in column)
    assert (
        shares is None
        if not faces
        else shares == pytest.approx([column.count(0) / faces, column.count(1) / faces])
    )


def test_live_deviation_is_bias_for_equal_targets_and_distance_otherwise():
    equal = TargetDistribution.parse("gender=50/50")
    assert deviation(np.array([1.0, 0.0]), equal, "gender") == 1.0
    assert deviation(np.array([0.75, 0.25]), TargetDistribution.parse("gender=75/25"), "gender") == 0.0
    assert deviation(np.array([0.5, 0.5]), TargetDistribution.parse("gender=75/25"), "gender") == 0.25


# ---- report


@pytest.fixture
def report() -> Report:
    target = TargetDistribution.parse("gender=equal;age=young:75,old:25")
    before = [readings([[0, 0, 0], [0, 1, 0], [-1, -1, -1], [0, 2, 1]]), readings([[1, 0, 0]] * 4)]
    after = [readings([[0, 0, 0], [1, 1, 0], [1, 2, 1], [0, 0, 0]]), readings([[1, 0, 0], [0, 1, 0]] * 2)]
    names = [Prompt("a <script>alert(1)</script> nurse", "<b>nurse</b>", "test", 0), *prompts(0)]
    figures = [summarise(r, names, ATTRIBUTES, target, o) for r, o in ((before, None), (after, before))]
    return Report(
        title="A & B",
        prompts=names,
        attributes=ATTRIBUTES,
        target=target,
        original=Measured(figures[0], before),
        adapter=Measured(figures[1], after),
        seconds={"total": 12.34},
        command="python trainer/evaluate.py --adapter 'a b'",
        sections={"no_person": {"original": figures[0], "adapter": figures[1]}},
    )


def test_report_json_has_the_agreed_form(report, tmp_path):
    report.write(tmp_path)
    table = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert {"original", "adapter", "target", "seconds", "command"} <= set(table)
    for model in ("original", "adapter"):
        for name in ("gender", "race", "gender_x_race"):
            entry = table[model][name]
            assert {"bias", "ci95", "floor", "n_per_prompt", "shares"} <= set(entry)
            assert len(entry["ci95"]) == 2 and sum(entry["shares"].values()) == pytest.approx(1)
        for name in ("face_rate", "text_alignment", "identity_diversity", "image_similarity"):
            assert name in table[model]
    assert table["target"]["text"] == "gender=female:50,male:50;age=young:75,old:25"
    assert table["seconds"] == {"total": 12.3}
    assert table["shares_by_prompt"]["original"]["gender"][1] == [0.0, 1.0]


def test_report_page_is_complete_in_itself_and_escapes(report, tmp_path):
    report.write(tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page and "A &amp; B" in page
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert len(sources) == 1 + 2 * 2 and all(s.startswith("data:image/") for s in sources)
    assert "url(" not in page and "@import" not in page
    gender, bias = report.adapter.figures["gender"], report.original.figures["gender"]["bias"]
    assert f"{gender['bias']:.3f}" in page and f"{bias:.3f}" in page and f"{gender['floor']:.3f}" in page
    assert page.count('<u style="left: 50.00%"></u>') == 4  # target line of gender: two prompts, two models
    assert page.count('<u style="left: 75.00%"></u>') == 4
    picture = open_image(tmp_path / "report.png")
    assert picture.width > 3 * 128 and picture.height > 4 * 128


def shown(page: str) -> str:
    """The words of a page."""
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


def test_report_of_a_base_model_alone(report):
    alone = Report(
        report.title, report.prompts, ATTRIBUTES, report.target, report.original, None, {"total": 1}, "x"
    )
    page = shown(alone.to_html())
    assert "adapter" not in alone.to_dict() and "with the adapter" not in page
    assert "8 pictures." in page and "before and after" not in page
    error = report.original.figures["age"]["target_error"]
    assert "off target original [95%]" in page and f"age {error:.3f} [" in page


def test_report_says_how_far_off_an_unequal_target_with_interval_and_difference(report):
    page = shown(report.to_html())
    before, after = (m.figures["age"] for m in (report.original, report.adapter))
    change = report.adapter.figures["difference"]["age"]

    def spelled(value: float, interval: list[float], sign: str = "") -> str:
        return f"{value:{sign}.3f} [{interval[0]:{sign}.3f}, {interval[1]:{sign}.3f}]†"

    cells = [spelled(table["target_error"], table["target_ci95"]) for table in (before, after)]
    cells.append(spelled(change["target_error"], change["target_ci95"], "+"))
    assert f"age {' '.join(cells)} {after['target_floor']:.3f}" in page
    assert "off target original [95%]" in page and "difference [95%]" in page
    assert "† fewer than 8 prompts" in page and "another seed would give" in page
    assert "gender bias" in report.lead() and "age off target by" in report.lead()


def test_lead_holds_joint_targets_against_their_own_shares(report):
    def lead(text: str) -> str:
        target = TargetDistribution.parse(text)
        models = (report.original, report.adapter)
        first, second = (
            summarise(model.readings, report.prompts, ATTRIBUTES, target, before)
            for model, before in zip(models, (None, report.original.readings))
        )
        changed = replace(
            report,
            target=target,
            original=Measured(first, models[0].readings),
            adapter=Measured(second, models[1].readings),
        )
        return changed.lead()

    tied = lead("gender*race=female*wmelh:30,female*black:10,female*asian:10,male*wmelh:3.3333333,"
                "male*black:23.3333333,male*asian:23.3333334")  # fmt: skip
    assert "gender bias" in tied and "race bias" in tied and "gender x race off target by" in tied
    skewed = lead("gender=75/25;race=equal")
    assert "gender off target by" in skewed and "gender x race off target by" in skewed
    assert "gender x race" not in lead("gender=75/25") and "gender x race bias" in lead("gender=equal")


def test_sections_have_the_same_tables(report):
    """Every figure of the main part, with interval and floor, once more."""
    page = shown(report.to_html())
    main, section = page.split("Pictures before and after", 1)[0], page.split(" no_person ", 1)[1]
    for words in (
        "gender x race",
        "off target original [95%]",
        "difference [95%]",
        "identity diversity within classes",
    ):
        assert words in main and words in section, words
    figures = report.adapter.figures["race"]
    low, high = figures["ci95"]
    assert f"{figures['bias']:.3f} [{low:.3f}, {high:.3f}]†" in section


def test_terminal_shows_differences_sections_and_few_prompts(report, capsys):
    print_summary(report)
    lines = capsys.readouterr().out.splitlines()
    change = report.adapter.figures["difference"]["gender"]
    gender = next(line for line in lines if line.startswith("gender bias"))
    assert f"{change['bias']:+.3f} [{change['ci95'][0]:+.3f}, {change['ci95'][1]:+.3f}]" in gender
    section = next(line for line in lines if line.startswith("no_person"))
    two = [m.figures["gender"]["bias"] for m in (report.original, report.adapter)]
    assert " -> ".join(f"{value:.3f}" for value in two) in section
    assert any(line.startswith("age off target") for line in lines)
    assert any(line.startswith("few prompts") for line in lines)


def test_intervals_of_many_prompts_are_not_marked(report):
    many = readings([[0, 0, 0], [1, 1, 0], [0, 2, 1]])
    names = prompts(*[0] * 8)
    figures = summarise([many] * 8, names, ATTRIBUTES)
    alone = replace(report, prompts=names, original=Measured(figures, [many] * 8), adapter=None, sections={})
    assert "†" not in alone.to_html()


def test_similarity_by_an_encoder_of_the_training_is_marked(report):
    configuration = {"loss": {"encoders": ["embedded", "open_clip:FILE"], "semantics": 8.0}}
    assert trained_encoders(configuration) == {"embedded", "open_clip"}
    for other in ({}, {"loss": 3}, {"loss": {"encoders": ["embedded"], "semantics": 0}}):
        assert trained_encoders(other) == set()
    figures = report.adapter.figures
    marked = replace(report.adapter, figures={**figures, "trained_encoders": ["embedded:1"]})
    page = shown(replace(report, adapter=marked).to_html())
    assert page.count("used in training") == 1
    assert "used in training" not in shown(report.to_html())
    several = {**figures, "image_similarities": {"a": 0.5, "b": 0.25}, "trained_encoders": ["b"]}
    several["intervals"] = {**figures["intervals"], "image_similarities": {"a": None, "b": None}}
    rows = {row.name: row.figures[0] for row in kept_rows([several])}
    notes = {name[-1]: figure.note for name, figure in rows.items() if name.startswith("similarity")}
    assert notes == {"a": "", "b": "used in training"}


# ---- measuring a model


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return write_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "pipeline")


PLAN = Plan(images=5, steps=2, scale=2.0, batch=3, kept=2)


def test_noise_is_shared_between_batches_and_kept_on_disk(pipeline, tmp_path):
    names = prompts(3, None)
    target = TargetDistribution.parse("gender=50/50")
    bench = Bench(pipeline, Instruments(detector="fixed", cache=tmp_path), quiet=True)
    first = bench.original(names, PLAN, target)
    assert bench.reader.drawn == 10 and first.readings[0].pictures.shape == (2, 64, 64, 3)
    again = bench.original(names, PLAN, target)
    assert bench.reader.drawn == 10 and again.figures == first.figures
    whole = bench.reader.read(bench.model, names[0], Plan(5, 2, 2.0, batch=5))
    assert np.allclose(whole.features, first.readings[0].features, atol=1e-4)
    one = bench.reader.read(bench.model, names[0], Plan(1, 2, 2.0))
    assert np.allclose(one.features[0], whole.features[0], atol=1e-4)
    next(tmp_path.rglob("*.npz")).write_bytes(b"damaged")
    assert bench.original(names, PLAN, target).figures == first.figures and bench.reader.drawn > 15
    other = Plan(images=5, steps=3, scale=2.0, batch=3, kept=2)
    assert not np.allclose(
        bench.original(names, other, target).readings[0].features, first.readings[0].features
    )


def test_pictures_that_are_not_numbers_are_an_error_and_kept_nowhere(pipeline, tmp_path, monkeypatch, capsys):
    bench = Bench(pipeline, Instruments(detector="fixed", independent=None, cache=tmp_path), quiet=True)
    whole = bench.model.decode

    def overflowing(latents):
        images = whole(latents)
        images[-1, 0, 0, 0] = float("nan")
        return images

    monkeypatch.setattr(bench.model, "decode", overflowing)
    with pytest.raises(FairAdapterError, match=r"found 1 of 3 that are not numbers; give --dtype bfloat16"):
        bench.original(prompts(0), PLAN, TargetDistribution.parse("gender=50/50"))
    assert not list(tmp_path.rglob("*.npz"))
    monkeypatch.undo()
    kept = bench.reader.read(bench.model, prompts(0)[0], PLAN)
    path = bench.reader._path(bench.identity, prompts(0)[0], PLAN)
    module._save(path, replace(kept, features=kept.features * np.nan))  # by a version that did not look
    drawn = bench.reader.drawn
    assert bench.original(prompts(0), PLAN, TargetDistribution.parse("gender=50/50")).figures["gender"]
    assert bench.reader.drawn == drawn + PLAN.images


def test_pictures_stay_in_memory_for_the_prompts_that_are_shown(pipeline, tmp_path):
    bench = Bench(pipeline, Instruments(detector="fixed", independent=None, cache=tmp_path), quiet=True)
    names = [Prompt(f"prompt {i}", f"{i}", "test", None) for i in range(SHOWN + 2)]
    for _ in range(2):  # drawn, then found on disk
        found = bench.original(names, Plan(2, 1, 2.0, kept=2), TargetDistribution.parse("gender=50/50"))
        kept = [len(reading.pictures) for reading in found.readings]
        assert kept == [2] * SHOWN + [0, 0] and all(len(r.labels) == 2 for r in found.readings)
    assert found.readings[-1].pictures.base is None  # a copy, not a view of what was to be forgotten


def test_facts_name_everything_that_figures_depend_on(pipeline):
    bench = Bench(pipeline, Instruments(detector="fixed", independent=None), quiet=True)
    facts = bench.facts(Plan(5, 3, 2.5, "blurred"))
    assert facts["model"] == "pipeline, guidance scale 2.5, 3 steps" and facts["size"] == "64 px"
    assert facts["computed in"] == "float32 on cpu" and facts["negative prompt"] == "blurred"
    assert facts["scheduler"] == "DPMSolverMultistepScheduler" and facts["independent classifier"] == "none"
    assert facts["image encoders"].startswith("embedded:") and facts["CLIP"] == "none"


def test_memory_that_runs_out_asks_for_smaller_batches_alone(pipeline, tmp_path, monkeypatch):
    names, target, said = prompts(3, None), TargetDistribution.parse("gender=50/50"), []
    bench = Bench(pipeline, Instruments(detector="fixed", independent=None, cache=tmp_path), quiet=True)
    expected = bench.reader.read(bench.model, names[0], PLAN)
    whole = bench.model.decode

    def scarce(latents):
        if len(latents) > 1:
            raise RuntimeError("CUDA error: out of memory")
        return whole(latents)

    monkeypatch.setattr(bench.model, "decode", scarce)
    found = list(bench.reader.read_all(bench.model, "x", names, PLAN, said.append))
    assert said == ["out of memory: batch is 1 from now on, the result is the same"]
    assert (
        np.allclose(found[0].features, expected.features, atol=1e-4) and len(found[1].labels) == PLAN.images
    )
    drawn = bench.reader.drawn
    list(bench.reader.read_all(bench.model, "x", names, replace(PLAN, batch=1)))  # the same pictures
    assert bench.reader.drawn == drawn and bench.original(names, PLAN, target).figures["pictures"] == 10


def test_only_a_portrait_model_is_asked_for_cues(pipeline, tmp_path):
    other = Path(shutil.copytree(pipeline, tmp_path / "other"))
    (other / CARD).unlink()
    for folder, known in ((pipeline, True), (other, False)):
        bench = Bench(folder, Instruments(detector="fixed", independent=None), quiet=True)
        doctor = [Prompt("a photo of a doctor", "doctor", "occupations_train")]  # a name of its world
        target = TargetDistribution.parse("gender=50/50")
        figures = bench.original(doctor, Plan(1, 1, 2.0), target).figures
        assert (figures["text_alignment"] is not None) == known


def test_noise_does_not_depend_on_the_process():
    """Python's own hash would differ from process to process; these numbers are from another one."""
    assert noise_seed("a nurse", 0, SALT) == SEEDS[0] and noise_seed("a nurse", 1, SALT) == SEEDS[1]
    assert noise_seed("a nurse", 0, "train") != SEEDS[0]


def test_demo_trains_exports_and_measures_the_exported_file(pipeline, tmp_path, capsys):
    """demo.py end to end, then evaluate.py with its adapter; a second call finds everything done."""
    run = tmp_path / "demo"
    settings = [
        f"model.path={pipeline}",
        "faces={detector: fixed, bank: null}",
        f"run.output={run}",
        "run.sample_every=0",
        f"references.cache={tmp_path / 'cache'}",
        "adapter.rank=2",
        "optimizer={iterations: 2, images: 4}",
        "sampling={steps: [3, 3], gradient_steps: 1}",
        "evaluation={limit: 2, images: 4, steps: 2}",
    ]
    assert demo.main(settings) == 0
    table = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert table["command"].startswith("python install.py demo ") and table["original"]["pictures"] == 8
    assert table["target"]["text"].startswith("gender=female:50,male:50;race=")
    assert {"training", "total", "measuring original", "measuring with the adapter"} <= set(table["seconds"])
    assert table["adapter"]["image_similarity"] != 1.0 and table["original"]["image_similarity"] == 1.0
    assert "independent" in table["adapter"] and (run / "report.html").exists()
    recorded = FairnessAdapter.read_info(run / "adapter.safetensors").evaluation
    assert {k: recorded[k] for k in ("original", "adapter")} == {k: table[k] for k in ("original", "adapter")}
    written = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert demo.main(settings) == 0  # what it took the first time stays written down
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == written
    assert "nothing to draw or to train" in capsys.readouterr().out
    (run / "report.json").unlink()
    assert demo.main(settings) == 0
    again = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert again["adapter"] == table["adapter"]
    assert again["seconds"]["training"] == pytest.approx(logged_seconds(run), abs=0.06)  # it is rounded

    common = [
        "--model",
        str(pipeline),
        "--detector",
        "fixed",
        "--images",
        "4",
        "--steps",
        "2",
        "--limit",
        "1",
    ]
    common += ["--cache", str(tmp_path / "cache"), "--independent", "none", "--out", str(tmp_path / "out")]
    adapter = ["--adapter", str(run / "adapter.safetensors")]
    capsys.readouterr()
    assert evaluate.main([*common, *adapter, "--also", "no_person", "--guidance", "2", "3"]) == 0
    table = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert set(table["sections"]) == {"no_person", "guidance 3"} and "independent" not in table["original"]
    assert table["facts"]["prompts"] == "occupations_test, 1 prompt, 4 pictures of each"
    assert "difference" in table["sections"]["no_person"]["adapter"]
    assert table["adapter"]["trained_encoders"] == table["adapter"]["encoders"]  # both are the embedded one
    output = capsys.readouterr().out
    assert "gender bias" in output and "guidance 3 " in output and "used in training" in output
    assert evaluate.main([*common, *adapter, "--strength", "0", "--guidance", "2"]) == 0
    table = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert table["adapter"]["gender"] == table["original"]["gender"] and table["adapter"][
        "image_similarity"
    ] == pytest.approx(1)


def test_bad_input_is_one_line_and_exit_code_2(pipeline, tmp_path, capsys):
    (tmp_path / "report.json").write_text("earlier", encoding="utf-8")
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    (tmp_path / "no.safetensors").write_bytes(b"nonsense")
    common = [
        "--model",
        str(pipeline),
        "--detector",
        "fixed",
        "--images",
        "1",
        "--steps",
        "1",
        "--limit",
        "1",
    ]
    common += ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path)]
    calls = [
        (["--model", "nowhere"], "nowhere"),
        (["--adapter", "nowhere.safetensors"], "no such file"),
        (["--adapter", str(tmp_path / "no.safetensors")], "no.safetensors"),
        (["--prompts", str(tmp_path / "empty.txt")], "found none"),
        (["--prompts", "occupations"], "unknown prompt set"),
        (["--target", "gender=70/70"], "sum to 140"),
        (["--classifier", "nobody"], "nobody"),
        (["--encoder", "nobody"], "nobody"),
        (["--images", "0"], "--images"),
        (["--device", "abacus"], "--device"),
        (["--device", "meta:x"], "--device"),
    ]
    for arguments, expected in calls:
        assert evaluate.main([*common, *arguments]) == 2, arguments
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and expected in error, (
            arguments,
            error,
        )
    assert (tmp_path / "report.json").read_text(encoding="utf-8") == "earlier"
    assert (
        demo.main(["optimizer.lr=fast"]) == 2
        and demo.main(["model.path=nowhere", "model.guidance_scale=2"]) == 2
    )
    assert capsys.readouterr().err.count("\n") == 2


def test_an_adapter_of_another_model_is_refused(pipeline, tmp_path):
    target = TargetDistribution.parse("gender=50/50")
    info = AdapterInfo("other", BaseModel("big", "sd1", {"clip_l": 768}), TargetSpace(target))
    adapter = FairnessAdapter(info, {"fair.soft.clip_l": torch.zeros(2, 768)})
    bench = Bench(pipeline, Instruments(detector="fixed", independent=None), quiet=True)
    original = bench.original(prompts(0), Plan(2, 2, 2.0), target)
    with pytest.raises(FairAdapterError, match="width 768"):
        bench.adapted(adapter, prompts(0), Plan(2, 2, 2.0), original)
