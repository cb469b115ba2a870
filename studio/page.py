"""The studio's page: generation before and after with live bars, and the same tab as in the hosts."""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image
from torch import Tensor

from ..a1111_extension import tab, ui, views
from ..a1111_extension.injection import NativeStore
from ..a1111_extension.records import PictureRecord
from ..a1111_extension.request import NO_ADAPTER
from ..a1111_extension.service import FairService
from ..shared.adapter import AdapterWeights
from ..shared.adapter_info import STRENGTHS
from ..shared.attributes import TargetDistribution
from ..shared.bars import FaceBars
from ..shared.errors import FairAdapterError
from ..shared.images import to_pil
from ..shared.live import LiveBars, LiveFrame
from ..shared.statistics import FairnessStatistics
from .session import PortraitSession

PICTURES = 16  # most of one generation
INTRODUCTION = (
    "Draws with the small embedded portrait model: faces of {n} px, skewed on purpose. "
    "Choose an adapter, set a target, and compare both from the same noise."
)


class StudioFolders:
    """Where the library's export writes to: beside the user's adapters."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def native_store(self, keep: int) -> NativeStore:
        return NativeStore(self.folder / "embeddings", self.folder / "loras", keep)

    def take_embedding(self, name: str, path: Path) -> bool:
        return True  # no program reads it here


def build(service: FairService, session: PortraitSession, folder: Path) -> gr.Blocks:
    with gr.Blocks(title="Fair Adapter studio", analytics_enabled=False) as page:
        gr.Markdown("# Fair Adapter studio")
        with gr.Tabs(elem_id="tabs"):
            with gr.TabItem("Generate", elem_id="fair_generate_tab"):
                _generate_tab(service, session)
            with gr.TabItem("Library and statistics", elem_id="fair_adapter_tab"):
                tab.fill(page, service, StudioFolders(folder))
    return page


def _generate_tab(service: FairService, session: PortraitSession) -> None:
    steps, scale = session.defaults()
    first = service.first_choice()
    with gr.Row():
        with gr.Column(scale=2, min_width=360):
            gr.Markdown(INTRODUCTION.format(n=8 * session.model.latent_shape[1]))
            prompt = gr.Textbox(
                "a photo of the face of a doctor, a person", label="Prompt", lines=2, elem_id="studio_prompt"
            )
            with gr.Row():
                adapter = gr.Dropdown(
                    service.choices(), value=first, label="Adapter", elem_id="studio_adapter", scale=3
                )
                preset = gr.Dropdown(
                    [ui.CUSTOM, *service.presets(first)], value=ui.CUSTOM, label="Preset", scale=2
                )
            sliders, rows = ui.target_sliders(service, first, lambda name: f"studio_{name}")
            target = gr.Textbox(service.default_target(first), label="Target", elem_id="studio_target")
            strength = gr.Slider(*STRENGTHS, value=1.0, step=0.05, label="Strength")
            advice = gr.HTML(service.advice(first, "", session.base_model()), elem_id="studio_advice")
            with gr.Row():
                count = gr.Slider(1, PICTURES, value=8, step=1, label="Pictures", elem_id="studio_count")
                seed = gr.Number(-1, label="Seed (-1: random)", precision=0, elem_id="studio_seed")
            with gr.Accordion("More", open=False):
                negative = gr.Textbox("", label="Negative prompt")
                number = gr.Slider(4, 60, value=steps, step=1, label="Steps", elem_id="studio_steps")
                guidance = gr.Slider(1.0, 8.0, value=scale, step=0.25, label="Guidance scale")
            start = gr.Button("Generate", variant="primary", elem_id="studio_generate")
        with gr.Column(scale=3, min_width=420):
            state = gr.Markdown("", elem_id="studio_state")
            live = gr.Image(
                show_label=False, elem_id="studio_live", interactive=False, visible=False, height=560
            )
            with gr.Row():
                with gr.Column(min_width=280):
                    before = gr.HTML("", elem_id="studio_before")
                with gr.Column(min_width=280):
                    after = gr.HTML("", elem_id="studio_after")
    ui.connect_target(service, adapter, preset, sliders, rows, target, advice, session.base_model)
    inputs = [prompt, negative, adapter, target, strength, count, seed, number, guidance]

    def on_start(*values: Any) -> Iterator[list[Any]]:
        yield from generate(service, session, *values)

    start.click(on_start, inputs, [state, live, before, after, seed], show_progress="hidden")


def generate(
    service: FairService,
    session: PortraitSession,
    prompt: str,
    negative: str,
    name: str,
    text: str,
    strength: float,
    count: float,
    seed: float,
    steps: float,
    scale: float,
) -> Iterator[list[Any]]:
    """Updates of [state, live picture, before, after, seed]: first without the adapter, then with it."""
    try:
        adapter = service.adapter(name)
        aimed = service.target(name, text)
        weights: AdapterWeights | None = None
        notes: list[str] = []
        if adapter is not None:
            notes += adapter.check_base(session.base_model())
            weights = adapter.at(text or None, strength)
            notes += weights.warnings
            aimed = weights.target
        first = random.randrange(2**31) if seed is None or seed < 0 else int(seed)
        seeds = [first + i for i in range(int(count))]
        yield ["Starting", gr.update(visible=False, value=None), "", "", gr.update()]
        passes: list[tuple[str, AdapterWeights | None]] = [("Without the adapter", None)]
        if weights is not None:
            passes.append((f"With {name}, the same noise", weights))
        shown = ["", ""]
        for index, (heading, chosen) in enumerate(passes):
            sampled = _Pass(service, session, prompt, negative, seeds, int(steps), scale, chosen, aimed)
            for frame in sampled.frames():
                text_now = f"**{heading}**, step {frame.step} of {frame.total}"
                picture = gr.update(value=frame.image, visible=True)
                yield [text_now, picture, shown[0], shown[1], gr.update()]
            shown[index] = sampled.finish(heading, notes if chosen is not None else [], name, text, strength)
        yield ["", gr.update(visible=False), shown[0], shown[1], first]
    except FairAdapterError as error:
        yield ["", gr.update(visible=False), views.message([str(error)], "error"), "", gr.update()]


class _Pass:
    """One generation on a thread of its own, so that its live bars can be shown meanwhile."""

    def __init__(
        self,
        service: FairService,
        session: PortraitSession,
        prompt: str,
        negative: str,
        seeds: list[int],
        steps: int,
        scale: float,
        weights: AdapterWeights | None,
        target: TargetDistribution | None,
    ) -> None:
        self.service, self.session, self.prompt, self.seeds = service, session, prompt, seeds
        self.target, self.weights = target, weights
        self._frames: queue.Queue[LiveFrame] = queue.Queue()
        self._images: Tensor | None = None
        self._error: Exception | None = None
        options = service.options()
        self._live = LiveBars(
            service.reader(), session.decode, self._frames.put, every=options.live_every, target=target
        )

        def work() -> None:
            try:
                self._images = session.sample(
                    [prompt] * len(seeds), seeds, steps, scale, weights, negative, self._live.offer
                )
            except Exception as error:  # handed to the thread that shows it
                self._error = error
            finally:
                self._live.close()

        self._thread = threading.Thread(target=work, name="fair-adapter-studio", daemon=True)

    def frames(self) -> Iterator[LiveFrame]:
        """Frames as they come, until the pictures are finished."""
        self._thread.start()
        while self._thread.is_alive() or not self._frames.empty():
            try:
                yield self._frames.get(timeout=0.1)
            except queue.Empty:
                continue

    def finish(self, heading: str, notes: list[str], name: str, text: str, strength: float) -> str:
        """HTML of the finished pictures; they are counted in the statistics."""
        if self._error is not None or self._images is None:
            if isinstance(self._error, FairAdapterError):
                raise self._error
            raise FairAdapterError(f"studio: the generation failed ({self._error!r}); choose fewer pictures")
        notes = [*notes, *([self._live.error] if self._live.error else [])]
        readings = self.service.reader().read(self._images)
        images = [to_pil(image) for image in self._images]
        statistics = FairnessStatistics(self.service.reader().attributes)
        statistics.add(readings)
        self._record(readings, images, name, text, strength)
        tiles = [
            (*views.thumbnail(image, faces), f"seed {seed}")
            for image, faces, seed in zip(images, readings, self.seeds)
        ]
        return views.panel(statistics, tiles, heading, notes, self.target)

    def _record(
        self, readings: list[list[FaceBars]], images: list[Image.Image], name: str, text: str, strength: float
    ) -> None:
        used = self.weights is not None
        rows = [
            PictureRecord(
                prompt=self.prompt, faces=faces, seed=seed, adapter=name if used else NO_ADAPTER,
                target=text if used else "", strength=strength if used else 0.0,
                model=self.session.path.name, width=image.width, height=image.height, origin="studio",
            )
            for faces, image, seed in zip(readings, images, self.seeds)
        ]  # fmt: skip
        self.service.records.add(rows)
