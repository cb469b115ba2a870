"""The independent evaluator: its readings, its files, the converter."""

import csv
import hashlib
import io
import json
import re
import shutil
import tarfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fair_adapter.shared.attributes import AGE, GENDER, RACE
from fair_adapter.shared.classifiers import AttributeClassifier, load_classifier
from fair_adapter.shared.classifiers import evaluator as module
from fair_adapter.shared.classifiers.evaluator import (
    HEADS_FILE,
    NET_FILE,
    Evaluator,
    FaceResNet,
    load,
    two_ages,
)
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.faces import window
from fair_adapter.shared.weight_files import WEIGHTS_FOLDER
from fair_adapter.tests.fixture_faces import aligned, chain, rows
from fair_adapter.trainer.face_chain import convert_evaluator

READINGS = Path(__file__).parent / "data" / "evaluator_readings.csv"


@lru_cache(maxsize=1)
def evaluator() -> Evaluator:
    return load()


@lru_cache(maxsize=1)
def logits() -> dict[str, torch.Tensor]:
    return evaluator()(aligned().faces)


# ---- readings


def test_fixture_faces_are_read_as_before() -> None:
    """A regression test, no accuracy: most of these faces were chosen because other nets agree on them."""
    for attribute, column, least in ((GENDER, "gender", 36), (RACE, "race", 36), (AGE, "age_group", 32)):
        read = [attribute.classes[i] for i in logits()[attribute.name].argmax(1).tolist()]
        assert sum(a == row[column] for a, row in zip(read, rows())) >= least


def test_probabilities_of_the_fixture_are_those_on_record() -> None:
    with READINGS.open(encoding="utf-8", newline="") as file:
        record = list(csv.DictReader(file))
    assert [r["file"] for r in record] == [row["file"] for row in rows()]
    p = {name: value.softmax(1) for name, value in logits().items()}
    found = {
        "male": p["gender"][:, 1],
        "black": p["race"][:, 1],
        "asian": p["race"][:, 2],
        "old": p["age"][:, 1],
    }
    for column, values in found.items():
        expected = torch.tensor([float(r[column]) for r in record])
        assert torch.allclose(values, expected, atol=0.01), column


def test_evaluator_keeps_the_protocol() -> None:
    net = load_classifier("evaluator")
    assert isinstance(net, AttributeClassifier)
    assert net.attributes == (GENDER, RACE, AGE)
    assert re.fullmatch(r"evaluator:[0-9a-f]{12}", net.identity)
    assert {k: tuple(v.shape) for k, v in net(aligned().faces[:0]).items()} == {
        "gender": (0, 2), "race": (0, 3), "age": (0, 2)
    }  # fmt: skip


def test_nobody_can_train_on_the_evaluator() -> None:
    faces = aligned().faces[:1].clone().requires_grad_(True)
    for value in evaluator()(faces).values():
        assert not value.requires_grad


def test_evaluator_shares_no_file_with_the_chain_it_judges() -> None:
    tensors = {t.data_ptr() for t in chain().state_dict().values()}
    assert not tensors & {t.data_ptr() for t in evaluator().state_dict().values()}
    assert chain().identity != evaluator().identity


def test_batch_is_the_same_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 2)
    together = evaluator()(aligned().faces[:3])  # two parts
    for name, value in together.items():
        assert torch.allclose(value, logits()[name][:3], atol=1e-4)


def test_autocast_changes_nothing() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        again = evaluator()(aligned().faces[:2])
    for name, value in again.items():
        assert torch.allclose(value, logits()[name][:2], atol=1e-4)


def test_accuracy_is_stated_with_its_interval() -> None:
    for attribute in evaluator().attributes:
        a = evaluator().accuracy[attribute.name]
        assert a.count > 90 and a.low < a.correct / a.count < a.high
        assert a.correct / a.count > 0.9
        assert evaluator().temperatures[attribute.name] >= 1.0


@given(st.lists(st.floats(-30, 30), min_size=100, max_size=100))
def test_two_ages_are_the_sums_of_their_years(values: list[float]) -> None:
    x = torch.tensor([values], dtype=torch.float64)
    p = x.softmax(1)[0]  # ages 1 to 100
    expected = torch.stack([p[:39].sum(), p[39:].sum()])
    assert torch.allclose(two_ages(x).softmax(1)[0], expected)


