"""Z-Image and Krea 2 with small random weights: pictures, gradient, soft tokens, files, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fair_adapter.shared.adapter import FairnessAdapter
from fair_adapter.shared.adapter_export import export_adapter
from fair_adapter.shared.adapter_info import AdapterInfo
from fair_adapter.shared.adapter_target import TargetSpace
from fair_adapter.shared.attributes import TargetDistribution
from fair_adapter.shared.direct import accumulate_gradients, one_graph_gradient
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.sampling import rollout
from fair_adapter.shared.seeds import starting_noise
from fair_adapter.tests.tiny_language import (
    LANGUAGE_NAMES,
    WIDTH,
    pipeline,
    spliced_by_hand,
    starting_latents,
    tiny,
)
from fair_adapter.trainer.benchmark_methods.memory import Meter
from fair_adapter.trainer.configuration.config import AdapterConfig
from fair_adapter.trainer.families.adaptation import Adaptation
from fair_adapter.trainer.families.base import DiffusionModel
from fair_adapter.trainer.families.distilled import declare_distilled
from fair_adapter.trainer.families.flow import own_scale
from fair_adapter.trainer.families.layout import z_image_key
from fair_adapter.trainer.families.registry import load

SPACE = TargetSpace(TargetDistribution.parse("gender=50/50"), "cells", {"gender": {"female": (0.1, 0.9)}})
EVERYTHING = AdapterConfig(soft_tokens=3, text_lora=True, unet_lora=True, rank=2, alpha=1.0)
TARGET = "gender=80/20"
PROMPTS = ["a photo of the face of a doctor, a person", "a nurse"]
families = pytest.mark.parametrize("name", LANGUAGE_NAMES)


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


def drawn(stock: Any, prompt: str, model: DiffusionModel, steps: int, scale: float, **options: Any) -> Tensor:
    """By the pipeline's own `__call__`, from the noise of seed 5."""
    return stock(
        prompt=[prompt],
        negative_prompt=[""],
        height=64,
        width=64,
        num_inference_steps=steps,
        guidance_scale=scale,
        latents=starting_latents(stock, starting_noise([5], model.latent_shape)),
        output_type="pt",
        **options,
    ).images


# ---- pictures


@families
@pytest.mark.parametrize(("steps", "scale"), [(8, 0.0), (3, 2.0), (5, 0.5)])
def test_pictures_are_the_pipelines_own(name: str, steps: int, scale: float) -> None:
    """And their guidance scale g is ours, and ComfyUI's, less one."""
    model = tiny(name)
    declare_distilled(model, scale == 0)
    ours = model.generate(PROMPTS[:1], [5], own_scale(scale), steps=steps)
    theirs = drawn(pipeline(name, scale == 0), PROMPTS[0], model, steps, scale)
    assert (theirs - ours).abs().max() < 1e-5
    assert (model.generate(PROMPTS[1:], [5], own_scale(scale), steps=steps) - ours).abs().max() > 1e-2


@families
def test_prompts_of_different_lengths_are_drawn_as_each_by_itself(name: str) -> None:
    model = tiny(name)
    together = model.generate(PROMPTS, [5, 6], 2.0, steps=2)
    alone = [model.generate([prompt], [seed], 2.0, steps=2) for prompt, seed in zip(PROMPTS, (5, 6))]
    assert (together - torch.cat(alone)).abs().max() < 1e-5


@families
def test_a_distilled_model_is_never_asked_without_a_prompt(name: str) -> None:
    model = tiny(name)
    usual = model.guidance_scale
    declare_distilled(model, True)
    assert usual > 4 and model.guidance_scale == 1 and model.facts()["distilled"]
    asked: list[int] = []
    encode, network = type(model).encode, model.network
    model.encode = lambda prompts, *rest: asked.append(len(prompts)) or encode(model, prompts, *rest)
    hook = network.register_forward_pre_hook(
        lambda module, args, kwargs: asked.append(len(kwargs.get("hidden_states", args[0] if args else ()))),
        with_kwargs=True,
    )
    model.generate(PROMPTS, [1, 2], 1.0, steps=3)
    with trained(model) as adaptation:
        guidance = adaptation.guidance(PROMPTS, 1.0)
        adaptation.adapted().generate(PROMPTS[:1], [1], 1.0, steps=2)
    hook.remove()
    assert guidance.unconditional is None and asked == [2, 2, 2, 2, 2, 1, 1, 1]
    for other in (model.guidance, adaptation.guidance):
        message = r"expected 1 for a distilled .* found 4"
        with adaptation, pytest.raises(FairAdapterError, match=message) as caught:
            other(PROMPTS, 4.0)
        assert "\n" not in str(caught.value)


# ---- gradient


