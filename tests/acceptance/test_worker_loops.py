"""The loops of a worker leave one another alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio

from broker.generation import Request
from broker.queue import Hint, Queue
from broker.records import Records
from broker.settings import Settings
from broker.store import Store
from worker.providers.sim import SimProvider
from worker.tools.registry import Tools
from worker.worker import Worker

LEASE_SECONDS = 3
JOB = Request(
    provider="sim",
    model="m",
    messages=[{"role": "user", "content": "x"}],
    provider_options={"tokens": 1, "first_token_ms": 600_000},
)


@pytest_asyncio.fixture
async def store(redis_url: str, prefix: str) -> AsyncIterator[Store]:
    store = Store(redis_url, Settings(prefix=prefix, lease_seconds=LEASE_SECONDS, drain_seconds=0))
    yield store
    await store.aclose()


async def test_leases_are_renewed_while_the_queue_s_server_hangs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a cluster the queue is on one server and most generations are on others."""
    hanging = asyncio.Event()

    async def hang(_: Queue, hints: Sequence[Hint], milliseconds: int) -> None:
        hanging.set()
        await asyncio.get_running_loop().create_future()

    worker = Worker(store, providers={"sim": SimProvider()}, tools=Tools([]), settings=store.settings)
    running = asyncio.create_task(worker.run())
    records = Records(store, Queue(store))
    generation = (await records.submit("acme", JOB)).id
    monkeypatch.setattr(Queue, "look_again", hang)
    async with asyncio.timeout(60):
        await hanging.wait()
    await asyncio.sleep(LEASE_SECONDS + 1)
    record = await records.get("acme", generation)
    monkeypatch.undo()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert record.lease_live
