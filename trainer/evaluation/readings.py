"""Pictures of a model and what is read off them, prompt by prompt; kept on disk, so nothing is done twice.

The noise of picture i of a prompt follows from (prompt, i) alone: models, adapters and processes share it.
"""

from __future__ import annotations

import hashlib
import io
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ...shared.attributes import Attribute, ordered
from ...shared.bars import CERTAIN, Bar, FaceBars
from ...shared.classifiers import AttributeClassifier
from ...shared.errors import FairAdapterError
from ...shared.faces import align, stack_points
from ...shared.faces.alignment import FRAME
from ...shared.images import to_bytes
from ...shared.seeds import noise_seed
from ...shared.tensor_file import write_bytes
from ..configuration.prompts import Prompt
from ..families.base import ImageModel
from ..families.cues import Cues
from ..instruments.encoders import TextAlignment
from ..instruments.identity import fingerprint
from ..instruments.observer import Observer, View
from ..running.memory import halving
from .texture import skin_texture

SALT = "evaluate"
REMEDY = "give --dtype bfloat16, a smaller --size or fewer encoders (--more-encoders --clip none)"


@dataclass(frozen=True)
class Plan:
    """What is drawn of each prompt: `images` pictures in `steps` steps at guidance `scale`, `batch` at a
    time; `kept` of them are kept to be shown."""

    images: int
    steps: int
    scale: float
    negative: str = ""
    batch: int = 32
    kept: int = 8


@dataclass(frozen=True)
class Readings:
    """What was read off the n pictures of a prompt.

    labels, confidence: (n, A) likeliest class of each of the observer's attributes, -1 without a face, and
        its probability.  judged: (n, A') classes by the independent classifier, A' = 0 without one.
    faces: (n, 128) unit face features, 0 without a face.
    features: (n, D) unit features of every image encoder side by side; widths: (E,) of each, empty for one.
    texts: (n,) cosine with the prompt in CLIP's space, empty if that was not asked for.
    cues: (n,) cue recognised, -1 where the model draws none.  boxes: (n, 4) px, NaN without a face.
    pictures: (k, H, W, 3) uint8, the first k.
    texture: (n,) `skin_texture`, NaN without a face; empty in readings that were kept before it was measured.
    """

    labels: np.ndarray
    confidence: np.ndarray
    judged: np.ndarray
    faces: np.ndarray
    features: np.ndarray
    cues: np.ndarray
    boxes: np.ndarray
    pictures: np.ndarray
    widths: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    texts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    texture: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def encoded(self) -> list[np.ndarray]:
        """(n, D) of each image encoder."""
        if len(self.widths) < 2:
            return [self.features] if self.features.shape[1] else []
        return np.split(self.features, np.cumsum(self.widths)[:-1], axis=1)

    @property
    def has_face(self) -> np.ndarray:
        """(n,) bool."""
        return np.isfinite(self.boxes[:, 0])

    def bars(self, attributes: Sequence[Attribute]) -> list[list[FaceBars]]:
        """Bars of the pictures that were kept, for `draw_grid`; attributes: the observer's."""
        rows = []
        for i in range(len(self.pictures)):
            bars = []
            for attribute in ordered(attributes) if self.has_face[i] else []:
                place = list(attributes).index(attribute)
                label, sure = int(self.labels[i, place]), float(self.confidence[i, place])
                colour = attribute.looks[label].colour
                bars.append(Bar(attribute.name, attribute.classes[label], sure, colour, sure >= CERTAIN))
            box = tuple(float(v) for v in self.boxes[i])
            rows.append([FaceBars(box, tuple(bars))] if bars else [])  # type: ignore[arg-type]
        return rows

    def without_pictures(self) -> Readings:
        """The same, of a prompt that is not shown: pictures of all would fill the memory."""
        return replace(self, pictures=self.pictures[:0].copy())

    def images(self) -> list[Image.Image]:
        """The pictures that were kept."""
        return [Image.fromarray(picture) for picture in self.pictures]


