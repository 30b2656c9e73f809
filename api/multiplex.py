"""Many generations over one connection: `GET /v1/events?generation=…&generation=…&thread=…`.

Browsers open six connections to a host, and a page may show twenty answers. Each generation has an ordinary viewer;
here their chunks are put together, in turn, and get their ids as they are sent: a composite cursor, which says where
the reader is in every one of them. What a viewer sends is not looked into: verdicts, snapshots and merging are its own
business.

A generation that ends, or is gone, leaves the others going. The body ends cleanly when all have ended, and incompletely
as soon as one viewer has to leave (age, drain, fault): the reader comes back for all of them with one cursor.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Final, Self
from urllib.parse import parse_qs

import orjson
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from api.auth import authenticate
from api.cursors import GONE, Composite, Qualified, tag_of
from api.frames import Framing
from api.problem import FieldError, Problem, problem_of
from api.qualified import MarkedFraming, composed
from api.services import PASSING, Services
from api.stream import (
    FaultResponse,
    StreamRoute,
    asks_to_poll,
    cursor_text,
    framing_of,
    names_sse,
    nothing_more,
    once,
    send_body,
    snapshot_asked,
)
from api.threads import begin_of
from api.viewer import Start, Viewer, start
from broker.errors import GenerationExpired, GenerationUnknown, LegatoError
from broker.generation import is_id

#: Bytes put together for one write; a chunk that is larger goes alone.
_WRITE_BYTES: Final = 64 * 1024

#: How long one generation is left alone while its part of the store is away.
_FAULT_PAUSE_SECONDS: Final = (0.3, 1.0)


class Open(Enum):
    """How a generation starts, where there is neither a verdict nor an error."""

    NOTHING = "nothing"  # the reader has all there is of it
    LATER = "later"  # its part of the store is away


@dataclass(frozen=True, slots=True)
class Wanted:
    """One generation of a request: the reader's place in it, how it starts or why it is gone, and the one of its thread
    before it: the reader may have to come back with that one's place."""

    generation: str
    position: str | None
    begin: Start | LegatoError | Open
    before: str | None = None

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to send."""
        return self.begin.seen_the_end if isinstance(self.begin, Start) else self.begin is Open.NOTHING


class MultiplexRoute(StreamRoute):
    """`GET /v1/events`."""

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        services, headers = self._services, Headers(scope=scope)
        tenant = authenticate(scope)
        asked = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        most = services.settings.max_multiplexed
        generations, threads = names_of(asked, most)
        query = {name: values[-1] for name, values in asked.items()}
        text = cursor_text(headers, query)
        cursor = Composite.parse(text, most=2 * most) if text else Composite()
        snapshot = snapshot_asked(query)
        if asks_to_poll(headers):
            raise Problem(406, "not_acceptable", "many generations are given as text/event-stream or x-ndjson only")
        framing = framing_of(headers)
        try:
            services.check_open()
            wanted = await _begin(services, tenant, generations, threads, cursor, snapshot=snapshot)
        except PASSING as error:
            if not names_sse(headers):
                raise
            await FaultResponse(services, framing, "", None, error)(scope, receive, send)
            return
        kept = cursor.only([name for item in wanted for name in (item.generation, item.before) if name is not None])
        wanted = [item for item in wanted if not item.is_over]
        seconds = services.settings.send_timeout_seconds
        if not wanted:
            await nothing_more(framing, send)
        elif scope["method"] == "HEAD":
            await send_body(scope, receive, send, once(b""), framing=framing, send_seconds=seconds)
        else:
            async with Multiplex(services, tenant, wanted, kept, framing) as multiplex:
                await send_body(
                    scope, receive, send, multiplex.chunks(), framing=framing, send_seconds=seconds, viewer=multiplex
                )


def names_of(query: dict[str, list[str]], most: int) -> tuple[list[str], list[str]]:
    """The generations and threads of a query, each once; 400 says what is wrong with them."""
    generations = list(dict.fromkeys(query.get("generation", [])))
    threads = list(dict.fromkeys(query.get("thread", [])))
    wrong = [FieldError("generation", f"{name[:64]!r} is no id") for name in generations if not is_id(name)]
    wrong += [FieldError("thread", "a name has 1 to 128 characters") for name in threads if not 1 <= len(name) <= 128]
    if not generations and not threads:
        wrong.append(FieldError("generation", "name one or more, or a thread"))
    if len(generations) + len(threads) > most:
        wrong.append(FieldError("generation", f"one connection carries at most {most} generations and threads"))
    if wrong:
        named = ", ".join(dict.fromkeys(item.field for item in wrong))
        raise Problem(400, "invalid_query", f"not right in the query: {named}", fields=tuple(wrong))
    return generations, threads


async def _begin(
    services: Services, tenant: str, generations: list[str], threads: list[str], cursor: Composite, *, snapshot: bool
) -> list[Wanted]:
    """How everything starts, each generation once. A fault of some leaves the others going; one of all is raised."""
    found = await asyncio.gather(
        *(_of_thread(services, tenant, thread, cursor, snapshot=snapshot) for thread in threads),
        *(_of_generation(services, tenant, name, cursor.place(name), snapshot=snapshot) for name in generations),
        return_exceptions=True,
    )
    wanted: dict[str, Wanted] = {}
    faults: list[LegatoError] = []
    for at, item in enumerate(found):
        match item:
            case Wanted():
                wanted.setdefault(item.generation, item)
            case None:
                pass
            case LegatoError() if isinstance(item, PASSING):
                faults.append(item)
                if at < len(threads):  # which generation it would be is not known
                    raise item
                name = generations[at - len(threads)]
                wanted.setdefault(name, Wanted(name, cursor.place(name), Open.LATER))
            case BaseException():
                raise item
    if faults and len(faults) == len(found):
        raise faults[0]
    if len({tag_of(name) for name in wanted}) < len(wanted):
        raise Problem(400, "invalid_query", "two of these ids end alike; ask for them on two connections")
    return list(wanted.values())


async def _of_generation(
    services: Services, tenant: str, generation: str, place: str | None, *, snapshot: bool
) -> Wanted:
    if place == GONE:
        return Wanted(generation, place, Open.NOTHING)
    try:
        return Wanted(generation, place, await start(services, tenant, generation, place, snapshot=snapshot))
    except (GenerationUnknown, GenerationExpired) as error:
        return Wanted(generation, place, error)


async def _of_thread(
    services: Services, tenant: str, thread: str, cursor: Composite, *, snapshot: bool
) -> Wanted | None:
    """The generation of a thread that a reader with this cursor gets; None where there is nothing more in it."""
    known = (await services.records.threads.look(tenant, thread)).known
    last = next((name for name in reversed(known) if cursor.place(name) is not None), None)
    place = cursor.place(last) if last is not None else None
    qualified = Qualified(last, place) if last is not None and place is not None and place != GONE else None
    begin = await begin_of(services, tenant, thread, qualified, snapshot=snapshot)
    if begin is not None:
        return Wanted(begin.generation, begin.cursor, begin, before=last)
    # Its end was seen: the place stays in the cursor, or the next connection would show it again.
    return Wanted(last, place, Open.NOTHING) if last is not None else None


class Feed:
    """What one generation has for the connection: one chunk at most, until that is sent."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.chunk = b""
        self.taken = asyncio.Event()


