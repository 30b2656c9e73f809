"""What Legato's own Python costs a token, without sockets and without a store, beside a fixed piece of Python.

A window of the whole server is mostly the kernel's work, on some machines nearly all of it, and hides a change for the
worse. Here nothing else is measured, so less is noticed: three stretches of the token path, each run over a few
thousand tokens at a time and each time beside the reference, which is what any server pays that keeps its events as
JSON (one `json.dumps` and one `json.loads` of a small event).
"""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import hiredis

from api.frames import SSE, merged
from api.held import Held, Holder
from api.parked import Parked
from broker import notification
from broker.events import Entry
from broker.generation import Request
from broker.joined import behind
from broker.keys import Keys
from broker.lane import STORED, Lane
from broker.lease import Lease
from broker.log import Appended
from broker.tail import Topic
from broker.wire import Answered
from worker.pulse import Pulse
from worker.writer import Writer

#: Tokens in one go, and goes: about two seconds in all.
TOKENS: Final = 2000
GOES: Final = 40

_WORDS: Final = (" the", " of", " token", " a", " stream", ",", " resumes", " where", " it", " was", " left", " so")
_EPOCH: Final = 1
#: Generations that are written beside one another.
_WRITERS: Final = 20


def measured(goes: int = GOES) -> dict[str, float]:
    """By stretch, how many times the reference a token costs: `deliver` (what a subscription brings, to the write),
    `append` (a piece of text, to the packed command and back with its answer), `replay` (a stored entry, to its part of
    a frame)."""
    collects = gc.isenabled()
    gc.disable()  # it would stop whichever stretch it likes
    try:
        return asyncio.run(_measured(goes))
    finally:
        if collects:
            gc.enable()


async def _measured(goes: int) -> dict[str, float]:
    stretches: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
        "deliver": _deliver(),
        "append": _append,
        "replay": _replay(),
    }
    spent = dict.fromkeys(stretches, 0)
    beside = dict.fromkeys(stretches, 0)
    for go in range(goes + 1):
        for name, stretch in stretches.items():
            began = time.thread_time_ns()
            await stretch()
            between = time.thread_time_ns()
            _reference()
            if go:  # the first one warms up
                spent[name] += between - began
                beside[name] += time.thread_time_ns() - between
    return {name: spent[name] / beside[name] for name in stretches}


def _reference() -> None:
    """So many events as JSON, written and read."""
    for number in range(TOKENS):
        event = {"id": f"{number}-{_EPOCH}", "event": "delta", "data": {"text": _WORDS[number % len(_WORDS)]}}
        json.loads(json.dumps(event))


def _text(number: int) -> bytes:
    return _WORDS[number % len(_WORDS)].encode()


# --- what a subscription brings, to the write ---


class _Transport(asyncio.Transport):
    """Takes everything, and forgets it."""

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        pass

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass


class _Host:
    """Has no connections."""

    def held(self, connection: Held) -> None:
        pass

    def released(self, connection: Held) -> None:
        pass

    def serve_on(self, transport: asyncio.Transport, ahead: bytes, *, takes_more: bool) -> None:
        pass

    def reset(self, transport: asyncio.Transport) -> None:
        pass


class _Services:
    """As much of `api.services.Services` as a parked viewer that is only written to asks for."""

    def __init__(self) -> None:
        self.heartbeat: set[object] = set()
        self.viewers = 0


class _Viewer:
    """A viewer that has read everything."""

    framing = SSE
    sent_at = 0.0
    parks = True

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.cursor = f"1-{_EPOCH}"


def _deliver() -> Callable[[], Coroutine[Any, Any, None]]:
    channel = _bulk(Keys("legato").live("gen_x").encode())
    news = [
        b"%d-%d %d-%d d %b" % (number - 1, _EPOCH, number, _EPOCH, _text(number)) for number in range(2, TOKENS + 2)
    ]
    pushed = b"".join([_array(_bulk(b"smessage"), channel, _bulk(message)) for message in news])

    def hold(holder: Holder) -> Held:
        return Held(_Transport(), _Host(), holder, goes_on=True, takes_more=True)

    async def stretch() -> None:
        topic = Topic("gen_x")
        topic.viewers = 1
        topic.window.start(f"1-{_EPOCH}")
        services: Any = _Services()
        viewer: Any = _Viewer(topic)
        Parked(services, viewer, hold)
        reader = hiredis.Reader(notEnoughData=None)
        reader.feed(pushed)
        while (push := reader.gets()) is not None:
            decoded = notification.decode(push[2])
            assert decoded is not None
            topic.notify(*decoded)
        assert topic.window.last == f"{TOKENS + 1}-{_EPOCH}", "it was not delivered"

    return stretch


# --- a piece of text, to the packed command and back ---


class _Wire:
    """Answers every append in the next turn of the loop, as a server does that stores it."""

    closed = False

    def __init__(self) -> None:
        self.commands = 0

    def tell(self, packed: bytes, answered: Answered) -> None:
        self.commands += 1
        asyncio.get_running_loop().call_soon(answered, STORED)


class _Log:
    """The log of a writer, over that wire."""

    def __init__(self, wire: _Wire) -> None:
        self._wire: Any = wire

    async def append(
        self, generation: str, epoch: int, owner: str, prev: str, entries: Sequence[Entry], notes: object
    ) -> Appended:
        return Appended(entries[-1].position, len(entries), "")

    async def lane(self, generation: str, epoch: int, owner: str, answered: Answered) -> Lane:
        keys = Keys("legato")
        return Lane(
            self._wire, keys.of(generation)[:2], keys.live(generation), epoch=epoch, owner=owner, answered=answered
        )


async def _append() -> None:
    """Of several generations, as a worker has them: a turn of the loop is shared."""
    wire = _Wire()
    log: Any = _Log(wire)
    unused: Any = None
    request = Request(provider="sim", model="bench", messages=[{"role": "user", "content": "x"}])
    pulse = Pulse(tolerance=60)

    async def one(name: str) -> None:
        lease = Lease(
            generation=name,
            epoch=_EPOCH,
            owner="owner",
            attempt=1,
            tenant="dev",
            request=request,
            cancel="",
            created_ms=0,
            started_ms=0,
            claimed_ms=0,
            head="0-0",
        )
        writer = Writer(lease, [], log=log, leases=unused, pulse=pulse, heal_seconds=300, on_cancel=lambda: None)
        running = asyncio.create_task(writer.run())
        for number in range(TOKENS // _WRITERS):
            writer.add_text(_WORDS[number % len(_WORDS)])
            await writer.flushed()
        running.cancel()

    await asyncio.gather(*(one(f"gen_{number}") for number in range(_WRITERS)))
    assert wire.commands == TOKENS - _WRITERS, "not every delta but the first went over the lane"


# --- stored entries, to their frame ---


def _replay() -> Callable[[], Coroutine[Any, Any, None]]:
    rows = [
        _array(_bulk(b"%d-%d" % (at, _EPOCH)), _array(_bulk(b"d"), _bulk(_text(at)))) for at in range(1, TOKENS + 1)
    ]
    answered = _array(*rows)

    async def stretch() -> None:
        reader = hiredis.Reader()
        reader.feed(answered)
        found = merged(behind(reader.gets(), 0))
        frames = [SSE.frame(event, data, place) for place, event, data in found]
        assert [place for place, _, _ in found] == [f"{TOKENS}-{_EPOCH}"], "it is not one frame of all"
        assert frames

    return stretch


def _bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def _array(*parts: bytes) -> bytes:
    return b"*%d\r\n%b" % (len(parts), b"".join(parts))


if __name__ == "__main__":
    print(measured())
