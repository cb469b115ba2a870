"""What only a CUDA GPU shows: every family's training there, in half precision, and the benchmark."""

import json
from pathlib import Path

import pytest
import torch

from fair_adapter.tests.tiny_families import NAMES, pipeline
from fair_adapter.trainer import benchmark, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

SETTINGS = """
model: {path: PIPELINE, guidance_scale: 2, dtype: bfloat16}
adapter: {soft_tokens: 2, text_lora: true, unet_lora: true, rank: 2}
target: {text: "gender=equal"}
prompts: {train: [{set: sports}]}
faces: {detector: fixed, bank: null}
loss: {confidence: 0}
sampling: {steps: [2, 2]}
references: {blocks: 1, cache: null}
optimizer: {iterations: 2, images: 4}
run: {output: OUTPUT, device: cuda, sample_every: 1, tensorboard: false}
evaluation: {steps: 2}
"""


@pytest.mark.parametrize("name", NAMES)
def test_every_family_trains(name: str, tmp_path: Path) -> None:
    pipeline(name).save_pretrained(tmp_path / "pipeline")
    text = SETTINGS.replace("PIPELINE", str(tmp_path / "pipeline")).replace("OUTPUT", str(tmp_path / "run"))
    (tmp_path / "config.yaml").write_text(text)
    assert train.main([str(tmp_path / "config.yaml")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and not any(line["skipped"] for line in lines)
    assert all(line["gradient_norm"] > 0 and line["allocated_bytes"] > 0 for line in lines)


def test_benchmark(tmp_path: Path) -> None:
    out = tmp_path / "benchmark.json"
    arguments = ["--models", "medium", "--steps", "4", "--rounds", "1", "--no-sweeps", "--device", "cuda"]
    assert benchmark.main([*arguments, "--output", str(out)]) == 0
    ratios = json.loads(out.read_text())["ratios"]
    assert all(ratios[name]["gradient_error"] < 1e-5 for name in ("both_branches", "conditional", "cached"))