class Multiplex:
    """Chunks of all viewers, in turn. Use it as a context, in the task that sends; `finished` says, after the last
    chunk, whether all have ended."""

    def __init__(
        self, services: Services, tenant: str, wanted: list[Wanted], cursor: Composite, framing: Framing
    ) -> None:
        self.finished = False
        self.parks = False  # what comes must be put in order with what the others have
        self._services = services
        self._tenant = tenant
        self._framing = framing
        self._cursor = cursor
        self._feeds = [Feed(item) for item in wanted]
        self._running = len(self._feeds)
        self._leaving = False
        self._ready: deque[Feed] = deque()
        self._news = asyncio.Event()
        self._group = asyncio.TaskGroup()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._services.viewers += len(self._feeds)
        for feed in self._feeds:
            name = f"read {feed.wanted.generation}"
            self._tasks.append(self._group.create_task(self._pump(feed), name=name))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._services.viewers -= len(self._feeds)
        for task in self._tasks:
            task.cancel()
        await self._group.__aexit__(kind, error, trace)

    def stay(self) -> AsyncIterator[bytes]:
        """See `api.stream.Source`."""
        return self.chunks()

    async def chunks(self) -> AsyncIterator[bytes]:
        """See `Viewer.chunks`. Who has something waits for its turn; nobody has two turns before another has one."""
        silence = self._services.settings.ping_seconds * random.uniform(0.75, 1.0)
        while True:
            sending: list[Feed] = []
            size = 0
            while self._ready and (not size or size + len(self._ready[0].chunk) <= _WRITE_BYTES):
                sending.append(self._ready.popleft())
                size += len(sending[-1].chunk)
            if sending:
                yield b"".join([composed(feed.chunk, self._cursor) for feed in sending])
                for feed in sending:
                    feed.chunk = b""
                    feed.taken.set()
                continue
            if self._leaving or not self._running:
                self.finished = not self._leaving
                return
            self._news.clear()
            try:
                async with asyncio.timeout(silence):
                    await self._news.wait()
            except TimeoutError:
                yield self._framing.ping

    async def _pump(self, feed: Feed) -> None:
        framing = MarkedFraming(self._framing, feed.wanted.generation)
        begin = feed.wanted.begin
        if isinstance(begin, Open):
            begin = await self._later(feed.wanted)
        if isinstance(begin, Start):
            if not begin.seen_the_end:
                viewer = Viewer(self._services, begin, framing)
                try:
                    async for chunk in viewer.chunks():
                        await self._offer(feed, chunk)
                finally:
                    viewer.leave()
                self._leaving = self._leaving or not viewer.finished
        else:
            told = problem_of(begin)
            data = {"status": told.status, "code": told.code, "message": told.detail}
            await self._offer(feed, framing.frame(b"gone", orjson.dumps(data), GONE))
        self._running -= 1
        self._news.set()

    async def _offer(self, feed: Feed, chunk: bytes) -> None:
        if not chunk:
            return
        feed.chunk = chunk
        feed.taken.clear()
        self._ready.append(feed)
        self._news.set()
        await feed.taken.wait()

    async def _later(self, wanted: Wanted) -> Start | LegatoError:
        """How a generation starts, once its part of the store can tell."""
        while True:
            await asyncio.sleep(random.uniform(*_FAULT_PAUSE_SECONDS))
            with suppress(*PASSING):
                try:
                    return await start(self._services, self._tenant, wanted.generation, wanted.position, snapshot=False)
                except (GenerationUnknown, GenerationExpired) as error:
                    return error
