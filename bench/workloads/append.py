"""W5: the writing side: what a token costs the worker and Redis, and how much of Redis' memory it takes.

The writer is a process of its own on the server's core (`bench.appender`); Redis is on the load's core.
"""

from __future__ import annotations

import json
import subprocess
import sys
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
    tokens = QUICK_TOKENS if means.quick else TOKENS
    with place_of(means.programs, rate=0, redis_port=means.redis_port) as place, contender.start(place) as running:
        redis = running.store
        assert redis is not None
        command = [sys.executable, "-m", "bench.appender", contender.name, "--redis", redis.url]
        command += ["--generations", str(GENERATIONS), "--tokens", str(tokens), "--batch", str(point.x)]
        pids = [] if redis.pid is None else [redis.pid]
        watch, before, memory = Watch(), cpu_us(pids), _memory(redis)
        done = subprocess.run(
            on_core(SERVER_CORE, command),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=LONGEST_SECONDS,
            check=False,
        )
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
                store_bytes=(_memory(redis) - memory) / written,
            ),
            busy=watch.busy(cpu_us(pids) - before + data["process_cpu_us"]),
        )


def _memory(redis: StoreRunning) -> int:
    return int(redis.info("memory")["used_memory"])


WORKLOAD: Final = Workload(
    name="W5",
    title="append, 50 generations of 2,000 tokens, as fast as they go; server is the writing process",
    headline="server_us",
    points=(Point(label="one by one", x=1), Point(label="batches of 10", x=10)),
    quick_points=(Point(label="one by one", x=1), Point(label="batches of 10", x=10)),
    run=_run,
)
