"""Each prompt at its own target: in training, in figures and in evaluate.py."""

import json
from dataclasses import replace

import numpy as np
import pytest

from fair_adapter.shared.adapter_target import TargetSpace
from fair_adapter.shared.attributes import AGE, GENDER, RACE, TargetDistribution
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.metrics import target_error_floor
from fair_adapter.tests.test_evaluate import pipeline, prompts, readings
from fair_adapter.tests.test_train import config, folder, log
from fair_adapter.tests.tiny_adapter import SPACE, make_adapter
from fair_adapter.trainer import evaluate
from fair_adapter.trainer.configuration.config import PromptSource
from fair_adapter.trainer.configuration.prompts import Prompt, evenly, names, read_prompts
from fair_adapter.trainer.evaluation import prompt_targets
from fair_adapter.trainer.evaluation.measures import summarise
from fair_adapter.trainer.evaluation.measuring import Bench, Instruments
from fair_adapter.trainer.evaluation.readings import Plan
from fair_adapter.trainer.evaluation.rows import uneven
from fair_adapter.trainer.training.run import train
from fair_adapter.trainer.training.targets import TargetDraw, own_targets

__all__ = ["config", "folder", "pipeline"]  # the fixtures
HEAD = "pattern,target,source,year\n"
ATTRIBUTES = (GENDER, RACE, AGE)
ONE, OTHER = (TargetDistribution.parse(f"gender={g};race=equal") for g in ("80/20", "20/80"))


def written(tmp_path, rows):
    path = tmp_path / "targets.csv"
    path.write_text(HEAD + rows, encoding="utf-8")
    return path


# ---- figures


def test_every_prompt_is_held_against_its_own_target():
    women = readings([[0, 0, 0]] * 4 + [[1, 0, 0]])  # 80% women
    men = readings([[1, 0, 0]] * 4 + [[0, 0, 0]])
    figures = summarise([women, men], prompts(0, 0), ATTRIBUTES, [ONE, OTHER])
    assert figures["gender"]["target_error"] == pytest.approx(0, abs=1e-8)
    floor = target_error_floor(5, np.array([0.8, 0.2]))
    assert figures["gender"]["target_floor"] == pytest.approx(floor)
    assert "target_error" in figures["gender_x_race"] and "target_error" not in figures["age"]
    swapped = summarise([women, men], prompts(0, 0), ATTRIBUTES, [OTHER, ONE])
    assert swapped["gender"]["target_error"] == pytest.approx(0.6)  # though the mean of the targets is met
    same = [summarise([women, men], prompts(0, 0), ATTRIBUTES, aim) for aim in (ONE, [ONE, ONE])]
    one, other = (figures["gender"] for figures in same)
    assert one["target_error"] == pytest.approx(other["target_error"])
    assert one["target_floor"] == pytest.approx(other["target_floor"])


def test_the_difference_is_of_each_prompt_to_its_own_target():
    fair = readings([[0, 0, 0], [1, 0, 0]] * 5)
    women, nobody = readings([[0, 0, 0]] * 8 + [[1, 0, 0]] * 2), readings([[-1, -1, -1]] * 10)
    added = summarise([women, women], prompts(0, 0), ATTRIBUTES, [ONE, OTHER], [fair, fair])["difference"]
    assert added["gender"]["target_error_before"] == pytest.approx(0.3)
    assert added["gender"]["target_error"] == pytest.approx((0.0 + 0.6) / 2 - 0.3, abs=1e-8)
    low, high = added["gender"]["target_ci95"]
    assert low <= added["gender"]["target_error"] <= high
    half = summarise([women, nobody], prompts(0, 0), ATTRIBUTES, [ONE, OTHER], [fair, fair])
    assert half["difference"]["gender"]["target_error"] == pytest.approx(-0.3)
    assert half["gender"]["target_error"] == pytest.approx(0, abs=1e-8)  # the one that has faces
    json.dumps(half, allow_nan=False)


def test_targets_that_are_equal_on_average_are_no_equal_targets():
    assert prompt_targets.PromptTargets((ONE, OTHER), ()).mean.is_equal("gender")
    assert uneven((ONE, OTHER), "gender") and not uneven((ONE, OTHER), "race")


# ---- evaluate.py


def test_evaluation_draws_and_judges_each_prompt_at_its_own_target(pipeline, tmp_path):
    bench = Bench(pipeline, Instruments(detector="fixed", independent=None), quiet=True)
    base = bench.model.describe("tiny")
    info = {"base": replace(make_adapter().info.base, widths=base.widths, hash=base.hash)}
    adapter = soft_alone(make_adapter(SPACE, **info), base.widths["clip_l"])
    chosen, plan = prompts(0, 0, 0), Plan(4, 2, 2.0)
    original = bench.original(chosen, plan, [ONE, OTHER, ONE])
    own = bench.adapted_each(adapter, chosen, plan, original, [ONE, OTHER, ONE])
    for place, target in enumerate((ONE, OTHER, ONE)):
        alone = bench.adapted(adapter, [chosen[place]], plan, original_of(original, place), target)
        assert np.array_equal(alone.readings[0].features, own.readings[place].features)
    other = bench.adapted(adapter, chosen[:1], plan, original_of(original, 0), OTHER)
    assert not np.array_equal(other.readings[0].features, own.readings[0].features)