# ---- files


def test_licence_page_states_the_files_as_shipped() -> None:
    page = (WEIGHTS_FOLDER / "EVALUATOR_LICENSE.md").read_text(encoding="utf-8")
    for name in (NET_FILE, HEADS_FILE):
        blob = (WEIGHTS_FOLDER / name).read_bytes()
        assert hashlib.sha256(blob).hexdigest() in page and str(len(blob)) in page
    for attribute, a in evaluator().accuracy.items():
        assert f"{a.correct} of {a.count}" in page, attribute


@pytest.mark.parametrize("name", [NET_FILE, HEADS_FILE])
@pytest.mark.parametrize("damage", ["missing", "truncated", "other"])
def test_damaged_files_are_named(tmp_path: Path, name: str, damage: str) -> None:
    for file in (NET_FILE, HEADS_FILE):
        shutil.copy(WEIGHTS_FOLDER / file, tmp_path / file)
    path = tmp_path / name
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        shutil.copy(WEIGHTS_FOLDER / "gender.safetensors", path)
    with pytest.raises(FairAdapterError) as error:
        load(tmp_path)
    message = str(error.value)
    assert "\n" not in message and str(path) in message and "expected" in message and "found" in message
    with pytest.raises(FairAdapterError, match="expected the folder"):
        load(tmp_path / "none")


# ---- converter