class Reader:
    """Draws and reads prompts with one observer and, if given, an independent classifier (`judge`).

    folder: where readings are kept between runs, or None.
    alignment: compares pictures with their prompt, if given.  cues: of the model, if it draws any.
    """

    def __init__(
        self,
        observer: Observer,
        judge: AttributeClassifier | None = None,
        folder: Path | None = None,
        alignment: TextAlignment | None = None,
        cues: Cues | None = None,
    ) -> None:
        self.observer, self.judge, self.folder, self.alignment = observer, judge, folder, alignment
        self.cues = cues
        self.drawn = 0  # pictures drawn, not found on disk
        self._most = sys.maxsize  # pictures at a time, once memory ran out with more

    def read_all(
        self,
        model: ImageModel,
        identity: str,
        prompts: Sequence[Prompt],
        plan: Plan,
        say: Callable[[str], None] = lambda text: None,
    ) -> Iterator[Readings]:
        """Readings of every prompt, one after the other.

        identity: what the model is, with its adapter.  say: told where memory asks for smaller batches.
        Raises FairAdapterError if the folder can't be written or one picture at a time is too much.
        """
        for prompt in prompts:
            path = self._path(identity, prompt, plan)
            found = _load(path, plan.images) if path is not None and path.is_file() else None
            if found is None:
                found = self.read(model, prompt, plan, say)
                if path is not None:
                    _save(path, found)
            yield found

    def _path(self, identity: str, prompt: Prompt, plan: Plan) -> Path | None:
        if self.folder is None:
            return None
        judge = None if self.judge is None else self.judge.identity
        what = {key: value for key, value in vars(plan).items() if key != "batch"}  # changes no picture
        facts = {"model": identity, "plan": what, "observer": self.observer.identity, "judge": judge}
        if self.alignment is not None:
            facts["alignment"] = self.alignment.identity
        name = hashlib.sha256(prompt.text.encode()).hexdigest()[:16]
        return self.folder / f"readings-{fingerprint(facts)}" / f"{name}.npz"

    @torch.no_grad()
    def read(
        self, model: ImageModel, prompt: Prompt, plan: Plan, say: Callable[[str], None] = lambda text: None
    ) -> Readings:
        """Draw and read one prompt."""
        parts, first = [], 0
        while first < plan.images:
            size = min(plan.batch, self._most, plan.images - first)
            work = partial(self._draw, model, prompt, plan, first)
            part, fitting = halving(work, size, "batch", say, REMEDY)
            if fitting < size:
                self._most = fitting
            parts.append(part)
            first += fitting
        columns = {f.name: [getattr(part, f.name) for part in parts] for f in fields(Readings)}
        widths = columns.pop("widths")[0]
        return Readings(**{name: np.concatenate(column) for name, column in columns.items()}, widths=widths)

    def _draw(self, model: ImageModel, prompt: Prompt, plan: Plan, first: int, count: int) -> Readings:
        """Draw and read some of a prompt's pictures. Raises FairAdapterError for pictures of NaN."""
        seeds = [noise_seed(prompt.text, i, SALT) for i in range(first, first + count)]
        texts = [prompt.text] * count
        images = model.generate(texts, seeds, plan.scale, plan.steps, count, plan.negative)
        wrong = int(images.isnan().flatten(1).any(dim=1).sum())
        if wrong:
            raise FairAdapterError(
                f"{prompt.text!r}: expected pictures, found {wrong} of {count} that are not numbers; give "
                "--dtype bfloat16 or float32"
            )
        found = self.of_view(self.observer.look(images), prompt.text, max(0, plan.kept - first))
        self.drawn += count
        return found

    def of_view(self, view: View, text: str, kept: int) -> Readings:
        """Readings of pictures that were looked at; `kept` of them are kept to be shown.  text: their
        prompt."""
        images = view.images
        members, faces = _aligned(view)
        names = [a.name for a in self.observer.attributes]
        labels, probabilities = view.labels(), view.probabilities()
        encoded = [features.cpu().numpy() for features in self.observer.encode(images)]
        cues = torch.full((len(images),), -1) if self.cues is None else self.cues.recognise(images)
        extra = {}
        if self.alignment is not None:
            extra["texts"] = self.alignment(images, text).cpu().numpy()
        return Readings(
            labels=_columns([labels[n] for n in names], len(images)).astype(np.int64),
            confidence=_columns([probabilities[n].max(1).values for n in names], len(images)),
            judged=self._judge(members, faces, len(images)),
            faces=view.features.cpu().numpy(),
            features=np.concatenate(encoded or [np.zeros((len(images), 0), np.float32)], axis=1),
            cues=cues.cpu().numpy(),
            boxes=view.boxes.cpu().numpy(),
            pictures=to_bytes(images[:kept]).permute(0, 2, 3, 1).cpu().numpy(),
            widths=np.array([part.shape[1] for part in encoded], np.int64),
            texture=_rows(members, skin_texture(faces), len(images)),
            **extra,
        )

    def _judge(self, members: torch.Tensor, faces: torch.Tensor, count: int) -> np.ndarray:
        """Classes by the independent classifier, (n, A'), -1 without a face."""
        attributes = () if self.judge is None else self.judge.attributes
        table = np.full((count, len(attributes)), -1, np.int64)
        if self.judge is not None and len(members):
            logits = self.judge(faces)
            for column, attribute in enumerate(attributes):
                table[members.cpu().numpy(), column] = logits[attribute.name].argmax(1).cpu().numpy()
        return table


