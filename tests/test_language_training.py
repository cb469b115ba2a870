"""Training of Z-Image and Krea 2 with small random weights, from folder to adapter file: resumed, by two
processes, trained on; what it takes in memory at full size, counted; 8-bit weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fair_adapter.shared.adapter import FairnessAdapter
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.tests.tiny_language import LANGUAGE_NAMES, pipeline
from fair_adapter.trainer.benchmark_methods import full_size
from fair_adapter.trainer.configuration.config import load_config
from fair_adapter.trainer.families.loading import load_base
from fair_adapter.trainer.training.run import train

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "trainer" / "configs"
SETTINGS = """
model: {path: PIPELINE, size: 64, distilled: true}
adapter: {soft_tokens: 2, initial_words: null}
target: {text: "gender=equal"}
prompts: {train: [{set: sports}]}
faces: {detector: fixed, bank: null}
loss: {confidence: 0, semantics: 0}
sampling: {steps: [3, 3], gradient_steps: 2, gradient_batch: 2, checkpoint: all}
references: {blocks: 1, cache: null}
optimizer: {iterations: 2, images: 4, lr: 1.0e-2}
run: {output: OUTPUT, device: cpu, sample_every: 0, tensorboard: false}
"""
PRESETS = {"z-image": "zimage_turbo_soft_prompt", "krea2": "krea2_turbo_soft_prompt"}
families = pytest.mark.parametrize("name", LANGUAGE_NAMES)


def config_of(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pipeline(name, distilled=True).save_pretrained(folder / "pipeline")
    text = SETTINGS.replace("PIPELINE", str(folder / "pipeline")).replace("OUTPUT", str(folder / "run"))
    (folder / "config.yaml").write_text(text)
    return folder / "config.yaml"


@families
def test_training_resumes_bitwise_and_two_processes_do_the_same(name: str, tmp_path: Path) -> None:
    adapters = []
    for kind in ("whole", "parts", "two"):
        path = config_of(tmp_path / kind, name)
        if kind == "two":
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
            command += [str(ROOT / "trainer" / "train.py"), str(path)]
            environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, done.stderr[-2000:]
        else:
            if kind == "parts":
                train(load_config(path, ["optimizer.iterations=1"]))
            assert train(load_config(path))[1]
        adapters.append(FairnessAdapter.read(tmp_path / kind / "run" / "adapter.safetensors"))
    whole, parts, two = (adapter.tensors for adapter in adapters)
    (encoder,) = adapters[0].encoders
    soft, neutral = whole[f"fair.soft.{encoder}"], whole[f"fair.soft_neutral.{encoder}"]
    assert all(torch.equal(whole[key], parts[key]) for key in whole) and whole.keys() == parts.keys()
    assert (soft - neutral).abs().max() > 1e-3
    assert (soft - two[f"fair.soft.{encoder}"]).norm() < 1e-2 * (soft - neutral).norm()
    log = (tmp_path / "whole" / "run" / "log.jsonl").read_text().splitlines()
    assert all(json.loads(line)["gradient_norm"] > 0 for line in log)


@families
def test_presets_are_of_the_few_step_models(name: str) -> None:
    config = load_config(CONFIGS / f"{PRESETS[name]}.yaml")
    assert config.sampling.steps == (8, 8) and config.sampling.gradient_steps == 2
    assert config.adapter.soft_tokens == 5 and config.references.blocks and config.model.weights == "int8"
    assert config.model.guidance_scale is None and (config.model.distilled or name == "krea2")
    assert all(len(template.split()) > 8 for template in config.prompts.train[0].templates)


def test_a_scale_above_one_is_refused_before_the_work(tmp_path: Path) -> None:
    path = config_of(tmp_path, "z-image")
    with pytest.raises(FairAdapterError, match=r"expected 1 for a distilled Z-Image model") as caught:
        train(load_config(path, ["model.guidance_scale=4"]))
    assert "\n" not in str(caught.value)


def test_int8_without_its_library_says_what_to_install(tmp_path: Path) -> None:
    path = config_of(tmp_path, "z-image")
    try:
        import torchao  # noqa: F401
    except ImportError:
        with pytest.raises(FairAdapterError, match=r"pip install torchao, or set model\.weights=plain"):
            load_base(load_config(path, ["model.weights=int8"]).model, "cpu")


def test_a_soft_prompt_for_z_image_turbo_fits_the_cards_that_the_docs_name() -> None:
    """Counted at full size; GB as the makers of cards count: 16 GB in 8 bits, 24 GB in bfloat16."""
    parts = full_size.count("z-image-turbo")
    assert parts.together(eight_bits=True) < 16e9 and parts.together(eight_bits=False) < 24e9
    assert 6.0e9 < parts.weights["transformer"] / 2 < 6.3e9  # 6.15 B parameters


def test_a_soft_prompt_for_krea_2_turbo_fits_24_gb_in_8_bits() -> None:
    parts = full_size.count("krea2-turbo")
    assert parts.together(eight_bits=True) < 24e9
    assert 12.6e9 < parts.weights["transformer"] / 2 < 13.0e9
