"""Mercure's hub with its local transport: the fastest it has, without history, so nobody can come back."""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from bench.contender import Contender, Place, Running, Streams, process
from bench.machine import free_port
from bench.programs import Writing
from bench.rivals.install import GO_PROGRAMS, go_program, install_go, lacks

_KEY: Final = "a key that only ever signs tokens of a benchmark on this machine"
_CONNECTIONS: Final = 8
_HUB: Final = "/.well-known/mercure"


class Mercure(Contender):
    name = "mercure"
    summary = "the hub on Go's HTTP server, local transport, GOMAXPROCS=1"
    includes = "handling each POST of the publisher; no history"
    workloads = frozenset({"W1", "W1C", "W2", "W4", "W6"})
    _numbers = itertools.count()

    def missing(self) -> str | None:
        return None if go_program(self.name).exists() else lacks("go")

    def install(self) -> None:
        install_go(self.name)

    def version(self) -> str:
        return GO_PROGRAMS[self.name][1]

    @contextmanager
    def start(self, place: Place) -> Iterator[Running]:
        port = free_port()
        environment = os.environ | {
            "GOMAXPROCS": "1",
            "BENCH_ADDRESS": f"127.0.0.1:{port}",
            "BENCH_KEY": _KEY,
        }
        url = f"http://127.0.0.1:{port}/none"
        with process(place, self.name, [str(go_program(self.name))], url=url, environment=environment) as server:
            yield Running(port=port, servers={self.name: server.pid})

    def prepare(self, running: Running, streams: int, *, shared: bool = False) -> Streams:
        names = tuple(f"topic{next(self._numbers)}" for _ in range(streams))
        writing = Writing(
            sink="http",
            address=running.address,
            targets=tuple(f"{_HUB}\ttopic={name}&data=\t" for name in names),
            connections=min(_CONNECTIONS, streams),
            options=(
                "--escape",
                *("--header", f"Authorization: Bearer {_token()}"),
                *("--header", "Content-Type: application/x-www-form-urlencoded"),
            ),
        )
        return Streams(paths=tuple(f"{_HUB}?topic={name}" for name in names), writing=writing, names=names)


def _token() -> str:
    """A JWT that may publish everything."""

    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    head = part(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
    body = part(json.dumps({"mercure": {"publish": ["*"]}}).encode())
    signed = hmac.new(_KEY.encode(), f"{head}.{body}".encode(), hashlib.sha256).digest()
    return f"{head}.{body}.{part(signed)}"
