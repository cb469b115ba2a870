"""What single files say of their noise schedule by keys without weights: known or refused with the reason."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EDMEulerScheduler, PNDMScheduler
from safetensors.torch import load_file, save_file

from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.tests.tiny_checkpoint import write_checkpoint, write_sd1, write_sd3
from fair_adapter.tests.tiny_families import pipeline
from fair_adapter.tests.tiny_pipeline import write_tiny_pipeline
from fair_adapter.trainer.configuration.config import ModelConfig
from fair_adapter.trainer.families.loading import load_base
from fair_adapter.trainer.families.registry import load

Files = dict[str, tuple[Path, Path]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Of each family a diffusers folder and the same model as one file."""
    found = {}
    for name in ("sd1", "sd2", "sdxl", "sd3"):
        place = tmp_path_factory.mktemp(name)
        folder, file = place / "folder", place / "model.safetensors"
        if name == "sd1":
            write_sd1(write_tiny_pipeline(folder, layers=2), file)
        else:
            made = pipeline(name)
            if name == "sd3":
                with torch.no_grad():
                    made.text_encoder.text_projection.weight.copy_(torch.eye(16))
            made.save_pretrained(folder)
            (write_sd3 if name == "sd3" else write_checkpoint)(made, file)
        found[name] = folder, file
    return found


def marked(
    files: Files, name: str, keys: Sequence[str], path: Path, metadata: dict[str, str] | None = None
) -> Any:
    folder, file = files[name]
    save_file({**load_file(file), **{key: torch.zeros(0) for key in keys}}, path, metadata)
    return load(path, config=str(folder))


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_v_prediction_and_zero_terminal_snr_are_read_off_their_keys(
    files: Files, name: str, tmp_path: Path
) -> None:
    """On the schedule that they were trained on, from its very end: as the hosts that know the keys."""
    path = tmp_path / "model.safetensors"
    assert marked(files, name, [], path).sampler(4).prediction == "epsilon"
    assert marked(files, name, ["v_pred"], path).sampler(4).prediction == "v_prediction"
    sampler = marked(files, name, ["v_pred", "ztsnr"], path).sampler(4)
    assert sampler.prediction == "v_prediction" and sampler.timesteps[0] == 999
    assert float(sampler.noise_per_output[0]) < 1e-3  # alpha: no signal is left there
    spoken = marked(files, name, [], path, {"modelspec.prediction_type": "v"})
    assert spoken.sampler(4).prediction == "v_prediction"
    with pytest.raises(
        FairAdapterError, match=r"found 'ztsnr' without 'v_pred'.*set model\.config"
    ) as caught:
        marked(files, name, ["ztsnr"], path)
    assert "\n" not in str(caught.value)


def test_a_scheduler_that_knows_no_rescaled_schedule_gives_way(files: Files, tmp_path: Path) -> None:
    """PNDM, which the hub's Stable Diffusion 1.5 has, would go on with the plain one."""
    folder, file = files["sd1"]
    own = shutil.copytree(folder, tmp_path / "own")
    scheduler = PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1)
    scheduler.save_pretrained(own / "scheduler")
    index = (own / "model_index.json").read_text().replace("DPMSolverMultistepScheduler", "PNDMScheduler")
    (own / "model_index.json").write_text(index)
    path = tmp_path / "model.safetensors"
    save_file({**load_file(file), "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, path)
    model = load(path, config=str(own))
    assert model.sampler(4).name == "DDIMScheduler"
    assert math.isclose(float(model.scheduler.alphas_cumprod[-1]), 0.0, abs_tol=1e-4)
    other = load_base(ModelConfig(str(path), config=str(folder), scheduler="EulerDiscreteScheduler"), "cpu")
    assert other.scheduler.config["rescale_betas_zero_snr"] and other.sampler(4).timesteps[0] == 999
    with pytest.raises(FairAdapterError, match="expected one that knows rescale_betas_zero_snr"):
        load_base(ModelConfig(str(path), config=str(folder), scheduler="PNDMScheduler"), "cpu")


@pytest.mark.parametrize(
    ("keys", "model"),
    [
        (["edm_vpred.sigma_max", "edm_vpred.sigma_min"], "CosXL"),
        (["edm_vpred.sigma_max"], "CosXL"),
        (["edm_mean", "edm_std"], "Playground 2.5"),
        (["edm_mean"], "Playground 2.5"),
    ],
)
def test_models_on_continuous_noise_levels_are_refused(
    files: Files, keys: list[str], model: str, tmp_path: Path
) -> None:
    with pytest.raises(FairAdapterError, match=f"{keys[0]}', the mark of {model}: trained on EDM") as caught:
        marked(files, "sdxl", keys, tmp_path / "model.safetensors")
    assert "\n" not in str(caught.value)


def test_folders_of_such_models_are_refused_too_whatever_scheduler_is_asked_for(tmp_path: Path) -> None:
    made = pipeline("sdxl")
    made.scheduler = EDMEulerScheduler(sigma_max=120.0, sigma_data=1.0, prediction_type="v_prediction")
    made.save_pretrained(tmp_path / "cosxl")
    for scheduler in (None, "DDIMScheduler"):
        with pytest.raises(FairAdapterError, match="found EDMEulerScheduler: a model trained on EDM"):
            load_base(ModelConfig(str(tmp_path / "cosxl"), scheduler=scheduler), "cpu")
    made = pipeline("sdxl")
    made.vae.register_to_config(latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    made.save_pretrained(tmp_path / "playground")
    with pytest.raises(FairAdapterError, match="latents have a mean and a spread of their own"):
        load(tmp_path / "playground")


def test_a_flow_model_marked_as_another_is_refused(files: Files, tmp_path: Path) -> None:
    with pytest.raises(FairAdapterError, match=r"found a mark of prediction_type, expected .*Diffusion 3"):
        marked(files, "sd3", ["v_pred"], tmp_path / "model.safetensors")
