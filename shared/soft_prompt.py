"""Soft prompt: n trained token embeddings directly after the start token, before the user's words.

    P(t) = P_0 + sum_k t_k P_k

with t the target coordinates (`adapter_target.TargetSpace`), zero at the adapter's default target: P_0 is
what a textual-inversion file at the default target holds. A fixed soft prompt has no P_k.

The encoding is the hosts' own: 77 positions, no attention mask, [start, n tokens, words, end, padding], words
cut so that the end token stays. The text encoder sees placeholder ids and a hook on its token embedding (a
public module of every version of transformers) puts the vectors there: positions, the causal mask and the
pooled output, which is read at the end token, are those of any prompt, and nothing of the encoder is changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .errors import FairAdapterError

TOKENS = 5
PLACEHOLDER = 0  # an ordinary word of CLIP's vocabulary ("!"), never its end token
INITIAL_WORDS = ","


class SoftPrompt(nn.Module):
    """Trainable soft tokens for one or several text encoders.

    initial: encoder ("clip_l", "clip_g", ...) -> (n, d), where training begins.
    coordinates: K, the number of target coordinates; 0 for a fixed soft prompt.
    slopes: encoder -> (K, n, d), the P_k; zero unless given.
    neutral: encoder -> (n, d), what strength 0 would tend to; `initial` unless given.
    """

    def __init__(
        self,
        initial: Mapping[str, Tensor],
        coordinates: int = 0,
        slopes: Mapping[str, Tensor] | None = None,
        neutral: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        if slopes is None and coordinates:
            slopes = {name: value.new_zeros(coordinates, *value.shape) for name, value in initial.items()}
        self.tokens = nn.ParameterDict({k: nn.Parameter(v.detach().clone()) for k, v in initial.items()})
        self.slopes = nn.ParameterDict(
            {k: nn.Parameter(v.detach().clone()) for k, v in (slopes or {}).items()}
        )
        for name, value in (initial if neutral is None else neutral).items():
            # Not in the state dict: a moving average of a constant is not quite that constant.
            self.register_buffer(f"neutral_{name}", value.detach().clone(), persistent=False)

    @property
    def length(self) -> int:
        """n, the number of tokens."""
        return len(next(iter(self.tokens.values())))

    def forward(self, coordinates: Tensor | None = None) -> dict[str, Tensor]:
        """encoder -> (n, d) at a target.  coordinates: (K,) or (1, K); None is the default target."""
        if coordinates is None or not len(self.slopes):
            return dict(self.tokens.items())
        at = {}
        for name, value in self.tokens.items():
            t = coordinates.reshape(-1).to(value)
            at[name] = value + torch.einsum("k,knd->nd", t, self.slopes[name])
        return at

    def tensors(self) -> dict[str, Tensor]:
        """`fair.soft.*`, `fair.soft_target.*` and `fair.soft_neutral.*`, detached copies on the CPU."""
        tensors = {f"fair.soft.{name}": value for name, value in self.tokens.items()}
        tensors |= {f"fair.soft_target.{name}": value for name, value in self.slopes.items()}
        tensors |= {f"fair.soft_neutral.{name}": getattr(self, f"neutral_{name}") for name in self.tokens}
        return {key: value.detach().to("cpu", copy=True) for key, value in tensors.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> SoftPrompt:
        """The reverse of `tensors`."""
        parts = [
            {
                key.removeprefix(prefix): value.to(dtype)
                for key, value in tensors.items()
                if key.startswith(prefix)
            }
            for prefix in ("fair.soft.", "fair.soft_target.", "fair.soft_neutral.")
        ]
        return cls(parts[0], slopes=parts[1], neutral=parts[2])


def initial_tokens(
    encoder: Any,
    tokenizer: Any,
    count: int = TOKENS,
    words: str | None = INITIAL_WORDS,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Where a soft prompt begins: `count` rows of the encoder's token embedding, (count, d).

    words: their tokens, repeated as often as needed; None draws tokens from the whole vocabulary, as the
        paper does. The default, commas, changes a prompt little and says nothing, so that a strength near
        zero is near the base model.
    Float32, or float64 where the encoder is.
    """
    table = encoder.get_input_embeddings().weight
    if words is None:
        ids = torch.randint(len(table), (count,), generator=generator).tolist()
    else:
        ids = tokenizer(words, add_special_tokens=False).input_ids
        if not ids:
            raise FairAdapterError(f"initial words {words!r}: expected one or more words, found none")
        ids = [ids[i % len(ids)] for i in range(count)]
    return table[ids].detach().to(torch.promote_types(table.dtype, torch.float32))


