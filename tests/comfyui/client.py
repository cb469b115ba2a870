"""A program that talks to ComfyUI as the browser does: HTTP and websocket."""

from __future__ import annotations

import asyncio
import io
import json
import struct
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

Prompt = dict[str, dict[str, Any]]
LIMIT = 1200.0  # seconds for one prompt, however busy the machine


@dataclass
class Run:
    """What became of a prompt.

    events: (type, data) in order.  previews: (node, JPEG).  refused: the answer to a prompt not taken.
    """

    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    previews: list[tuple[str | None, bytes]] = field(default_factory=list)
    history: dict[str, Any] = field(default_factory=dict)
    refused: dict[str, Any] | None = None

    @property
    def ok(self) -> bool:
        return self.history.get("status", {}).get("status_str") == "success"

    @property
    def error(self) -> dict[str, Any]:
        """The execution error."""
        return next(data for kind, data in self.events if kind == "execution_error")

    def data(self, kind: str) -> list[dict[str, Any]]:
        """All events of a kind."""
        return [data for k, data in self.events if k == kind]

    @property
    def executed(self) -> set[str]:
        """Nodes that really ran."""
        return {data["node"] for data in self.data("executing") if data.get("node")}

    def output(self, node: str) -> dict[str, Any]:
        """A node's panel."""
        return self.history["outputs"][node]


class Client:
    """url: of the server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **query: str) -> Any:
        """JSON, or bytes of anything else; (status, JSON) of an error."""
        with urllib.request.urlopen(self._address(path, query), timeout=60) as answer:
            data = answer.read()
            return json.loads(data) if "json" in answer.headers.get("Content-Type", "") else data

    def status(self, path: str, body: bytes | None = None, **query: str) -> tuple[int, str]:
        """Status and text, also of errors."""
        try:
            with urllib.request.urlopen(self._address(path, query), body, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def post(self, path: str, table: Any) -> Any:
        request = urllib.request.Request(
            self.url + path, json.dumps(table).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            data = answer.read()
            return json.loads(data) if data else None

    def _address(self, path: str, query: dict[str, str]) -> str:
        return self.url + path + ("?" + urllib.parse.urlencode(query) if query else "")

    def pictures(self, run: Run, node: str) -> np.ndarray:
        """The pictures that a save or preview node wrote, (N, H, W, 3) of 0..255."""
        files = run.output(node)["images"]
        return np.stack([np.asarray(self.picture(file)) for file in files]).astype(np.int16)

    def picture(self, file: dict[str, str]) -> Image.Image:
        keys = ("filename", "subfolder", "type")
        data = self.get("/view", **{key: file[key] for key in keys})
        return Image.open(io.BytesIO(data)).convert("RGB")

    def run(
        self,
        prompt: Prompt,
        meanwhile: Callable[[str, dict[str, Any]], None] | None = None,
        until: Callable[[Run], bool] | None = None,
    ) -> Run:
        """Queue a prompt and follow it to its end, and on until something that comes after it was seen.

        meanwhile: called with every event.
        """
        return asyncio.run(self._run(prompt, meanwhile, until))

    async def _run(
        self,
        prompt: Prompt,
        meanwhile: Callable[[str, dict[str, Any]], None] | None,
        until: Callable[[Run], bool] | None,
    ) -> Run:
        import aiohttp

        run, client, end = Run(), uuid.uuid4().hex, time.monotonic() + LIMIT
        async with aiohttp.ClientSession() as session:
            address = f"{self.url.replace('http', 'ws')}/ws?clientId={client}"
            async with session.ws_connect(address, max_msg_size=0) as socket:
                features = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
                await socket.send_str(json.dumps(features))
                body = {"prompt": prompt, "client_id": client}
                async with session.post(f"{self.url}/prompt", json=body) as answer:
                    table = await answer.json()
                    if answer.status != 200:
                        run.refused = table
                        return run
                identity = table["prompt_id"]
                while True:
                    message = await asyncio.wait_for(socket.receive(), end - time.monotonic())
                    if message.type == aiohttp.WSMsgType.BINARY:
                        run.previews.append(_preview(message.data))
                    elif message.type == aiohttp.WSMsgType.TEXT:
                        event = json.loads(message.data)
                        kind, data = event["type"], event.get("data") or {}
                        run.events.append((kind, data))
                        if meanwhile is not None:
                            await asyncio.get_running_loop().run_in_executor(None, meanwhile, kind, data)
                        if _over(kind, data, identity):
                            failed = kind != "executing"
                            break
                    else:
                        raise ConnectionError(f"the websocket ended: {message}")
                await _stragglers(socket, run, None if failed else until)
            async with session.get(f"{self.url}/history/{identity}") as answer:
                run.history = (await answer.json()).get(identity, {})
        return run


def _over(kind: str, data: dict[str, Any], identity: str) -> bool:
    if data.get("prompt_id") != identity:
        return False
    ended = kind in ("execution_error", "execution_interrupted")
    return ended or (kind == "executing" and data.get("node") is None)


async def _stragglers(socket: Any, run: Run, until: Callable[[Run], bool] | None) -> None:
    """Events of our worker thread that come just after the end."""
    import aiohttp

    try:
        while until is None or not until(run):
            message = await asyncio.wait_for(socket.receive(), 0.5 if until is None else LIMIT)
            if message.type == aiohttp.WSMsgType.TEXT:
                event = json.loads(message.data)
                run.events.append((event["type"], event.get("data") or {}))
    except (TimeoutError, asyncio.TimeoutError):
        return


def _preview(data: bytes) -> tuple[str | None, bytes]:
    """Node and JPEG of a preview frame."""
    (kind,) = struct.unpack(">I", data[:4])
    if kind != 4:
        return None, data[8:]
    (length,) = struct.unpack(">I", data[4:8])
    return json.loads(data[8 : 8 + length])["node_id"], data[8 + length :]
