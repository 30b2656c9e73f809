"""Readers of several kinds, with bad manners: they drop at random bytes, sleep, roam between APIs, read slowly.

What they all share is `Follower`: the least that a client must do. Whatever stands in their way they come back with the
position of the last frame they took; only 204, 404, 410 and the terminal event stop them.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from enum import Enum
from typing import Final

import httpx

from chaos.doors import Door, pick
from chaos.follower import Follower, NdjsonParser, Sightings, SseParser, Violation

#: A stream that is silent for this long is dead: the servers under test ping every `PING_SECONDS`.
PING_SECONDS: Final = 1.0
_DEAD_SECONDS: Final = 6.0
_CONNECT_SECONDS: Final = 3.0

#: The longest that a reader waits before it comes back, whatever `retry:` says: chaos is impatient.
_PAUSE_SECONDS: Final = (0.02, 0.6)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Manners:
    """How a reader behaves. Drawn from the seed."""

    transport: Transport
    drops: float  # probability that a connection is dropped on purpose
    drop_bytes: int  # … at most behind this many bytes
    sleeps: float  # probability of a long pause before coming back
    slow: bool  # reads little at a time, with pauses
    proxied: float  # probability of going through a proxy


def manners(draw: random.Random) -> Manners:
    """Somebody."""
    return Manners(
        transport=draw.choice(list(Transport)),
        drops=draw.choice((0.0, 0.5, 0.9)),
        drop_bytes=draw.choice((300, 3000, 20000)),
        sleeps=draw.choice((0.0, 0.1, 0.3)),
        slow=draw.random() < 0.15,
        proxied=draw.choice((0.0, 0.5, 1.0)),
    )


class Refused(Exception):
    """404 or 410: the client is told that there is nothing, and stops."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"{status} {detail}")
        self.status = status


class _Again(Exception):
    pass


@dataclass(slots=True)
class Seen:
    """What clients met, all of them."""

    connections: int = 0
    verdicts: Counter[str] = None  # type: ignore[assignment]  # set below
    statuses: Counter[str] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.verdicts, self.statuses = Counter(), Counter()


class Reader:
    """One client following one generation to its end."""

    def __init__(
        self,
        generation: str,
        *,
        doors: list[Door],
        draw: random.Random,
        sightings: Sightings,
        violations: list[Violation],
        seen: Seen,
        calm: asyncio.Event,
    ) -> None:
        self.follower = Follower(generation, sightings, violations)
        self.manners = manners(draw)
        self.refused: Refused | None = None
        self.refused_at = 0.0
        self.refused_with: str | None = None  # the cursor it came with
        self.connections = 0
        self.attached: list[tuple[float, float]] = []  # from … to, Unix seconds, of every connection
        self._generation = generation
        self._doors = doors
        self._draw = draw
        self._violations = violations
        self._seen = seen
        self._calm = calm  # set when the faults are over: no more bad manners

    async def run(self) -> None:
        """Follow until the end, or until told that there is none."""
        while self.follower.end is None and self.refused is None:
            known = len(self.follower.verdicts)
            cursor = self.follower.cursor
            since = time.time()
            try:
                await self._connection()
            except Refused as refused:
                self.refused, self.refused_at, self.refused_with = refused, time.time(), cursor
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
        port = pick(self._doors, self._draw, proxied=self.manners.proxied)
        drops = not self._calm.is_set() and self._draw.random() < self.manners.drops
        left = self._draw.randrange(1, self.manners.drop_bytes) if drops else None
        if self.manners.transport in (Transport.RAW, Transport.RAW_OLD):
            received = self._raw(port)
        else:
            received = self._httpx(port)
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

    def _headers(self) -> dict[str, str]:
        ndjson = self.manners.transport is Transport.NDJSON
        headers = {"Accept": "application/x-ndjson" if ndjson else "text/event-stream"}
        if self.follower.cursor is not None:
            headers["Last-Event-ID"] = self.follower.cursor
        return headers

    async def _httpx(self, port: int) -> AsyncGenerator[bytes, None]:
        timeout = httpx.Timeout(_DEAD_SECONDS, connect=_CONNECT_SECONDS)
        async with (
            httpx.AsyncClient(timeout=timeout, trust_env=False) as client,
            client.stream("GET", f"http://127.0.0.1:{port}{self._path()}", headers=self._headers()) as answer,
        ):
            if answer.status_code != 200:
                self._status(answer.status_code, (await answer.aread()).decode(errors="replace"))
                return
            async for data in answer.aiter_raw():
                yield data

    async def _raw(self, port: int) -> AsyncGenerator[bytes, None]:
        version = "1.0" if self.manners.transport is Transport.RAW_OLD else "1.1"
        async with asyncio.timeout(_CONNECT_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            lines = [f"GET {self._path()} HTTP/{version}", "Host: chaos"]
            lines += [f"{name}: {value}" for name, value in self._headers().items()]
            writer.write("\r\n".join([*lines, "", ""]).encode())
            async with asyncio.timeout(_DEAD_SECONDS):
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            status = int(head.split(" ", 2)[1])
            if status != 200:
                async with asyncio.timeout(_DEAD_SECONDS):
                    body = b"" if status == 204 else await reader.read(500)
                self._status(status, body.decode(errors="replace"))
                return
            chunks = Dechunk() if "transfer-encoding: chunked" in head else None
            size = _SLOW_READ_BYTES if self.manners.slow else _READ_BYTES
            while True:
                async with asyncio.timeout(_DEAD_SECONDS):
                    data = await reader.read(size)
                if not data:
                    # A killed process leaves a plain FIN, and HTTP/1.0 has nothing to tell it from an end.
                    if chunks is not None or any(door.api.died_lately for door in self._doors):
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
