"""Nchan, the pub/sub module of nginx: messages are POSTed, viewers read them as an EventSource.

One worker process, `first_message oldest`, buffers as long as the logs. In memory, and with Redis as its store.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from bench.contender import Contender, Place, Running, StoreRunning, Streams, process, store, with_children
from bench.machine import free_port
from bench.programs import Writing
from bench.rivals.install import NCHAN_MODULE, debian_versions, install_nchan, lacks_nchan

_WORKLOADS: Final = frozenset({"W1", "W1C", "W2", "W3", "W3F", "W4", "W4S", "W6", "W8"})
_CONNECTIONS: Final = 8
_BUFFER_MESSAGES: Final = 60_000

_CONFIGURATION: Final = """
load_module {module};
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log crit;
events {{ worker_connections 60000; }}
worker_rlimit_nofile 65000;
http {{
  access_log off;
  keepalive_requests 100000000;
  keepalive_timeout 3600;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  nchan_shared_memory_size 2048M;
  {upstream}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location ~ ^/pub/(\\w+)$ {{
      nchan_publisher http;
      nchan_channel_id $1;
      nchan_message_buffer_length {buffer};
      nchan_message_timeout 60m;
      {pass_}
    }}
    location ~ ^/sub/(\\w+)$ {{
      nchan_subscriber eventsource;
      nchan_channel_id $1;
      nchan_subscriber_first_message oldest;
      {pass_}
    }}
  }}
}}
"""


class Nchan(Contender):
    name = "nchan"
    summary = "nginx with Nchan in memory, one worker process, publishers on eight pipelined connections"
    includes = "handling each POST of the publisher; nothing outlives nginx"
    workloads = _WORKLOADS
    _numbers = itertools.count()

    def missing(self) -> str | None:
        return lacks_nchan()

    def install(self) -> None:
        install_nchan()

    def version(self) -> str:
        return debian_versions()

    @contextmanager
    def start(self, place: Place) -> Iterator[Running]:
        with self._nginx(place, None) as running:
            yield running

    def prepare(self, running: Running, streams: int, *, shared: bool = False) -> Streams:
        names = tuple(f"c{next(self._numbers)}" for _ in range(streams))
        writing = Writing(
            sink="http",
            address=running.address,
            targets=tuple(f"/pub/{name}\t\t" for name in names),
            connections=min(_CONNECTIONS, streams),
        )
        return Streams(paths=tuple(f"/sub/{name}" for name in names), writing=writing, names=names)

    @contextmanager
    def _nginx(self, place: Place, redis: StoreRunning | None) -> Iterator[Running]:
        port = free_port()
        upstream = "" if redis is None else f"upstream redis_server {{ nchan_redis_server redis://{redis.address}; }}"
        text = _CONFIGURATION.format(
            module=NCHAN_MODULE,
            directory=place.directory,
            upstream=upstream,
            port=port,
            buffer=_BUFFER_MESSAGES,
            pass_="" if redis is None else "nchan_redis_pass redis_server;",
        )
        configuration = place.directory / "nginx.conf"
        configuration.write_text(f"user root;\n{text}" if os.geteuid() == 0 else text)
        command = ["nginx", "-p", str(place.directory), "-c", str(configuration)]
        with process(
            place, self.name, command, url=f"http://127.0.0.1:{port}/pub/ready", environment=os.environ
        ) as server:
            yield Running(port=port, servers=with_children(self.name, server.pid), store=redis)


class NchanRedis(Nchan):
    name = "nchan_redis"
    summary = "nginx with Nchan over Redis, one worker process, publishers on eight pipelined connections"
    includes = "handling each POST of the publisher and passing it to Redis"

    @contextmanager
    def start(self, place: Place) -> Iterator[Running]:
        with store(place) as redis, self._nginx(place, redis) as running:
            yield running
