"""A viewer: one attached connection reading one generation.

It holds one thing that matters, its cursor: the position of the last entry it was given. Everything it is sent comes
from the tail's window or from the log, both asked by that position, so it can neither miss nor repeat an entry, however
slow it is, however often the window is lost. Its memory is one chunk: it asks for the next when the last is sent.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final, Protocol

import orjson

from api.frames import Framing, as_chunk, merged, open_data
from api.problem import problem_of
from api.services import Services
from broker.errors import (
    DataLost,
    GenerationDeleted,
    GenerationUnknown,
    LegatoError,
    StoreUnavailable,
)
from broker.events import CancelReason, Entry
from broker.log import FIRST_PAGE, NEXT_PAGE, PAGE_BYTES, Page
from broker.position import BEGINNING
from broker.tail import Topic
from broker.window import Notice

#: Entries sent one frame each; what is behind further is merged.
_FRAMED_SINGLY: Final = 16

#: How long a generation that the store does not know any more may still be put back.
LOSS_SECONDS: Final = 30.0

#: How long the log is left alone after it could not be read.
_STORE_PAUSE_SECONDS: Final = (0.2, 0.8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where a viewer starts, decided on the primary: the verdict on its cursor, and the page read with it."""

    generation: str
    cursor: str
    verdict: str  # start, resumed or rewound
    page: Page
    snapshot: bool  # begin with the folded state

    @property
    def seen_the_end(self) -> bool:
        """The cursor is the terminal event: there is nothing more to come."""
        return (
            self.page.held
            and self.page.state.is_terminal
            and self.cursor == self.page.last
            and self.cursor != BEGINNING
        )


async def start(services: Services, tenant: str, generation: str, cursor: str | None, *, snapshot: bool) -> Start:
    """Read the first page and judge the cursor. Raises `GenerationUnknown` (another tenant's too),
    `GenerationExpired`, `StoreUnavailable`."""
    asked = cursor or BEGINNING
    try:
        page = await services.log.read(generation, asked, FIRST_PAGE, tenant=tenant)
    except GenerationUnknown:
        # A cursor shows that there was one. Where the store has just lost data its holder may be about to put it back.
        if asked != BEGINNING and await services.seconds_since_loss(generation) < LOSS_SECONDS:
            raise DataLost(f"the store has lost data, {generation} perhaps too") from None
        raise
    if not page.state.is_terminal and not page.lease_live:
        services.background(services.adopt_orphan(generation), name=f"adopt {generation}")
    verdict = "start" if asked == BEGINNING else "resumed" if page.held else "rewound"
    return Start(
        generation=generation,
        cursor=asked,
        verdict=verdict,
        page=page,
        snapshot=verdict == "rewound" or (snapshot and cursor is None),
    )


class Connection(Protocol):
    """What a stream needs to do with its connection that ASGI has no words for."""

    @property
    def takes_more(self) -> bool:
        """Whether what is written now leaves soon."""
        ...

    @property
    def takes_chunks(self) -> bool:
        """Whether the body that has begun is sent in chunks."""
        ...

    def write(self, data: bytes) -> None:
        """Write a part of the body that has begun, at once; framed by the caller as `takes_chunks` says."""
        ...

    async def reset(self, *, flush: bool) -> None:
        """Reset it, after what was written has gone out if `flush`."""
        ...

    def end_of_body_is_close(self) -> None:
        """The body has no length and no chunks: to be said before the response starts, to a reader of HTTP/1.0."""
        ...


