"""Soft tokens in a CLIP: what `embedding:NAME` at the beginning of a prompt does, typed by nobody.

ComfyUI's own tokenizer lays them out: the copy of a CLIP's tokenizer puts the name of an embedding before
every text, and the copies of its parts (`clip_l`, `clip_g`, ...) know what that name stands for. Padding,
options, weights and the division into chunks are thereby ComfyUI's, of whatever release. Each copy is of a
subclass, so that nodes which look into a tokenizer find every attribute and type that they look for. A part
that is called by itself, to look a word up, adds nothing.

Nodes put prompts together from several texts: SDXL's and SD3's encode nodes fill the shorter prompt up with
the empty text, packs tokenise the parts around BREAK one by one. Soft tokens belong before the whole: the
chunks of one text (`Prompt`), joined to another's, become what they would be without them, and what was put
together chunk by chunk is set right when it is encoded.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import uuid
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import folder_paths
import torch
from torch import Tensor

from ..shared.errors import FairAdapterError
from ..shared.tensor_file import serialise, write_bytes
from . import host, language_tokens, windows

PARTS = {  # the tokenizer's keys -> its parts
    **{"l": "clip_l", "g": "clip_g", "h": "clip_h", "t5xxl": "t5xxl"},
    **{name: name for name in language_tokens.NAMES},
}
KEPT = "fair_adapter_soft_tokens"  # our attribute on the copies
_log = logging.getLogger("fair_adapter")
_NO_RANGES = (
    "Fair Adapter: this node encodes for all of the sampling: 'start', 'end' and the network's LoRA are "
    "left out; encode with CLIP Text Encode"
)
Chunks = list[list[Any]]


class EmbeddingFile:
    """The tokens as an embedding in ComfyUI's temporary folder, for packs that read the files themselves.

    Lives as long as the object. Where it can't be written, only those packs go without.
    """

    def __init__(self, name: str, rows: Mapping[str, Tensor]) -> None:
        self.folder = Path(folder_paths.get_temp_directory()) / "fair_adapter"
        path = self.folder / f"{name}.safetensors"
        with contextlib.suppress(FairAdapterError):
            write_bytes(path, serialise(dict(rows), {}))
        weakref.finalize(self, _remove, path)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


@dataclass(frozen=True, eq=False)
class SoftTokens:
    """The soft tokens of one adapter in a CLIP.

    adapter: its name.  rows: part ("clip_l", ...) -> (n, d).  name: of the embedding that stands for them.
    here: whether this CLIP's prompts begin with them.  negative: whether the negative prompt's do.
    lora: whether the adapter has a LoRA too.
    """

    adapter: str
    rows: Mapping[str, Tensor]
    name: str
    file: EmbeddingFile
    negative: bool
    lora: bool
    here: bool = True


def add(clip: Any, rows: Mapping[str, Tensor], adapter: str, negative: bool, lora: bool) -> Any:
    """A copy of the CLIP whose prompts begin with soft tokens, before those that it has already.

    rows, adapter, negative, lora: as in `SoftTokens`.
    """
    name = f"fair_adapter_{uuid.uuid4().hex[:12]}"
    rows = {part: value.detach().cpu().contiguous() for part, value in rows.items()}
    new = SoftTokens(adapter, rows, name, EmbeddingFile(name, rows), negative, lora)
    return _with(clip, (new, *known(clip)))


def for_negative(clip: Any) -> Any:
    """The CLIP for the negative prompt: without the tokens that belong to the positive one alone.

    The same CLIP where there are none.
    """
    tokens = known(clip)
    if all(each.negative or not each.here for each in tokens):
        return clip
    return _with(clip, tuple(replace(each, here=each.here and each.negative) for each in tokens))


def known(clip: Any) -> tuple[SoftTokens, ...]:
    """The soft tokens that a CLIP was given, also those that do not stand before this one's prompts."""
    return getattr(clip.tokenizer, KEPT, ())


def in_window(clip: Any, windowed: windows.Windowed) -> Any:
    """A copy of the CLIP in which this acts in a part of the sampling alone."""
    result = _with(clip, known(clip))
    windows.keep(result, (windowed, *windows.known(clip)))
    return result


def _with(clip: Any, tokens: tuple[SoftTokens, ...]) -> Any:
    result = clip.clone()
    result.__class__ = _clip(_plain(type(clip)))
    tokenizer = copy.copy(clip.tokenizer)
    tokenizer.__class__ = _tokenizer(_plain(type(tokenizer)))
    setattr(tokenizer, KEPT, tokens)
    for part in PARTS.values():
        if hasattr(tokenizer, part) and part not in language_tokens.NAMES:
            setattr(tokenizer, part, _part_with(getattr(tokenizer, part), part, tokens))
    result.tokenizer = tokenizer
    return result


