"""Training when memory runs out, a number is not finite or a process dies; and every family's loop."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fair_adapter.shared.adapter import FairnessAdapter
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.tests.tiny_families import pipeline
from fair_adapter.tests.tiny_pipeline import write_tiny_pipeline
from fair_adapter.trainer import compare, demo, evaluate, train
from fair_adapter.trainer.configuration.config import SamplingConfig, load_config
from fair_adapter.trainer.evaluation import measuring
from fair_adapter.trainer.running.memory import MicroBatches, out_of_memory
from fair_adapter.trainer.running.processes import Processes
from fair_adapter.trainer.training import labels, run, setup
from fair_adapter.trainer.training.samples import Samples
from fair_adapter.trainer.training.setup import prepare

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = """
model: {path: PIPELINE, guidance_scale: 2}
adapter: {soft_tokens: 2, text_lora: true, unet_lora: true, rank: 2}
target: {text: "gender=equal"}
prompts: {train: [{set: sports}]}
faces: {detector: fixed, bank: null}
loss: {face: 0}
sampling: {steps: [2, 2], network_batch: 4, gradient_batch: 4}
references: {blocks: 1, cache: null}
optimizer: {iterations: 4, images: 4, lr: 1.0e-3, eps: 1.0e-3}
run: {output: OUTPUT, device: cpu, save_every: 1, sample_every: 0, tensorboard: false}
"""


def write(folder: Path, model: Path) -> Path:
    path = folder / "config.yaml"
    path.write_text(SETTINGS.replace("PIPELINE", str(model)).replace("OUTPUT", str(folder / "run")))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "pipeline")


def gradients(training, monkeypatch) -> torch.Tensor:
    """The flat gradient that the first iteration arrives at; no step is taken."""
    caught = []

    def step(number, extras):
        caught.extend(p.grad.flatten() for p in training.optimizer.parameters if p.grad is not None)
        for p in training.optimizer.parameters:
            p.grad = None
        return SimpleNamespace(sums=extras, norm=0.0, finite=True)

    monkeypatch.setattr(training.optimizer, "step", step)
    training.iterate(0)
    return torch.cat(caught)


# ---- memory


def shortage(work, most: int, graph: bool):
    """`work`, which runs out of memory for more than `most` images with (or without) a graph."""

    def scarce(inputs, *rest, **options):
        if len(inputs) > most and torch.is_grad_enabled() == graph:
            raise torch.cuda.OutOfMemoryError("out of memory, 8 GiB asked for")
        return work(inputs, *rest, **options)

    return scarce


def test_out_of_memory_halves_the_batches_and_leaves_the_gradient(model, tmp_path, monkeypatch, capsys):
    """In the rollout, in the decoder and half-way through the vector-Jacobian products."""
    said: list[str] = []
    path = write(tmp_path, model)
    training = prepare(load_config(path), Processes("cpu", 4))
    expected = gradients(training, monkeypatch)
    training.adaptation.detach()

    training = prepare(load_config(path), Processes("cpu", 4), said.append)
    calls = {"backward": 0}
    network = training.model.denoise

    def fails_late(inputs, timesteps, conditioning):
        if torch.is_grad_enabled() and len(inputs) > 2:
            calls["backward"] += 1
            if calls["backward"] == 2:  # gradients of the first call are there already
                raise torch.cuda.OutOfMemoryError("out of memory, 8 GiB asked for")
        if not torch.is_grad_enabled() and len(inputs) > 4:  # two branches of two images
            raise torch.cuda.OutOfMemoryError("out of memory, 8 GiB asked for")
        return network(inputs, timesteps, conditioning)

    monkeypatch.setattr(training.model, "denoise", fails_late)
    monkeypatch.setattr(training.model, "decode", shortage(training.model.decode, 1, graph=True))
    found = gradients(training, monkeypatch)
    training.adaptation.detach()
    assert training.batches.sizes == {"network": 2, "gradient": 2, "decode": 1}
    assert len(said) == 4 and all("the result is the same" in line for line in said)  # decode twice
    assert float((found - expected).norm() / expected.norm()) < 1e-3


def test_one_at_a_time_is_the_end_of_it():
    batches = MicroBatches(SamplingConfig(network_batch=2), lambda text: None)

    def never(size):
        raise MemoryError

    with pytest.raises(FairAdapterError, match=r"sampling\.network_batch=1; set sampling\.checkpoint=all"):
        batches.fit("network", never, 8)
    with pytest.raises(ValueError):
        batches.fit("network", lambda size: int("x"), 8)
    assert out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"))
    for text in (
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling cublasCreate",
    ):
        assert out_of_memory(RuntimeError(text))
    assert not out_of_memory(RuntimeError("shape mismatch"))


@pytest.mark.parametrize("free", [2**28, 2**34])
def test_cudnn_without_a_plan_is_out_of_memory_where_memory_is_scarce(free, monkeypatch):
    """It swallows the allocator's error; the same text tells of types that a GPU does not have."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 2**35))
    for text in (
        "GET was unable to find an engine to execute this computation",
        "FIND was unable to find an engine to execute this computation",
        "Unable to find a valid cuDNN algorithm to run convolution",
    ):
        assert out_of_memory(RuntimeError(text)) is (free < 2**30)


