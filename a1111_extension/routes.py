"""Read-only JSON under one prefix, for scripts and for the page's own overlay.

    GET /fair-adapter/adapters               all adapter files
    GET /fair-adapter/adapter?name=NAME      one of them
    GET /fair-adapter/live                   the live bars of the sampling in progress
    GET /fair-adapter/last?tab=txt2img       readings of a tab's last generation
    GET /fair-adapter/statistics?prompt=&adapter=&model=&target=&last=&pictures=   past generations
    GET /fair-adapter/words?prompt=&target=&pictures=&seed=&first=&place=&marker=&phrases=&last=   prompts

With --api-auth they ask for the same name and password. Errors are {"detail": "one line"}.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from ..shared.errors import FairAdapterError
from ..shared.library import AdapterSummary
from . import planning
from .monitor import LiveMonitor
from .records import RecordFilter
from .service import FairService

PREFIX = "/fair-adapter"


class Api:
    """The answers, as plain functions that return what JSON can hold and raise FairAdapterError."""

    def __init__(self, service: FairService) -> None:
        self.service = service

    def adapters(self) -> dict[str, Any]:
        return {"adapters": [self._adapter(summary) for summary in self.service.library.summaries()]}

    def adapter(self, name: str) -> dict[str, Any]:
        return self._adapter(self.service.library.summary(name))

    def _adapter(self, summary: AdapterSummary) -> dict[str, Any]:
        return {**summary.to_dict(), "error": self.service.public(summary.error)}

    def live(self) -> dict[str, Any]:
        monitor: LiveMonitor = self.service.monitor
        return monitor.to_dict()

    def last(self, tab: str = "txt2img") -> dict[str, Any]:
        found = self.service.last.get(tab)
        return {"tab": tab, "result": found.data if found is not None else None}

    def statistics(
        self,
        prompt: str = "",
        adapter: str = "",
        model: str = "",
        target: str = "",
        last: str = "0",
        pictures: str = "0",
    ) -> dict[str, Any]:
        """pictures: of the next batch, whose counts would even these out; 0 asks for none."""
        chosen = RecordFilter(prompt, adapter, model, planning.whole("last", last, 0))
        statistics = self.service.records.statistics(chosen)
        aimed = self.service.target(adapter, target) if target.strip() else None
        images = planning.whole("pictures", pictures, 0)
        further = {}
        if images:
            batch = planning.next_batch(
                self.service, planning.aimed(self.service, target, adapter), images, chosen
            )
            further = {"next": {"target": batch.target.to_text(), "text": batch.to_text()}}
        return {
            "pictures": statistics.pictures,
            "without_face": statistics.without_face,
            "prompts": statistics.groups,
            "bias": {a.name: statistics.bias(a.name) for a in statistics.attributes},
            "note": statistics.note(),
            "shares": [row.to_dict() for row in statistics.measure(aimed)],
            **further,
        }

    def words(self, **given: str) -> dict[str, Any]:
        """One prompt for each picture; see `planning.drawn`."""
        found, line = planning.drawn(self.service, given)
        return {
            "prompts": found.prompts,
            "phrases": [picture.phrase for picture in found.pictures],
            "classes": [dict(picture.classes) for picture in found.pictures],
            "seeds": [picture.seed for picture in found.pictures],
            "notes": [*([line] if line else []), *found.notes],
        }


def register(app: Any, service: FairService, api_auth: str | None = None) -> None:
    """Add the routes to a FastAPI application. A UI reload makes a new application.

    api_auth: the host's "user:password,user2:password2", or None.
    """
    from fastapi import HTTPException, Request
    from fastapi.responses import JSONResponse

    api = Api(service)
    users = parse_users(api_auth)

    def endpoint(answer: Callable[..., dict[str, Any]], names: tuple[str, ...]) -> Callable[..., Any]:
        def respond(request: Request) -> JSONResponse:
            if users and not allowed(request.headers.get("authorization", ""), users):
                raise HTTPException(status_code=401, detail="Fair Adapter: user name or password is wrong")
            given = {name: request.query_params[name] for name in names if name in request.query_params}
            try:
                return JSONResponse(answer(**given))
            except FairAdapterError as error:
                raise HTTPException(status_code=404, detail=service.public(str(error))) from None
            except TypeError:
                raise HTTPException(status_code=422, detail=f"expected {', '.join(names)}") from None

        respond.__annotations__ = {"request": Request}  # FastAPI looks at types, not at their names
        return respond

    table: Mapping[str, tuple[Callable[..., dict[str, Any]], tuple[str, ...]]] = {
        "adapters": (api.adapters, ()),
        "adapter": (api.adapter, ("name",)),
        "live": (api.live, ()),
        "last": (api.last, ("tab",)),
        "statistics": (api.statistics, ("prompt", "adapter", "model", "target", "last", "pictures")),
        "words": (api.words, planning.ASKED),
    }
    for path, (answer, names) in table.items():
        app.add_api_route(f"{PREFIX}/{path}", endpoint(answer, names), methods=["GET"])


def parse_users(api_auth: str | None) -> dict[str, str]:
    pairs = (entry.strip().partition(":") for entry in (api_auth or "").split(",") if entry.strip())
    return {user: password for user, _, password in pairs}


def allowed(header: str, users: Mapping[str, str]) -> bool:
    """Whether an Authorization header names one of the users with the right password."""
    kind, _, encoded = header.partition(" ")
    if kind.lower() != "basic":
        return False
    try:
        user, _, password = base64.b64decode(encoded, validate=True).decode("utf-8").partition(":")
    except ValueError:  # no base64, no UTF-8, no ASCII
        return False
    expected = users.get(user)
    return expected is not None and secrets.compare_digest(password.encode(), expected.encode())
