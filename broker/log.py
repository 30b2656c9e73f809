"""The log of a generation: append events, read them back, seal it once it has ended.

The rules live in `scripts/append.lua`, `scripts/read.lua` and `scripts/seal.lua`, each one atomic step in the slot of
the generation, and, for what is appended most, in `scripts/extend.lua` (`broker.lane`). Two other scripts write
entries: `cancel.lua` an end for which nobody holds a lease, `rebuild.lua` what the store has lost. This module gives
them types: what the store answers is a value, never a string to compare.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from types import MappingProxyType
from typing import Final

from broker.errors import DataLost, GenerationDeleted, GenerationExpired, GenerationUnknown
from broker.events import Entry
from broker.generation import State
from broker.joined import Row, behind, join, split
from broker.lane import Lane
from broker.position import BEGINNING, Position
from broker.scripts import APPEND, APPEND_TERMINAL, EXTEND, READ, SEAL
from broker.snapshot import Fold
from broker.store import Store
from broker.wire import Answered, Arg, Reply, StoreReplyError

#: One append carries at most this much: a larger one would keep the server from everybody else.
MAX_APPEND_EVENTS: Final = 500
MAX_APPEND_BYTES: Final = 256 * 1024

#: Entries a page: the first one small, so that the first frame leaves soon, and because nothing is known of its entries
#: yet: bounding it in bytes costs Redis five times as much an entry. Later ones large.
FIRST_PAGE: Final = 32
NEXT_PAGE: Final = 2000

#: A delta has a few bytes. Pages of such are bounded by the number of entries.
_SMALL_BYTES: Final = 64

#: Payload a page: what a slow reader holds of a log at a time, however large its events are.
PAGE_BYTES: Final = 64 * 1024

#: Sealing is worth its call from so many entries on that it saves, and is left where it would keep the server from
#: everybody else: a log of more text than this stays as it was written.
SEAL_ENTRIES: Final = 32
SEAL_BYTES: Final = 1024 * 1024
#: The same of one that stays in more rows than this, for much of it is no delta: it would save little, too.
SEAL_ROWS: Final = 2000

#: So many entries are joined in a millisecond or two; more would keep everybody else in this process waiting.
_AT_ONCE: Final = 4000


@dataclass(frozen=True, slots=True)
class Appended:
    """The log ends with the last event given. `stored` of them were new; `cancel` tells of a stored cancel."""

    head: str
    stored: int
    cancel: str


@dataclass(frozen=True, slots=True)
class Gone:
    """There is no record: the store lost it, or it expired."""


@dataclass(frozen=True, slots=True)
class Fenced:
    """A later claim, or a delete, holds `epoch`; nothing was stored."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Closed:
    """The log ends in a terminal event at `last`, not one of ours; nothing was stored."""

    last: str


@dataclass(frozen=True, slots=True)
class Cancelled:
    """A cancel is stored, for `reason`: of terminal events only `cancelled` is accepted. Nothing of this batch was
    stored."""

    last: str
    reason: str


@dataclass(frozen=True, slots=True)
class Behind:
    """The log ends at `last`, before the batch: it lost events. If the writer knows that very position it
    sends what follows it; if not, it must treat this as `Diverged`."""

    last: str


@dataclass(frozen=True, slots=True)
class Diverged:
    """The log ends at `last`, which is not this writer's: claim anew, say `reset`, write anew."""

    last: str


