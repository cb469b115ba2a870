"""Soft tokens against `embedding:NAME` typed at the beginning of the same prompt, chunk by chunk."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_patcher
import comfy.sd
import safetensors.torch
import torch
from comfy.sd1_clip import SDTokenizer, expand_directory_list, load_embed
from comfy_extras.nodes_clip_sdxl import CLIPTextEncodeSDXL
from comfy_extras.nodes_cond import T5TokenizerOptions
from comfy_extras.nodes_sd3 import CLIPTextEncodeSD3
from nodes import CLIPTextEncode

PHRASE = "a photo of the face of a nurse, "
LONG = PHRASE * 30
FULL = "nurse " * 73  # a chunk that has no room for soft tokens
TEXTS = (  # {} is the name of another embedding; a chunk holds 75 tokens
    "",
    "a nurse",
    "(a nurse:1.3), [smiling] in ((soft)) light",
    "a nurse embedding:{} smiling",
    LONG,
    LONG + " (very:1.2) old embedding:{}",
    "nurse " * 69,
    "nurse " * 70,
    "nurse " * 71,
    " ".join(f"(word:1.{i % 9 + 1})" for i in range(90)),
    "caf\u00e9\nwith  blanks \\(escaped\\)",
)
PARTS = (("a nurse", "a street"), (FULL, FULL, "a street"), ("", LONG), (LONG, ""), ("a", "b", FULL, "c"))
Run = Callable[[Any, str], None]  # a node: CLIP, what the prompt begins with


class Recorder(torch.nn.Module):
    """A text encoder that keeps what it was asked to encode."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
        self.seen: list[dict[str, Any]] = []

    def encode_token_weights(self, tokens: Any) -> tuple[torch.Tensor, torch.Tensor]:
        self.seen.append(tokens)
        return torch.zeros(1, 1, 1), torch.zeros(1, 1)

    def reset_clip_options(self) -> None:
        return

    def set_clip_options(self, options: dict[str, Any]) -> None:
        return


def clip_of(tokenizer: Any) -> Any:
    """ComfyUI's CLIP around a tokenizer and an encoder without weights."""
    clip = comfy.sd.CLIP(no_init=True)
    clip.cond_stage_model = Recorder()
    cpu = torch.device("cpu")
    clip.patcher = comfy.model_patcher.ModelPatcher(
        clip.cond_stage_model, load_device=cpu, offload_device=cpu
    )
    clip.tokenizer, clip.layer_idx, clip.tokenizer_options = tokenizer, None, {}
    clip.use_clip_schedule, clip.apply_hooks_to_conds = False, None
    return clip


def soft_tokens(ours: Any, tokenizer: Any, name: str, widths: dict[str, int], folder: Path) -> dict[str, Any]:
    """What our CLIP and ComfyUI's own, with the embedding typed, divide differently.

    ours: the module.  widths: part of the tokenizer -> width of its tokens.
    """
    torch.manual_seed(1)
    soft = {part: torch.randn(5, width) for part, width in widths.items()}
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(soft, folder / f"{name}_soft.safetensors")
    safetensors.torch.save_file({e: 2 * t[:1] for e, t in soft.items()}, folder / f"{name}_other.safetensors")
    stock = clip_of(tokenizer)
    mine = ours.add(stock, soft, name, False, False)
    wrong = []
    for text in (text.format(f"{name}_other") for text in TEXTS):
        for ids in (False, True):
            typed = stock.tokenize(f"embedding:{name}_soft {text}", ids)
            if not same(mine.tokenize(text, ids), typed):
                wrong.append(text[:40])
    nodes = composing(widths)
    for title, node in nodes.items():
        seen = stock.cond_stage_model.seen = []
        node(stock, f"embedding:{name}_soft ")
        typed = seen.copy()
        seen.clear()
        node(mine, "")
        if not seen or len(seen) != len(typed) or not all(map(same, seen, typed)):
            wrong.append(title)
    return {
        "texts": len(TEXTS),
        "nodes": len(nodes),
        "wrong": wrong,
        "typed": typed_with_marks(stock, f"embedding:{name}_soft"),
        "looked_into": looked_into(mine, stock, soft),
    }


