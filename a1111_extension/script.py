"""The always-on script: binds the host's hooks to `Generation`, the widgets and the routes.

Nothing here raises into the host: `guarded` turns whatever fails into one line for the user and lets the
generation go on without the adapter. With the accordion closed every hook returns at once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from modules import script_callbacks, scripts

from . import infotext, plot, routes, tab, ui
from .generation import Generation
from .host import WebuiHost, add_settings, webui_service
from .job import Job, job_of

Hook = Callable[..., None]
HOST = WebuiHost()
SERVICE = webui_service()
_sampling: dict[str, Job | None] = {"job": None}  # the callback of a step is not told whose step it is
_generations: dict[str, Generation] = {}


def guarded(before_sampling: bool) -> Callable[[Hook], Hook]:
    """A hook whose failure ends our part of the generation and nothing else.

    before_sampling: the pictures will lack the adapter; else they only lack their readings.
    """

    def guard(hook: Hook) -> Hook:
        @wraps(hook)
        def run(self: FairAdapterScript, p: Any, *args: Any, **kwargs: Any) -> None:
            try:
                hook(self, p, *args, **kwargs)
            except Exception as error:  # whatever it is
                job, generation = job_of(p), self.generation
                if job is not None:
                    (generation.fail if before_sampling else generation.warn)(p, job, error)

        return run

    return guard


class FairAdapterScript(scripts.Script):
    def title(self) -> str:
        return "Fair Adapter"

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    @property
    def generation(self) -> Generation:
        origin = "img2img" if self.is_img2img else "txt2img"
        if origin not in _generations:
            _generations[origin] = Generation(SERVICE, HOST, origin)
        return _generations[origin]

    def ui(self, is_img2img: bool) -> list[Any]:
        from modules.ui_components import InputAccordion

        def accordion(**options: Any) -> Any:
            return InputAccordion(False, label="Fair Adapter", **options)

        controls, self.infotext_fields = ui.build(SERVICE, accordion, self.elem_id, HOST.loaded_model)
        self.paste_field_names = [label for _, label in self.infotext_fields]
        return controls

    def after_component(self, component: Any, **kwargs: Any) -> None:
        ui.place_panel(SERVICE, component, kwargs.get("elem_id"))

    # ---- hooks, in the order in which the host calls them

    @guarded(before_sampling=True)
    def process(self, p: Any, *args: Any) -> None:
        self.generation.start(p, args)

    @guarded(before_sampling=True)
    def before_process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        self.generation.keep_visible(p)

    @guarded(before_sampling=True)
    def process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        self.generation.inject(p)

    @guarded(before_sampling=False)
    def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
        _sampling["job"] = self.generation.begin_sampling(p)

    @guarded(before_sampling=False)
    def postprocess_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        _sampling["job"] = None
        self.generation.end_sampling(p)

    @guarded(before_sampling=False)
    def postprocess_image_after_composite(self, p: Any, pp: Any, *args: Any) -> None:
        self.generation.finished_picture(p, pp.image, getattr(p, "batch_index", 0))

    @guarded(before_sampling=False)
    def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
        _sampling["job"] = None
        self.generation.finish(p, processed)


def _on_step(parameters: Any) -> None:
    job = _sampling["job"]
    if job is not None and job.live is not None:
        try:
            counted, total = int(parameters.sampling_step), int(parameters.total_sampling_steps)
            _generations[job.origin].denoised(job, parameters.x, counted, total)
        except Exception as error:  # a preview never ends a generation
            _sampling["job"] = None
            SERVICE.say(f"live bars stopped: {error}")


def _on_save(parameters: Any) -> None:
    job = job_of(parameters.p)
    if job is None:
        return
    try:
        pnginfo = parameters.pnginfo if parameters.pnginfo is not None else {}
        other = _generations[job.origin].before_saved(parameters.p, parameters.image, pnginfo)
        if other is not None:
            parameters.image = other
    except Exception as error:  # the picture is saved as it is
        SERVICE.say(f"readings were not written into the picture: {error}")


def _on_pasted(text: str, parameters: dict[str, Any]) -> None:
    infotext.clean_pasted(parameters)


def _on_app(blocks: Any, app: Any) -> None:
    from modules import shared

    routes.register(app, SERVICE, getattr(shared.cmd_opts, "api_auth", None))


def _on_tabs() -> list[tuple[Any, str, str]]:
    from modules import shared

    folders = not getattr(shared.cmd_opts, "hide_ui_dir_config", False)
    return [(tab.build(SERVICE, HOST, local_folders=folders), "Fair Adapter", "fair_adapter_tab")]


def _on_before_ui() -> None:
    """The host looks through its call stack at every registration, which while scripts are being imported is
    deep and full of the import system: only the one that calls this happens then."""
    script_callbacks.on_ui_settings(add_settings)
    script_callbacks.on_ui_tabs(_on_tabs)
    script_callbacks.on_app_started(_on_app)
    script_callbacks.on_cfg_after_cfg(_on_step)
    script_callbacks.on_before_image_saved(_on_save)
    script_callbacks.on_infotext_pasted(_on_pasted)
    script_callbacks.on_script_unloaded(_on_unloaded)
    plot.add_axes(scripts.scripts_data)


def _on_unloaded() -> None:
    SERVICE.monitor.end()
    _sampling["job"] = None


def register() -> None:
    """Called by the script file itself, when all that it imports is there."""
    script_callbacks.on_before_ui(_on_before_ui)