def _part_with(part: Any, name: str, tokens: tuple[SoftTokens, ...]) -> Any:
    result = copy.copy(part)
    result.__class__ = _part(_plain(type(part)))
    setattr(result, KEPT, {each.name: each.rows.get(name) for each in tokens})
    folders = part.embedding_directory or []
    folders = [folders] if isinstance(folders, str) else list(folders)
    own = {str(each.file.folder) for each in tokens}
    result.embedding_directory = [*folders, *sorted(own - {str(folder) for folder in folders})]
    return result


# ---- the copies' classes, which are called what they are copies of


def _plain(kind: type) -> type:
    """The class without ours."""
    return kind.__dict__.get("fair_adapter_of", kind)


def _named(kind: type, of: type) -> type:
    kind.__name__, kind.__qualname__, kind.__module__ = of.__name__, of.__qualname__, of.__module__
    kind.fair_adapter_of = of  # type: ignore[attr-defined]
    return kind


@cache
def _clip(of: type) -> type:
    class Clip(of):
        def clone(self, *arguments: Any, **options: Any) -> Any:
            result = super().clone(*arguments, **options)
            result.__class__ = type(self)
            windows.keep(result, windows.known(self))
            return result

        def encode_from_tokens(self, tokens: Any, *arguments: Any, **options: Any) -> Any:
            if windows.known(self):
                host.warn_on_running_node(_NO_RANGES)
            return super().encode_from_tokens(once(tokens), *arguments, **options)

        def encode_from_tokens_scheduled(self, tokens: Any, *arguments: Any, **options: Any) -> Any:
            encode = super().encode_from_tokens_scheduled
            if not windows.known(self):
                return encode(once(tokens), *arguments, **options)
            return windows.scheduled(
                self,
                once(tokens),
                without,
                lambda clip, part: clip.encode_from_tokens_scheduled(part, *arguments, **options),
            )

    return _named(Clip, of)


@cache
def _tokenizer(of: type) -> type:
    class Tokenizer(of):
        def tokenize_with_weights(self, text: Any, return_word_ids: bool = False, **options: Any) -> Any:
            tokens = [each for each in getattr(self, KEPT, ()) if each.here]
            tokenize = super().tokenize_with_weights
            if not tokens:
                return tokenize(text, return_word_ids, **options)
            if any(hasattr(self, name) for name in language_tokens.NAMES):
                return _in_template(self, tokens, lambda: tokenize(text, return_word_ids, **options))
            names = tuple(each.name for each in tokens)

            def lay(kept: Sequence[str]) -> Any:
                begin = "".join(f"embedding:{name} " for name in kept)
                begun = [begin + one for one in text] if isinstance(text, list) else begin + text
                return tokenize(begun, return_word_ids, **options)

            result = lay(names)
            for key, chunks in result.items():
                if any(PARTS.get(key) in each.rows for each in tokens) and _ordinary(chunks):
                    _expect_tokens(chunks, tokens[0].adapter)
                    result[key] = Prompt(chunks, names, lambda kept, key=key: lay(kept)[key])
            return result

        def state_dict(self, *arguments: Any, **options: Any) -> Any:
            """Called where a checkpoint or a text encoder is saved."""
            for each in getattr(self, KEPT, ()):
                host.warn_on_running_node(_not_saved(each))
            return super().state_dict(*arguments, **options)

    return _named(Tokenizer, of)


def _in_template(tokenizer: Any, tokens: Sequence[SoftTokens], plain: Callable[[], Any]) -> Any:
    """The tokens of a prompt in a chat template, with soft tokens where the user's words begin."""

    def lay(key: str, kept: Sequence[str]) -> Any:
        rows = [row for each in tokens if each.name in kept for row in each.rows.get(key, ())]
        chunks = plain()[key]
        return (
            language_tokens.put_in(chunks, rows, language_tokens.opening(tokenizer, key)) if rows else chunks
        )

    result = plain()
    for key in result:
        if key not in language_tokens.NAMES or not any(key in each.rows for each in tokens):
            continue
        begun = lay(key, [each.name for each in tokens])
        if begun is None:
            _log.warning(
                "Fair Adapter: %s: found no %r in this prompt's template, so no soft tokens; use CLIP Text "
                "Encode",
                tokens[0].adapter,
                language_tokens.OPENING,
            )
        else:
            result[key] = Prompt(begun, [each.name for each in tokens], partial(lay, key))
    return result


