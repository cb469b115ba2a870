"""Every family with random weights: gradient, files, diffusers' own loaders, detection, precision."""

import copy
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from fair_adapter.shared.adapter import FairnessAdapter
from fair_adapter.shared.adapter_export import export_adapter
from fair_adapter.shared.adapter_info import AdapterInfo
from fair_adapter.shared.adapter_target import TargetSpace
from fair_adapter.shared.attributes import TargetDistribution
from fair_adapter.shared.direct import accumulate_gradients, one_graph_gradient
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.lora import LoraSet, peft_tensors
from fair_adapter.shared.quiet import quiet
from fair_adapter.shared.sampling import rollout
from fair_adapter.shared.seeds import starting_noise
from fair_adapter.tests.tiny_checkpoint import write_checkpoint, write_sd1
from fair_adapter.tests.tiny_families import LADDER, NAMES, pipeline, tiny
from fair_adapter.tests.tiny_pipeline import write_tiny_pipeline
from fair_adapter.trainer import export
from fair_adapter.trainer.benchmark_methods.memory import Meter
from fair_adapter.trainer.configuration.config import AdapterConfig
from fair_adapter.trainer.families.adaptation import Adaptation
from fair_adapter.trainer.families.base import DiffusionModel
from fair_adapter.trainer.families.loading import compile_network, watch_hooks, weights_dtype
from fair_adapter.trainer.families.portrait import PORTRAIT
from fair_adapter.trainer.families.registry import families, family_of_keys, load, with_scheduler
from fair_adapter.trainer.families.stable_diffusion import StableDiffusion
from fair_adapter.trainer.families.stable_diffusion_xl import StableDiffusionXL

SPACE = TargetSpace(TargetDistribution.parse("gender=50/50"), "cells", {"gender": {"female": (0.1, 0.9)}})
ROOT = Path(__file__).resolve().parents[1]
EVERYTHING = AdapterConfig(soft_tokens=3, text_lora=True, unet_lora=True, rank=2, alpha=1.0)
TARGET = "gender=80/20"
PROMPTS = ["a photo of the face of a doctor, a person", "a nurse"]


def trained(model: DiffusionModel, config: AdapterConfig = EVERYTHING) -> Adaptation:
    """As if after training: every number random."""
    adaptation = Adaptation.create(model, SPACE, config)
    generator = torch.Generator().manual_seed(1)
    for parameter in adaptation.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator).to(parameter)
    return adaptation


def exported(adaptation: Adaptation) -> FairnessAdapter:
    info = AdapterInfo("tiny-fair", adaptation.base.describe("tiny"), adaptation.space)
    return adaptation.to_adapter(info)


def noise(model: DiffusionModel) -> Tensor:
    return starting_noise([1, 2], model.latent_shape).to(model.dtype)


@torch.no_grad()
def output(adaptation: Adaptation, target: str | None) -> Tensor:
    """The network's guided-branch outputs, both of them."""
    with adaptation:
        guidance = adaptation.guidance(PROMPTS, 2.0, target)
        z, timesteps = noise(adaptation.base), torch.tensor([400.0, 400.0])
        rows = [{k: v.expand(2, *v.shape[1:]) for k, v in c.items()} for c, _ in guidance.branches()]
        return torch.cat([adaptation.denoise(z, timesteps, row) for row in rows])


# ---- gradient


