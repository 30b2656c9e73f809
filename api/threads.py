"""Threads over HTTP: what a thread is doing, and the stream of its running or last generation.

One body carries one generation and ends behind its terminal event, as everywhere; a reader that comes back with that
gets the next one, or 204. So a device that was away sees every answer to its end, in order, and two devices see the
same.
"""

from __future__ import annotations

from contextlib import suppress
from urllib.parse import quote

import orjson
from fastapi import APIRouter, Request
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api import longpoll
from api.auth import authenticate
from api.cursors import Qualified
from api.qualified import QualifiedFraming
from api.services import PASSING, Services
from api.stream import (
    FaultResponse,
    StreamRoute,
    asks_to_poll,
    cursor_text,
    framing_of,
    names_sse,
    nothing_more,
    query_of,
    serve,
    snapshot_asked,
)
from api.viewer import Start, start
from broker.errors import GenerationExpired, GenerationUnknown, InvalidPosition
from broker.generation import State


def router(services: Services) -> APIRouter:
    """`GET /v1/threads/{thread}`."""
    routes = APIRouter()

    async def show(request: Request, thread: str) -> Response:
        """Which generation of the thread runs, which wait behind it, and which was the last one to be submitted."""
        found = await services.records.threads.look(authenticate(request.scope), thread)
        body = {
            "object": "thread",
            "thread": thread,
            "active": found.running,
            "queued": found.waiting,
            "last": found.known[-1] if found.known else None,
            "stream_url": f"/v1/threads/{quote(thread, safe='')}/events",
        }
        return Response(orjson.dumps(body), media_type="application/json")

    routes.add_api_route("/v1/threads/{thread:path}", show, methods=["GET"], summary="Look up a thread")
    routes.add_api_route("/v1/threads/{thread:path}", show, methods=["HEAD"], include_in_schema=False)
    return routes


class ThreadEventsRoute(StreamRoute):
    """`GET /v1/threads/{thread}/events`."""

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        headers, query = Headers(scope=scope), query_of(scope)
        tenant = authenticate(scope)
        thread = scope["path_params"]["thread"]
        text = cursor_text(headers, query)
        cursor = Qualified.parse(text) if text else None
        snapshot = snapshot_asked(query)
        framing = framing_of(headers)
        polling = asks_to_poll(headers)
        wait, most = longpoll.bounds(query) if polling else (0.0, 0)
        try:
            services.check_open()
            begin = await begin_of(services, tenant, thread, cursor, snapshot=snapshot)
        except PASSING as error:
            if not names_sse(headers):
                raise
            generation, position = (cursor.generation, cursor.position) if cursor else ("", None)
            await FaultResponse(services, framing, generation, position, error)(scope, receive, send)
            return
        if begin is None:
            if polling:
                await longpoll.nothing(str(cursor) if cursor else None)(scope, receive, send)
            else:
                await nothing_more(framing, send)
            return
        if polling:
            is_get = scope["method"] == "GET"
            answer = await longpoll.answer(
                services,
                begin,
                wait=wait if is_get else 0,
                limit=most,
                attend=is_get,
                place=f"{begin.generation}/",
            )
            await answer(scope, receive, send)
            return
        await serve(services, begin, QualifiedFraming(framing, begin.generation), scope, receive, send)


async def begin_of(
    services: Services, tenant: str, thread: str, cursor: Qualified | None, *, snapshot: bool
) -> Start | None:
    """Where a reader of a thread starts, decided on the primary; None where there is nothing more for it.

    Without a cursor: the generation that runs, or the last one. With one: the rest of its generation; behind that one's
    end, the next that is still there. Raises `InvalidPosition` for the cursor of another thread, `StoreUnavailable`.
    """
    found = await services.records.threads.look(tenant, thread)
    if cursor is None:
        newest = ([found.current] if found.current else []) + list(reversed(found.known))
        return await _first_there(services, tenant, newest, snapshot=snapshot)
    if cursor.generation not in found.known:
        await _check(services, tenant, thread, cursor.generation)
    with suppress(GenerationUnknown, GenerationExpired):
        begin = await start(services, tenant, cursor.generation, cursor.position, snapshot=False)
        if not begin.seen_the_end:
            return begin
    return await _first_there(services, tenant, found.after(cursor.generation), snapshot=False)


async def _check(services: Services, tenant: str, thread: str, generation: str) -> None:
    """A generation that its thread does not remember may be lost, erased or long over; another thread's is wrong."""
    record = await services.records.find(generation)
    ours = record is not None and record.tenant == tenant and record.state is not State.DELETED
    if record is not None and ours and record.thread != thread:
        raise InvalidPosition(f"generation {generation} is not one of this thread")


async def _first_there(services: Services, tenant: str, generations: list[str], *, snapshot: bool) -> Start | None:
    """The first that is neither deleted nor expired, from its start."""
    for generation in generations:
        with suppress(GenerationUnknown, GenerationExpired):
            return await start(services, tenant, generation, None, snapshot=snapshot)
    return None
