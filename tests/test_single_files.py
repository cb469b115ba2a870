"""What single files lack, hold in other names or numbers, and what diffusers would pass over in silence."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as converters
from safetensors.torch import load_file, save_file

from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.tests.test_marks import Files, files
from fair_adapter.tests.tiny_families import pipeline, unet, vae
from fair_adapter.trainer import train
from fair_adapter.trainer.configuration.config import ModelConfig
from fair_adapter.trainer.families.layout import unet_namer, vae_namer
from fair_adapter.trainer.families.loading import load_base
from fair_adapter.trainer.families.registry import load

__all__ = ["files"]  # the fixture
TEXT = "cond_stage_model.transformer."


def changed(file: Path, path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """A copy of a checkpoint with other tensors."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, path)
    return path


def refused(path: Path, expected: str, **options: Any) -> str:
    with pytest.raises(FairAdapterError, match=expected) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_equal(one: Any, other: Any) -> None:
    for name, part in one.parts().items():
        stored, read = part.state_dict(), other.parts()[name].state_dict()
        assert stored.keys() == read.keys() and all(torch.equal(stored[k], read[k]) for k in stored), name


# ---- tensors


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "sd3"])
def test_any_missing_tensor_is_named_before_anything_is_read(
    name: str, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, file = files[name]
    for kind in (diffusers.AutoencoderKL, UNet2DConditionModel, diffusers.DiffusionPipeline):
        for way in ("from_single_file", "from_pretrained"):
            monkeypatch.setattr(kind, way, lambda *a, **k: pytest.fail("read"), raising=False)
    for kind in ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline"):
        monkeypatch.setattr(getattr(diffusers, kind), "from_single_file", lambda *a, **k: pytest.fail("read"))
    keys = sorted(load_file(file))
    for key in (*keys[:: len(keys) // 12], keys[-1]):
        path = changed(file, tmp_path / "model.safetensors", lambda tensors, key=key: tensors.pop(key))
        message = refused(path, "found none named", config=str(folder))
        assert f"'{key}'" in message and str(path) in message
    if name == "sdxl":  # a part of which nothing is there

        def without_text(tensors: dict[str, torch.Tensor]) -> None:
            for key in [k for k in tensors if "embedders.0." in k]:
                del tensors[key]

        path = changed(file, tmp_path / "model.safetensors", without_text)
        refused(path, r"text_encoder, found none named 'conditioner\.embedders\.0", config=str(folder))


def test_a_tensor_of_another_size_is_named(files: Files, tmp_path: Path) -> None:
    folder, file = files["sd1"]
    key = "model.diffusion_model.out.2.bias"
    path = changed(file, tmp_path / "x.safetensors", lambda t: t.update({key: torch.zeros(5)}))
    refused(path, rf"expected '{key}' of 4 numbers, .* found 5; set model\.config", config=str(folder))


SDXL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}


@pytest.mark.parametrize("settings", [{"cross_attention_dim": 768}, SDXL], ids=["sd1", "sdxl"])
def test_names_are_those_that_diffusers_reads_in_files_of_the_real_sizes(settings: dict[str, Any]) -> None:
    with torch.device("meta"):
        network = UNet2DConditionModel(**settings)
        own: Any = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
        for kind in ("down_block_types", "up_block_types"):
            own[kind] = (
                f"{'Down' if kind[0] == 'd' else 'Up'}{'Encoder' if kind[0] == 'd' else 'Decoder'}Block2D",
            ) * 4
        decoder = AutoencoderKL(**own)
    name = unet_namer(network.config)
    stored = {f"model.diffusion_model.{name(k)}": v for k, v in network.state_dict().items()}
    read = converters.convert_ldm_unet_checkpoint(dict(stored), network.config)
    assert {k: v.shape for k, v in read.items()} == {k: v.shape for k, v in network.state_dict().items()}
    name = vae_namer(decoder.config)
    stored = {f"first_stage_model.{name(k)}": v for k, v in decoder.state_dict().items()}
    read = converters.convert_ldm_vae_checkpoint(dict(stored), decoder.config)
    assert {k: v.shape for k, v in read.items()} == {k: v.shape for k, v in decoder.state_dict().items()}


# ---- other names, missing parts


def test_the_names_of_novelais_first_files_are_read(files: Files, tmp_path: Path) -> None:
    folder, file = files["sd1"]

    def shorten(tensors: dict[str, torch.Tensor]) -> None:
        for key in [k for k in tensors if k.startswith(TEXT)]:
            tensors[key.replace("text_model.", "")] = tensors.pop(key)

    path = changed(file, tmp_path / "animefull.safetensors", shorten)
    assert not any("text_model" in key for key in load_file(path))
    one, other = load(file, config=str(folder)), load(path, config=str(folder))
    assert_equal(one, other)
    assert torch.equal(one.encode(["a nurse"])["text"], other.encode(["a nurse"])["text"])
    key = f"{TEXT}encoder.layers.1.mlp.fc1.weight"
    refused(changed(path, tmp_path / "cut.safetensors", lambda t: t.pop(key)), key, config=str(folder))


def without_vae(tensors: dict[str, torch.Tensor]) -> None:
    for key in [k for k in tensors if k.startswith("first_stage_model.")]:
        del tensors[key]


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_a_file_without_a_vae_takes_the_configurations_or_the_one_that_is_named(
    name: str, files: Files, tmp_path: Path
) -> None:
    folder, file = files[name]
    whole = load(file, config=str(folder))
    path = changed(file, tmp_path / "pruned.safetensors", without_vae)
    found = load(path, config=str(folder))
    torch.testing.assert_close(
        found.vae.state_dict(), whole.vae.state_dict(), rtol=1e-3, atol=1e-3
    )  # the file of SD 1 is in float16
    bare = Path(shutil.copytree(folder, tmp_path / "bare"))
    shutil.rmtree(bare / "vae")
    (bare / "vae").mkdir()
    shutil.copy(folder / "vae" / "config.json", bare / "vae")
    refused(path, r"expected a checkpoint with a VAE, found none.*set model\.vae to a VAE", config=str(bare))
    by_itself = tmp_path / "vae.safetensors"
    vae_file = {
        k.removeprefix("first_stage_model."): v for k, v in load_file(file).items() if "first_stage" in k
    }
    save_file(vae_file, by_itself)
    for source in (file, by_itself):
        assert_equal(load(path, config=str(bare), vae=str(source)), whole)
    for source in (folder, folder / "vae"):
        other = load_base(ModelConfig(str(path), config=str(bare), vae=str(source)), "cpu")
        assert other.vae.state_dict().keys() == whole.vae.state_dict().keys()
    cut = changed(by_itself, tmp_path / "cut.safetensors", lambda t: t.pop("decoder.conv_out.bias"))
    refused(path, r"cut\.safetensors: .* 'decoder\.conv_out\.bias'", config=str(bare), vae=str(cut))
    own = load(folder, vae=str(by_itself))  # in the place of a folder's
    assert torch.equal(own.vae.decoder.conv_in.weight, whole.vae.decoder.conv_in.weight)


def test_vaes_that_are_none_or_of_another_family_say_so(files: Files, tmp_path: Path) -> None:
    folder, file = files["sd1"]
    refused(file, r"model\.vae: expected a VAE, found no file", config=str(folder), vae="gone.safetensors")
    refused(file, r"model\.vae: expected a VAE as", config=str(folder), vae=str(tmp_path))
    refused(file, "expected a VAE of 4 latent channels", config=str(folder), vae=str(files["sd3"][0]))


# ---- other models


def channels(count: int) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        key = "model.diffusion_model.input_blocks.0.0.weight"
        more = torch.randn(len(tensors[key]), count - 4, 3, 3, generator=torch.Generator().manual_seed(1))
        tensors[key] = torch.cat([tensors[key], more.to(tensors[key])], dim=1)

    return change


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_an_inpainting_model_draws_from_a_text_alone(name: str, files: Files, tmp_path: Path) -> None:
    """It is told a mask of ones and the latents of a grey picture: that nothing is known of the picture."""
    folder, file = files[name]
    path = changed(file, tmp_path / "inpainting.safetensors", channels(9))
    model, plain = load(path, config=str(folder)), load(file, config=str(folder))
    assert model.latent_shape == plain.latent_shape and model.describe("x").architecture == name
    latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    inputs = model.network_inputs(latents)
    grey = torch.zeros(1, 3, *(8 * n for n in latents.shape[-2:]))
    with torch.no_grad():
        known = model.vae.encode(grey).latent_dist.mode() * model.vae.config["scaling_factor"]
    assert inputs.shape[1] == 9 and torch.equal(inputs[:, :4], latents) and bool((inputs[:, 4] == 1).all())
    assert (
        torch.allclose(inputs[:, 5:], known.expand(2, -1, -1, -1))
        and plain.network_inputs(latents) is latents
    )
    pictures = model.generate(["a nurse"] * 2, [1, 2], 2.0, 2)
    assert pictures.isfinite().all() and not torch.equal(
        pictures, plain.generate(["a nurse"] * 2, [1, 2], 2.0, 2)
    )


def test_models_that_need_a_picture_and_the_refiner_are_told_apart(files: Files, tmp_path: Path) -> None:
    folder, file = files["sd1"]
    for count, what in ((8, "pix2pix"), (5, "depth"), (7, "upscaler"), (6, "more than latents")):
        path = changed(file, tmp_path / "model.safetensors", channels(count))
        refused(path, f"found a U-Net of {count} channels: .*{what}", config=str(folder))
        refused(path, what)  # without a configuration, too
    made = pipeline("sd1")
    made.register_modules(unet=unet(16, in_channels=8))
    made.save_pretrained(tmp_path / "folder")
    refused(tmp_path / "folder", "pix2pix")

    def refine(tensors: dict[str, torch.Tensor]) -> None:
        for key in [k for k in tensors if k.startswith("conditioner.")]:
            value = tensors.pop(key)
            if "embedders.1" in key:
                tensors[key.replace("embedders.1", "embedders.0")] = value

    path = changed(files["sdxl"][1], tmp_path / "refiner.safetensors", refine)
    refused(path, "found the refiner of Stable Diffusion XL", config=str(files["sdxl"][0]))


# ---- numbers


def test_whole_numbers_are_no_weights(files: Files, tmp_path: Path) -> None:
    folder, file = files["sd1"]
    key = "model.diffusion_model.out.2.weight"

    def quantise(tensors: dict[str, torch.Tensor]) -> None:
        tensors[key] = (100 * tensors[key]).to(torch.int8)

    path = changed(file, tmp_path / "int8.safetensors", quantise)
    message = refused(path, "found .* as I8", config=str(folder))
    assert key in message and str(path) in message
    made = Path(shutil.copytree(folder, tmp_path / "folder"))
    part = made / "unet" / "diffusion_pytorch_model.safetensors"
    changed(part, part, lambda t: t.update({"conv_in.bias": torch.zeros(4, dtype=torch.int8)}))
    assert str(part) in refused(made, r"found 'conv_in\.bias' as I8")
    path = changed(file, tmp_path / "vae.safetensors", lambda t: t.update({
        "first_stage_model.decoder.conv_in.bias": torch.zeros(8, dtype=torch.int8)}))  # fmt: skip
    refused(file, r"decoder\.conv_in\.bias' as I8", config=str(folder), vae=str(path))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "key",
    [
        "model.diffusion_model.middle_block.0.in_layers.2.weight",
        "first_stage_model.decoder.conv_in.weight",
        f"{TEXT}text_model.encoder.layers.0.mlp.fc1.weight",
    ],
)
def test_weights_that_are_not_finite_are_refused_before_training(
    key: str, value: float, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = files["sd1"]
    path = changed(file, tmp_path / "broken.safetensors", lambda t: t[key].view(-1)[3:5].fill_(value))
    settings = tmp_path / "config.yaml"
    settings.write_text(
        f"model: {{path: {path}, config: {folder}, guidance_scale: 2}}\nadapter: {{soft_tokens: 1}}\n"
        f"faces: {{detector: fixed, bank: null}}\nloss: {{semantics: 0, face: 0}}\n"
        f"run: {{output: {tmp_path / 'run'}, device: cpu}}\noptimizer: {{iterations: 1, images: 2}}\n"
    )
    assert train.main([str(settings)]) == 2
    printed = capsys.readouterr()
    assert "wrote" not in printed.out and not (tmp_path / "run" / "adapter.safetensors").exists()
    line = next(row for row in printed.err.splitlines() if row.startswith("error: "))
    assert str(path) in line and "found 2 of" in line and f"'{key}'" in line


def test_weights_of_a_folder_that_are_not_finite_are_named_too(files: Files, tmp_path: Path) -> None:
    made = Path(shutil.copytree(files["sdxl"][0], tmp_path / "folder"))
    part = made / "vae" / "diffusion_pytorch_model.safetensors"
    changed(part, part, lambda t: t["decoder.conv_in.bias"].fill_(float("nan")))
    refused(made, r"NaN or infinite in 'vae/decoder\.conv_in\.bias'")
    own = vae(force_upcast=True)
    own.save_pretrained(tmp_path / "vae")
    assert load(made, vae=str(tmp_path / "vae")).vae.config["force_upcast"]
