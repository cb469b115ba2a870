"""What our panels ask the server for, under /fair_adapter. All of it only reads, but for a reset."""

from __future__ import annotations

import asyncio
import functools
import io
import re
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from server import PromptServer

from ..shared.errors import FairAdapterError
from ..shared.quota import MOST_PICTURES
from . import host, targets, texts
from .collection import COLLECTIONS, statistics_dict
from .session import MOST, SESSION, read_number, session_dict

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
PREFIX = "/fair_adapter"
SHOWN = 40  # rows of a table


def register() -> None:
    """Add the routes to the running server; nothing where there is none, as in tests of single nodes."""
    server = getattr(PromptServer, "instance", None)
    if server is None:
        return
    table = server.routes
    table.get(f"{PREFIX}/adapters")(_guarded(adapters))
    table.get(f"{PREFIX}/adapter")(_guarded(adapter))
    table.get(f"{PREFIX}/target")(_guarded(target))
    table.get(f"{PREFIX}/table")(_guarded(target_table))
    table.get(f"{PREFIX}/statistics")(_guarded(statistics))
    table.get(f"{PREFIX}/statistics.csv")(_guarded(statistics_csv))
    table.get(f"{PREFIX}/statistics.png")(_guarded(statistics_png))
    table.post(f"{PREFIX}/statistics/reset")(_guarded(reset))
    table.get(f"{PREFIX}/session")(_guarded(session))
    table.post(f"{PREFIX}/session/reset")(_guarded(session_reset))


def _guarded(handler: Handler) -> Handler:
    """Errors that a user can put right become status 400 with one line, never a traceback."""

    @functools.wraps(handler)
    async def guarded(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except FairAdapterError as error:
            return web.json_response({"error": str(error)}, status=400)

    return guarded


async def _off_loop(call: Callable[..., Any], *arguments: Any) -> Any:
    """Files are read and statistics counted beside the event loop, which has previews to send."""
    return await asyncio.get_running_loop().run_in_executor(None, call, *arguments)


async def adapters(request: web.Request) -> web.Response:
    """Names of all adapters."""
    return web.json_response(await _off_loop(host.library().names))


async def adapter(request: web.Request) -> web.Response:
    """What a file says about itself, or in "error" why it can't be used: ?name=."""
    name = request.query.get("name", "")
    return web.json_response(await _off_loop(lambda: texts.summary_dict(host.library().entry(name))))


async def target(request: web.Request) -> web.Response:
    """What a target text means: ?text=&preset=&adapter= (the last two may be left out)."""
    text, preset, name = (request.query.get(key, "") for key in ("text", "preset", "adapter"))
    try:
        known = await _off_loop(host.library().outline, name) if name else None
    except FairAdapterError:  # its own panel tells; the sliders work without it
        known = None
    return web.json_response(targets.target_dict(text, preset or targets.OWN, known))


async def target_table(request: web.Request) -> web.Response:
    """The rows of a table of targets, or in "error" why it can't be used: ?name=."""
    name = request.query.get("name", "")
    return web.json_response(await _off_loop(_rows, name))


def _rows(name: str) -> dict[str, Any]:
    try:
        rows = host.tables().load(name, targets.known_attributes(None)).rows
    except FairAdapterError as error:
        return {"name": name[:200], "error": str(error), "rows": []}
    told = [{"pattern": r.pattern, "target": r.target.to_text(), "origin": r.origin} for r in rows[:SHOWN]]
    return {"name": name, "error": "", "rows": told, "count": len(rows)}


async def statistics(request: web.Request) -> web.Response:
    """A collection's shares, none of an unknown one: ?name=."""
    name = request.query.get("name", "")
    try:
        return web.json_response(await _off_loop(lambda: statistics_dict(name, *COLLECTIONS.get(name))))
    except FairAdapterError:
        return web.json_response({"name": name[:200], "pictures": 0, "faces": 0, "shares": {}})


async def statistics_csv(request: web.Request) -> web.Response:
    """A collection as a CSV file: ?name=."""
    name = request.query.get("name", "")
    found, aim = await _off_loop(COLLECTIONS.get, name)
    headers = {"Content-Disposition": f'attachment; filename="{_file_name(name)}.csv"'}
    return web.Response(text=await _off_loop(found.to_csv, aim), content_type="text/csv", headers=headers)


async def statistics_png(request: web.Request) -> web.Response:
    """A collection as a picture: ?name=."""
    name = request.query.get("name", "")
    data = await _off_loop(_drawn, name)
    headers = {"Content-Disposition": f'attachment; filename="{_file_name(name)}.png"'}
    return web.Response(body=data, content_type="image/png", headers=headers)


def _drawn(name: str) -> bytes:
    found, aim = COLLECTIONS.get(name)
    data = io.BytesIO()
    found.draw(aim, 720).save(data, "PNG")
    return data.getvalue()


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_\-]+", "_", name)[:80] or "statistics"


async def reset(request: web.Request) -> web.Response:
    """Forget a collection: JSON {"name": ...}."""
    try:
        table = await request.json()
        name = table["name"]
        if not isinstance(name, str):
            raise TypeError("a name that is no text")
    except (ValueError, KeyError, TypeError) as error:
        raise FairAdapterError(
            f'reset: expected JSON {{"name": "..."}}, found {error!r}; send the collection\'s name'
        ) from error
    await _off_loop(COLLECTIONS.reset, name)
    return web.json_response({"name": name})


async def session(request: web.Request) -> web.Response:
    """The last pictures of the session: ?last=&target=&pictures= (the last two may be left out)."""
    query = request.query
    last = read_number("last", query.get("last", "100"), 1, MOST)
    pictures = read_number("pictures", query.get("pictures", "0"), 0, MOST_PICTURES)
    aim = targets.choose(query["target"], targets.OWN, None) if query.get("target", "").strip() else None
    return web.json_response(await _off_loop(session_dict, last, aim, pictures))


async def session_reset(request: web.Request) -> web.Response:
    """Forget the session's pictures; collections stay."""
    await _off_loop(SESSION.reset)
    return web.json_response({"pictures": 0})
