"""The adapter files that a host offers: the user's own folder and the shipped ones.

A name is the path of a file below its folder, with "/" between folders, so that a name from the network can
be checked: it must lie inside one of the folders. Of files with one name the first folder's wins.
"""

from __future__ import annotations

import difflib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path, PurePosixPath
from typing import Any

from .adapter import FairnessAdapter
from .attributes import Attribute
from .errors import FairAdapterError

SHIPPED = Path(__file__).resolve().parent / "adapters"
SUFFIX = ".safetensors"
KEPT = 2  # adapters; an SDXL LoRA takes hundreds of megabytes
_LISTED = 12  # names in an error message


@dataclass(frozen=True)
class AdapterSummary:
    """What a list shows of one file.

    error: why it can't be used; then everything but `name` and `size` is empty.
    trained_range: {"gender": {"female": (.1, .9)}}.  evaluation: as stored by the trainer.
    tokens: soft tokens for each text encoder.  layers: layers with a LoRA.  size: bytes.
    """

    name: str
    size: int
    error: str = ""
    title: str = ""
    description: str = ""
    base: str = ""
    architecture: str = ""
    attributes: tuple[Attribute, ...] = ()
    target: str = ""
    conditioned: bool = False
    trained_range: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    kind: str = ""
    tokens: int = 0
    layers: int = 0
    licence: str = ""
    author: str = ""
    created: str = ""
    evaluation: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        table = {k: v for k, v in self.__dict__.items() if k != "attributes"}
        return {**table, "attributes": {a.name: list(a.classes) for a in self.attributes}}


class AdapterLibrary:
    """Folders of adapter files; the first is the user's. Folders that don't exist are empty.

    The last adapters and all summaries are kept until their file changes; safe to use from several threads.
    """

    def __init__(self, folders: Sequence[Path | str] = (SHIPPED,)) -> None:
        self.folders = tuple(Path(folder) for folder in folders)
        self._adapters: dict[Path, tuple[tuple[int, int], FairnessAdapter]] = {}
        self._summaries: dict[Path, tuple[tuple[int, int], AdapterSummary]] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """All names, the user's before the shipped, each in alphabetical order."""
        found: dict[str, None] = {}
        for folder in self.folders:
            # glob and not rglob, which leaves linked folders out
            paths = (Path(name) for name in glob(f"**/*{SUFFIX}", root_dir=folder, recursive=True))
            found |= dict.fromkeys(sorted(p.as_posix() for p in paths if (folder / p).is_file()))
        return list(found)

    def path(self, name: str) -> Path:
        """The file of a name; its ending may be left out.

        Raises FairAdapterError for a name that leaves the folders or that none of them has.
        """
        plain = PurePosixPath(name.replace("\\", "/"))
        if not name.strip() or "\0" in name or plain.is_absolute() or ".." in plain.parts or ":" in name:
            raise FairAdapterError(
                f"adapter {name[:100]!r}: expected a file name below the adapter folder; {self._choice()}"
            )
        for candidate in (plain, PurePosixPath(f"{plain}{SUFFIX}")):
            for folder in self.folders:
                path = folder / candidate
                if candidate.suffix == SUFFIX and path.is_file():
                    return path
        stems = {other.removesuffix(SUFFIX): other for other in self.names()}
        near = difflib.get_close_matches(name.removesuffix(SUFFIX), stems, n=1)
        hint = f"did you mean {stems[near[0]]!r}?" if near else self._choice()
        raise FairAdapterError(
            f"adapter {name[:100]!r}: expected one of the adapter files, found none; {hint}"
        )

    def load(self, name: str) -> FairnessAdapter:
        """The adapter of a name. Raises FairAdapterError as `path` and as FairnessAdapter.read."""
        path = self.path(name)
        version = _version(path)
        with self._lock:
            kept = self._adapters.pop(path, None)
            if kept is None or kept[0] != version:
                kept = (version, FairnessAdapter.read(path))
            self._adapters[path] = kept  # the last used stands last
            while len(self._adapters) > KEPT:
                del self._adapters[next(iter(self._adapters))]
            return kept[1]

    def summary(self, name: str) -> AdapterSummary:
        """What a list shows; a damaged file gives one with `error`. Raises FairAdapterError as `path`."""
        path = self.path(name)
        version = _version(path)
        kept = self._summaries.get(path)
        if kept is not None and kept[0] == version:
            return kept[1]
        try:  # read and let go: a list of many files must not fill the memory
            summary = _summarise(name, version[1], FairnessAdapter.read(path))
        except FairAdapterError as error:
            summary = AdapterSummary(name, version[1], error=str(error))
        self._summaries[path] = (version, summary)
        return summary

    def _choice(self) -> str:
        names = self.names()
        if not names:
            return f"put a .safetensors file into {self.folders[0]}" if self.folders else "there is no folder"
        rest = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        return f"there are {', '.join(names[:_LISTED])}{rest}"


def _version(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise FairAdapterError(f"{path}: can't be read ({error.strerror}); check the file") from error
    return status.st_mtime_ns, status.st_size


def _summarise(name: str, size: int, adapter: FairnessAdapter) -> AdapterSummary:
    info = adapter.info
    trained = {n: {c: (low, high) for c, (low, high) in t.items()} for n, t in info.targets.trained.items()}
    tokens = len(adapter.tensors[f"fair.soft.{adapter.encoders[0]}"]) if adapter.encoders else 0
    parts = [f"{tokens} soft tokens"] if tokens else []
    sides = {"lora_te": "text encoder", "lora_unet": "U-Net"}
    loras = [
        side for start, side in sides.items() if any(layer.startswith(start) for layer in adapter.layers)
    ]
    parts += [f"LoRA of {' and '.join(loras)} ({len(adapter.layers)} layers)"] if loras else []
    return AdapterSummary(
        name=name,
        size=size,
        title=info.name,
        description=info.description,
        base=info.base.name,
        architecture=info.base.architecture,
        attributes=info.targets.attributes,
        target=info.targets.default.to_text(),
        conditioned=adapter.conditioned,
        trained_range=trained,
        kind=" + ".join(parts),
        tokens=tokens,
        layers=len(adapter.layers),
        licence=info.licence,
        author=info.author,
        created=info.created,
        evaluation=dict(info.evaluation),
    )
