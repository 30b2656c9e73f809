"""Threads: the generations of one conversation, one after another.

A thread's slot keeps its line: the generations that have not ended, in order. The line is a hint, as the queue's
entries are: an entry counts only while its own record says so, and whoever meets one that does not takes it out. What
decides is in the records: one that waits for its turn says `waits`, and no claim gives it away; `begin` takes that off,
and only then it gets a hint in the queue. So a generation that waits costs no worker anything, and nobody has to ask.

Whoever ends a generation moves its line on (`leave`). Where he dies in between, who gets the hint that he left does, or
the sweep. At most one of a line runs: nobody begins while another that has begun has not ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from broker.errors import QueueFull, ThreadBusy
from broker.generation import Priority, State, created_at
from broker.queue import Hint, Queue
from broker.scripts import BEGIN, JOIN, LEAVE, STANDING, THREAD
from broker.store import Store
from broker.wire import Arg, StoreReplyError

#: So many of a line are looked at together; the others stand behind them.
_LOOK: Final = 100

#: A submit that was never confirmed counts in its line for so long: its submitter may still be at it.
_SUBMITTING_MS: Final = 30_000

#: What is known of a thread is kept so long after its last submit, and the log's time after its last end.
_KEEP_MS: Final = 2 * 86_400_000


@dataclass(frozen=True, slots=True)
class Standing:
    """What the record of a generation says of its place in a line."""

    state: State
    waits: bool  # for its turn: nobody can claim it
    accepted: bool  # its submit was confirmed
    held: bool  # a worker has its lease
    age_ms: int
    tenant: str
    priority: Priority
    ttl_ms: int

    @property
    def counts(self) -> bool:
        """Whether others have to wait for it."""
        return not self.state.is_terminal and (self.accepted or not self.waits or self.age_ms < _SUBMITTING_MS)


@dataclass(frozen=True, slots=True)
class Thread:
    """A thread as it is now. `known` are all generations that it remembers, in order, the ended ones too."""

    running: str | None  # begun and not ended
    waiting: list[str]
    known: list[str]

    @property
    def current(self) -> str | None:
        """The one to show: that runs, or is next, or was the last."""
        return self.running or next(iter(self.waiting), None) or (self.known[-1] if self.known else None)

    def after(self, generation: str) -> list[str]:
        """Those that come behind it, in order. One that is not remembered stands where its age puts it."""
        if generation in self.known:
            return self.known[self.known.index(generation) + 1 :]
        return [other for other in self.known if other > generation]  # ids sort by age


class Threads:
    """All threads, over one store."""

    def __init__(self, store: Store, queue: Queue) -> None:
        self._store = store
        self._queue = queue
        self._keys = store.keys

    async def current(self, tenant: str, thread: str) -> str | None:
        """The generation of a thread that runs, else the next one, else the last one; None where there is none."""
        return (await self.look(tenant, thread)).current

    async def look(self, tenant: str, thread: str) -> Thread:
        """A thread as it is now; nothing but empty fields where nobody knows it."""
        line, known = await self._store.run(THREAD, self._keys.thread(tenant, thread), [])
        in_line = [generation.decode() for generation in line]
        begun, waiting = _in_turn(await self._standings(in_line))
        return Thread(
            running=begun[0][0] if begun else None,
            waiting=[name for name, _ in waiting],
            known=[generation.decode() for generation in known],
        )

    async def join(self, tenant: str, thread: str, generation: str, *, alone: bool, ttl_seconds: int) -> list[str]:
        """Take the place behind everybody, or keep the one it has; those ahead, in order. May be repeated.

        With `alone` only where nobody else is in the line that counts: else `ThreadBusy`. Raises `QueueFull` where as
        many wait as may. Nothing of the generation is changed.
        """
        keys = self._keys.thread(tenant, thread)
        keep_ms = ttl_seconds * 1000 + _KEEP_MS
        ended: list[str] = []
        while True:
            args: list[Arg] = [generation, "1" if alone else "0", self._store.settings.max_thread_queue, keep_ms, ""]
            match await self._store.run(JOIN, keys, [*args, *ended]):
                case [b"joined", *ahead]:
                    return [other.decode() for other in ahead]
                case [b"full"]:
                    most = self._store.settings.max_thread_queue
                    raise QueueFull(f"{most} generations of this thread have not ended yet")
                case [b"occupied", *others]:
                    standings = await self._standings([other.decode() for other in others])
                    if any(standing is not None and standing.counts for _, standing in standings):
                        raise ThreadBusy("another generation of this thread has not ended yet")
                    ended = [name for name, _ in standings]
                case reply:
                    raise StoreReplyError(f"join answered {reply[:1]!r}")

    async def keep_place(self, tenant: str, thread: str, generation: str, *, ttl_seconds: int) -> None:
        """Put a generation that has not ended back into its line, where its age puts it, if the store lost the line."""
        made_ms = round(created_at(generation) * 1000)
        args: list[Arg] = [generation, "0", 0, ttl_seconds * 1000 + _KEEP_MS, made_ms]
        await self._store.pipe(JOIN, self._keys.thread(tenant, thread), args)

    async def leave(self, tenant: str, thread: str, generation: str, *, ttl_seconds: int = 0) -> None:
        """It has ended: give up its place, and let the next one begin. May be repeated, by anyone."""
        await self._move_on(self._keys.thread(tenant, thread), [generation], ttl_seconds * 1000)

    async def advance(self, tenant: str, thread: str) -> None:
        """Let the next one of a line begin if it is its turn; take out what has ended. May be done at any time."""
        await self._move_on(self._keys.thread(tenant, thread), [], 0)

    async def advance_line(self, line: str) -> None:
        """The same for a line by its key, as a scan finds it."""
        await self._move_on(self._keys.thread_of_line(line), [], 0)

    async def _begin(self, generation: str, tenant: str, priority: Priority) -> bool:
        """Its turn has come: let it be claimed, and hint at it. False where it has ended, or was never accepted."""
        match await self._store.run(BEGIN, [self._keys.record(generation)], []):
            case [b"begun"]:
                # The queue may still have a hint that somebody drops only now; he advances the line behind that.
                await self._queue.add(Hint(generation, tenant, priority))
                return True
            case _:
                return False

    async def _move_on(self, keys: Sequence[str], ended: list[str], ttl_ms: int) -> None:
        while True:
            reply = await self._store.run(LEAVE, keys, [_LOOK, ttl_ms, *ended])
            standings = await self._standings([generation.decode() for generation in reply])
            ended = [name for name, standing in standings if standing is None or standing.state.is_terminal]
            ttl_ms = max((standing.ttl_ms for _, standing in standings if standing is not None), default=0)
            begun, waiting = _in_turn(standings)
            for name, standing in begun:
                if not standing.held:  # whoever let it begin may have died before he hinted at it
                    await self._queue.add(Hint(name, standing.tenant, standing.priority))
            if waiting and not begun:
                name, standing = waiting[0]
                if not await self._begin(name, standing.tenant, standing.priority):
                    continue  # it ended in between: look again
            if not ended:
                return

    async def _standings(self, generations: Sequence[str]) -> list[tuple[str, Standing | None]]:
        asked = (self._store.run(STANDING, [self._keys.record(name)], []) for name in generations)
        return [(name, _standing(reply)) for name, reply in zip(generations, await asyncio.gather(*asked), strict=True)]


def _in_turn(
    standings: Sequence[tuple[str, Standing | None]],
) -> tuple[list[tuple[str, Standing]], list[tuple[str, Standing]]]:
    """Those that have begun, and those that wait for their turn, of what counts."""
    live = [(name, standing) for name, standing in standings if standing is not None and standing.counts]
    begun = [(name, standing) for name, standing in live if not standing.waits]
    return begun, [(name, standing) for name, standing in live if standing.waits and standing.accepted]


def _standing(reply: list[bytes]) -> Standing | None:
    if not reply:
        return None
    state, waits, accepted, held, age_ms, tenant, priority, ttl_ms = reply
    return Standing(
        state=State(state.decode()),
        waits=bool(waits),
        accepted=bool(accepted),
        held=bool(held),
        age_ms=int(age_ms),
        tenant=tenant.decode(),
        priority=Priority(priority.decode()),
        ttl_ms=int(ttl_ms),
    )
