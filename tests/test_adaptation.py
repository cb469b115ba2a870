"""What is trained, on a model: training, the exported file, a merge by hand and diffusers all agree."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fair_adapter.shared.adapter import AdapterWeights, FairnessAdapter
from fair_adapter.shared.adapter_export import export_adapter
from fair_adapter.shared.adapter_info import AdapterInfo
from fair_adapter.shared.adapter_target import TargetSpace
from fair_adapter.shared.attributes import TargetDistribution
from fair_adapter.shared.direct import accumulate_gradients, one_graph_gradient
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.lora import text_layers, unet_layers
from fair_adapter.shared.sampling import rollout
from fair_adapter.shared.schedulers import linear_sampler
from fair_adapter.shared.seeds import starting_noise
from fair_adapter.shared.soft_prompt import prompt_ids
from fair_adapter.tests.tiny_diffusion import pipeline, tiny_model
from fair_adapter.trainer.configuration.config import AdapterConfig
from fair_adapter.trainer.families.adaptation import Adaptation
from fair_adapter.trainer.families.stable_diffusion import StableDiffusion

SPACE = TargetSpace(TargetDistribution.parse("gender=50/50;race=equal"), "cells")
FIXED = TargetSpace(TargetDistribution.parse("gender=50/50"))
EVERYTHING = AdapterConfig(soft_tokens=5, text_lora=True, unet_lora=True, rank=3, alpha=2.0)
TARGET = "gender=80/20;race=wmelh:20,black:50,asian:30"
PROMPTS = ["a photo of the face of a doctor, a person", "a nurse"]


def trained(
    model: StableDiffusion, space: TargetSpace = SPACE, config: AdapterConfig = EVERYTHING
) -> Adaptation:
    """As if after training: every number random."""
    adaptation = Adaptation.create(model, space, config)
    generator = torch.Generator().manual_seed(1)
    for parameter in adaptation.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator).to(parameter)
    return adaptation


def exported(adaptation: Adaptation) -> FairnessAdapter:
    base = adaptation.base.describe("tiny")
    return adaptation.to_adapter(AdapterInfo("tiny-fair", base, adaptation.space))


def noise(model: StableDiffusion) -> Tensor:
    return starting_noise([1, 2], model.latent_shape).to(model.unet.dtype)


@torch.no_grad()
def output(adaptation: Adaptation, target: str | None) -> Tensor:
    """The U-Net's output for both guidance branches, (4, 4, 16, 16)."""
    with adaptation:
        guidance = adaptation.guidance(PROMPTS, 2.0, target)
        z, timesteps = noise(adaptation.base), torch.tensor([400, 400])
        both = [
            {name: value.expand(2, *value.shape[1:]) for name, value in branch.items()}
            for branch, _ in guidance.branches()
        ]
        return torch.cat([adaptation.denoise(z, timesteps, branch) for branch in both])


@torch.no_grad()
def merged_output(model: StableDiffusion, weights: AdapterWeights) -> Tensor:
    """The same with the LoRA added to the weights and the tokens to the vocabulary: no code of ours."""
    layers = {**text_layers(model.text_encoder), **unet_layers(model.unet)}
    for name in {key.partition(".")[0] for key in weights.lora}:
        up, down = weights.lora[f"{name}.lora_up.weight"], weights.lora[f"{name}.lora_down.weight"]
        layers[name].weight += float(weights.lora[f"{name}.alpha"]) / len(down) * up @ down
    ids = prompt_ids(model.tokenizer, PROMPTS, 5)
    table = model.text_encoder.get_input_embeddings().weight
    ids[:, 1:6] = torch.arange(len(table), len(table) + 5)
    longer = nn.Embedding(len(table) + 5, table.shape[1], dtype=table.dtype)
    longer.weight.data = torch.cat([table, weights.soft["clip_l"]])
    model.text_encoder.set_input_embeddings(longer)
    z, timesteps = noise(model), torch.tensor([400, 400])
    both = [model.text_encoder(i).last_hidden_state for i in (ids, prompt_ids(model.tokenizer, ["", ""]))]
    return torch.cat([model.denoise(z, timesteps, {"text": text}) for text in both])