def original_of(measured, place):
    return replace(measured, readings=[measured.readings[place]])


def soft_alone(adapter, width):
    """The soft tokens of a tiny adapter alone, as wide as a model's."""
    tensors = {k: v for k, v in adapter.tensors.items() if k.startswith("fair.soft")}
    return replace(adapter, tensors={k: v.repeat_interleave(width // 8, -1) for k, v in tensors.items()})


def test_evaluate_tells_the_prompts_without_a_row_and_writes_each_target_down(pipeline, tmp_path, capsys):
    first, second = (prompt.name for prompt in evenly(read_prompts(PromptSource("occupations_test")), 2))
    path = written(tmp_path, f"{first},gender=80/20,census,2031\n")
    common = ["--model", str(pipeline), "--detector", "fixed", "--images", "2", "--steps", "1"]
    common += ["--limit", "2", "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    assert evaluate.main([*common, "--table", str(path)]) == 0
    told = capsys.readouterr()
    assert told.err.count("warning") == 1 and f"{second}, a person', so the default target" in told.err
    assert "off target" in told.out
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    rows = report["prompt_targets"]
    assert rows[0]["target"].startswith("gender=female:80,male:20;race=")
    assert rows[0]["from"] == {"row": 2, "source": "census", "year": 2031} and rows[1]["from"] is None
    assert report["target"]["gender"] == pytest.approx({"female": 0.65, "male": 0.35})
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "each prompt&#39;s own" in page or "each prompt's own" in page
    for rows, expected in (("nobody,gender=80/20,,\n", "expected rows for the prompts"), ("", "found none")):
        assert evaluate.main([*common, "--table", str(written(tmp_path, rows))]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and expected in error


def test_the_table_of_the_documented_measurement_fits_its_prompts():
    chosen = evenly(read_prompts(PromptSource("occupations_test")), 20)
    path = evaluate.Path("trainer/prompts/held_out_targets.csv")
    path = evaluate.Path(__file__).resolve().parents[1] / path
    own = prompt_targets.read_targets(path, chosen, TargetDistribution.parse("gender=equal;race=equal"))
    assert not own.unmatched and len(set(own.targets)) == 20
    assert {choice.row.pattern for choice in own.choices} == {prompt.name for prompt in chosen}


# ---- training


def test_training_takes_the_target_of_each_prompt(config, tmp_path):
    sports = [name.phrase for name in names("sport")]
    rows = {sport: f"gender={10 + i}/{90 - i}" for i, sport in enumerate(sports[1:])}  # the first has none
    path = written(tmp_path, "".join(f"{sport},{target},,\n" for sport, target in rows.items()))
    settings = [f"target.table={path}", "optimizer.iterations=4", "adapter.text_lora=false"]
    settings += ["adapter.unet_lora=false", "run.sample_every=4", "run.sample_images=2"]
    train(config(*settings, "run.sample_prompts=2", "prompts.validation=[{set: sports}]"))
    found = {line["prompt"]: TargetDistribution.parse(line["target"]) for line in log(tmp_path / "run")}
    for prompt, target in found.items():
        wanted = next((text for sport, text in rows.items() if f" {sport}," in prompt), "gender=equal")
        assert target == TargetDistribution.parse(f"{wanted};race=equal")
    assert len(set(found.values())) > 2
    assert (tmp_path / "run" / "samples" / "000004.png").is_file()


def test_a_table_goes_before_drawn_targets_and_keeps_the_order_of_attributes(tmp_path):
    space = TargetSpace(ONE, "marginals", {"gender": {"female": (0.1, 0.9)}})
    path, said = written(tmp_path, "nurse,gender=95/5,,\nchef,race=10/20/70,,\n"), []
    table = own_targets(str(path), space, ["a nurse", "a chef", "a pilot"], said.append)
    assert said == [
        f"{path}, row 2: gender female 95% is outside 10 to 90%, the range of training",
        f"{path}: 1 of 3 prompts have no row, such as 'a pilot', and take target.text",
    ]
    draw = TargetDraw(space, 0.0, 0, table)
    assert draw.of(3, "a nurse") == TargetDistribution.parse("gender=95/5;race=equal")
    assert draw.of(3, "a chef").attributes == space.attributes
    assert draw.of(3, "a chef") == TargetDistribution.parse("gender=80/20;race=10/20/70")
    assert draw.of(3, "a pilot") == draw[3] != draw[4]
    assert own_targets(None, space, ["a nurse"]) is None


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("nurse,age=equal,,\n", "row 2: unknown attribute 'age'"),
        ("chef,gender=equal,,\n", "expected rows for prompts of training, found none"),
    ],
)
def test_a_table_that_training_can_not_follow_is_refused(rows, told, tmp_path):
    with pytest.raises(FairAdapterError, match=told):
        own_targets(str(written(tmp_path, rows)), TargetSpace(ONE), [Prompt("a nurse", "nurse", "x").text])
