"""Everything in this folder runs twice: on a single server and on a cluster of three."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis, RedisCluster

from broker.generation import Request
from broker.lease import Lease, Leases, new_owner
from broker.log import Log
from broker.queue import Queue
from broker.records import Records
from broker.settings import Settings
from broker.store import Store


@pytest.fixture(params=["single", "cluster"])
def store_url(request: pytest.FixtureRequest) -> str:
    """URL of a server, or of a cluster, as `LEGATO_REDIS_URL` takes it."""
    if request.param == "single":
        url: str = request.getfixturevalue("redis_url")
        return url
    nodes = request.getfixturevalue("cluster").urls
    return "cluster://" + ",".join(node.partition("://")[2] for node in nodes)


@pytest.fixture
async def store(store_url: str, prefix: str) -> AsyncIterator[Store]:
    """Leases outlast the tests: what runs here is not renewed."""
    store = Store(store_url, Settings(prefix=prefix, lease_seconds=120))
    yield store
    await store.aclose()


class Kit:
    """The things of `broker` over one store."""

    def __init__(self, store: Store, raw: Redis | RedisCluster) -> None:
        self.store = store
        self.raw = raw  # behind the back of everything
        self.queue = Queue(store)
        self.records = Records(store, self.queue)
        self.log = Log(store)
        self.leases = Leases(store)

    async def submitted(self, **options: Any) -> str:
        """The id of a new generation."""
        return (await self.records.submit("acme", job(**options))).id

    async def claimed(self, generation: str | None = None) -> Lease:
        """A live lease, of a new generation unless one is named."""
        lease = await self.leases.claim(generation or await self.submitted(), owner=new_owner())
        assert isinstance(lease, Lease)
        return lease


@pytest.fixture
async def kit(store: Store, store_url: str) -> AsyncIterator[Kit]:
    scheme, _, rest = store_url.partition("://")
    raw: Redis | RedisCluster
    if scheme == "cluster":
        raw = RedisCluster.from_url("redis://" + rest.split(",")[0], legacy_responses=False)
    else:
        raw = Redis.from_url(store_url, legacy_responses=False)
    yield Kit(store, raw)
    await raw.aclose()


def job(**options: Any) -> Request:
    return Request(provider="sim", model="m", messages=[{"role": "user", "content": "hello"}], **options)
