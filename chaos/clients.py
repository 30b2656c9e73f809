"""Readers of several kinds, with bad manners: they drop at random bytes, sleep, roam between APIs, read slowly.

What they all share is `Follower`: the least that a client must do. Whatever stands in their way they come back with the
position of the last frame they took; only 204, 404, 410 and the terminal event stop them.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

import httpx

from chaos.doors import Door, Route, pick
from chaos.follower import TERMINAL, Follower, NdjsonParser, Sightings, SseParser, Violation

#: A stream that is silent for this long is dead: the servers under test ping every `PING_SECONDS`.
PING_SECONDS: Final = 1.0
_DEAD_SECONDS: Final = 6.0
_CONNECT_SECONDS: Final = 3.0

#: The longest that a reader waits before it comes back, whatever `retry:` says: chaos is impatient.
_PAUSE_SECONDS: Final = (0.02, 0.6)
_POLL_SECONDS: Final = 2.0
_SLEEP_SECONDS: Final = (1.0, 5.0)
_SLOW_READ_BYTES: Final = 200
_READ_BYTES: Final = 8192


class Transport(Enum):
    """How a reader speaks."""

    RAW = "raw"  # a bare socket, SSE; drops in the middle of anything
    RAW_OLD = "raw_1.0"  # HTTP/1.0: there a clean end cannot be told from a cut but by a reset
    HTTPX = "httpx"  # SSE
    NDJSON = "ndjson"
    DEVICE = "device"  # SSE, joins with ?from=snapshot
    POLL = "poll"  # long-poll
    POST = "post"  # SSE as the answer of the submit, which it repeats with its key


@dataclass(frozen=True, slots=True, kw_only=True)
class Manners:
    """How a reader behaves. Drawn from the seed."""

    transport: Transport
    drops: float  # probability that a connection is dropped on purpose
    drop_bytes: int  # … at most behind this many bytes
    sleeps: float  # probability of a long pause before coming back
    slow: bool  # reads little at a time, with pauses
    proxied: float  # probability of going through a proxy


_ACCEPT: Final = {Transport.NDJSON: "application/x-ndjson", Transport.POLL: "application/json"}

#: Of whom a clean end of a body can be told from a cut though anything may stand in between.
ANYWHERE: Final = tuple(transport for transport in Transport if transport is not Transport.RAW_OLD)


def manners(draw: random.Random, transports: Sequence[Transport]) -> Manners:
    """Somebody."""
    return Manners(
        transport=draw.choice(transports),
        drops=draw.choice((0.0, 0.5, 0.9)),
        drop_bytes=draw.choice((300, 3000, 20000)),
        sleeps=draw.choice((0.0, 0.1, 0.3)),
        slow=draw.random() < 0.15,
        proxied=draw.choice((0.0, 0.5, 1.0)),
    )


def client_of(route: Route, *, timeout: httpx.Timeout | float) -> httpx.AsyncClient:
    """A client for one request, over a connection of its own."""
    verify = route.tls if route.tls is not None else True
    return httpx.AsyncClient(base_url=route.url, timeout=timeout, trust_env=False, verify=verify)


def sni(route: Route) -> dict[str, Any]:
    """What a request over TLS is told beside: whom to expect, for the proxy has another name."""
    return {"sni_hostname": route.server_name} if route.server_name else {}


@contextmanager
def one_request() -> Iterator[None]:
    """A connection that is reset in the moment in which it was made is one that could not be made: anyio then asks a
    socket that uvloop has closed already."""
    try:
        yield
    except AttributeError as exc:
        if exc.name not in ("getpeername", "getsockname"):
            raise
        raise httpx.ConnectError("reset as it was made") from exc


class Refused(Exception):
    """The client is told that there is nothing, and stops."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"{status} {detail}")
        self.status = status


class _Again(Exception):
    pass


@dataclass(slots=True)
class Seen:
    """What clients met, all of them."""

    connections: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    transports: Counter[str] = field(default_factory=Counter)  # of clients


