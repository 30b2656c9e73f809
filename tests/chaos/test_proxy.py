"""The proxy does to a connection exactly what it is told, and nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from chaos.proxy import Proxy, Way

SOON = 0.3


@asynccontextmanager
async def echoing() -> AsyncIterator[Proxy]:
    """A proxy in front of a server that says back what it hears, and ends when its client does."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    proxy = await Proxy.start(("127.0.0.1", server.sockets[0].getsockname()[1]))
    try:
        yield proxy
    finally:
        await proxy.aclose()
        server.close()
        await asyncio.sleep(0)


async def connect(proxy: Proxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def test_everything_gets_through_and_an_orderly_end_stays_one() -> None:
    async with echoing() as proxy:
        reader, writer = await connect(proxy)
        sent = bytes(range(256)) * 4000
        writer.write(sent)
        writer.write_eof()
        assert await reader.read(-1) == sent
        writer.close()


async def test_a_cut_is_a_reset() -> None:
    async with echoing() as proxy:
        reader, writer = await connect(proxy)
        writer.write(b"x")
        await reader.readexactly(1)
        assert proxy.cut() == 1
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        writer.close()


async def test_a_connection_is_cut_at_the_very_byte() -> None:
    async with echoing() as proxy:
        reader, writer = await connect(proxy)
        writer.write(b"a")
        await reader.readexactly(1)
        proxy.cut_at(5)
        writer.write(b"0123456789")
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)) as caught:
            await reader.readexactly(10)
        if isinstance(caught.value, asyncio.IncompleteReadError):
            assert caught.value.partial == b"01234"
        writer.close()


async def test_a_held_direction_delivers_nothing_until_it_is_released() -> None:
    async with echoing() as proxy:
        reader, writer = await connect(proxy)
        proxy.hold(Way.DOWN)
        writer.write(b"hello")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SOON):
                await reader.read(1)
        proxy.release()
        assert await reader.readexactly(5) == b"hello"
        writer.close()


async def test_a_refusing_proxy_serves_nobody() -> None:
    async with echoing() as proxy:
        proxy.refusing = True
        reader, writer = await connect(proxy)
        with pytest.raises(ConnectionResetError):
            assert await reader.read(1) == b"something"
        writer.close()
        proxy.release()
        reader, writer = await connect(proxy)
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        writer.close()


async def test_a_throttled_path_is_slow_and_whole() -> None:
    async with echoing() as proxy:
        proxy.bytes_per_second = 10_000
        reader, writer = await connect(proxy)
        since = time.monotonic()
        writer.write(b"y" * 2000)
        assert await reader.readexactly(2000) == b"y" * 2000
        assert time.monotonic() - since > 0.15
        writer.close()


async def test_new_connections_go_to_the_new_upstream() -> None:
    async with echoing() as proxy, echoing() as other:
        proxy.upstream = ("127.0.0.1", other.port)
        reader, writer = await connect(proxy)
        writer.write(b"z")
        assert await reader.readexactly(1) == b"z"
        assert other.connections == 1
        writer.close()
