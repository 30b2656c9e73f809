"""What the workloads ask of a contender: Legato and every rival look the same to them.

A contender starts one server process (with its helpers) on the server's core and knows how tokens get into it. What its
CPU figure includes is part of it, for the README and the tables: a comparison without that is none.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.machine import SERVER_CORE, children, free_port, on_core
from bench.programs import Writing
from broker.embedded import EmbeddedServer

START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.02

#: Streams that share a writer's connection, as the generations of one worker process do.
STREAMS_A_CONNECTION: Final = 100


class InstallFailed(Exception):
    """A rival could not be installed; the message holds the end of what its installer said."""


class NotStarted(Exception):
    """A server did not come up; the message holds the end of its output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """Streams that are ready to be written and read."""

    paths: tuple[str, ...]  # GET of each
    writing: Writing | None  # None: the server makes the tokens itself, from the viewer's request on
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a contender runs. `rate` is what servers that make the tokens themselves make a second."""

    programs: Path
    directory: Path
    rate: float
    redis_port: int | None = None  # of a Redis on this machine that is to be used


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRunning:
    """The Redis that a contender uses."""

    port: int
    pid: int | None  # None: not known, and its cost is not measured

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"redis://{self.address}/0"

    def info(self, section: str) -> dict[str, str]:
        """`INFO section`."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=START_SECONDS) as connection:
            connection.sendall(f"INFO {section}\r\n".encode())
            reader = connection.makefile("rb")
            size = int(reader.readline()[1:])
            lines = reader.read(size).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A started contender."""

    port: int
    servers: Mapping[str, int]  # name -> pid, on the server's core
    store: StoreRunning | None = None
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def named_pids(self) -> dict[str, int]:
        """The servers and Redis."""
        redis = {} if self.store is None or self.store.pid is None else {"store": self.store.pid}
        return dict(self.servers) | redis

    def every_pid(self) -> list[int]:
        return list(self.named_pids().values())

    def pids(self) -> str:
        """As sseload takes them."""
        every = self.named_pids()
        return ",".join(f"{name}={pid}" for name, pid in every.items())


class Contender:
    """One of those that are compared. What it does not override it has no use for."""

    name: str = ""
    #: How it is set up: its documented best for this.
    summary: str = ""
    #: What its CPU figure includes that others' does not, or the other way round.
    includes: str = ""
    workloads: frozenset[str] = frozenset()
    #: Headers that every viewer sends.
    headers: tuple[str, ...] = ()

    def missing(self) -> str | None:
        """How to get what it needs, where that is not here and cannot be installed; None when it can run."""
        return None

    def install(self) -> None:
        """Fetch it into the cache, unless it is there. Raises `InstallFailed`."""

    def version(self) -> str:
        """What was measured, once it is installed."""
        return ""

    def start(self, place: Place) -> AbstractContextManager[Running]:
        """Run it as long as the block."""
        raise NotImplementedError

    def prepare(self, running: Running, streams: int, *, shared: bool = False) -> Streams:
        """New, empty streams. `shared`: one stream for many viewers, where that makes a difference."""
        raise NotImplementedError

    def finish(self, running: Running, streams: Streams, tokens: int) -> None:
        """End streams that hold `tokens` each, where it knows an end."""

    def seal(self, running: Running, streams: Streams) -> None:
        """Have ended streams stored as they are when nobody is at work on them any more. Most know no other form."""

    def cancel(self, running: Running, stream: str) -> bool:
        """Cancel a stream by its name; False where there is no such thing."""
        return False

    def whole(self, place: Place, provider: str) -> AbstractContextManager[Running]:
        """Everything from a job to its answer, with the model provider at the address `provider`."""
        raise NotImplementedError


@contextmanager
def store(place: Place) -> Iterator[StoreRunning]:
    """The Redis of one contender: the one that was given, on loopback, else an embedded server of its own, on the
    load's core, with its usual append-only file. All contenders use it through a loopback port."""
    if place.redis_port is not None:
        given = StoreRunning(port=place.redis_port, pid=None)
        yield StoreRunning(port=given.port, pid=int(given.info("server")["process_id"]))
        return
    with EmbeddedServer.start(place.directory / "store", port=free_port()) as server:
        yield StoreRunning(port=server.port, pid=server.pid)


@contextmanager
def process(
    place: Place,
    name: str,
    command: Sequence[str],
    *,
    url: str,
    environment: Mapping[str, str],
    core: int = SERVER_CORE,
    directory: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A server that answers `url` (with anything but 503), until the block ends."""
    log = place.directory / f"{name}.log"
    with log.open("wb") as out:
        started = subprocess.Popen(
            on_core(core, command),
            env=dict(environment),
            stdout=out,
            stderr=out,
            cwd=directory or place.directory,
        )
    try:
        _wait_for(started, url, log)
        yield started
    finally:
        started.send_signal(signal.SIGTERM)
        try:
            started.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


def with_children(name: str, pid: int) -> dict[str, int]:
    """A server and the processes it has started, by name."""
    return {name: pid} | {f"{name}.{number}": child for number, child in enumerate(children(pid), 1)}


@contextmanager
def place_of(programs: Path, *, rate: float, redis_port: int | None = None) -> Iterator[Place]:
    """A directory of its own for one run."""
    with tempfile.TemporaryDirectory(prefix="legato-bench-") as directory:
        yield Place(programs=programs, directory=Path(directory), rate=rate, redis_port=redis_port)


def connections(streams: int) -> int:
    """How many connections the writers of so many streams have."""
    return max(1, -(-streams // STREAMS_A_CONNECTION))


def _wait_for(started: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if started.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except urllib.error.HTTPError as answer:
            if answer.code != 503:
                return
            time.sleep(_POLL_SECONDS)
        except OSError:
            time.sleep(_POLL_SECONDS)
    raise NotStarted(f"{url} does not answer: {log.read_text(errors='replace')[-1500:]}")
