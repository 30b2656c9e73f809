"""A TCP proxy that misbehaves on request: delays, throttles, holds one direction, refuses, cuts at byte N.

A held direction keeps what it was given: to the two ends it looks like packets that get lost and are sent again once
the path is back, or never. A cut is a reset, so that neither end takes it for an orderly end.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from enum import Enum
from typing import Final, Self

_READ_BYTES: Final = 16 * 1024
_SLICE_SECONDS: Final = 0.05
_RESET: Final = struct.pack("ii", 1, 0)


class Way(Enum):
    """A direction."""

    UP = "up"  # client to server
    DOWN = "down"  # server to client


class Proxy:
    """Listens on a loopback port and leads to `upstream`, which may change: new connections go to the new one."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.upstream = upstream
        self.port = 0
        self.delay_seconds = 0.0  # added to every chunk
        self.bytes_per_second = 0  # 0: unlimited
        self.refusing = False
        self.connections = 0  # ever accepted
        self._flowing = {way: asyncio.Event() for way in Way}
        for event in self._flowing.values():
            event.set()
        self._open: dict[asyncio.Task[None], _Pair] = {}
        self._server: asyncio.Server | None = None

    @classmethod
    async def start(cls, upstream: tuple[str, int], *, port: int = 0) -> Self:
        """Listen; the caller closes it."""
        proxy = cls(upstream)
        proxy._server = await asyncio.start_server(proxy._serve, "127.0.0.1", port)
        proxy.port = proxy._server.sockets[0].getsockname()[1]
        return proxy

    @property
    def open_connections(self) -> int:
        return len(self._open)

    def hold(self, way: Way) -> None:
        """Nothing gets through in that direction until `release`."""
        self._flowing[way].clear()

    def release(self) -> None:
        """Everything gets through again, at full speed."""
        for event in self._flowing.values():
            event.set()
        self.delay_seconds, self.bytes_per_second, self.refusing = 0.0, 0, False

    def cut(self) -> int:
        """Reset every open connection now; how many."""
        cut = list(self._open.values())
        for pair in cut:
            pair.reset()
        return len(cut)

    def cut_at(self, count: int) -> None:
        """Reset each connection that is open now once it has carried `count` more bytes to its client."""
        for pair in self._open.values():
            pair.left = count

    async def aclose(self) -> None:
        """Stop listening and reset what is open."""
        if self._server is not None:
            self._server.close()
        self.release()
        self.cut()
        tasks = list(self._open)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio runs this in a task
        self.connections += 1
        pair = self._open[task] = _Pair(writer)
        orderly = False
        try:
            if self.refusing:
                return
            far_reader, far_writer = await asyncio.open_connection(*self.upstream)
            pair.far = far_writer
            async with asyncio.TaskGroup() as group:
                up = group.create_task(self._pump(Way.UP, reader, far_writer, pair))
                await self._pump(Way.DOWN, far_reader, writer, pair)
                up.cancel()
            orderly = True
        except* (OSError, _Cut):
            pass
        finally:
            self._open.pop(task, None)
            if orderly:
                pair.close()
            else:
                pair.reset()

    async def _pump(self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pair: _Pair) -> None:
        flowing = self._flowing[way]
        while data := await reader.read(_READ_BYTES):
            if self.delay_seconds:
                await asyncio.sleep(self.delay_seconds)
            await flowing.wait()
            if way is Way.DOWN and pair.left is not None:
                data, pair.left = data[: pair.left], pair.left - len(data)
            await self._send(data, writer)
            if way is Way.DOWN and pair.left is not None and pair.left <= 0:
                raise _Cut
        await flowing.wait()
        if way is Way.UP:
            with suppress(OSError, RuntimeError):  # uvloop's word for a closed socket
                writer.write_eof()

    async def _send(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        at = 0
        while at < len(data):
            size = max(1, int(self.bytes_per_second * _SLICE_SECONDS)) if self.bytes_per_second else len(data)
            if writer.transport.is_closing():
                raise _Cut
            writer.write(data[at : at + size])
            await writer.drain()
            at += size
            if self.bytes_per_second:
                await asyncio.sleep(_SLICE_SECONDS)


class _Cut(Exception):
    pass


class _Pair:
    """The two sockets of one proxied connection."""

    def __init__(self, near: asyncio.StreamWriter) -> None:
        self.near = near
        self.far: asyncio.StreamWriter | None = None
        self.left: int | None = None

    def close(self) -> None:
        for writer in (self.near, self.far):
            if writer is not None:
                writer.close()

    def reset(self) -> None:
        for writer in (self.near, self.far):
            if writer is None:
                continue
            connection = writer.get_extra_info("socket")
            if connection is not None and not writer.transport.is_closing():
                with suppress(OSError):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
