"""A generation, or those of a thread, read to the end over as many connections as it takes. Joins `state` to `http`."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import httpx

from legato_client.answer import Answer, Fold
from legato_client.errors import Garbled, Unavailable, UnexpectedAnswer
from legato_client.events import Event
from legato_client.frames import FrameParser
from legato_client.http import Http, retry_after_seconds
from legato_client.patience import GiveUp
from legato_client.state import Head, Reading, asked, cut, judge, nothing_more, received


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconnect:
    """The connection is gone, and the next try comes in `seconds`. `reason` is for people."""

    reason: str
    seconds: float


class Stream:
    """Iterate over it once, in `async with` or closed with `aclose()`; that leaves the generation alone.

    Ends behind the terminal event, which it yields; or at once where the position it was given is the end. Of a thread
    it yields one generation after the other, and ends when there is no more of them for now. Raises
    `Refused` (`NotFound`, `Gone` …), `Unavailable` when patience is over, `UnexpectedAnswer`. A wait for the next event
    may be cancelled, by `asyncio.timeout` for instance, and repeated: no event is lost, and no connection.
    """

    def __init__(
        self,
        http: Http,
        path: str,
        *,
        after: str | None = None,
        snapshot: bool = False,
        thread: bool = False,
        silence_seconds: float,
        on_reconnect: Callable[[Reconnect], None] | None = None,
    ) -> None:
        self._http = http
        self._path = path
        self._silence_seconds = silence_seconds
        self._on_reconnect = on_reconnect
        self._state = Reading(cursor=after, snapshot=snapshot, thread=thread)
        self._generation: str | None = None  # of a thread, the one that events were yielded of
        self._fold = Fold()
        self._position = after
        self._waiting: deque[Event] = deque()
        self._not_before = 0.0
        self._response: httpx.Response | None = None
        self._chunks: AsyncIterator[bytes] | None = None
        self._parser = FrameParser()
        self._step: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def position(self) -> str | None:
        """Of the last event that was yielded: store it, and go on with `stream(id, after=position)` anywhere."""
        return self._position

    @property
    def answer(self) -> Answer:
        """What the events yielded so far say; of a thread, of its `generation`. Of a stream that began behind a
        position: what came behind it."""
        return self._fold.answer()

    @property
    def generation(self) -> str | None:
        """Of a thread: whose the last event was. Else None: it is the one that was asked for."""
        return self._generation

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        while (event := self.ready()) is None:
            if self._state.over or self._closed:
                raise StopAsyncIteration
            if self._step is None:
                self._step = asyncio.create_task(self._advance())
            step = self._step
            await asyncio.wait([step])  # who stops waiting does not break the connection
            self._step = None
            if not step.cancelled():  # else it was closed meanwhile
                step.result()
        return event

    def ready(self) -> Event | None:
        """The next event, where it has been received already."""
        if not self._waiting:
            return None
        event = self._waiting.popleft()
        if self._state.thread and event.position is not None:
            generation = event.position.partition("/")[0]
            if generation != self._generation:
                self._generation, self._fold = generation, Fold()
        self._fold.add(event)
        self._position = event.position or self._position
        return event

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection. The generation goes on."""
        self._closed = True
        step, self._step = self._step, None
        if step is not None:
            step.cancel()
            await asyncio.wait([step])
            if not step.cancelled():
                step.exception()  # nobody waits for it any more
        await self._hang_up()

    async def _advance(self) -> None:
        """One step: a request, or what has come of a body. Leaves events, or a time to wait for."""
        going = False
        try:
            if self._chunks is None:
                await self._ask()
            else:
                await self._read(self._chunks)
            going = True
        finally:
            if not going:  # it is over, as with every iterator that has raised
                self._closed = True
                await self._hang_up()

    async def _ask(self) -> None:
        await asyncio.sleep(max(0.0, self._not_before - time.monotonic()))
        self._state = asked(self._state, now=time.monotonic())
        try:
            response = await self._http.open(
                self._path,
                query=self._state.query(),
                headers=self._state.headers(),
                silence_seconds=self._silence_seconds,
            )
        except httpx.RequestError as exc:
            self._lost(self._http.unreachable(exc), cause=exc)
            return
        head = judge(response.status_code, response.headers.get("content-type", ""))
        if head is Head.BODY:
            self._response, self._parser = response, FrameParser()
            self._chunks = response.aiter_bytes()
            return
        try:
            await self._not_a_body(head, response)
        finally:
            await response.aclose()

    async def _not_a_body(self, head: Head, response: httpx.Response) -> None:
        if head is Head.NOTHING_MORE:
            self._state = nothing_more(self._state)
            return
        if head is Head.FOREIGN:
            seen = f"{response.status_code} {response.headers.get('content-type', '')}".strip()
            raise UnexpectedAnswer(f"{self._http.address} answers {seen}, and not with a stream of events")
        try:
            await response.aread()
        except httpx.RequestError as exc:
            self._lost(self._http.unreachable(exc), cause=exc)
            return
        if head is Head.REFUSED:
            raise self._http.refusal(response)
        self._lost(self._http.describe(response), retry_after_seconds=retry_after_seconds(response))

    async def _read(self, chunks: AsyncIterator[bytes]) -> None:
        try:
            chunk = await anext(chunks, None)
        except httpx.RequestError as exc:
            await self._hang_up()
            self._lost(self._http.unreachable(exc), cause=exc)
            return
        fault: str | None = None
        done = False
        if chunk is None:
            fault = f"{self._http.address} ended the body before the end"
        else:
            try:
                fault, done = self._take(chunk)
            except Garbled as exc:
                fault = f"{self._http.address} sent {exc}"
        if done or fault is not None:
            await self._hang_up()
        if fault is not None:
            self._lost(fault)

    def _take(self, chunk: bytes) -> tuple[str | None, bool]:
        """Hand out what a chunk holds; why the connection is no good, if it is not, and whether it has served."""
        now = time.monotonic()
        for frame in self._parser.feed(chunk):
            taken = received(self._state, frame, now=now)
            self._state = taken.state
            if taken.event is not None:
                self._waiting.append(taken.event)
            if taken.fault is not None or taken.done:
                return taken.fault, taken.done
        return None, False

    def _lost(
        self, reason: str, *, retry_after_seconds: float | None = None, cause: BaseException | None = None
    ) -> None:
        now = time.monotonic()
        self._state, step = cut(
            self._state,
            self._http.patience,
            now=now,
            chance=random.random(),
            retry_after_seconds=retry_after_seconds,
        )
        if isinstance(step, GiveUp):
            raise Unavailable(reason, retry_after_seconds=step.retry_after_seconds) from cause
        self._not_before = now + step.seconds
        if self._on_reconnect is not None:
            self._on_reconnect(Reconnect(reason=reason, seconds=step.seconds))

    async def _hang_up(self) -> None:
        response, self._response, self._chunks = self._response, None, None
        if response is not None:
            await response.aclose()
