"""Adapters that other programs wrote again: hashes in their spelling, half precision, numbers edited."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from fair_adapter.a1111_extension.service import FairService
from fair_adapter.shared.adapter import CONVERTED, LAYOUT, FairnessAdapter
from fair_adapter.shared.adapter_export import export_adapter
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.tensor_file import payload_hash, read_header, read_tensors, serialise
from fair_adapter.tests.tiny_adapter import BASE, FIXED, SPACE, make_adapter
from fair_adapter.trainer import export

Metadata = dict[str, str]


def rewritten(path: Path, tensor: Callable[[Tensor], Tensor], change: Callable[[Metadata], object]) -> Path:
    """What a converter does: all tensors through one function, the metadata kept but for a change."""
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
        tensors = {key: tensor(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118
    change(metadata)
    safetensors.torch.save_file(tensors, path, metadata)
    return path


def kept(value: Tensor) -> Tensor:
    return value


def nothing(metadata: Metadata) -> None:
    return None


HASH, SPEC = "sshs_model_hash", "modelspec.hash_sha256"


@pytest.mark.parametrize(
    "change",
    [
        nothing,
        lambda m: m.update({HASH: m[HASH].upper(), SPEC: m[SPEC].upper()}),
        lambda m: m.update({HASH: "0x" + m[HASH], SPEC: m[SPEC].removeprefix("0x")}),
        lambda m: m.update({HASH: f" 0X{m[HASH].upper()}\n"}),
        lambda m: m.update({HASH: m[HASH][:12]}),
        lambda m: m.update({HASH: "", SPEC: ""}),
        lambda m: m.update({HASH: "None"}),
        lambda m: (m.pop(HASH), m.pop(SPEC)),
        lambda m: m.pop(LAYOUT),
    ],
)
def test_the_right_hash_is_right_however_it_is_written(
    tmp_path: Path, change: Callable[[Metadata], object]
) -> None:
    path = rewritten(make_adapter().write(tmp_path / "a.safetensors"), kept, change)
    adapter = FairnessAdapter.read(path)
    assert adapter.warnings == () == adapter.check_base(BASE)


@pytest.mark.parametrize("space", [SPACE, FIXED])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("change", [nothing, lambda m: m.pop(SPEC)])
def test_a_converted_adapter_is_read_with_a_warning(
    tmp_path: Path, space: object, dtype: torch.dtype, change: Callable[[Metadata], object]
) -> None:
    path = make_adapter(space).write(tmp_path / "a.safetensors")  # type: ignore[arg-type]
    before = FairnessAdapter.read(path)
    adapter = FairnessAdapter.read(rewritten(path, lambda value: value.to(dtype), change))
    assert adapter.warnings == (CONVERTED,) and CONVERTED in adapter.check_base(BASE)
    for key, value in before.at("gender=50/50").lora.items():
        assert torch.allclose(adapter.at("gender=50/50").lora[key].float(), value, rtol=0.01)
    assert FairnessAdapter.read(adapter.write(path, overwrite=True)).warnings == ()


def test_files_from_before_the_layout_was_recorded(tmp_path: Path) -> None:
    """Half precision tells a conversion, also after another to float32; whatever else differs is damage."""
    path = make_adapter().write(tmp_path / "a.safetensors")
    old = rewritten(path, torch.Tensor.half, lambda m: m.pop(LAYOUT))
    assert FairnessAdapter.read(old).warnings == (CONVERTED,)
    assert FairnessAdapter.read(rewritten(old, torch.Tensor.float, nothing)).warnings == (CONVERTED,)
    path = make_adapter().write(path, overwrite=True)
    with pytest.raises(FairAdapterError, match="the file is damaged"):
        FairnessAdapter.read(rewritten(path, lambda value: value + 0.001, lambda m: m.pop(LAYOUT)))


def test_the_same_layout_with_other_content_is_damage_but_for_a_new_hash(tmp_path: Path) -> None:
    path = rewritten(
        make_adapter(FIXED).write(tmp_path / "a.safetensors"), lambda value: value * 1.5, nothing
    )
    with pytest.raises(FairAdapterError, match="the file is damaged"):
        FairnessAdapter.read(path)
    unsigned = path.read_bytes()
    rewritten(path, kept, lambda m: m.pop(HASH))
    assert FairnessAdapter.read(path).warnings == (CONVERTED,), "the specification's hash alone only warns"
    path.write_bytes(unsigned)
    new = payload_hash(unsigned)
    assert FairnessAdapter.read(rewritten(path, kept, lambda m: m.update({HASH: new}))).warnings == (
        CONVERTED,
    )


def test_another_order_of_the_tensors_is_the_same_content(tmp_path: Path) -> None:
    path = make_adapter().write(tmp_path / "a.safetensors")
    file = read_tensors(path)
    header, place, data = {"__metadata__": file.metadata}, 0, b""
    for key, value in reversed(file.tensors.items()):
        raw = value.numpy().tobytes()
        offsets = [place, place + len(raw)]
        header[key] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": offsets}  # type: ignore[assignment]
        place, data = place + len(raw), data + raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    assert FairnessAdapter.read(path).warnings == ()


def test_structure_still_refuses(tmp_path: Path) -> None:
    path = make_adapter().write(tmp_path / "a.safetensors")
    with safe_open(path, "pt") as file:
        metadata, keys = file.metadata(), list(file.keys())
        tensors = {key: file.get_tensor(key).half() for key in keys}
    tensors.pop(next(key for key in keys if key.endswith("lora_up.weight")))
    safetensors.torch.save_file(tensors, path, metadata)
    with pytest.raises(FairAdapterError, match=r"lora_up\.weight', found none"):
        FairnessAdapter.read(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FairAdapterError, match="do not read as one"):
        FairnessAdapter.read(path)


def test_the_warning_reaches_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_adapter(FIXED).write(tmp_path / "a.safetensors")
    rewritten(path, torch.Tensor.half, nothing)
    service = FairService([tmp_path], tmp_path / "data")
    for base in (BASE, None):
        assert CONVERTED in service.advice("a.safetensors", "", base)
    assert export.main(["adapter", str(path), "--out", str(tmp_path / "out")]) == 0
    assert f"warning: {CONVERTED}" in capsys.readouterr().out
    adapter = FairnessAdapter.read(path)
    files = export_adapter(adapter, None, "x", tmp_path / "o", tmp_path / "e")
    assert files.lora is not None


# ---- types that the format knows


def test_every_type_of_one_byte_and_more_is_read_as_it_is(tmp_path: Path) -> None:
    """The library's own `load` knows no float8_e8m0, which it writes."""
    names = ("float8_e8m0fnu", "float8_e4m3fn", "float8_e5m2", "uint8", "uint16", "bool", "complex64")
    tensors = {name: torch.ones(2, 3).to(getattr(torch, name)) for name in names if hasattr(torch, name)}
    tensors |= {"none": torch.ones(0, 4), "one": torch.tensor(3.0)}
    path = tmp_path / "a.safetensors"
    path.write_bytes(serialise(tensors, {}))
    found = read_tensors(path).tensors
    assert {k: (v.dtype, v.shape) for k, v in found.items()} == {
        k: (v.dtype, v.shape) for k, v in tensors.items()
    }
    for key, value in tensors.items():
        assert (
            found[key].reshape(-1).view(torch.uint8).tolist() == value.reshape(-1).view(torch.uint8).tolist()
        )
    assert read_header(path).layouts["one"].dtype == "torch.float32"


@pytest.mark.parametrize(("dtype", "told"), [("F8_E8M0", "float8_e8m0fnu"), ("F8_E4M3", "float8_e4m3fn")])
def test_an_adapter_in_float8_is_refused_by_its_type(tmp_path: Path, dtype: str, told: str) -> None:
    path = make_adapter().write(tmp_path / "a.safetensors")
    if not hasattr(torch, told):
        pytest.skip(f"this PyTorch has no {told}")
    kind = getattr(torch, told)
    rewritten(path, lambda value: value.abs().clamp(min=0.1).to(kind), nothing)
    assert f'"dtype":"{dtype}"'.encode() in path.read_bytes()
    with pytest.raises(FairAdapterError, match=f"in float32 or float16, found torch.{told}") as error:
        FairnessAdapter.read(path)
    assert "damaged" not in str(error.value)


def test_types_that_this_pytorch_lacks_are_named(tmp_path: Path) -> None:
    text = json.dumps({"x": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"ab")
    assert read_header(tmp_path / "a.safetensors").layouts["x"].shape == (4,)
    with pytest.raises(FairAdapterError, match="'x' of type F4; it takes a newer PyTorch"):
        read_tensors(tmp_path / "a.safetensors")
