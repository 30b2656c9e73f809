"""Every form of `LEGATO_REDIS_URL`, on both kinds of connection: pipelined scripts and pooled commands."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from broker.backoff import until_available
from broker.embedded import EmbeddedServer
from broker.errors import StoreUnavailable, StoreUnusable
from broker.queue import Queue
from broker.records import Records
from broker.settings import Settings
from broker.store import Store
from broker.tail import Tail
from chaos.stores import Sentinels
from tests.broker.conftest import job
from tests.support.servers import command, free_port, wait_in_sync


async def use(url: str, prefix: str) -> None:
    """Submit (scripts), list (pool), follow (subscription)."""
    store = Store(url, Settings(prefix=prefix))
    queue = Queue(store)
    records, tail = Records(store, queue), Tail(store)
    running = asyncio.create_task(tail.run())
    try:
        accepted = await records.submit("acme", job())
        assert [record.id for record in (await records.newest("acme", limit=5)).records] == [accepted.id]
        assert await queue.wait(1)
        async with tail.follow(accepted.id):
            assert tail.connections == 1
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await store.aclose()


@asynccontextmanager
async def tls_in_front_of(server: EmbeddedServer, context: ssl.SSLContext) -> AsyncIterator[int]:
    """A port that speaks TLS and passes everything on: the embedded server is built without."""
    piping: set[asyncio.Task[None]] = set()

    async def pipe(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            target.write(data)
            await target.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_read, to_write = await asyncio.open_unix_connection(str(server.socket_path))
        both = {asyncio.ensure_future(pipe(reader, to_write)), asyncio.ensure_future(pipe(to_read, writer))}
        piping.update(both)
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for end in (writer, to_write):
            end.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    yield listener.sockets[0].getsockname()[1]
    listener.close()
    for task in piping:
        task.cancel()
    await asyncio.gather(*piping, return_exceptions=True)


async def test_a_unix_socket_a_port_and_a_database(prefix: str) -> None:
    with EmbeddedServer.start(port=free_port()) as server:
        await use(server.url, prefix)
        await use(f"redis://127.0.0.1:{server.port}/3", prefix)
        assert any(line.startswith("db3:") for line in str(command(server, "INFO", "keyspace")).splitlines())


async def test_a_user_and_a_password(prefix: str) -> None:
    with EmbeddedServer.start(port=free_port()) as server:
        command(server, "ACL", "SETUSER", "legato", "on", ">s3cret/:@", "~*", "&*", "+@all")
        await use(f"redis://legato:s3cret%2F%3A%40@127.0.0.1:{server.port}", prefix)
        refused = Store(f"redis://legato:wrong@127.0.0.1:{server.port}", Settings(prefix=prefix))
        with pytest.raises(StoreUnusable) as caught:
            await Records(refused, Queue(refused)).submit("acme", job())
        assert "wrong" not in str(caught.value)
        await refused.aclose()


async def test_tls_and_who_is_trusted(prefix: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    trusted = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(trusted))
    with EmbeddedServer.start() as server:
        async with tls_in_front_of(server, context) as port:
            await use(f"rediss://localhost:{port}?ssl_ca_certs={trusted}", prefix)
            stranger = Store(f"rediss://localhost:{port}", Settings(prefix=prefix))
            with pytest.raises(StoreUnavailable):
                await Records(stranger, Queue(stranger)).submit("acme", job())
            await stranger.aclose()


async def test_sentinels_name_the_primary_before_and_after_a_failover(prefix: str) -> None:
    sentinels = Sentinels()
    await sentinels.start()
    try:
        await use(sentinels.url, prefix)
        store = Store(sentinels.url, Settings(prefix=prefix, store_timeout_seconds=1))
        records = Records(store, Queue(store))
        before = (await records.submit("acme", job())).id
        await asyncio.to_thread(wait_in_sync, *reversed(sentinels.servers))
        await sentinels.fail_over(0)
        async with asyncio.timeout(30):
            after = await until_available(lambda: records.submit("acme", job()))
            listed = await until_available(lambda: records.newest("acme", limit=2))
        assert [record.id for record in listed.records] == [after.id, before]
        await store.aclose()
    finally:
        await sentinels.stop()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("127.0.0.1:6379", "it has no scheme"),
        ("http://127.0.0.1", "it starts with http://"),
        ("redis://h:port", "a port that is no number"),
        ("redis://h/one", "a database that is no number"),
    ],
)
async def test_a_url_that_is_none_is_told_so(url: str, said: str) -> None:
    with pytest.raises(StoreUnusable, match=said):
        Store(url, Settings())
