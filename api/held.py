"""A connection whose stream has nothing to send just now, held outside of the server's request.

A viewer that waits inside of its request costs a task, the suspended coroutines of everything above the route, an HTTP
parser and all that is known of the request: some 29 KiB. So a stream that has said everything takes its connection out
of the server's hands (`transport.set_protocol`, as for an upgrade), its request ends, and what remains is this object
and the stream's own few fields. When the stream is over the connection goes back, to a new protocol of the server's,
for its next request.

Bodies are written in chunks, as HTTP/1.1 frames them where there is no length; other bodies are not held.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

import httptools

from api.frames import as_chunk

#: Bytes handed to the server at once: the time to send is one for each, so who takes a little is never cut.
PIECE_BYTES: Final = 16 * 1024

#: What a client may send ahead, of its next requests, while it is answered.
_MOST_AHEAD_BYTES: Final = 64 * 1024

_LAST_CHUNK: Final = b"0\r\n\r\n"


class Holder(Protocol):
    """Whose connection it is."""

    def gone(self) -> None:
        """The reader has left; nothing can be written any more. Not called after `finish`, `cut` or `reset`."""
        ...


class Host(Protocol):
    """The server whose connection it was."""

    def held(self, connection: Held) -> None:
        """It is this server's to close when it stops."""
        ...

    def released(self, connection: Held) -> None:
        """It has gone, or is somebody else's."""
        ...

    def serve_on(self, transport: asyncio.Transport, ahead: bytes, *, takes_more: bool) -> None:
        """Take the connection back, for its next request, of which `ahead` came already."""
        ...

    def reset(self, transport: asyncio.Transport) -> None:
        """Reset the connection; what is unsent is lost."""
        ...


class Held(asyncio.Protocol):
    """A response's body that has begun, on a connection that its server has let go."""

    __slots__ = ("_ahead", "_goes_on", "_holder", "_host", "_parser", "_writable", "takes_more", "transport")

    def __init__(
        self, transport: asyncio.Transport, host: Host, holder: Holder, *, goes_on: bool, takes_more: bool
    ) -> None:
        # Whether what is written now leaves soon. A transport that has said no says nothing before it says yes again.
        self.takes_more = takes_more
        self.transport = transport
        self._host = host
        self._goes_on = goes_on  # to another request, behind this body
        self._holder: Holder | None = holder
        self._ahead: bytes | None = None
        self._parser: httptools.HttpRequestParser | None  # of what came ahead
        self._writable: asyncio.Future[None] | None = None
        transport.set_protocol(self)
        host.held(self)

    @property
    def unsent(self) -> int:
        """Bytes of a body that is over which its reader has not taken; 0 while it is not over."""
        return 0 if self._holder is not None else self.transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        """Write a part of the body, framed as a chunk by the caller."""
        self.transport.write(data)

    async def send(self, body: bytes, seconds: float) -> None:
        """Write a part of the body, piece by piece, and wait until the reader takes more; `TimeoutError` when it takes
        nothing for that long."""
        for start in range(0, len(body), PIECE_BYTES):
            self.transport.write(as_chunk(body[start : start + PIECE_BYTES]))
            if not self.takes_more:
                self._writable = asyncio.get_running_loop().create_future()
                async with asyncio.timeout(seconds):
                    await self._writable

    def finish(self) -> None:
        """The body is whole: the connection waits for its next request, unless its reader wanted no other."""
        self.transport.write(_LAST_CHUNK)
        self._holder = None
        host, transport, ahead = self._host, self.transport, self._ahead
        if not self._goes_on:
            transport.close()
        elif not transport.is_closing():
            host.released(self)
            host.serve_on(transport, ahead or b"", takes_more=self.takes_more)

    def cut(self) -> None:
        """End the body incompletely, behind what was written: the last chunk is missing."""
        self._holder = None
        self.transport.close()

    def reset(self) -> None:
        """End it at once; what is unsent is lost."""
        self._holder = None
        self._host.reset(self.transport)

    def data_received(self, data: bytes) -> None:
        """Of requests behind this one: for later, if that is what they are."""
        if self._ahead is None:
            self._ahead, self._parser = b"", httptools.HttpRequestParser(object())
        self._ahead += data
        try:
            if self._parser is not None:
                self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._parser = None  # it passes over a body there may be, and knows no other protocol
        except httptools.HttpParserError:
            self.transport.close()  # no status fits into a body; who has gone is told
        if len(self._ahead) > _MOST_AHEAD_BYTES:
            self.transport.pause_reading()

    def pause_writing(self) -> None:
        self.takes_more = False

    def resume_writing(self) -> None:
        self.takes_more = True
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.takes_more = False
        holder, self._holder = self._holder, None
        self._host.released(self)
        if holder is not None:
            holder.gone()


#: Takes the connection of a request out of the server's hands.
Hold = Callable[[Holder], Held]
