"""No broker: FastAPI streams to the one viewer that asked. What a reconnect costs is everything; it is the floor of
what durability is compared with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from bench.contender import Contender, Place, Running, Streams, process
from bench.machine import free_port
from bench.rivals.install import PYTHON_PACKAGES, install_python, python
from bench.rivals.naive import uvicorn


class Direct(Contender):
    name = "direct"
    summary = "FastAPI StreamingResponse without a store: nobody can come back, and each viewer has tokens of its own"
    includes = "making the tokens (W1, W6), or reading them from the provider with openai's SDK (W7)"
    workloads = frozenset({"W1", "W1C", "W6", "W7"})

    def install(self) -> None:
        install_python()

    def version(self) -> str:
        return ", ".join(f"{name} {PYTHON_PACKAGES[name]}" for name in ("fastapi", "uvicorn", "openai"))

    @contextmanager
    def start(self, place: Place) -> Iterator[Running]:
        with self._server(place, {"BENCH_RATE": str(place.rate)}) as running:
            yield running

    @contextmanager
    def whole(self, place: Place, provider: str) -> Iterator[Running]:
        with self._server(place, {"BENCH_PROVIDER": f"http://{provider}/v1"}) as running:
            yield running

    def prepare(self, running: Running, streams: int, *, shared: bool = False) -> Streams:
        return Streams(paths=tuple(f"/s/{number}" for number in range(streams)), writing=None)

    @contextmanager
    def _server(self, place: Place, more: dict[str, str]) -> Iterator[Running]:
        port = free_port()
        command = uvicorn(python(), "direct:app", port)
        url = f"http://127.0.0.1:{port}/none"
        with process(place, self.name, command, url=url, environment=os.environ | more) as server:
            extra = {"path": "/answer", "provider": ""}
            yield Running(port=port, servers={self.name: server.pid}, extra=extra)
