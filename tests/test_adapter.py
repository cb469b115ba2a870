"""The adapter file: round trips, metadata, base-model checks, and the exports for stock programs."""

import errno
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from fair_adapter.shared.adapter import FairnessAdapter
from fair_adapter.shared.adapter_export import embedding_tensors, export_adapter
from fair_adapter.shared.adapter_info import BaseModel, FamilyNames, weights_hash
from fair_adapter.shared.adapter_target import TargetSpace
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.tensor_file import read_tensors, serialise, write_bytes
from fair_adapter.tests.tiny_adapter import BASE, FIXED, LAYERS, SPACE, make_adapter, payload

# ---- the file


@pytest.mark.parametrize("space", [SPACE, FIXED])
def test_round_trip(tmp_path: Path, space: TargetSpace) -> None:
    adapter = make_adapter(space)
    path = adapter.write(tmp_path / "new" / "a.safetensors")
    again = FairnessAdapter.read(path)
    assert again.info == adapter.info == FairnessAdapter.read_info(path)
    assert again.tensors.keys() == adapter.tensors.keys()
    assert all(torch.equal(again.tensors[key], value) for key, value in adapter.tensors.items())
    assert again.conditioned is (space is SPACE)
    assert again.encoders == ("clip_l",)
    assert again.layers == dict.fromkeys(LAYERS, (7, 6))
    assert os.listdir(path.parent) == ["a.safetensors"]


def test_equal_adapters_give_equal_bytes(tmp_path: Path) -> None:
    paths = [make_adapter().write(tmp_path / f"{i}.safetensors") for i in range(2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_metadata_of_other_programs(tmp_path: Path) -> None:
    header, after = payload(make_adapter().write(tmp_path / "a.safetensors"))
    metadata = header["__metadata__"]
    digest = hashlib.sha256(after).hexdigest()
    assert metadata["sshs_model_hash"] == digest
    assert metadata["modelspec.hash_sha256"] == f"0x{digest}"
    expected = {
        "ss_network_module": "networks.lora", "ss_network_dim": "3", "ss_network_alpha": "1.5",
        "ss_base_model_version": "sd_v1", "ss_v2": "False", "ss_output_name": "tiny-fair",
        "ss_sd_model_name": "portrait", "modelspec.sai_model_spec": "1.0.0", "modelspec.title": "tiny-fair",
        "modelspec.architecture": "stable-diffusion-v1/lora", "modelspec.license": "MIT",
        "modelspec.date": "2026-11-21",
    }  # fmt: skip
    assert expected.items() <= metadata.items()
    assert len(metadata["sshs_legacy_hash"]) == 8
    entry = json.loads(metadata["fair_adapter"])
    assert entry["format"] == 1 and entry["base"]["hash"] == "ab" * 32
    assert entry["attributes"][1] == {"name": "race", "classes": ["wmelh", "black", "asian"]}
    assert entry["target"]["range"]["race"] == {"black": [0.05, 0.8]}
    assert entry["classifier"] == "default:0123456789ab"


def test_hashes_are_those_of_sd_scripts(tmp_path: Path) -> None:
    """Written from sd-scripts' description: metadata beside `ss_` do not count."""
    adapter = make_adapter()
    large = {**adapter.tensors, LAYERS[0] + ".lora_up.weight": torch.ones(150_000, 3)}
    path = replace(adapter, tensors=large).write(tmp_path / "a.safetensors")
    header, after = payload(path)
    kohya = {k: v for k, v in header["__metadata__"].items() if k.startswith("ss_")}
    file = serialise(large, kohya)
    assert (
        header["__metadata__"]["sshs_legacy_hash"]
        == hashlib.sha256(file[2**20 : 2**20 + 2**16]).hexdigest()[:8]
    )
    assert (
        len(file) > 2**20 + 2**16
        and hashlib.sha256(after).hexdigest() == header["__metadata__"]["sshs_model_hash"]
    )


@pytest.mark.parametrize(
    ("base", "version", "second", "spec"),
    [
        (BaseModel("x", "sd1"), "sd_v1", "False", "stable-diffusion-v1"),
        (
            BaseModel("x", "new", names=FamilyNames("new-family", "new_v1", v2=True)),
            "new_v1",
            "True",
            "new-family",
        ),
        (BaseModel("x", "flux"), "flux", "False", "flux"),
    ],
)
def test_metadata_name_the_family(
    tmp_path: Path, base: BaseModel, version: str, second: str, spec: str
) -> None:
    adapter = make_adapter(base=base)
    assert FairnessAdapter.read(adapter.write(tmp_path / "b.safetensors")).info.base == base
    with safe_open(adapter.write(tmp_path / "a.safetensors"), framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["ss_base_model_version"], metadata["ss_v2"]) == (version, second)
    assert metadata["modelspec.architecture"] == f"{spec}/lora"


def test_a_stock_loader_reads_the_default_target(tmp_path: Path) -> None:
    """Every LoRA tensor that safetensors finds is that of `at` the default target, bit for bit."""
    adapter = make_adapter()
    stock = safetensors.torch.load_file(adapter.write(tmp_path / "a.safetensors"))
    plain = FairnessAdapter.read(tmp_path / "a.safetensors").at("gender=50/50;race=equal")
    assert {key for key in stock if key.startswith("lora_")} == set(plain.lora)
    for key, value in plain.lora.items():
        assert value.numpy().tobytes() == stock[key].numpy().tobytes()
    assert torch.equal(plain.soft["clip_l"], stock["fair.soft.clip_l"])
    assert stock[f"{LAYERS[0]}.alpha"] == 1.5


def test_tensors_survive_the_file(tmp_path: Path) -> None:
    """They are no views of it: hosts may lose or replace it while they are in use."""
    path = make_adapter().write(tmp_path / "a.safetensors")
    adapter = FairnessAdapter.read(path)
    with path.open("r+b") as file:
        file.truncate(0)
    path.unlink()
    assert torch.equal(adapter.at().soft["clip_l"], make_adapter().at().soft["clip_l"])


def test_a_file_is_not_overwritten_unless_asked(tmp_path: Path) -> None:
    path = make_adapter().write(tmp_path / "a.safetensors")
    before = path.read_bytes()
    other = make_adapter(name="other")
    with pytest.raises(FairAdapterError, match="exists already"):
        other.write(path)
    assert path.read_bytes() == before
    other.write(path, overwrite=True)
    assert FairnessAdapter.read(path).info.name == "other"


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_adapter().write(tmp_path / "a.safetensors")
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FairAdapterError, match=r"cannot be written .*No space left"):
        make_adapter(name="other").write(path, overwrite=True)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.safetensors"]


def test_an_impossible_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "a.safetensors", tmp_path / ("x" * 300)):
        with pytest.raises(FairAdapterError, match="cannot be written"):
            write_bytes(path, b"x")


