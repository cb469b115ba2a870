"""The tab: adapter library, statistics of past generations, analysis of pictures. Also in the studio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import gradio as gr
from PIL import Image

from ..shared.adapter_export import export_adapter, hosts_note
from ..shared.adapter_info import STRENGTHS
from ..shared.attributes import TargetDistribution
from ..shared.bar_grid import draw_grid
from ..shared.errors import FairAdapterError
from ..shared.faces import least_face
from ..shared.images import image_files, open_image, other_files, to_tensor
from ..shared.library import AdapterSummary
from ..shared.statistics import FairnessStatistics
from ..shared.switches import apart
from . import views
from .injection import NativeStore
from .planning import ANY, even_out, filtered, words_tool
from .request import NO_ADAPTER
from .service import FairService
from .uploads import add_table

LIMIT = 500  # pictures of one analysis
SHEET = 120  # pictures on the contact sheet
TOLD = 20  # pictures left out that are named


class Folders(Protocol):
    """Where native files are exported to."""

    def native_store(self, keep: int) -> NativeStore: ...

    def take_embedding(self, name: str, path: Path) -> bool:
        """Make the program know an embedding file; False if it refused it."""
        ...


def build(service: FairService, host: Folders | None, local_folders: bool = True) -> Any:
    """A page of its own for the host.  local_folders: offer to read a folder of the host's machine."""
    with gr.Blocks(analytics_enabled=False) as page:
        fill(page, service, host, local_folders)
    components: dict[int, Any] = page.blocks
    for component in components.values():
        component.do_not_save_to_config = True  # the host would make targets and names of today its defaults
    return page


def fill(page: gr.Blocks, service: FairService, host: Folders | None, local_folders: bool = True) -> None:
    """The four parts, inside an open page."""
    with gr.Tabs(elem_id="fair_tabs"):
        with gr.TabItem("Library", elem_id="fair_library_tab"):
            _library(page, service, host)
        with gr.TabItem("Statistics", elem_id="fair_statistics_tab"):
            _statistics(service)
        with gr.TabItem("Analyse pictures", elem_id="fair_analyse_tab"):
            _analysis(service, local_folders)
        with gr.TabItem("Draw attributes", elem_id="fair_words_tab"):
            words_tool(service)


# ---- library


def _library(page: gr.Blocks, service: FairService, host: Folders | None) -> None:
    names = service.library.names()
    usable = service.first_choice()
    first = usable if usable != NO_ADAPTER else names[0] if names else None
    table = gr.HTML("", elem_id="fair_library_table")
    page.load(lambda: _table(service), [], [table], queue=False)  # reads all headers: not at the host's start
    with gr.Row():
        chosen = gr.Dropdown(names, value=first, label="Adapter", elem_id="fair_library_choice")
        refresh = gr.Button("Refresh", elem_id="fair_library_refresh", scale=0, min_width=120)
    card = gr.HTML(_card(service, first), elem_id="fair_library_card")
    with gr.Row():
        target = gr.Textbox(
            _default(service, first), label="Export at the target", lines=2, max_lines=6, scale=2,
            elem_id="fair_export_target",
        )  # fmt: skip
        strength = gr.Slider(
            *STRENGTHS, value=1.0, step=0.05, label="Strength", elem_id="fair_export_strength"
        )
        name = gr.Textbox("", label="File name", placeholder="my_adapter", elem_id="fair_export_name")
    export = gr.Button("Export native LoRA and embedding", elem_id="fair_export", visible=host is not None)
    result = gr.HTML("", elem_id="fair_export_result")
    upload = gr.File(label="Add a table of targets by prompt (CSV)", elem_id="fair_table_upload")
    uploaded = gr.HTML("", elem_id="fair_table_uploaded")
    upload.change(lambda file: add_table(service, file), [upload], [uploaded], queue=False)

    def on_export(adapter: str | None, text: str, number: float, file_name: str) -> str:
        assert host is not None
        return export_native(service, host, adapter or "", text, number, file_name)

    chosen.change(lambda n: [_card(service, n), _default(service, n)], [chosen], [card, target], queue=False)
    refresh.click(
        lambda n: [_table(service), gr.update(choices=service.library.names()), _card(service, n)],
        [chosen], [table, chosen, card], queue=False,
    )  # fmt: skip
    export.click(on_export, [chosen, target, strength, name], [result], queue=False)


