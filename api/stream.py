"""The stream route, and how a stream's body ends. Plain ASGI: no middleware and no response class per event.

A body that carried the terminal event ends cleanly. Every other end (drain, age, fault, a viewer that stopped taking)
is made to look like what it is, a cut connection: half of the clients in use take a clean end as "that was all". On
HTTP/1.1 the last chunk is missing; to an HTTP/1.0 reader, for whom a plain close is a clean end, the connection is
reset.
"""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from functools import lru_cache
from typing import Final, Protocol
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api import longpoll
from api.auth import authenticate
from api.frames import NDJSON, SSE, Framing
from api.held import PIECE_BYTES, Held, Holder
from api.parked import Parked
from api.problem import Problem, problem_of
from api.services import PASSING, Services
from api.viewer import Start, Viewer, fault, start
from broker.errors import GenerationUnknown, LegatoError
from broker.generation import is_id
from broker.position import Position

#: Where the server puts the `Connection` of a request (see api.connection). Under another server there is none.
CONNECTION: Final = "legato.connection"

#: A longer Accept is no browser's and no client's of ours, and is not remembered.
_KNOWN_ACCEPT: Final = 256

_NO_WEIGHT: Final = re.compile(r"q=0(\.0*)?")

STREAM_HEADERS: Final = [
    (b"cache-control", b"no-cache, no-store, no-transform"),
    (b"x-accel-buffering", b"no"),
    (b"vary", b"Accept, Origin"),
]


class Connection(Protocol):
    """What a stream needs to do with its connection that ASGI has no words for."""

    async def reset(self, *, flush: bool) -> None:
        """Reset it, after what was written has gone out if `flush`."""
        ...

    def end_of_body_is_close(self) -> None:
        """The body has no length and no chunks: to be said before the response starts, to a reader of HTTP/1.0."""
        ...

    @property
    def takes_more(self) -> bool:
        """Whether what is sent now is taken at once."""
        ...

    def on_lost(self, call: Callable[[], None] | None) -> None:
        """Call this, once, from the loop, when the reader has left, or soon where it has already; None: nothing any
        more. Its request is read no further: what it still sends of it is dropped."""
        ...

    @property
    def may_hold(self) -> bool:
        """Whether the connection can be taken out of the request whose body has begun."""
        ...

    def hold(self, holder: Holder) -> Held:
        """Take it out: the request is over for the server, its body is the holder's to write and to end."""
        ...


class StreamRoute(ABC):
    """A route that answers with a stream, as an ASGI application. What it raises before is answered as a problem."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._answer(scope, receive, send)
        except Problem as problem:
            await problem(scope, receive, send)
        except LegatoError as error:
            await problem_of(error)(scope, receive, send)

    @abstractmethod
    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises `Problem`, `LegatoError`."""


class EventsRoute(StreamRoute):
    """`GET /v1/generations/{generation}/events`."""

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        headers = Headers(scope=scope)
        query = query_of(scope)
        tenant = authenticate(scope)
        generation = scope["path_params"]["generation"]
        cursor = cursor_of(headers, query)
        snapshot = snapshot_asked(query)
        framing = framing_of(headers)
        polling = asks_to_poll(headers)
        wait, most = longpoll.bounds(query) if polling else (0.0, 0)
        if not is_id(generation):
            raise GenerationUnknown("there is no generation of that id")
        try:
            services.check_open()
            begin = await start(services, tenant, generation, cursor, snapshot=snapshot)
        except PASSING as error:
            if not names_sse(headers):
                raise
            await FaultResponse(services, framing, generation, cursor, error)(scope, receive, send)
            return
        if polling:
            is_get = scope["method"] == "GET"
            response = await longpoll.answer(services, begin, wait=wait if is_get else 0, limit=most, attend=is_get)
            await response(scope, receive, send)
            return
        await serve(services, begin, framing, scope, receive, send)


class Source(Protocol):
    """Where the chunks of a body come from: a viewer, or something that puts viewers together. See `Viewer`."""

    finished: bool
    parks: bool

    def stay(self) -> AsyncIterator[bytes]:
        """More chunks, where it was to be parked and cannot be."""
        ...