def typed_with_marks(clip: Any, typed: str) -> dict[str, str]:
    """What ComfyUI itself makes of an embedding's name with a mark directly behind it."""
    marks = (",", ".", ";", ":", "!", ")")
    apart = {mark: f"{typed} {mark} a nurse" for mark in marks}
    told = {}
    for mark in marks:
        found = clip.tokenize(f"{typed}{mark} a nurse")
        told[mark] = "ignored" if same(found, clip.tokenize("a nurse")) else "other"
        told[mark] = "read" if same(found, clip.tokenize(apart[mark])) else told[mark]
    return told


# ---- prompts of several texts


def composing(widths: dict[str, int]) -> dict[str, Run]:
    """Nodes that put a prompt together: ComfyUI's own, and such as packs have."""
    nodes: dict[str, Run] = {"encode": lambda clip, begin: CLIPTextEncode().encode(clip, f"{begin}a nurse")}
    for way in (extended, added, appended, listed):
        for index, parts in enumerate(PARTS):
            nodes[f"{way.__name__} {index}"] = partial(broken, way=way, parts=parts)
    pairs = (("short", LONG), (LONG, "short"), ("", FULL), (LONG, ""), ("", ""))
    for index, (one, other) in enumerate(pairs):
        if "clip_g" in widths:
            nodes[f"SDXL {index}"] = partial(sdxl, one=one, other=other)
        if "t5xxl" in widths:
            nodes[f"SD3 {index}"] = partial(sd3, one=one, other=other)
    if "t5xxl" in widths:
        for padding, length in ((0, 0), (3, 0), (0, 150), (9, 40)):
            nodes[f"T5 {padding} {length}"] = partial(t5, padding=padding, length=length)
    return nodes


def sdxl(clip: Any, begin: str, one: str, other: str) -> None:
    CLIPTextEncodeSDXL.execute(clip, 8, 8, 0, 0, 8, 8, text_g=begin + one, text_l=begin + other)


def sd3(clip: Any, begin: str, one: str, other: str) -> None:
    for padding in ("none", "empty_prompt"):
        if padding == "none" and not (one and other):
            continue  # an empty text is left out there, and one with an embedding is not empty
        CLIPTextEncodeSD3.execute(clip, begin + one, begin + other, f"{begin}{one} {other}", padding)


def t5(clip: Any, begin: str, padding: int, length: int) -> None:
    (clip,) = T5TokenizerOptions.execute(clip, padding, length).result
    CLIPTextEncode().encode(clip, f"{begin}a nurse")


def broken(clip: Any, begin: str, way: Callable[[list[Any]], Any], parts: tuple[str, ...]) -> None:
    """A node with BREAK: the parts are tokenised one by one and encoded together."""
    texts = [begin + parts[0], *parts[1:]]
    clip.encode_from_tokens_scheduled(way([clip.tokenize(text) for text in texts]))


def extended(parts: list[Any]) -> Any:
    for part in parts[1:]:
        for key, chunks in part.items():
            parts[0][key].extend(chunks)
    return parts[0]


def added(parts: list[Any]) -> Any:
    tokens = parts[0]
    for part in parts[1:]:
        tokens = {key: chunks + part[key] for key, chunks in tokens.items()}
    return tokens


def appended(parts: list[Any]) -> Any:
    tokens: dict[str, list[Any]] = {}
    for part in parts:
        for key, chunks in part.items():
            for chunk in chunks:
                tokens.setdefault(key, []).append(chunk)
    return tokens


def listed(parts: list[Any]) -> Any:
    return {key: [chunk for part in parts for chunk in part[key]] for key in parts[0]}


# ---- packs that look into the tokenizer