@pytest.mark.parametrize("name", NAMES)
def test_gradient_equals_one_graph_through_every_part(name: str) -> None:
    """The decoupled adjusted gradient through soft tokens of every encoder, LoRAs and gates, float64."""
    model = tiny(name, torch.float64)
    sampler, z = model.sampler(3), noise(model)
    found = []
    with trained(model) as adaptation:
        for decoupled in (True, False):
            guidance = adaptation.guidance(PROMPTS, 2.0, TARGET)
            if decoupled:
                trajectory = rollout(adaptation.denoise, sampler, z, guidance)
                final = trajectory.final.requires_grad_(True)
                (g,) = torch.autograd.grad(torch.tanh(final).square().mean(), final)
                accumulate_gradients(adaptation.denoise, trajectory, g, guidance, batch=3)
            else:
                one_graph_gradient(
                    adaptation.denoise, sampler, z, guidance, lambda x: torch.tanh(x).square().mean()
                )
            found.append(
                {n: None if p.grad is None else p.grad.clone() for n, p in adaptation.named_parameters()}
            )
            adaptation.zero_grad(set_to_none=True)
    unreached = [n for n, g in found[0].items() if g is None or not g.any()]
    # the last layer of encoders that are read one layer earlier, and the image's last words to the text
    assert all("layers_1_" in n or "blocks_1_attn_add_q" in n or "to_add_out" in n for n in unreached), (
        unreached
    )
    assert len(unreached) < len(found[0]) / 3
    for n, gradient in found[0].items():
        if gradient is not None:
            largest = max(1.0, float(gradient.abs().max()))
            assert (gradient - found[1][n]).abs().max() <= 1e-10 * largest, n


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_weights_train_float32_parts(name: str) -> None:
    model = tiny(name, torch.bfloat16)
    with trained(model) as adaptation:
        guidance = adaptation.guidance(PROMPTS, 2.0, TARGET)
        out = adaptation.denoise(noise(model).float(), torch.tensor([400.0, 400.0]), guidance.conditional)
        assert out.dtype == torch.bfloat16
        out.float().square().mean().backward()
        images = model.decode(noise(model).float())
    assert images.dtype == torch.float32 and torch.isfinite(images).all()
    grads = [p.grad for p in adaptation.parameters() if p.grad is not None]
    assert {p.dtype for p in adaptation.parameters()} == {g.dtype for g in grads} == {torch.float32}


# ---- files


@pytest.mark.parametrize("name", NAMES)
def test_file_and_host_view_are_what_was_trained(name: str, tmp_path: Path) -> None:
    model = tiny(name, torch.float64)
    adaptation = trained(model)
    training = output(adaptation, TARGET)
    adapter = FairnessAdapter.read(exported(adaptation).write(tmp_path / "a.safetensors"))
    assert set(adapter.encoders) == {e.name for e in model.encoders}
    assert adapter.info.base == model.describe(adapter.info.base.name)
    assert adapter.info.base.family == model.names
    assert torch.equal(output(Adaptation.from_adapter(model, adapter), TARGET), training)
    host = Adaptation.from_weights(model, adapter.at(TARGET))
    assert (output(host, None) - training).abs().max() < 1e-10
    plain = output(Adaptation(model, SPACE), None)
    assert (plain - training).abs().max() > 1e-3
    with Adaptation(model, SPACE) as nothing:
        encoded = nothing.encode(PROMPTS)
    assert all(torch.equal(v, encoded[k]) for k, v in model.encode(PROMPTS).items())


def load_tokens(stock: Any, tensors: dict[str, Tensor]) -> str:
    """Our embedding file as new words of every encoder; what to write before the prompt. By diffusers'
    textual-inversion loader where it has one (SD3 has none)."""
    places = {"clip_l": "", "clip_g": "_2", "t5xxl": "_3", "emb_params": ""}
    for key, rows in tensors.items():
        words = copy.deepcopy(getattr(stock, f"tokenizer{places[key]}"))  # it learns the new words
        setattr(stock, f"tokenizer{places[key]}", words)
        encoder = getattr(stock, f"text_encoder{places[key]}")
        if hasattr(stock, "load_textual_inversion"):
            stock.load_textual_inversion({"f": rows}, token="<fair>", tokenizer=words, text_encoder=encoder)
            continue
        words.add_tokens([f"<fair{i}>" for i in range(len(rows))])
        encoder.resize_token_embeddings(len(words))
        with torch.no_grad():
            encoder.get_input_embeddings().weight[-len(rows) :] = rows
    if hasattr(stock, "load_textual_inversion"):
        return "<fair> "
    return "".join(f"<fair{i}>" for i in range(len(rows))) + " "


