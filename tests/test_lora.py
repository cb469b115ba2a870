"""LoRA: names, initial values, the algebra of gates and strength, attaching and leaving no trace."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.lora import (
    ALPHA,
    DOWN,
    GATE,
    UP,
    LoraLayer,
    LoraSet,
    at_coordinates,
    check_layers,
    lora_names,
    text_layers,
    unet_layers,
)
from fair_adapter.tests.tiny_diffusion import text_encoder, unet


def random_layer(rank: int = 3, coordinates: int = 2, alpha: float = 1.5, seed: int = 0) -> LoraLayer:
    """(5 -> 4) in float64, nothing zero."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rank, 5), (4, rank), (coordinates, rank))
    down, up, gate = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return LoraLayer(down, up, alpha, gate if coordinates else None)


def test_names_of_a_text_encoder_are_those_of_kohya() -> None:
    layers = text_layers(text_encoder(layers=2))
    parts = [f"self_attn_{p}_proj" for p in ("q", "k", "v", "out")] + ["mlp_fc1", "mlp_fc2"]
    assert set(layers) == {f"lora_te_text_model_encoder_layers_{i}_{p}" for i in range(2) for p in parts}
    assert layers["lora_te_text_model_encoder_layers_1_mlp_fc2"].in_features == 64


def test_names_are_the_same_where_modules_are_called_text_model() -> None:
    """As in transformers before 5, and in the second encoder of SDXL."""
    config = CLIPTextConfig(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
    layers = text_layers(CLIPTextModelWithProjection(config), prefix="lora_te2")
    plain = text_layers(text_encoder(layers=2), prefix="lora_te2")
    assert set(layers) == set(plain)
    assert "lora_te2_text_model_encoder_layers_0_self_attn_out_proj" in layers


def test_names_of_a_unet_are_those_of_kohya() -> None:
    layers = unet_layers(unet())
    blocks = [f"down_blocks_{i}_attentions_0" for i in range(3)] + ["mid_block_attentions_0"]
    blocks += [f"up_blocks_{i}_attentions_{j}" for i in (1, 2, 3) for j in range(2)]
    parts = [f"attn{a}_to_{p}" for a in (1, 2) for p in ("q", "k", "v", "out_0")]
    assert set(layers) == {f"lora_unet_{b}_transformer_blocks_0_{p}" for b in blocks for p in parts}


def test_a_model_without_such_layers_is_refused() -> None:
    with pytest.raises(FairAdapterError, match="Linear: expected the attention layers"):
        unet_layers(nn.Linear(2, 2))


def test_fresh_layers_add_nothing_and_start_as_released() -> None:
    """down ~ N(0, 1/rank^2), up = 0, alpha = rank, gates of the given spread."""
    linear, generator = nn.Linear(400, 30), torch.Generator().manual_seed(0)
    layer = LoraLayer.for_linear(linear, 50, coordinates=8, gate_std=2.0, generator=generator)
    assert layer.alpha == 50 and layer.rank == 50
    assert layer(torch.randn(3, 400), torch.randn(1, 8)).abs().max() == 0
    assert float(layer.down.detach().std()) == pytest.approx(1 / 50, rel=0.03)
    assert layer.gate is not None and float(layer.gate.detach().std()) == pytest.approx(2.0, rel=0.15)
    assert LoraLayer.for_linear(linear, 4).gate is None


def test_bfloat16_inputs_are_answered_in_kind_and_train_float32_parameters() -> None:
    layer, inputs = random_layer().float(), torch.randn(6, 7, 5, generator=torch.Generator().manual_seed(0))
    coordinates, found = torch.tensor([[0.3, -0.2]]), []
    for dtype in (torch.float32, torch.bfloat16):
        added = layer(inputs.to(dtype), coordinates)
        assert added.dtype == dtype
        added.float().square().mean().backward()
        found.append([added.detach().float(), *(p.grad for p in layer.parameters())])
        layer.zero_grad(set_to_none=True)
    for fine, coarse in zip(*found, strict=True):
        assert coarse.dtype == torch.float32 and (coarse - fine).norm() < 0.02 * fine.norm()


@pytest.mark.parametrize("shape", [(2, 5), (2, 7, 5)])
def test_layer_is_the_formula(shape: tuple[int, ...]) -> None:
    """W + (alpha / rank) B diag(1 + t G) A, for each row at its own target."""
    layer = random_layer()
    inputs, t = torch.randn(shape, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)
    output = layer(inputs, t)
    for row in range(2):
        gates = 1 + layer.gate.T @ t[row]
        change = 1.5 / 3 * layer.up @ torch.diag(gates) @ layer.down
        assert torch.allclose(output[row], inputs[row] @ change.T, rtol=0, atol=1e-12)


def test_plain_state_dict_is_the_layer_at_that_target_and_strength() -> None:
    layer, inputs = random_layer(), torch.randn(6, 5, dtype=torch.float64)
    tensors = LoraSet({"lora_unet_x": layer}).tensors()
    t = torch.tensor([0.3, -0.2])
    plain = LoraSet.from_tensors(at_coordinates(tensors, t, 0.7), torch.float64).layers["lora_unet_x"]
    assert plain.gate is None
    expected = 0.7 * layer(inputs, t[None])
    assert torch.allclose(plain(inputs), expected, rtol=0, atol=1e-12)


def test_the_default_target_is_what_is_stored_bit_for_bit() -> None:
    tensors = LoraSet({"lora_unet_x": random_layer()}).tensors()
    plain = at_coordinates(tensors, torch.zeros(2))
    assert set(plain) == {"lora_unet_x" + part for part in (DOWN, UP, ALPHA)}
    for key, value in plain.items():
        assert value.numpy().tobytes() == tensors[key].numpy().tobytes()


@given(st.floats(-2, 3), st.integers(0, 100))
def test_plain_state_dict_is_affine_in_the_target(share: float, seed: int) -> None:
    tensors = LoraSet({"lora_unet_x": random_layer(seed=seed)}).tensors()
    one, two = torch.randn(2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ends = [at_coordinates(tensors, t)["lora_unet_x" + UP] for t in (one, two)]
    between = at_coordinates(tensors, share * one + (1 - share) * two)["lora_unet_x" + UP]
    assert torch.allclose(between, share * ends[0] + (1 - share) * ends[1], rtol=0, atol=1e-11)


def test_half_precision_files_are_widened_away_from_the_default() -> None:
    tensors = {k: v.half() for k, v in LoraSet({"lora_unet_x": random_layer()}).tensors().items()}
    assert at_coordinates(tensors, torch.zeros(2))["lora_unet_x" + UP].dtype == torch.float16
    plain = at_coordinates(tensors, torch.tensor([0.25, 0.0]))["lora_unet_x" + UP]
    gates = 1 + 0.25 * tensors[GATE + "lora_unet_x"][0].float()
    assert torch.equal(plain, tensors["lora_unet_x" + UP].float() * gates)


def test_attach_and_detach_leave_no_trace() -> None:
    model = text_encoder().double().eval()
    ids = torch.randint(49000, (2, 77))
    before, keys = model(ids).last_hidden_state, list(model.state_dict())
    lora = LoraSet.create(text_layers(model), rank=2)
    for parameter in lora.parameters():
        nn.init.normal_(parameter)
    lora.attach(text_layers(model))
    assert lora.attached and list(model.state_dict()) == keys
    assert (model(ids).last_hidden_state - before).abs().max() > 0.01
    lora.enabled = False
    assert torch.equal(model(ids).last_hidden_state, before)
    lora.enabled = True
    assert (model(ids).last_hidden_state - before).abs().max() > 0.01
    lora.detach()
    assert torch.equal(model(ids).last_hidden_state, before)


def test_attached_layers_equal_merged_weights() -> None:
    model = text_encoder().double().eval()
    ids = torch.randint(49000, (2, 77))
    lora = LoraSet.create(text_layers(model), rank=2, alpha=3.0)
    for parameter in lora.parameters():
        nn.init.normal_(parameter, std=0.3)
    lora.attach(text_layers(model))
    with torch.no_grad():
        attached = model(ids).last_hidden_state
        lora.detach()
        for name, module in text_layers(model).items():
            module.weight += 3.0 / 2 * lora.layers[name].up @ lora.layers[name].down
        merged = model(ids).last_hidden_state
    assert torch.allclose(attached, merged, rtol=0, atol=1e-11)


def test_trainables_stay_float32_on_a_half_precision_model() -> None:
    linear = nn.Linear(8, 8).to(torch.bfloat16).requires_grad_(False)
    lora = LoraSet.create({"lora_unet_x": linear}, rank=2, coordinates=2)
    nn.init.normal_(lora.layers["lora_unet_x"].up)
    lora.attach({"lora_unet_x": linear})
    lora.coordinates = torch.tensor([[0.2, -0.2]])
    output = linear(torch.randn(3, 8, dtype=torch.bfloat16))
    assert output.dtype == torch.bfloat16
    output.float().square().sum().backward()
    for parameter in lora.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32
        assert parameter.grad.abs().max() > 0


def test_a_lora_of_another_model_is_refused_and_nothing_is_attached() -> None:
    model = text_encoder().eval()
    lora = LoraSet.create(text_layers(text_encoder(layers=3)), rank=2)
    with pytest.raises(FairAdapterError, match=r"6 of 18 LoRA layers do not fit .*layers_2_self_attn_k_proj"):
        lora.attach(dict(sorted(text_layers(model).items())))
    assert not lora.attached
    with pytest.raises(FairAdapterError, match=r"expected a layer of shape \(4, 5\), found one of \(4, 6\)"):
        check_layers({"x": (4, 5)}, {"x": (4, 6)})


def test_attaching_twice_is_refused() -> None:
    model = text_encoder()
    lora = LoraSet.create(text_layers(model), rank=2)
    lora.attach(text_layers(model))
    with pytest.raises(FairAdapterError, match="attached already"):
        lora.attach(text_layers(model))


def test_tensors_round_trip() -> None:
    lora = LoraSet({"lora_unet_x": random_layer(), "lora_te_y": random_layer(coordinates=0, seed=1)})
    tensors = lora.tensors()
    assert lora_names(tensors) == ["lora_te_y", "lora_unet_x"]
    again = LoraSet.from_tensors(tensors, torch.float64).tensors()
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)
    lora.layers["lora_te_y"].up.data.zero_()
    assert tensors["lora_te_y" + UP].abs().max() > 0, "the tensors are copies"
