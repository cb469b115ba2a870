"""One generation from our side, host-free: what is put in before sampling and read afterwards.

`Generation` is driven by the host's hooks (`script.py`); the host itself is behind the `Host` protocol. `p`
is the host's processing object; everything of one generation is kept in a `Job` on it, because hosts and
other extensions run generations inside of generations.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from ..shared.adapter import AdapterWeights, FairnessAdapter
from ..shared.adapter_info import BaseModel
from ..shared.attributes import TargetDistribution
from ..shared.bars import FaceBars, draw_faces
from ..shared.errors import FairAdapterError
from ..shared.images import to_tensor
from ..shared.live import LiveBars, LiveFrame, readings_dict
from ..shared.statistics import FairnessStatistics
from . import infotext, views
from .injection import NativeFiles, NativeStore, insert_all, strip, visible_words
from .records import PictureRecord, face_to_list
from .request import IN_PROMPT, FairRequest, is_enabled, read_request, with_changes
from .service import FairService, LastResult

JOB, CHANGES = "fair_adapter_job", "fair_adapter_changes"  # attributes that we put on p
CHUNK = "fair_adapter"  # name of the PNG chunk
ORDINARY, NEGATIVE = ("prompts", "hr_prompts"), ("negative_prompts", "hr_negative_prompts")


class Host(Protocol):
    """What a generation needs of the program around it."""

    def base_model(self) -> BaseModel: ...

    def native_store(self, keep: int) -> NativeStore: ...

    def take_embedding(self, name: str, path: Path) -> bool:
        """Make the host know an embedding file; False if it refused it."""
        ...

    def add_lora(self, p: Any, name: str) -> None: ...

    def matched_layers(self, name: str) -> int | None:
        """Layers that a LoRA changed; None where the host does not say."""
        ...

    def drop_loras(self, p: Any) -> None: ...

    def forget_conditions(self, p: Any) -> None: ...

    def decode(self, latents: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, 3, H, W) in [0, 1], cheap."""
        ...

    def show_preview(self, image: Image.Image) -> None: ...


@dataclass
class Picture:
    """A finished picture: its faces and what is shown of it.  full: kept for overlay copies only."""

    small: Image.Image
    small_faces: list[FaceBars]
    faces: list[FaceBars]
    size: tuple[int, int]
    full: Image.Image | None = None


@dataclass(eq=False)
class Job:
    """A generation with us enabled. weights, files: None without an adapter, or when it can't be used."""

    request: FairRequest
    origin: str
    model: str = ""
    target: TargetDistribution | None = None
    adapter: FairnessAdapter | None = None
    weights: AdapterWeights | None = None
    files: NativeFiles | None = None
    notes: list[str] = field(default_factory=list)
    pictures: dict[int, Picture] = field(default_factory=dict)
    current: tuple[Image.Image, list[FaceBars]] | None = None
    live: LiveBars | None = None
    calls: int = 0
    own_loras: bool = False


