"""W5: the writing side: what a token costs the worker and Redis, and how much of Redis' memory it takes.

The writer is a process of its own on the server's core (`bench.appender`); Redis is on the load's core. Tokens of
`W5` are those of the other workloads, 26 bytes with a stamp, which no model sends: memory is measured with words of 5
bytes (`W5M`), as written and as a log is stored once it has ended, all of `used_memory_dataset` included: record,
request, hint, indexes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Final

from bench.contender import Contender, StoreRunning, place_of
from bench.legato import ROOT
from bench.machine import SERVER_CORE, Watch, cpu_us, on_core
from bench.row import Figures
from bench.workload import Means, Outcome, Point, Workload

GENERATIONS: Final = 50
TOKENS: Final = 2000
QUICK_TOKENS: Final = 200
LONGEST_SECONDS: Final = 300.0


def _run(contender: Contender, point: Point, means: Means) -> Outcome:
    return _written(contender, means, ["--batch", str(point.x)], memory=_used)


def _stored(contender: Contender, point: Point, means: Means) -> Outcome:
    seal = ["--seal"] if point.x else []
    return _written(contender, means, ["--batch", "1", "--words", *seal], memory=_dataset)


def _written(contender: Contender, means: Means, how: list[str], *, memory: Callable[[StoreRunning], int]) -> Outcome:
    tokens = QUICK_TOKENS if means.quick else TOKENS
    with place_of(means.programs, rate=0, redis_port=means.redis_port) as place, contender.start(place) as running:
        redis = running.store
        assert redis is not None
        command = [sys.executable, "-m", "bench.appender", contender.name, "--redis", redis.url]
        command += how
        # A few tokens before: what the server sets up once, its scripts above all, is no token's.
        _append(command, generations=1, tokens=100)
        pids = [] if redis.pid is None else [redis.pid]
        watch, before, held = Watch(), cpu_us(pids), memory(redis)
        done = _append(command, generations=GENERATIONS, tokens=tokens)
        if done.returncode:
            return Outcome(figures=Figures(), errors=1, note=done.stderr.strip()[-300:])
        data = json.loads(done.stdout)
        written = data["tokens"]
        store_us = (cpu_us(pids) - before) / written if pids else None
        server_us = data["cpu_us"] / written
        return Outcome(
            figures=Figures(
                events_per_second=written / data["seconds"],
                server_us=server_us,
                store_us=store_us,
                total_us=server_us + (store_us or 0),
                core_share=data["cpu_us"] / data["seconds"] / 1e6,
                store_bytes=(memory(redis) - held) / written,
            ),
            busy=watch.busy(cpu_us(pids) - before + data["process_cpu_us"]),
        )


def _append(command: list[str], *, generations: int, tokens: int) -> subprocess.CompletedProcess[str]:
    size = ["--generations", str(generations), "--tokens", str(tokens)]
    return subprocess.run(
        on_core(SERVER_CORE, [*command, *size]),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LONGEST_SECONDS,
        check=False,
    )


def _used(redis: StoreRunning) -> int:
    return int(redis.info("memory")["used_memory"])


def _dataset(redis: StoreRunning) -> int:
    """Without scripts and connections, whose number has nothing to do with that of tokens."""
    return int(redis.info("memory")["used_memory_dataset"])


WORKLOAD: Final = Workload(
    name="W5",
    title="append, 50 generations of 2,000 tokens, as fast as they go; server is the writing process",
    headline="server_us",
    points=(Point(label="one by one", x=1), Point(label="batches of 10", x=10)),
    quick_points=(Point(label="one by one", x=1), Point(label="batches of 10", x=10)),
    run=_run,
)

MEMORY: Final = Workload(
    name="W5M",
    title="memory of Redis, 50 generations of 2,000 words of 5 bytes",
    headline="store_bytes",
    points=(Point(label="as written", x=0), Point(label="ended and sealed", x=1)),
    quick_points=(Point(label="as written", x=0), Point(label="ended and sealed", x=1)),
    run=_stored,
)
