"""A viewer: one attached connection reading one generation.

It holds one thing that matters, its cursor: the position of the last entry it was given. Everything it is sent comes
from the tail's window or from the log, both asked by that position, so it can neither miss nor repeat an entry, however
slow it is, however often the window is lost. Its memory is one chunk: it asks for the next when the last is sent.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import orjson

from api.frames import Framing, merged, open_data
from api.problem import problem_of
from api.services import LOSS_SECONDS, Services
from broker.errors import (
    DataLost,
    GenerationDeleted,
    GenerationUnknown,
    LegatoError,
    StoreUnavailable,
)
from broker.events import TERMINAL_FIELDS, CancelReason
from broker.joined import Row, rows_of
from broker.log import FIRST_PAGE, NEXT_PAGE, PAGE_BYTES, Page
from broker.position import BEGINNING
from broker.tail import Topic
from broker.window import Notice

#: Entries sent one frame each; what is behind further is merged.
_FRAMED_SINGLY: Final = 16

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


async def start(
    services: Services, tenant: str, generation: str, cursor: str | None, *, snapshot: bool, queued: bool = False
) -> Start:
    """Read the first page and judge the cursor. `queued`: the caller has just seen to it that the queue knows of it.
    Raises `GenerationUnknown` (another tenant's too), `GenerationExpired`, `StoreUnavailable`."""
    asked = cursor or BEGINNING
    try:
        page = await services.log.read(generation, asked, FIRST_PAGE, tenant=tenant)
    except GenerationUnknown as unknown:
        raise await services.unless_lost(generation, unknown, seen=asked != BEGINNING) from None
    if not (queued or page.state.is_terminal or page.lease_live):
        services.background(services.adopt_orphan(generation), name=f"adopt {generation}")
    verdict = "start" if asked == BEGINNING else "resumed" if page.held else "rewound"
    return Start(
        generation=generation,
        cursor=asked,
        verdict=verdict,
        page=page,
        snapshot=verdict == "rewound" or (snapshot and cursor is None),
    )


class Viewer:
    """Chunks of whole frames for one reader. `finished` says, after the last one, whether the end was among them;
    if not, the body must be ended incompletely.

    One that `may_park` ends its chunks also where it has sent everything, with `parks`: until something comes, nothing
    needs a task (`api.parked`). It keeps its place in the topic then, and `chunks` may be asked for again.
    """

    __slots__ = (
        *("closes_at", "cursor", "fault", "finished", "framing", "parks", "ping_seconds", "sent_at", "topic"),
        *("_begin", "_clock", "_counted", "_generation", "_leaving", "_may_park", "_seated", "_services", "_small"),
    )

    def __init__(self, services: Services, begin: Start, framing: Framing, *, may_park: bool = False) -> None:
        self.framing = framing
        self.fault: LegatoError | None = None  # why it ends without having finished, where that is one
        self.finished = False
        self.parks = False
        self.cursor = begin.cursor
        settings = services.settings
        self._clock = asyncio.get_running_loop().time
        # Viewers that came together need not be pinged together.
        self.ping_seconds = settings.ping_seconds * random.uniform(0.75, 1.0)
        self.sent_at = self._clock()
        self.closes_at = self.sent_at + settings.stream_max_age_seconds * random.uniform(0.8, 1.0)
        self.topic: Topic  # from the end of what there was on
        self._services = services
        self._begin: Start | None = begin
        self._generation = begin.generation
        self._counted = begin.page.counts_viewers
        self._may_park = may_park
        self._seated = False
        self._leaving = False
        self._small = begin.page.is_small

    async def chunks(self) -> AsyncIterator[bytes]:
        """What to send, chunk by chunk, each of whole frames; ends after the terminal event, or where the connection
        should be closed and come back: an `error` event says why, where it is a fault."""
        try:
            async for chunk in self._phases():
                yield chunk
        except LegatoError as error:
            self.fault = error
            yield error_frame(self.framing, error)
        finally:
            if not self.parks:
                self.leave()

    def stay(self) -> AsyncIterator[bytes]:
        """More chunks, of a viewer that was to be parked and cannot be: it waits for news itself."""
        self.parks = self._may_park = False
        return self.chunks()

    def leave(self) -> None:
        """Give up the place in the topic. Harmless where there is none."""
        if self._seated:
            self._seated = False
            self._services.tail.leave(self.topic)
            if self._counted:
                self._services.background(self._services.presence.depart(self._generation), name="viewer leaves")

    async def _phases(self) -> AsyncIterator[bytes]:
        begin, self._begin = self._begin, None
        if begin is not None:
            if begin.snapshot:
                yield await self._refold(begin.verdict)
            else:
                yield self._open(begin.verdict, begin.page) + self._paged(begin.page)
            if self._has_finished():
                return
            if begin.page.state.is_terminal:
                async for chunk in self._replay():
                    yield chunk
                if self._has_finished() or self._is_to_leave(self._clock()):
                    return
            del begin  # a page of the log
            await self._take_seat()
        async for chunk in self._live(self.topic):
            yield chunk

    async def _take_seat(self) -> None:
        self.topic = self._services.tail.join(self._generation)
        self._seated = True
        if self._counted:
            await self._services.presence.arrive(self._generation)
        await self._services.tail.joined(self.topic)

    def _has_finished(self) -> bool:
        """Asked anew each time: sending changes it."""
        return self.finished

    async def _replay(self) -> AsyncIterator[bytes]:
        """The rest of a log that has ended. One that has lost its end meanwhile runs dry: its holder puts it back."""
        while not (self.finished or self._is_to_leave(self._clock())):
            page = await self._read()
            if page.held and not page.rows:
                return
            chunk = self._paged(page) if page.held else await self._refold("rewound")
            del page  # it is large, and the reader may be slow
            yield chunk

    async def _live(self, topic: Topic) -> AsyncIterator[bytes]:
        """Follow a log that still grows. An outage of the store is waited out, and so is a loss of its data, which the
        holder of the lease mends; only one that lasts ends this."""
        lost_at: float | None = None
        while not self.finished:
            version, cursor = topic.version, self.cursor
            pause = self.ping_seconds
            chunk = b""
            try:
                if (notices := topic.window.after(self.cursor)) is not None:
                    chunk = self._from_window(notices)
                else:
                    page = await self._read()
                    if not page.held:
                        chunk = await self._refold("rewound")
                    elif page.rows:
                        chunk = self._paged(page)
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
                self.sent_at = now
            if self._is_to_leave(now):
                return
            if chunk or self.cursor != cursor or self._has_finished():
                continue  # an encoder may have nothing to say of what it was given
            if now - self.sent_at >= self.ping_seconds:
                yield self.framing.ping
                self.sent_at = now
            if self._may_park and not self._leaving and topic.version == version and topic.window.last == self.cursor:
                self.parks = True
                return
            await topic.changed(version, min(pause, self.sent_at + self.ping_seconds - now, self.closes_at - now))

    def _is_to_leave(self, now: float) -> bool:
        """Whether it is as old as it may get, or its turn has come now that this process is stopping."""
        if self._services.draining and not self._leaving:
            self._leaving = True
            self.closes_at = min(self.closes_at, self._services.leave_at(now))
        return now >= self.closes_at

    async def _read(self) -> Page:
        read = self._services.log.read
        page = await read(self._generation, self.cursor, NEXT_PAGE, small=self._small)
        self._small = page.is_small
        return page

    async def _refold(self, verdict: str) -> bytes:
        """`open` and the folded state: the client replaces what it has; the cursor is the last entry folded."""
        fold, page = await self._services.log.folded(self._generation)
        opened = self._open(verdict, page)
        self.cursor = fold.position
        return opened + self.framing.frame(b"snapshot", fold.data(status_of(page)), fold.position)

    def _from_window(self, notices: list[Notice]) -> bytes:
        if not notices:
            return b""
        notices = one_page(notices)
        last = notices[-1].entry
        if len(notices) > _FRAMED_SINGLY:
            return self._merged(rows_of([notice.entry for notice in notices]))
        self._moved_to(last.position, last.field)
        return b"".join([notice.encoded(self.framing.entry) for notice in notices])

    def _paged(self, page: Page) -> bytes:
        return self._merged(page.rows)

    def _merged(self, rows: list[Row]) -> bytes:
        if rows:
            place, stored = rows[-1]
            self._moved_to(place.decode(), stored[0])
        return b"".join([self.framing.frame(event, data, place) for place, event, data in merged(rows)])

    def _moved_to(self, position: str, field: bytes) -> None:
        self.cursor = position
        self.finished = field in TERMINAL_FIELDS

    def _open(self, verdict: str, page: Page) -> bytes:
        data = open_data(
            generation=self._generation,
            verdict=verdict,
            cursor=self.cursor,
            head=page.last,
            status=status_of(page),
            attempt=page.attempt,
        )
        return self.framing.frame(b"open", data, retry_ms=self._services.retry_ms(fault=False))

    def _deleted(self) -> bytes:
        """The end of a generation that was erased while it was read: shown, never logged, so without a position."""
        self.finished = True
        return self.framing.frame(b"cancelled", orjson.dumps({"reason": CancelReason.DELETED.value}))


def one_page(notices: list[Notice]) -> list[Notice]:
    """The first of them, as many as a page of the log may hold; one at least."""
    size = 0
    for at, notice in enumerate(notices):
        size += len(notice.entry.payload)
        if at and size > PAGE_BYTES:
            return notices[:at]
    return notices


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
