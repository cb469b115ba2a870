"""The original model's images of the same prompt, noise and steps: what finetuning is held against.

An entry is a prompt with a block of N noises and a number of steps, all of it a function of (prompt, block)
alone. With a fixed number of blocks per prompt training meets each entry again and again; its references are
computed once and kept, in memory and on disk, without any loss: they are the very tensors. A cache folder is
named by a hash of everything that they depend on (all weights, scheduler, guidance, classifier, encoders), so
that another run on the same model finds them and no other model can.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...shared.errors import FairAdapterError
from ...shared.preservation import OriginalFaces
from ...shared.seeds import noise_seed
from ...shared.tensor_file import read_tensors, serialise, write_bytes
from ..instruments.observer import Observer
from ..running.memory import MicroBatches

SALT = "train"


@dataclass(frozen=True)
class Entry:
    """N images of one prompt: their noise seeds and number of steps follow from prompt and block."""

    prompt: str
    block: int
    steps: int
    images: int

    @classmethod
    def draw(cls, prompt: str, block: int, images: int, steps: tuple[int, int]) -> Entry:
        """steps: fewest and most; which of them is as random as the noise, and as reproducible."""
        low, high = steps
        drawn = low + noise_seed(prompt, block, f"{SALT} steps") % (high - low + 1)
        return cls(prompt, block, drawn, images)

    @property
    def seeds(self) -> list[int]:
        """Of the N noises."""
        return [noise_seed(self.prompt, self.block * self.images + i, SALT) for i in range(self.images)]


@dataclass(frozen=True)
class References:
    """What was read off n original images.

    features: one (n, D) for each image encoder.  boxes: (n, 4) in px, NaN without a face.
    probabilities: attribute -> (n, K).  faces: (n, 128), unit face features.
    """

    features: tuple[Tensor, ...]
    boxes: Tensor
    probabilities: dict[str, Tensor]
    faces: Tensor

    @property
    def original(self) -> OriginalFaces:
        """Classes and certainty, as the preservation losses take them."""
        has_face = self.boxes.isfinite().all(dim=1)
        best = {name: p.max(dim=1) for name, p in self.probabilities.items()}
        labels = {name: torch.where(has_face, b.indices, -1) for name, b in best.items()}
        return OriginalFaces(self.faces, labels, {name: b.values for name, b in best.items()})

    @classmethod
    def joined(cls, parts: Sequence[References]) -> References:
        """Of all the parts' images, in their order."""
        flat = [part.tensors() for part in parts]
        whole = {key: torch.cat([tensors[key] for tensors in flat]) for key in flat[0]}
        return cls.from_tensors(whole, parts[0].probabilities, len(parts[0].features))

    def tensors(self) -> dict[str, Tensor]:
        """Flat form for a file."""
        flat = {"boxes": self.boxes, "faces": self.faces}
        flat |= {f"features.{i}": value for i, value in enumerate(self.features)}
        return flat | {f"probabilities.{name}": value for name, value in self.probabilities.items()}

    @classmethod
    def from_tensors(cls, flat: Mapping[str, Tensor], names: Iterable[str], encoders: int) -> References:
        """The reverse of `tensors`; KeyError where something is missing."""
        return cls(
            tuple(flat[f"features.{i}"] for i in range(encoders)),
            flat["boxes"],
            {name: flat[f"probabilities.{name}"] for name in names},
            flat["faces"],
        )

    def to(self, device: torch.device) -> References:
        return self._each(lambda value: value.to(device))

    def part(self, rows: slice) -> References:
        """Those of some of the images."""
        return self._each(lambda value: value[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> References:
        probabilities = {name: change(value) for name, value in self.probabilities.items()}
        features = tuple(change(value) for value in self.features)
        return References(features, change(self.boxes), probabilities, change(self.faces))


def read_references(images: Tensor, observer: Observer) -> References:
    """References of original images (n, 3, H, W) in [0, 1]."""
    with torch.no_grad():
        view = observer.look(images)
        features = tuple(observer.encode(images))
    return References(features, view.boxes, view.probabilities(), view.features)


class ReferenceBank:
    """References of entries, computed when they are first asked for.

    Args:
        draw: (entry, first, last) -> the original model's images (last - first, 3, H, W) of that part of it.
        observer: reads them.
        keep: whether to remember them; not where every noise is drawn once.
        folder: where they are kept between runs, or None.
        batches: how many images are read at a time; None reads all at once.
    """

    def __init__(
        self,
        draw: Callable[[Entry, int, int], Tensor],
        observer: Observer,
        keep: bool = True,
        folder: Path | None = None,
        batches: MicroBatches | None = None,
    ) -> None:
        self.draw, self.observer, self.keep, self.batches = draw, observer, keep, batches
        self.folder = folder if keep else None
        self.computed = 0  # entries, for progress and tests
        self._memory: dict[tuple[Entry, int, int], References] = {}

    def references(self, entry: Entry, first: int, last: int) -> References:
        """Of the images first .. last - 1 of an entry, on the CPU. Raises FairAdapterError if unwritable."""
        key = (entry, first, last)
        if key in self._memory:
            return self._memory[key]
        path = None if self.folder is None else self.folder / f"{_short_hash(key)}.safetensors"
        found = self._read(path) if path is not None and path.is_file() else None
        if found is None:
            found = self._compute(entry, first, last).to(torch.device("cpu"))
            self.computed += 1
            if path is not None:
                self._write(path, found, entry)
        if self.keep:
            self._memory[key] = found
        return found

    def forgetful(self) -> ReferenceBank:
        """One that computes them every time."""
        return ReferenceBank(self.draw, self.observer, keep=False, batches=self.batches)

    def _compute(self, entry: Entry, first: int, last: int) -> References:
        images = self.draw(entry, first, last)

        def work(size: int) -> References:
            return References.joined([read_references(part, self.observer) for part in images.split(size)])

        if self.batches is None:
            return work(len(images))
        return self.batches.fit("decode", work, len(images))

    def _read(self, path: Path) -> References | None:
        try:
            flat = read_tensors(path, "reference file").tensors
            names = [attribute.name for attribute in self.observer.attributes]
            return References.from_tensors(flat, names, len(self.observer.encoders))
        except (FairAdapterError, KeyError):
            return None  # damaged: computed and written again

    def _write(self, path: Path, found: References, entry: Entry) -> None:
        try:
            write_bytes(path, serialise(found.tensors(), {"entry": repr(entry)}), overwrite=True)
        except FairAdapterError as error:
            raise FairAdapterError(f"{error}, or set references.cache=null to keep them in memory") from error


def _short_hash(key: Any) -> str:
    return hashlib.sha256(repr(key).encode()).hexdigest()[:24]
