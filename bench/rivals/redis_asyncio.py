"""Only the writing side: `await redis.asyncio.xadd(…)` for each token, which is what the naive servers' writers do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from bench.contender import Contender, Place, Running, store


class RedisAsyncio(Contender):
    name = "redis_asyncio"
    summary = "redis-py's asyncio client with hiredis, one XADD a token (batch 10: one pipeline of ten)"
    includes = "no fence, no duplicate check, no notification"
    workloads = frozenset({"W5", "W5M"})

    def version(self) -> str:
        return f"redis {version('redis')}"

    @contextmanager
    def start(self, place: Place) -> Iterator[Running]:
        with store(place) as redis:
            yield Running(port=0, servers={}, store=redis)
