"""Import of the official release: every tensor of its .pth files in its place, or an error."""

import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from fair_adapter.shared.adapter import FairnessAdapter
from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.lora import text_layers, unet_layers
from fair_adapter.trainer.official import import_official, read_part

RANK = 2


@cache
def real_models() -> tuple[CLIPTextModel, UNet2DConditionModel]:
    """Stable Diffusion 1.5's text encoder and U-Net without their weights."""
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
    )
    with torch.device("meta"):
        return CLIPTextModel(config), UNet2DConditionModel(cross_attention_dim=768, sample_size=64)


def pair(prefix: str, linear: nn.Linear, generator: torch.Generator) -> dict[str, Tensor]:
    down = torch.randn(RANK, linear.in_features, generator=generator)
    up = torch.randn(linear.out_features, RANK, generator=generator)
    return {f"{prefix}.down.weight": down, f"{prefix}.up.weight": up}


def official_text(seed: int = 0) -> dict[str, Tensor]:
    """As diffusers 0.19 named the layers that it had patched; parameters, not plain tensors."""
    generator, state = torch.Generator().manual_seed(seed), {}
    for name, module in real_models()[0].named_modules():
        if isinstance(module, nn.Linear):
            state |= pair(f"text_model.{name}.lora_linear_layer", module, generator)
    return {key: nn.Parameter(value) for key, value in state.items()}


def official_unet(seed: int = 1) -> dict[str, Tensor]:
    """As diffusers 0.19's AttnProcsLayers named the LoRA processors."""
    generator, state = torch.Generator().manual_seed(seed), {}
    unet = real_models()[1]
    for name in unet.attn_processors:
        attention = unet.get_submodule(name.removesuffix(".processor"))
        parts = {"q": attention.to_q, "k": attention.to_k, "v": attention.to_v, "out": attention.to_out[0]}
        for part, linear in parts.items():
            state |= pair(f"{name}.to_{part}_lora", linear, generator)
    return state


def official_prefix() -> dict[str, Tensor]:
    table = torch.randn(6, 768, generator=torch.Generator().manual_seed(2))
    table[0] = 0
    return {
        "token_embedding.weight": table,
        "position_embedding.weight": torch.randn(77, 768),
        "position_ids": torch.arange(77)[None],
    }


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the release's export script leaves it."""
    folder = tmp_path_factory.mktemp("checkpoint-9800_exported")
    for suffix, seed in (("", 5), ("_EMA", 0)):
        torch.save(official_text(seed), folder / f"text_encoder_lora{suffix}.pth")
        torch.save(official_unet(seed + 1), folder / f"unet_lora{suffix}.pth")
    torch.save(official_prefix(), folder / "prefix_embedding.pth")
    return folder


def test_the_files_are_the_releases() -> None:
    """The counts that the release states: 144 and 256 tensors."""
    assert len(official_text()) == 144 and len(official_unet()) == 256


def test_a_folder_becomes_one_adapter_with_every_tensor(release: Path, tmp_path: Path) -> None:
    adapter = import_official([release], "exp-1", "sd15-gender")
    text, unet = real_models()
    model = {**text_layers(text), **unet_layers(unet)}
    adapter.check_layers({name: (m.out_features, m.in_features) for name, m in model.items()})
    assert set(adapter.layers) == set(model) and len(model) == 72 + 128
    assert FairnessAdapter.read(adapter.write(tmp_path / "a.safetensors")).info == adapter.info
    assert adapter.targets.default.to_text() == "gender=female:50,male:50" and not adapter.conditioned


def test_values_are_those_of_the_moving_average(release: Path) -> None:
    lora = import_official([release]).at().lora
    text, unet = official_text(0), official_unet(1)
    prefixes = "text_model.encoder.layers.", "lora_te_text_model_encoder_layers_"
    for theirs, ours in (("3.mlp.fc2", "3_mlp_fc2"), ("11.self_attn.out_proj", "11_self_attn_out_proj")):
        for part in ("down", "up"):
            expected = text[f"{prefixes[0]}{theirs}.lora_linear_layer.{part}.weight"]
            assert torch.equal(lora[f"{prefixes[1]}{ours}.lora_{part}.weight"], expected)
    block = "up_blocks.3.attentions.2.transformer_blocks.0.attn2"
    for theirs, ours in (("to_k", "to_k"), ("to_out", "to_out_0")):
        key = f"lora_unet_{block.replace('.', '_')}_{ours}"
        assert torch.equal(lora[f"{key}.lora_up.weight"], unet[f"{block}.processor.{theirs}_lora.up.weight"])
        assert lora[f"{key}.alpha"] == RANK, "no network alpha: a scale of 1"