@cache
def _part(of: type) -> type:
    class Part(of):
        def _try_get_embedding(self, embedding_name: str) -> Any:
            name, *rest = embedding_name.split() or [""]
            tokens = getattr(self, KEPT, {})
            if name not in tokens:
                return super()._try_get_embedding(embedding_name)
            rows = tokens[name]  # None where the adapter has tokens for other encoders alone
            return torch.empty(0, self.embedding_size) if rows is None else rows, " ".join(rest)

    return _named(Part, of)


def _not_saved(tokens: SoftTokens) -> str:
    count = ", ".join(f"{len(rows)} in {part}" for part, rows in tokens.rows.items())
    held = "the LoRA of" if tokens.lora else "nothing of"
    return (
        f"Fair Adapter: the saved file holds {held} {tokens.adapter} and not its soft tokens ({count}): they "
        "have no place in weights; write them with Export Adapter and begin the prompt with embedding:NAME"
    )


def _ordinary(chunks: object) -> bool:
    """Whether these are ComfyUI's chunks, lists of (token, weight, ...): a pack may have its own form."""
    return isinstance(chunks, list) and all(
        isinstance(chunk, list) and all(isinstance(entry, tuple) for entry in chunk) for chunk in chunks
    )


def _expect_tokens(chunks: Chunks, adapter: str) -> None:
    if not any(torch.is_tensor(entry[0]) for chunk in chunks for entry in chunk):
        _log.warning(
            "Fair Adapter: %s: the node that encodes this prompt knows no embeddings, so no soft tokens; use "
            "CLIP Text Encode",
            adapter,
        )


# ---- prompts that are put together from several texts


class Chunk(list[Any]):
    """One chunk of a text that begins with soft tokens.  of: the text.  place: of the chunk in it."""

    def __init__(self, entries: Sequence[Any], of: Prompt, place: int) -> None:
        super().__init__(entries)
        self.of, self.place = of, place


class Prompt(list[Any]):
    """The chunks of a text that begins with soft tokens.

    names: of their embeddings.  lay: gives the chunks of the text that begins with some of them.
    Joined to another's, those without are taken.
    """

    def __init__(self, chunks: Chunks, names: Sequence[str], lay: Callable[[Sequence[str]], Chunks]) -> None:
        super().__init__(Chunk(chunk, self, place) for place, chunk in enumerate(chunks))
        self.names, self.lay, self.own = names, lay, len(chunks)

    def plain(self) -> Chunks:
        """The chunks of the text alone."""
        return self.lay(())

    def extend(self, other: Any) -> None:
        super().extend(other.plain() if isinstance(other, Prompt) else other)

    def __iadd__(self, other: Any) -> Prompt:  # type: ignore[misc]
        self.extend(other)
        return self

    def __add__(self, other: Any) -> list[Any]:  # type: ignore[override]
        return [*self, *(other.plain() if isinstance(other, Prompt) else other)]


def once(tokens: Any) -> Any:
    """The prompt with the soft tokens of its first text alone.

    tokens: key ("l", "g", ...) -> chunks. Those of later texts, or of the same once more, become what they
    would be without soft tokens.
    """
    if not isinstance(tokens, dict):
        return tokens
    return {key: _once(chunks) if isinstance(chunks, list) else chunks for key, chunks in tokens.items()}


def _once(chunks: Chunks) -> Chunks:
    first, last, result = None, -1, []
    for chunk in chunks:
        if not isinstance(chunk, Chunk):
            result.append(chunk)
        elif first is None or (chunk.of is first and chunk.place > last):
            first, last = chunk.of, chunk.place
            result.append(chunk)
        else:
            result += chunk.of.plain()[chunk.place : chunk.place + 1]
    return result


def without(tokens: Any, names: set[str]) -> Any:
    """A prompt (see `once`) without the soft tokens of these embeddings."""
    if not isinstance(tokens, dict) or not names:
        return tokens
    return {
        key: _without(chunks, names) if isinstance(chunks, list) else chunks for key, chunks in tokens.items()
    }


def _without(chunks: Chunks, names: set[str]) -> Chunks:
    result: Chunks = []
    for chunk in chunks:
        if not isinstance(chunk, Chunk):
            result.append(chunk)
            continue
        laid = chunk.of.lay([name for name in chunk.of.names if name not in names])
        last = chunk.place + 1 == chunk.of.own  # whose words may have needed a chunk more than they do now
        result += laid[chunk.place :] if last else laid[chunk.place : chunk.place + 1]
    return result
