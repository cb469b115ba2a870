"""Where the statistics routes count, inside ComfyUI's own Python."""

import asyncio
import threading
from typing import Any

from aiohttp.test_utils import make_mocked_request


def counting_threads(routes: Any, collection: Any, statistics: Any, face: Any) -> dict[str, list[bool]]:
    """route -> for each piece of counting work, whether it ran beside the event loop."""
    kept, beside = collection.Collections(), []

    def noted(call: Any) -> Any:
        def counted(*given: Any, **options: Any) -> Any:
            beside.append(threading.current_thread() is not threading.main_thread())
            return call(*given, **options)

        return counted

    gender = statistics.STANDARD[0]
    kept.add("faces", collection.Batch([[face]], (gender,), "1"))
    for name in ("get", "reset"):
        setattr(kept, name, noted(getattr(kept, name)))
    for name in ("measure", "bias", "to_csv", "draw", "note"):
        setattr(statistics.StatisticsSummary, name, noted(getattr(statistics.StatisticsSummary, name)))
    routes.COLLECTIONS = kept
    found = {}
    for handler in (routes.statistics, routes.statistics_csv, routes.statistics_png):
        beside.clear()
        answer = asyncio.run(handler(make_mocked_request("GET", "/?name=faces")))
        found[handler.__name__] = [answer.status == 200, *beside]
    return found
