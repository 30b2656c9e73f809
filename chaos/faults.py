"""Carries out a schedule. Every fault leaves things as they should be when it is over; what it lost is written down."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import redis

from broker.embedded import EmbeddedServer
from broker.keys import Keys
from chaos.cluster import Cluster
from chaos.doors import Door
from chaos.jobs import Jobs
from chaos.paths import PATHS, break_paths, break_ways
from chaos.processes import Api, Child
from chaos.schedule import Fault, Kind
from chaos.stores import UNREPLICATED_SECONDS, Replicated, Sentinels, Stores, ask

#: What a killed server may not have written to its file yet: it syncs once a second, and holds writes back meanwhile.
_UNSYNCED_SECONDS: Final = 2.5

_RESHARDED_LOGS: Final = 3

#: How long a FLUSHALL, a SIGKILL or a promotion takes from when it is noted until it has happened.
_AT_ONCE_SECONDS: Final = 0.3

#: A server that stands still for longer is failed over by the Sentinels; when it is back it takes writes, which are
#: lost, until they have told it so.
_SENTINEL_SECONDS: Final = 1.0
_DEMOTED_SECONDS: Final = 12.0

_ONE_PROCESS: Final = frozenset(
    {Kind.API_KILL, Kind.API_PAUSE, Kind.API_TERM, Kind.WORKER_KILL, Kind.WORKER_PAUSE, Kind.WORKER_TERM}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """The store forgot what it acknowledged from `since` to `forgets_until`; at `at` that happened, and at `until` it
    was whole again. Unix seconds; `since` 0 is everything."""

    kind: Kind
    since: float
    at: float
    until: float
    forgets_until: float
    covers: Callable[[str], bool]  # whether a generation was stored there


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A fault that was injected."""

    fault: Fault
    since: float
    until: float
    problem: str  # why it could not be, or ''
    target: str  # the process, where it was one