@pytest.mark.parametrize("name", NAMES[1:])  # the first is tested in test_adaptation.py
def test_diffusers_draws_the_same_from_the_exported_files(name: str, tmp_path: Path) -> None:
    """load_lora_weights and load_textual_inversion, an independent reader: the same pictures."""
    adapter = exported(trained(tiny(name)))
    files = export_adapter(adapter, TARGET, "fair", tmp_path / "lora", tmp_path / "embedding")
    with Adaptation.from_weights(tiny(name), adapter.at(TARGET)) as adaptation:
        ours = adaptation.adapted().generate(PROMPTS[:1], [5], 2.0, steps=3)
        shape = adaptation.base.latent_shape
    base = tiny(name).generate(PROMPTS[:1], [5], 2.0, steps=3)
    stock = pipeline(name)
    stock.set_progress_bar_config(disable=True)
    stock.load_lora_weights(files.lora)
    tokens = load_tokens(stock, load_file(files.embedding))
    options = {"max_sequence_length": 77} if name == "sd3" else {}
    theirs = stock(
        tokens + PROMPTS[0],
        negative_prompt="",
        latents=starting_noise([5], shape),
        guidance_scale=2.0,
        num_inference_steps=3,
        output_type="pt",
        **options,
    ).images
    assert (theirs - ours).abs().max() < 1e-4
    assert (base - ours).abs().max() > 0.01


def test_peft_names_hold_the_same_lora() -> None:
    tensors = exported(trained(tiny("sd3"))).at(TARGET).lora
    renamed = peft_tensors(tensors)
    assert len(renamed) == 2 * len(LoraSet.from_tensors(tensors).layers)
    key = "lora_transformer_transformer_blocks_0_attn_to_out_0"
    product = tensors[f"{key}.lora_up.weight"] @ tensors[f"{key}.lora_down.weight"] / 2  # alpha 1, rank 2
    name = "transformer.transformer_blocks.0.attn.to_out.0"
    found = renamed[f"{name}.lora_B.weight"] @ renamed[f"{name}.lora_A.weight"]
    assert torch.allclose(found, product, atol=1e-6)
    with pytest.raises(FairAdapterError, match="expected one of a transformer"):
        peft_tensors({f"lora_unet_x.{part}.weight": torch.zeros(1, 1) for part in ("lora_down", "lora_up")})


def test_adapters_of_another_family_are_refused_in_one_line() -> None:
    adapter = exported(trained(tiny("sd1")))
    with pytest.raises(FairAdapterError, match=r"made for tiny \(sd1\), found this model \(sdxl\)") as caught:
        Adaptation.from_adapter(tiny("sdxl"), adapter)
    assert "\n" not in str(caught.value)


# ---- what a model is


@pytest.mark.parametrize("name", NAMES)
def test_folders_are_recognised_and_loaded(name: str, tmp_path: Path) -> None:
    made = tiny(name)
    pipeline(name).save_pretrained(tmp_path)
    found = load(tmp_path)
    assert type(found) is type(made) and found.describe("x") == made.describe("x")
    assert found.sampler(2).prediction == {"sd2 v": "v_prediction", "sd3": "flow"}.get(name, "epsilon")
    expected, drawn = (m.generate(PROMPTS[:1], [1], 2.0, steps=2) for m in (made, found))
    assert torch.equal(expected, drawn)
    coarse = load(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for part in coarse.parts().values() for p in part.parameters()} == {torch.bfloat16}
    assert coarse.describe("x").hash == made.describe("x").hash != ""