def _aligned(view: View) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of the images have a face, (m,), and these faces, (m, 3, 256, 256)."""
    members = view.has_face.nonzero().squeeze(1)
    if not len(members):
        return members, view.images.new_zeros(0, 3, FRAME, FRAME)
    points = stack_points([face for face in view.found if face is not None], view.images)
    return members, align(view.images[members], points)


def _rows(members: torch.Tensor, values: torch.Tensor, count: int) -> np.ndarray:
    """Values (m,) of the images that have a face, (n,) with NaN for the others."""
    rows = np.full(count, np.nan)
    rows[members.cpu().numpy()] = values.cpu().numpy()
    return rows


def _columns(columns: Sequence[torch.Tensor], rows: int) -> np.ndarray:
    return torch.stack(list(columns), dim=1).cpu().numpy() if columns else np.zeros((rows, 0))


def _save(path: Path, found: Readings) -> None:
    data = io.BytesIO()
    np.savez_compressed(data, **{f.name: getattr(found, f.name) for f in fields(Readings)})
    try:
        write_bytes(path, data.getvalue(), overwrite=True)
    except FairAdapterError as error:
        raise FairAdapterError(f"{error}, or give another cache folder") from error


def _load(path: Path, images: int) -> Readings | None:
    """Kept readings of so many pictures; None if they are damaged or of other numbers, to be made again."""
    try:
        with np.load(path, allow_pickle=False) as file:
            # before numpy believes the headers within; a length that grew hides the entries that follow
            if file.zip.testzip() is not None or any(e.comment or e.extra for e in file.zip.infolist()):
                return None
            required = [f.name for f in fields(Readings) if f.default_factory is MISSING]
            newer = [f.name for f in fields(Readings) if f.name not in required and f.name in file]
            found = Readings(**{name: file[name] for name in (*required, *newer)})
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        RuntimeError,  # of zipfile, for bits that say encrypted or another method
        zipfile.BadZipFile,
        zlib.error,
    ):
        return None
    counts = {len(getattr(found, name)) for name in required if name != "pictures"}
    return found if counts == {images} and np.isfinite(found.features).all() else None
