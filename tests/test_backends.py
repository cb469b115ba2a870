"""The back ends that read other people's weights: FairFace, the official release, open_clip.

Real weights of these are the user's to bring. The files here have the published formats and random weights,
except for the last layer, which is all bias: what an output means can then be told in closed form.
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torchvision.models import mobilenet_v3_large, resnet34

from fair_adapter.shared.attributes import AGE, GENDER, RACE4
from fair_adapter.shared.classifiers import BACK_ENDS, AttributeClassifier, load_classifier
from fair_adapter.shared.classifiers.checkpoints import read_checkpoint
from fair_adapter.shared.classifiers.fairface import GENDERS, RACES, gather, races_of
from fair_adapter.shared.classifiers.mobilenet import columns_of
from fair_adapter.shared.errors import FairAdapterError

FACES = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
SEVEN, FOUR = "res34_fair_align_multi_7_20190809.pt", "res34_fair_align_multi_4_20190809.pt"
State = dict[str, torch.Tensor]


def random_state(architecture: Callable[..., torch.nn.Module], outputs: int) -> State:
    """Random weights; float16 halves the files, loading widens them."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        wanted = architecture(weights=None, num_classes=outputs).state_dict()
    state = {k: 0.05 * torch.randn(v.shape, generator=generator) for k, v in wanted.items()}
    for key, value in state.items():
        if key.endswith("running_var"):
            value.fill_(1.0)
        state[key] = torch.tensor(0) if key.endswith("num_batches_tracked") else value.half()
    return state


@pytest.fixture(scope="module")
def resnet() -> State:
    return random_state(resnet34, 18)


@pytest.fixture(scope="module")
def mobilenet() -> State:
    return random_state(mobilenet_v3_large, 2)


def all_bias(state: State, layer: str, bias: torch.Tensor) -> State:
    """The state dict whose outputs are ``bias`` for every input."""
    width = state[f"{layer}.weight"].shape[1]
    return {**state, f"{layer}.weight": torch.zeros(len(bias), width), f"{layer}.bias": bias}


