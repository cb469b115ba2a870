"""The figure of the three gradients, on the portrait model with few steps."""

import json

import numpy as np
import pytest

from fair_adapter.trainer import gradients


def test_program_writes_figure_and_numbers_and_overwrites_nothing(tmp_path, capsys):
    small = ["--runs", "2", "--trainings", "1", "--iterations", "2", "--steps", "3", "--rank", "2"]
    arguments = [*small, "--output", str(tmp_path / "out")]
    assert gradients.main(arguments) == 0
    report = json.loads((tmp_path / "out" / "gradients.json").read_text())
    assert (tmp_path / "out" / "gradients.png").read_bytes()[:4] == b"\x89PNG"
    steps, loss = report["steps"], report["loss"]
    assert set(steps) == set(loss) == {"naive", "direct", "adjusted"}
    assert steps["naive"]["spread"] == "range of 2 runs"
    assert len(report["timesteps"]) == len(steps["naive"]["mean"]) == 3 and len(loss["naive"]["mean"]) == 2
    # nothing comes after the last step that could couple it: B_t = 1
    assert steps["naive"]["mean"][-1] == pytest.approx(steps["direct"]["mean"][-1], rel=1e-4)
    assert not np.allclose(steps["naive"]["mean"][0], steps["direct"]["mean"][0], rtol=1e-2)
    assert (
        loss["naive"]["mean"][0] == loss["adjusted"]["mean"][0]
    )  # the same pictures before the first update
    assert gradients.main(arguments) == 2
    assert "gradients.json: is there already" in capsys.readouterr().err


def test_a_few_runs_have_a_range_and_many_an_interval():
    values = np.random.default_rng(0).random((20, 4))
    few, many = gradients.summary(values[:3]), gradients.summary(values)
    assert few["spread"] == "range of 3 runs" and many["spread"] == "90% interval of 20 runs"
    assert few["low"] == values[:3].min(0).tolist() and few["high"] == values[:3].max(0).tolist()
    assert (np.array(many["low"]) > values.min(0)).all() and (np.array(many["high"]) < values.max(0)).all()


def test_numbers_that_cannot_be(capsys):
    assert gradients.main(["--runs", "0"]) == 2
    assert capsys.readouterr().err.startswith("error: gradients: expected numbers of 1 or more")
