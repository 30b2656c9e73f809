"""Does an operation cost more when there are more other generations? It must not.

    python -m bench.growth [--others 0,1000,10000,100000] [--rounds 5] [--operations 200] [--json FILE]

One embedded server. In it, ever more other generations: half of them ended, a quarter running, a quarter queued by one
tenant, who so has a long queue. Beside them one operation at a time, each on generations of its own: what it takes of
Redis' CPU, in µs, the median of the rounds. CPU is that of all threads by the scheduler's own account, so this may be
read on a machine that is not quiet.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from bench.machine import description
from broker.embedded import EmbeddedServer
from broker.events import Completed, Delta, Entry, FinishReason, encode
from broker.generation import Request
from broker.lease import Lease, Leases, new_owner
from broker.log import Log
from broker.position import BEGINNING
from broker.queue import Queue
from broker.records import Records
from broker.settings import Settings
from broker.store import Store

#: So many of the others are made at once.
_AT_ONCE: Final = 200
#: Entries in the log of a generation that is read.
_ENTRIES: Final = 20
_LEASE_SECONDS: Final = 300.0

#: A rewrite of the append-only file while an operation is measured would count as its cost.
_QUIET: Final = {"auto-aof-rewrite-percentage": "0"}

_DONE: Final = encode(Completed(finish_reason=FinishReason.STOP, usage=None, characters=0))


class Bench:
    """The things of `broker` over one store, and what the server has used."""

    def __init__(self, store: Store, pid: int) -> None:
        self._tasks = Path(f"/proc/{pid}/task")
        self.queue = Queue(store)
        self.records = Records(store, self.queue)
        self.leases = Leases(store)
        self.log = Log(store)

    def cpu_us(self) -> float:
        """CPU of all threads of the server so far."""
        return sum(int((task / "schedstat").read_text().split()[0]) for task in self._tasks.iterdir()) / 1000

    async def submitted(self, tenant: str = "bench") -> str:
        job = Request(provider="sim", model="sim", messages=[{"role": "user", "content": "hello"}])
        return (await self.records.submit(tenant, job)).id

    async def claimed(self, tenant: str = "bench") -> Lease:
        lease = await self.leases.claim(await self.submitted(tenant), owner=new_owner())
        assert isinstance(lease, Lease)
        return lease

    async def written(self, tenant: str = "bench", *, ended: bool = False) -> Lease:
        lease = await self.claimed(tenant)
        entries = [Entry(f"{seq}-{lease.epoch}", *encode(Delta(text="token "))) for seq in range(1, _ENTRIES)]
        last = _DONE if ended else encode(Delta(text="token "))
        entries.append(Entry(f"{_ENTRIES}-{lease.epoch}", *last))
        await self.log.append(lease.generation, lease.epoch, lease.owner, BEGINNING, entries)
        return lease

    async def others(self, count: int) -> None:
        """So many more generations of other tenants."""

        async def one(number: int) -> None:
            if number % 4 == 3:
                await self.submitted("queuer")
            else:
                await self.written(f"tenant{number % 100}", ended=number % 4 < 2)

        for begin in range(0, count, _AT_ONCE):
            await asyncio.gather(*(one(number) for number in range(begin, min(begin + _AT_ONCE, count))))


async def measured(bench: Bench, operations: int) -> dict[str, float]:
    """Redis' CPU for each operation, in µs."""
    queued = [await bench.submitted() for _ in range(operations)]
    running = [await bench.written() for _ in range(operations)]
    spent: dict[str, float] = {}

    async def each(name: str, operation: Callable[[int], Awaitable[object]]) -> None:
        before = bench.cpu_us()
        for number in range(operations):
            await operation(number)
        spent[name] = (bench.cpu_us() - before) / operations

    async def append(number: int) -> object:
        lease, seq = running[number], _ENTRIES + 1
        entry = Entry(f"{seq}-{lease.epoch}", *encode(Delta(text="token ")))
        return await bench.log.append(lease.generation, lease.epoch, lease.owner, f"{seq - 1}-{lease.epoch}", [entry])

    async def take(_: int) -> object:
        taken = await bench.queue.take(1)
        assert taken.hints
        return taken

    async def resume(number: int) -> object:
        lease = running[number]
        return await bench.log.read(lease.generation, f"{_ENTRIES // 2}-{lease.epoch}", 100)

    await each("submit", lambda _: bench.submitted())
    await each("take", take)
    await each("claim", lambda number: bench.leases.claim(queued[number], owner=new_owner()))
    await each("append", append)
    await each("resume", resume)
    await each("renew", lambda number: bench.leases.renew(running[number]))
    await each("look_up", lambda number: bench.records.get("bench", running[number].generation))
    await each("list_20", lambda _: bench.records.newest("bench", limit=20))
    return spent


async def _main(others: list[int], rounds: int, operations: int, json_path: Path | None) -> None:
    with (
        TemporaryDirectory(prefix="legato-growth-") as folder,
        EmbeddedServer.start(Path(folder), extra=_QUIET) as server,
    ):
        store = Store(server.url, Settings(lease_seconds=_LEASE_SECONDS, max_queued=10 * max(others) + 100_000))
        bench = Bench(store, server.pid)
        rows, there = [], 0
        for line in description():
            print(line)
        await measured(bench, min(operations, 50))  # scripts are loaded, memory is grown
        try:
            for count in others:
                await bench.others(count - there)
                there = count
                found = [await measured(bench, operations) for _ in range(rounds)]
                row = {name: round(statistics.median(one[name] for one in found), 1) for name in found[0]}
                rows.append({"others": count, **row})
                print(
                    f"{count:>8} others: " + "  ".join(f"{name} {value:.1f}" for name, value in row.items()), flush=True
                )
        finally:
            await store.aclose()
        first, last = rows[0], rows[-1]
        ratios = {name: round(last[name] / first[name], 2) for name in first if name != "others"}
        print(
            f"with {last['others']} others over {first['others']}: " + "  ".join(f"{k} ×{v}" for k, v in ratios.items())
        )
        if json_path is not None:
            json_path.write_text(json.dumps({"about": description(), "rows": rows, "ratios": ratios}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__)
    parser.add_argument("--others", default="0,1000,10000,100000")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--operations", type=int, default=200)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ.pop("LEGATO_REDIS_URL", None)
    others = [int(part) for part in options.others.split(",")]
    asyncio.run(_main(others, options.rounds, options.operations, options.json))


if __name__ == "__main__":
    main()
