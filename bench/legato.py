"""Legato as a contender: one `legato api` on the server's core, and generations that the writer may write.

Generations are submitted and claimed through `broker.records` and `broker.lease`, as an API and a worker do it, so that
ids, epochs and owners are what the scripts check. Then the native writer takes the worker's place: it sends the scripts
with the arguments of `broker.lane` and `broker.log`, at most one append a generation in flight, as `worker.writer`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Final

from bench.contender import (
    Contender,
    NotStarted,
    Place,
    Running,
    StoreRunning,
    Streams,
    connections,
    process,
    store,
    with_children,
)
from bench.machine import children, cpu_us, free_port
from bench.programs import Writing
from broker.events import Completed, Entry, FinishReason, encode
from broker.generation import Request
from broker.keys import Keys
from broker.lease import Lease, Leases, new_owner
from broker.log import Appended, Log
from broker.queue import Queue
from broker.records import Records
from broker.scripts import APPEND, EXTEND
from broker.settings import Settings
from broker.store import Store

ROOT: Final = Path(__file__).parents[1]

#: Nobody takes a generation over while it is measured.
_LEASE_SECONDS: Final = 300.0
#: Submits under way at once.
_AT_ONCE: Final = 20
_CANCEL_SECONDS: Final = 10.0
#: Several processes have come to rest when they use no CPU for so long.
_REST_SECONDS: Final = 0.5
_START_SECONDS: Final = 30.0
#: The name of the scripted provider in the whole path.
_PROVIDER: Final = "scripted"


class Legato(Contender):
    name = "legato"
    summary = "one `legato api`, uvicorn with uvloop, settings as they are by default"
    includes = "reading Redis, one subscription for all streams, the frames; the append is Redis' part"
    workloads = frozenset(
        {"W1", "W1C", "W1S", "W2", "W3", "W3S", "W3F", "W4", "W4S", "W5", "W5M", "W6", "W7", "W7J", "W8", "W9"}
    )
    #: Of the API, behind its port.
    processes = 1

    def version(self) -> str:
        return version("legato")

    @contextmanager
    def start(self, place: Place) -> Iterator[Running]:
        with store(place) as redis, _api(place, redis, {}, processes=self.processes) as running:
            yield running

    def prepare(self, running: Running, streams: int, *, shared: bool = False) -> Streams:
        assert running.store is not None
        leases = asyncio.run(_claimed(running.store.url, streams))
        keys = _store_keys(leases)
        return Streams(
            paths=tuple(f"/v1/generations/{lease.generation}/events" for lease in leases),
            writing=Writing(
                sink="append",
                address=running.store.address,
                targets=tuple(keys),
                connections=connections(streams),
                options=("--sha", APPEND.sha.decode(), "--extend", EXTEND.sha.decode()),
            ),
            names=tuple(f"{lease.generation} {lease.epoch} {lease.owner}" for lease in leases),
        )

    def finish(self, running: Running, streams: Streams, tokens: int) -> None:
        assert running.store is not None
        asyncio.run(_end(running.store.url, streams.names, tokens))

    def seal(self, running: Running, streams: Streams) -> None:
        """The keeper of a worker does it, a second after the end."""
        assert running.store is not None
        asyncio.run(_seal(running.store.url, streams.names))

    def cancel(self, running: Running, stream: str) -> bool:
        url = f"http://{running.address}/v1/generations/{stream.split(maxsplit=1)[0]}/cancel"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=_CANCEL_SECONDS):
                return True
        except urllib.error.HTTPError:
            return False

    @contextmanager
    def whole(self, place: Place, provider: str) -> Iterator[Running]:
        """API and worker on the server's core."""
        port = free_port()
        server = {_PROVIDER: {"base_url": f"http://{provider}/v1", "api_key_env": None}}
        environment = {"LEGATO_PROVIDERS": _PROVIDER, "LEGATO_OPENAI_COMPATIBLE": json.dumps(server)}
        with store(place) as redis, _api(place, redis, environment, port=port) as running:
            command = [sys.executable, "-m", "cli.main", "worker"]
            url = f"http://127.0.0.1:{port}/readyz"  # a worker answers nothing itself; it waits for jobs once it is up
            variables = _environment(redis, environment)
            with process(place, "worker", command, url=url, environment=variables, directory=ROOT) as worker:
                yield Running(
                    port=port,
                    servers=dict(running.servers) | {"worker": worker.pid},
                    store=redis,
                    extra={"path": "/v1/generations", "provider": _PROVIDER},
                )


