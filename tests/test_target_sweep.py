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
    found = target_sweep.against(TargetDistribution.parse("gender=75/25;race=equal"), [rows, rows], BOTH)
    assert found["shares"]["gender"] == {"female": [0.75, 0.5], "male": [0.25, 0.5]}
    assert found["shares"]["race"]["black"] == pytest.approx([1 / 3, 1 / 3])
    assert found["error"] == pytest.approx((0.25 + 0.25 + 0 + 0 + 0) / 5)
    assert 0 < found["floor"] < 0.25 and set(found["shares"]) == {"gender", "race"}
    with pytest.raises(FairAdapterError, match="not one face"):
        target_sweep.against(TargetDistribution.parse("gender=75/25"), [rows[-1:]], BOTH)


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
    assert (out / "target_sweep.png").read_bytes()[:4] == b"\x89PNG"
    assert target_sweep.main([*arguments, str(fixed)]) == 2
    assert "expected a target-conditioned adapter" in capsys.readouterr().err
    assert target_sweep.main(common[:-1]) == 2
    assert capsys.readouterr().err.startswith("error: --adapter: expected")