class Generation:
    """The hooks of one tab."""

    def __init__(self, service: FairService, host: Host, origin: str) -> None:
        self.service, self.host, self.origin = service, host, origin

    # ---- before sampling

    def start(self, p: Any, arguments: Sequence[Any]) -> Job | None:
        """Hook `process`: reads the request, prepares tokens and LoRA. Without us, touches nothing of p."""
        self.service.last[self.origin] = LastResult()
        changes: Mapping[str, Any] | None = getattr(p, CHANGES, None)
        if not is_enabled(arguments) and not changes:
            if getattr(p, JOB, None) is not None:
                setattr(p, JOB, None)
            return None
        job = Job(FairRequest(), self.origin)
        setattr(p, JOB, job)
        try:
            request = read_request(arguments)
            if changes:
                request = with_changes(request, {"enabled": True, **changes})
            job.request = request
            self._prepare(p, job)
        except Exception as error:  # whatever it is, the generation goes on; the user is told
            self.fail(p, job, error)
        return job

    def _prepare(self, p: Any, job: Job) -> None:
        request, base = job.request, self.host.base_model()
        job.model = base.name
        for key in infotext.KEYS:
            p.extra_generation_params.pop(key, None)  # a grid shares them among its cells
        job.target = self.service.target(request.adapter, request.target)
        if not request.has_adapter:
            p.extra_generation_params.update(infotext.describe(request))
            return
        adapter = self.service.library.load(request.adapter)
        self.note(p, job, *adapter.check_base(base))
        text = infotext.readable(adapter.targets.resolve(request.target or None).target)
        weights = adapter.at(text, request.strength)  # what a pasted infotext asks for, to the last bit
        self.note(p, job, *adapter.at(request.target or None, request.strength).warnings)
        job.target = weights.target
        files = self.host.native_store(self.service.options().keep_files).materialise(adapter, weights)
        if files.fresh:
            self.host.forget_conditions(p)
        if (
            files.token
            and files.embedding_path
            and not self.host.take_embedding(files.token, files.embedding_path)
        ):
            raise FairAdapterError(
                f"{request.adapter}: the host did not take its soft tokens; load {adapter.info.base.name} or "
                "choose an adapter made for this model"
            )
        job.adapter, job.weights, job.files = adapter, weights, files
        used = weights.content_hash if weights.soft or weights.lora else ""
        entries = infotext.describe(request, text, used)
        p.extra_generation_params.update(entries)
        if request.place == IN_PROMPT:
            self._write_into_prompts(p, job)

    def _write_into_prompts(self, p: Any, job: Job, start: str = "all_", part: slice = slice(None)) -> None:
        """Tokens and LoRA into the lists of prompts whose names begin with `start`, and `part` of all_..."""
        assert job.files is not None and job.adapter is not None
        words = visible_words(job.files)
        negative = job.files.token if job.adapter.negative_tokens else None
        for name, added in (("prompts", words), ("hr_prompts", words), ("negative_prompts", negative),
                            ("hr_negative_prompts", negative)):  # fmt: skip
            prompts = getattr(p, start + name, None)
            if prompts and added:
                written = insert_all(prompts, added)
                setattr(p, start + name, written)
                if not start and getattr(p, "all_" + name, None):
                    everything = list(getattr(p, "all_" + name))
                    everything[part] = written
                    setattr(p, "all_" + name, everything)

    def keep_visible(self, p: Any) -> None:
        """Hook `before_process_batch`: scripts that ran after ours may have made the prompts anew."""
        job = job_of(p)
        if job is not None and job.files is not None and job.request.place == IN_PROMPT:
            first = p.iteration * p.batch_size
            self._write_into_prompts(p, job, "", slice(first, first + len(p.prompts)))

    def inject(self, p: Any) -> None:
        """Hook `process_batch`, after the host parsed the prompts and before it encodes them."""
        job = job_of(p)
        if job is None or job.files is None or job.adapter is None:
            return
        files, hidden = job.files, job.request.place != IN_PROMPT
        if files.lora and hidden:
            self.host.add_lora(p, files.lora)
            job.own_loras = bool(getattr(p, "disable_extra_networks", False))
        if files.lora and self.host.matched_layers(files.lora) == 0:
            raise FairAdapterError(
                f"{job.request.adapter}: none of its LoRA layers is in this model; load "
                f"{job.adapter.info.base.name} or choose another adapter"
            )
        if files.token and hidden:
            for name in (*ORDINARY, *(NEGATIVE if job.adapter.negative_tokens else ())):
                if getattr(p, name, None):
                    setattr(p, name, insert_all(getattr(p, name), files.token))

    # ---- while sampling

    def begin_sampling(self, p: Any) -> Job | None:
        """Hook `process_before_every_sampling`: also of the hires pass."""
        job = job_of(p)
        if job is None or not job.request.live:
            return job
        options = self.service.options()
        self._end_live(job, 0.0)
        job.calls = 0

        def show(frame: LiveFrame) -> None:
            if self.service.monitor.show(live, frame) and options.live_preview:
                self.host.show_preview(frame.image)

        live = LiveBars(
            self.service.reader(), self.host.decode, show, every=options.live_every, target=job.target
        )
        self.service.monitor.begin(live, self.origin, options.live_preview)
        job.live = live
        return job

    def denoised(self, job: Job, x0: Tensor, total: int) -> None:
        """Callback `on_cfg_after_cfg`. Samplers of second order call it more often than there are steps."""
        job.calls += 1
        if job.live is not None and (
            job.calls <= total or job.calls % self.service.options().live_every == 0
        ):
            job.live.offer(min(job.calls, total), total, x0)

    def end_sampling(self, p: Any) -> None:
        """Hook `postprocess_batch`."""
        job = job_of(p)
        if job is not None:
            self._end_live(job, 0.0)

    def _end_live(self, job: Job, wait: float) -> None:
        if job.live is None:
            return
        job.live.close(wait)
        self.service.monitor.end(job.live)
        if job.live.error and job.live.error not in job.notes:
            job.notes.append(job.live.error)
        job.live = None

    # ---- after sampling

    def finished_picture(self, p: Any, image: Image.Image, index: int) -> None:
        """Hook `postprocess_image_after_composite`: the final pixels of picture `index` of the batch."""
        job = job_of(p)
        if job is None or not self.service.options().read_final or getattr(p, "_ad_inner", False):
            return
        faces = self.service.reader().read(to_tensor(image)[None])[0]
        small, moved = views.thumbnail(image, faces)
        full = image.copy() if job.request.overlay else None
        place = getattr(p, "iteration", 0) * getattr(p, "batch_size", 1) + index
        job.pictures[place] = Picture(small, moved, faces, image.size, full)
        job.current = (image, faces)

    def before_saved(self, p: Any, image: Image.Image, pnginfo: dict[str, Any]) -> Image.Image | None:
        """Callback `on_before_image_saved`: adds our chunk; returns a picture to be saved instead."""
        job = job_of(p)
        if job is None or job.current is None or job.current[0] is not image:
            return None  # a grid, a mask, a picture before the hires pass
        options = self.service.options()
        if options.chunk:
            pnginfo[CHUNK] = json.dumps(
                {
                    "adapter": job.request.adapter,
                    "target": infotext.readable(job.target) if job.target else "",
                    "strength": job.request.strength,
                    "classifier": self.service.reader().classifier.identity,
                    "faces": [face_to_list(face) for face in job.current[1]],
                }
            )
        return draw_faces(image, job.current[1]) if options.save_bars else None

    def finish(self, p: Any, processed: Any) -> None:
        """Hook `postprocess`: overlay copies, statistics, panel."""
        job = job_of(p)
        if job is None:
            return
        self._end_live(job, 2.0)
        if job.own_loras:
            self.host.drop_loras(p)
        setattr(p, JOB, None)
        if job.request.overlay:
            _append_overlays(job, processed)
        if job.pictures and self.service.options().record:
            try:
                self.service.records.add(self._records(p, job))
            except FairAdapterError as error:
                self.note(p, job, str(error))
        self.service.last[self.origin] = self._result(p, job)

    def _records(self, p: Any, job: Job) -> list[PictureRecord]:
        rows = []
        for index, picture in sorted(job.pictures.items()):
            rows.append(
                PictureRecord(
                    prompt=strip(_at(getattr(p, "all_prompts", []), index, "")),
                    faces=picture.faces,
                    seed=int(_at(getattr(p, "all_seeds", []), index, -1)),
                    adapter=job.request.adapter if job.weights is not None else "None",
                    target=infotext.readable(job.target) if job.target else "",
                    strength=job.request.strength if job.weights is not None else 0.0,
                    model=job.model,
                    width=picture.size[0],
                    height=picture.size[1],
                    origin=self.origin,
                )
            )
        return rows

    def _result(self, p: Any, job: Job) -> LastResult:
        heading = "Faces of this batch"
        if job.weights is not None:
            target = views.spaced(infotext.readable(job.weights.target))
            heading = f"{job.request.adapter} at {target}, strength {job.request.strength:g}"
        if not job.pictures:
            return LastResult(views.message(job.notes), {"notes": job.notes, "pictures": []})
        attributes = self.service.reader().attributes
        statistics = FairnessStatistics(attributes)
        ordered = sorted(job.pictures.items())
        statistics.add([picture.faces for _, picture in ordered])
        tiles = [
            (picture.small, picture.small_faces, _at(getattr(p, "all_prompts", []), index, ""))
            for index, picture in ordered
        ]
        rows = statistics.measure(job.target)
        html = views.panel(statistics, rows, tiles, heading, job.notes, job.target is not None)
        data = {
            "origin": self.origin,
            "adapter": job.request.adapter,
            "target": infotext.readable(job.target) if job.target else "",
            "strength": job.request.strength,
            "notes": job.notes,
            "note": statistics.note(),
            "statistics": [row.to_dict() for row in rows],
            **readings_dict([picture.faces for _, picture in ordered], attributes, job.target),
        }
        return LastResult(html if self.service.options().panel else "", data)

    # ---- telling the user

    def note(self, p: Any, job: Job, *lines: str) -> None:
        """Warnings: in the panel and under the picture, once each."""
        for line in lines:
            if line not in job.notes:
                job.notes.append(line)
                if callable(getattr(p, "comment", None)):
                    p.comment(f"Fair Adapter: {line}")

    def warn(self, p: Any, job: Job, error: Exception) -> None:
        """Reading or showing failed; the pictures are what was asked for."""
        line = explain(error)
        self.note(p, job, line)
        self.service.say(line)

    def fail(self, p: Any, job: Job, error: Exception) -> None:
        """The adapter can't be used: say so here, in the log and in the parameters; go on without it."""
        line = explain(error)
        self.note(p, job, line)
        self.service.say(line)
        job.weights = job.files = None
        for key in infotext.KEYS:
            p.extra_generation_params.pop(key, None)
        p.extra_generation_params[infotext.ADAPTER] = job.request.adapter
        p.extra_generation_params[infotext.ERROR] = line
        self.service.last[self.origin] = LastResult(views.message([line], "error"), {"notes": [line]})


def job_of(p: Any) -> Job | None:
    return getattr(p, JOB, None)


def explain(error: Exception) -> str:
    """One line for the user."""
    if isinstance(error, FairAdapterError):
        return str(error)
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return f"unexpected {type(error).__name__} ({reason}); the generation goes on, please report it"


def _append_overlays(job: Job, processed: Any) -> None:
    first = getattr(processed, "index_of_first_image", 0)
    texts = list(processed.infotexts)
    for number, (_, picture) in enumerate(sorted(job.pictures.items())):
        if picture.full is not None:
            processed.images.append(draw_faces(picture.full, picture.faces))
            processed.infotexts.append(_at(texts, first + number, texts[0] if texts else ""))


def _at(values: Sequence[Any], index: int, default: Any) -> Any:
    return values[index] if 0 <= index < len(values) else default
