"""One generation from our side, host-free: what is put in before sampling and read afterwards.

`Generation` is driven by the host's hooks (`script.py`); the host itself is behind the `Host` protocol. `p`
is the host's processing object; what is known of one generation is the `Job` on it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from ..shared.adapter import FairnessAdapter
from ..shared.adapter_info import BaseModel
from ..shared.attributes import TargetDistribution
from ..shared.bars import draw_faces
from ..shared.errors import FairAdapterError, reason
from ..shared.images import to_tensor
from ..shared.live import LiveBars, LiveFrame
from ..shared.target_table import beside
from . import infotext, views
from .aims import Aim, PictureText, PromptAims, shared_lora
from .decoder import Decoder
from .injection import NativeStore, strip
from .job import CHANGES, JOB, Job, Picture, job_of
from .outcome import Outcome
from .prompting import insert_tokens, write_into_prompts
from .records import PictureRecord, face_to_list
from .request import IN_PROMPT, is_enabled, read_request, readable_part, with_changes
from .service import FairService, LastResult, check_base

CHUNK = "fair_adapter"  # name of the PNG chunk


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
        table = self.service.table(request.adapter, request.table) if request.has_table else None
        if not request.has_adapter:
            if table is not None:
                self._aim_by_prompt(p, job, PromptAims(table, job.target, Aim, partial(self.note, p, job)))
            else:
                p.extra_generation_params.update(infotext.describe(request))
            return
        adapter = self.service.library.load(request.adapter)
        self.note(p, job, *check_base(adapter, base, self.service.missing))
        job.adapter = adapter
        if table is not None:
            own = adapter.targets.default
            default = own if job.target is None else beside(job.target, own)
            make, say = partial(self._aim, p, job, adapter), partial(self.note, p, job)
            self._aim_by_prompt(p, job, PromptAims(table, default, make, say))
        else:
            aim = self._aim(p, job, adapter, request.target or None)
            job.weights, job.files = aim.weights, aim.files
            entries = infotext.describe(request, aim.text, aim.used)
            p.extra_generation_params.update(entries | ({infotext.ERROR: job.error} if job.error else {}))
        if request.place == IN_PROMPT:
            write_into_prompts(p, job)

    def _aim(
        self, p: Any, job: Job, adapter: FairnessAdapter, target: TargetDistribution | str | None
    ) -> Aim:
        """The adapter at a target, in files that the host knows."""
        wanted = adapter.targets.resolve(target)
        self.note(p, job, *wanted.warnings)
        text = infotext.readable(wanted.target)
        weights = adapter.at(text, job.request.strength)  # what a pasted infotext asks for, to the last bit
        if job.own is None:
            job.target = weights.target
        store = self.host.native_store(self.service.options().keep_files)
        files = store.materialise(adapter, weights, job.own.files if job.own else ())
        if files.fresh:
            self.host.forget_conditions(p)
        path = files.embedding_path
        if files.token and path and not self.host.take_embedding(files.token, path):
            raise FairAdapterError(
                f"{job.request.adapter}: the host did not take its soft tokens; load "
                f"{adapter.info.base.name} or choose an adapter made for this model"
            )
        told = self.service.public("; ".join(wanted.ignored))
        if told not in job.error:  # the adapter is in use, but for another target than was asked for
            job.error = "; ".join(filter(None, [job.error, told]))
        return Aim(weights.target, weights, files)

    def _aim_by_prompt(self, p: Any, job: Job, own: PromptAims) -> None:
        """Every picture at the target of its prompt, as far as prompts are known by now."""
        job.own = own
        aims = own.put(0, p.all_prompts)
        for first in range(0, len(aims), p.batch_size):
            shared_lora(aims[first : first + p.batch_size])  # refuses before the first batch is drawn
        job.target, job.weights, job.files = aims[0].target, aims[0].weights, aims[0].files
        text, used = PictureText(lambda at: job.aim(at).text), PictureText(lambda at: job.aim(at).used)
        entries = infotext.describe(job.request, text, used)
        p.extra_generation_params.update(entries | ({infotext.ERROR: job.error} if job.error else {}))

    def keep_visible(self, p: Any) -> None:
        """Hook `before_process_batch`: scripts that ran after ours may have made the prompts anew."""
        job = job_of(p)
        if job is not None and job.files is not None and job.request.place == IN_PROMPT:
            first = p.iteration * p.batch_size
            if job.own is not None:
                job.own.put(first, p.prompts)
            write_into_prompts(p, job, slice(first, first + len(p.prompts)))

    def inject(self, p: Any) -> None:
        """Hook `process_batch`, after the host parsed the prompts and before it encodes them."""
        job = job_of(p)
        if job is None or job.files is None or job.adapter is None:
            return
        if job.own is not None:  # scripts may have made the prompts anew
            job.own.put(p.iteration * p.batch_size, p.prompts)
        lora, hidden = shared_lora(job.aims(p)), job.request.place != IN_PROMPT
        if lora and hidden:
            self.host.add_lora(p, lora)
            job.own_loras = bool(getattr(p, "disable_extra_networks", False))
        if lora and self.host.matched_layers(lora) == 0:
            raise FairAdapterError(
                f"{job.request.adapter}: none of its LoRA layers is in this model; load "
                f"{job.adapter.info.base.name} or choose another adapter"
            )
        if hidden:
            insert_tokens(p, job)

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

        targets = {job.target} if job.own is None else {aim.target for aim in job.aims(p)}
        target = targets.pop() if len(targets) == 1 else None  # pictures of several are counted in no shares
        live = LiveBars(
            self.service.reader(), self.host.decoder(), show, every=options.live_every, target=target
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
        picture = Picture(small, moved, faces, image.size, full, job.aim(place))
        job.pictures[place] = job.unsaved = picture
        if options.chunk:
            image.info[CHUNK] = self._chunk(job, picture)  # hosts write such texts into what is not saved too

    def before_saved(self, p: Any, image: Image.Image, pnginfo: dict[str, Any]) -> Image.Image | None:
        """Callback `on_before_image_saved`: adds our chunk; returns a picture to be saved instead."""
        job = job_of(p)
        if job is None or job.unsaved is None or job.unsaved.size != image.size:
            return None  # a grid, a picture before the hires pass
        picture, job.unsaved = job.unsaved, None  # a mask of the same size may follow
        options = self.service.options()
        if options.chunk:
            pnginfo[CHUNK] = self._chunk(job, picture)
        return draw_faces(image, picture.faces) if options.save_bars else None

    def _chunk(self, job: Job, picture: Picture) -> str:
        return json.dumps(
            {
                "adapter": job.request.adapter,
                "target": picture.aim.text,
                "strength": job.request.strength,
                **({"error": job.error} if job.error else {}),
                "classifier": self.service.reader().classifier.identity,
                "faces": [face_to_list(face) for face in picture.faces],
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
                    adapter=job.request.adapter if picture.aim.weights is not None else "None",
                    target=picture.aim.text,
                    strength=job.request.strength if picture.aim.weights is not None else 0.0,
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
        job.weights = job.files = job.own = None
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
