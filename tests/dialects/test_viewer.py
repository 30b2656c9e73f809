"""A viewer with an encoder goes on at once behind entries of which the encoder says nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from api.dialects.viewer import DialectViewer
from api.dialects.waiting import Silent
from api.services import Services
from api.viewer import start
from broker.events import Entry
from broker.lease import Lease, Leases, new_owner
from broker.settings import Settings
from tests.dialects.logs import STARTED, completed, log, request, texts

#: Longer than the test may take: nothing that waits for a ping is in time.
PING_SECONDS = 600


@pytest.fixture
async def services(redis_url: str, prefix: str) -> AsyncIterator[Services]:
    """Of one process, whose pings are far apart."""
    settings = Settings(redis_url=redis_url, prefix=prefix, ping_seconds=PING_SECONDS)
    async with Services.open(redis_url, settings) as opened:
        yield opened


class Counting(Silent):
    """Says nothing, and knows what it was given."""

    def __init__(self) -> None:
        self.seen: list[Entry] = []
        self.changed = asyncio.Event()

    def encode(self, entries: Sequence[Entry]) -> bytes:
        self.seen += entries
        self.changed.set()
        return b""

    async def has_seen(self, count: int) -> None:
        """Wait until it was given so many."""
        while len(self.seen) < count:
            self.changed.clear()
            await self.changed.wait()


@pytest.mark.timeout(60)
async def test_entries_without_words_do_not_make_a_viewer_wait(services: Services) -> None:
    """Neither pages of a log that grows, nor its end, nor a delete: else `starting_after` in a long answer would stand
    still until the next ping, and so would who waits for the whole."""
    accepted = await services.records.submit("dev", request())
    lease = await Leases(services.store).claim(accepted.id, owner=new_owner())
    assert isinstance(lease, Lease)
    entries = log([STARTED, *texts(*["word "] * 3000), completed()])
    for at in range(0, 3000, 500):
        prev = entries[at - 1].position if at else "0-0"
        await services.log.append(accepted.id, lease.epoch, lease.owner, prev, entries[at : at + 500])
    encoder = Counting()
    viewer = DialectViewer(services, await start(services, "dev", accepted.id, None, snapshot=False), encoder)

    async def read() -> list[bytes]:
        return [chunk async for chunk in viewer.chunks()]

    reading = asyncio.create_task(read())
    await encoder.has_seen(3000)
    await services.log.append(accepted.id, lease.epoch, lease.owner, entries[2999].position, entries[3000:])
    assert b"".join(await reading) == b""
    assert (encoder.seen, viewer.finished) == (entries, True)


@pytest.mark.timeout(60)
async def test_a_delete_ends_a_viewer_without_words(services: Services) -> None:
    """At once."""
    accepted = await services.records.submit("dev", request())
    begin = await start(services, "dev", accepted.id, None, snapshot=False)
    viewer = DialectViewer(services, begin, Silent())

    async def read() -> None:
        async for _ in viewer.chunks():
            pass

    reading = asyncio.create_task(read())
    await services.records.delete(await services.records.get("dev", accepted.id))
    await reading
    assert viewer.finished
