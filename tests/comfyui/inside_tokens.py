"""Soft tokens against `embedding:NAME` at the beginning of the same texts, chunk by chunk."""

from pathlib import Path
from typing import Any

import safetensors.torch
import torch

PHRASE = "a photo of the face of a nurse, "
TEXTS = (  # {} is the name of another embedding; a chunk holds 75 tokens
    "",
    "a nurse",
    "(a nurse:1.3), [smiling] in ((soft)) light",
    "a nurse embedding:{} smiling",
    PHRASE * 30,
    PHRASE * 30 + " (very:1.2) old embedding:{}",
    "nurse " * 69,
    "nurse " * 70,
    "nurse " * 71,
    " ".join(f"(word:1.{i % 9 + 1})" for i in range(90)),
    "caf\u00e9\nwith  blanks \\(escaped\\)",
)


def soft_tokens(
    application: Any, tokenizer: Any, name: str, widths: dict[str, int], folder: Path
) -> dict[str, Any]:
    """Texts that our tokenizer and ComfyUI's own divide differently, and whether ours passes on the rest."""
    torch.manual_seed(1)
    soft = {encoder: torch.randn(5, width) for encoder, width in widths.items()}
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(soft, folder / f"{name}_soft.safetensors")
    safetensors.torch.save_file({e: 2 * t[:1] for e, t in soft.items()}, folder / f"{name}_other.safetensors")
    wrapped = application.SoftTokenizer(tokenizer, {application.ENCODERS[e]: t for e, t in soft.items()})
    wrong = []
    for text in (text.format(f"{name}_other") for text in TEXTS):
        for ids in (False, True):
            stock = tokenizer.tokenize_with_weights(f"embedding:{name}_soft {text}", ids)
            if not same(wrapped.tokenize_with_weights(text, ids), stock):
                wrong.append(text[:40])
    inner = f"clip_{application.ENCODERS[next(iter(widths))]}"
    return {
        "texts": len(TEXTS),
        "wrong": wrong,
        "passed_on": getattr(wrapped, inner) is getattr(tokenizer, inner),
    }


def same(mine: dict[str, Any], stock: dict[str, Any]) -> bool:
    return set(mine) == set(stock) and all(
        [len(chunk) for chunk in mine[key]] == [len(chunk) for chunk in stock[key]]
        and all(same_entry(*pair) for chunks in zip(mine[key], stock[key]) for pair in zip(*chunks))
        for key in mine
    )


def same_entry(mine: tuple[Any, ...], stock: tuple[Any, ...]) -> bool:
    """Token or embedding row, and weight; of the word ids only which are none, the rest is a numbering."""
    if torch.is_tensor(mine[0]) != torch.is_tensor(stock[0]) or mine[1] != stock[1]:
        return False
    equal = torch.equal(mine[0], stock[0]) if torch.is_tensor(mine[0]) else mine[0] == stock[0]
    return equal and [bool(word) for word in mine[2:]] == [bool(word) for word in stock[2:]]
