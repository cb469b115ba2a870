"""A small stand-in for AUTOMATIC1111 and Forge: real gradio, a real model, hooks as observed on the hosts.

STANDIN_ROOT=... STANDIN_PORTRAIT=... [STANDIN_FORGE=1 [STANDIN_NEO=1]] python webui.py PORT
"""

import os
import sys
import time
from pathlib import Path

ROOT = Path(os.environ["STANDIN_ROOT"])
sys.path.insert(0, str(ROOT))

import gradio as gr
import networks
from modules import api, paths, script_callbacks, scripts, shared, ui

HERE = Path(__file__).resolve().parent


def inject_assets():
    """Extensions' javascript/*.js and style.css into the page, as the hosts do."""
    javascript = [(HERE / "modules" / "page.js").read_text(encoding="utf-8")]
    javascript += [(HERE / "modules" / "own_errors.js").read_text(encoding="utf-8")] if paths.WHOLE else []
    styles = []
    for folder in sorted((ROOT / "extensions").iterdir()):
        files = sorted((folder / "javascript").glob("*.js"))
        javascript += [path.read_text(encoding="utf-8") for path in files]
        style = folder / "style.css"
        styles += [style.read_text(encoding="utf-8")] if style.is_file() else []
    head = "".join(f"<script>{text}</script>" for text in javascript)
    head += "".join(f"<style>{text}</style>" for text in styles)
    original = gr.routes.templates.TemplateResponse

    def respond(*args, **kwargs):
        response = original(*args, **kwargs)
        response.body = response.body.replace(b"</head>", head.encode("utf-8") + b"</head>", 1)
        response.init_headers()
        return response

    gr.routes.templates.TemplateResponse = respond


def lay_out_engines():
    """The names of Forge's engines, which say what models it runs; their content is not ours."""
    folder = ROOT / "backend" / "diffusion_engine"
    folder.mkdir(parents=True, exist_ok=True)
    own = ("zimage", "krea", "qwen") if shared.NEO else ("sd20", "sd35")
    for name in ("base", "sd15", "sdxl", "flux", "chroma", *own):
        (folder / f"{name}.py").touch()


def main():
    if shared.FORGE:
        lay_out_engines()
    for folder in ("extensions", shared.cmd_opts.embeddings_dir, "models/Lora", "outputs"):
        (ROOT / folder).mkdir(parents=True, exist_ok=True)
    shared.load_model()
    networks.register()
    scripts.load_scripts()
    inject_assets()
    demo = ui.create_ui()
    port = int(sys.argv[1])
    app, _, _ = demo.queue(64).launch(server_port=port, prevent_thread_lock=True, quiet=True, show_api=False,
                                      allowed_paths=[str(ROOT)])  # fmt: skip
    api.add_routes(app)
    script_callbacks.call("app_started", demo, app)
    print(f"ready http://127.0.0.1:{port}", flush=True)
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main()
