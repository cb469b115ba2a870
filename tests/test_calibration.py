"""Temperatures: what they do, how they are measured, where they are stored."""

import json
import re

import numpy as np
import pytest
import torch

from fair_adapter.shared.attributes import AGE, GENDER, RACE
from fair_adapter.shared.classifiers.base import CALIBRATION, ClassifierModule, temperatures
from fair_adapter.shared.classifiers.default import FILES
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.weight_files import WEIGHTS_FOLDER, identity
from fair_adapter.tests.fixture_faces import FOLDER, aligned, chain, rows
from fair_adapter.trainer.face_chain import calibrate


def test_temperatures_divide_the_logits_and_move_no_decision() -> None:
    faces = aligned().faces[:4]
    with torch.no_grad():
        raw, logits = chain().raw_logits(faces), chain()(faces)
    for name, value in raw.items():
        assert torch.allclose(logits[name] * chain().temperatures[name], value, rtol=1e-5)
        assert torch.equal(logits[name].argmax(1), value.argmax(1))


def test_stored_temperatures_were_measured_on_the_shipped_weights() -> None:
    stored = json.loads(CALIBRATION.read_text(encoding="utf-8"))["default"]
    assert chain().temperatures == {name: entry["temperature"] for name, entry in stored.items()}
    for entry in stored.values():
        assert entry["identity"] == identity("default", *(WEIGHTS_FOLDER / f for f in FILES.values()))
        assert entry["temperature"] >= 1 and entry["nll"][1] <= entry["nll"][0] + 0.002


def test_bad_calibration_files_and_temperatures_are_refused(tmp_path) -> None:
    path = tmp_path / "calibration.json"
    for text in (None, "{", "[]", '{"default": {"gender": 3}}'):
        if text is not None:
            path.write_text(text)
        with pytest.raises(FairAdapterError, match=re.escape(str(path))):
            temperatures("default", (GENDER,), path)
    path.write_text('{"default": {"gender": {"temperature": 2.5}}}')
    assert temperatures("default", (GENDER, RACE), path) == {"gender": 2.5}
    assert temperatures("another", (GENDER,), path) == {}
    with pytest.raises(FairAdapterError, match="positive temperatures"):
        ClassifierModule("x", "x:0", (GENDER,), {"gender": 0.0})


def test_calibration_recovers_a_known_temperature() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(4000, 3)) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (probabilities.cumsum(1) < generator.random((4000, 1))).sum(1)
    found = calibrate.calibrate(logits * 2.5, labels)
    assert found.optimum == pytest.approx(2.5, rel=0.08)
    assert found.optimum_ci[0] < 2.5 < found.optimum_ci[1]
    assert found.after.nll < found.before.nll and found.after.ece < 0.3 * found.before.ece
    sharp = calibrate.calibrate(logits * 0.5, labels)
    assert sharp.optimum == pytest.approx(0.5, rel=0.08) and sharp.temperature == 1.0


def test_calibration_error_of_known_cases() -> None:
    confidence, correct = np.full(10, 0.9), np.arange(10) < 6
    assert calibrate.calibration_error(confidence, correct) == pytest.approx(0.3)
    assert calibrate.calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0
    weights = np.array([3.0, 1.0])
    assert calibrate.calibration_error(
        np.array([0.8, 0.8]), np.array([True, False]), weights
    ) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("text", "gender", "race", "age"),
    [
        ("african male 30 year old adult", 1, 1, 0),
        ("asian female wrinkly 70 year old senior", 0, 2, 1),
        ("woman long red hair", 0, None, None),
        ("Middle Eastern", None, 0, None),
        ("old age native american", None, None, 1),
        ("typical adult south-american", None, 0, None),
        ("non-binary person", None, None, None),
        ("Caucasian", None, 0, None),
        ("", None, None, None),
    ],
)
def test_labels_are_read_from_search_texts(text: str, gender, race, age) -> None:
    row = {"retrieval_text": text, "age": "57.3", "p_male": "1.0"}  # the nets' outputs are no labels
    assert [calibrate.label(row, a) for a in (GENDER, RACE, AGE)] == [gender, race, age]


def test_labels_are_read_from_columns_where_there_is_no_text() -> None:
    assert calibrate.label({"gender": "Male"}, GENDER) == 1
    assert calibrate.label({"gender": ""}, GENDER) is None
    with pytest.raises(FairAdapterError, match="unknown class"):
        calibrate.label({"gender": "man"}, GENDER)


def test_calibration_command_writes_temperatures(tmp_path, monkeypatch, capsys) -> None:
    lines = ["file,gender"] + [f"{FOLDER / row['file']},{row['gender']}" for row in rows()[::6]]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    target = tmp_path / "calibration.json"
    monkeypatch.setattr(calibrate, "CALIBRATION", target)
    assert calibrate.main([str(tmp_path / "labels.csv"), "--device", "cpu", "--write"]) == 0
    entry = json.loads(target.read_text())["default"]["gender"]
    assert entry["n"] == 6 and entry["identity"] == chain().identity
    assert re.search(r"gender +6 +1\.000", capsys.readouterr().out)
    for argument in (tmp_path / "missing.csv", FOLDER / "LICENSE.txt"):
        assert calibrate.main([str(argument), "--device", "cpu"]) == 2
        assert re.fullmatch(r"error: .*column 'file'.*\n", capsys.readouterr().err)