def test_metadata_that_json_cannot_hold_are_refused(tmp_path: Path) -> None:
    for evaluation in ({"bias": float("nan")}, {"bias": torch.ones(1)}):
        with pytest.raises(FairAdapterError, match="'tiny-fair': metadata that JSON cannot hold"):
            make_adapter(evaluation=evaluation).write(tmp_path / "a.safetensors")
    assert os.listdir(tmp_path) == []


# ---- base models


def test_a_base_model_of_another_kind_is_refused() -> None:
    adapter = make_adapter()
    with pytest.raises(
        FairAdapterError, match=r"made for portrait \(sd1\), found SDXL \(sdxl\); load portrait"
    ):
        adapter.check_base(BaseModel("SDXL", "sdxl"))
    with pytest.raises(
        FairAdapterError, match=r"portrait \(clip_l of width 8\), found SD 1.5 \(clip_l of width 768\)"
    ):
        adapter.check_base(BaseModel("SD 1.5", "sd1", {"clip_l": 768}))


def test_other_weights_of_the_same_kind_are_a_warning() -> None:
    adapter = make_adapter()
    assert adapter.check_base(replace(BASE, name="again")) == ()
    assert adapter.check_base(replace(BASE, hash="")) == ()
    assert "shares may differ" in adapter.check_base(replace(BASE, hash="cd" * 32))[0]
    assert adapter.check_base(replace(BASE, widths={"unet": 32})) == ()  # a host that tells no encoders
    with pytest.raises(FairAdapterError, match="soft tokens for clip_l, found a model with only clip_g"):
        adapter.check_base(replace(BASE, widths={"clip_g": 8}))


