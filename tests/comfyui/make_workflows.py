"""Saves the example workflows and their thumbnails through the real front end.

    python tests/comfyui/make_workflows.py [NAME ...] [--pictures FOLDER]

Run it after workflows.py or a node's inputs changed. It builds the lab if there is none, runs every workflow
once or more on the portrait model, and writes example_workflows/NAME.json and NAME.jpg; the whole pictures go
to --pictures as well.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from fair_adapter.tests.comfyui import browser, lab
from fair_adapter.tests.comfyui.workflows import FLOWS, Flow

OUT = Path(__file__).resolve().parents[2] / "example_workflows"
PORT = 8499
VIEW = (120, 160)  # px on the page where pictures begin, clear of the toolbars
THUMBNAIL = 512  # px


def save(page: browser.Page, flow: Flow, path: Path) -> None:
    """Put the workflow on the canvas as it is described, and write what the front end makes of it."""
    page.page.evaluate("(prompt) => window.app.loadApiJson(prompt, 'workflow.json')", flow.nodes)
    page.page.wait_for_timeout(1500)
    page.do("lay", [flow.places, list(flow.note), flow.after])
    page.page.wait_for_timeout(2500)
    table = json.loads(page.page.evaluate("() => JSON.stringify(window.app.graph.serialize())"))
    table.pop("id", None)
    table["extra"] = {"ds": {"scale": 0.7, "offset": [60, 120]}}
    path.write_text(as_text(table), encoding="utf-8")


def as_text(table: dict[str, Any]) -> str:
    """JSON with a line for each node and each link, so that changes can be read."""
    lists = {
        key: [json.dumps(row, ensure_ascii=False) for row in table.pop(key)] for key in ("nodes", "links")
    }
    parts = [f'"{key}": [\n' + ",\n".join(rows) + "\n]" for key, rows in lists.items()]
    rest = json.dumps(table, ensure_ascii=False)[1:-1]
    return "{\n" + ",\n".join([*parts, rest]) + "\n}\n"


def picture(page: browser.Page, nodes: tuple[str, ...] = ()) -> Image.Image:
    """These nodes, none meaning all, without the front end around them."""
    x0, y0, x1, y1 = page.do("bounds", nodes)
    width, height = page.page.viewport_size.values()
    scale = min(1.0, (width - VIEW[0] - 12) / (x1 - x0), (height - VIEW[1] - 12) / (y1 - y0))
    page.do("show", [scale, VIEW[0] / scale - x0, VIEW[1] / scale - y0])
    page.page.keyboard.press("Escape")  # the front end's welcome, which comes when it will
    page.page.wait_for_timeout(2000)
    box = [VIEW[0] - 8, VIEW[1] - 8, VIEW[0] + (x1 - x0) * scale + 8, VIEW[1] + (y1 - y0) * scale + 8]
    clip = {"x": box[0], "y": box[1], "width": box[2] - box[0], "height": box[3] - box[1]}
    return Image.open(io.BytesIO(page.page.screenshot(clip=clip, timeout=browser.LIMIT))).convert("RGB")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FLOWS)}; default: all")
    parser.add_argument("--pictures", type=Path, help="folder of the whole pictures")
    options = parser.parse_args()
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fair_workflows") as folder:
        base = Path(folder)
        for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
            (base / name).mkdir()
        lab.install_pack(base / "custom_nodes")
        server = lab.Server(lab.ready(), base, PORT, lab.FRONT_ENDS[0])
        try:
            while not server.answers():
                time.sleep(0.5)
            with browser.opened(lab.browser(), server.url, False, "workflows", (2200, 1800)) as page:
                for name in options.names or FLOWS:
                    flow = FLOWS[name]()
                    save(page, flow, OUT / f"{name}.json")
                    for _ in range(flow.runs):
                        page.run()
                    if options.pictures:
                        options.pictures.mkdir(parents=True, exist_ok=True)
                        picture(page).save(options.pictures / f"{name}.png")
                    image = picture(page, flow.shown)
                    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
                    image.save(OUT / f"{name}.jpg", quality=85)
                    print(f"{name}: {image.width} x {image.height}", flush=True)
        finally:
            server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