def distinct(count: int) -> torch.Tensor:
    return torch.linspace(-2.0, 3.0, count)[torch.randperm(count, generator=torch.Generator().manual_seed(1))]


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def assert_one_line(error: pytest.ExceptionInfo[FairAdapterError], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# ---- FairFace


def test_fairface_merges_its_classes_into_ours(tmp_path: Path, resnet: State) -> None:
    b = distinct(18)
    net = load_classifier("fairface", saved(tmp_path / SEVEN, all_bias(resnet, "fc", b)))
    assert isinstance(net, AttributeClassifier)
    assert net.attributes == (GENDER, RACE4, AGE)
    logits = net(FACES)
    # White, Black, Latino, East Asian, Southeast Asian, Indian, Middle Eastern | Male, Female | nine ages
    p = b[:7].softmax(0)
    merged = torch.stack([p[0] + p[2] + p[6], p[1], p[3] + p[4], p[5]])  # wmelh, black, asian, indian
    assert torch.allclose(logits["race"].softmax(1), merged.expand(2, 4), atol=1e-6)
    assert torch.allclose(logits["gender"], b[[8, 7]].expand(2, 2))  # female, male
    years = b[9:].softmax(0)  # 0-2, 3-9, 10-19, 20-29, 30-39 | 40-49, 50-59, 60-69, 70+
    assert torch.allclose(
        logits["age"].softmax(1), torch.stack([years[:5].sum(), years[5:].sum()]).expand(2, 2), atol=1e-6
    )


def test_fairface_of_four_races_reads_race_alone(tmp_path: Path, resnet: State) -> None:
    b = distinct(18)
    net = load_classifier(f"fairface:{saved(tmp_path / FOUR, all_bias(resnet, 'fc', b))}")
    assert net.attributes == (RACE4,)
    assert torch.allclose(net(FACES)["race"], b[:4].expand(2, 4))  # White, Black, Asian, Indian


def test_fairface_sees_the_published_input(tmp_path: Path, resnet: State) -> None:
    """As in the published script: chip of padding 0.25 at 224 px, ImageNet mean and deviation."""
    from torchvision.transforms.functional import normalize

    net = load_classifier("fairface", saved(tmp_path / SEVEN, resnet))
    seen: list[torch.Tensor] = []
    net.net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    column = torch.arange(256.0).add(0.5).div(256).expand(1, 3, 256, 256)  # brightness = horizontal position
    faces = column.clone().requires_grad_(True)
    logits = net(faces)
    inside = 0.5 + (torch.arange(224.0) + 0.5 - 112) / 224 * (1.5 / 2.0)  # the centred 1.5 of 2 chip sides
    expected = normalize(inside.expand(1, 3, 224, 224), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert torch.allclose(seen[0][..., 1:-1], expected[..., 1:-1], atol=1e-4)
    logits["gender"][:, 0].sum().backward()
    assert faces.grad is not None and faces.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in net.parameters())


def test_formats_of_fairface_files_agree(tmp_path: Path, resnet: State) -> None:
    parallel = {f"module.{k}": v for k, v in resnet.items()}
    old = {k: v for k, v in resnet.items() if not k.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / SEVEN, _use_new_zipfile_serialization=False)  # as torch wrote it in 2019
    save_file(resnet, str(tmp_path / "multi_7.safetensors"))
    files = [
        tmp_path / SEVEN,
        saved(tmp_path / "parallel_multi_7.pt", parallel),
        tmp_path / "multi_7.safetensors",
    ]
    readings = [load_classifier("fairface", path)(FACES) for path in files]
    for name, logits in readings[0].items():
        assert all(torch.equal(logits, other[name]) for other in readings[1:])


def test_number_of_races_is_read_off_the_name_or_given(tmp_path: Path, resnet: State) -> None:
    names = {SEVEN: 7, FOUR: 4, "fairface_alldata_20191111.pt": 7, "fairface_alldata_4race_20191111.pt": 4}
    assert {name: races_of(Path(name)) for name in names} == names
    path = saved(tmp_path / "mine.pt", resnet)
    with pytest.raises(FairAdapterError) as error:
        load_classifier("fairface", path)
    assert_one_line(error, "mine.pt", "races=7")
    assert len(load_classifier("fairface", path, races=4).attributes) == 1
    with pytest.raises(FairAdapterError, match="found 5"):
        load_classifier("fairface", path, races=5)


@given(st.lists(st.floats(-30, 30), min_size=18, max_size=18))
def test_merging_adds_probabilities(outputs: list[float]) -> None:
    x = torch.tensor([outputs], dtype=torch.float64)
    for groups in (*RACES.values(), GENDERS):
        columns = sorted(i for group in groups for i in group)
        p = x[:, columns].softmax(1)[0]
        expected = [sum(float(p[columns.index(i)]) for i in group) for group in groups]
        assert torch.allclose(gather(x, groups).softmax(1)[0], torch.tensor(expected, dtype=torch.float64))


# ---- the official release

STYLES = {
    "plain": lambda state: state,
    "lightning": lambda state: {"epoch": 9, "state_dict": {f"model.{k}": v for k, v in state.items()}},
    "net": lambda state: {**{f"net.{k}": v for k, v in state.items()}, "loss.weight": torch.ones(2)},
    "parallel": lambda state: OrderedDict((f"module.{k}", v) for k, v in state.items()),
}


@pytest.mark.parametrize(
    ("name", "width", "columns", "style"),
    [  # the release: gender female, male; race WMELH, Black, Indian, Asian; age young, old
        ("CelebA_MobileNetLarge_08060852", 80, {"gender": [40, 41]}, "plain"),
        ("GenderRace4_09041216", 6, {"gender": [0, 1], "race": [2, 3, 5, 4]}, "lightning"),
        ("GenderRace4Age2", 8, {"gender": [0, 1], "race": [2, 3, 5, 4], "age": [6, 7]}, "net"),
        ("fairface-MobileNetLarge-Race4-09191318", 4, {"race": [0, 1, 3, 2]}, "parallel"),
        ("CelebA-MobileNetLarge-Gender-09191318", 2, {"gender": [0, 1]}, "plain"),
        ("fairface-MobileNetLarge-Age2-09191319", 2, {"age": [0, 1]}, "plain"),
    ],
)
def test_heads_of_the_release(
    tmp_path: Path, mobilenet: State, name: str, width: int, columns: dict[str, list[int]], style: str
) -> None:
    b = distinct(width)
    folder = tmp_path / name
    folder.mkdir()
    content = STYLES[style](all_bias(mobilenet, "classifier.3", b))
    net = load_classifier("mobilenet", saved(folder / "epoch=9_MobileNetLarge.pt", content))
    known = {"gender": GENDER, "race": RACE4, "age": AGE}
    assert net.attributes == tuple(known[attribute] for attribute in columns)
    logits = net(FACES)
    assert list(logits) == list(columns)
    for attribute, expected in columns.items():
        assert torch.allclose(logits[attribute], b[expected].expand(2, len(expected)))


def test_mobilenet_sees_the_whole_frame_between_minus_one_and_one(tmp_path: Path, mobilenet: State) -> None:
    net = load_classifier("mobilenet", saved(tmp_path / "Gender.pt", mobilenet))
    seen: list[torch.Tensor] = []
    net.net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    faces = torch.zeros(1, 3, 256, 256)
    faces[..., 128:, :] = 1.0
    faces.requires_grad_(True)
    net(faces)["gender"][:, 1].sum().backward()
    assert seen[0].shape == (1, 3, 224, 224)
    assert torch.allclose(seen[0][:, :, :110], torch.tensor(-1.0)) and torch.allclose(
        seen[0][:, :, 114:], torch.tensor(1.0)
    )
    assert faces.grad is not None and faces.grad[..., :8, :].abs().sum() > 0  # up to the frame's edge


def test_two_outputs_need_a_name() -> None:
    assert columns_of(2, Path("x.pt"), "age") == {"age": (0, 1)}
    for path in ("x.pt", "Gender-Age/x.pt", "image/agent.pt"):
        with pytest.raises(FairAdapterError) as error:
            columns_of(2, Path(path))
        assert_one_line(error, path, "attribute='gender'")
    with pytest.raises(FairAdapterError, match="expected 'Gender' or 'Age'"):
        columns_of(2, Path("x.pt"), "race")


def test_unknown_head_width_is_named(tmp_path: Path, mobilenet: State) -> None:
    path = saved(tmp_path / "seven.pt", all_bias(mobilenet, "classifier.3", distinct(7)))
    with pytest.raises(FairAdapterError) as error:
        load_classifier("mobilenet", path)
    assert_one_line(error, "seven.pt", "80, 8, 6, 4 or 2 outputs, found 7", "mobilenet:PATH")


# ---- bad files, whatever the back end


class Harmful:
    """Unpickling it would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.target), "w")


@pytest.mark.parametrize("back_end", ["fairface", "mobilenet"])
@pytest.mark.parametrize(
    "damage", ["missing", "folder", "empty", "truncated", "text", "code", "list", "other"]
)
def test_bad_weight_files(
    tmp_path: Path, resnet: State, mobilenet: State, back_end: str, damage: str
) -> None:
    path = tmp_path / f"Gender_multi_7_{damage}.pt"
    other = mobilenet if back_end == "fairface" else resnet
    buffer = io.BytesIO()
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, buffer)
    if damage == "folder":
        path.mkdir()
    elif damage == "list":
        torch.save([1, 2], path)
    elif damage == "code":
        path.write_bytes(pickle.dumps({"state_dict": Harmful(tmp_path / "harm")}, protocol=2))
    elif damage == "other":
        torch.save(other, path)
    elif damage != "missing":
        whole = buffer.getvalue()
        path.write_bytes({"empty": b"", "truncated": whole[: len(whole) // 2], "text": b"<html>"}[damage])
    with pytest.raises(FairAdapterError) as error:
        load_classifier(back_end, path)
    assert_one_line(error, path.name, "expected", "found", f"{back_end}:PATH")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layer4.2.conv2.weight"), "lacks layer4.2.conv2.weight"),
        (lambda s: s.update({"layer5.0.conv1.weight": torch.zeros(1)}), "also has layer5.0.conv1.weight"),
        (lambda s: s.update({"bn1.weight": torch.zeros(32)}), "has of another shape bn1.weight"),
        (lambda s: s.update({"bn1.bias": torch.full((64,), torch.nan)}), "has not finite bn1.bias"),
        (lambda s: s.update({"fc.weight": torch.zeros(7, 512)}), "18 outputs (race, gender, age), found 7"),
        (lambda s: s.pop("fc.weight"), "found no fc.weight"),
        (lambda s: s.pop("layer1.0.conv1.weight"), "expected one tensor 'layer1.0.conv1.weight'"),
    ],
)
def test_other_tensors_are_named(
    tmp_path: Path, resnet: State, change: Callable[[State], object], message: str
) -> None:
    state = dict(resnet)
    change(state)
    path = tmp_path / "multi_7.safetensors"
    save_file(state, str(path))
    with pytest.raises(FairAdapterError) as error:
        load_classifier("fairface", path)
    assert_one_line(error, str(path), message, "download")


def test_two_nets_in_one_checkpoint_are_refused(tmp_path: Path) -> None:
    both = {"student.conv1.weight": torch.zeros(1), "teacher.conv1.weight": torch.ones(1)}
    with pytest.raises(FairAdapterError, match=r"expected one tensor 'conv1\.weight' of fairface, found 2"):
        read_checkpoint(saved(tmp_path / "both.pt", both), "conv1.weight", "fairface", "choose one")


@pytest.mark.parametrize("back_end", ["fairface", "mobilenet"])
def test_back_ends_without_a_path_say_what_to_bring(back_end: str) -> None:
    assert back_end in BACK_ENDS
    with pytest.raises(FairAdapterError) as error:
        load_classifier(back_end)
    assert_one_line(error, back_end, "found none", "github.com")


def test_identity_follows_the_weights(tmp_path: Path, mobilenet: State) -> None:
    one = saved(tmp_path / "Gender_a.pt", mobilenet)
    two = saved(tmp_path / "Gender_b.pt", all_bias(mobilenet, "classifier.3", distinct(2)))
    identities = [load_classifier("mobilenet", path).identity for path in (one, one, two)]
    assert identities[0] == identities[1] != identities[2]
    assert identities[0].startswith("mobilenet:")