@families
@pytest.mark.parametrize("distilled", [True, False])
def test_gradient_equals_one_graph_through_every_part(name: str, distilled: bool) -> None:
    """To 1e-5 relative: the transformers compute rotary positions, and Krea 2 its norms, in float32."""
    model = tiny(name)
    declare_distilled(model, distilled)
    sampler, z = model.sampler(3), starting_noise([1, 2], model.latent_shape)
    scale, found = 1.0 if distilled else 2.0, []
    with trained(model) as adaptation:
        for decoupled in (True, False):
            guidance = adaptation.guidance(PROMPTS, scale, TARGET)
            if decoupled:
                trajectory = rollout(adaptation.denoise, sampler, z, guidance)
                final = trajectory.final.requires_grad_(True)
                (g,) = torch.autograd.grad(torch.tanh(final).square().mean(), final)
                accumulate_gradients(adaptation.denoise, trajectory, g, guidance, batch=3)
            else:
                one_graph_gradient(
                    adaptation.denoise, sampler, z, guidance, lambda x: torch.tanh(x).square().mean()
                )
            grads = {n: p.grad for n, p in adaptation.named_parameters() if p.grad is not None}
            found.append({n: g.clone() for n, g in grads.items()})
            adaptation.zero_grad(set_to_none=True)
    reached = {n for n, g in found[0].items() if g.any()}
    assert {"soft.tokens." + model.encoders[0].name, "soft.slopes." + model.encoders[0].name} <= reached
    assert any(n.startswith("text.") for n in reached) and any(n.startswith("unet.") for n in reached)
    whole = [torch.cat([g.flatten() for g in grads.values()]) for grads in found]
    assert (whole[0] - whole[1]).norm() < 1e-5 * whole[1].norm()
    for n, gradient in found[0].items():
        assert (gradient - found[1][n]).norm() <= 1e-4 * found[1][n].norm() + 1e-7 * whole[1].norm(), n


@families
def test_checkpointing_changes_no_gradient_and_holds_less(name: str) -> None:
    model = tiny(name)
    declare_distilled(model, True)
    gradients, held = [], []
    for wanted in (False, True, False):
        model.checkpoint(decoder=wanted, network=wanted)
        with trained(model) as adaptation:
            known = [p for part in model.parts().values() for p in part.parameters()]
            with Meter([*known, *adaptation.parameters()]) as meter:
                guidance = adaptation.guidance(PROMPTS, 1.0)
                z = starting_noise([1, 2], model.latent_shape)
                out = adaptation.denoise(z, torch.tensor([400.0, 400.0]), guidance.conditional)
                model.decode(out).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in adaptation.parameters() if p.grad is not None]))
        held.append(meter.peak)
    assert held[1] < 0.8 * held[0] and held[2] > 0.99 * held[0]
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-4, atol=1e-6 * float(gradients[0].abs().max()))
    assert torch.equal(gradients[0], gradients[2])


# ---- soft tokens


@families
def test_soft_tokens_are_embeddings_spliced_in_after_the_users_turn(name: str) -> None:
    """By hand: the template's token ids, embedded, with the rows where the user's turn begins."""
    model = tiny(name)
    (encoder,) = model.encoders
    rows = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(3))
    ours = model.encode(PROMPTS[:1], {encoder.name: rows})
    theirs = spliced_by_hand(model, PROMPTS[0], rows)
    count = theirs.shape[1]
    assert (ours["text"][:, :count] - theirs).abs().max() < 1e-5
    plain = model.encode(PROMPTS[:1])["text"]
    assert (ours["text"][:, :5] - plain[:, :5]).abs().max() > 1e-2
    with pytest.raises(FairAdapterError, match=f"width {WIDTH}"):
        model.encode(PROMPTS[:1], {encoder.name: torch.zeros(2, WIDTH + 1)})


# ---- files