class Viewer:
    """Chunks of whole frames for one reader. `finished` says, after the last one, whether the end was among them;
    if not, the body must be ended incompletely.

    A viewer that has been sent everything goes *direct* where there is a `connection`: what comes is written to it in
    the call that brings the news, without waking this viewer's task (`broker.tail.Sink`). Whatever is out of the
    ordinary (a gap, a reader that does not take what it is sent, much at once, the end, leaving) sends it back to
    pulling, which decides.
    """

    def __init__(
        self, services: Services, begin: Start, framing: Framing, *, connection: Connection | None = None
    ) -> None:
        self.finished = False
        self.cursor = begin.cursor
        self._services = services
        self._begin = begin
        self._framing = framing
        self._generation = begin.generation
        settings = services.settings
        loop = asyncio.get_running_loop()
        self._clock = loop.time
        # Viewers that came together need not be pinged together.
        self._ping_seconds = settings.ping_seconds * random.uniform(0.75, 1.0)
        self._closes_at = loop.time() + settings.stream_max_age_seconds * random.uniform(0.8, 1.0)
        self._leaving = False
        self._page_size = FIRST_PAGE
        self._connection = connection
        self._encoder, self._ping = framing.entry, framing.ping
        self._back: asyncio.Future[None] | None = None  # while direct: resolved when this is to pull again
        self._spoke = False  # something was written since the last beat
        self._quiet_since = 0.0

    async def chunks(self) -> AsyncIterator[bytes]:
        """What to send, chunk by chunk, each of whole frames; ends after the terminal event, or where the connection
        should be closed and come back: an `error` event says why, where it is a fault."""
        try:
            async for chunk in self._phases():
                yield chunk
        except LegatoError as error:
            yield error_frame(self._framing, error)

    async def _phases(self) -> AsyncIterator[bytes]:
        begin = self._begin
        if begin.snapshot:
            yield await self._refold(begin.verdict)
        else:
            chunk = self._open(begin.verdict, begin.page)
            if begin.page.entries:
                chunk += self._merged(begin.page.entries)
            yield chunk
        if self._has_finished():
            return
        if begin.page.state.is_terminal:
            async for chunk in self._replay():
                yield chunk
        if self._has_finished():
            return
        async with AsyncExitStack() as attached:
            if begin.page.counts_viewers:
                await attached.enter_async_context(self._services.presence.attending(self._generation))
            topic = await attached.enter_async_context(self._services.tail.follow(self._generation))
            async for chunk in self._live(topic):
                yield chunk

    def _has_finished(self) -> bool:
        """Asked anew each time: sending changes it."""
        return self.finished

    async def _replay(self) -> AsyncIterator[bytes]:
        """The rest of a log that has ended. One that has lost its end meanwhile runs dry: its holder puts it back."""
        while not self.finished:
            page = await self._read()
            if page.held and not page.entries:
                return
            yield self._merged(page.entries) if page.held else await self._refold("rewound")

    async def _live(self, topic: Topic) -> AsyncIterator[bytes]:
        """Follow a log that still grows. An outage of the store is waited out, and so is a loss of its data, which the
        holder of the lease mends; only one that lasts ends this."""
        sent_at = self._clock()
        lost_at: float | None = None
        while not self.finished:
            version = topic.version
            pause = self._ping_seconds
            chunk = b""
            try:
                if (notices := topic.window.after(self.cursor)) is not None:
                    chunk = self._from_window(notices)
                else:
                    page = await self._read()
                    if not page.held:
                        chunk = await self._refold("rewound")
                    elif page.entries:
                        chunk = self._merged(page.entries)
                    if page.held and self.cursor == page.last:
                        topic.window.start(page.last)
                lost_at = None
            except GenerationDeleted:
                chunk = self._deleted()
            except (GenerationUnknown, DataLost):
                lost_at = lost_at or self._clock()
                if self._clock() - lost_at > LOSS_SECONDS:
                    raise
                pause = random.uniform(*_STORE_PAUSE_SECONDS)
            except StoreUnavailable:
                pause = random.uniform(*_STORE_PAUSE_SECONDS)
            now = self._clock()
            if chunk:
                yield chunk
                sent_at = now
            if self._services.draining and not self._leaving:
                self._leaving = True
                self._closes_at = min(self._closes_at, self._services.leave_at(now))
            if now >= self._closes_at:
                return
            if chunk:
                continue
            if now - sent_at >= self._ping_seconds:
                yield self._framing.ping
                sent_at = now
            if self._may_go_direct(topic, version):
                sent_at = await self._go_direct(topic, sent_at)
                continue
            await topic.changed(version, min(pause, sent_at + self._ping_seconds - now, self._closes_at - now))

    def _may_go_direct(self, topic: Topic, version: int) -> bool:
        connection = self._connection
        return (
            connection is not None
            and topic.version == version
            and topic.window.last == self.cursor
            and not self._services.draining
            and connection.takes_more
        )

    async def _go_direct(self, topic: Topic, sent_at: float) -> float:
        """Be written to as news comes, until something needs a closer look; returns when it was last written to."""
        connection = self._connection
        assert connection is not None  # noqa: S101 - asked before
        chunks, framing = connection.takes_chunks, self._framing
        self._encoder = framing.chunk if chunks else framing.entry
        self._ping = as_chunk(framing.ping) if chunks else framing.ping
        self._back = asyncio.get_running_loop().create_future()
        self._spoke, self._quiet_since = False, sent_at
        topic.attach(self)
        self._services.heartbeat.add(self)
        try:
            await self._back
        finally:
            topic.detach(self)
            self._services.heartbeat.discard(self)
        return self._clock() if self._spoke else self._quiet_since

    def offer(self, prev: str, notices: list[Notice]) -> bool:
        """See `broker.tail.Sink`."""
        connection = self._connection
        if prev != self.cursor or connection is None or not connection.takes_more or len(notices) > _FRAMED_SINGLY:
            return False
        if len(notices) == 1:
            connection.write(notices[0].encoded(self._encoder))
        else:
            connection.write(b"".join([notice.encoded(self._encoder) for notice in notices]))
        self._spoke = True
        entry = notices[-1].entry
        self.cursor = entry.position
        if entry.is_terminal:
            self.finished = True
            return False
        return True

    def disturbed(self) -> None:
        """See `broker.tail.Sink`."""
        if self._back is not None and not self._back.done():
            self._back.set_result(None)

    def beat(self, now: float) -> None:
        """Every `beat_seconds` while direct: a keepalive after a silence, and an end at its time. The silence may have
        begun a beat before it was noticed, and the next look is a beat away."""
        connection = self._connection
        if self._spoke:
            self._spoke, self._quiet_since = False, now
        if now >= self._closes_at or connection is None or not connection.takes_more:
            self.disturbed()
        elif now - self._quiet_since >= self._ping_seconds - 2 * self._services.beat_seconds:
            connection.write(self._ping)
            self._quiet_since = now

    async def _read(self) -> Page:
        page = await self._services.log.read(self._generation, self.cursor, self._page_size)
        self._page_size = NEXT_PAGE
        return page

    async def _refold(self, verdict: str) -> bytes:
        """`open` and the folded state: the client replaces what it has; the cursor is the last entry folded."""
        fold, page = await self._services.log.folded(self._generation)
        opened = self._open(verdict, page)
        self.cursor = fold.position
        return opened + self._framing.frame(b"snapshot", fold.data(status_of(page)), fold.position)

    def _from_window(self, notices: list[Notice]) -> bytes:
        if not notices:
            return b""
        size = 0
        for at, notice in enumerate(notices):
            size += len(notice.entry.payload)
            if at and size > PAGE_BYTES:
                notices = notices[:at]
                break
        last = notices[-1].entry
        if len(notices) > _FRAMED_SINGLY:
            return self._merged([notice.entry for notice in notices])
        self._moved_to(last)
        return b"".join([notice.encoded(self._framing.entry) for notice in notices])

    def _merged(self, entries: list[Entry]) -> bytes:
        if entries:
            self._moved_to(entries[-1])
        return b"".join([self._framing.frame(event, data, place) for place, event, data in merged(entries)])

    def _moved_to(self, entry: Entry) -> None:
        self.cursor = entry.position
        self.finished = entry.is_terminal

    def _open(self, verdict: str, page: Page) -> bytes:
        data = open_data(
            generation=self._generation,
            verdict=verdict,
            cursor=self.cursor,
            head=page.last,
            status=status_of(page),
            attempt=page.attempt,
        )
        return self._framing.frame(b"open", data, retry_ms=self._services.retry_ms(fault=False))

    def _deleted(self) -> bytes:
        """The end of a generation that was erased while it was read: shown, never logged, so without a position."""
        self.finished = True
        return self._framing.frame(b"cancelled", orjson.dumps({"reason": CancelReason.DELETED.value}))


def fault(services: Services, framing: Framing, generation: str, cursor: str | None, error: LegatoError) -> bytes:
    """What a reader that would never come back after a 5xx is told instead: `open` with `retry:`, then `error`."""
    data = open_data(
        generation=generation or None, verdict=None, cursor=cursor or BEGINNING, head=None, status=None, attempt=None
    )
    opened = framing.frame(b"open", data, retry_ms=services.retry_ms(fault=True))
    return opened + error_frame(framing, error)


def error_frame(framing: Framing, error: LegatoError) -> bytes:
    """An `error` event: the connection ends, the generation does not. It has no position."""
    problem = problem_of(error)
    return framing.frame(b"error", orjson.dumps({"code": problem.code, "message": problem.detail, "retryable": True}))


def status_of(page: Page) -> str:
    """The status a client sees: a running one with a stored cancel is `cancelling`."""
    return "cancelling" if page.cancel and not page.state.is_terminal else page.state.value
