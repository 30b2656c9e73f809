"""A parked viewer gives up its place however its connection ends, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from api.frames import SSE
from api.held import PIECE_BYTES, Held, Holder
from api.parked import Parked
from broker.events import Entry
from broker.tail import Topic


class Transport:
    """Takes what it is written; `full` makes it say that it cannot take more."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False
        self.protocol: Any = None
        self.full = False
        self.paused = False  # as transports do, it says so once

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_extra_info(self, name: str) -> None:
        """There is no socket behind it."""

    def write(self, data: bytes) -> None:
        self.written.append(data)
        if self.full and not self.paused:
            self.paused = True
            self.protocol.pause_writing()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.protocol.connection_lost(None)  # nothing is unsent

    def is_closing(self) -> bool:
        return self.closed


class Host:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.holding = 0
        self.served_on: list[tuple[bytes, bool]] = []
        self.resets = 0

    def held(self, connection: Held) -> None:
        self.holding += 1

    def released(self, connection: Held) -> None:
        self.holding = 0

    def serve_on(self, transport: Any, ahead: bytes, *, takes_more: bool) -> None:
        self.served_on.append((ahead, takes_more))

    def reset(self, transport: Any) -> None:
        self.resets += 1
        transport.close()


class Settings:
    send_timeout_seconds = 0.05


class Services:
    """As much of them as a parked viewer asks for."""

    settings = Settings()
    beat_seconds = 1.0

    def __init__(self) -> None:
        self.heartbeat: set[Any] = set()
        self.viewers = 0
        self.tasks: list[asyncio.Task[None]] = []

    def background(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        self.tasks.append(asyncio.create_task(work, name=name))
        return self.tasks[-1]


class Viewer:
    """Says what it is told to, once it is asked to pull."""

    framing = SSE
    ping_seconds = 15.0
    closes_at = float("inf")

    def __init__(self, topic: Topic, chunks: list[bytes] | Exception, *, finished: bool = False) -> None:
        self.topic = topic
        self.cursor = "1-1"
        self.sent_at = 0.0
        self.parks = True
        self.finished = finished
        self.left = 0
        self._chunks = chunks

    async def chunks(self) -> AsyncIterator[bytes]:
        await asyncio.sleep(0)
        if isinstance(self._chunks, Exception):
            raise self._chunks
        for chunk in self._chunks:
            yield chunk

    def leave(self) -> None:
        self.left += 1


class Scene:
    """A viewer that is parked at `1-1` of a topic that has come to there."""

    def __init__(
        self,
        chunks: list[bytes] | Exception = [],  # noqa: B006 - read only
        *,
        finished: bool = False,
        takes_more: bool = True,
    ) -> None:
        self.topic = Topic("gen_x")
        self.topic.viewers = 1
        self.topic.window.start("1-1")
        self.transport, self.host, self.services = Transport(), Host(), Services()
        self.viewer = Viewer(self.topic, chunks, finished=finished)
        viewer: Any = self.viewer
        services: Any = self.services
        self._takes_more = takes_more
        self.parked = Parked(services, viewer, self._hold)

    def _hold(self, holder: Holder) -> Held:
        transport: Any = self.transport
        return Held(transport, self.host, holder, goes_on=True, takes_more=self._takes_more)

    @property
    def over(self) -> bool:
        return (self.viewer.left, self.services.viewers, self.host.holding, len(self.services.heartbeat)) == (
            1,
            0,
            0,
            0,
        )

    async def settled(self) -> None:
        await asyncio.gather(*self.services.tasks, return_exceptions=True)
        await asyncio.sleep(0)


async def test_what_comes_is_written_in_the_call_that_brings_it() -> None:
    scene = Scene()
    scene.topic.notify("1-1", [Entry("2-1", b"d", "é".encode())])
    assert scene.transport.written == [SSE.chunk(Entry("2-1", b"d", "é".encode()))]
    assert (scene.services.viewers, scene.services.tasks) == (1, [])


async def test_the_end_hands_the_connection_back_with_what_came_ahead() -> None:
    scene = Scene()
    ahead = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
    scene.transport.protocol.data_received(ahead)
    scene.topic.notify("1-1", [Entry("2-1", b"completed", b"{}")])
    assert scene.transport.written[-1] == b"0\r\n\r\n"
    assert scene.host.served_on == [(ahead, True)]
    assert scene.over


async def test_a_reader_that_had_enough_before_it_was_parked_is_written_to_no_more() -> None:
    """Its transport has said so to the protocol before, and does not say it again."""
    scene = Scene(takes_more=False)
    scene.topic.notify("1-1", [Entry("2-1", b"d", b"x")])
    assert scene.transport.written == []
    await scene.settled()  # it pulls now, and so waits for its reader
    assert len(scene.services.tasks) == 1


async def test_who_takes_the_connection_back_is_told_that_its_reader_has_enough() -> None:
    scene = Scene()
    scene.transport.full = True
    scene.topic.notify("1-1", [Entry("2-1", b"completed", b"{}")])
    assert scene.host.served_on == [(b"", False)]


async def test_a_reader_that_leaves_while_it_is_parked_has_left() -> None:
    scene = Scene()
    scene.transport.protocol.connection_lost(None)
    assert scene.over
    scene.topic.notify("1-1", [Entry("2-1", b"d", b"x")])
    assert scene.transport.written == []


async def test_a_reader_that_leaves_before_its_task_has_begun_has_left() -> None:
    """The task is cancelled before its first line runs."""
    scene = Scene([b"chunk"])
    scene.topic.disturb()
    scene.transport.protocol.connection_lost(None)
    await scene.settled()
    assert scene.over
    assert scene.transport.written == []


async def test_a_defect_while_it_pulls_cuts_the_connection() -> None:
    scene = Scene(RuntimeError("a defect"))
    scene.topic.disturb()
    await scene.settled()
    assert scene.over
    assert scene.transport.closed
    assert b"0\r\n\r\n" not in scene.transport.written


@pytest.mark.parametrize("finished", [True, False])
async def test_what_it_pulls_is_sent_and_ends_as_it_should(finished: bool) -> None:
    scene = Scene([b"one", b"two"], finished=finished)
    scene.viewer.parks = False
    scene.topic.disturb()
    await scene.settled()
    assert scene.transport.written[:2] == [b"3\r\none\r\n", b"3\r\ntwo\r\n"]
    assert scene.over
    assert (scene.transport.closed, len(scene.host.served_on)) == (not finished, finished)


async def test_it_parks_again_where_the_viewer_says_so() -> None:
    scene = Scene([b"one"])
    scene.topic.disturb()
    scene.viewer.parks = True
    await scene.settled()
    assert (scene.viewer.left, scene.services.viewers, len(scene.services.heartbeat)) == (0, 1, 1)


async def test_a_reader_that_takes_nothing_is_reset() -> None:
    scene = Scene([b"x" * (3 * PIECE_BYTES)])
    scene.transport.full = True
    scene.topic.disturb()
    await scene.settled()
    assert scene.host.resets == 1
    assert len(scene.transport.written) == 1  # the rest of it was not even written
    assert scene.over
