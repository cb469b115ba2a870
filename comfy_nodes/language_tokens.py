"""Soft tokens in the chat template of a language model: where the user's words begin.

ComfyUI puts such prompts into a template. An `embedding:` behind its newline eats that newline, and with it
those behind the prompt (`SDTokenizer`, ComfyUI 0.3.75), so that what was trained would not be what is drawn:
the rows are put among the tokens themselves. That also works in releases whose tokenizers of these encoders
know no embeddings yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

NAMES = ("qwen3_4b", "qwen3vl_4b")  # of Z-Image and Krea 2; the tokenizer's keys and its parts alike
OPENING = "<|im_start|>user\n"
Chunks = list[list[Any]]


def opening(tokenizer: Any, name: str) -> list[int]:
    """Token ids that stand before the user's words.  tokenizer: ComfyUI's, with a part of that name."""
    return list(getattr(tokenizer, name).tokenizer(OPENING)["input_ids"])


def put_in(chunks: Chunks, rows: Sequence[Tensor], before: Sequence[int]) -> Chunks | None:
    """The chunks with rows (d,) behind the first of these token ids; None where they do not stand there.

    Entries are (token, weight) or (token, weight, word); rows get weight 1 and the word before them.
    """
    for number, chunk in enumerate(chunks):
        ids = [entry[0] if isinstance(entry[0], int) else None for entry in chunk]
        for start in range(len(ids) - len(before) + 1):
            place = start + len(before)
            if ids[start:place] == list(before):
                new = [(row, 1.0, *chunk[place - 1][2:]) for row in rows]
                return [*chunks[:number], [*chunk[:place], *new, *chunk[place:]], *chunks[number + 1 :]]
    return None