class StreamResponse(Response):
    """A stream as the answer of an ordinary route: `POST` with `Accept: text/event-stream`."""

    def __init__(
        self, services: Services, begin: Start, framing: Framing, *, headers: list[tuple[bytes, bytes]]
    ) -> None:
        self._arguments = services, begin, framing
        self._extra = headers
        self.background = None
        self.status_code = 200

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services, begin, framing = self._arguments
        await serve(services, begin, framing, scope, receive, send, headers=self._extra)


class FaultResponse(Response):
    """What a reader of SSE gets while the store is away: it would never come back after a 5xx."""

    def __init__(
        self, services: Services, framing: Framing, generation: str, cursor: str | None, error: LegatoError
    ) -> None:
        self._framing = framing
        self._chunk = fault(services, framing, generation, cursor, error)
        self._send_seconds = services.settings.send_timeout_seconds
        self.background = None
        self.status_code = 200

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_body(scope, receive, send, once(self._chunk), framing=self._framing, send_seconds=self._send_seconds)


def query_of(scope: Scope) -> dict[str, str]:
    """The query of a request; the last of a name counts."""
    if not scope["query_string"]:
        return {}
    asked = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    return {name: values[-1] for name, values in asked.items()}


def cursor_text(headers: Headers, query: dict[str, str]) -> str:
    """The cursor of a request as it came: the header, else the query; an empty one is none."""
    return headers.get("last-event-id", "").strip(" \t") or query.get("last_event_id") or ""


def cursor_of(headers: Headers, query: dict[str, str]) -> str | None:
    """The cursor of a request that is about one generation. Raises `InvalidPosition`."""
    text = cursor_text(headers, query)
    return str(Position.parse(text)) if text else None


def snapshot_asked(query: dict[str, str]) -> bool:
    """Whether `?from=snapshot` was asked; anything else there is an error."""
    asked = query.get("from")
    if asked not in (None, "snapshot"):
        raise Problem(400, "invalid_query", "from takes one value, snapshot")
    return asked == "snapshot"


def accepted(headers: Headers) -> frozenset[str]:
    """The media types that Accept names, in lower case; what it gives no weight is not among them."""
    text = ",".join(headers.getlist("accept"))
    return _known_kinds(text) if len(text) <= _KNOWN_ACCEPT else _kinds_of(text)


def _kinds_of(accept: str) -> frozenset[str]:
    kinds = set()
    for item in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in item.split(";"))
        if not any(_NO_WEIGHT.fullmatch(parameter) for parameter in parameters):
            kinds.add(kind)
    return frozenset(kinds)


#: Clients are of a few kinds, and each request asks two or three times.
_known_kinds: Final = lru_cache(maxsize=256)(_kinds_of)


def framing_of(headers: Headers) -> Framing:
    """The transport that Accept asks for; SSE by default."""
    kinds = accepted(headers)
    return NDJSON if "application/x-ndjson" in kinds and "text/event-stream" not in kinds else SSE


def asks_to_poll(headers: Headers) -> bool:
    """Whether Accept asks for one JSON answer, and for no stream."""
    kinds = accepted(headers)
    return "application/json" in kinds and not kinds & {"text/event-stream", "application/x-ndjson"}


def names_sse(headers: Headers) -> bool:
    """Whether the reader says that it reads SSE: an EventSource, which a 5xx would end for ever."""
    return "text/event-stream" in accepted(headers)


async def serve(
    services: Services,
    begin: Start,
    framing: Framing,
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    headers: list[tuple[bytes, bytes]] | None = None,
) -> None:
    """Answer with a stream: 204 when the cursor has seen the end, else the events behind it."""
    if begin.seen_the_end:
        await nothing_more(framing, send, headers=headers)
        return
    # Held connections are written to in chunks, which HTTP/1.0 does not know.
    may_park = CONNECTION in scope and scope["http_version"] == "1.1"
    viewer = Viewer(services, begin, framing, may_park=may_park)
    services.viewers += 1
    try:
        await send_body(
            scope,
            receive,
            send,
            viewer.chunks(),
            framing=framing,
            send_seconds=services.settings.send_timeout_seconds,
            viewer=viewer,
            headers=headers,
        )
        if viewer.parks:
            Parked(services, viewer, scope[CONNECTION].hold)
    finally:
        services.viewers -= 1