def convolve(x: np.ndarray, kernel: np.ndarray, stride: int, depthwise: bool) -> np.ndarray:
    """TensorFlow's SAME convolution of one picture (H, W, C), from its definition."""
    k, size = kernel.shape[0], -(-x.shape[0] // stride)
    before = max((size - 1) * stride + k - x.shape[0], 0) // 2
    padded = np.pad(x, ((before, k), (before, k), (0, 0)))
    out = np.zeros((size, size, kernel.shape[2] if depthwise else kernel.shape[3]))
    for i in range(size):
        for j in range(size):
            patch = padded[i * stride : i * stride + k, j * stride : j * stride + k]
            out[i, j] = (
                np.einsum("hwc,hwco->c", patch, kernel)
                if depthwise
                else np.einsum("hwc,hwco->o", patch, kernel)
            )
    return out


def toy_faceres() -> tuple[dict[str, Any], bytes, dict[str, np.ndarray]]:
    """A net of faceres's kind with three convolutions: model.json, weights and the arrays."""
    generator = np.random.default_rng(0)
    shapes = {
        "c0": (3, 3, 3, 8), "b0": (8,), "c1": (3, 3, 8, 1), "s1": (8,), "b1": (8,), "c2": (1, 1, 8, 1024),
        "b2": (1024,), "wf": (1024, 256), "bf": (256,), "wg": (256, 1), "bg": (1,), "wa": (256, 100),
        "ba": (100,),
    }  # fmt: skip
    arrays = {k: (generator.normal(size=s) * 0.1).astype(np.float16) for k, s in shapes.items()}
    arrays["c0"] *= np.float16(0.05)  # inputs are levels up to 255
    arrays |= {"six": np.float32(6.0), "zero": np.float32(0.0), "axes": np.array([1, 2], np.int32)}
    nodes: list[dict[str, Any]] = [{"name": "x", "op": "Placeholder"}]
    nodes += [{"name": name, "op": "Const"} for name in arrays]

    def add(op: str, name: str, *inputs: str, stride: int | None = None) -> str:
        strides = {"list": {"i": ["1", str(stride), str(stride), "1"]}}
        attributes = {"strides": strides, "padding": {"s": "U0FNRQ=="}} if stride else {}  # "SAME"
        nodes.append({"name": name, "op": op, "input": list(inputs), "attr": attributes})
        return name

    last = "x"
    for i, (op, stride) in enumerate((("Conv2D", 2), ("DepthwiseConv2dNative", 2), ("Conv2D", 1))):
        last = add(op, f"conv{i}", last, f"c{i}", stride=stride)
        last = add("Mul", f"mul{i}", last, f"s{i}") if f"s{i}" in arrays else last
        last = add("Relu", f"relu{i}", add("Add", f"add{i}", last, f"b{i}"))
        last = add("Maximum", f"max{i}", add("Minimum", f"min{i}", last, "six"), "zero")
    last = add("_FusedMatMul", "feats/Relu", add("Mean", "mean", last, "axes"), "wf", "bf")
    add("_FusedMatMul", "gender_pred/BiasAdd", last, "wg", "bg")
    add("_FusedMatMul", "age_pred/BiasAdd", last, "wa", "ba")
    weights = []
    for name, a in arrays.items():
        entry: dict[str, Any] = {
            "name": name,
            "shape": list(a.shape),
            "dtype": "int32" if name == "axes" else "float32",
        }
        if a.dtype == np.float16:
            entry["quantization"] = {"dtype": "float16", "original_dtype": "float32"}
        weights.append(entry)
    blob = b"".join(a.tobytes() for a in arrays.values())
    return {"modelTopology": {"node": nodes}, "weightsManifest": [{"weights": weights}]}, blob, arrays


def package(path: Path, model: dict[str, Any], blob: bytes) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in (
            (convert_evaluator.TOPOLOGY, json.dumps(model).encode()),
            (convert_evaluator.WEIGHTS, blob),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_converted_net_computes_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a NumPy reading of the graph, operation by operation."""
    model, blob, a = toy_faceres()
    monkeypatch.setattr(convert_evaluator, "WEIGHTS_SHA256", hashlib.sha256(blob).hexdigest())
    monkeypatch.setattr(module, "SIZE", 16)
    tgz = package(tmp_path / "models.tgz", model, blob)
    path = convert_evaluator.convert(tgz, tmp_path)
    assert path.read_bytes() == convert_evaluator.convert(tgz, tmp_path / "again").read_bytes()
    faces = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = FaceResNet(path)(faces)
    a = {k: v.astype(np.float64) for k, v in a.items()}
    x = window(faces, module.PADDING, 16)[0].permute(1, 2, 0).numpy().astype(np.float64)
    x = x[..., ::-1] * 255 - np.array([103.939, 116.779, 123.68])  # BGR
    x = np.clip(convolve(x, a["c0"], 2, False) + a["b0"], 0, 6)
    x = np.clip(convolve(x, a["c1"], 2, True) * a["s1"] + a["b1"], 0, 6)
    x = np.clip(convolve(x, a["c2"], 1, False) + a["b2"], 0, 6)
    embedding = x.mean((0, 1))
    features = np.maximum(embedding @ a["wf"] + a["bf"], 0)
    expected = embedding, features @ a["wg"] + a["bg"], features @ a["wa"] + a["ba"]
    assert (
        0.05 < np.mean((embedding > 0) & (embedding < 6)) < 1
    )  # the activations are not all at their bounds
    for value, wanted in zip(found, expected):
        assert np.allclose(value[0].numpy(), wanted.squeeze(), atol=1e-4)


def test_converter_refuses_another_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, blob, _ = toy_faceres()
    tgz = package(tmp_path / "models.tgz", model, blob)
    with pytest.raises(FairAdapterError, match="sha256"):
        convert_evaluator.convert(tgz, tmp_path)
    monkeypatch.setattr(convert_evaluator, "WEIGHTS_SHA256", hashlib.sha256(blob).hexdigest())
    next(n for n in model["modelTopology"]["node"] if n["op"] == "Relu")["op"] = "Elu"
    with pytest.raises(FairAdapterError, match="found Elu relu0"):
        convert_evaluator.convert(package(tmp_path / "elu.tgz", model, blob), tmp_path)
    with pytest.raises(FairAdapterError, match="found none"):
        convert_evaluator.convert(tmp_path / "none.tgz", tmp_path)
    with pytest.raises(FairAdapterError, match="bytes of weights"):
        convert_evaluator.read_constants(model["weightsManifest"], blob + b"more")


def test_converter_tells_errors_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert_evaluator.main(["--package", str(tmp_path / "none.tgz"), "--out", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and str(tmp_path) in lines[0]
