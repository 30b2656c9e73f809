"""Serves the application with uvicorn (uvloop, httptools), and adds the three things uvicorn leaves open.

* A stream is a response that may never end, so a graceful stop has to tell the streams first: `drain()` before uvicorn
  starts to wait.
* An HTTP/1.0 reader (nginx's default towards its upstreams) cannot tell a cut body from a whole one unless the
  connection is reset; what the application is given of its connection offers that.
* A reader that takes nothing of the end of its answer would keep its connection for ever: `drop_unsent()`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import structlog
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from api.app import build
from api.gauges import Gauges
from api.held import Held, Holder
from api.problem import MEDIA_TYPE, Problem
from api.services import Services
from api.stream import CONNECTION
from api.websocket import ABORT
from broker.connect import without_secrets
from broker.errors import StoreUnavailable
from broker.settings import Settings

_log = structlog.get_logger("legato.api")

#: uvicorn waits this long for requests to end after the streams were told to.
_STOP_SECONDS: Final = 5

#: How often it is looked whether all streams have left.
_LOOK_SECONDS: Final = 0.05

#: A message of a WebSocket's client is an acknowledgement or a cancel.
_MOST_MESSAGE_BYTES: Final = 4096

#: close() then sends RST instead of FIN, and drops what is unsent.
_LINGER_ZERO: Final = struct.pack("ii", 1, 0)

#: The kernel takes no more than this of what a reader has not yet got: a slow one then makes steady progress in our
#: eyes too (the kernel would take megabytes, and ask for more only when a third of that has gone), and holds less.
_UNSENT_BYTES: Final = 64 * 1024
_NOTSENT_LOWAT: Final = getattr(socket, "TCP_NOTSENT_LOWAT", 25 if sys.platform == "linux" else 0)


def reset(transport: asyncio.Transport) -> None:
    """Reset a connection; what is unsent is lost."""
    connection: Any = transport.get_extra_info("socket")
    if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
    transport.abort()


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol; it hands the application its connection (`api.stream.Connection`), and says no to
    what is no HTTP as the application says no to everything else. `host` has the connections that are held."""

    _unfinished: tuple[_Exchange, ...] = ()  # several, where requests are sent behind one another

    def __init__(self, *, host: Server, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._host = host

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if self.cycle is None or self.cycle.scope is not self.scope:
            return  # a WebSocket: somebody else's from here on
        exchange = _Exchange(self, self.cycle)
        self._unfinished = (*(one for one in self._unfinished if not one.cycle.response_complete), exchange)
        self.scope[CONNECTION] = exchange  # type: ignore[typeddict-unknown-key]  # a key of ours

    def on_body(self, body: bytes) -> None:
        if self._unfinished and self._unfinished[-1].drops_body:
            return
        super().on_body(body)

    def let_go(self, holder: Holder) -> Held:
        """Have the connection held, and forget all about it: what is not freed now waits for the collector."""
        self.connections.discard(self)
        self.flow.resume_reading()
        takes_more = not self.flow.write_paused
        held = Held(self.transport, self._host, holder, goes_on=self.cycle.keep_alive, takes_more=takes_more)
        self.parser = self.cycle = self.scope = None  # type: ignore[assignment]  # as uvicorn ends a connection
        self._unfinished = ()
        return held

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for exchange in self._unfinished:
            exchange.lost()

    @property
    def unsent(self) -> int:
        """Bytes of answers that are over which their reader has not taken; 0 while one is under way."""
        over = self.transport.is_closing() or self.cycle is None or self.cycle.response_complete
        return self.transport.get_write_buffer_size() if over else 0

    def send_400_response(self, msg: str) -> None:
        cycles = [exchange.cycle for exchange in self._unfinished]
        if any(cycle.response_started and not cycle.response_complete for cycle in cycles):
            self.transport.close()  # behind a request whose answer is on its way: no status fits into that
            return
        problem = Problem(400, "malformed_http", "what was sent is no HTTP request")
        body = problem.body()
        lines = [
            b"HTTP/1.1 400 Bad Request",
            b"content-type: " + MEDIA_TYPE,
            b"content-length: %d" % len(body),
            b"cache-control: no-store",
            b"connection: close",
        ]
        self.transport.write(b"\r\n".join([*lines, b"", body]))
        self.transport.close()


class _Exchange:
    """The connection of one request (`api.stream.Connection`): another one may be waiting behind it."""

    __slots__ = ("_on_lost", "_protocol", "cycle")

    def __init__(self, protocol: Protocol, cycle: RequestResponseCycle) -> None:
        self.cycle = cycle
        self._protocol = protocol
        self._on_lost: Callable[[], None] | None = None

    @property
    def drops_body(self) -> bool:
        """Nobody reads it any more: left alone it would keep the connection from being read."""
        return self._on_lost is not None

    @property
    def takes_more(self) -> bool:
        """uvicorn waits before it writes, if at all."""
        return not self._protocol.flow.write_paused

    def on_lost(self, call: Callable[[], None] | None) -> None:
        """See `api.stream.Connection`."""
        self._on_lost = call
        if call is not None:
            self.cycle.body = bytearray()
            self._protocol.flow.resume_reading()  # who does not read is not told
            if self.cycle.disconnected:
                asyncio.get_running_loop().call_soon(self._tell)

    def lost(self) -> None:
        """The connection is. uvicorn tells the last of its requests only."""
        self.cycle.disconnected = not self.cycle.response_complete
        self.cycle.message_event.set()
        self._tell()

    def _tell(self) -> None:
        if self._on_lost is not None:
            self._on_lost()

    @property
    def may_hold(self) -> bool:
        """Whether nothing but the body that has begun needs this connection: its request has come whole, and nothing
        of another one."""
        protocol, cycle = self._protocol, self.cycle
        alone = cycle is protocol.cycle and cycle.scope is protocol.scope and not cycle.more_body
        return alone and not (cycle.disconnected or protocol.transport.is_closing())

    def hold(self, holder: Holder) -> Held:
        """Let the connection go. The request ends as if its reader had left, of which uvicorn makes nothing."""
        self.cycle.disconnected = True
        return self._protocol.let_go(holder)

    async def reset(self, *, flush: bool) -> None:
        """Reset the connection, after what was written has gone out if `flush`."""
        transport = self._protocol.transport
        if flush:
            while not transport.is_closing() and transport.get_write_buffer_size():
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)  # what the kernel holds goes out before the reset
        if not transport.is_closing():
            reset(transport)

    def end_of_body_is_close(self) -> None:
        """uvicorn would send chunks, which HTTP/1.0 does not know; it may as well wait for a length never reached."""
        self.cycle.chunked_encoding = False
        self.cycle.expected_content_length = sys.maxsize


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol; the application may drop the connection, and ends it by itself at a shutdown."""

    async def run_asgi(self) -> None:
        self.scope[ABORT] = self.transport.abort  # type: ignore[typeddict-unknown-key]  # a key of ours
        await super().run_asgi()

    @property
    def unsent(self) -> int:
        """See `Protocol.unsent`."""
        return self.transport.get_write_buffer_size() if self.transport.is_closing() else 0

    def shutdown(self) -> None:
        if not self.handshake_complete or self.close_sent:
            super().shutdown()


class _Meant(logging.Filter):
    """What uvicorn would log and shall not. A body that is ended incompletely is meant, and so is a handshake that is
    answered with a problem; a message that is not UTF-8 is the client's mistake, and told to it; a line for each
    WebSocket would hold its query, with tokens and cursors."""

    _KNOWN: Final = (
        "returned without completing response",
        "returned without completing handshake",
        "Invalid UTF-8 sequence received",
        '"WebSocket ',
    )

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(known in message for known in self._KNOWN)


class Server(uvicorn.Server):
    """uvicorn's server; stopping begins with the streams."""

    def __init__(self, services: Services, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._services = services
        self._held: set[Held] = set()
        config.http = partial(Protocol, host=self)  # type: ignore[assignment]  # it is only ever called

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the command's business: one process may run more than a server."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._services.drain()
        # Streams have left by then; what still hangs on is blocked by a reader that takes nothing.
        asyncio.get_running_loop().call_later(_STOP_SECONDS - 1, self._let_go)
        await super().shutdown(sockets)
        while self._held:
            await asyncio.sleep(_LOOK_SECONDS)

    def _let_go(self) -> None:
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()
        for held in list(self._held):
            held.reset()

    async def drop_unsent(self, seconds: float) -> None:
        """Reset connections whose answers are over and whose readers take nothing of what is left of them for so long:
        an ordinary close would wait for such a reader as long as its system lives."""
        before: dict[asyncio.Transport, int] = {}
        while True:
            await asyncio.sleep(max(seconds, _LOOK_SECONDS))
            connections: list[Any] = [*self.server_state.connections, *self._held]
            unsent = {connection.transport: size for connection in connections if (size := connection.unsent)}
            for transport, size in unsent.items():
                if before.get(transport) == size:
                    reset(transport)
            before = unsent

    def held(self, connection: Held) -> None:
        """See `api.held.Host`."""
        self._held.add(connection)

    def released(self, connection: Held) -> None:
        """See `api.held.Host`."""
        self._held.discard(connection)

    def serve_on(self, transport: asyncio.Transport, ahead: bytes, *, takes_more: bool) -> None:
        """See `api.held.Host`."""
        if self.should_exit:
            transport.close()
            return
        protocol = Protocol(
            host=self, config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if not takes_more:
            protocol.pause_writing()
        protocol.on_response_complete()  # as far as it knows: it waits for the next request
        if ahead:
            transport.resume_reading()
            protocol.data_received(ahead)

    def reset(self, transport: asyncio.Transport) -> None:
        """See `api.held.Host`."""
        reset(transport)


async def serve(
    url: str, settings: Settings, *, listener: socket.socket, stop: asyncio.Event, gauges: Gauges | None = None
) -> None:
    """Serve on a socket that is bound already, until `stop` is set. `gauges` are those of all processes on that socket,
    where there are several. Raises `StoreUnusable` for a store that can never do; one that is merely away is waited
    for, request by request."""
    async with Services.open(url, settings, gauges=gauges) as services:
        try:
            await services.store.facts()
        except StoreUnavailable as exc:
            _log.warning("store_unavailable", store=without_secrets(url), error=str(exc))
        server = Server(services, config(build(services), settings))

        async def stop_when_told() -> None:
            await stop.wait()
            server.should_exit = True

        services.background(server.drop_unsent(settings.send_timeout_seconds), name="drop unsent")
        stopping = asyncio.create_task(stop_when_told())
        _tune_collector()
        try:
            await server.serve(sockets=[listener])
        finally:
            stopping.cancel()


def _tune_collector() -> None:
    """Keep the cyclic collector from stopping all streams at once: what start-up made is never looked at again, and a
    full collection (some 0.5 µs an object; a viewer has a few hundred) runs seldom. Reference counts free the rest."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 100)


def config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """uvicorn's configuration: no access log (query strings hold tokens and cursors), no server header."""
    logging.getLogger("uvicorn.error").addFilter(_Meant())
    return uvicorn.Config(
        app,
        loop="uvloop",
        ws=WebSocketProtocol,
        ws_max_size=_MOST_MESSAGE_BYTES,
        ws_per_message_deflate=False,  # it costs more than it saves with messages of some bytes
        ws_ping_interval=settings.ping_seconds,
        ws_ping_timeout=settings.send_timeout_seconds,
        lifespan="off",
        access_log=False,
        server_header=False,
        log_config=None,
        timeout_graceful_shutdown=_STOP_SECONDS,
        timeout_keep_alive=75,
    )


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 picks a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if _NOTSENT_LOWAT:
        listener.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, _UNSENT_BYTES)  # what is accepted inherits it
    listener.bind((host, port))
    listener.listen(2048)
    listener.setblocking(False)
    return listener
