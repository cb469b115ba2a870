"""The default chain, its weight files, their converter and the calibration."""

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from fair_adapter.shared.attributes import AGE, GENDER, RACE
from fair_adapter.shared.classifiers import AttributeClassifier, load_classifier
from fair_adapter.shared.classifiers.default import FILES, expected_years, load, two_ages
from fair_adapter.shared.classifiers.graph import Graph
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.faces import align, stack_points
from fair_adapter.shared.faces.cascade_nets import FILE as CASCADE
from fair_adapter.shared.weight_files import METADATA_KEY, WEIGHTS_FOLDER, dequantised, read_tensors
from fair_adapter.tests.fixture_faces import aligned, chain, images, rows
from fair_adapter.trainer.face_chain import convert_weights


def predicted(name: str) -> list[str]:
    attribute = next(a for a in chain().attributes if a.name == name)
    with torch.no_grad():
        return [attribute.classes[i] for i in chain()(aligned().faces)[name].argmax(1).tolist()]


# ---- what the chain says


@pytest.mark.parametrize("name", ["gender", "race"])
def test_fixture_faces_are_read_as_before(name: str) -> None:
    """A regression test, no accuracy: most of these faces were chosen because the nets agree on them."""
    assert predicted(name) == [row[name] for row in rows()]


def test_fixture_ages_are_read_as_before() -> None:
    assert sum(a == row["age_group"] for a, row in zip(predicted("age"), rows())) >= 34
    with torch.no_grad():
        years = chain().years(aligned().faces)
    old = torch.tensor([row["age_group"] == "old" for row in rows()])
    assert years[old].median() > 55 and years[~old].median() < 35


def test_default_chain_keeps_the_protocol() -> None:
    assert isinstance(chain(), AttributeClassifier)
    assert chain().attributes == (GENDER, RACE, AGE)
    assert re.fullmatch(r"default:[0-9a-f]{12}", chain().identity)
    with torch.no_grad():
        logits = chain()(aligned().faces[:2])
        assert {name: tuple(v.shape) for name, v in logits.items()} == {
            a.name: (2, len(a)) for a in chain().attributes
        }
        none = chain()(aligned().faces[:0])
    assert {name: tuple(v.shape) for name, v in none.items()} == {
        a.name: (0, len(a)) for a in chain().attributes
    }


def test_one_pass_reads_what_the_separate_calls_read() -> None:
    faces = aligned().faces[:3]
    with torch.no_grad():
        reading, logits = chain().read(faces), chain()(faces)
        assert torch.equal(reading.embedding, chain().embed(faces))
        assert torch.equal(reading.years, chain().years(faces))
    for name, value in logits.items():
        assert torch.equal(reading.logits[name], value)


def test_batch_is_the_same_as_one_by_one() -> None:
    faces = aligned().faces[:4]
    with torch.no_grad():
        together = chain()(faces)
        for i in range(4):
            for name, value in chain()(faces[i : i + 1]).items():
                assert torch.allclose(value[0], together[name][i], atol=1e-4)


def test_float32_is_close_to_float64_and_autocast_changes_nothing() -> None:
    faces = aligned().faces[:4]
    with torch.no_grad():
        single = chain()(faces)
        with torch.autocast("cpu", torch.bfloat16):
            under_autocast = chain()(faces)
        double = load().double()(faces.double())
    for name, value in single.items():
        assert torch.equal(value, under_autocast[name])
        assert torch.allclose(value.double(), double[name], atol=1e-3)


def test_sure_faces_have_next_to_no_gradient_in_probability_but_in_logits() -> None:
    with torch.no_grad():
        confidence = chain()(aligned().faces)["gender"].softmax(1).max(1).values
    sure = confidence.topk(4).indices
    assert confidence[sure].min() > 0.999
    pictures = images()[sure].requires_grad_()
    points = stack_points([aligned().found[i] for i in sure.tolist()], pictures)
    logits = chain()(align(pictures, points))["gender"]
    other = 1 - logits.argmax(1)  # the class that a target may ask for
    (flat,) = torch.autograd.grad(logits.softmax(1).max(1).values.sum(), pictures, retain_graph=True)
    (steep,) = torch.autograd.grad(F.cross_entropy(logits, other), pictures)
    assert flat.flatten(1).norm(dim=1).max() < 1e-3 * steep.flatten(1).norm(dim=1).min()
    assert steep.flatten(1).norm(dim=1).min() > 1e-3


