"""What the naive servers share: their Redis client, and one viewer's entries as they come."""

import os
from collections.abc import AsyncIterator

import redis.asyncio as redis

#: redis-py's asyncio pool has 100 connections unless told otherwise, and each viewer holds one.
MAX_CONNECTIONS = 100_000
#: Below redis-py's own socket timeout of 5 s.
BLOCK_MS = 4000
PAGE_ENTRIES = 500

client = redis.from_url(os.environ["BENCH_REDIS"], max_connections=MAX_CONNECTIONS)


async def pages(name: str, last: str | None) -> AsyncIterator[list[tuple[str, str]]]:
    """(id, payload) of each entry behind `last`, as many at a time as are there; for ever."""
    cursor = last or "0"
    while True:
        reply = await client.xread({name: cursor}, count=PAGE_ENTRIES, block=BLOCK_MS)
        for _, entries in reply.items() if isinstance(reply, dict) else reply:
            page = entries[0] if isinstance(reply, dict) else entries
            cursor = page[-1][0].decode()
            yield [(place.decode(), fields[b"d"].decode()) for place, fields in page]
