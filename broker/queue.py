"""The queue: which generation a free worker should look at next. It holds hints, and decides nothing.

A hint names a generation and when to look. Whether it may run is decided by the claim script in the generation's own
slot, so the queue and the records need no transaction between them: a hint too many costs one look, a hint too few is
put back by whoever meets the generation. Nothing is taken out of the queue before the generation ended: a hint that
is taken stays in flight and comes back when its time is over.

Fair between tenants (start-time fair queueing, `scripts/enqueue.lua`), with two classes of priority.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from broker.generation import Priority
from broker.scripts import DROP, ENQUEUE, LATER, TAKE, WAITING
from broker.store import Store
from broker.totals import Total

#: While both classes wait, one turn in this many goes to batch.
_BATCH_EVERY: Final = 8

_CODES: Final = {Priority.INTERACTIVE: "i", Priority.BATCH: "b"}
_PRIORITIES: Final = {code: priority for priority, code in _CODES.items()}


@dataclass(frozen=True, slots=True)
class Hint:
    """A generation to look at. Whoever makes the hint of a generation makes the same one."""

    generation: str
    tenant: str
    priority: Priority

    def encode(self) -> str:
        return f"{_CODES[self.priority]}:{self.generation}:{self.tenant}"

    @classmethod
    def decode(cls, text: bytes) -> Hint:
        code, generation, tenant = text.decode().split(":", 2)
        return cls(generation, tenant, _PRIORITIES[code])


@dataclass(frozen=True, slots=True)
class Taken:
    """Hints to look at, now in flight, and the milliseconds until the next one in flight or delayed is due."""

    hints: list[Hint]
    next_due_ms: int | None


class Queue:
    """The hints of one deployment, over one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        keys = store.keys
        self._ready = {priority: keys.ready(priority.value) for priority in Priority}
        self._both = [self._ready[Priority.INTERACTIVE], self._ready[Priority.BATCH]]
        self._later, self._tags, self._clock, self._wake = keys.later(), keys.tags(), keys.clock(), keys.wake()
        self._totals = keys.totals()

    async def add(self, hint: Hint, *, weight: float = 1.0) -> bool:
        """Add a hint, and wake a sleeping worker; False if the queue has it already. Durable when it returns."""
        keys = [self._ready[hint.priority], self._later, self._tags, self._clock, self._wake]
        args = [hint.priority.value, hint.tenant, repr(weight), hint.encode()]
        return bool(await self._store.run(ENQUEUE, keys, args))

    async def take(self, most: int) -> Taken:
        """Take up to `most` hints into flight. One that is neither dropped nor delayed comes back after a lease."""
        keys = [*self._both, self._later, self._tags, self._clock, self._wake]
        due, *hints = await self._store.run(TAKE, keys, [most, self._store.settings.lease_ms, _BATCH_EVERY])
        return Taken([Hint.decode(hint) for hint in hints], None if due == b"-1" else int(due))

    async def wait(self, seconds: float) -> bool:
        """Sleep until a hint is added, at most `seconds`. A wake-up that gets lost costs no more than that."""
        return await self._store.pop(self._wake, seconds)

    async def look_again(self, hints: Sequence[Hint], delay_ms: int) -> None:
        """Look at these again in `delay_ms`: their lease was renewed, they are busy, or a retry waits. Below 1000 a
        sleeping worker is woken for each."""
        keys = [self._later, *self._both, self._wake]
        await self._store.pipe(LATER, keys, [delay_ms, *(hint.encode() for hint in hints)])

    async def drop(self, hints: Sequence[Hint], *, total: Total | None = None) -> None:
        """Forget hints whose generations have ended, and count that as `total`, once for all of them."""
        keys = [self._later, *self._both, self._totals]
        await self._store.pipe(DROP, keys, [total.value if total else "", *(hint.encode() for hint in hints)])

    async def waiting(self) -> int:
        """How many hints wait for a worker."""
        return int(await self._store.run(WAITING, self._both, []))
