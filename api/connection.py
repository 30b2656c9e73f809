"""One connection of the server: uvicorn's protocols, and what uvicorn has no words for.

A connection may be taken out of the server's hands and come back (`api.held`); it may be reset; what is no HTTP is
answered as everything else that is wrong. And whoever asks for another protocol is answered in this one, as RFC 9110
(7.8) has it: uvicorn drops the body of such a request, and what is sent behind it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

import httptools
from uvicorn._types import HTTPScope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from api.held import Held, Holder, Host
from api.problem import MEDIA_TYPE, Problem
from api.stream import CONNECTION
from api.websocket import ABORT

#: A longer head is nobody's: the longest that is meant is a cursor of many generations, of some 10 KiB.
_MOST_HEAD_BYTES: Final = 64 * 1024

#: close() then sends RST instead of FIN, and drops what is unsent.
_LINGER_ZERO: Final = struct.pack("ii", 1, 0)


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
    _head: HTTPScope | None = None  # the request whose head has begun, and has not come whole
    _head_bytes = 0  # read since it had begun

    def __init__(self, *, host: Host, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._host = host

    def data_received(self, data: bytes) -> None:
        """As uvicorn's, but for upgrades, and for heads without an end."""
        self._unset_keepalive_if_required()
        head = self._head
        self._feed(data)
        self._head_bytes = self._head_bytes + len(data) if head is not None and self._head is head else 0
        if self._head_bytes > _MOST_HEAD_BYTES:
            most = _MOST_HEAD_BYTES // 1024
            self._refuse(Problem(431, "head_too_large", f"the head of a request has at most {most} KiB"))

    def _feed(self, data: bytes) -> None:
        try:
            while True:
                try:
                    self.parser.feed_data(data)
                except httptools.HttpParserUpgrade as upgrade:
                    if not self._upgrades_in_vain:
                        if self._should_upgrade():
                            self.handle_websocket_upgrade()
                        return
                    data = self._without_upgrade() + data[upgrade.args[0] :]
                else:
                    return
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("")

    @property
    def _upgrades_in_vain(self) -> bool:
        """Whether the request asks for a protocol that is not offered. CONNECT asks for none."""
        parser = self.parser
        return parser.should_upgrade() and parser.get_method() != b"CONNECT" and not self._should_upgrade()

    def _without_upgrade(self) -> bytes:
        """The head of the request that was just read, without its Upgrade, for a new parser: the old one has passed
        over its body."""
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        return b"\r\n".join([*lines, b"", b""])

    def handle_websocket_upgrade(self) -> None:
        """Not while an earlier answer is on its way, or about to be: nothing of another protocol fits into that."""
        if self._owed:
            self.transport.close()
        else:
            super().handle_websocket_upgrade()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head = self.scope

    def on_headers_complete(self) -> None:
        self._head = None
        if self._upgrades_in_vain:
            return  # it is read once more
        super().on_headers_complete()
        if self.cycle is None or self.cycle.scope is not self.scope:
            return  # a WebSocket: somebody else's from here on
        exchange = _Exchange(self, self.cycle)
        self._unfinished = (*(one for one in self._unfinished if not one.cycle.response_complete), exchange)
        self.scope[CONNECTION] = exchange  # type: ignore[typeddict-unknown-key]  # a key of ours

    def on_message_complete(self) -> None:
        if not self._upgrades_in_vain:
            super().on_message_complete()

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

    @property
    def _owed(self) -> list[RequestResponseCycle]:
        """Requests whose answer is on its way, or to come because they were read whole."""
        cycles = [exchange.cycle for exchange in self._unfinished]
        return [one for one in cycles if not one.response_complete and (one.response_started or not one.more_body)]

    def send_400_response(self, msg: str) -> None:
        self._refuse(Problem(400, "malformed_http", "what was sent is no HTTP request"))

    def _refuse(self, problem: Problem) -> None:
        owed = self._owed
        if any(cycle.response_started for cycle in owed):
            self.transport.close()  # no status fits into an answer that is on its way
            return
        if owed:
            owed[-1].keep_alive = False  # what is said now would be taken for its answer
            return
        body = problem.body()
        lines = [
            b"HTTP/1.1 %d %b" % (problem.status, HTTPStatus(problem.status).phrase.encode()),
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
