"""What most people write first: FastAPI, and one blocking XREAD for each viewer. In three spellings.

Its best documented setting: uvicorn with uvloop and httptools, redis-py with hiredis, `max_connections` raised (the
asyncio pool's own 100 would refuse the 101st viewer) and a block of 4 s (redis-py gives up on a silent socket
after 5).
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.contender import Contender, Place, Running, Streams, connections, process, store
from bench.machine import free_port
from bench.programs import Writing
from bench.rivals.install import APPS, PYTHON_PACKAGES, install_python, python

_WORKLOADS: Final = frozenset({"W1", "W1C", "W2", "W3", "W3S", "W3F", "W4", "W4S", "W6", "W8"})


class _Naive(Contender):
    includes = "one XREAD a viewer; the append is Redis' part"
    app = ""
    _numbers = itertools.count()

    def __init__(self, interpreter: Path | None = None) -> None:
        """`interpreter`: one that has FastAPI, uvicorn and redis-py, in place of the one in the cache."""
        self._interpreter = interpreter

    def install(self) -> None:
        if self._interpreter is None:
            install_python()

    def version(self) -> str:
        return ", ".join(f"{name} {PYTHON_PACKAGES[name]}" for name in ("fastapi", "uvicorn", "redis"))

    @contextmanager
    def start(self, place: Place) -> Iterator[Running]:
        with store(place) as redis:
            port = free_port()
            environment = os.environ | {"BENCH_REDIS": redis.url}
            command = uvicorn(self._interpreter or python(), f"{self.app}:app", port)
            with process(
                place, self.name, command, url=f"http://127.0.0.1:{port}/none", environment=environment
            ) as server:
                yield Running(port=port, servers={self.name: server.pid}, store=redis)

    def prepare(self, running: Running, streams: int, *, shared: bool = False) -> Streams:
        assert running.store is not None
        names = tuple(f"naive{os.getpid()}-{next(self._numbers)}" for _ in range(streams))  # of a Redis that is shared
        writing = Writing(sink="xadd", address=running.store.address, targets=names, connections=connections(streams))
        return Streams(paths=tuple(f"/s/{name}" for name in names), writing=writing, names=names)


class NaiveStreaming(_Naive):
    name = "naive_streaming"
    summary = "FastAPI StreamingResponse, XREAD BLOCK 4000 for each viewer; what one XREAD brings is one chunk"
    workloads = _WORKLOADS | {"W9"}
    app = "naive_streaming"


class NaiveSseStarlette(_Naive):
    name = "naive_sse_starlette"
    summary = "FastAPI with sse-starlette's EventSourceResponse, XREAD BLOCK 4000 for each viewer"
    workloads = _WORKLOADS
    app = "naive_sse_starlette"


class NaiveFastApiSse(_Naive):
    name = "naive_fastapi_sse"
    summary = "FastAPI's own EventSourceResponse, XREAD BLOCK 4000 for each viewer"
    workloads = _WORKLOADS
    app = "naive_fastapi_sse"


def uvicorn(interpreter: Path | str, app: str, port: int) -> list[str]:
    """One worker, at uvicorn's best; `app` is a module of `apps/`."""
    command = [str(interpreter), "-m", "uvicorn", app, "--app-dir", str(APPS), "--port", str(port)]
    return [*command, "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]


def with_own_interpreter() -> NaiveStreaming:
    """For the guard: Legato's own environment has all that it needs."""
    return NaiveStreaming(Path(sys.executable))
