"""What the routes of one process share: the store, and the things of `broker` over it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol, Self

import structlog

from api.gauges import Gauges, Row
from broker.backoff import unharmed
from broker.calls import Calls
from broker.errors import DataLost, GenerationExpired, GenerationUnknown, LegatoError, StoreError, where
from broker.events import CancelReason
from broker.generation import Record, created_at
from broker.log import Log
from broker.presence import Presence
from broker.queue import Queue
from broker.records import CANCEL_GRACE_MS, CancelOutcome, Records
from broker.settings import Settings
from broker.store import Store
from broker.tail import Tail
from broker.throttle import Throttle
from broker.totals import Totals

_log = structlog.get_logger("legato.api")

#: How often the end of a cancelled generation is written for a worker that does not.
_CANCEL_REPEATS: Final = 5

#: A stopping process ends its streams over this time at most, so that their readers do not come back all at once.
_SPREAD_SECONDS: Final = 3.0

#: Viewers that are written to directly are looked at this often, or eight times in the silence they may have.
_BEAT_SECONDS: Final = 1.0
_BEATS_A_PING: Final = 8


class Beating(Protocol):
    """Something that is looked at every `beat_seconds`."""

    def beat(self, now: float) -> None:
        """`now` is the loop's clock."""
        ...


class Draining(LegatoError):
    """This process is stopping. Cure: ask again; another one answers."""

    code = "draining"


#: How long a generation that the store does not know any more may still be put back.
LOSS_SECONDS: Final = 30.0

#: An id older than this is of nothing that anybody would put back.
_LOST_AGE_SECONDS: Final = 86_400.0

#: Faults that pass: a reader of SSE is kept through them, everybody else is asked to come again.
PASSING: Final = (StoreError, Draining)


class Services:
    """One process's parts. `open()` makes them inside the running loop and closes them at the end."""

    def __init__(self, store: Store, settings: Settings, gauges: Gauges) -> None:
        self.settings = settings
        self.store = store
        self.log = Log(store)
        self.queue = Queue(store)
        self.records = Records(store, self.queue)
        self.calls = Calls(store, self.queue)
        self.throttle = Throttle(store)
        self.tail = Tail(store)
        self.presence = Presence(store)
        self.totals = Totals(store)
        self.beat_seconds = min(_BEAT_SECONDS, settings.ping_seconds / _BEATS_A_PING)
        self.heartbeat: set[Beating] = set()  # viewers that are written to without a task of theirs waking
        self.viewers = 0
        self.draining = False
        self._gauges = gauges
        self._fault_since: float | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, settings: Settings, *, gauges: Gauges | None = None) -> AsyncIterator[Self]:
        """Build everything, keep the tail running while the block lasts, close everything."""
        store = Store(url, settings)
        services = cls(store, settings, gauges or Gauges())
        for loop in (services.tail.run, services.presence.run, services.beat):
            services.background(unharmed(loop), name=loop.__qualname__)
        try:
            yield services
        finally:
            for task in services._tasks:
                task.cancel()
            await asyncio.gather(*services._tasks, return_exceptions=True)
            await store.aclose()

    async def beat(self) -> None:
        """One look, now and then, at each viewer that is written to directly: instead of a timer each."""
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(self.beat_seconds)
            now = clock()
            for viewer in list(self.heartbeat):
                viewer.beat(now)
            self.counted()

    def counted(self) -> Row:
        """The gauges of all processes behind this port; this one's are put down."""
        tail = self.tail
        self._gauges.put(Row(self.viewers, tail.topics, tail.connections, self.draining))
        return self._gauges.total()

    def drain(self) -> None:
        """Not ready any more; every stream ends at a frame boundary, spread over a few seconds (`drain_seconds` if
        that is less), and its reader comes back elsewhere."""
        self.draining = True
        self.tail.wake_all()

    def check_open(self) -> None:
        """Raises `Draining` once this process is stopping."""
        if self.draining:
            raise Draining("this server is stopping")

    def leave_at(self, now: float) -> float:
        """When a stream should end, now that this process is stopping."""
        return now + random.uniform(0, min(self.settings.drain_seconds, _SPREAD_SECONDS))

    def background(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        """Do something beside the requests. It is lost with the process: only for what somebody else would do too."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("background_defect", task=task.get_name(), **where(error))

    async def cancel(self, record: Record, reason: CancelReason) -> CancelOutcome:
        """Cancel, and see that the end is written even if the worker does not answer."""
        outcome = await self.records.cancel(record, reason)
        if outcome is CancelOutcome.REQUESTED:
            self.background(self.see_cancelled(record, reason), name=f"see {record.id} cancelled")
        return outcome

    async def see_cancelled(self, record: Record, reason: CancelReason) -> None:
        """Write the end of a cancelled generation whose worker does not answer."""
        for _ in range(_CANCEL_REPEATS):
            await asyncio.sleep(CANCEL_GRACE_MS / 1000 + 0.05)
            try:
                if await self.records.cancel(record, reason) is not CancelOutcome.REQUESTED:
                    return
            except GenerationExpired:
                return
            except StoreError as exc:
                _log.warning("cancel_unconfirmed", generation=record.id, error=str(exc))

    async def adopt_orphan(self, generation: str) -> None:
        """Put back a hint that the queue may have lost."""
        try:
            await self.records.adopt_orphan(generation)
        except StoreError as exc:
            _log.warning("orphan_not_adopted", generation=generation, error=str(exc))

    async def record(self, tenant: str, generation: str) -> Record:
        """The record. Raises `GenerationUnknown` (another tenant's too), `GenerationExpired`, and `DataLost` where it
        may come back."""
        try:
            return await self.records.get(tenant, generation)
        except GenerationUnknown as unknown:
            raise await self.unless_lost(generation, unknown) from None

    async def unless_lost(
        self, generation: str, unknown: GenerationUnknown, *, seen: bool = False
    ) -> GenerationUnknown | DataLost:
        """What to say of a generation that the store does not know. Where its server has just lost data and there was
        such a one before that, its holder may be about to put it back. That there was, the asker's cursor shows
        (`seen`), or the id itself, which tells when it was made."""
        since_loss = await self.store.seconds_since_loss(self.store.keys.record(generation))
        age = time.time() - created_at(generation)
        if since_loss < LOSS_SECONDS and (seen or since_loss < age < _LOST_AGE_SECONDS):
            return DataLost(f"the store has lost data, {generation} perhaps too")
        return unknown

    def retry_ms(self, *, fault: bool) -> int:
        """When a reader should come back, random: soon after an ordinary close, later the longer a fault lasts."""
        now = asyncio.get_running_loop().time()
        if not fault:
            self._fault_since = None
            return random.randint(1000, 3000)
        if self._fault_since is None:
            self._fault_since = now
        return random.randint(2000, round(1000 * min(10.0, 3.0 + now - self._fault_since)))
