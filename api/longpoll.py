"""Long-poll: the same events for readers that can do nothing but ask. `Accept: application/json`.

An answer is complete by itself, so it always ends cleanly: what there is at once, else what comes within `wait`
seconds. The reader goes on from `position`, and stops at a terminal `status` with no events.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Final

import orjson
from starlette.responses import Response

from api.frames import merged
from api.problem import Problem
from api.services import Services
from api.viewer import Start, status_of
from broker.errors import DataLost, GenerationUnknown
from broker.log import Page

#: Seconds that an answer may wait, and entries it looks at, where the query does not say; and the most of each.
DEFAULT_WAIT: Final = 25.0
MOST_WAIT: Final = 55.0
DEFAULT_LIMIT: Final = 500
MOST_LIMIT: Final = 1000

#: How long a generation that the store has lost is left alone before it is looked for again.
_LOST_PAUSE_SECONDS: Final = 0.5

Event = dict[str, object]


def bounds(query: dict[str, str]) -> tuple[float, int]:
    """`wait` and `limit` of a query; 400 names the one that is wrong."""
    try:
        wait = float(query.get("wait", DEFAULT_WAIT))
        limit = int(query.get("limit", DEFAULT_LIMIT))
    except ValueError:
        wait, limit = -1.0, 0
    if not 0 <= wait <= MOST_WAIT or not 1 <= limit <= MOST_LIMIT:
        raise Problem(400, "invalid_query", f"wait is 0 to {MOST_WAIT:g} seconds, limit is 1 to {MOST_LIMIT} events")
    return wait, limit


async def answer(services: Services, begin: Start, *, wait: float, limit: int) -> Response:
    """`{verdict, events, position, status}`. Raises `StoreUnavailable`: here that is a 503."""
    events: list[Event] = []
    cursor, page, verdict = begin.cursor, begin.page, begin.verdict
    if not begin.snapshot and not (page.entries or page.state.is_terminal):
        page = await _next(services, begin, wait=wait, limit=limit)
        verdict = verdict if page.held else "rewound"
    if begin.snapshot or not page.held:
        fold, page = await services.log.folded(begin.generation)
        events.append(_event(fold.position, b"snapshot", fold.data(status_of(page))))
        cursor = fold.position
        page = await services.log.read(begin.generation, cursor, limit)
    entries = page.entries[:limit]
    events += [_event(place, name, data) for place, name, data in merged(entries)]
    position = entries[-1].position if entries else cursor
    return _response(verdict, events, position, page)


async def _next(services: Services, begin: Start, *, wait: float, limit: int) -> Page:
    """The first page with something new, or with news of the cursor; the last one that was read when time is over. A
    generation that the store has lost may come back within it."""
    now = asyncio.get_running_loop().time
    until = now() + wait
    async with AsyncExitStack() as attached:
        if begin.page.counts_viewers:
            await attached.enter_async_context(services.presence.attending(begin.generation))
        topic = await attached.enter_async_context(services.tail.follow(begin.generation))
        while True:
            version = topic.version
            left = until - now()
            try:
                page = await services.log.read(begin.generation, begin.cursor, limit)
            except (GenerationUnknown, DataLost) as exc:
                if services.draining or left <= 0:
                    raise DataLost(f"the store has lost data, {begin.generation} perhaps too") from exc
                await topic.changed(version, min(left, _LOST_PAUSE_SECONDS))
                continue
            if page.entries or page.state.is_terminal or not page.held or services.draining or left <= 0:
                return page
            await topic.changed(version, left)


def _event(position: str, name: bytes, data: bytes) -> Event:
    return {"id": position, "event": name.decode(), "data": orjson.Fragment(data)}


def _response(verdict: str, events: list[Event], position: str, page: Page) -> Response:
    body = orjson.dumps({"verdict": verdict, "events": events, "position": position, "status": status_of(page)})
    return Response(
        body, media_type="application/json", headers={"cache-control": "no-store", "vary": "Accept, Origin"}
    )