def test_every_output_has_a_gradient_that_a_step_confirms() -> None:
    faces = aligned().faces[:2].double().requires_grad_()
    net = load().double()
    reading = net.read(faces)
    outputs = {**reading.logits, "years": reading.years[:, None] / 10, "embedding": reading.embedding}
    for name, value in outputs.items():
        (gradient,) = torch.autograd.grad(value[:, 0].sum(), faces, retain_graph=True)
        step = 1e-5 * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        with torch.no_grad():
            there, back = net.read(faces + step), net.read(faces - step)
            change = {**there.logits, "years": there.years[:, None] / 10, "embedding": there.embedding}[name]
            change = (
                change - {**back.logits, "years": back.years[:, None] / 10, "embedding": back.embedding}[name]
            )
        slope = change[:, 0] / 2e-5
        assert torch.allclose(slope, gradient.flatten(1).norm(dim=1), rtol=2e-2), name


def test_embedding_tells_persons_apart() -> None:
    with torch.no_grad():
        faces = chain().embed(aligned().faces)
        mirrored = chain().embed(aligned().faces[:8].flip(3))
    assert (faces[:8] - mirrored).norm(dim=1).max() < 0.6
    distances = torch.cdist(faces, faces)[~torch.eye(36, dtype=torch.bool)]
    assert (distances > 0.6).double().mean() > 0.9


@given(st.lists(st.floats(-30, 30), min_size=81, max_size=81))
def test_two_ages_are_the_sums_of_their_years(values: list[float]) -> None:
    logits = torch.tensor([values], dtype=torch.float64)
    probabilities = logits.softmax(1)
    expected = torch.stack([probabilities[:, :40].sum(1), probabilities[:, 40:].sum(1)], 1)
    assert torch.allclose(two_ages(logits).softmax(1), expected)
    assert torch.allclose(expected_years(logits), (probabilities * torch.arange(81)).sum(1))


# ---- weight files


def test_graph_agrees_with_the_onnx_reference() -> None:
    from onnx.reference import ReferenceEvaluator

    chips = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.3
    path = WEIGHTS_FOLDER / FILES["age"]
    tensors, metadata = read_tensors(path)
    model = as_onnx(dequantised(tensors, metadata["quantization"], path), metadata["program"], 64)
    (expected,) = ReferenceEvaluator(model).run(None, {metadata["program"]["input"]: chips.numpy()})
    with torch.no_grad():
        found = chain().nets.age_net(chips).softmax(1)
    assert np.abs(found.numpy() - expected).max() < 1e-5


def test_converter_makes_the_shipped_graphs_byte_by_byte(tmp_path) -> None:
    for key, pack, size in (("gender", False, 32), ("age", True, 64)):
        shipped = WEIGHTS_FOLDER / FILES[key]
        tensors, metadata = read_tensors(shipped)
        tensors = dequantised(tensors, metadata["quantization"], shipped)
        model = as_onnx(tensors, metadata["program"], size).SerializeToString()
        made = convert_weights.write(
            tmp_path / "made.safetensors", *convert_weights.from_onnx(model, convert_weights.CC0, pack)
        )
        assert made.read_bytes() == shipped.read_bytes()


def test_converter_makes_the_shipped_embedding_byte_by_byte(tmp_path) -> None:
    shipped = WEIGHTS_FOLDER / FILES["face"]
    tensors, metadata = read_tensors(shipped)
    entries, blob = [], b""
    for name, value in tensors.items():
        entry: dict = {"name": name, "shape": list(value.shape), "dtype": "float32"}
        if name in metadata["quantization"]:
            scale, low = metadata["quantization"][name]
            entry["quantization"] = {"dtype": "uint8", "scale": scale, "min": low}
        blob += (value if value.dtype == torch.uint8 else value.float()).numpy().tobytes()
        entries.append(entry)
    manifest = [{"paths": ["weights.bin"], "weights": entries}]
    made = convert_weights.write(
        tmp_path / "made.safetensors",
        *convert_weights.from_manifest(manifest, {"weights.bin": blob}, convert_weights.FACE),
    )
    assert made.read_bytes() == shipped.read_bytes()
    with pytest.raises(FairAdapterError, match="bytes of weights"):
        convert_weights.from_manifest(manifest, {"weights.bin": blob + b"\0"}, {})


def test_converter_makes_the_shipped_detector_byte_by_byte(tmp_path) -> None:
    import facenet_pytorch

    data = Path(facenet_pytorch.__file__).parent / "data"
    nets = {name: (data / f"{name}.pt").read_bytes() for name in convert_weights.CASCADE_NETS}
    made = convert_weights.write(
        tmp_path / CASCADE.name, convert_weights.from_pickles(nets), convert_weights.CASCADE_NOTES
    )
    assert made.read_bytes() == CASCADE.read_bytes()


