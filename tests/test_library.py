"""Adapter folders: names, paths that cannot leave them, caching, damaged files."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fair_adapter.shared import tensor_file
from fair_adapter.shared.adapter import FairnessAdapter
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.library import SHIPPED, AdapterLibrary
from fair_adapter.tests.tiny_adapter import FIXED, make_adapter


@pytest.fixture
def library(tmp_path: Path) -> AdapterLibrary:
    mine, shipped = tmp_path / "mine", tmp_path / "shipped"
    make_adapter().write(mine / "sub" / "both.safetensors")
    make_adapter(FIXED, name="mine").write(mine / "same.safetensors")
    make_adapter(FIXED, name="theirs").write(shipped / "same.safetensors")
    make_adapter(FIXED).write(shipped / "last.safetensors")
    (tmp_path / "outside.safetensors").write_bytes(b"secret")
    return AdapterLibrary([mine, tmp_path / "missing", shipped])


def test_names_of_the_user_come_first_and_win(library: AdapterLibrary) -> None:
    assert library.names() == ["same.safetensors", "sub/both.safetensors", "last.safetensors"]
    assert library.load("same").info.name == "mine"
    assert library.load("sub/both.safetensors").conditioned


def test_linked_folders_are_listed(library: AdapterLibrary, tmp_path: Path) -> None:
    make_adapter().write(tmp_path / "elsewhere" / "far.safetensors")
    try:
        (library.folders[0] / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    except OSError:
        pytest.skip("this system makes no links")
    assert library.names()[:3] == ["link/far.safetensors", "same.safetensors", "sub/both.safetensors"]
    assert library.load("link/far").conditioned


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "..\\outside",
        "sub/../../outside.safetensors",
        "/etc/passwd",
        "C:/x",
        "a\0b",
        "",
        "  ",
        "//x",
    ],
)
def test_names_cannot_leave_the_folders(library: AdapterLibrary, name: str) -> None:
    with pytest.raises(FairAdapterError, match="expected a file name below the adapter folder"):
        library.path(name)


@given(st.text(alphabet="ab./\\:~\0 ", max_size=20))
def test_whatever_is_asked_stays_inside(name: str) -> None:
    folder = Path(__file__).parent / "data"
    try:
        path = AdapterLibrary([folder]).path(name)
    except FairAdapterError:
        return
    assert folder.resolve() in path.resolve().parents


def test_missing_names_suggest_the_nearest(library: AdapterLibrary) -> None:
    with pytest.raises(FairAdapterError, match=r"did you mean 'last\.safetensors'"):
        library.path("lasst.safetensors")
    with pytest.raises(FairAdapterError, match=r"there are same\.safetensors, sub/both\.safetensors"):
        library.path("xyz")


def test_files_are_read_again_only_when_they_change(library: AdapterLibrary) -> None:
    first = library.load("last")
    assert library.load("last") is first
    path = library.path("last")
    make_adapter(FIXED, name="newer").write(path, overwrite=True)
    os.utime(path, ns=(1, 1))
    assert library.load("last").info.name == "newer"
    assert library.summary("last").title == "newer"


def test_a_long_list_keeps_few_adapters(library: AdapterLibrary) -> None:
    names = library.names()
    assert len(names) >= 3
    for name in names:
        library.summary(name)
    held = [library.load(name) for name in names[:3]]
    assert library.load(names[2]) is held[2] and library.load(names[1]) is held[1]
    assert library.load(names[0]) is not held[0]


def test_summary_is_what_the_file_says(library: AdapterLibrary) -> None:
    summary = library.summary("sub/both.safetensors")
    assert (summary.title, summary.base, summary.architecture) == ("tiny-fair", "portrait", "sd1")
    assert (summary.tokens, summary.layers, summary.conditioned) == (5, 2, True)
    assert summary.kind == "5 soft tokens + LoRA of text encoder and U-Net (2 layers)"
    assert summary.trained_range["gender"]["female"] == (0.1, 0.9)
    assert summary.size == library.path("sub/both").stat().st_size
    assert summary.to_dict()["attributes"]["gender"] == ["female", "male"]


def test_damaged_files_are_listed_with_the_reason(library: AdapterLibrary) -> None:
    path = library.folders[0] / "broken.safetensors"
    path.write_bytes(b"\x80pickle")
    summary = library.summary("broken")
    assert "broken.safetensors: expected" in summary.error and not summary.kind
    assert "broken.safetensors" in library.names()


def test_lists_read_headers_alone(library: AdapterLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted: bytes taken from the file, and tensors made."""
    space = make_adapter(FIXED)
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {**space.tensors, f"{layer}.lora_down.weight": torch.ones(3, 2**20)}
    path = FairnessAdapter(space.info, tensors).write(library.folders[0] / "wide.safetensors")
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    taken: list[int] = []
    opened = tensor_file._opened

    class Counting:
        def __init__(self, file: Any) -> None:
            self.file, self.seek, self.fileno = file, file.seek, file.fileno

        def read(self, size: int) -> bytes:
            taken.append(size)
            return self.file.read(size)

        def readinto(self, buffer: memoryview) -> int:
            taken.append(len(buffer))
            return self.file.readinto(buffer)

    @contextmanager
    def counted(*arguments: Any) -> Iterator[Counting]:
        with opened(*arguments) as file:
            yield Counting(file)

    monkeypatch.setattr(tensor_file, "_opened", counted)
    for row in (library.summary("wide"), library.outline("wide"), FairnessAdapter.read_info(path)):
        assert row
    assert 0 < sum(taken) <= 2 * (header + 64) < path.stat().st_size / 1000
    assert library.summary("wide").kind == "5 soft tokens + LoRA of text encoder and U-Net (2 layers)"
    taken.clear()
    assert library.load("wide").layers[layer] == (7, 2**20) and sum(taken) > path.stat().st_size - header


