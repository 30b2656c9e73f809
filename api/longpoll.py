"""Long-poll: the same events for readers that can do nothing but ask. `Accept: application/json`.

An answer is complete by itself, so it always ends cleanly: what there is at once, else what comes within `wait`
seconds. The reader goes on from `position`, and stops at a terminal `status` with no events.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack
from typing import Final

import orjson
from starlette.responses import Response

from api.frames import merged
from api.problem import FieldError, Problem
from api.services import Services
from api.viewer import Start, status_of
from broker.errors import DataLost, GenerationUnknown
from broker.joined import events_of, up_to
from broker.log import Page

#: Seconds that an answer may wait, and entries it looks at, where the query does not say; and the most of each.
DEFAULT_WAIT: Final = 25.0
MOST_WAIT: Final = 55.0
DEFAULT_LIMIT: Final = 500
MOST_LIMIT: Final = 1000

#: How long a generation that the store has lost is left alone before it is looked for again.
_LOST_PAUSE_SECONDS: Final = 0.5

_SECONDS: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?", re.ASCII)
_COUNT: Final = re.compile(r"[0-9]{1,9}", re.ASCII)

Event = dict[str, object]


def bounds(query: dict[str, str]) -> tuple[float, int]:
    """`wait` and `limit` of a query; 400 names what is wrong."""
    wait, limit = query.get("wait", f"{DEFAULT_WAIT:g}"), query.get("limit", str(DEFAULT_LIMIT))
    wrong = []
    if not _SECONDS.fullmatch(wait) or float(wait) > MOST_WAIT:
        wrong.append(FieldError("wait", f"it must be 0 to {MOST_WAIT:g} seconds"))
    if not _COUNT.fullmatch(limit) or not 1 <= int(limit) <= MOST_LIMIT:
        wrong.append(FieldError("limit", f"it must be 1 to {MOST_LIMIT} events"))
    if wrong:
        named = ", ".join(item.field for item in wrong)
        raise Problem(400, "invalid_query", f"not right in the query: {named}", fields=tuple(wrong))
    return float(wait), int(limit)


async def answer(
    services: Services, begin: Start, *, wait: float, limit: int, attend: bool, place: str = ""
) -> Response:
    """`{verdict, events, position, status}`, `place` before each id. Whoever asks is a viewer meanwhile, if it is to
    `attend`. Raises `StoreUnavailable`: here that is a 503."""
    async with AsyncExitStack() as attached:
        if attend and begin.page.counts_viewers and not begin.page.state.is_terminal:
            await attached.enter_async_context(services.presence.attending(begin.generation))
        return await _answer(services, begin, wait=wait, limit=limit, place=place)


def nothing(position: str | None) -> Response:
    """What a reader of a thread is told that has seen all of it."""
    return _response(None, [], position, None)


async def _answer(services: Services, begin: Start, *, wait: float, limit: int, place: str) -> Response:
    events: list[Event] = []
    cursor, page, verdict = begin.cursor, begin.page, begin.verdict
    if not begin.snapshot and not (page.rows or page.state.is_terminal):
        page = await _next(services, begin, wait=wait, limit=limit)
        verdict = verdict if page.held else "rewound"
    if begin.snapshot or not page.held:
        fold, page = await services.log.folded(begin.generation)
        events.append(_event(place + fold.position, b"snapshot", fold.data(status_of(page))))
        cursor = fold.position
        page = await services.log.read(begin.generation, cursor, limit)
    rows = up_to(page.rows, limit)
    left = limit - sum(map(events_of, rows))
    if left and rows and not page.is_complete(cursor):  # the first page is a small one
        more = await services.log.read(begin.generation, page.end(cursor), left, small=page.is_small)
        if more.held:
            page, rows = more, rows + up_to(more.rows, left)
    events += [_event(place + position, name, data) for position, name, data in merged(rows)]
    return _response(verdict, events, place + (rows[-1][0].decode() if rows else cursor), status_of(page))


async def _next(services: Services, begin: Start, *, wait: float, limit: int) -> Page:
    """The first page with something new, or with news of the cursor; the last one that was read when time is over. A
    generation that the store has lost may come back within it."""
    now = asyncio.get_running_loop().time
    until = now() + wait
    async with services.tail.follow(begin.generation) as topic:
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
            if page.rows or page.state.is_terminal or not page.held or services.draining or left <= 0:
                return page
            await topic.changed(version, left)


def _event(position: str, name: bytes, data: bytes) -> Event:
    return {"id": position, "event": name.decode(), "data": orjson.Fragment(data)}


def _response(verdict: str | None, events: list[Event], position: str | None, status: str | None) -> Response:
    body = orjson.dumps({"verdict": verdict, "events": events, "position": position, "status": status})
    return Response(
        body, media_type="application/json", headers={"cache-control": "no-store", "vary": "Accept, Origin"}
    )
