"""Soft prompt: where the tokens go, what the encoder makes of them, and how they follow the target."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from fair_adapter.shared.errors import FairAdapterError
from fair_adapter.shared.soft_prompt import (
    PLACEHOLDER,
    SoftPrompt,
    at_coordinates,
    initial_tokens,
    prompt_ids,
    spliced,
)
from fair_adapter.tests.tiny_diffusion import text_encoder, tokenizer

START, END = 49406, 49407
LONG = "a photo of a doctor and " * 40


def extended(encoder: nn.Module, tokens: Tensor, ids: Tensor) -> tuple[nn.Embedding, Tensor]:
    """Textual inversion, the independent reference: new rows at the end of the embedding table."""
    table = encoder.get_input_embeddings()
    bigger = nn.Embedding(len(table.weight) + len(tokens), tokens.shape[1], dtype=tokens.dtype)
    bigger.weight.data = torch.cat([table.weight.data, tokens])
    ids = ids.clone()
    ids[:, 1 : 1 + len(tokens)] = torch.arange(len(table.weight), len(bigger.weight))
    return bigger, ids


def test_tokens_stand_directly_after_the_start_token() -> None:
    plain, soft = (prompt_ids(tokenizer(), ["a photo of a doctor", ""], count) for count in (0, 5))
    assert plain.shape == soft.shape == (2, 77)
    assert soft[:, 0].eq(START).all() and soft[:, 1:6].eq(PLACEHOLDER).all()
    assert torch.equal(soft[:, 6:], plain[:, 1:-5])
    assert soft[1, 6] == END


def test_long_prompts_lose_their_tail_and_keep_the_end_token() -> None:
    plain, soft = (prompt_ids(tokenizer(), [LONG], count)[0] for count in (0, 5))
    assert soft[-1] == END and (soft != END).sum() == 76
    assert torch.equal(soft[6:-1], plain[1:-6])


def test_padding_is_the_tokenizers_own() -> None:
    expected = tokenizer()(["a cat"], padding="max_length", max_length=77, return_tensors="pt").input_ids
    assert torch.equal(prompt_ids(tokenizer(), ["a cat"]), expected)


@pytest.mark.parametrize("prompt", ["a photo of a doctor", "", LONG])
def test_splicing_equals_a_textual_inversion(prompt: str) -> None:
    """Same hidden states at every position and the same pooled output, that of the end token."""
    encoder, tokens = text_encoder().double().eval(), torch.randn(5, 32, dtype=torch.float64)
    ids = prompt_ids(tokenizer(), [prompt], 5)
    with spliced(encoder, tokens):
        ours = encoder(ids)
    # The end token must be found among ids that are larger than it: transformers looks for eos_token_id.
    table, longer = extended(encoder, tokens, ids)
    encoder.set_input_embeddings(table)
    theirs = encoder(longer)
    assert torch.allclose(ours.last_hidden_state, theirs.last_hidden_state, rtol=0, atol=1e-12)
    assert torch.allclose(ours.pooler_output, theirs.pooler_output, rtol=0, atol=1e-12)
    end = int((ids[0] == END).int().argmax())
    assert torch.equal(ours.pooler_output[0], ours.last_hidden_state[0, end])


def test_two_encoders_as_in_sdxl() -> None:
    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=24, eos_token_id=END,
    )  # fmt: skip
    encoders = {
        "clip_l": text_encoder().eval(),
        "clip_g": CLIPTextModelWithProjection(config).eval(),
    }
    start = {name: initial_tokens(encoder, tokenizer(), 5) for name, encoder in encoders.items()}
    prompt = SoftPrompt(start, coordinates=2)
    assert {name: tuple(value.shape) for name, value in prompt().items()} == {
        "clip_l": (5, 32),
        "clip_g": (5, 48),
    }
    ids = prompt_ids(tokenizer(), ["a doctor"], 5)
    for name, encoder in encoders.items():
        tokens = prompt()[name] + 1
        with spliced(encoder, tokens):
            ours = encoder(ids, output_hidden_states=True)
        table, longer = extended(encoder, tokens.detach(), ids)
        encoder.set_input_embeddings(table)
        theirs = encoder(longer, output_hidden_states=True)
        assert torch.allclose(ours.hidden_states[-2], theirs.hidden_states[-2], rtol=0, atol=1e-5)
        assert torch.allclose(ours[0], theirs[0], rtol=0, atol=1e-5)


def test_splicing_leaves_no_trace_even_after_an_error() -> None:
    encoder, ids = text_encoder().eval(), prompt_ids(tokenizer(), ["a cat"], 5)
    before = encoder(ids).last_hidden_state
    with pytest.raises(KeyError), spliced(encoder, torch.ones(5, 32)):
        assert not torch.equal(encoder(ids).last_hidden_state, before)
        raise KeyError
    assert torch.equal(encoder(ids).last_hidden_state, before)
    with spliced(encoder, None):
        assert torch.equal(encoder(ids).last_hidden_state, before)


def test_tokens_of_another_width_are_refused() -> None:
    with (
        pytest.raises(FairAdapterError, match=r"width 32 .* found shape \(5, 64\)"),
        spliced(text_encoder(), torch.ones(5, 64)),
    ):
        pass


def test_gradient_reaches_tokens_and_slopes() -> None:
    """d/dP_k = t_k d/dP_0, in float32 over a half-precision encoder."""
    encoder = text_encoder().to(torch.bfloat16).eval().requires_grad_(False)
    prompt = SoftPrompt({"clip_l": torch.randn(5, 32)}, coordinates=2)
    t = torch.tensor([[0.5, -0.25]])
    with spliced(encoder, prompt(t)["clip_l"]):
        encoder(
            prompt_ids(tokenizer(), ["a cat", "a dog"], 5)
        ).last_hidden_state.float().square().sum().backward()
    slopes, tokens = prompt.slopes["clip_l"].grad, prompt.tokens["clip_l"].grad
    assert tokens.dtype == torch.float32 and tokens.abs().min(dim=1).values.min() > 0
    assert torch.equal(slopes[0], 0.5 * tokens) and torch.equal(slopes[1], -0.25 * tokens)


def random_prompt(seed: int = 0, coordinates: int = 3) -> SoftPrompt:
    generator = torch.Generator().manual_seed(seed)
    parts = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((5, 4), (3, 5, 4), (5, 4)))
    tokens, slopes, neutral = ({"clip_l": part} for part in parts)
    return SoftPrompt(tokens, slopes=slopes if coordinates else None, neutral=neutral)


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=3), st.floats(-2, 2), st.integers(0, 50))
def test_tokens_at_a_target_and_strength_are_the_formula(t: list[float], strength: float, seed: int) -> None:
    """N + strength (P_0 + sum_k t_k P_k - N); at strength 1 what the module gives in training."""
    prompt = random_prompt(seed)
    tensors = prompt.tensors()
    where = torch.tensor(t, dtype=torch.float64)
    value = sum((t[k] * prompt.slopes["clip_l"][k] for k in range(3)), prompt.tokens["clip_l"])
    expected = prompt.neutral_clip_l + strength * (value - prompt.neutral_clip_l)
    assert torch.allclose(at_coordinates(tensors, where, strength)["clip_l"], expected, rtol=0, atol=1e-12)
    assert torch.equal(at_coordinates(tensors, where)["clip_l"], prompt(where[None])["clip_l"])


def test_the_default_target_is_what_is_stored_bit_for_bit() -> None:
    tensors = {k: v.half() for k, v in random_prompt().tensors().items()}
    tensors["fair.soft.clip_l"][0, 0] = -0.0
    at = at_coordinates(tensors, torch.zeros(3))["clip_l"]
    assert at.numpy().tobytes() == tensors["fair.soft.clip_l"].numpy().tobytes()


def test_without_a_neutral_embedding_strength_begins_at_zero() -> None:
    tensors = {"fair.soft.clip_g": torch.randn(5, 4)}
    assert torch.equal(
        at_coordinates(tensors, torch.zeros(0), 0.5)["clip_g"], 0.5 * tensors["fair.soft.clip_g"]
    )


def test_neutral_is_where_training_began_and_no_part_of_the_state() -> None:
    start = torch.randn(5, 4)
    prompt = SoftPrompt({"clip_l": start}, coordinates=2)
    assert set(prompt.state_dict()) == {"tokens.clip_l", "slopes.clip_l"}
    prompt.tokens["clip_l"].data += 1
    assert torch.equal(prompt.tensors()["fair.soft_neutral.clip_l"], start)
    assert set(SoftPrompt({"clip_l": start}).tensors()) == {"fair.soft.clip_l", "fair.soft_neutral.clip_l"}


def test_tensors_round_trip() -> None:
    tensors = random_prompt().tensors()
    again = SoftPrompt.from_tensors(tensors, torch.float64).tensors()
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)


def test_training_begins_at_tokens_of_the_vocabulary() -> None:
    encoder = text_encoder()
    table = encoder.get_input_embeddings().weight
    comma = tokenizer()(",", add_special_tokens=False).input_ids
    assert torch.equal(initial_tokens(encoder, tokenizer(), 5), table[comma * 5])
    two = tokenizer()("portrait photo", add_special_tokens=False).input_ids
    assert torch.equal(initial_tokens(encoder, tokenizer(), 3, "portrait photo"), table[[*two, two[0]]])
    draws = [
        initial_tokens(encoder, tokenizer(), 5, None, torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert all((table == row).all(dim=1).any() for row in draws[0])
    with pytest.raises(FairAdapterError, match="expected one or more words"):
        initial_tokens(encoder, tokenizer(), 5, "")


def test_more_tokens_than_a_prompt_holds_are_refused() -> None:
    assert prompt_ids(tokenizer(), ["a cat"], 75)[0, -1] == END
    with pytest.raises(FairAdapterError, match="0 to 75 tokens, found 76"):
        prompt_ids(tokenizer(), ["a cat"], 76)