class Reader:
    """One client following one generation to its end."""

    def __init__(
        self,
        generation: str,
        *,
        repeat: tuple[dict[str, Any], str] | None,  # body and key of the submit
        doors: list[Door],
        draw: random.Random,
        sightings: Sightings,
        violations: list[Violation],
        seen: Seen,
        calm: asyncio.Event,
        transports: Sequence[Transport] = tuple(Transport),
        silence_seconds: float = _DEAD_SECONDS,
    ) -> None:
        self.follower = Follower(generation, sightings, violations)
        self.manners = manners(draw, transports)
        self.refused: Refused | None = None
        self.refused_with: str | None = None  # the cursor it came with
        self.connections = 0
        self.attached: list[tuple[float, float]] = []  # from … to, Unix seconds, of every connection
        self._generation = generation
        self._repeat = repeat if self.manners.transport is Transport.POST else None
        self._silence = silence_seconds
        self._doors = doors
        self._draw = draw
        self._violations = violations
        self._seen = seen
        self._calm = calm  # set when the faults are over: no more bad manners
        seen.transports[self.manners.transport.value] += 1

    async def run(self) -> None:
        """Follow until the end, or until told that there is none."""
        while self.follower.end is None and self.refused is None:
            known = len(self.follower.verdicts)
            cursor = self.follower.cursor
            since = time.time()
            try:
                await self._connection()
            except Refused as refused:
                self.refused, self.refused_with = refused, cursor
            except (_Again, OSError, EOFError, TimeoutError, httpx.HTTPError) as exc:
                self._seen.statuses[type(exc).__name__] += 1
            self.attached.append((since, time.time()))
            self._seen.verdicts.update(self.follower.verdicts[known:])
            if self.follower.end is None:
                calm = self._calm.is_set()
                sleeps = not calm and self._draw.random() < self.manners.sleeps
                await asyncio.sleep(self._draw.uniform(*(_SLEEP_SECONDS if sleeps else _PAUSE_SECONDS)))

    async def _connection(self) -> None:
        self.connections += 1
        self._seen.connections += 1
        route = pick(self._doors, self._draw, proxied=self.manners.proxied)
        drops = not self._calm.is_set() and self._draw.random() < self.manners.drops
        if self.manners.transport is Transport.POLL:
            await self._poll(route, drops=drops)
            return
        left = self._draw.randrange(1, self.manners.drop_bytes) if drops else None
        if self.manners.transport in (Transport.RAW, Transport.RAW_OLD):
            received = self._raw(route)
        else:
            received = self._httpx(route)
        parser = NdjsonParser() if self.manners.transport is Transport.NDJSON else SseParser()
        async for data in received:
            for event, text, position in parser.feed(data[:left]):
                self.follower.take(event, text, position)
            if left is not None:
                left -= len(data)
                if left <= 0:
                    await received.aclose()
                    raise _Again
            if self.manners.slow and not self._calm.is_set():
                await asyncio.sleep(0.05)
        if self.follower.end is None:
            # No exception: to a client that trusts clean ends, this was all.
            self._wrong("clean_end", "the body ended cleanly without a terminal event")

    def _path(self) -> str:
        path = f"/v1/generations/{self._generation}/events"
        return path + "?from=snapshot" if self.manners.transport is Transport.DEVICE else path

    def _headers(self, route: Route) -> dict[str, str]:
        accept = _ACCEPT.get(self.manners.transport, "text/event-stream")
        headers = {**route.headers, "Host": route.authority, "Accept": accept}
        if self.follower.cursor is not None:
            headers["Last-Event-ID"] = self.follower.cursor
        return headers

    async def _httpx(self, route: Route) -> AsyncGenerator[bytes, None]:
        timeout = httpx.Timeout(self._silence, connect=_CONNECT_SECONDS)
        headers = self._headers(route)
        method, path, body = "GET", self._path(), None
        if self._repeat is not None:
            method, path, body = "POST", "/v1/generations", self._repeat[0]
            headers["Idempotency-Key"] = self._repeat[1]
        with one_request():
            async with (
                client_of(route, timeout=timeout) as client,
                client.stream(method, path, headers=headers, json=body, extensions=sni(route)) as answer,
            ):
                if answer.status_code != 200:
                    self._status(answer.status_code, (await answer.aread()).decode(errors="replace"))
                    return
                if answer.headers.get("location", "").rpartition("/")[2] not in ("", self._generation):
                    self._repeat = None  # the key was forgotten, and stands for another one now: ours is read by its id
                    raise _Again
                async for data in answer.aiter_raw():
                    yield data

    async def _poll(self, route: Route, *, drops: bool) -> None:
        """One answer; an impatient reader does not wait for it."""
        wait = min(_POLL_SECONDS, self._silence / 2)
        timeout = httpx.Timeout(self._draw.uniform(0.01, wait) if drops else self._silence, connect=_CONNECT_SECONDS)
        with one_request():
            async with client_of(route, timeout=timeout) as client:
                path = f"{self._path()}?wait={wait:g}&limit={self._draw.choice((1, 20, 500))}"
                answer = await client.get(path, headers=self._headers(route), extensions=sni(route))
        if answer.status_code != 200:
            self._status(answer.status_code, answer.text)
            return
        said = answer.json()
        self.follower.verdicts.append(said["verdict"])
        events = [event["event"] for event in said["events"]]
        if said["verdict"] == "rewound" and events[:1] != ["snapshot"]:
            self._wrong("poll_without_snapshot", f"rewound, and the events are {events[:3]}, {said['status']}")
        for event in said["events"]:
            self.follower.take(event["event"], json.dumps(event["data"]), event["id"])
        if not events and said["status"] in TERMINAL and self.follower.end is None:
            self._wrong("clean_end", f"no events, and the status is {said['status']}")
            raise Refused(200, "the end without its event")

    async def _raw(self, route: Route) -> AsyncGenerator[bytes, None]:
        version = "1.0" if self.manners.transport is Transport.RAW_OLD else "1.1"
        async with asyncio.timeout(_CONNECT_SECONDS):
            reader, writer = await asyncio.open_connection(
                route.host, route.port, ssl=route.tls, server_hostname=route.server_name
            )
        try:
            lines = [f"GET {route.path}{self._path()} HTTP/{version}"]
            lines += [f"{name}: {value}" for name, value in self._headers(route).items()]
            writer.write("\r\n".join([*lines, "", ""]).encode())
            async with asyncio.timeout(self._silence):
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            status = int(head.split(" ", 2)[1])
            if status != 200:
                async with asyncio.timeout(self._silence):
                    body = b"" if status == 204 else await reader.read(500)
                self._status(status, body.decode(errors="replace"))
                return
            chunks = Dechunk() if "transfer-encoding: chunked" in head else None
            size = _SLOW_READ_BYTES if self.manners.slow else _READ_BYTES
            while True:
                async with asyncio.timeout(self._silence):
                    data = await reader.read(size)
                if not data:
                    # A killed process leaves a plain FIN, and HTTP/1.0 has nothing to tell it from an end.
                    if chunks is not None or any(door.died_lately for door in self._doors):
                        raise _Again
                    return
                yield chunks.feed(data) if chunks is not None else data
                if chunks is not None and chunks.done:
                    return
        finally:
            writer.transport.abort()

    def _status(self, status: int, body: str) -> None:
        """What an answer other than 200 means. Returns only for 204, after which there is nothing to read."""
        self._seen.statuses[str(status)] += 1
        match status:
            case 204:
                if self.follower.end is None:
                    self._wrong("204_before_the_end", "204 to a cursor that is not the end")
                    raise Refused(204, body)
            case 404 | 410:
                raise Refused(status, body[:200])
            case 429 | 503:
                raise _Again
            case _:
                self._wrong("status", f"{status} {body[:300]}")
                raise _Again

    def _wrong(self, check: str, detail: str) -> None:
        self._violations.append(Violation(check, self._generation, f"{self.manners.transport.value}: {detail}"))


class Dechunk:
    """Takes HTTP/1.1's chunks apart, from any cut of the bytes. `done` after the last chunk."""

    def __init__(self) -> None:
        self.done = False
        self._rest = b""
        self._left = 0  # bytes of the chunk being read
        self._inside = False

    def feed(self, data: bytes) -> bytes:
        """The body bytes in it."""
        self._rest += data
        out = []
        while not self.done:
            if self._left:
                piece, self._rest = self._rest[: self._left], self._rest[self._left :]
                self._left -= len(piece)
                out.append(piece)
                if self._left:
                    break
            if self._inside:  # the line end behind a chunk
                if len(self._rest) < 2:
                    break
                self._rest, self._inside = self._rest[2:], False
            line, found, rest = self._rest.partition(b"\r\n")
            if not found:
                break
            self._rest, self._left = rest, int(line.split(b";")[0], 16)
            self._inside = self._left > 0
            self.done = not self._inside
        return b"".join(out)