@pytest.mark.parametrize("target", [None, TARGET])
def test_training_file_and_merge_agree(tmp_path: Path, target: str | None) -> None:
    model = tiny_model(torch.float64)
    adaptation = trained(model)
    training = output(adaptation, target)
    adapter = FairnessAdapter.read(exported(adaptation).write(tmp_path / "a.safetensors"))
    assert torch.equal(output(Adaptation.from_adapter(model, adapter), target), training)
    weights = adapter.at(target)
    assert (output(Adaptation.from_weights(model, weights), None) - training).abs().max() < 1e-10
    assert (merged_output(model, weights) - training).abs().max() < 1e-10
    untouched = output(Adaptation.from_weights(tiny_model(torch.float64), adapter.at(target, 0)), None)
    assert (untouched - training).abs().max() > 0.1


def test_strength_between_none_and_all_agrees_too() -> None:
    adapter = exported(trained(tiny_model(torch.float64)))
    weights = adapter.at(TARGET, 0.4)
    host = output(Adaptation.from_weights(tiny_model(torch.float64), weights), None)
    assert (merged_output(tiny_model(torch.float64), weights) - host).abs().max() < 1e-10
    whole = output(Adaptation.from_adapter(tiny_model(torch.float64), adapter), TARGET)
    assert (whole - host).abs().max() > 0.01


def test_targets_and_parts_matter() -> None:
    """No equality above is one of zeros: each part moves the output, each part follows the target."""
    model = tiny_model(torch.float64)
    plain = output(Adaptation(model, SPACE), None)
    for part in ("soft_tokens", "text_lora", "unet_lora"):
        options = {"soft_tokens": 0, part: 5 if part == "soft_tokens" else True}
        adaptation = trained(model, config=AdapterConfig(rank=3, **options))
        default, other = output(adaptation, None), output(adaptation, TARGET)
        assert (default - plain).abs().max() > 1e-3
        assert (default - other).abs().max() > 1e-4


def test_fresh_loras_are_the_base_model() -> None:
    model = tiny_model(torch.float64)
    config = AdapterConfig(soft_tokens=0, text_lora=True, unet_lora=True, rank=3)
    fresh = Adaptation.create(model, SPACE, config)
    assert torch.equal(output(fresh, TARGET), output(Adaptation(model, SPACE), None))


def test_the_base_model_is_the_same_before_within_and_after() -> None:
    model = tiny_model()
    before = model.generate(PROMPTS, [1, 2], 2.0, steps=2)
    adaptation = trained(model)
    with adaptation:
        during = adaptation.adapted(TARGET).generate(PROMPTS, [1, 2], 2.0, steps=2)
        with adaptation.disabled() as base:
            assert torch.equal(base.generate(PROMPTS, [1, 2], 2.0, steps=2), before)
        assert torch.equal(adaptation.adapted(TARGET).generate(PROMPTS, [1, 2], 2.0, steps=2), during)
    assert torch.equal(model.generate(PROMPTS, [1, 2], 2.0, steps=2), before)
    assert (during - before).abs().max() > 0.01


def test_the_negative_prompt_gets_no_tokens_unless_asked() -> None:
    model = tiny_model()
    tokens = AdapterConfig(soft_tokens=5)
    plain = model.encode([""])["text"]
    with trained(model, config=tokens) as adaptation:
        guidance = adaptation.guidance(PROMPTS, 2.0)
        assert torch.equal(guidance.unconditional["text"], plain)
        assert not torch.equal(guidance.conditional["text"], model.encode(PROMPTS)["text"])
    both = trained(model, config=AdapterConfig(soft_tokens=5, negative_tokens=True))
    with both:
        assert not torch.allclose(both.guidance(PROMPTS, 2.0).unconditional["text"], plain, atol=1e-3)
        trained_with = both.guidance(PROMPTS, 2.0).unconditional["text"]
    weights = exported(both).at(None)
    with Adaptation.from_weights(model, weights, exported(both).negative_tokens) as measured:
        assert torch.allclose(measured.guidance(PROMPTS, 2.0).unconditional["text"], trained_with, atol=1e-5)
    assert exported(both).negative_tokens and not exported(adaptation).negative_tokens
    assert Adaptation.from_adapter(model, exported(both)).negative_tokens