def test_layers_are_checked_against_the_model() -> None:
    adapter = make_adapter()
    adapter.check_layers({**adapter.layers, "lora_unet_more": (1, 1)})
    with pytest.raises(FairAdapterError, match="2 of 2 LoRA layers do not fit this model"):
        adapter.check_layers({})


def test_weights_hash_is_the_same_in_half_precision() -> None:
    one, two = torch.randn(32, 4, 3, 3).half(), torch.randn(4, 32, 3, 3).half()
    digest = weights_hash(one, two)
    assert digest == weights_hash(one.float(), two.float()) and len(digest) == 64
    assert digest != weights_hash(one, two + 1)
    for coarse in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):  # too coarse to tell
        assert weights_hash(one.to(coarse), two) == weights_hash(one, two.to(coarse)) == ""


# ---- exports for stock programs


def test_export_is_the_adapter_at_that_target(tmp_path: Path) -> None:
    adapter = make_adapter()
    files = export_adapter(
        adapter, "gender=80/20", "fair80", tmp_path / "loras", tmp_path / "embeddings", 0.8
    )
    weights = adapter.at("gender=80/20", 0.8)
    lora = safetensors.torch.load_file(tmp_path / "loras" / "fair80.safetensors")
    assert lora.keys() == weights.lora.keys()
    assert all(torch.equal(lora[key], value) for key, value in weights.lora.items())
    embedding = safetensors.torch.load_file(tmp_path / "embeddings" / "fair80.safetensors")
    assert list(embedding) == ["emb_params"]
    assert torch.equal(embedding["emb_params"], weights.soft["clip_l"])
    metadata = read_tensors(files.lora).metadata
    assert metadata["ss_output_name"] == "fair80" and "fair_adapter" not in metadata
    origin = json.loads(metadata["fair_adapter_export"])
    assert origin["target"] == weights.target.to_text() and origin["strength"] == 0.8
    spec = read_tensors(files.embedding).metadata
    assert spec["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"
    assert "ss_network_dim" not in spec


def test_embedding_of_sdxl_has_both_encoders() -> None:
    soft = {"clip_l": torch.ones(5, 768), "clip_g": torch.ones(5, 1280)}
    assert embedding_tensors(soft) == soft
    assert list(embedding_tensors({"clip_h": torch.ones(5, 1024)})) == ["emb_params"]


def test_export_into_one_folder_keeps_both_files(tmp_path: Path) -> None:
    files = export_adapter(make_adapter(), None, "fair", tmp_path, tmp_path)
    assert files.lora == tmp_path / "fair.safetensors"
    assert files.embedding == tmp_path / "fair_tokens.safetensors"


def test_export_writes_both_files_or_none(tmp_path: Path) -> None:
    (tmp_path / "fair_tokens.safetensors").write_text("mine")
    with pytest.raises(FairAdapterError, match=r"fair_tokens\.safetensors: exists already"):
        export_adapter(make_adapter(), None, "fair", tmp_path, tmp_path)
    assert os.listdir(tmp_path) == ["fair_tokens.safetensors"]
    export_adapter(make_adapter(), None, "fair", tmp_path, tmp_path, overwrite=True)
    assert len(os.listdir(tmp_path)) == 2


def test_export_of_one_part(tmp_path: Path) -> None:
    adapter = make_adapter(FIXED)
    soft = {key: value for key, value in adapter.tensors.items() if key.startswith("fair.soft")}
    files = export_adapter(replace(adapter, tensors=soft), None, "fair", tmp_path, tmp_path)
    assert files.lora is None and files.embedding == tmp_path / "fair.safetensors"
    assert replace(adapter, tensors=soft).kind == "textual-inversion"


def test_export_of_nothing_or_under_an_impossible_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FairAdapterError, match="strength 0 is the base model"):
        export_adapter(make_adapter(), None, "fair", tmp_path, tmp_path, strength=0)
    for name in ("", "a b", "../a", "a:b", "x" * 200):
        with pytest.raises(FairAdapterError, match="export name"):
            export_adapter(make_adapter(), None, name, tmp_path, tmp_path)
