"""Asked and measured shares of a target-conditioned adapter."""

import json

import numpy as np
import pytest

from fair_adapter.shared.attributes import AGE, GENDER, RACE, TargetDistribution
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.tests.a1111 import adapters
from fair_adapter.trainer import target_sweep

BOTH = (GENDER, RACE, AGE)


def test_distance_of_pooled_shares():
    rows = np.array([[0, 0, 0], [0, 1, 0], [1, 2, 1], [1, -1, 1], [-1, -1, -1]])  # two prompts of these
    found, _ = target_sweep.against(TargetDistribution.parse("gender=75/25;race=equal"), [rows, rows], BOTH)
    assert found["shares"]["gender"] == {"female": [0.75, 0.5], "male": [0.25, 0.5]}
    assert found["shares"]["race"]["black"] == pytest.approx([1 / 3, 1 / 3])
    assert found["error"] == pytest.approx((0.25 + 0.25 + 0 + 0 + 0) / 5)
    assert 0 < found["floor"] < 0.25 and set(found["shares"]) == {"gender", "race"}
    with pytest.raises(FairAdapterError, match="not one face"):
        target_sweep.against(TargetDistribution.parse("gender=75/25"), [rows[-1:]], BOTH)
    with pytest.raises(FairAdapterError, match=r"expected a classifier of age .* found one of gender"):
        target_sweep.against(TargetDistribution.parse("age=75/25"), [rows[:, :1]], (GENDER,))


def test_opposite_stereotypes_cancel_in_the_pooled_figure_alone():
    women, men = np.zeros((20, 3), int), np.ones((20, 3), int)
    found, _ = target_sweep.against(TargetDistribution.parse("gender=50/50"), [women, men], BOTH)
    assert found["error"] == 0.0 and found["by_prompt"]["error"] == pytest.approx(0.5)
    assert found["floor"] < found["by_prompt"]["floor"] < 0.2
    alone, _ = target_sweep.against(TargetDistribution.parse("gender=50/50"), [women], BOTH)
    assert alone["error"] == alone["by_prompt"]["error"] == pytest.approx(0.5) and alone["ci95"] is None


def test_intervals_draw_the_prompts_of_all_targets_together():
    """A prompt that is off at every target makes the mean over targets as uncertain as one target."""
    rng = np.random.default_rng(0)
    women = rng.binomial(40, 0.5, 12)
    labels = [(np.arange(40) >= n).astype(int)[:, None].repeat(3, 1) for n in women]
    target = TargetDistribution.parse("gender=20/80")
    one, found = target_sweep.against(target, labels, (GENDER,))
    low, high = one["ci95"]
    assert low < one["error"] < high
    table = target_sweep.over_all({when: target_sweep.joined([found] * 3) for when in ("before", "after")})
    assert table["after"] == pytest.approx(one["error"]) and table["floor"] == pytest.approx(one["floor"])
    assert table["after_ci95"] == pytest.approx(one["ci95"])  # three independent ones would be narrower
    assert table["by_prompt"]["after_ci95"] == pytest.approx(one["by_prompt"]["ci95"])


def test_default_targets_move_gender_race_and_both():
    moved = [TargetDistribution.parse(text) for text in target_sweep.TARGETS]
    uneven = [tuple(np.ptp(target.marginal(name)) > 0.05 for name in ("gender", "race")) for target in moved]
    assert [uneven.count(kind) for kind in ((True, False), (False, True), (True, True))] == [4, 4, 4]


def test_program_measures_a_conditioned_adapter_and_refuses_others(tmp_path, capsys):
    path, fixed, out = tmp_path / "any.safetensors", tmp_path / "fixed.safetensors", tmp_path / "out"
    adapters.words_adapter("any", {"female": "female", "male": "male"}).write(path)
    adapters.fixed_adapter("fixed", "engineer").write(fixed)
    small = ["--images", "3", "--limit", "1", "--steps", "4", "--independent", "none", "--encoder", "none"]
    common = [*small, "--cache", str(tmp_path / "cache"), "--out", str(out), "--targets"]
    arguments = [*common, "gender=20/80", "gender=80/20", "--adapter"]
    assert target_sweep.main([*arguments, str(path)]) == 0
    report = json.loads((out / "target_sweep.json").read_text())
    assert [row["target"] for row in report["targets"]] == [
        "gender=female:20,male:80",
        "gender=female:80,male:20",
    ]
    errors = [row["after"]["training"]["error"] for row in report["targets"]]
    assert report["mean"]["training"]["after"] == pytest.approx(np.mean(errors))
    by_prompt = [row["after"]["training"]["by_prompt"]["error"] for row in report["targets"]]
    assert report["mean"]["training"]["by_prompt"]["after"] == pytest.approx(np.mean(by_prompt))
    assert report["mean"]["training"]["after_ci95"] is None  # one prompt
    output = capsys.readouterr()
    assert "training classifier, pooled" in output.out and "training classifier, by prompt" in output.out
    assert "few prompts" in output.out and output.err.count("warning:") == 0
    outside = [*common, "gender=97/3", "--adapter", str(path)]
    assert target_sweep.main(outside) == 0
    assert "warning: gender=97/3: gender female 97% is outside 10 to 90%" in capsys.readouterr().err
    for ignored in (["--also", "no_person"], ["--record"], ["--guidance", "2", "3"]):
        with pytest.raises(SystemExit):
            target_sweep.main([*arguments, str(path), *ignored])
    capsys.readouterr()
    assert (out / "target_sweep.png").read_bytes()[:4] == b"\x89PNG"
    assert target_sweep.main([*arguments, str(fixed)]) == 2
    assert "expected a target-conditioned adapter" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        target_sweep.main(common[:-1])
    assert "--adapter" in capsys.readouterr().err