async def nothing_more(framing: Framing, send: Send, *, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    """204: the reader has seen everything, and shall not come back. A body-less answer still names the type: some
    clients take any other for an error and retry for ever."""
    answer = [(b"content-type", framing.media_type), *STREAM_HEADERS, *(headers or [])]
    await send({"type": "http.response.start", "status": 204, "headers": answer})
    await send({"type": "http.response.body", "body": b""})


async def send_body(
    scope: Scope,
    receive: Receive,
    send: Send,
    chunks: AsyncIterator[bytes],
    *,
    framing: Framing,
    send_seconds: float,
    viewer: Source | None = None,
    headers: list[tuple[bytes, bytes]] | None = None,
) -> None:
    """Send chunks until they end or the reader has gone, or until `viewer` is to be parked, with the body unfinished.
    The body ends cleanly only if `viewer` has finished; else this returns without the last chunk, and the server closes
    the connection."""
    answer = [(b"content-type", framing.media_type + b"; charset=utf-8"), *STREAM_HEADERS, *(headers or [])]
    connection: Connection | None = scope.get(CONNECTION)
    old = scope["http_version"] == "1.0"
    if old and connection is not None and scope["method"] != "HEAD":
        connection.end_of_body_is_close()
    await send({"type": "http.response.start", "status": 200, "headers": answer})
    if scope["method"] == "HEAD":
        await send({"type": "http.response.body", "body": b""})
        return
    reader = _Reader(connection, receive)

    async def put(body: bytes, *, more: bool) -> None:
        message = {"type": "http.response.body", "body": body, "more_body": more}
        if connection is not None and connection.takes_more:
            await send(message)  # it does not wait, and a time-out costs more than the rest
            return
        async with asyncio.timeout(send_seconds):
            await send(message)

    try:
        while True:
            async for chunk in chunks:
                for start in range(0, len(chunk), PIECE_BYTES):
                    await put(chunk[start : start + PIECE_BYTES], more=True)
            if viewer is None or not viewer.parks:
                break
            if connection is not None and connection.may_hold:
                return
            chunks = viewer.stay()
        finished = viewer is not None and viewer.finished
        if old and connection is not None:
            # Nothing more to say: this reader's end is the connection's, a plain close or a reset.
            if not finished:
                async with asyncio.timeout(send_seconds):
                    await connection.reset(flush=True)
        elif finished:
            await put(b"", more=False)
    except TimeoutError:
        # It takes nothing: what is buffered for it would keep an ordinary close waiting for as long as TCP does.
        if connection is not None:
            await connection.reset(flush=False)
    except asyncio.CancelledError:
        if not reader.has_left:
            raise  # somebody else's cancellation: the server is stopping
        reader.task.uncancel()
    finally:
        reader.forget()


class _Reader:
    """Whom the current task sends to: it is cancelled when that reader leaves."""

    def __init__(self, connection: Connection | None, receive: Receive) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine of a server runs in a task
        self.task = task
        self.has_left = False
        self._connection = connection
        self._leaving: asyncio.Future[None] | None = None
        if connection is not None:
            connection.on_lost(self._left)
        else:
            self._leaving = asyncio.ensure_future(left(receive))
            self._leaving.add_done_callback(lambda done: None if done.cancelled() else self._left())

    def forget(self) -> None:
        """It may leave as it likes."""
        if self._connection is not None:
            self._connection.on_lost(None)
        elif self._leaving is not None:
            self._leaving.cancel()

    def _left(self) -> None:
        self.has_left = True
        self.task.cancel()


async def once(chunk: bytes) -> AsyncIterator[bytes]:
    """One chunk, as chunks."""
    yield chunk


async def left(receive: Receive) -> None:
    """Return when the reader has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
