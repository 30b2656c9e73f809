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
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import structlog
import uvicorn
from starlette.types import ASGIApp

from api.app import build
from api.connection import Protocol, WebSocketProtocol, reset
from api.gauges import Gauges
from api.held import Held
from api.services import Services
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

#: The kernel takes no more than this of what a reader has not yet got: a slow one then makes steady progress in our
#: eyes too (the kernel would take megabytes, and ask for more only when a third of that has gone), and holds less.
_UNSENT_BYTES: Final = 64 * 1024
_NOTSENT_LOWAT: Final = getattr(socket, "TCP_NOTSENT_LOWAT", 25 if sys.platform == "linux" else 0)


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
