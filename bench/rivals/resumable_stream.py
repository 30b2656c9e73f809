"""resumable-stream (npm): the process that generates a stream also fans it out, over Redis pub/sub.

The library has no server of its own; `apps/resumable_stream.mjs` is the smallest on Node's http. Two cases: the request
that made a stream reads it without any Redis (`first`), everybody who comes later over pub/sub (`resumed`).
"""

from __future__ import annotations

import itertools
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from bench.contender import Contender, Place, Running, Streams, process, store
from bench.machine import free_port
from bench.rivals.install import APPS, NODE_PACKAGES, install_node, lacks, node_modules


class ResumableStream(Contender):
    name = "resumable_stream"
    summary = "resumable-stream on Node's http, redis (npm); every viewer has come back, so reads over pub/sub"
    includes = "making the tokens in the same process; the text is in that process' memory, not in Redis"
    workloads = frozenset({"W1", "W1C", "W2", "W4", "W6"})
    _numbers = itertools.count()

    def missing(self) -> str | None:
        return lacks("node", "npm")

    def install(self) -> None:
        install_node()

    def version(self) -> str:
        return f"{NODE_PACKAGES['resumable-stream']}, redis (npm) {NODE_PACKAGES['redis']}"

    @contextmanager
    def start(self, place: Place) -> Iterator[Running]:
        with store(place) as redis:
            port = free_port()
            environment = os.environ | {
                "BENCH_MODULES": str(node_modules()),
                "BENCH_PORT": str(port),
                "BENCH_REDIS": redis.url,
                "BENCH_RATE": str(place.rate),
            }
            command = ["node", str(APPS / "resumable_stream.mjs")]
            url = f"http://127.0.0.1:{port}/none"
            with process(place, self.name, command, url=url, environment=environment) as server:
                yield Running(port=port, servers={self.name: server.pid}, store=redis)

    def prepare(self, running: Running, streams: int, *, shared: bool = False) -> Streams:
        names = tuple(f"r{next(self._numbers)}" for _ in range(streams))
        for name in names:
            made = urllib.request.Request(f"http://{running.address}/make/{name}", method="POST")
            with urllib.request.urlopen(made, timeout=10):
                pass
        return Streams(paths=tuple(f"/resume/{name}" for name in names), writing=None, names=names)


class ResumableStreamFirst(ResumableStream):
    name = "resumable_stream_first"
    summary = "resumable-stream on Node's http; every viewer is the request that made the stream, so reads in memory"
    includes = "making the tokens in the same process; Redis is not touched for a token"
    workloads = frozenset({"W1", "W1C", "W6"})

    def prepare(self, running: Running, streams: int, *, shared: bool = False) -> Streams:
        names = tuple(f"f{next(self._numbers)}" for _ in range(streams))
        return Streams(paths=tuple(f"/first/{name}" for name in names), writing=None, names=names)