class LegatoProcesses(Legato):
    """Does an event cost more where several processes share the port?"""

    name = "legato_processes"
    summary = "`legato api --workers 3`, all of them on the server's core"
    workloads = frozenset({"W1", "W1S", "W2", "W8"})
    processes = 3


@contextmanager
def _api(
    place: Place, redis: StoreRunning, more: dict[str, str], *, port: int = 0, processes: int = 1
) -> Iterator[Running]:
    port = port or free_port()
    command = [sys.executable, "-m", "cli.main", "api", "--port", str(port), "--workers", str(processes)]
    environment = _environment(redis, {"LEGATO_PROVIDERS": "sim"} | more)
    url = f"http://127.0.0.1:{port}/readyz"
    with process(place, "api", command, url=url, environment=environment, directory=ROOT) as api:
        servers = {"api": api.pid}
        if processes > 1:
            _wait_until_idle(api.pid, processes)  # whoever answers first says nothing of the others
            servers = with_children("api", api.pid)
        yield Running(port=port, servers=servers, store=redis)


def _wait_until_idle(parent: int, processes: int) -> None:
    """Wait until a process has so many children, and all of them have come to rest."""
    deadline, before = time.monotonic() + _START_SECONDS, -1.0
    while time.monotonic() < deadline:
        found = children(parent)
        spent = cpu_us(found)
        if len(found) == processes and spent == before:
            return
        before = spent
        time.sleep(_REST_SECONDS)
    raise NotStarted(f"the {processes} processes of the API do not come to rest; {len(children(parent))} are there")


def _environment(redis: StoreRunning, more: dict[str, str]) -> dict[str, str]:
    """Nothing of the caller's own settings: figures are those of the defaults."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LEGATO_")}
    return kept | {"LEGATO_REDIS_URL": redis.url, "LEGATO_LOG_LEVEL": "warning"} | more


def settings(url: str) -> Settings:
    """Settings of a process that holds leases for the whole of a measurement."""
    return Settings(redis_url=url, lease_seconds=_LEASE_SECONDS)


async def claimed(store: Store, count: int) -> list[Lease]:
    """Submit `count` generations and claim each, as one worker's."""
    queue = Queue(store)
    records, leases = Records(store, queue), Leases(store)
    room = asyncio.Semaphore(_AT_ONCE)

    async def one(number: int) -> Lease:
        async with room:
            request = Request(provider="sim", model="bench", messages=[{"role": "user", "content": str(number)}])
            submitted = await records.submit("dev", request)
            lease = await leases.claim(submitted.id, owner=new_owner())
            assert isinstance(lease, Lease), lease
            return lease

    return list(await asyncio.gather(*(one(number) for number in range(count))))


async def _claimed(url: str, count: int) -> list[Lease]:
    store = Store(url, settings(url))
    try:
        found = await claimed(store, count)
        # The writer sends the scripts by their hashes only: an append that asks loads the one, a lane the other.
        first = found[0]
        await Log(store).lane(first.generation, first.epoch, first.owner, lambda _: None)
        answer = await Log(store).append(first.generation, first.epoch, first.owner, "0-0", [])
        assert isinstance(answer, Appended), answer
        return found
    finally:
        await store.aclose()


def _store_keys(leases: Sequence[Lease]) -> Iterator[str]:
    """A line each, as writer.c takes them."""
    keys = Keys(Settings().prefix)
    for lease in leases:
        generation = lease.generation
        yield "\t".join([*keys.of(generation), keys.live(generation), str(lease.epoch), lease.owner])


async def _end(url: str, names: Sequence[str], tokens: int) -> None:
    store = Store(url, settings(url))
    log = Log(store)
    try:
        for name in names:
            generation, epoch, owner = name.split()
            end = encode(Completed(finish_reason=FinishReason.STOP, usage=None, characters=0))
            entry = Entry(f"{tokens + 1}-{epoch}", *end)
            answer = await log.append(generation, int(epoch), owner, f"{tokens}-{epoch}", [entry])
            assert isinstance(answer, Appended), answer
    finally:
        await store.aclose()


async def _seal(url: str, names: Sequence[str]) -> None:
    store = Store(url, settings(url))
    log = Log(store)
    try:
        for name in names:
            generation = name.split()[0]
            sealed = await log.seal(generation, await log.read_all(generation))
            assert sealed, f"{generation} could not be sealed"
    finally:
        await store.aclose()