@families
def test_file_and_host_view_are_what_was_trained(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    declare_distilled(model, True)
    with trained(model) as adaptation:
        training = adaptation.adapted(TARGET).generate(PROMPTS[:1], [5], 1.0, steps=2)
    adapter = FairnessAdapter.read(exported(adaptation).write(tmp_path / "a.safetensors"))
    assert adapter.encoders == (model.encoders[0].name,) and adapter.info.base.family == model.names
    with Adaptation.from_adapter(model, adapter) as again:
        assert torch.equal(again.adapted(TARGET).generate(PROMPTS[:1], [5], 1.0, steps=2), training)
    with Adaptation.from_weights(model, adapter.at(TARGET)) as host:
        found = host.adapted().generate(PROMPTS[:1], [5], 1.0, steps=2)
    assert (found - training).abs().max() < 1e-5
    assert (model.generate(PROMPTS[:1], [5], 1.0, steps=2) - training).abs().max() > 1e-2


@families
def test_exported_files_have_the_names_of_stock_hosts(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    adapter = exported(trained(model))
    files = export_adapter(adapter, TARGET, "fair", tmp_path / "lora", tmp_path / "embedding")
    assert files.lora is not None and files.embedding is not None
    assert set(load_file(files.embedding)) == {model.encoders[0].name}
    assert load_file(files.embedding)[model.encoders[0].name].shape == (3, WIDTH)
    names = set(load_file(files.lora))
    krea = "transformer.transformer_blocks.1.attn"
    block = krea if name == "krea2" else "diffusion_model.layers.1.attention"
    assert {f"{block}.to_q.lora_A.weight", f"{block}.to_out.0.lora_B.weight"} <= names
    text = "lora_te_layers_0"
    assert {f"{text}_self_attn_q_proj.lora_down.weight", f"{text}_mlp_up_proj.alpha"} <= names


@families
def test_diffusers_draws_the_same_from_the_exported_network_lora(name: str, tmp_path: Path) -> None:
    config = AdapterConfig(unet_lora=True, rank=2, alpha=1.0)
    model = tiny(name)
    declare_distilled(model, True)
    adapter = exported(trained(model, config))
    files = export_adapter(adapter, TARGET, "fair", tmp_path / "lora", tmp_path / "embedding")
    with Adaptation.from_weights(model, adapter.at(TARGET)) as adaptation:
        ours = adaptation.adapted().generate(PROMPTS[:1], [5], 1.0, steps=3)
    stock = pipeline(name, True)
    stock.load_lora_weights(files.lora)
    assert (drawn(stock, PROMPTS[0], model, 3, 0.0) - ours).abs().max() < 1e-4
    assert (model.generate(PROMPTS[:1], [5], 1.0, steps=3) - ours).abs().max() > 1e-2


@families
def test_folders_are_recognised_and_loaded(name: str, tmp_path: Path) -> None:
    made = tiny(name)
    pipeline(name).save_pretrained(tmp_path)
    found = load(tmp_path)
    found.resize(64)
    assert type(found) is type(made) and found.describe("x") == made.describe("x")
    assert found.sampler(2).prediction == "flow" and not found.distilled
    assert torch.equal(*(m.generate(PROMPTS[:1], [1], 2.0, steps=2) for m in (made, found)))
    coarse = load(tmp_path, dtype=torch.bfloat16)
    assert coarse.dtype == torch.bfloat16 and coarse.describe("x").hash == ""  # published in it
    coarse.resize(64)
    assert coarse.generate(PROMPTS[:1], [1], 2.0, steps=2).isfinite().all()


# ---- what is refused


def refused(path: Path, match: str, **options: Any) -> None:
    with pytest.raises(FairAdapterError, match=match) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)


@families
def test_a_text_encoder_of_another_size_is_refused(name: str, tmp_path: Path) -> None:
    pipeline(name, encoder_width=2 * WIDTH).save_pretrained(tmp_path)
    refused(tmp_path, f"encoder of width {WIDTH} .*, found one of width {2 * WIDTH}; put the model's own")


@families
def test_a_folder_without_its_text_encoder_is_refused(name: str, tmp_path: Path) -> None:
    pipeline(name).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["text_encoder"] = [None, None]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    refused(tmp_path, r"with its text_encoder, found none; set model\.path to a whole")


def test_gguf_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "z.gguf").write_bytes(b"GGUF")
    for path in (tmp_path / "z.gguf", tmp_path / "missing.gguf"):
        refused(path, r"found GGUF, .*give the model in bfloat16, with model\.weights=int8")


def test_int8_weights_of_a_text_encoder_are_refused(tmp_path: Path) -> None:
    pipeline("z-image").save_pretrained(tmp_path)
    path = tmp_path / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    key = next(key for key in tensors if key.endswith("q_proj.weight"))
    save_file({**tensors, key: tensors[key].to(torch.int8)}, path, {"format": "pt"})
    refused(tmp_path, "found .*q_proj.weight' as I8, .*download the model in float16 or bfloat16")


# ---- Z-Image's transformer in one file, as ComfyUI's downloads have it


@pytest.mark.parametrize("beginning", ["", "model.diffusion_model."])
def test_a_transformer_in_one_file_is_the_folders(beginning: str, tmp_path: Path) -> None:
    made = pipeline("z-image")
    made.save_pretrained(tmp_path / "folder")
    held: dict[str, list[Tensor]] = {}
    for key, value in made.transformer.state_dict().items():
        held.setdefault(beginning + z_image_key(key), []).append(value)
    file = tmp_path / "z.safetensors"
    save_file({key: torch.cat(values).contiguous() for key, values in held.items()}, file)
    assert f"{beginning}layers.0.attention.qkv.weight" in held
    refused(file, r"a Z-Image checkpoint without its text encoders; set model\.config to a diffusers folder")
    found, folder = load(file, config=str(tmp_path / "folder")), load(tmp_path / "folder")
    stored, read = folder.network.state_dict(), found.network.state_dict()
    assert stored.keys() == read.keys() and all(torch.equal(stored[key], read[key]) for key in stored)
    assert found.describe("x") == folder.describe("x")
    save_file({key: torch.cat(v) for key, v in held.items() if "layers.1.attention.q" not in key}, file)
    refused(
        file, "expected all tensors of its transformer, found none named", config=str(tmp_path / "folder")
    )
