"""Files that are no adapters, damaged, hostile or foreign: one line that names the file, nothing else."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fair_adapter.shared.adapter import FairnessAdapter
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.tensor_file import MAX_HEADER, read_tensors, serialise
from fair_adapter.tests.tiny_adapter import LAYERS, make_adapter, payload


def rewritten(path: Path, change: Callable[[dict], object]) -> None:
    """Changes the header of a file and leaves the rest."""
    header, after = payload(path)
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + after)


def changed_entry(**values: object) -> Callable[[dict], object]:
    def change(header: dict) -> None:
        entry = json.loads(header["__metadata__"]["fair_adapter"])
        header["__metadata__"]["fair_adapter"] = json.dumps({**entry, **values})

    return change


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def huge_header(path: Path) -> None:
    with path.open("wb") as file:
        file.write(struct.pack("<Q", MAX_HEADER + 1))
        file.truncate(MAX_HEADER + 100)


def pickled(path: Path) -> None:
    torch.save({"x": torch.ones(2)}, path)


def old_pickle(path: Path) -> None:
    torch.save({"x": torch.ones(2)}, path, _use_new_zipfile_serialization=False)


def foreign(path: Path) -> None:
    safetensors.torch.save_file({"lora_te_x.alpha": torch.ones(1)}, path)


def nested(path: Path) -> None:
    text = b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def twice(path: Path) -> None:
    data = path.read_bytes()
    text = b'{"__metadata__":{"a":"1"},"__metadata__":{"a":"2"}}'
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.unlink(), "found no such file"),
        (lambda p: (p.unlink(), p.mkdir()), "found a folder"),
        (lambda p: p.write_bytes(b""), "0 bytes that do not begin with a header"),
        (lambda p: p.write_bytes(b"abc"), "3 bytes that do not begin with a header"),
        (lambda p: p.write_bytes(b"\xff" * 4096), "4096 bytes that do not begin with a header"),
        (lambda p: p.write_bytes(struct.pack("<Q", 8) + b"not json"), "a header that does not read"),
        (lambda p: p.write_bytes(struct.pack("<Q", 8) + b"[1,2,3] "), "a header that is a list"),
        (lambda p: p.write_bytes(b"<html>" * 99), "a web page"),
        (lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\n" * 3), "git lfs pull"),
        (truncated, "bytes that do not read as one"),
        (flipped, "the file is damaged"),
        (huge_header, f"a header of {MAX_HEADER + 1} bytes"),
        (pickled, "torch pickle"),
        (old_pickle, "Python pickle"),
        (foreign, "without the metadata entry 'fair_adapter'"),
        (nested, "a header that does not read"),
        (twice, "'__metadata__' is there twice"),
    ],
)
def test_files_that_are_no_adapters(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    path = make_adapter().write(tmp_path / "a.safetensors")
    damage(path)
    with pytest.raises(FairAdapterError, match=f"^{path}: ") as error:
        FairnessAdapter.read(path)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed_entry(format=2), "expected adapter format 1, found '2'; update"),
        (changed_entry(format=None), "expected adapter format 1, found 'None'"),
        (changed_entry(base={"name": "x"}), "KeyError('architecture')"),
        (changed_entry(base=7), "expected a complete metadata entry"),
        (changed_entry(name=["x"]), "name: expected a text"),
        (changed_entry(attributes=[{"name": "<b>", "classes": ["a"]}]), "is not a lower-case word"),
        (changed_entry(attributes=[{"name": f"a{i}", "classes": ["x", "y"]} for i in range(40)]), "4096"),
        (changed_entry(target={"default": {"gender": {"female": 2}}, "vector": None}), "shares sum to 2"),
        (changed_entry(target={"default": {"gender": {"female": 1}}, "vector": "x"}), "target vector 'x'"),
        (changed_entry(target={"default": {"gender": {"female": 1}}, "vector": None}), "('gender',) alone"),
        (changed_entry(evaluation=[1]), "expected a complete metadata entry"),
        (lambda h: h["__metadata__"].update(fair_adapter="{"), "expected a complete metadata entry"),
        (lambda h: h["__metadata__"].update(fair_adapter="[]"), "a list instead of an object"),
        (lambda h: h["__metadata__"].update(fair_adapter='{"format": NaN}'), "NaN is no JSON number"),
        (lambda h: h["__metadata__"].update(fair_adapter=7), "metadata that are no texts"),
        (lambda h: h["__metadata__"].pop("fair_adapter"), "without the metadata entry"),
        (lambda h: h["fair.soft.clip_l"].update(shape=[2**40, 2**40]), "do not read as one"),
        (lambda h: h["fair.soft.clip_l"].update(dtype="F9"), "do not read as one"),
        (lambda h: h["fair.soft.clip_l"].update(data_offsets=[0, 2**60]), "do not read as one"),
    ],
)  # fmt: skip
def test_headers_that_are_wrong(tmp_path: Path, change: Callable[[dict], object], message: str) -> None:
    path = make_adapter().write(tmp_path / "a.safetensors")
    rewritten(path, change)
    with pytest.raises(FairAdapterError, match=f"^{path}: ") as error:
        FairnessAdapter.read(path)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("low", range(0, 256, 8))
def test_headers_of_every_length_are_read(tmp_path: Path, low: int) -> None:
    """A length whose first byte is 0x80 is no pickle, one that begins with '<' or 'PK' no page or archive."""
    tensors = {"x": torch.ones(1)}
    length = int.from_bytes(serialise(tensors, {"fill": ""})[:8], "little")
    file = serialise(tensors, {"fill": "." * (4096 + low - length)})
    assert file[0] == low
    (tmp_path / "a.safetensors").write_bytes(file)
    assert torch.equal(read_tensors(tmp_path / "a.safetensors").tensors["x"], tensors["x"])


def test_metadata_for_another_target_are_refused(tmp_path: Path) -> None:
    """Else every coordinate would be off by the difference."""
    path = make_adapter().write(tmp_path / "a.safetensors")
    target = {"default": {"gender": {"female": 0.9, "male": 0.1}, "race": "equal"}, "vector": "cells"}
    rewritten(path, changed_entry(target=target))
    with pytest.raises(FairAdapterError, match="found the vector of another"):
        FairnessAdapter.read(path)


UP0 = f"{LAYERS[0]}.lora_up.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"__everything__": None}, "expected a LoRA or soft tokens, found no tensor"),
        ({UP0: torch.full((7, 3), torch.nan)}, "NaN or infinity"),
        ({"fair.soft.clip_l": torch.full((5, 8), torch.inf)}, "NaN or infinity"),
        ({UP0: torch.ones(7, 4)}, "as down (rank, in) and up (out, rank), found (3, 6) and (7, 4)"),
        ({UP0: torch.ones(7, 3, 1, 1)}, "as down (rank, in)"),
        ({UP0: torch.ones(7, 3, dtype=torch.int64)}, "in float32 or float16, found torch.int64"),
        ({UP0: None}, f"expected '{UP0}', found none"),
        ({f"{LAYERS[0]}.alpha": None}, "alpha', found none"),
        ({f"{LAYERS[0]}.alpha": torch.tensor(-1.0)}, "one positive number"),
        ({f"{LAYERS[0]}.alpha": torch.ones(2)}, "one positive number"),
        ({f"fair.gate.{LAYERS[0]}": torch.ones(2, 3)}, "of shape (6, 3), found (2, 3)"),
        ({"fair.gate.lora_te_other": torch.ones(6, 3)}, "the LoRA layer of 'fair.gate.lora_te_other'"),
        ({"fair.soft.clip_l": torch.ones(65, 8)}, "of 1 to 64 tokens, found shape (65, 8)"),
        ({"fair.soft.clip_l": None}, "expected 'fair.soft.clip_l', found none"),
        ({"fair.soft_target.clip_l": torch.ones(6, 5, 9)}, "of shape (6, 5, 8), found (6, 5, 9)"),
        ({"fair.soft_neutral.clip_l": torch.ones(4, 8)}, "of shape (5, 8), found (4, 8)"),
        ({"fair.soft.clip_z": torch.ones(5, 8)}, "found 'fair.soft.clip_z'"),
        ({"model.diffusion_model.x": torch.ones(1)}, "found 'model.diffusion_model.x'"),
        ({"lora_te_x.dora_scale": torch.ones(1)}, "found 'lora_te_x.dora_scale'"),
    ],
)
def test_tensors_that_are_wrong(tmp_path: Path, changes: dict[str, Tensor | None], message: str) -> None:
    """The same words for a file and for what is about to be written."""
    adapter = make_adapter()
    tensors = {} if "__everything__" in changes else {**adapter.tensors, **changes}
    tensors = {key: value for key, value in tensors.items() if value is not None}
    path = tmp_path / "a.safetensors"
    path.write_bytes(serialise(tensors, {"fair_adapter": adapter.info.to_json()}))
    with pytest.raises(FairAdapterError, match=f"^{path}: ") as error:
        FairnessAdapter.read(path)
    assert message in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(FairAdapterError):
        FairnessAdapter(adapter.info, tensors)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_adapter().write(tmp_path_factory.mktemp("good") / "a.safetensors").read_bytes()


@given(data=st.data())
def test_damage_anywhere_is_one_error_or_none_of_our_business(
    data: st.DataObject, good: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Cut, flipped or lengthened files never raise anything else, nor give other tensors in silence."""
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    kind = data.draw(st.sampled_from(["cut", "flip", "lengthen"]))
    place = data.draw(st.integers(0, len(good) - 1))
    damaged = bytearray(good[:place] if kind == "cut" else good)
    if kind == "flip":
        damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "lengthen":
        damaged += data.draw(st.binary(min_size=1, max_size=40))
    path.write_bytes(damaged)
    try:
        found = FairnessAdapter.read(path)
    except FairAdapterError as error:
        assert "\n" not in str(error)
        return
    assert kind == "flip", "a flipped letter of a text in the metadata can go unnoticed, nothing else can"
    assert {k: v.tolist() for k, v in found.tensors.items()} == {
        k: v.tolist() for k, v in make_adapter().tensors.items()
    }


def test_only_the_header_is_read_of_what_is_no_adapter(tmp_path: Path) -> None:
    """A checkpoint chosen by mistake is refused before its gigabytes are in memory."""
    path = tmp_path / "model.safetensors"
    text = json.dumps({"x": {"dtype": "F32", "shape": [2**28], "data_offsets": [0, 2**30]}}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + 2**30)
    for read in (FairnessAdapter.read, FairnessAdapter.read_info):
        with pytest.raises(FairAdapterError, match="without the metadata entry"):
            read(path)
    with path.open("r+b") as file:
        file.truncate(2**32)
    with pytest.raises(FairAdapterError, match="choose the adapter, not a model"):
        FairnessAdapter.read(path)