def test_gradients_reach_every_part_and_equal_one_graph() -> None:
    """The decoupled adjusted gradient through soft tokens, both LoRAs and their gates, float64."""
    model = tiny_model(torch.float64)
    adaptation = trained(model)
    sampler, z = linear_sampler(model.scheduler, 3), noise(model)

    def objective(latents: Tensor) -> Tensor:
        return torch.tanh(latents).square().mean()

    found = []
    with adaptation:
        for decoupled in (True, False):
            guidance = adaptation.guidance(PROMPTS, 2.0, TARGET)
            if decoupled:
                trajectory = rollout(adaptation.denoise, sampler, z, guidance)
                final = trajectory.final.requires_grad_(True)
                (g,) = torch.autograd.grad(objective(final), final)
                accumulate_gradients(adaptation.denoise, trajectory, g, guidance, batch=3)
            else:
                one_graph_gradient(adaptation.denoise, sampler, z, guidance, objective)
            found.append({name: p.grad.clone() for name, p in adaptation.named_parameters()})
            adaptation.zero_grad(set_to_none=True)
    for name, gradient in found[0].items():
        assert gradient.abs().max() > 0, name
        assert (gradient - found[1][name]).abs().max() <= 1e-10 * max(1.0, float(gradient.abs().max())), name


def test_images_of_one_batch_may_follow_targets_of_their_own() -> None:
    model = tiny_model(torch.float64)
    config = AdapterConfig(soft_tokens=0, unet_lora=True, rank=3)
    with torch.no_grad(), trained(model, config=config) as adaptation:
        text = adaptation.encode(PROMPTS)["text"]
        t = torch.stack([SPACE.resolve(target).coordinates for target in (TARGET, "gender=10/90")])
        z, timesteps = noise(model), torch.tensor([400, 400])
        together = adaptation.denoise(z, timesteps, {"text": text, "coordinates": t})
        for i in range(2):
            one = {"text": text[i : i + 1], "coordinates": t[i : i + 1]}
            alone = adaptation.denoise(z[i : i + 1], timesteps[:1], one)
            assert (alone - together[i : i + 1]).abs().max() < 1e-12


def test_state_is_that_of_the_trained_parts_and_restores_it() -> None:
    model = tiny_model()
    adaptation = trained(model)
    state = copy.deepcopy(adaptation.state_dict())
    assert set(state) == {name for name, _ in adaptation.named_parameters()}
    assert sum(len(group) for group in adaptation.groups().values()) == len(state)
    assert set(adaptation.groups()) == {"soft", "soft_target", "lora", "gate"}
    assert set(trained(model, FIXED).groups()) == {"soft", "lora"}
    again = Adaptation.create(model, SPACE, EVERYTHING)
    again.load_state_dict(state)
    assert all(torch.equal(value, again.tensors()[key]) for key, value in adaptation.tensors().items())


def test_a_seed_gives_the_same_start() -> None:
    model = tiny_model()
    config = AdapterConfig(soft_tokens=5, initial_words=None, text_lora=True, rank=2)
    one, two, three = (Adaptation.create(model, SPACE, config, seed) for seed in (7, 7, 8))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))
    assert not torch.equal(one.tensors()["fair.soft.clip_l"], three.tensors()["fair.soft.clip_l"])


