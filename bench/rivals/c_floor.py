"""The floor: what the kernel takes for one write() an event, in C, with nothing stored. A bound, not a rival."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from bench.contender import Contender, Place, Running, Streams, process
from bench.machine import free_port


class CFloor(Contender):
    name = "c_floor"
    summary = "one thread, epoll, one write() an event, no store"
    includes = "making the tokens"
    workloads = frozenset({"W1", "W1C", "W2", "W3", "W3S", "W3F", "W4", "W6"})

    def version(self) -> str:
        return "bench/native/floor.c"

    @contextmanager
    def start(self, place: Place) -> Iterator[Running]:
        port = free_port()
        command = [str(place.programs / "floor"), str(port), str(place.rate)]
        with process(
            place, self.name, command, url=f"http://127.0.0.1:{port}/replay/1", environment=os.environ
        ) as server:
            yield Running(port=port, servers={self.name: server.pid})

    def prepare(self, running: Running, streams: int, *, shared: bool = False) -> Streams:
        return Streams(paths=("/shared",) if shared else ("/own",) * streams, writing=None)
