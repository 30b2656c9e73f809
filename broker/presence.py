"""Who is reading, counted over all API processes: only for generations that are cancelled when nobody does.

A process writes its own name into the generation's set of viewers before its first viewer reads, again every few
seconds, and takes it out when its last one leaves. A process that is killed says nothing more, and counts as gone after
`DEAD_MS`. Whoever holds the lease looks at the set (scripts/renew.lua) and nobody else decides anything by it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from broker.errors import StoreError
from broker.scripts import PRESENCE
from broker.store import Store
from broker.wire import Arg

#: How often a process says that it has viewers, and after how long without a word it has none.
REFRESH_SECONDS: Final = 5.0
DEAD_MS: Final = 15_000


class Presence:
    """The viewers of one process. Run `run()` beside them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._process = secrets.token_hex(8)
        self._viewers: Counter[str] = Counter()

    @asynccontextmanager
    async def attending(self, generation: str) -> AsyncIterator[None]:
        """Count as a viewer while the block lasts."""
        try:
            await self.arrive(generation)
            yield
        finally:
            with suppress(asyncio.CancelledError):
                await asyncio.shield(self.depart(generation))

    async def arrive(self, generation: str) -> None:
        """Count as a viewer from now on, even if this is cancelled: `depart` follows. What cannot be said now is said
        at the next refresh; an outage by itself never counts against a viewer."""
        self._viewers[generation] += 1
        with suppress(StoreError):
            await self._say(generation)

    async def depart(self, generation: str) -> None:
        """Count no more. What cannot be said now is known when our word is old."""
        self._viewers[generation] -= 1
        if self._viewers[generation] == 0:
            del self._viewers[generation]
            with suppress(StoreError):
                await self._say(generation)

    async def run(self) -> None:
        """Say again, every few seconds, for every generation with viewers here."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            saying = [self._say(generation) for generation in self._viewers]
            await asyncio.gather(*saying, return_exceptions=True)

    async def _say(self, generation: str) -> None:
        """What is true when it is sent: whoever comes while another leaves must not be overtaken by the farewell."""
        args: list[Arg] = [self._process, "1" if generation in self._viewers else "0", 4 * DEAD_MS]
        keys = self._store.keys
        await self._store.pipe(PRESENCE, [keys.viewers(generation), keys.record(generation)], args)