def prompt_ids(
    tokenizer: Any, prompts: Sequence[str], count: int = 0, total: int | None = None, first: int = 1
) -> Tensor:
    """(N, 77) token ids with `count` placeholders after the start token; the words' tail is cut to fit.

    total: positions, the tokenizer's own unless given.  first: of the placeholders; 0 for T5, which has no
    start token.
    """
    ids, _ = masked_prompt_ids(
        tokenizer, prompts, int(tokenizer.model_max_length) if total is None else total, count, first
    )
    return ids


def masked_prompt_ids(
    tokenizer: Any, prompts: Sequence[str], total: int, count: int = 0, first: int = 1
) -> tuple[Tensor, Tensor]:
    """The ids of `prompt_ids` and their attention mask, (N, total) each: 0 on the padding."""
    if not 0 <= count <= total - 2:
        raise FairAdapterError(f"soft prompt: expected 0 to {total - 2} tokens, found {count}")
    words = tokenizer(
        list(prompts), padding="max_length", max_length=total - count, truncation=True, return_tensors="pt"
    )
    filled = []
    for rows, value in ((words.input_ids, PLACEHOLDER), (words.attention_mask, 1)):
        middle = torch.full((len(rows), count), value)
        filled.append(torch.cat([rows[:, :first], middle, rows[:, first:]], dim=1))
    return filled[0], filled[1]


@contextmanager
def spliced(encoder: Any, tokens: Tensor | None, first: int = 1) -> Iterator[None]:
    """Calls of the text encoder within take `tokens` (n, d) for the embeddings from position `first` on.

    The ids are those of `prompt_ids(..., count=n, first=first)`. None changes nothing.
    Raises FairAdapterError for tokens of another width, and if no call went through the token embedding.
    """
    if tokens is None:
        yield
        return
    table = encoder.get_input_embeddings()
    if tokens.ndim != 2 or tokens.shape[1] != table.weight.shape[1]:
        raise FairAdapterError(
            f"soft prompt: expected tokens of width {table.weight.shape[1]} for this text encoder, found "
            f"shape {tuple(tokens.shape)}; load the base model that it was trained on"
        )

    calls = 0

    def replace(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        rows = tokens.to(output).expand(len(output), *tokens.shape)
        return torch.cat([output[:, :first], rows, output[:, first + len(tokens) :]], dim=1)

    hook = table.register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()
    if not calls:
        raise FairAdapterError(
            f"soft prompt: {type(encoder).__name__} was not called, or looks tokens up elsewhere"
        )


def at_coordinates(
    tensors: Mapping[str, Tensor], coordinates: Tensor, strength: float = 1.0
) -> dict[str, Tensor]:
    """Plain soft tokens, encoder -> (n, d), at one target and strength.

    tensors: `fair.soft.*`, `fair.soft_target.*` and `fair.soft_neutral.*` of an adapter (the last two where
        there are any; the neutral embedding is zero without).
    coordinates: (K,), zero at the default target.
    strength: N + strength (P(t) - N) with N the neutral embedding. At the default target and strength 1 the
        stored tensor comes back, bit for bit; other results are float32 or more.
    """
    plain = {}
    for key, stored in tensors.items():
        name = key.removeprefix("fair.soft.")
        if name == key:
            continue
        value, wide = stored, torch.promote_types(stored.dtype, torch.float32)
        slope = tensors.get(f"fair.soft_target.{name}")
        if slope is not None and coordinates.any():
            value = value.to(wide) + torch.einsum("k,knd->nd", coordinates.to(wide), slope.to(wide))
        if strength != 1.0:
            neutral = tensors.get(f"fair.soft_neutral.{name}", torch.zeros_like(stored)).to(wide)
            value = neutral + strength * (value.to(wide) - neutral)
        plain[name] = value
    return plain
