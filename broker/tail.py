"""Follow logs as they grow: one subscription connection a server, for all viewers of this process.

A `Topic` is one followed generation: a `Window` that notifications extend, and a version that rises whenever readers
should look again. Reading is pulled: a viewer asks the window by its own position, and the log where the window does
not know (see `broker.window` for why that cannot go wrong). So a notification is never more than a shortcut. Whatever
may have cost one (a lost connection, a slot that moved, a subscription the server ended, a head that is not the
window's) clears the window and wakes the viewers, and the log decides. Nothing here can end a viewer's stream.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final, Protocol

from broker import notification
from broker.backoff import Backoff
from broker.errors import StoreError
from broker.events import Entry
from broker.pace import Pace
from broker.store import Store
from broker.window import Encoder, Window
from broker.wire import Address, Reply, Wire

#: How often the last entry of a quiet log is compared with its window.
_CHECK_SECONDS: Final = 1.0
#: So many are looked at together: nobody else waits for long.
_CHECKED_AT_ONCE: Final = 500

#: More entries at once are joined, which is for a viewer that looks for itself.
_MOST_AT_ONCE: Final = 16


class Sink(Protocol):
    """A viewer that has read everything, and takes what comes by a plain call: no task wakes for it."""

    #: Writes an entry as this viewer wants it: for all that want it so, once.
    encoder: Encoder

    def offer(self, prev: str, entries: list[Entry], encoded: bytes) -> bool:
        """Take what follows `prev`, as its encoder has written it; False where it cannot, or needs no more: then it is
        detached."""
        ...

    def disturbed(self) -> None:
        """It is detached, and must look for itself."""
        ...


class Topic:
    """One generation that is being followed."""

    __slots__ = ("_pushed", "_sinks", "_waiting", "generation", "version", "viewers", "window")

    def __init__(self, generation: str) -> None:
        self.generation = generation
        self.window = Window()
        self.version = 0
        self.viewers = 0
        self._pushed = False  # since the last check
        self._waiting: set[asyncio.Future[None]] = set()
        self._sinks: dict[Sink, None] = {}  # in the order they came

    def attach(self, sink: Sink) -> None:
        """Offer each notification to `sink`, at once, until it is detached or `disturbed`. To be called with the window
        read to its end: nothing is offered that came before."""
        self._sinks[sink] = None

    def detach(self, sink: Sink) -> None:
        """Offer it nothing more. Harmless where it is not attached."""
        self._sinks.pop(sink, None)

    async def changed(self, version: int, seconds: float) -> bool:
        """Wait until the version is another than `version`, at most `seconds`; False when time was over."""
        if self.version != version:
            return True
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(seconds, _resolve, waiter)
        self._waiting.add(waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiting.discard(waiter)
        return self.version != version

    def disturb(self) -> None:
        """Something may have been missed: every viewer asks the log."""
        self.window.clear()
        self.wake()

    def wake(self) -> None:
        """Let every viewer look again."""
        self.version += 1
        for waiter in self._waiting:
            _resolve(waiter)
        sinks, self._sinks = self._sinks, {}
        for sink in sinks:
            sink.disturbed()

    def notify(self, prev: str, entries: list[Entry]) -> None:
        """Take in what was appended behind `prev`."""
        self._pushed = True
        sinks = self._sinks
        if sinks and len(sinks) == self.viewers:
            taken = self.window.pass_over(prev, entries)  # nobody will ask for it
        else:
            taken = self.window.push(prev, entries)
        self.version += 1
        if self._waiting:
            for waiter in self._waiting:
                _resolve(waiter)
        if taken and sinks:
            self._offer(prev, entries)

    def _offer(self, prev: str, entries: list[Entry]) -> None:
        encoder: Encoder | None = None
        encoded = b""
        fits = len(entries) <= _MOST_AT_ONCE
        for sink in list(self._sinks):
            if fits and sink.encoder != encoder:
                encoder = sink.encoder
                encoded = encoder(entries[0]) if len(entries) == 1 else b"".join(map(encoder, entries))
            if not (fits and sink.offer(prev, entries, encoded)):
                self.detach(sink)
                sink.disturbed()

    def was_quiet(self) -> bool:
        """Whether no notification came since this was last asked."""
        quiet, self._pushed = not self._pushed, False
        return quiet


class Tail:
    """All topics of one process. Run `run()` in a task beside the viewers; it ends when it is cancelled."""

    def __init__(self, store: Store, pace: Pace | None = None) -> None:
        self._store = store
        self._keys = store.keys
        self._pace = pace or Pace()
        self._topics: dict[bytes, Topic] = {}  # by channel
        self._joining: dict[bytes, asyncio.Event] = {}
        self._wires: dict[Address, Wire] = {}
        self._opening: dict[Address, asyncio.Lock] = {}
        self._served_by: dict[bytes, Wire] = {}  # channel -> the connection its subscription is on
        self._leaving: dict[Wire, Counter[bytes]] = {}  # unsubscriptions that were asked for
        self._lost: asyncio.Queue[bytes] = asyncio.Queue()  # channels that want a subscription
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def connections(self) -> int:
        """Open subscription connections: one a server."""
        return sum(not wire.closed for wire in self._wires.values())

    @property
    def topics(self) -> int:
        """Generations being followed."""
        return len(self._topics)

    @asynccontextmanager
    async def follow(self, generation: str) -> AsyncIterator[Topic]:
        """Follow a generation while the block lasts. The subscription stands, or is being made, when it begins: read
        the log inside the block, and nothing between that read and the first notification is missed."""
        topic = self.join(generation)
        try:
            await self.joined(topic)
            yield topic
        finally:
            self.leave(topic)

    def join(self, generation: str) -> Topic:
        """Follow a generation, for one more viewer, until `leave`. Wait for `joined` before the log is read."""
        channel = self._keys.live(generation).encode()
        topic = self._topics.get(channel)
        if topic is None:
            topic = self._topics[channel] = Topic(generation)
            self._joining[channel] = asyncio.Event()
            self._lost.put_nowait(channel)
        topic.viewers += 1
        return topic

    async def joined(self, topic: Topic) -> None:
        """Wait until the subscription stands, or as long as the store may take. One that is made later is noticed by
        nobody: until then, and for what came before it, quiet logs are looked at."""
        joining = self._joining.get(self._keys.live(topic.generation).encode())
        if joining is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._store.settings.store_timeout_seconds):
                    await joining.wait()

    def leave(self, topic: Topic) -> None:
        """One viewer follows it no more."""
        topic.viewers -= 1
        if topic.viewers == 0:
            self._forget(self._keys.live(topic.generation).encode())

    def wake_all(self) -> None:
        """Let every viewer look again."""
        for topic in self._topics.values():
            topic.wake()

    async def run(self) -> None:
        """Keep every topic subscribed and checked. May be run again where it was ended."""
        self._lost = asyncio.Queue()
        for channel in self._topics.keys() - self._served_by.keys():
            self._lost.put_nowait(channel)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._subscribe_loop(group))
            group.create_task(self._check_loop())

    async def _subscribe_loop(self, group: asyncio.TaskGroup) -> None:
        while True:
            channel = await self._lost.get()
            group.create_task(self._subscribe(channel))

    async def _subscribe(self, channel: bytes) -> None:
        """Subscribe one topic, however long that takes; one channel a command (two slots in one are refused)."""
        backoff = Backoff(first=0.05, most=1.0)
        while (topic := self._topics.get(channel)) is not None:
            try:
                address = await self._store.locate(self._keys.log(topic.generation))
                wire = await self._wire(address)
            except StoreError:
                await asyncio.sleep(backoff.next())
                continue
            if self._topics.get(channel) is topic:
                self._served_by[channel] = wire
                wire.send("SSUBSCRIBE", channel)
            return

    async def _check_loop(self) -> None:
        """Once a second, compare the last entry of every quiet log with its window: notifications can be lost."""
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            quiet = [topic for topic in self._topics.values() if topic.was_quiet()]
            at: dict[Address, list[Topic]] = {}
            # Not where their notifications come from: that may be a replica, or a primary that has been replaced.
            for topic in quiet:
                with suppress(StoreError):  # nobody serves this one's slot; others are served
                    at.setdefault(await self._store.locate(self._keys.log(topic.generation)), []).append(topic)
            await asyncio.gather(*(self._check(address, topics) for address, topics in at.items()))

    async def _check(self, address: Address, topics: list[Topic]) -> None:
        for at in range(0, len(topics), _CHECKED_AT_ONCE):
            some = topics[at : at + _CHECKED_AT_ONCE]
            known = [topic.window.last for topic in some]
            try:
                heads = await self._store.last_ids(address, [self._keys.log(topic.generation) for topic in some])
            except StoreError:
                return
            for topic, before, head in zip(some, known, heads, strict=True):
                if topic.window.last == before != head:
                    topic.disturb()

    async def _wire(self, address: Address) -> Wire:
        async with self._opening.setdefault(address, asyncio.Lock()):
            wire = self._wires.get(address)
            if wire is None or wire.closed:
                wire = await self._store.open_wire(
                    address, on_push=self._on_push, on_close=self._on_close, pace=self._pace
                )
                self._wires[address] = wire
            return wire

    def _on_push(self, reply: list[Reply]) -> None:
        kind = reply[0]
        if kind == b"smessage":
            topic = self._topics.get(reply[1])
            if topic is None:
                return
            if (news := notification.decode(reply[2])) is not None:
                topic.notify(*news)
            else:
                topic.disturb()  # deleted: the log will confirm it
        elif kind == b"ssubscribe":
            self._subscribed(reply[1])
        elif kind == b"sunsubscribe":
            self._unsubscribed(reply[1] or b"")

    def _subscribed(self, channel: bytes) -> None:
        topic = self._topics.get(channel)
        if topic is None:
            return
        if (joining := self._joining.pop(channel, None)) is not None:
            joining.set()
        else:
            topic.disturb()

    def _unsubscribed(self, channel: bytes) -> None:
        for leaving in self._leaving.values():
            if leaving[channel] > 0:
                leaving[channel] -= 1
                if not leaving[channel]:
                    del leaving[channel]
                return
        if channel in self._served_by:  # unasked: the slot has moved
            self._again(channel)

    def _on_close(self, wire: Wire) -> None:
        self._leaving.pop(wire, None)
        for channel in [name for name, serving in self._served_by.items() if serving is wire]:
            self._again(channel)

    def _again(self, channel: bytes) -> None:
        """The subscription is gone: what was published since is only in the log."""
        del self._served_by[channel]
        topic = self._topics.get(channel)
        if topic is not None:
            topic.disturb()
            task = asyncio.ensure_future(self._refresh_and_queue(channel))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _refresh_and_queue(self, channel: bytes) -> None:
        try:
            with suppress(StoreError):
                await self._store.refresh()
        finally:
            self._lost.put_nowait(channel)

    def _forget(self, channel: bytes) -> None:
        del self._topics[channel]
        self._joining.pop(channel, None)
        wire = self._served_by.pop(channel, None)
        if wire is not None:
            self._leaving.setdefault(wire, Counter())[channel] += 1
            wire.send("SUNSUBSCRIBE", channel)


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