def as_onnx(tensors: dict[str, torch.Tensor], program: dict, size: int):
    """The ONNX model that a converted file came from, its closing softmax back in place."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [helper.make_node(o, i, [out], **attributes) for o, i, out, attributes in program["nodes"]]
    nodes.append(helper.make_node("Softmax", [program["output"]], ["probabilities"], axis=1))
    weights = [numpy_helper.from_array(tensors[name].numpy(), name) for name in program["shapes"]]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(program["input"], TensorProto.FLOAT, ["N", 3, size, size])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, None)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def test_files_are_the_ones_that_the_licence_page_lists() -> None:
    page = (WEIGHTS_FOLDER / "LICENSES.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"\| `([\w.]+)` \| \d+ \| `([0-9a-f]{64})` \|", page))
    assert set(listed) == {CASCADE.name, *FILES.values()}
    for name, expected in listed.items():
        assert hashlib.sha256((WEIGHTS_FOLDER / name).read_bytes()).hexdigest() == expected


def test_quantised_weights_are_scale_times_level_plus_low() -> None:
    levels = {
        "w": torch.tensor([0, 1, 255], dtype=torch.uint8),
        "f": torch.tensor([1.5], dtype=torch.float16),
    }
    found = dequantised(levels, {"w": [0.5, -3.0]}, WEIGHTS_FOLDER)
    assert found["w"].tolist() == [-3.0, -2.5, 124.5] and found["f"].tolist() == [1.5]
    with pytest.raises(FairAdapterError, match="quantisation range"):
        dequantised(levels, {}, WEIGHTS_FOLDER)


@given(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=20))
def test_packed_values_are_close_and_pack_again_to_the_same(values: list[float]) -> None:
    levels, (scale, low) = convert_weights.packed(torch.tensor(values))
    unpacked = dequantised({"w": levels}, {"w": [scale, low]}, WEIGHTS_FOLDER)["w"]
    assert low == 0 and (unpacked - torch.tensor(values)).abs().max() <= scale / 2
    again, ranges = convert_weights.packed(unpacked)
    assert torch.equal(again, levels) and ranges == [scale, low]


# ---- bad input


@pytest.mark.parametrize("name", FILES.values())
def test_missing_truncated_or_foreign_weights_name_the_file(tmp_path, name: str) -> None:
    for file in FILES.values():
        shutil.copy(WEIGHTS_FOLDER / file, tmp_path)
    broken = tmp_path / name
    whole = broken.read_bytes()
    other = FILES["heads"] if name != FILES["heads"] else FILES["gender"]
    for spoil in (
        lambda: broken.unlink(),
        lambda: broken.write_bytes(whole[: len(whole) // 2]),
        lambda: broken.write_bytes(b""),
        lambda: broken.write_bytes((WEIGHTS_FOLDER / other).read_bytes()),
    ):
        spoil()
        with pytest.raises(FairAdapterError) as caught:
            load(tmp_path)
        message = str(caught.value)
        assert str(broken) in message and "expected" in message and "git checkout" in message
        assert "\n" not in message
    with pytest.raises(FairAdapterError, match="expected the folder"):
        load(tmp_path / "nowhere")


def test_unknown_layers_are_refused() -> None:
    program = {"input": "x", "output": "y", "shapes": {}, "nodes": [["Sigmoid", ["x"], "y", {}]]}
    with pytest.raises(FairAdapterError, match="found Sigmoid"):
        Graph({}, program, WEIGHTS_FOLDER)
    with pytest.raises(FairAdapterError, match="list of layers"):
        Graph({}, {}, WEIGHTS_FOLDER)


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(FairAdapterError, match="did you mean 'default'"):
        load_classifier("defalt")


@pytest.mark.parametrize("bad", [(1, 3, 224, 224), (3, 256, 256), (1, 1, 256, 256)])
def test_faces_of_another_shape_are_refused(bad: tuple[int, ...]) -> None:
    for call in (chain(), chain().embed, chain().years, chain().read):
        with pytest.raises(FairAdapterError, match="aligned faces: expected"):
            call(torch.zeros(bad))
    with pytest.raises(FairAdapterError, match="floating point"):
        chain()(torch.zeros(1, 3, 256, 256, dtype=torch.uint8))


def test_safetensors_metadata_is_one_entry() -> None:
    """Several entries would be written in random order, and the converter would not be deterministic."""
    from safetensors import safe_open

    for name in FILES.values():
        with safe_open(str(WEIGHTS_FOLDER / name), "pt") as file:
            assert list(file.metadata()) == [METADATA_KEY]


def test_importing_the_chain_loads_no_library_that_a_host_may_lack() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import conftest\n"
        "import fair_adapter.shared.classifiers.default, fair_adapter.shared.bars\n"
        "heavy = ('facenet_pytorch', 'torchvision', 'onnx', 'diffusers', 'scipy')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