def export_native(
    service: FairService, host: Folders, adapter: str, target: str, strength: float, name: str
) -> str:
    """Write NAME.safetensors into the host's folders of embeddings and LoRAs; HTML that says where."""
    try:
        if not adapter:
            raise FairAdapterError("export: choose an adapter first")
        store, loaded = host.native_store(service.options().keep_files), service.library.load(adapter)
        files = export_adapter(
            loaded, target.strip() or None, name.strip(), store.loras, store.embeddings, strength
        )
    except FairAdapterError as error:
        return service.problem(error)
    lines = [f"LoRA: {files.lora}, use <lora:{name.strip()}:1>"] if files.lora else []
    warnings = [*files.weights.warnings, *hosts_note(loaded)]
    if files.embedding:
        token = files.embedding.stem
        lines.append(f"embedding: {files.embedding}, put {token} first")
        if not host.take_embedding(token, files.embedding):
            warnings.append(f"the loaded model can't take {token}: it is for {loaded.info.base.name}")
    return views.message(map(service.public, warnings)) + views.message(map(service.public, lines), "info")


def _table(service: FairService) -> str:
    return views.library_table([_public(service, entry) for entry in service.library.summaries()])


def _public(service: FairService, summary: AdapterSummary) -> AdapterSummary:
    return replace(summary, error=service.public(summary.error))


def _card(service: FairService, name: str | None) -> str:
    return views.adapter_card(_public(service, service.library.entry(name))) if name else ""


def _default(service: FairService, name: str | None) -> str:
    return service.default_target(name) if name else ""


# ---- statistics


def _statistics(service: FairService) -> None:
    with gr.Row():
        prompt = gr.Textbox("", label="Prompt contains", elem_id="fair_filter_prompt")
        adapter = gr.Dropdown(
            [ANY, *_recorded(service, "adapter")], value=ANY, label="Adapter", elem_id="fair_filter_adapter"
        )
        model = gr.Dropdown(
            [ANY, *_recorded(service, "model")], value=ANY, label="Model", elem_id="fair_filter_model"
        )
        target = gr.Textbox(
            "", label="Compare with the target", placeholder="gender=50/50", elem_id="fair_filter_target"
        )
        last = gr.Number(
            0,
            label="Last pictures",
            precision=0,
            elem_id="fair_filter_last",
            info="the newest of these; 0: all",
        )
    with gr.Row():
        show = gr.Button("Show", variant="primary", elem_id="fair_statistics_show")
        save = gr.Button("CSV", elem_id="fair_statistics_csv")
        sure = gr.Checkbox(False, label="Really delete", elem_id="fair_statistics_sure")
        reset = gr.Button("Delete what the filter shows", elem_id="fair_statistics_reset")
    view = gr.HTML("", elem_id="fair_statistics")
    file = gr.File(label="CSV file", visible=False, elem_id="fair_statistics_file")
    chosen = [prompt, adapter, model, target, last]
    even_out(service, chosen)

    def on_show(*chosen: Any) -> list[Any]:
        menus = [gr.update(choices=[ANY, *_recorded(service, name)]) for name in ("adapter", "model")]
        return [show_statistics(service, *chosen), *menus]

    def on_save(*chosen: Any) -> list[Any]:
        try:
            text = service.records.to_csv(filtered(*chosen[:3], last=chosen[4]))
        except FairAdapterError as error:
            return [gr.update(visible=False), service.problem(error)]
        place = service.scratch.place("fair_statistics.csv")
        place.write_text(text, encoding="utf-8")
        return [gr.update(value=str(place), visible=True), gr.update()]

    def on_reset(certain: bool, *chosen: Any) -> list[Any]:
        if not certain:
            return [views.message(["Tick 'Really delete' first."], "warning"), False]
        try:
            count = service.records.reset(filtered(*chosen[:3], last=chosen[4]))
        except FairAdapterError as error:
            return [service.problem(error), False]
        return [views.message([f"{count} pictures forgotten."], "info"), False]

    show.click(on_show, chosen, [view, adapter, model], queue=False)
    save.click(on_save, chosen, [file, view], queue=False)
    reset.click(on_reset, [sure, *chosen], [view, sure], queue=False)


def show_statistics(
    service: FairService, prompt: str, adapter: str, model: str, target: str, last: Any = 0
) -> str:
    """HTML of the chosen records against a target."""
    try:
        statistics = service.records.statistics(filtered(prompt, adapter, model, last))
        aimed = service.target("" if adapter == ANY else adapter, target or "")
        return views.statistics_view(statistics, aimed)
    except FairAdapterError as error:
        return service.problem(error)


def _recorded(service: FairService, column: str) -> list[str]:
    try:
        return service.records.choices(column)
    except FairAdapterError as error:
        service.say(str(error))
        return []


# ---- analysis of pictures


