"""Models from files and folders as they are downloaded: what they lack, what is left out, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.tests.tiny_checkpoint import write_sd1, write_sd3
from fair_adapter.tests.tiny_families import pipeline
from fair_adapter.tests.tiny_pipeline import write_tiny_pipeline
from fair_adapter.trainer import evaluate
from fair_adapter.trainer.configuration.config import ModelConfig
from fair_adapter.trainer.evaluation import command
from fair_adapter.trainer.families.base import DiffusionModel
from fair_adapter.trainer.families.loading import load_base
from fair_adapter.trainer.families.registry import load

PROMPTS = ["a photo of the face of a doctor, a person", "a nurse"]


def sd3(t5xxl: bool = True) -> Any:
    """One that a file can hold: CLIP-L's projection is the identity."""
    made = pipeline("sd3", t5xxl)
    with torch.no_grad():
        made.text_encoder.text_projection.weight.copy_(torch.eye(16))
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion 3 as a diffusers folder, with T5."""
    path = tmp_path_factory.mktemp("sd3") / "folder"
    sd3().save_pretrained(path)
    return path


def assert_same(part: str, one: DiffusionModel, other: DiffusionModel) -> None:
    stored, read = (model.parts()[part].state_dict() for model in (one, other))
    assert stored.keys() == read.keys() and all(torch.equal(stored[k], read[k]) for k in stored), part


@pytest.mark.parametrize("t5xxl", [True, False], ids=["with T5", "without T5"])
def test_a_download_of_sd3_is_its_folder(folder: Path, t5xxl: bool, tmp_path: Path) -> None:
    file = tmp_path / "sd3_medium_incl_clips.safetensors"
    write_sd3(sd3(t5xxl), file)
    one = load(folder, without=None if t5xxl else ["t5xxl"])
    other = load(file, config=str(folder))
    assert other.describe("x") == one.describe("x") and other.sampler(4).prediction == "flow"
    assert ("t5xxl" in other.describe("x").encoders) == t5xxl and one.parts().keys() == other.parts().keys()
    for part in one.parts():
        assert_same(part, one, other)
    expected, found = one.encode(PROMPTS), other.encode(PROMPTS)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("vae", [True, False], ids=["with its VAE", "network alone"])
def test_sd3_without_text_encoders_takes_them_from_the_configuration(
    folder: Path, vae: bool, tmp_path: Path
) -> None:
    """sd3.5_medium.safetensors; network and VAE are the file's own."""
    made, file = sd3(), tmp_path / "sd3.5_medium.safetensors"
    with torch.no_grad():
        for part in (made.transformer, made.vae):
            next(part.parameters()).mul_(2)
    write_sd3(made, file, encoders=False, vae=vae)
    one, other = load(folder), load(file, config=str(folder))
    for part in ("text", "text_2", "text_3", *(() if vae else ("vae",))):
        assert_same(part, one, other)
    for part, own in (("unet", made.transformer), *((("vae", made.vae),) if vae else ())):
        stored, read = own.state_dict(), other.parts()[part].state_dict()
        assert all(torch.equal(stored[k], read[k]) for k in stored), part
        assert any(not torch.equal(v, read[k]) for k, v in one.parts()[part].state_dict().items()), part
    less = load(file, config=str(folder), without=["t5xxl"])
    assert less.describe("x").encoders == ("clip_l", "clip_g")
    with pytest.raises(FairAdapterError, match=r"without its text encoders; set model\.config") as caught:
        load(file)
    assert "\n" not in str(caught.value)


def test_encoders_that_a_family_needs_cannot_be_left_out(folder: Path) -> None:
    model = load_base(ModelConfig(path=str(folder), without=("t5xxl",)), "cpu")
    assert model.describe("x").encoders == ("clip_l", "clip_g")
    with pytest.raises(
        FairAdapterError, match=r"model\.without: expected t5xxl .* found clip_l; take it out"
    ):
        load(folder, without=["clip_l"])


def test_what_an_xl_model_does_with_an_empty_negative_prompt_is_a_setting(tmp_path: Path) -> None:
    pipeline("sdxl").save_pretrained(tmp_path)
    for choice in ("encoded", "zeros"):
        model = load_base(ModelConfig(path=str(tmp_path), empty_negative=choice), "cpu")
        unconditional = model.guidance(PROMPTS, 2.0).unconditional
        assert unconditional is not None and bool(unconditional["pooled"].any()) == (choice == "encoded")
    write_tiny_pipeline(tmp_path / "sd1")
    with pytest.raises(FairAdapterError, match=r"set model\.empty_negative=encoded"):
        load_base(ModelConfig(path=str(tmp_path / "sd1"), empty_negative="zeros"), "cpu")


def test_evaluation_loads_a_model_as_it_was_trained(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("model: {empty_negative: zeros, without: [t5xxl]}\nadapter: {soft_tokens: 1}\n")
    program = evaluate.program()
    as_trained = command.with_config(program, ["--config", str(path)])
    typed = command.with_config(evaluate.program(), ["--empty-negative", "zeros", "--without", "t5xxl"])
    for options, guidance in ((as_trained, []), (typed, [])):
        config = command._model(options, "portrait")
        assert config.empty_negative == "zeros" and config.without == ("t5xxl",)
        assert options.guidance == guidance  # the model's usual one
    plain = command._model(command.with_config(evaluate.program(), []), "portrait")
    assert plain.empty_negative == "encoded" and plain.without == ()


@pytest.mark.parametrize("key", ["scaled_fp8", "x.scale_weight", "x.weight_scale"])
def test_scaled_float8_is_refused(key: str, tmp_path: Path) -> None:
    """diffusers would drop the scales and load numbers that are off by them."""
    file = tmp_path / "sd3.5_large_fp8_scaled.safetensors"
    names = ("model.diffusion_model.joint_blocks.0.x", "text_encoders.clip_l.x")
    tensors = {name: torch.zeros(2, dtype=torch.float8_e4m3fn) for name in names}
    save_file({**tensors, f"model.diffusion_model.{key}": torch.ones(1)}, file)
    with pytest.raises(
        FairAdapterError, match=r"found scaled float8, .* download the model in float16"
    ) as caught:
        load(file, config="nobody/nothing")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["models/sd_xl_base_1.0.safetensors", "models/v1-5.ckpt"])
def test_a_mistyped_file_is_no_hub_id(name: str, tmp_path: Path) -> None:
    with pytest.raises(FairAdapterError, match=rf"{name}: expected a checkpoint, found no such file"):
        load(name)
    (tmp_path / name).mkdir(parents=True)  # a folder may be called so
    (tmp_path / name / "model_index.json").write_text("{}")
    with pytest.raises(FairAdapterError, match="expected a pipeline of"):
        load(tmp_path / name)


def test_old_folders_name_classes_that_are_gone(tmp_path: Path) -> None:
    """runwayml's model_index.json: a feature extractor and a safety checker, neither of which is used."""
    folder, file = write_tiny_pipeline(tmp_path / "pipeline", layers=2), tmp_path / "model.safetensors"
    write_sd1(folder, file)
    index = json.loads((folder / "model_index.json").read_text())
    index["feature_extractor"] = ["transformers", "CLIPFeatureExtractor"]
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (folder / "model_index.json").write_text(json.dumps(index))
    one, other = load(folder), load(file, config=str(folder))
    assert one.describe("x") == other.describe("x")
