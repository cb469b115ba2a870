"""The part of /sdapi/v1 that the tests use."""

import base64
import io
import secrets
import sys
import threading
from types import SimpleNamespace

from fastapi import Depends, HTTPException
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from modules import infotext_utils, lowvram, script_callbacks, scripts, shared
from modules.processing import StableDiffusionProcessing, process_images
from PIL import Image, PngImagePlugin

queue_lock = threading.Lock()


def encode(image):
    """Text that the picture carries becomes chunks of the PNG."""
    buffer, chunks = io.BytesIO(), PngImagePlugin.PngInfo()
    for key, value in image.info.items():
        if isinstance(value, str):
            chunks.add_text(key, value)
    image.save(buffer, format="PNG", pnginfo=chunks)
    return base64.b64encode(buffer.getvalue()).decode()


def decode(text):
    return Image.open(io.BytesIO(base64.b64decode(text.split(",")[-1])))


def script_arguments(runner, given):
    """Defaults of the UI, with the given lists laid over them; what is too much is dropped in silence."""
    values = [None, *(getattr(c, "value", None) for c in runner.inputs[1:])]
    for title, request in (given or {}).items():
        script = runner.title_index(title)
        if script is None:
            raise HTTPException(status_code=422, detail=f"always on script {title} not found")
        for i, value in zip(range(script.args_to - script.args_from), request.get("args", [])):
            values[script.args_from + i] = value
    return values


def paste_into(runner, values, text):
    """`infotext` of a request sets the scripts' arguments, as pasting into the UI does."""
    found = infotext_utils.parse_generation_parameters(text)
    for component, target in runner.infotext_fields:
        value = target(found) if callable(target) else found.get(target)
        if value is not None and component in runner.inputs:
            values[runner.inputs.index(component)] = type(component.value)(value)
    return found


def generate(runner, body):
    body = dict(body)
    values = script_arguments(runner, body.pop("alwayson_scripts", None))
    text = body.pop("infotext", None)
    if text:
        found = paste_into(runner, values, text)
        body["prompt"] = body.get("prompt") or found["Prompt"]
        body["seed"] = body.get("seed") or int(found.get("Seed", -1))
    images = [decode(image) for image in body.pop("init_images", [])]
    mask = body.pop("mask", None)
    if body.pop("send_images", True) is False or not body.pop("save_images", False):
        body["do_not_save_samples"] = True
    with queue_lock:
        p = StableDiffusionProcessing(
            **body, init_images=images, mask=decode(mask) if mask else None, script_args=values, runner=runner
        )
        p.is_api = True
        shared.state.begin("api")
        try:
            processed = process_images(p)
        finally:
            shared.state.end()
    return {
        "images": [encode(image) for image in processed.images],
        "info": processed.js(),
        "comments": processed.comments,
    }


def add_routes(app):
    security = HTTPBasic()

    def auth(credentials: HTTPBasicCredentials = Depends(security)):  # noqa: B008
        users = dict(entry.split(":") for entry in shared.cmd_opts.api_auth.split(","))
        known = users.get(credentials.username)
        if known is not None and secrets.compare_digest(credentials.password, known):
            return True
        raise HTTPException(401, "Incorrect username or password", {"WWW-Authenticate": "Basic"})

    def route(path, endpoint, methods):
        dependencies = [Depends(auth)] if shared.cmd_opts.api_auth else None
        app.add_api_route(path, endpoint, methods=methods, dependencies=dependencies)

    def txt2img(body: dict):
        return generate(scripts.scripts_txt2img, body)

    def img2img(body: dict):
        return generate(scripts.scripts_img2img, body)

    def png_info(body: dict):
        image = decode(body["image"])
        text = image.info.get("parameters", "")
        return {
            "info": text,
            "items": dict(image.info),
            "parameters": infotext_utils.parse_generation_parameters(text),
        }

    def interrupt():
        shared.state.interrupt()
        return {}

    def skip():
        shared.state.skip()
        return {}

    route("/sdapi/v1/txt2img", txt2img, ["POST"])
    route("/sdapi/v1/img2img", img2img, ["POST"])
    route("/sdapi/v1/png-info", png_info, ["POST"])
    route("/sdapi/v1/progress", lambda: shared.state.progress(), ["GET"])
    route("/sdapi/v1/interrupt", interrupt, ["POST"])
    route("/sdapi/v1/skip", skip, ["POST"])
    app.add_api_route("/internal/progress", lambda: shared.state.progress(), methods=["GET"])
    app.add_api_route("/standin/start", start, methods=["GET"])
    app.add_api_route("/standin/moves", lambda: lowvram.moves, methods=["GET"])
    app.add_api_route("/standin/hooks", lambda: scripts.hooks_called, methods=["GET"])
    app.add_api_route("/standin/options", set_options, methods=["POST"])
    app.add_api_route("/standin/reload_embeddings", reload_embeddings, methods=["POST"])
    app.add_api_route("/standin/checkpoint", load_checkpoint, methods=["POST"])
    app.add_api_route("/standin/plot", plot, methods=["POST"])
    app.add_api_route("/standin/reload", lambda: reload_scripts(app, own), methods=["POST"])
    own = len(app.router.routes)


# ---- for the tests: how the start went, and what a person does on other pages


def start():
    return {"registrations": script_callbacks.registrations, "modules": sorted(sys.modules)}


def set_options(body: dict):
    unknown = [key for key in body if key not in shared.opts.data_labels]
    shared.opts.data.update(body)
    return {"unknown": unknown}


def reload_embeddings():
    shared.sd_model.embeddings.load_textual_inversion_embeddings(force_reload=True)
    return {}


def load_checkpoint(body: dict):
    """Observed: a checkpoint of the same kind is loaded into the same object."""
    name = body["name"]
    shared.sd_model.unet.conv_in.weight.mul_(body["scale"])
    shared.sd_model.sd_checkpoint_info = SimpleNamespace(
        name_for_extra=name, title=name, filename=f"{name}.safetensors"
    )
    return {}


def plot(body: dict):
    """The X/Y/Z plot with one axis: infotexts of its cells."""
    script = scripts.scripts_txt2img.title_index("X/Y/Z plot")
    values = script_arguments(scripts.scripts_txt2img, body.get("alwayson_scripts"))
    with queue_lock:
        p = StableDiffusionProcessing(
            body["prompt"], steps=body["steps"], seed=body["seed"], do_not_save_samples=True,
            script_args=values, runner=scripts.scripts_txt2img,
        )  # fmt: skip
        shared.state.begin("plot")
        cells = script.run(p, body["axis"], body["values"])
        shared.state.end()
    return {
        "infotexts": [cell.infotexts[0] for cell in cells],
        "images": [encode(c.images[0]) for c in cells],
    }


def reload_scripts(app, own):
    """Reload UI: scripts are executed again and make their widgets again.

    The host serves a new app then, whose routes extensions make anew: here theirs, behind `own`, go first.
    """
    from modules import ui

    scripts.load_scripts()
    demo = ui.create_ui()
    del app.router.routes[own:]
    script_callbacks.call("app_started", demo, app)
    return {"scripts": [script.title() for script in scripts.scripts_txt2img.scripts]}