def test_a_file_that_could_not_be_read_is_tried_again(
    library: AdapterLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network drive that comes back: the file itself has not changed."""

    def gone(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", gone)
        assert "Input/output error" in library.summary("last").error
        with pytest.raises(FairAdapterError, match="check its permissions and disk"):
            library.load("last")
    assert not library.summary("last").error and library.load("last").info.name == "tiny-fair"


def test_content_is_checked_when_it_is_loaded(library: AdapterLibrary) -> None:
    path = library.path("last")
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    assert not library.summary("last").error
    with pytest.raises(FairAdapterError, match="the file is damaged") as error:
        library.load("last")
    assert library.summary("last").error == str(error.value), "what loading found stands in the list"
    os.utime(path, ns=(1, 1))
    assert not library.summary("last").error
    path.write_bytes(data[:-9])
    assert "bytes that do not read as one" in library.summary("last").error


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["lora_transformer_transformer_blocks_0_attn_to_q"], "LoRA of transformer (1 layer)"),
        (
            [
                "lora_te1_text_model_encoder_layers_0_mlp_fc1",
                "lora_transformer_transformer_blocks_1_attn_to_q",
            ],
            "LoRA of text encoder and transformer (2 layers)",
        ),
        (["lora_te2_text_model_encoder_layers_0_mlp_fc1"], "LoRA of text encoder (1 layer)"),
        (["lora_prior_attn_to_q"], "LoRA (1 layer)"),
    ],
)
def test_every_lora_has_a_kind(library: AdapterLibrary, names: list[str], kind: str) -> None:
    tensors = {}
    for name in names:
        tensors |= {f"{name}.lora_down.weight": torch.ones(2, 4), f"{name}.lora_up.weight": torch.ones(4, 2)}
        tensors[f"{name}.alpha"] = torch.tensor(2.0)
    FairnessAdapter(make_adapter(FIXED).info, tensors).write(library.folders[0] / "kind.safetensors")
    assert library.summary("kind").kind == kind


def test_no_folder_at_all(tmp_path: Path) -> None:
    library = AdapterLibrary([tmp_path / "nowhere"])
    assert library.names() == []
    with pytest.raises(FairAdapterError, match=r"put a \.safetensors file into .*nowhere"):
        library.load("x")
    assert SHIPPED.parts[-2:] == ("shared", "adapters")