def looked_into(mine: Any, stock: Any, soft: dict[str, torch.Tensor]) -> dict[str, bool]:
    """What packs rely on."""
    ours, theirs = vars(mine.tokenizer), vars(stock.tokenizer)
    parts = {key: part for key, part in ours.items() if isinstance(part, SDTokenizer)}
    kinds = isinstance(mine.tokenizer, type(stock.tokenizer)) and isinstance(mine, type(stock))
    attributes = all(
        vars(part)[key] is value
        for name, part in parts.items()
        for key, value in vars(theirs[name]).items()
        if key != "embedding_directory"
    )
    word = all(
        part.tokenize_with_weights("nurse") == theirs[key].tokenize_with_weights("nurse")
        for key, part in parts.items()
    )
    files = all(embedding_on_disk(part, soft[name]) for name, part in parts.items() if name in soft)
    return {
        "kinds": kinds and set(theirs) <= set(ours),
        "parts": set(parts) == {key for key, part in theirs.items() if isinstance(part, SDTokenizer)},
        "attributes": attributes,
        "a part by itself adds nothing": word,
        "files": files,
        "in its place": in_its_place(mine, soft),
        "cloned": cloned(mine, stock),
    }


def embedding_on_disk(part: Any, rows: torch.Tensor) -> bool:
    """For packs that walk the folders of embeddings and read the files themselves."""
    folders = expand_directory_list(part.embedding_directory)
    names = [p.stem for folder in folders for p in Path(folder).glob("fair_adapter_*.safetensors")]
    found = (load_embed(n, part.embedding_directory, part.embedding_size, part.embedding_key) for n in names)
    return any(embed.shape == rows.shape and torch.equal(embed, rows) for embed in found)


def in_its_place(clip: Any, soft: dict[str, torch.Tensor]) -> bool:
    """A pack puts a method of its own in the place of a part's, and takes it away again."""
    asked: list[str] = []

    def own(part: Any, text: str, return_word_ids: bool = False, **_: Any) -> list[Any]:
        asked.append(text)
        name = text.split()[0].removeprefix("embedding:")
        rows, rest = part._try_get_embedding(name)
        return [[*((row, 1.0) for row in rows), rest]]

    parts = {name: getattr(clip.tokenizer, name) for name in soft}
    for part in parts.values():
        part.tokenize_with_weights = partial(own, part)
    try:
        tokens = clip.tokenize("a nurse")
    finally:
        for part in parts.values():
            del part.tokenize_with_weights
    seen = all(
        torch.equal(torch.stack([entry[0] for entry in tokens[name.removeprefix("clip_")][0][:5]]), rows)
        for name, rows in soft.items()
    )
    again = clip.tokenize("a nurse")
    return (
        seen
        and len(asked) == len(soft)
        and all(torch.is_tensor(chunks[0][1][0]) for chunks in again.values())
    )


def cloned(mine: Any, stock: Any) -> bool:
    """Nodes between ours and the prompt work on copies; the CLIP that came in is as it was."""
    copy = mine.clone().clone()
    copy.clip_layer(-2)
    broken(copy, "", listed, ("a", "b"))
    chunks = next(iter(copy.cond_stage_model.seen[-1].values()))
    begun = [any(torch.is_tensor(entry[0]) for entry in chunk) for chunk in chunks]
    plain = stock.tokenize("a nurse")
    kept = not any(torch.is_tensor(e[0]) for chunks in plain.values() for chunk in chunks for e in chunk)
    return begun == [True, False] and type(copy) is type(mine) and kept


def same(mine: dict[str, Any], stock: dict[str, Any]) -> bool:
    return set(mine) == set(stock) and all(
        [len(chunk) for chunk in mine[key]] == [len(chunk) for chunk in stock[key]]
        and all(same_entry(*pair) for chunks in zip(mine[key], stock[key]) for pair in zip(*chunks))
        for key in mine
    )


def same_entry(mine: tuple[Any, ...], stock: tuple[Any, ...]) -> bool:
    """Token or embedding row, weight and word."""
    if torch.is_tensor(mine[0]) != torch.is_tensor(stock[0]) or mine[1:] != stock[1:]:
        return False
    return torch.equal(mine[0], stock[0]) if torch.is_tensor(mine[0]) else mine[0] == stock[0]
