"""Centrifugo with its memory engine, viewers on its unidirectional server-sent events."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import quote

from bench.contender import Contender, Place, Running, Streams, process
from bench.machine import free_port
from bench.programs import Writing
from bench.rivals.install import GO_PROGRAMS, go_program, install_go, lacks

_KEY: Final = "bench"
_CONNECTIONS: Final = 8


class Centrifugo(Contender):
    name = "centrifugo"
    summary = "memory engine, history of 1,000 messages, uni_sse, GOMAXPROCS=1"
    includes = "handling each POST of the publisher; nothing outlives the process"
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
        configuration = place.directory / "centrifugo.json"
        configuration.write_text(
            json.dumps(
                {
                    "address": "127.0.0.1",
                    "port": str(port),
                    "api_key": _KEY,
                    "token_hmac_secret_key": _KEY,
                    "uni_sse": True,
                    "health": True,
                    "log_level": "error",
                    "allow_anonymous_connect_without_token": True,
                    "allow_subscribe_for_anonymous": True,
                    "allow_subscribe_for_client": True,
                    "history_size": 1000,
                    "history_ttl": "10m",
                    "client_channel_limit": 10,
                    "usage_stats_disable": True,
                }
            )
        )
        command = [str(go_program(self.name)), "--config", str(configuration)]
        url = f"http://127.0.0.1:{port}/health"
        with process(place, self.name, command, url=url, environment=os.environ | {"GOMAXPROCS": "1"}) as server:
            yield Running(port=port, servers={self.name: server.pid})

    def prepare(self, running: Running, streams: int, *, shared: bool = False) -> Streams:
        names = tuple(f"c{next(self._numbers)}" for _ in range(streams))
        writing = Writing(
            sink="http",
            address=running.address,
            targets=tuple(f'/api/publish\t{{"channel":"{name}","data":{{"d":"\t"}}}}' for name in names),
            connections=min(_CONNECTIONS, streams),
            options=("--header", f"X-API-Key: {_KEY}", "--header", "Content-Type: application/json"),
        )
        return Streams(paths=tuple(_path(name) for name in names), writing=writing, names=names)


def _path(name: str) -> str:
    return "/connection/uni_sse?cf_connect=" + quote(json.dumps({"subs": {name: {}}}))
