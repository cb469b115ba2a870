"""Fair Adapter without a webui: draws with the small portrait model, before and after, with live bars.

    python studio/studio.py [--port 7861] [--adapters FOLDER] [--model FOLDER] [--device cuda]

`python install.py studio` sets up what it needs and starts it. Opens on this machine alone. Exit code 2 and
one line on bad input.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fair_adapter.shared.errors import FairAdapterError

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=7861, help="7861")
    parser.add_argument(
        "--adapters", type=Path, default=ROOT / "runs", help="folder of your own adapters (runs)"
    )
    parser.add_argument("--model", type=Path, default=ROOT / "shared" / "portrait", help="a diffusers folder")
    parser.add_argument("--device", default="", help="cpu, cuda, ...; the GPU if there is one")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="folder of the statistics (data)")
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    parser.add_argument("--skin-tone", action="store_true", help="measure skin tone too: a fourth bar")
    options = parser.parse_args(arguments)
    try:
        return run(options)
    except (FairAdapterError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace) -> int:
    try:
        import gradio
    except ImportError:
        raise FairAdapterError(
            "studio: expected the package gradio, found none; start it with `python install.py studio`"
        ) from None
    import torch

    from fair_adapter.a1111_extension.options import FairOptions
    from fair_adapter.a1111_extension.service import FairService
    from fair_adapter.studio.page import build
    from fair_adapter.studio.session import PortraitSession

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    session = PortraitSession(options.model, device)
    session.base_model()  # what is wrong with the model is said before a page opens
    chosen = FairOptions(skin_tone=options.skin_tone)
    service = FairService([options.adapters], options.data, lambda: chosen, lambda: device)
    page = build(service, session, options.adapters)
    style = (ROOT / "style.css").read_text(encoding="utf-8")
    page.queue(default_concurrency_limit=1)
    theme = gradio.themes.Default(  # fonts of this machine: the page loads nothing from elsewhere
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    page.launch(
        server_name="127.0.0.1", server_port=options.port, inbrowser=not options.no_browser,
        theme=theme, css=style, quiet=True, prevent_thread_lock=True,
    )  # fmt: skip
    print(f"Fair Adapter studio: http://127.0.0.1:{options.port} (Ctrl-C ends it)", flush=True)
    page.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
