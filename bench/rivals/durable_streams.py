"""The reference server of the Durable Streams protocol, in memory. Its README calls it a server for development."""

from __future__ import annotations

import itertools
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from bench.contender import Contender, Place, Running, Streams, process
from bench.machine import free_port
from bench.programs import Writing
from bench.rivals.install import APPS, NODE_PACKAGES, install_node, lacks, node_modules

_CONNECTIONS: Final = 8
_TYPE: Final = "text/plain"


class DurableStreams(Contender):
    name = "durable_streams"
    summary = "@durable-streams/server in memory, plain text streams, read with live=sse"
    includes = "handling each POST of the publisher; nothing outlives the process"
    workloads = frozenset({"W1", "W1C", "W2", "W3", "W3F", "W4", "W6"})
    _numbers = itertools.count()

    def missing(self) -> str | None:
        return lacks("node", "npm")

    def install(self) -> None:
        install_node()

    def version(self) -> str:
        return NODE_PACKAGES["@durable-streams/server"]

    @contextmanager
    def start(self, place: Place) -> Iterator[Running]:
        port = free_port()
        command = ["node", str(APPS / "durable_streams.mjs")]
        environment = os.environ | {"BENCH_MODULES": str(node_modules()), "BENCH_PORT": str(port)}
        url = f"http://127.0.0.1:{port}/none"
        with process(place, self.name, command, url=url, environment=environment) as server:
            yield Running(port=port, servers={self.name: server.pid})

    def prepare(self, running: Running, streams: int, *, shared: bool = False) -> Streams:
        names = tuple(f"/s{next(self._numbers)}" for _ in range(streams))
        for name in names:
            url = f"http://{running.address}{name}"
            made = urllib.request.Request(url, method="PUT", headers={"Content-Type": _TYPE})
            with urllib.request.urlopen(made, timeout=10):
                pass
        writing = Writing(
            sink="http",
            address=running.address,
            targets=tuple(f"{name}\t\t" for name in names),
            connections=min(_CONNECTIONS, streams),
            options=("--header", f"Content-Type: {_TYPE}"),
        )
        return Streams(paths=tuple(f"{name}?offset=-1&live=sse" for name in names), writing=writing, names=names)