def test_automatic_precision_is_bfloat16_where_the_device_computes_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for features, expected in (({"avx512_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=features: known)
        assert weights_dtype("auto", "cpu") == expected
        assert weights_dtype("float16", "cpu") == torch.float16


def test_without_t5_the_text_is_that_of_the_clips_alone() -> None:
    """As in ComfyUI; in diffusers where it is told to put no zeros after them."""
    model, whole = tiny("sd3", t5xxl=False), tiny("sd3")
    encoded = model.encode(PROMPTS)
    assert encoded["text"].shape == (2, 77, 64) and [e.name for e in model.encoders] == ["clip_l", "clip_g"]
    assert torch.equal(encoded["text"], whole.encode(PROMPTS)["text"][:, :77])
    stock = pipeline("sd3", t5xxl=False)
    theirs, _, pooled, _ = stock.encode_prompt(PROMPTS, None, None, device="cpu", max_sequence_length=0)
    assert torch.allclose(theirs, encoded["text"], atol=1e-6)
    assert torch.allclose(pooled, encoded["pooled"], atol=1e-6)
    assert model.generate(PROMPTS[:1], [1], 2.0, steps=1).shape == (1, 3, 64, 64)


def test_adapters_tell_where_a_model_has_other_text_encoders() -> None:
    less, whole = tiny("sd3", t5xxl=False), tiny("sd3")
    adapter = exported(trained(less, AdapterConfig(soft_tokens=3)))
    (warning,) = adapter.check_base(whole.describe("this"))
    assert "text encoders clip_l, clip_g, but this has clip_l, clip_g, t5xxl: shares may differ" in warning
    with torch.no_grad(), Adaptation.from_adapter(whole, adapter) as adaptation:
        encoded, plain = adaptation.encode(PROMPTS)["text"], whole.encode(PROMPTS)["text"]
    assert torch.equal(encoded[:, 77:], plain[:, 77:])  # T5 has the words alone
    assert not torch.allclose(encoded[:, :77], plain[:, :77], atol=1e-3)
    with pytest.raises(FairAdapterError, match="tokens for t5xxl, found a model with only clip_l, clip_g;"):
        Adaptation.from_adapter(less, exported(trained(whole)))


def test_an_empty_negative_prompt_of_xl_may_be_zeros_as_in_diffusers() -> None:
    """diffusers' default, A1111's and Forge's; other negative prompts are encoded, soft tokens alone too."""
    model, stock = tiny("sdxl"), pipeline("sdxl")
    assert isinstance(model, StableDiffusionXL)
    encoded = model.guidance(PROMPTS[:1], 2.0).unconditional
    assert encoded is not None and torch.equal(encoded["text"], model.encode([""])["text"])
    facts = model.facts()
    model.zero_empty_negative()
    assert model.facts() == {**facts, "empty_negative": "zeros"}
    zeros = model.guidance(PROMPTS[:1], 2.0).unconditional
    _, text, _, pooled = stock.encode_prompt(PROMPTS[0], device="cpu", negative_prompt=None)
    assert zeros is not None and torch.equal(zeros["text"], text) and torch.equal(zeros["pooled"], pooled)
    assert not text.any() and not pooled.any() and encoded["pooled"].any()
    stock.set_progress_bar_config(disable=True)
    start = starting_noise([5], model.latent_shape)
    options = {"guidance_scale": 2.0, "num_inference_steps": 3, "output_type": "pt"}
    theirs = stock(PROMPTS[0], latents=start, **options).images
    assert (theirs - model.generate(PROMPTS[:1], [5], 2.0, steps=3)).abs().max() < 1e-4
    other = model.guidance(PROMPTS[:1], 2.0, "blurry").unconditional
    assert other is not None and torch.equal(other["text"], model.encode(["blurry"])["text"])
    for both in (False, True):
        config = AdapterConfig(soft_tokens=3, text_lora=True, rank=2, negative_tokens=both)
        with trained(model, config) as adaptation:
            negative = adaptation.guidance(PROMPTS, 2.0).unconditional
        assert negative is not None and bool(negative["text"].any()) == both
    with pytest.raises(FairAdapterError, match=r"Stable Diffusion 3, .*set model\.empty_negative=encoded"):
        tiny("sd3").zero_empty_negative()


def test_exported_files_say_where_they_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, told in (("sd3", True), ("sdxl", False)):
        file = exported(trained(tiny(name))).write(tmp_path / f"{name}.safetensors")
        assert export.main(["adapter", str(file), "--out", str(tmp_path / name)]) == 0
        line = "work in ComfyUI and, but for the embedding, in diffusers alone"
        assert (line in capsys.readouterr().out) == told


@pytest.mark.parametrize("name", ["finetune", "turbo"])  # before and after stable_diffusion.py
def test_a_family_is_found_whatever_its_file_is_called(tmp_path: Path, name: str) -> None:
    for folder in ("shared", "trainer"):
        ignored = shutil.ignore_patterns("*.safetensors", "__pycache__", "tokenizer", "portrait.json")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    (tmp_path / "trainer" / "families" / f"{name}.py").write_text(
        "from .stable_diffusion import StableDiffusion\n"
        "class Tuned(StableDiffusion):\n    marks = ('tuned.',)\n    title = 'a tuned model'\n"
    )
    program = (
        "from pathlib import Path\n"
        "from fair_adapter.trainer.families.registry import families, family_of_keys\n"
        "names = [kind.__name__ for kind in families()]\n"
        "assert names.index('StableDiffusion') < names.index('Tuned'), names\n"
        "assert family_of_keys(frozenset(['tuned.x']), Path('x')).title == 'a tuned model'\n"
    )
    command = [sys.executable, "-c", program]  # in the programs' folder, where the import name is found
    done = subprocess.run(command, cwd=tmp_path / "trainer", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_checkpoints_are_recognised_by_their_keys(tmp_path: Path) -> None:
    for kind in families():
        if not (kind.marks or kind.network_marks):
            continue  # Krea 2 is published in folders alone
        path = tmp_path / f"{kind.architecture}.safetensors"
        save_file(
            {
                f"{mark}x": torch.zeros(1)
                for mark in (*(kind.marks or kind.network_marks), "first_stage_model.")
            },
            path,
        )
        with safe_open(path, framework="pt") as file:
            own = kind if "marks" in vars(kind) else kind.__base__  # only a folder tells the portrait model
            assert family_of_keys(frozenset(file.keys()), path) is own
    assert {kind.architecture for kind in families()} == {"sd1", "sd2", "sdxl", "sd3", "z-image", "krea2"}
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    save_file({"model.diffusion_model.joint_blocks.x": torch.zeros(1)}, tmp_path / "bare.safetensors")
    with pytest.raises(FairAdapterError, match=r"text encoders included.*not a LoRA or a bare network"):
        load(tmp_path / "lora.safetensors")
    with pytest.raises(FairAdapterError, match=r"without its text encoders; set model\.config"):
        load(tmp_path / "bare.safetensors")  # as Stability AI publishes SD 3 and 3.5
    with pytest.raises(FairAdapterError, match=r"predicts the noise .* or v .*; set model\.config"):
        load(tmp_path / "sd2.safetensors")


def test_a_single_file_is_the_folder_that_it_was_made_of(tmp_path: Path) -> None:
    folder, file = write_tiny_pipeline(tmp_path / "pipeline", layers=2), tmp_path / "model.safetensors"
    write_sd1(folder, file)
    one, other = load(folder), load(file, config=str(folder))
    assert type(other) is StableDiffusion and one.describe("x") == other.describe("x")
    for name, part in one.parts().items():  # the file is in float16
        stored, read = part.state_dict(), other.parts()[name].state_dict()
        assert stored.keys() == read.keys()
        assert all(torch.equal(stored[k].half(), read[k].half()) for k in stored), name
    with pytest.raises(FairAdapterError, match=r"go online once, or set model\.config") as caught:
        load(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["sd2", "sdxl"])
def test_a_download_of_a_newer_family_is_its_folder(name: str, tmp_path: Path) -> None:
    made, folder, file = pipeline(name), tmp_path / "folder", tmp_path / "model.safetensors"
    made.save_pretrained(folder)
    write_checkpoint(made, file)
    one, other = load(folder), load(file, config=str(folder))
    assert (
        other.sampler(4).prediction == "epsilon"
        and other.describe("x") == one.describe("x")
        and one.describe("x").architecture == name
    )
    for part, module in one.parts().items():
        stored, read = module.state_dict(), other.parts()[part].state_dict()
        assert stored.keys() == read.keys() and all(torch.equal(stored[k], read[k]) for k in stored), part


def test_what_is_no_model_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model_index.json").write_text(json.dumps({"_class_name": "KolorsPipeline"}))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model_index.json").write_text("{")
    (tmp_path / "model.ckpt").write_bytes(b"x")
    (tmp_path / "model.safetensors").write_bytes(b"x")
    cases = {
        "empty": "model_index.json",
        "other": "found KolorsPipeline",
        "broken": "download it again",
        "model.ckpt": "convert it",
        "model.safetensors": "download it again",
        "nothing": "expected a diffusers folder",
    }
    for name, expected in cases.items():
        with pytest.raises(FairAdapterError, match=expected) as caught:
            load(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(FairAdapterError, match="go online once") as caught:
        load("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_schedulers_can_be_replaced_and_unknown_or_random_ones_are_refused() -> None:
    model = tiny("sd1")
    before = model.facts()
    with_scheduler(model, "DDIMScheduler")
    assert model.sampler(4).name == "DDIMScheduler" and model.facts() != before
    with pytest.raises(FairAdapterError, match="did you mean 'DDIMScheduler'"):
        with_scheduler(model, "DDIMSchedular")
    model.scheduler = PNDMScheduler(beta_schedule="scaled_linear", steps_offset=1)  # "leading" is its default
    with_scheduler(model, "DPMSolverMultistepScheduler")
    assert model.scheduler.config["timestep_spacing"] == "linspace"
    assert model.scheduler.config["steps_offset"] == 1
    assert model.sampler(20).timesteps[:2].tolist() == [999, 949]


@pytest.mark.parametrize(
    "own",
    [
        EulerAncestralDiscreteScheduler(**LADDER, timestep_spacing="trailing"),  # sdxl-turbo's
        DDIMScheduler(**LADDER, clip_sample=True),
        DDIMScheduler(**LADDER, clip_sample=False, thresholding=True),
        DPMSolverMultistepScheduler(**LADDER, algorithm_type="sde-dpmsolver++"),
        DDPMScheduler(**LADDER),
        LCMScheduler(**LADDER),
    ],
    ids=lambda own: type(own).__name__,
)
def test_a_model_whose_own_scheduler_is_of_no_use_takes_another(own: Any) -> None:
    model = tiny("sd1")
    model.scheduler = own
    with pytest.raises(FairAdapterError, match=r"set model\.scheduler \(--scheduler\) to DDIMScheduler,"):
        model.sampler(4)
    for name in ("DDIM", "EulerDiscrete", "DPMSolverMultistep", "UniPCMultistep"):
        model.scheduler = own
        with_scheduler(model, f"{name}Scheduler")
        sampler = model.sampler(4)
        assert (sampler.name, sampler.prediction) == (f"{name}Scheduler", "epsilon")
        assert torch.equal(model.scheduler.alphas_cumprod, own.alphas_cumprod)


def test_a_flow_model_whose_own_scheduler_draws_noise_takes_another() -> None:
    model = tiny("sd3")
    model.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True)
    with pytest.raises(FairAdapterError, match=r"stochastic_sampling=True.*set model\.scheduler"):
        model.sampler(4)
    with_scheduler(model, "FlowMatchEulerDiscreteScheduler")
    assert model.sampler(4).prediction == "flow" and model.scheduler.config["shift"] == 3.0


@pytest.mark.parametrize(
    ("family", "name", "reason"),
    [
        ("sd1", "EulerAncestralDiscreteScheduler", "draws random noise"),
        ("sd1", "FlowMatchEulerDiscreteScheduler", "would read epsilon as flow"),
        ("sd2 v", "IPNDMScheduler", "would read v_prediction as flow"),
        ("sd1", "DDIMInverseScheduler", "from the image to the noise"),
        ("sd1", "EDMEulerScheduler", "without that ladder"),
        ("sd1", "KarrasVeScheduler", "cannot be used here"),
        ("sd3", "DDIMScheduler", "flow_prediction must be one of"),
        ("sd3", "PNDMScheduler", "flow_prediction must be one of"),
    ],
)
def test_schedulers_that_do_not_fit_the_model_are_refused(family: str, name: str, reason: str) -> None:
    model = tiny(family)
    before = model.scheduler
    with pytest.raises(FairAdapterError, match=rf"model\.scheduler: .*{reason}") as caught:
        with_scheduler(model, name)
    assert model.scheduler is before and model.other_scheduler is None and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_flow_models_take_the_solvers_that_know_flows(name: str) -> None:
    """On a velocity that is linear in z, where many steps of any solver end at the same place."""
    model = tiny("sd3")
    ends = []
    for _ in range(2):
        sampler = model.sampler(200)
        assert sampler.prediction == "flow" and sampler.initial_scale == 1
        states = [torch.ones((), dtype=torch.float64)]
        outputs: list[Tensor] = []
        for k in range(sampler.steps):
            outputs.append(-states[-1])
            past = torch.stack(outputs)
            states.append(sampler.decay[k + 1] + sampler.gain[k + 1, : k + 1] @ past)
        ends.append(float(states[-1]))
        with_scheduler(model, name)
    assert ends[0] == pytest.approx(np.e, rel=0.02) and ends[1] == pytest.approx(np.e, rel=0.02)


def test_pictures_of_another_size() -> None:
    model = tiny("sdxl")
    model.resize(128)
    assert model.latent_shape == (4, 16, 16)
    assert model.generate(PROMPTS[:1], [1], 2.0, steps=1).shape == (1, 3, 128, 128)
    with pytest.raises(FairAdapterError, match="multiple of 64"):
        model.resize(100)


def test_the_papers_encoding_is_as_long_as_the_prompt_and_masked() -> None:
    model = tiny("sd1", torch.float64)
    assert isinstance(model, StableDiffusion)
    model.paper_encoding = True
    words = len(model.tokenizer(PROMPTS[0]).input_ids)
    guidance = model.guidance(PROMPTS[:1], 7.5)
    assert guidance.unconditional is not None
    assert guidance.conditional["text"].shape == guidance.unconditional["text"].shape == (1, words, 16)
    padded = model.tokenizer([""], padding="max_length", max_length=words, return_tensors="pt")
    expected = model.text_encoder(padded.input_ids, attention_mask=padded.attention_mask).last_hidden_state
    assert torch.equal(guidance.unconditional["text"], expected)
    with trained(model) as adaptation:
        tokens = adaptation.guidance(PROMPTS[:1], 7.5)
    assert tokens.conditional["text"].shape == (1, words + 3, 16)


def test_the_papers_encoding_cuts_no_negative_prompt() -> None:
    model = tiny("sd1", torch.float64)
    assert isinstance(model, StableDiffusion)
    model.paper_encoding = True
    ids = torch.tensor(model.tokenizer(["blurry, ugly, " * 8]).input_ids)
    guidance = model.guidance(["a nurse"], 7.5, "blurry, ugly, " * 8)
    assert guidance.unconditional is not None and 20 < ids.shape[1] < 77
    assert torch.allclose(guidance.unconditional["text"], model.text_encoder(ids).last_hidden_state)
    assert guidance.conditional["text"].shape == guidance.unconditional["text"].shape
    for both, length in ((False, ids.shape[1]), (True, ids.shape[1] + 3)):
        config = AdapterConfig(soft_tokens=3, negative_tokens=both)
        with trained(model, config) as adaptation:
            found = adaptation.guidance(["a nurse"], 7.5, negative="blurry, ugly, " * 8)
        assert found.conditional["text"].shape == (1, length, 16)


def test_checkpointing_changes_no_gradient() -> None:
    model = tiny("sd3", torch.float64)
    gradients = []
    for wanted in (False, True):
        model.checkpoint(decoder=wanted, network=wanted)
        with trained(model) as adaptation:
            guidance = adaptation.guidance(PROMPTS, 2.0)
            out = adaptation.denoise(noise(model), torch.tensor([400.0, 400.0]), guidance.conditional)
            model.decode(out).square().mean().backward()
        gradients.append([p.grad for p in adaptation.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-15) for a, b in zip(*gradients, strict=True))


def test_hub_clients_keep_quiet_while_a_model_loads(caplog: pytest.LogCaptureFixture) -> None:
    client = logging.getLogger("huggingface_hub.utils._http")
    with pytest.raises(OSError), quiet():
        client.error("Retrying in 1s [Retry 1/5].")
        raise OSError("offline")
    assert not caplog.records
    client.error("not while loading")
    assert [record.message for record in caplog.records] == ["not while loading"]


def test_a_checkpointed_decoder_holds_less() -> None:
    model = StableDiffusion.load(PORTRAIT)
    latents = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    held, gradients = [], []
    for wanted in (False, True, False):
        model.checkpoint(decoder=wanted, network=False)
        z = latents.clone().requires_grad_()
        with Meter(model.vae.parameters()) as live:
            model.decode(z).square().mean().backward()
        held.append(live.peak)
        gradients.append(z.grad)
    assert held[1] < 0.6 * held[0] and held[2] == held[0]
    assert torch.allclose(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])


def test_a_compiled_network_follows_loras_that_come_and_go() -> None:
    """Hooks are what a LoRA is made of; compiled code skips those it did not see unless told otherwise."""
    watch_hooks()

    class Network(nn.Module):  # dynamo does not trace a bare nn.Sequential
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.inner(inputs).tanh()

    network = Network()
    linear = network.inner
    compiled = CompileCounter()
    network.compile(backend=compiled)
    inputs = torch.randn(2, 3)
    plain = network(inputs)
    lora = LoraSet.create({"x": linear}, rank=2)
    with torch.no_grad():
        lora.layers["x"].up.fill_(1.0)
    lora.attach({"x": linear})
    expected = torch.tanh(torch.atanh(plain) + lora.layers["x"](inputs))
    assert torch.allclose(network(inputs), expected, atol=1e-4)
    for _ in range(10):  # as often as there are iterations: compiled twice in all
        lora.enabled = False
        assert torch.equal(network(inputs), plain)
        lora.enabled = True
        assert torch.allclose(network(inputs), expected, atol=1e-4)
    assert compiled.frame_count == 3
    lora.detach()
    assert torch.equal(network(inputs), plain)


def test_a_compiled_network_is_compiled_once_for_all_sizes_of_a_batch() -> None:
    torch._dynamo.reset()
    model = tiny("sd1")
    compiled = CompileCounter()
    kind = model.network.compile
    model.network.compile = lambda: kind(backend=compiled)
    with Adaptation.create(model, TargetSpace(SPACE.default), EVERYTHING) as adaptation:
        compile_network(adaptation)
        probed = compiled.frame_count
        for size in (3, 7, 5, 2):  # from 16 rows on convolutions are chosen anew
            noise = torch.zeros(size, *model.latent_shape)
            rollout(adaptation.denoise, model.sampler(2), noise, adaptation.guidance(["a"], 2.0))
        assert compiled.frame_count == probed > 0
    torch._dynamo.reset()


def test_where_compiled_code_has_no_gradient_training_goes_on_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny("sd1")
    network, plain = model.network, output(trained(model), TARGET)

    def compiled(*arguments: Any, **options: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("no gradient here")
        return network._call_impl(*arguments, **options)

    monkeypatch.setattr(network, "compile", lambda: setattr(network, "_compiled_call_impl", compiled))
    adaptation = trained(model)
    with adaptation, pytest.warns(UserWarning, match="going on without: no gradient here"):
        compile_network(adaptation)
    assert network._compiled_call_impl is None and torch.equal(output(adaptation, TARGET), plain)
