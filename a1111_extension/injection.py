"""Soft tokens and LoRA on their way into a host: names, prompts, and the files that the host loads.

Every name carries a hash of the weights, `fair_0123456789ab`: another target or strength is another text,
so that no cache of the host (conditionings by prompt, networks by name) can serve the one before.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..shared.adapter import AdapterWeights, FairnessAdapter
from ..shared.adapter_export import embedding_file, lora_file
from ..shared.errors import FairAdapterError
from ..shared.tensor_file import write_bytes

FOLDER = "fair_adapters"  # below the host's folders of embeddings and LoRAs
NAME = re.compile(r"fair_[0-9a-f]{12}")
_OWN = re.compile(r"<lora:fair_[0-9a-f]{12}(?::[^>]*)?>[ \t]*|\bfair_[0-9a-f]{12}\b[ \t]*", re.IGNORECASE)
_PART = re.compile(r"(\bAND\b)")  # the hosts' composable prompts: each part is encoded by itself


@dataclass(frozen=True)
class NativeFiles:
    """What the host is told to use: name of the embedding and of the LoRA, None for a part that is missing.
    embedding_path: its file.  fresh: whether a file was written just now, so that the host must look."""

    token: str | None
    lora: str | None
    embedding_path: Path | None = None
    fresh: bool = False


def strip(text: str) -> str:
    """A prompt without our tokens and LoRAs; a prompt that has none comes back as it is."""
    return _OWN.sub("", text).strip() if _OWN.search(text) else text


def insert(text: str, words: str) -> str:
    """`words` before a prompt, and before each of its parts joined by AND; ours of before are replaced."""
    parts = _PART.split(strip(text))
    joined = [part if part == "AND" else f"{words} {part.strip()}".strip() for part in parts]
    return " ".join(joined)


def insert_each(prompts: Sequence[str], words: Sequence[str | None]) -> list[str]:
    """Each prompt with words of its own before it; None and "" leave it as it is."""
    own = (words[index % len(words)] for index in range(len(prompts)))
    return [insert(prompt, added) if added else prompt for prompt, added in zip(prompts, own)]


def visible_words(files: NativeFiles) -> str:
    """What "in the prompt" writes: the token, then the LoRA."""
    words = [files.token] if files.token else []
    return " ".join([*words, f"<lora:{files.lora}:1>"] if files.lora else words)


class NativeStore:
    """Writes adapters at a target as the files that hosts load, and keeps the `keep` used last."""

    def __init__(self, embeddings: Path, loras: Path, keep: int = 8) -> None:
        self.embeddings, self.loras, self.keep = embeddings / FOLDER, loras / FOLDER, max(1, keep)
        self._lock = threading.Lock()

    def materialise(
        self, adapter: FairnessAdapter, weights: AdapterWeights, needed: Collection[str] = ()
    ) -> NativeFiles:
        """Files for `adapter.at(...)`; a file that is there already is used again.

        needed: names of others that stay.
        Raises FairAdapterError if a folder can't be written to, and for more encoders than the host's
        embeddings know.
        """
        name = f"fair_{weights.content_hash}"
        fresh, embedding = False, None
        with self._lock:
            if weights.soft:
                embedding = self.embeddings / f"{name}.safetensors"
                fresh |= self._write(embedding, lambda: embedding_file(adapter, weights, name))
            if weights.lora:
                path = self.loras / f"{name}.safetensors"
                fresh |= self._write(path, lambda: lora_file(adapter, weights, name))
            if fresh:
                self._prune(self.embeddings, {name, *needed})
                self._prune(self.loras, {name, *needed})
        token, lora = (name if weights.soft else None), (name if weights.lora else None)
        return NativeFiles(token, lora, embedding, fresh)

    def _write(self, path: Path, content: Callable[[], bytes]) -> bool:
        try:
            if path.is_file():
                os.utime(path)  # used just now, see `_prune`
                return False
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FairAdapterError(
                f"{path.parent}: expected a folder that can be written to ({error.strerror}); free it"
            ) from error
        write_bytes(path, content(), overwrite=True)
        return True

    def _prune(self, folder: Path, kept: Collection[str]) -> None:
        """Remove our own files that were not used for longest; nothing else in the folder is touched."""
        own = [p for p in folder.glob("fair_*.safetensors") if NAME.fullmatch(p.stem) and p.stem not in kept]
        by_age = sorted(own, key=lambda p: p.stat().st_mtime_ns, reverse=True)
        for path in by_age[max(0, self.keep - len(kept)) :]:
            try:
                os.unlink(path)
            except OSError:
                continue  # the host has it open (Windows); the next call tries again