def test_a_prefix_becomes_five_tokens(release: Path) -> None:
    neutral = torch.ones(5, 768)
    adapter = import_official([release / "prefix_embedding.pth"], "exp-2", neutral=neutral)
    assert torch.equal(adapter.at().soft["clip_l"], official_prefix()["token_embedding.weight"][1:])
    half = adapter.at(strength=0.5).soft["clip_l"]
    assert torch.allclose(half, (adapter.at().soft["clip_l"] + 1) / 2, atol=1e-6)
    assert adapter.layers == {}


def test_one_file_alone(release: Path) -> None:
    adapter = import_official([release / "text_encoder_lora.pth"], "exp-4")
    assert len(adapter.layers) == 72 and adapter.encoders == ()
    assert adapter.targets.default.marginal("age").tolist() == [0.75, 0.25]
    assert len(adapter.targets.default.attribute("race")) == 4


class Harmful:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("/tmp/never"),))


def shorter(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a loader without the MLP sees: the half that is dropped in silence elsewhere."""
    return {key: value for key, value in state.items() if "mlp" not in key}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: shorter(official_text()), "expected 144 tensors with 'text_model.encoder.layers.0.mlp.fc1"),
        (lambda: {**official_text(), "more": torch.ones(1)}, "found 145, of them unknown 'more'"),
        (lambda: {k.replace("text_model.", ""): v for k, v in official_text().items()}, "tensors without it"),
        (
            lambda: {k: v.detach()[:1] for k, v in official_text().items()},
            "as down (rank, 768) and up (768, rank)",
        ),
        (lambda: {k: v.detach() * torch.nan for k, v in official_text().items()}, "NaN or infinity"),
        (lambda: {**official_unet(), "x.processor.y": torch.ones(1)}, "found 257, of them unknown"),
        (lambda: {"token_embedding.weight": torch.ones(6, 768)}, "expected position_embedding.weight"),
        (lambda: {**official_prefix(), "token_embedding.weight": torch.ones(6, 1024)}, "(6, 1024)"),
        (
            lambda: {**official_prefix(), "token_embedding.weight": torch.ones(6, 768).to_sparse()},
            "plain tensor",
        ),
        (lambda: torch.ones(3), "expected a state dict, found Tensor"),
        (lambda: {}, "expected a state dict"),
        (lambda: {"step": 7}, "found step: int"),
        (Harmful, "found an object of type"),
        (lambda: {**official_prefix(), "loss": numpy.float64(1)}, "array.scalar, which is never opened"),
        (lambda: {"a\x1b[1mb\n": 7}, "found ab: int"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: Callable[[], object], message: str) -> None:
    path = tmp_path / "text_encoder_lora.pth"
    torch.save(content(), path)
    with pytest.raises(FairAdapterError, match=f"^{path}: ") as error:
        read_part(path)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not Path("/tmp/never").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"<html>", pickle.dumps({"a": 1}), b"\x80\x04."])
def test_files_that_are_no_state_dicts_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "unet_lora.pth"
    path.write_bytes(content)
    with pytest.raises(FairAdapterError, match=f"^{path}: expected") as error:
        read_part(path)
    assert "\n" not in str(error.value)


def test_missing_and_double_parts_are_refused(release: Path, tmp_path: Path) -> None:
    with pytest.raises(FairAdapterError, match="found none"):
        import_official([tmp_path / "nothing.pth"])
    with pytest.raises(
        FairAdapterError, match=r"a folder with text_encoder_lora\.pth, .* found none of them"
    ):
        import_official([tmp_path])
    with pytest.raises(FairAdapterError, match="a second one for the same part"):
        import_official([release / "unet_lora.pth", release / "unet_lora_EMA.pth"])