class Faults:
    """The hand that breaks things."""

    def __init__(
        self,
        *,
        stores: Stores,
        apis: Sequence[Api],
        workers: Sequence[Child],
        doors: list[Door],
        keys: Keys,
        jobs: Jobs,
    ) -> None:
        self.done: list[Done] = []
        self.losses: list[Loss] = []
        self._stores = stores
        self._apis = list(apis)
        self._workers = list(workers)
        self._doors = doors
        self._keys = keys
        self._jobs = jobs

    async def run(self, schedule: Sequence[Fault]) -> None:
        """Inject every fault at its time; returns when the last is over."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        async with asyncio.TaskGroup() as group:
            for fault in schedule:
                await asyncio.sleep(max(0.0, start + fault.at - loop.time()))
                group.create_task(self._inject(fault))

    async def _inject(self, fault: Fault) -> None:
        since, problem = time.time(), ""
        try:
            await self._do(fault)
        except (OSError, LookupError, TimeoutError, StopIteration, redis.RedisError) as exc:
            problem = repr(exc)[:300]
        target = self._one(fault).name if fault.kind in _ONE_PROCESS else ""
        self.done.append(Done(fault=fault, since=since, until=time.time(), problem=problem, target=target))

    async def _do(self, fault: Fault) -> None:
        match fault.kind:
            case Kind.API_KILL | Kind.WORKER_KILL:
                await self._kill(self._one(fault), fault.seconds)
            case Kind.API_PAUSE | Kind.WORKER_PAUSE:
                child = self._one(fault)
                async with child.busy:
                    await child.pause(fault.seconds)
            case Kind.API_TERM | Kind.WORKER_TERM:
                await self._restart(self._one(fault), fault.seconds)
            case Kind.ROLLING_RESTART:
                for child in [*self._apis, *self._workers]:
                    await self._restart(child, fault.seconds)
            case Kind.VIEWERS_CUT | Kind.VIEWERS_CUT_AT | Kind.VIEWERS_HELD | Kind.VIEWERS_SLOW:
                await break_ways(fault, [door.proxy for door in self._doors])
            case _:
                async with self._stores.lock:
                    await self._store(fault)

    def _one(self, fault: Fault) -> Child:
        api = fault.kind in (Kind.API_KILL, Kind.API_PAUSE, Kind.API_TERM)
        children: list[Child] = [*self._apis] if api else self._workers
        return children[fault.target % len(children)]

    async def _kill(self, child: Child, seconds: float) -> None:
        async with child.busy:
            child.kill()
            await asyncio.sleep(seconds)
            child.start()
            await self._ready(child)

    async def _restart(self, child: Child, seconds: float) -> None:
        async with child.busy:
            await child.terminate()
            await asyncio.sleep(seconds)
            child.start()
            await self._ready(child)

    @staticmethod
    async def _ready(child: Child) -> None:
        if isinstance(child, Api):
            await child.wait_ready()

    async def _store(self, fault: Fault) -> None:
        stores, proxies = self._stores, self._stores.proxies
        some = proxies if fault.size % 2 or not proxies else [proxies[fault.target % len(proxies)]]
        match fault.kind:
            case kind if kind in PATHS:
                await break_paths(fault, some)
            case Kind.STORE_SLEEP:
                server = await self._primary(fault)
                since = time.time()
                await asyncio.to_thread(ask, server, "DEBUG", "SLEEP", fault.seconds)
                if isinstance(stores, Sentinels) and fault.seconds > _SENTINEL_SECONDS * 0.8:
                    at = time.time()
                    until = at + _DEMOTED_SECONDS
                    self._note(fault, since, at, everything, until=until, forgets_until=until)
            case Kind.STORE_PAUSE:
                server = await self._primary(fault)
                os.kill(server.pid, signal.SIGSTOP)
                try:
                    await asyncio.sleep(fault.seconds)
                finally:
                    os.kill(server.pid, signal.SIGCONT)
            case Kind.STORE_TERM:
                server = await self._primary(fault)
                await asyncio.to_thread(server.shut_down)
                await asyncio.sleep(fault.seconds)
                await asyncio.to_thread(server.restart)
            case Kind.STORE_FULL:
                await stores.on_primaries("CONFIG", "SET", "maxmemory", 1)
                await asyncio.sleep(fault.seconds)
                await stores.on_primaries("CONFIG", "SET", "maxmemory", 0)
            case Kind.SCRIPT_FLUSH:
                await stores.on_primaries("SCRIPT", "FLUSH")
            case Kind.CLIENT_KILL:
                await stores.on_primaries("CLIENT", "KILL", "TYPE", "normal" if fault.size % 2 else "pubsub")
            case Kind.RESHARD:
                await self._reshard(fault)
            case _:
                await self._lose(fault)

    async def _lose(self, fault: Fault) -> None:
        """The faults after which the store may know less than it did."""
        stores = self._stores
        since = 0.0
        covers: Callable[[str], bool] = everything
        match fault.kind:
            case Kind.FLUSHALL:
                server = await self._primary(fault)
                covers = await asyncio.to_thread(lambda: self._stored_at(server))
                at = time.time()
                await asyncio.to_thread(ask, server, "FLUSHALL")
            case Kind.STORE_KILL | Kind.STORE_KILL_EMPTY:
                server = await self._primary(fault)
                covers = await asyncio.to_thread(lambda: self._stored_at(server))
                at = time.time()
                await asyncio.to_thread(server.kill)
                await asyncio.sleep(fault.seconds)
                if fault.kind is Kind.STORE_KILL_EMPTY:
                    await stores.empty_start(server)
                else:
                    since = at - _UNSYNCED_SECONDS
                    await asyncio.to_thread(server.restart)
            case Kind.PROMOTION if isinstance(stores, Replicated):
                since, at = await stores.promote(fault.seconds)
            case Kind.FAILOVER if isinstance(stores, Sentinels):
                at = time.time()
                since = at - UNREPLICATED_SECONDS
                try:
                    await stores.fail_over(fault.seconds)
                finally:  # whatever became of it, the primary was killed
                    self._note(fault, since, at, covers, until=time.time())
                return
            case _:
                raise LookupError(f"{fault.kind.value} is not for this profile")
        self._note(fault, since, at, covers, until=time.time())

    def _note(
        self,
        fault: Fault,
        since: float,
        at: float,
        covers: Callable[[str], bool],
        *,
        until: float,
        forgets_until: float | None = None,
    ) -> None:
        """Write a loss down. Of what it loses all at once, the last is acknowledged while it happens."""
        if forgets_until is None:
            forgets_until = at + _AT_ONCE_SECONDS
        self.losses.append(
            Loss(kind=fault.kind, since=since, at=at, until=until, forgets_until=forgets_until, covers=covers)
        )

    async def _primary(self, fault: Fault) -> EmbeddedServer:
        primaries = await asyncio.to_thread(lambda: self._stores.primaries)
        return primaries[fault.target % len(primaries)]

    def _stored_at(self, server: EmbeddedServer) -> Callable[[str], bool]:
        """Whether a generation lives on that server, as things are now."""
        stores = self._stores
        if not isinstance(stores, Cluster):
            return everything
        keys, slots = self._keys, stores.slots_of(server)
        return lambda generation: stores.slot_of(keys.record(generation)) in slots

    async def _reshard(self, fault: Fault) -> None:
        stores = self._stores
        if not isinstance(stores, Cluster):
            raise LookupError("only a cluster has slots")  # noqa: TRY004
        live = [job.id for job in self._jobs.all if job.id and any(not reader.follower.end for reader in job.readers)]
        draw = random.Random(fault.target)
        keys = [self._keys.log(generation) for generation in draw.sample(live, min(_RESHARDED_LOGS, len(live)))]
        if fault.size % 3 == 0:
            keys.append(self._keys.wake())  # the queue's slot
        for slot in dict.fromkeys(stores.slot_of(key) for key in keys):
            await stores.move(slot, fault.seconds)


def everything(generation: str) -> bool:
    """A loss that spares nothing."""
    return True


async def end(children: Sequence[Child]) -> None:
    """Stop processes in good order."""
    async with asyncio.TaskGroup() as group:
        for child in children:
            if child.alive:
                with suppress(ProcessLookupError):
                    group.create_task(child.terminate())
