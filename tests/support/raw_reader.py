"""A reader on a bare socket, cheap enough for a thousand of them in one process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tests.support.sse_client import SSE, Reader, SseParser, events_path


async def read_whole(
    host: str, port: int, generation: str, *, attached: Callable[[], None], cursor: str | None = None
) -> Reader:
    """Everything behind `cursor`, to the end; `attached` is called when the headers have come."""
    reader, writer = await asyncio.open_connection(host, port)
    place = "" if cursor is None else f"Last-Event-ID: {cursor}\r\n"
    writer.write(f"GET {events_path(generation)} HTTP/1.1\r\nHost: h\r\nAccept: {SSE}\r\n{place}\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    attached()
    seen, parser = Reader(), SseParser()
    while seen.ended is None:
        size = int(await reader.readline(), 16)
        assert size, "the body ended without the terminal event"
        for frame in parser.feed((await reader.readexactly(size + 2))[:-2]):
            seen.take(frame)
    writer.close()
    return seen
