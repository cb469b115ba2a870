"""What the documents say of launchers and of diffusers, as it is written there."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fair_adapter.shared.adapter_export import export_adapter
from fair_adapter.tests.test_families import PROMPTS, TARGET, exported, trained
from fair_adapter.tests.tiny_families import pipeline, tiny
from fair_adapter.tests.tiny_pipeline import write_tiny_pipeline

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LAUNCHES = re.findall(r"^    ((?:\w+=\w+ )?torchrun .*)$", README, re.MULTILINE)
ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")


@pytest.mark.skipif(os.name == "nt", reason="POSIX shells' way to set a variable")
@pytest.mark.parametrize("line", LAUNCHES, ids=["GPU", "CPU"])
def test_two_processes_are_started_as_the_readme_says(line: str, tmp_path: Path) -> None:
    """Without a GPU the first line runs on the CPU, too."""
    write_tiny_pipeline(tmp_path / "model")
    config = tmp_path / "config.yaml"
    config.write_text(
        f"model: {{path: {tmp_path / 'model'}, guidance_scale: 2}}\nadapter: {{soft_tokens: 1}}\n"
        "faces: {detector: fixed, bank: null}\nloss: {semantics: 0, face: 0}\nsampling: {steps: [2, 2]}\n"
        f"run: {{output: {tmp_path / 'run'}, sample_every: 0, tensorboard: false}}\n"
        "references: {cache: null}\noptimizer: {iterations: 1, images: 2}\n",
        encoding="utf-8",
    )
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE_")} | {
        "PATH": programs
    }

    def run(*settings: str) -> subprocess.CompletedProcess[str]:
        command = " ".join([line.replace("CONFIG.yaml", str(config)), *settings])
        return subprocess.run(
            command, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
        )

    odd = run("optimizer.images=3")
    assert "expected a multiple of the 2 processes, found 3" in odd.stderr and odd.returncode != 0
    done = run()
    assert done.returncode == 0 and (tmp_path / "run" / "adapter.safetensors").is_file(), done.stderr[-2000:]


def test_the_readme_has_a_line_for_gpus_and_one_for_cpus() -> None:
    assert len(LAUNCHES) == 2 and "run.device=cpu" in LAUNCHES[1] and "cpu" not in LAUNCHES[0].lower()


def test_accelerate_launch_on_a_cpu_starts_one_process_whatever_it_is_told(tmp_path: Path) -> None:
    script = tmp_path / "count.py"
    script.write_text(
        "from accelerate import PartialState\nprint('processes', PartialState().num_processes)\n"
    )
    config = tmp_path / "accelerate.yaml"
    config.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nuse_cpu: true\n"
        "num_machines: 1\nnum_processes: 2\nmixed_precision: 'no'\n"
    )
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    for options in (["--cpu", "--num_processes", "2"], ["--cpu", "--config_file", str(config)]):
        result = subprocess.run(
            [*launcher, *options, str(script)], capture_output=True, text=True, timeout=300
        )
        assert result.stdout.split() == ["processes", "1"], result.stderr[-1000:]


def lora_layers(tensors: dict[str, torch.Tensor], path: Path) -> set[str]:
    """Layers of the text encoder that diffusers puts a LoRA of this file on."""
    save_file(tensors, path)
    stock: Any = pipeline("sd1")
    stock.load_lora_weights(path)
    state = stock.text_encoder.state_dict()
    return {key.partition(".lora_A.")[0] for key in state if ".lora_A." in key}


def test_diffusers_reads_a_text_lora_only_with_its_out_proj(tmp_path: Path) -> None:
    """Ours has them in every layer, and all of it arrives."""
    adapter = exported(trained(tiny("sd1")))
    files = export_adapter(adapter, TARGET, "fair", tmp_path / "lora", tmp_path / "embedding")
    tensors = {k: v for k, v in load_file(files.lora).items() if k.startswith("lora_te")}
    layers = {key.partition(".")[0] for key in tensors}
    for i in range(2):
        assert {f"lora_te_text_model_encoder_layers_{i}_self_attn_{name}" for name in ATTENTION} <= layers
    found = lora_layers(tensors, tmp_path / "whole.safetensors")
    assert len(found) == len(layers) == 12
    cut = {key: value for key, value in tensors.items() if "out_proj" not in key}
    left = lora_layers(cut, tmp_path / "cut.safetensors")
    assert len(left) == 4 and all(".mlp." in name for name in left)


def test_diffusers_takes_the_embedding_of_two_encoders_one_by_one(tmp_path: Path) -> None:
    adapter = exported(trained(tiny("sdxl")))
    files = export_adapter(adapter, TARGET, "fair", tmp_path / "lora", tmp_path / "embedding")
    stock: Any = pipeline("sdxl")
    stock.tokenizer = copy.deepcopy(stock.tokenizer)
    with pytest.raises(ValueError, match="Loaded state dictionary is incorrect"):
        stock.load_textual_inversion(files.embedding, token="<fair>")
    tensors = load_file(files.embedding)
    assert set(tensors) == {"clip_l", "clip_g"}
    for name, end in (("clip_l", ""), ("clip_g", "_2")):
        words = copy.deepcopy(getattr(stock, f"tokenizer{end}"))  # it learns the new words
        encoder = getattr(stock, f"text_encoder{end}")
        stock.load_textual_inversion(
            {"f": tensors[name]}, token=f"<{name}>", tokenizer=words, text_encoder=encoder
        )
        ids = words(f"<{name}> {PROMPTS[0]}").input_ids
        assert encoder.get_input_embeddings().weight[ids[1]].equal(tensors[name][0])