def _analysis(service: FairService, local_folders: bool) -> None:
    with gr.Row():
        files = gr.File(label="Pictures", file_count="multiple", elem_id="fair_analyse_files")
        with gr.Column():
            folder = gr.Textbox(
                "", label="or a folder on the machine that runs this", visible=local_folders,
                elem_id="fair_analyse_folder",
            )  # fmt: skip
            target = gr.Textbox(
                "", label="Compare with the target", placeholder="gender=50/50;race=equal",
                elem_id="fair_analyse_target",
            )  # fmt: skip
            start = gr.Button("Analyse", variant="primary", elem_id="fair_analyse")
    view = gr.HTML("", elem_id="fair_analysis")
    sheet = gr.File(label="Contact sheet (PNG)", visible=False, elem_id="fair_analysis_sheet")

    def on_start(given: Any, path: str, text: str) -> list[Any]:
        folder = path if local_folders and not given else ""
        html, picture = analyse(service, given_files(given, folder), text or "", folder)
        if picture is None:
            return [html, gr.update(visible=False)]
        place = service.scratch.place("contact_sheet.png")
        picture.save(place)
        return [html, gr.update(value=str(place), visible=True)]

    start.click(on_start, [files, folder, target], [view, sheet])


def given_files(given: Any, folder: str) -> list[Path] | str:
    """Dropped files, or those of a folder; a text is what is wrong. Gradio 3 hands over file objects."""
    dropped = given if isinstance(given, (list, tuple)) else [given] if given else []
    paths = [Path(getattr(item, "name", item)) for item in dropped]
    if paths:
        return paths
    if not folder or not folder.strip():
        return "Drop pictures or name a folder first."
    try:
        return image_files(_folder(folder))
    except (FairAdapterError, OSError, RuntimeError) as error:  # RuntimeError: of a home that isn't known
        return str(error)


def analyse(
    service: FairService, files: Sequence[Path] | str, target: str, folder: str = ""
) -> tuple[str, Image.Image | None]:
    """HTML with boxes, bars and shares, and the contact sheet; None without a readable picture.

    folder: where the files are from, of which other kinds of files are told too.
    """
    if isinstance(files, str):
        return views.message([files], "warning"), None
    notes = [f"Only the first {LIMIT} of {len(files)} pictures are read."] if len(files) > LIMIT else []
    try:
        reader = service.reader()
        attributes = reader.attributes
        aimed = service.target(NO_ADAPTER, target)
        statistics = FairnessStatistics(attributes)
        tiles = []
        lost: list[str] = []
        faceless: list[int] = []
        for path in files[:LIMIT]:
            try:
                image = open_image(path)
            except FairAdapterError as error:
                lost.append(f"left out: {str(error).replace(str(path), path.name)}")
                continue
            with apart():  # the host may be sampling
                faces = reader.read(to_tensor(image)[None])[0]
            statistics.add([faces])
            if not faces:
                faceless.append(least_face(image.height, image.width))
            tiles.append((*views.thumbnail(image, faces), path.name))
        notes += no_face(faceless) + left_out(lost, other_files(_folder(folder)) if folder else "")
    except FairAdapterError as error:
        return service.problem(error), None
    if not tiles:
        return views.message(notes or ["No picture could be read."], "error"), None
    html = views.panel(statistics, tiles, f"{len(tiles)} pictures", notes, aimed)
    return html, contact_sheet(tiles, statistics, aimed)


def _folder(text: str) -> Path:
    return Path(text.strip()).expanduser()


def no_face(least: Sequence[int]) -> list[str]:
    """How many pictures are without a face, and how small one may be.  least: `least_face` of each."""
    if not least:
        return []
    size = f"{min(least)}" if min(least) == max(least) else f"{min(least)} to {max(least)}"
    return [f"{len(least)} without a face of {size} px, the least that is looked for in such a picture"]


def left_out(lost: Sequence[str], others: str) -> list[str]:
    """What was not read and why: the first pictures by name, and the other kinds of files."""
    more = len(lost) - TOLD
    lines = [*lost[:TOLD], *([f"left out: {more} more that can't be read"] if more > 0 else [])]
    return [*lines, *([f"left out as no pictures: {others}"] if others else [])]


def contact_sheet(
    tiles: Sequence[tuple[Image.Image, Sequence[Any], str]],
    statistics: FairnessStatistics,
    target: TargetDistribution | None,
) -> Image.Image:
    """Pictures with bars, shares and legend as one image; the shares are those of the pictures on it."""
    shown = tiles[:SHEET]
    title = f"{len(tiles)} pictures" + ("" if len(tiles) <= SHEET else f", the first {SHEET} of them")
    images, faces = [t[0] for t in shown], [t[1] for t in shown]
    return draw_grid(images, faces, statistics.attributes, target, title=title)
