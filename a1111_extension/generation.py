"""One generation from our side, host-free: what is put in before sampling and read afterwards.

`Generation` is driven by the host's hooks (`script.py`); the host itself is behind the `Host` protocol. `p`
is the host's processing object; what is known of one generation is the `Job` on it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from ..shared.adapter_info import BaseModel
from ..shared.bars import FaceBars, draw_faces
from ..shared.errors import FairAdapterError, reason
from ..shared.images import to_tensor
from ..shared.live import LiveBars, LiveFrame
from . import infotext, views
from .decoder import Decoder
from .injection import NativeStore, insert_all, strip, visible_words
from .job import CHANGES, JOB, Job, Picture, job_of
from .outcome import Outcome
from .records import PictureRecord, face_to_list
from .request import IN_PROMPT, is_enabled, read_request, readable_part, with_changes
from .service import FairService, LastResult, check_base

CHUNK = "fair_adapter"  # name of the PNG chunk
ORDINARY, NEGATIVE = ("prompts", "hr_prompts"), ("negative_prompts", "hr_negative_prompts")


class Host(Protocol):
    """What a generation needs of the program around it."""

    def click(self) -> Any:
        """The same for all generations that one click or request asked for; None where that is not known."""
        ...

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

    def decoder(self) -> Decoder:
        """(N, C, h, w) -> (N, 3, H, W) in [0, 1], for another thread: it moves no weights of the host.

        Called before sampling begins, on the sampler's thread.
        """
        ...

    def show_preview(self, image: Image.Image) -> None: ...


class Generation:
    """The hooks of one tab."""

    def __init__(self, service: FairService, host: Host, origin: str) -> None:
        self.service, self.host, self.origin = service, host, origin
        self._job: Job | None = None
        self._outcome = Outcome()

    # ---- before sampling

    def start(self, p: Any, arguments: Sequence[Any]) -> Job | None:
        """Hook `process`: reads the request, prepares tokens and LoRA. Without us, touches nothing of p."""
        if self._job is not None:  # an exception of the host ended it before our last hook
            self._end_live(self._job)
        self._job = None
        self.service.monitor.end()
        if self._outcome.begin(self.host.click()):
            self.service.last[self.origin] = LastResult()
        changes: Mapping[str, Any] | None = getattr(p, CHANGES, None)
        if not is_enabled(arguments) and not changes:
            if getattr(p, JOB, None) is not None:
                setattr(p, JOB, None)
            return None
        asked, refused = readable_part(arguments, changes)
        job = self._job = Job(asked, self.origin, refused)
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
        self.note(p, job, *check_base(adapter, base))
        wanted = adapter.targets.resolve(request.target or None)
        self.note(p, job, *wanted.warnings)
        text = infotext.readable(wanted.target)
        weights = adapter.at(text, request.strength)  # what a pasted infotext asks for, to the last bit
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
        if wanted.ignored:  # the adapter is in use, but for another target than was asked for
            job.error = entries[infotext.ERROR] = self.service.public("; ".join(wanted.ignored))
        p.extra_generation_params.update(entries)
        if request.place == IN_PROMPT:
            self._write_into_prompts(p, job)

    def _write_into_prompts(self, p: Any, job: Job, batch: slice | None = None) -> None:
        """Tokens and LoRA into the lists of all prompts, or into those of one batch.

        The host has cut out the prompts of a batch already; those of its hires pass it cuts out later.
        """
        assert job.files is not None and job.adapter is not None
        words = visible_words(job.files)
        negative = job.files.token if job.adapter.negative_tokens else None
        for name, added in (("prompts", words), ("hr_prompts", words), ("negative_prompts", negative),
                            ("hr_negative_prompts", negative)):  # fmt: skip
            everything = list(getattr(p, f"all_{name}", None) or [])
            if not everything or not added:
                continue
            is_cut, part = batch is not None and not name.startswith("hr_"), batch or slice(None)
            everything[part] = insert_all(getattr(p, name) if is_cut else everything[part], added)
            setattr(p, f"all_{name}", everything)
            if is_cut:
                setattr(p, name, everything[part])

    def keep_visible(self, p: Any) -> None:
        """Hook `before_process_batch`: scripts that ran after ours may have made the prompts anew."""
        job = job_of(p)
        if job is not None and job.files is not None and job.request.place == IN_PROMPT:
            first = p.iteration * p.batch_size
            self._write_into_prompts(p, job, slice(first, first + len(p.prompts)))

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
        self._end_live(job)
        job.calls = job.step = 0

        def show(frame: LiveFrame) -> None:
            if self.service.monitor.show(live, frame) and options.live_preview:
                self.host.show_preview(frame.image)

        live = LiveBars(
            self.service.reader(), self.host.decoder(), show, every=options.live_every, target=job.target
        )
        self.service.monitor.begin(live, self.origin, options.live_preview)
        job.live = live
        return job

    def denoised(self, job: Job, x0: Tensor, counted: int, total: int) -> None:
        """Callback `on_cfg_after_cfg`.

        counted: as the host counts finished steps, which is late by two and starts with 0 twice. Samplers
        that evaluate the model twice in a step call this twice as often.
        """
        job.calls += 1
        step = min(job.calls, counted + 2, total)
        if job.live is not None and step != job.step:
            job.step = step
            job.live.offer(step, total, x0)

    def end_sampling(self, p: Any) -> None:
        """Hook `postprocess_batch`."""
        job = job_of(p)
        if job is not None:
            self._end_live(job)

    def _end_live(self, job: Job) -> None:
        if job.live is None:
            return
        job.live.close(0.0)
        self.service.monitor.end(job.live)
        error = self.service.public(job.live.error or "")
        if error and error not in job.notes:
            job.notes.append(error)
        job.live = None

    # ---- after sampling

    def finished_picture(self, p: Any, image: Image.Image, index: int) -> None:
        """Hook `postprocess_image_after_composite`: the final pixels of picture `index` of the batch."""
        job = job_of(p)
        if job is None or getattr(p, "_ad_inner", False):
            return
        options = self.service.options()
        if not (options.read_final or options.save_bars or job.request.overlay):
            return
        faces = self.service.reader().read(to_tensor(image)[None])[0]
        small, moved = views.thumbnail(image, faces)
        full = image.copy() if job.request.overlay else None
        place = getattr(p, "iteration", 0) * getattr(p, "batch_size", 1) + index
        job.pictures[place] = job.unsaved = Picture(small, moved, faces, image.size, full)
        if options.chunk:
            image.info[CHUNK] = self._chunk(job, faces)  # hosts write such texts into what is not saved too

    def before_saved(self, p: Any, image: Image.Image, pnginfo: dict[str, Any]) -> Image.Image | None:
        """Callback `on_before_image_saved`: adds our chunk; returns a picture to be saved instead."""
        job = job_of(p)
        if job is None or job.unsaved is None or job.unsaved.size != image.size:
            return None  # a grid, a picture before the hires pass
        faces, job.unsaved = job.unsaved.faces, None  # a mask of the same size may follow
        options = self.service.options()
        if options.chunk:
            pnginfo[CHUNK] = self._chunk(job, faces)
        return draw_faces(image, faces) if options.save_bars else None

    def _chunk(self, job: Job, faces: Sequence[FaceBars]) -> str:
        return json.dumps(
            {
                "adapter": job.request.adapter,
                "target": infotext.readable(job.target) if job.target else "",
                "strength": job.request.strength,
                **({"error": job.error} if job.error else {}),
                "classifier": self.service.reader().classifier.identity,
                "faces": [face_to_list(face) for face in faces],
            }
        )

    def finish(self, p: Any, processed: Any) -> None:
        """Hook `postprocess`: overlay copies, statistics, panel."""
        job = job_of(p)
        if job is None:
            return
        self._end_live(job)
        if job.own_loras:
            self.host.drop_loras(p)
        setattr(p, JOB, None)
        self._job = None
        if job.request.overlay:
            _append_overlays(job, processed)
        if job.pictures and self.service.options().record:
            try:
                self.service.records.add(self._records(p, job))
            except FairAdapterError as error:
                self.warn(p, job, error)
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
        self._outcome.add(job, getattr(p, "all_prompts", None) or [])
        return self._outcome.result(lambda: self.service.reader().attributes, self.service.options().panel)

    # ---- telling the user

    def note(self, p: Any, job: Job, *lines: str) -> None:
        """Warnings: in the panel and under the picture, once each."""
        for line in map(self.service.public, lines):
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
        self.service.say(explain(error))
        line = self.service.public(explain(error))
        self.note(p, job, line)
        job.weights = job.files = None
        job.error = line
        for key in infotext.KEYS:
            p.extra_generation_params.pop(key, None)
        p.extra_generation_params.update(infotext.describe_failure(job.request, line, job.refused))
        self.service.last[self.origin] = LastResult(views.message([line], "error"), {"notes": [line]})


def explain(error: Exception) -> str:
    """One line for the user."""
    if isinstance(error, FairAdapterError):
        return str(error)
    return (
        f"unexpected {type(error).__name__} ({reason(error, 300)}); the generation goes on, please report it"
    )


def _append_overlays(job: Job, processed: Any) -> None:
    first = getattr(processed, "index_of_first_image", 0)
    texts = list(processed.infotexts)
    for number, (_, picture) in enumerate(sorted(job.pictures.items())):
        if picture.full is not None:
            processed.images.append(draw_faces(picture.full, picture.faces))
            processed.infotexts.append(_at(texts, first + number, texts[0] if texts else ""))


def _at(values: Sequence[Any], index: int, default: Any) -> Any:
    return values[index] if 0 <= index < len(values) else default
