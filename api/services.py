"""What the routes of one process share: the store, and the things of `broker` over it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final, Self

import structlog

from broker.errors import StoreError
from broker.events import CancelReason
from broker.generation import Record
from broker.log import Log
from broker.queue import Queue
from broker.records import CANCEL_GRACE_MS, CancelOutcome, Records
from broker.settings import Settings
from broker.store import Store
from broker.tail import Tail

_log = structlog.get_logger("legato.api")

#: How often the end of a cancelled generation is written for a worker that does not.
_CANCEL_REPEATS: Final = 5


class Services:
    """One process's parts. `open()` makes them inside the running loop and closes them at the end."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.settings = settings
        self.store = store
        self.log = Log(store)
        self.queue = Queue(store)
        self.records = Records(store, self.queue)
        self.tail = Tail(store)
        self.draining = False
        self._fault_since: float | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, settings: Settings) -> AsyncIterator[Self]:
        """Build everything, keep the tail running while the block lasts, close everything."""
        store = Store(url, settings)
        services = cls(store, settings)
        tailing = asyncio.create_task(services.tail.run(), name="tail")
        try:
            yield services
        finally:
            for task in [tailing, *services._tasks]:
                task.cancel()
            await asyncio.gather(tailing, *services._tasks, return_exceptions=True)
            await services.tail.aclose()
            await store.aclose()

    def drain(self) -> None:
        """Not ready any more; every stream ends at its next frame boundary, its reader comes back elsewhere."""
        self.draining = True
        self.tail.wake_all()

    def background(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        """Do something after the answer. It is lost with the process: only for what somebody else would do too."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def see_cancelled(self, record: Record, reason: CancelReason) -> None:
        """Write the end of a cancelled generation whose worker does not answer."""
        for _ in range(_CANCEL_REPEATS):
            await asyncio.sleep(CANCEL_GRACE_MS / 1000 + 0.05)
            try:
                if await self.records.cancel(record, reason) is not CancelOutcome.REQUESTED:
                    return
            except StoreError as exc:
                _log.warning("cancel_unconfirmed", generation=record.id, error=str(exc))

    async def adopt_orphan(self, generation: str) -> None:
        """Put back a hint that the queue may have lost."""
        try:
            await self.records.adopt_orphan(generation)
        except StoreError as exc:
            _log.warning("orphan_not_adopted", generation=generation, error=str(exc))

    def retry_ms(self, *, fault: bool) -> int:
        """When a reader should come back, random: soon after an ordinary close, later the longer a fault lasts."""
        now = asyncio.get_running_loop().time()
        if not fault:
            self._fault_since = None
            return random.randint(1000, 3000)
        if self._fault_since is None:
            self._fault_since = now
        return random.randint(2000, round(1000 * min(10.0, 3.0 + now - self._fault_since)))
