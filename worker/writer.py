"""Writes one generation's events to its log, and keeps the log whole while it holds the lease.

*Natural batching*: at most one append is in flight; whatever is added meanwhile is the next one. An idle system so adds
no delay, and a loaded one batches by itself: text that has to wait is joined to the text that waits already, so a fast
provider makes longer deltas and not more of them. An event's position and bytes never change after they were first
sent: an append whose outcome is unknown is repeated with the same events, and maybe more behind them.

*Two roads*: `run()` is a task that appends by `Log.append` and knows what to do about every answer. The next delta of
a running log, which is most of what is ever appended, goes by a plain call over a `Lane` while that task sleeps, until
there is anything else to do or to be told; an append that may be stored already is then repeated by the task.

*The whole log*, inherited entries too, stays in memory until the end: when the store comes back with a shorter log,
any suffix of it can be put back; when somebody else's events stand in the store, everything shown so far is
written anew behind a `reset`; when the store knows nothing of the generation any more, record and log are rebuilt, but
only by a writer that can be sure it missed no cancel, delete or end: it was never told of one, it did not stand still
since the store's last good answer, and that answer is not old.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from broker import errors
from broker import log as answers
from broker.backoff import Backoff, until_available
from broker.errors import GenerationExpired, GenerationUnknown, StoreUnavailable
from broker.events import (
    DELTA_FIELDS,
    Cancelled,
    CancelReason,
    Completed,
    Entry,
    Event,
    Reset,
    decode,
)
from broker.lane import STORED, Lane
from broker.lease import Ended, Lease, Leases, Missing, new_owner
from broker.log import Log
from broker.position import Position
from worker.backlog import Backlog
from worker.pulse import Pulse
from worker.turns import ROLLED_BACK

#: Fields of the record that a run notes: where to read on at the provider, calls that the client runs, how it went.
UPSTREAM: Final = "upstream"
PENDING: Final = "pending"
TIMINGS: Final = "timings"


@dataclass(slots=True)
class _Note:
    """A field of the record: what it shall say once the events up to `seq` are stored."""

    value: str
    seq: int
    stored: bool = False


class Writer:
    """The one writer of a generation, for as long as `lease` is held.

    `run()` must be running for anything to be stored. It returns once a terminal event is stored, and raises
    `LeaseLost` when somebody else has the generation.
    """

    def __init__(
        self,
        lease: Lease,
        inherited: list[Entry],
        *,
        log: Log,
        leases: Leases,
        pulse: Pulse,
        heal_seconds: float,
        on_cancel: Callable[[], None],
    ) -> None:
        self.lease = lease
        self.cancel_reason: CancelReason | None = None
        self.answered_at = pulse.now()  # the store's last good answer
        self._pulse = pulse
        self._heal_seconds = heal_seconds
        self._log = log
        self._leases = leases
        self._on_cancel = on_cancel
        self._backlog = Backlog(inherited, lease.epoch)
        self._lane: Lane | None = None
        self._flying = False  # an append is under way over the lane, or about to be
        self._loop = asyncio.get_running_loop()
        self._notes: dict[str, _Note] = {}
        self._noted = False  # some of them may not be stored
        self._lost: errors.LeaseLost | None = None
        self._replacing = False  # a new claim of ours is under way
        self._asks = 0  # how often the store was to be asked, even if there is nothing to append
        self._answered = 0  # how many of these are answered
        self._healed = 0  # entries put back
        self._ended = False  # the store has had the terminal event
        self._added = asyncio.Event()
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def entries(self) -> list[Entry]:
        """The whole log as this writer knows it, stored or not."""
        return self._backlog.entries

    @property
    def pieces(self) -> int:
        """How many pieces of text it was given, about as providers give them."""
        return self._backlog.pieces

    @property
    def is_full(self) -> bool:
        """Whether the provider may not be read on: too much waits to be stored."""
        return self._backlog.is_full

    @property
    def memory_bytes(self) -> int:
        """About what this writer's log and request take in memory."""
        return len(self.lease.request.encode()) + self._backlog.memory_bytes

    def add(self, event: Event) -> None:
        """Have the event stored soon."""
        self._backlog.add(event)
        self._wake()

    def add_text(self, text: str) -> None:
        """`add` of a plain delta that may be joined to those that wait with it: most of what is ever added."""
        self._backlog.add_text(text)
        if not self._flying:
            self._wake()

    def _wake(self) -> None:
        if self._lane is None:
            self._added.set()
        elif not self._flying:
            self._flying = True
            self._loop.call_soon(self._fly)

    def note(self, field: str, value: str) -> None:
        """Have a field of the record say `value` as soon as everything added so far is stored: in the same step as
        the last of it, or with the next event. A later note on the field replaces one that is not stored yet."""
        self._notes[field] = _Note(value, seq=len(self.entries))
        self._noted = True

    async def room(self) -> None:
        """Wait until the provider may be read on."""
        while self._backlog.is_full:
            await self._progress()

    async def flushed(self) -> None:
        """Wait until everything added so far is stored."""
        while self._backlog.waits:
            await self._progress()

    async def _progress(self) -> None:
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter

    def cancel(self, reason: str) -> None:
        """A cancel is stored in the record: tell the run, once."""
        if reason and self.cancel_reason is None:
            self.cancel_reason = CancelReason(reason)
            self._on_cancel()

    def lose(self, why: errors.LeaseLost) -> None:
        """The lease is known to be lost: `run()` raises `why`. No news while it is being replaced."""
        if not self._replacing:
            self._lost = why
            self._added.set()

    def ask(self) -> None:
        """Have the store asked what the log holds: something said that it may not be what it was."""
        self._asks += 1
        self._added.set()

    async def verify(self) -> int:
        """After the end: ask whether the log is still whole, and put back what is missing; returns how many entries.
        Raises `LeaseLost` when the generation is somebody else's now, or erased."""
        before = self._healed
        self._asks += 1
        await self.run()
        return self._healed - before

    async def seal(self) -> bool:
        """After the end: have the log stored in fewer entries. See `Log.seal`."""
        return await self._log.seal(self.lease.generation, self._backlog.entries)

    async def run(self) -> None:
        """Append what is added, until a terminal event is stored."""
        backoff = Backoff(first=0.05, most=1.0)
        try:
            while True:
                while self._flying or not (self._backlog.waits or self._answered != self._asks):
                    if self._lost is not None:
                        raise self._lost
                    if not self._flying and self._backlog.has_ended:
                        return
                    self._added.clear()
                    await self._added.wait()
                if self._lost is not None:
                    raise self._lost
                self._lane = None
                try:
                    await self._append()
                    backoff.reset()
                except StoreUnavailable:
                    await asyncio.sleep(backoff.next())
        finally:
            self._lane = None

    def _fly(self) -> None:
        """Send the next delta over the lane. Where there is anything else to do, the task does it."""
        entries, stored, lane = self._backlog.entries, self._backlog.stored, self._lane
        if lane is None or self._noted or self._answered != self._asks:
            self._land()
        elif len(entries) == stored:
            self._flying = False
        elif entries[stored].field not in DELTA_FIELDS or not lane.extend(stored, entries[stored]):
            self._land()

    def _flown(self, answer: object) -> None:
        """An append over the lane is answered."""
        if answer != STORED:
            self._land()
            return
        self.answered_at = self._pulse.now()
        self._advance(self._backlog.stored + 1)
        self._fly()

    def _land(self) -> None:
        """Leave the lane; the task goes on from here, and may repeat what was sent last."""
        self._lane, self._flying = None, False
        self._added.set()

    async def _append(self) -> None:
        backlog, lease, asks = self._backlog, self.lease, self._asks
        batch = backlog.batch()
        head = backlog.stored + len(batch)
        sent: list[tuple[str, _Note]] = []
        if self._notes and batch:
            sent = [item for item in self._notes.items() if not item[1].stored and item[1].seq <= head]
        notes = {field: note.value for field, note in sent}
        answer = await self._log.append(lease.generation, lease.epoch, lease.owner, backlog.prev, batch, notes)
        match answer:
            case answers.Appended(cancel=reason):
                self._answered = asks
                for _, note in sent:
                    note.stored = True
                self.answered_at = self._pulse.now()
                self._advance(head)
                self._ended = self._ended or backlog.has_ended
                self._noted = any(not note.stored for note in self._notes.values())
                self.cancel(reason)
                await self._take_off()
            case answers.Cancelled(reason=reason):
                await self._end_cancelled(CancelReason(reason))
                self.cancel(reason)
            case answers.Behind(last=last) if backlog.knows(last):
                self._went_back_to(Position.of_entry_id(last).seq)
            case answers.Behind() | answers.Diverged():
                await self._write_anew()
            case answers.Fenced():
                raise errors.Fenced("a later claim, or a delete, has taken the generation")
            case answers.Closed():
                raise errors.Closed("the log has its end already")
            case answers.Gone():
                await self._rebuild()

    async def _take_off(self) -> None:
        """Have the next deltas go over a lane, where the log ends with something of this lease."""
        if self._backlog.is_mine and not (self._ended or self._noted or self.cancel_reason):
            lease = self.lease
            self._lane = await self._log.lane(lease.generation, lease.epoch, lease.owner, self._flown)
            self._flying = True
            self._fly()

    async def _rebuild(self) -> None:
        if (
            (self.cancel_reason is not None and not self._ended)
            or self._pulse.stood_still_since(self.answered_at)
            or self._pulse.now() - self.answered_at > self._heal_seconds
        ):
            raise errors.RecordGone("the store has no record of the generation, and we may have missed its end")
        self._went_back_to(0)
        first = [entry for entry in self._backlog.batch() if not entry.is_terminal]
        for note in self._notes.values():
            note.stored = False  # the record that had it is gone
        self._noted = bool(self._notes)
        if await self._leases.rebuild(self.lease, first):
            self._advance(len(first))

    def _went_back_to(self, stored: int) -> None:
        """The store holds fewer entries than it did."""
        self._healed += self._backlog.stored - stored
        self._advance(stored)

    def _advance(self, stored: int) -> None:
        self._backlog.advance(stored)
        if self._waiters:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def _end_cancelled(self, reason: CancelReason) -> None:
        """The terminal event was refused; `cancelled` takes its place, under a new epoch: an earlier try of the refused
        one, whose answer was lost, may have been stored, shown and then forgotten under this very position."""
        await self._claim_anew()
        refused = decode(self._backlog.take_back())
        usage = refused.usage if isinstance(refused, Completed) else None
        self.add(Cancelled(reason=reason, usage=usage))

    async def _write_anew(self) -> None:
        """The store was rolled back and somebody else wrote there: claim above everything, `reset`, and write what
        was shown, again. What is added meanwhile is written too."""
        await self._claim_anew()
        try:
            found = await until_available(lambda: self._log.read_all(self.lease.generation))
        except GenerationUnknown as exc:
            raise errors.RecordGone("the store has no record of the generation") from exc
        except GenerationExpired as exc:
            raise errors.Fenced("the generation is erased") from exc
        if found and found[-1].is_terminal:
            raise errors.Closed("the log has its end already")
        mine = self.entries
        since = max((at + 1 for at, entry in enumerate(mine) if entry.field == b"reset"), default=0)
        self._backlog.replace(found)
        self.add(Reset(attempt=self.lease.attempt, reason=ROLLED_BACK))
        for entry in mine[since:]:
            self.add(decode(entry))
        self._notes.pop(UPSTREAM, None)  # it names a position that is no more
        for note in self._notes.values():
            note.seq = len(self.entries)
        self._noted = bool(self._notes)

    async def _claim_anew(self) -> None:
        """Claim the generation above our own lease. Repeated under one owner until it is answered: a claim of ours
        whose answer was lost must not shut us out. Until then no renewal of the old lease tells anything."""
        held, owner = self.lease, new_owner()
        self._replacing = True
        try:
            answer = await until_available(lambda: self._leases.claim(held.generation, owner=owner, replacing=held))
        finally:
            self._replacing = False
        match answer:
            case Lease():
                self.lease = answer
                self._backlog.epoch = answer.epoch
                self.cancel(answer.cancel)
            case Ended():
                raise errors.Closed("the log has its end already")
            case Missing():
                raise errors.RecordGone("the store has no record of the generation")
            case _:
                raise errors.Fenced("somebody else has claimed the generation")
