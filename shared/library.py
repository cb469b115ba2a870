"""The adapter files that a host offers: the user's own folder and the shipped ones.

Lists read headers alone, and go on past a file that can't be read: it is shown with the reason. What is
inside the tensors is checked when the file is loaded; what is found wrong then stands in lists, too, until
the file changes.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .adapter import FairnessAdapter
from .adapter_layout import AdapterOutline, read_outline
from .attributes import Attribute
from .errors import FairAdapterError, one_line
from .folders import FileFolders, version

SHIPPED = Path(__file__).resolve().parent / "adapters"
SUFFIX = ".safetensors"
KEPT = 2  # adapters; an SDXL LoRA takes hundreds of megabytes
MAX_ERROR = 1000  # characters; file names take most of it


@dataclass(frozen=True)
class AdapterSummary:
    """What a list shows of one file.

    error: why it can't be used, one line; then everything but `name` and `size` is empty.
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


class AdapterLibrary(FileFolders):
    """Folders of adapter files; the first is the user's. Folders that don't exist are empty.

    The last adapters and all headers are kept until their file changes; safe to use from several threads.
    """

    def __init__(self, folders: Sequence[Path | str] = (SHIPPED,)) -> None:
        super().__init__(folders, SUFFIX, "adapter")
        self._adapters: dict[Path, tuple[tuple[int, int], FairnessAdapter]] = {}
        self._outlines: dict[Path, tuple[tuple[int, int], AdapterOutline | str]] = {}
        self._lock = threading.Lock()

    def load(self, name: str) -> FairnessAdapter:
        """The adapter of a name. Raises FairAdapterError as `path` and as FairnessAdapter.read."""
        path = self.path(name)
        now = version(path)
        with self._lock:
            kept = self._adapters.pop(path, None)
            if kept is None or kept[0] != now:
                try:
                    kept = (now, FairnessAdapter.read(path))
                except FairAdapterError as error:
                    self._remember(path, now, error)
                    raise
            self._adapters[path] = kept  # the last used stands last
            while len(self._adapters) > KEPT:
                del self._adapters[next(iter(self._adapters))]
            return kept[1]

    def outline(self, name: str) -> AdapterOutline:
        """What the header of a file tells. Raises FairAdapterError as `path`, and as `read_outline`."""
        path = self.path(name)
        now = version(path)
        kept = self._outlines.get(path)
        if kept is not None and kept[0] == now:
            if isinstance(kept[1], str):
                raise FairAdapterError(kept[1])
            return kept[1]
        try:
            outline = read_outline(path)
        except FairAdapterError as error:
            self._remember(path, now, error)
            raise
        self._outlines[path] = (now, outline)
        return outline

    def _remember(self, path: Path, now: tuple[int, int], error: FairAdapterError) -> None:
        """What is wrong with this version of a file; a disk or permission may be better the next time."""
        if not isinstance(error.__cause__, OSError):
            self._outlines[path] = (now, str(error))

    def summary(self, name: str) -> AdapterSummary:
        """What a list shows of one file, from its header; a damaged file gives one with `error`.

        Raises FairAdapterError as `path`.
        """
        path = self.path(name)
        size = version(path)[1]
        try:
            return _summarise(name, size, self.outline(name))
        except FairAdapterError as error:
            return AdapterSummary(name, size, error=one_line(error, MAX_ERROR))

    def entry(self, name: str) -> AdapterSummary:
        """As `summary`; that there is no such file (any more) is told in `error`, too."""
        try:
            return self.summary(name)
        except FairAdapterError as error:
            return AdapterSummary(one_line(name), 0, error=one_line(error, MAX_ERROR))

    def summaries(self) -> list[AdapterSummary]:
        """All files, those that can't be used with the reason."""
        return [self.entry(name) for name in self.names()]


def _summarise(name: str, size: int, outline: AdapterOutline) -> AdapterSummary:
    info = outline.info
    trained = {n: {c: (low, high) for c, (low, high) in t.items()} for n, t in info.targets.trained.items()}
    return AdapterSummary(
        name=name,
        size=size,
        title=info.name,
        description=info.description,
        base=info.base.name,
        architecture=info.base.architecture,
        attributes=info.targets.attributes,
        target=info.targets.default.to_text(),
        conditioned=outline.conditioned,
        trained_range=trained,
        kind=outline.kind,
        tokens=outline.tokens,
        layers=len(outline.layers),
        licence=info.licence,
        author=info.author,
        created=info.created,
        evaluation=dict(info.evaluation),
    )