AppendAnswer = Appended | Gone | Fenced | Closed | Cancelled | Behind | Diverged


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What the log holds after a cursor, and what the record said in the same instant.

    `held` is False when the log does not hold the cursor (then there are no rows). `last` is the last entry of the
    log; the page is complete when its own last row, or the cursor of an empty one, equals it.
    """

    held: bool
    tenant: str
    state: State
    attempt: int
    last: str
    cancel: str
    lease_live: bool
    counts_viewers: bool  # it is cancelled when nobody reads: viewers must say that they are there
    rows: list[Row]  # as stored: a joined one stands for many events
    size: int  # bytes of their payloads

    @property
    def entries(self) -> list[Entry]:
        """Every event by itself, made anew at each call."""
        return split(self.rows)

    @property
    def is_small(self) -> bool:
        """Whether its rows are, so that those behind it may be, too."""
        return self.size <= _SMALL_BYTES * len(self.rows)

    def end(self, cursor: str) -> str:
        """Where who has read it is then; `cursor` where it is empty."""
        return self.rows[-1][0].decode() if self.rows else cursor

    def is_complete(self, cursor: str) -> bool:
        """Whether the log had nothing after this page."""
        return self.end(cursor) == self.last


def _bounded(rows: list[Row]) -> tuple[list[Row], int]:
    """What a page may hold of them, one row at least, and its payload in bytes."""
    size = sum([len(stored[1]) for _, stored in rows])
    if size > PAGE_BYTES and len(rows) > 1:
        sizes = list(accumulate([len(stored[1]) for _, stored in rows]))
        count = max(1, bisect_right(sizes, PAGE_BYTES))
        return rows[:count], sizes[count - 1]
    return rows, size


#: Nothing to note.
_NO_NOTES: Final[Mapping[str, str]] = MappingProxyType({})


class Log:
    """Append and read, over one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._keys = store.keys
        # The same few thousand generations are appended to again and again.
        self._names = lru_cache(maxsize=4096)(self._names_of)

    def _names_of(self, generation: str) -> tuple[list[str], str]:
        """Keys and channel of an append."""
        return self._keys.of(generation), self._keys.live(generation)

    async def append(
        self,
        generation: str,
        epoch: int,
        owner: str,
        prev: str,
        entries: Sequence[Entry],
        notes: Mapping[str, str] = _NO_NOTES,
    ) -> AppendAnswer:
        """Append `entries` behind `prev`, all or the part that is not stored yet, in one atomic step. `notes` are
        fields of the record that are stored exactly if new entries are.

        Atomic: fence, duplicates, entries, record and notification are one script. Idempotent: the same call may be
        repeated any number of times, and may carry more events behind the same ones. Ordering: the caller has at most
        one append of a generation in flight. Raises `StoreUnavailable` when the outcome is unknown: repeat the
        call. Raises `StoreReplyError` for a batch with a hole, or with events after a terminal one.
        """
        script = APPEND_TERMINAL if entries and entries[-1].is_terminal else APPEND
        keys, channel = self._names(generation)
        args: list[Arg] = [epoch, owner, prev, channel, len(notes)]
        for note in notes.items():
            args += note
        for entry in entries:
            args += entry
        reply = await self._store.pipe(script, keys, args)
        match reply:
            case [b"appended", head, stored, cancel]:
                return Appended(head.decode(), int(stored), cancel.decode())
            case [b"gone"]:
                return Gone()
            case [b"fenced", by]:
                return Fenced(int(by))
            case [b"closed", last]:
                return Closed(last.decode())
            case [b"cancelled", last, reason]:
                return Cancelled(last.decode(), reason.decode())
            case [b"behind", last]:
                return Behind(last.decode())
            case [b"diverged", last]:
                return Diverged(last.decode())
            case _:
                raise StoreReplyError(f"append answered {reply[:1]!r}")

    async def lane(self, generation: str, epoch: int, owner: str, answered: Answered) -> Lane | None:
        """The way by which the holder of a lease appends further deltas behind its own last entry, which is stored;
        `answered` gets the answers. None where there is none: everything goes through `append` then. Raises
        `StoreUnavailable`."""
        keys, channel = self._names(generation)
        wire = await self._store.wire_for(EXTEND, keys[0])
        return Lane(wire, keys[:2], channel, epoch=epoch, owner=owner, answered=answered)

    async def read(
        self, generation: str, cursor: str, count: int, *, tenant: str | None = None, small: bool = False
    ) -> Page:
        """A page of up to `count` rows (or `PAGE_BYTES`) after `cursor`, verified against the log in the same step,
        on the primary. `small`: the rows are thought to be small, so that they may be asked for without a bound in
        bytes, which costs Redis a tenth; should they not be, the page is bounded afterwards.

        With a `tenant`, another tenant's generation is an unknown one. Raises `GenerationUnknown`,
        `GenerationExpired`, `DataLost` (the log ends before the record says) and `StoreUnavailable`; an outage never
        looks like an empty log.
        """
        keys = [self._keys.record(generation), self._keys.log(generation)]
        reply = await self._read_small(keys, cursor, count) if small else None
        if reply is None:
            reply = await self._store.run(READ, keys, [cursor, count, PAGE_BYTES])
        match reply:
            case [b"unknown"]:
                raise GenerationUnknown(f"there is no generation {generation}")
            case [_, owner, *_] if tenant is not None and owner.decode() != tenant:
                raise GenerationUnknown(f"there is no generation {generation}")
            case [b"deleted", _]:
                raise GenerationDeleted(f"generation {generation} was deleted")
            case [b"expired", _]:
                raise GenerationExpired(f"the time of generation {generation} is over")
            case [b"lost", _]:
                raise DataLost(f"the log of {generation} is shorter than it was")
            case [verdict, tenant, state, attempt, last, cancel, live, grace, rows]:
                rows, size = _bounded(behind(rows, Position.of_entry_id(cursor).seq))
                return Page(
                    held=verdict == b"held",
                    tenant=tenant.decode(),
                    state=State(state.decode()),
                    attempt=int(attempt),
                    last=last.decode(),
                    cancel=cancel.decode(),
                    lease_live=live == b"1",
                    counts_viewers=grace != b"",
                    rows=rows,
                    size=size,
                )
            case _:
                raise StoreReplyError(f"read answered {reply[:1]!r}")

    async def _read_small(self, keys: list[str], cursor: str, count: int) -> Reply | None:
        """What `READ` answers, with rows read beside it, the cursor's own perhaps among them; None where that cannot be
        had just now."""
        from_start = cursor == BEGINNING
        found = await self._store.pipe_with(
            READ,
            keys,
            [cursor, 0, 0],
            *("XRANGE", keys[1], "-" if from_start else cursor, "+", "COUNT", count + (not from_start)),
        )
        if found is None:
            return None
        reply, rows = found
        if reply[0] != b"held":
            return reply
        return [*reply[:-1], rows]

    async def seal(self, generation: str, entries: Sequence[Entry]) -> bool:
        """Store a log that has ended, which is all of `entries`, in fewer rows: the same events at the same positions.
        True if it is stored so now.

        Atomic: there is never a moment without the log, and nothing is done where the log is not this one. Idempotent.
        It keeps its time to live. Left alone where it is not worth it, or too much to do at once. Raises
        `StoreUnavailable` when the outcome is unknown; the log is whole either way.
        """
        if len(entries) <= SEAL_ENTRIES or sum([len(entry.payload) for entry in entries]) > SEAL_BYTES:
            return False
        few = len(entries) <= _AT_ONCE
        rows = join(entries) if few else await asyncio.to_thread(join, entries)
        if len(rows) > SEAL_ROWS or len(entries) - len(rows) < SEAL_ENTRIES:
            return False
        args: list[Arg] = [entries[-1].position]
        for place, stored in rows:
            args += place, stored[0], stored[1], stored[3] if len(stored) > 2 else b""
        reply = await self._store.pipe(SEAL, [self._keys.record(generation), self._keys.log(generation)], args)
        match reply:
            case [b"sealed"]:
                return True
            case [b"joined", length]:
                return int(length) == len(rows)
            case [b"other", _]:
                return False
            case _:
                raise StoreReplyError(f"seal answered {reply[:1]!r}")

    async def pages(self, generation: str) -> AsyncIterator[Page]:
        """The whole log, page by page, each verified to continue the one before. Ends early, after a page that is
        not `held`, when the log changed underneath: the caller starts over."""
        cursor, count, small = BEGINNING, FIRST_PAGE, False
        while True:
            page = await self.read(generation, cursor, count, small=small)
            yield page
            if not page.held or page.is_complete(cursor):
                return
            cursor, count, small = page.end(cursor), NEXT_PAGE, page.is_small

    async def read_all(self, generation: str) -> list[Entry]:
        """Every event, from the first to the last that was there when the end was read."""
        while True:
            entries: list[Entry] = []
            async for page in self.pages(generation):
                entries += page.entries
            if page.held:
                return entries

    async def folded(self, generation: str) -> tuple[Fold, Page]:
        """The whole log folded, and the last page of it, whose state fits the fold."""
        while True:
            fold = Fold()
            async for page in self.pages(generation):
                for place, stored in page.rows:
                    fold.add(Entry(place.decode(), stored[0], stored[1]))
            if page.held:
                return fold, page