def test_faces_of_several_pieces_are_looked_for_at_once_and_their_graphs_let_go(model, tmp_path, monkeypatch):
    """With the gradient of a single piece. A branch that is not followed is encoded without a graph."""
    path, found, images, searched = write(tmp_path, model), {}, {}, []
    for size in (4, 3, 1):
        settings = [f"sampling.decode_batch={size}", "sampling.branches=conditional"]
        training = prepare(load_config(path, settings), Processes("cpu", 4))
        detect = training.observer.detector.detect
        monkeypatch.setattr(
            training.observer.detector,
            "detect",
            lambda images, detect=detect: searched.append(len(images)) or detect(images),
        )
        final = torch.randn(4, *training.model.latent_shape, generator=torch.Generator().manual_seed(0))
        pieces = training.read(final, size)
        assert [piece.drawn is not None for piece in pieces] == [size == 4] * len(pieces)
        assert [piece.view.images.requires_grad for piece in pieces] == [size == 4] * len(pieces)
        images[size] = torch.cat([piece.view.images.detach() for piece in pieces])
        assert all(torch.allclose(each, images[4], atol=1e-5) for each in images.values())
        assert searched == [4]
        guidance = training.guidance(training.entry(training.schedule[0]), training.targets[0])
        assert guidance.conditional["text"].requires_grad and not guidance.unconditional["text"].requires_grad
        found[size] = gradients(training, monkeypatch)
        training.adaptation.detach()
        searched.clear()
    assert found[4].norm() > 0
    for size in (3, 1):
        assert float((found[size] - found[4]).norm() / found[4].norm()) < 1e-4


def test_samples_and_references_are_read_in_smaller_pieces(model, tmp_path, monkeypatch):
    training = prepare(load_config(write(tmp_path, model)), Processes("cpu", 4))
    entry = training.entry(training.schedule[0])
    whole = training.references.forgetful().references(entry, 0, 4)
    observer = training.observer
    monkeypatch.setattr(observer, "look", shortage(observer.look, 2, graph=False))
    sheet, measured = Samples(training).draw(tmp_path, 1)
    assert training.batches.sizes["decode"] <= 2 and sheet.height > 0 and set(measured) == {"gender"}
    parts = training.references.forgetful().references(entry, 0, 4)
    training.adaptation.detach()
    for name, value in whole.tensors().items():
        assert torch.allclose(parts.tensors()[name], value, atol=1e-4), name


def test_programs_say_in_one_line_that_memory_ran_out(model, tmp_path, monkeypatch, capsys):
    def never(*arguments, **options):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(setup, "load_base", never)
    monkeypatch.setattr(measuring, "load_base", never)
    folder = ["--model", str(model), "--guidance", "2", "--out", str(tmp_path)]
    settings = [f"model.path={model}", "model.guidance_scale=2", f"run.output={tmp_path / 'demo'}"]
    calls = [
        lambda: train.main([str(write(tmp_path, model))]),
        lambda: demo.main(settings),
        lambda: evaluate.main(folder),
        lambda: compare.main([*folder, str(model)]),
    ]
    for call in calls:
        assert call() == 2
        error = capsys.readouterr().err
        assert error.startswith("error: out of memory; ") and error.count("\n") == 1


# ---- processes

