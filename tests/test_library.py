"""Adapter folders: names, paths that cannot leave them, caching, damaged files."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_no_folder_at_all(tmp_path: Path) -> None:
    library = AdapterLibrary([tmp_path / "nowhere"])
    assert library.names() == []
    with pytest.raises(FairAdapterError, match=r"put a \.safetensors file into .*nowhere"):
        library.load("x")
    assert SHIPPED.parts[-2:] == ("shared", "adapters")