def test_half_precision_models_train_float32_parts() -> None:
    model = tiny_model()
    for part in (model.text_encoder, model.unet):
        part.to(torch.bfloat16)
    with trained(model) as adaptation:
        assert all(parameter.dtype == torch.float32 for parameter in adaptation.parameters())
        guidance = adaptation.guidance(PROMPTS, 2.0, TARGET)
        out = adaptation.denoise(noise(model).float(), torch.tensor([400, 400]), guidance.conditional)
        assert out.dtype == torch.bfloat16
        out.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in adaptation.parameters())
    stored = adaptation.to_adapter(AdapterInfo("x", model.describe("x"), SPACE), torch.float16).tensors
    assert {v.dtype for k, v in stored.items() if not k.endswith(".alpha")} == {torch.float16}


def test_diffusers_reads_the_exported_files_as_we_do(tmp_path: Path) -> None:
    """load_lora_weights and load_textual_inversion, an independent reader: same embeddings, same pictures."""
    adapter = exported(trained(tiny_model()))
    files = export_adapter(adapter, TARGET, "fair", tmp_path / "lora", tmp_path / "embedding")
    with Adaptation.from_weights(tiny_model(), adapter.at(TARGET)) as adaptation:
        ours = adaptation.adapted().generate(PROMPTS[:1], [5], 2.0, steps=3)
        text = adaptation.encode(PROMPTS[:1])["text"]
    model = tiny_model()
    base = model.generate(PROMPTS[:1], [5], 2.0, steps=3)
    model.tokenizer = copy.deepcopy(model.tokenizer)  # it learns the new words
    stock = pipeline(model)
    stock.set_progress_bar_config(disable=True)
    stock.load_lora_weights(files.lora)
    stock.load_textual_inversion(files.embedding, token="<fair>")
    prompt = "<fair> " + PROMPTS[0]
    embeds, _ = stock.encode_prompt(prompt, "cpu", 1, False)
    assert (embeds - text).abs().max() < 1e-5
    start = starting_noise([5], model.latent_shape)
    theirs = stock(prompt, latents=start, guidance_scale=2.0, num_inference_steps=3, output_type="pt").images
    assert (theirs - ours).abs().max() < 1e-4
    assert (base - ours).abs().max() > 0.01


@pytest.mark.parametrize("tokens", [0, 5])
def test_diffusers_refuses_a_file_that_it_would_not_read_all_of(tmp_path: Path, tokens: int) -> None:
    """A file that follows the target is ours to read; nothing of it may be left out in silence."""
    model = tiny_model()
    adaptation = trained(model, config=AdapterConfig(tokens, text_lora=True, rank=2))
    path = exported(adaptation).write(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="Invalid LoRA checkpoint"):
        pipeline(model).load_lora_weights(path)


def test_diffusers_reads_the_file_of_a_fixed_lora(tmp_path: Path) -> None:
    config = AdapterConfig(0, True, True, rank=3, alpha=2.0)
    path = exported(trained(tiny_model(torch.float64), FIXED, config)).write(tmp_path / "a.safetensors")
    expected = output(Adaptation.from_adapter(tiny_model(torch.float64), FairnessAdapter.read(path)), None)
    model = tiny_model(torch.float64)
    pipeline(model).load_lora_weights(path)
    assert (output(Adaptation(model, FIXED), None) - expected).abs().max() < 1e-10


def test_wrong_uses_are_refused() -> None:
    model = tiny_model()
    adaptation = trained(model)
    with pytest.raises(FairAdapterError, match="not on the model"):
        adaptation.encode(PROMPTS)
    with pytest.raises(FairAdapterError, match="target space of training"):
        adaptation.to_adapter(AdapterInfo("x", model.describe("x"), FIXED))
    with pytest.raises(FairAdapterError, match=r"clip_l of width 32.*clip_l of width 64"):
        Adaptation.from_adapter(tiny_model(width=64), exported(adaptation))
    other = Adaptation.from_weights(tiny_model(width=64), exported(adaptation).at())
    with pytest.raises(FairAdapterError, match="LoRA layers do not fit this model"):
        other.attach()
    assert not other.text.attached and not other.unet.attached
    with pytest.raises(FairAdapterError, match="nothing to train"):
        Adaptation.create(model, SPACE, AdapterConfig())