SCRIPT = """
import os, signal, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
import torch
from fair_adapter.trainer import train
from fair_adapter.trainer.training.loop import Training

iterate = Training.iterate
def broken(self, iteration, stop):
    other = os.environ["RANK"] == "1"
    if iteration == 1 and other:
        denoise = self.adaptation.denoise
        self.adaptation.denoise = lambda *a: denoise(*a) * float("nan")
        try:
            return iterate(self, iteration, stop)
        finally:
            del self.adaptation.denoise
    if iteration == 3 and other:
        os.kill(os.getpid(), signal.SIGKILL)
    return iterate(self, iteration, stop)
Training.iterate = broken
sys.exit(train.main(sys.argv[1:]))
"""


def test_nan_in_one_process_skips_in_all_and_a_killed_one_is_told_and_resumed(model, tmp_path):
    path = write(tmp_path, model)
    (tmp_path / "broken.py").write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    command = [sys.executable, str(tmp_path / "broken.py"), str(ROOT / "trainer" / "train.py"), str(path)]
    runs = [
        subprocess.Popen(
            command,
            env={**os.environ, **group, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    (_, error), _ = (run.communicate(timeout=600) for run in runs)
    assert runs[1].returncode < 0 and runs[0].returncode == 2, error[-2000:]
    line = next(line for line in error.splitlines() if line.startswith("error: "))
    assert "another process of this run is gone" in line and "goes on from the last checkpoint" in line
    log = [json.loads(text) for text in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [entry["skipped"] for entry in log] == [False, True, False]
    assert log[2]["gradient_norm"] > 0 and log[1]["gradient_norm"] is None
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert state["iteration"] == 3 and state["optimizer"]["steps"] == 2
    assert all(torch.isfinite(p).all() for p in state["optimizer"]["parameters"])
    _, finished = run.train(load_config(path))  # with one process
    assert finished


# ---- families


def test_an_unsuitable_mode_is_refused_before_the_work_and_the_usual_scale_is_the_familys(tmp_path):
    pipeline("sd3").save_pretrained(tmp_path / "pipeline")
    path = write(tmp_path, tmp_path / "pipeline")
    with pytest.raises(FairAdapterError, match=r"needs an epsilon model, .*set sampling\.mode=exact"):
        prepare(load_config(path, ["sampling.mode=official"]), Processes("cpu", 4))
    settings = ["model={guidance_scale: null, without: [t5xxl]}", "loss.semantics=0"]
    training = prepare(load_config(path, settings), Processes("cpu", 4))
    training.adaptation.detach()
    assert training.guidance_scale == 4.5 and training.model.guidance_scale == 4.5
    info = labels.adapter_info(training, 0)
    assert info.configuration["guidance_scale"] == 4.5
    assert info.configuration["model"]["empty_negative"] == "encoded"
    assert info.base.encoders == ("clip_l", "clip_g") and info.configuration["model"]["without"] == ["t5xxl"]


@pytest.mark.parametrize("name", ["sd2 v", "sdxl", "sd3"])
def test_every_family_trains_resumes_bitwise_and_reloads(name, tmp_path):
    pipeline(name).save_pretrained(tmp_path / "pipeline")
    small = ["optimizer.images=2", "optimizer.iterations=2", "loss={semantics: 0, confidence: 0.5}"]
    runs = {}
    for kind in ("whole", "parts"):
        (tmp_path / kind).mkdir()
        path = write(tmp_path / kind, tmp_path / "pipeline")
        if kind == "parts":
            run.train(load_config(path, [*small, "optimizer.iterations=1"]))
        _, finished = run.train(load_config(path, small))
        assert finished
        runs[kind] = torch.load(tmp_path / kind / "run" / "state.pt", weights_only=True)["optimizer"]
    for key in ("parameters", "average"):
        assert all(torch.equal(a, b) for a, b in zip(runs["whole"][key], runs["parts"][key], strict=True))
    adapter = FairnessAdapter.read(tmp_path / "whole" / "run" / "adapter.safetensors")
    assert adapter.info.base.architecture == name.split()[0]
    ups = [v for k, v in adapter.tensors.items() if k.endswith("lora_up.weight")]
    assert sum(bool(v.any()) for v in ups) > 0.6 * len(ups)
    soft = [adapter.tensors[f"fair.soft.{e}"] for e in adapter.encoders]
    neutral = [adapter.tensors[f"fair.soft_neutral.{e}"] for e in adapter.encoders]
    assert all(not torch.equal(a, b) for a, b in zip(soft, neutral, strict=True))
