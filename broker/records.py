"""The records of generations: submit, look up, list, cancel, delete.

A submit touches three slots (tenant, generation, queue) and so cannot be one step; it is a chain of steps that each
may be repeated. Whoever repeats the chain, the client with its Idempotency-Key or nobody, either finishes it or
leaves something that expires by itself. Accepted means: the last step is done.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final

import structlog

from broker.backoff import until_available
from broker.confirm import Confirmer, NotReplicated
from broker.errors import (
    GenerationDeleted,
    GenerationExpired,
    GenerationUnknown,
    KeyReused,
    QueueFull,
    StoreUnavailable,
    ThreadBusy,
)
from broker.events import CancelReason, FailureCode
from broker.generation import Record, Request, State, ThreadPolicy, created_at, new_id
from broker.queue import Hint, Queue
from broker.scripts import CANCEL, CONFIRM, CREATE, DELETE, RECORD, RESERVE, UNRESERVE, WITHDRAW, Script
from broker.store import Store, jump
from broker.threads import Threads
from broker.webhooks import Webhooks
from broker.wire import Arg, Reply, StoreReplyError

_log = structlog.get_logger("legato.broker")

#: How long a worker that was asked to cancel is waited for before somebody else writes the end.
CANCEL_GRACE_MS: Final = 2000

#: Index entries fetched at once while listing, and how many are looked at for one answer at most.
_LIST_STEP: Final = 50
_LIST_MOST: Final = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """An accepted generation. `replayed`: the Idempotency-Key had it already. `interrupted`: those of its thread whose
    workers were told to end for it."""

    id: str
    created_ms: int
    state: State
    replayed: bool
    interrupted: list[Record]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Records, newest first, and the cursor of the next page or None."""

    records: list[Record]
    next_cursor: str | None


class CancelOutcome(Enum):
    """What a cancel found."""

    REQUESTED = "requested"  # a worker has been told; `cancelled` will be the end
    CANCELLED = "cancelled"  # ended here and now
    ENDED = "ended"  # it had ended before


class Records:
    """Records over one store."""

    def __init__(self, store: Store, queue: Queue) -> None:
        self.threads = Threads(store, queue)
        self.webhooks = Webhooks(store)
        self._store = store
        self._queue = queue
        self._confirmer = Confirmer(store)
        self._tasks: set[asyncio.Task[None]] = set()
        self._keys = store.keys
        self._settings = store.settings

    async def submit(
        self, tenant: str, request: Request, *, key: str | None = None, fingerprint: str = ""
    ) -> Submitted:
        """Store a job. When this returns it is durable and will end; when it raises, the same call may be repeated.

        `key` is the client's Idempotency-Key and `fingerprint` stands for its body. Raises `KeyReused`,
        `GenerationExpired` (the key's generation is no more), `QueueFull` and `ThreadBusy` (nothing is stored then),
        `StoreUnavailable`: with a key the job may be stored, and the same submit finds it; without one nobody could, so
        it is taken back.
        """
        request = replace(request, webhooks=self.webhooks.told_of(request))
        full = await self._queue.waiting() >= self._settings.max_queued
        generation = new_id()
        try:
            if key is None and not full:  # nobody else has this id: the two steps need not wait for one another
                reserving = self._reserve(tenant, generation, key, fingerprint, full=full)
                _, made = await asyncio.gather(reserving, self._create(tenant, request, generation, replayed=False))
            else:
                named = await self._reserve(tenant, generation, key, fingerprint, full=full)
                replayed, generation = named != generation, named
                made = await self._create(tenant, request, generation, replayed=replayed)
            return await self._place(tenant, request, made, key)
        except StoreUnavailable:
            if key is None:
                self._background(self._take_back(generation), name=f"take back {generation}")
            raise

    async def _reserve(self, tenant: str, generation: str, key: str | None, fingerprint: str, *, full: bool) -> str:
        """List the id and bind the key to it; the id that the key stands for, which may be an earlier one."""
        keep_ms = round(self._settings.idempotency_seconds * 1000)
        naming: list[Arg] = [generation, fingerprint if key else "", keep_ms, "1" if full else "0"]
        match await self._confirmer.run(RESERVE, self._reserved(tenant, key), naming):
            case [b"known", seen, known]:
                if seen.decode() != fingerprint:
                    raise KeyReused("this Idempotency-Key was used with another body")
                return str(known.decode())
            case [b"reserved"]:
                return generation
            case [b"refused"]:
                raise QueueFull(f"{self._settings.max_queued} jobs wait already")
            case reply:
                raise StoreReplyError(f"reserve answered {reply[:1]!r}")

    def _reserved(self, tenant: str, key: str | None) -> list[str]:
        return [self._keys.idempotency(tenant, key or ""), self._keys.index(tenant)]

    async def _create(self, tenant: str, request: Request, generation: str, *, replayed: bool) -> Submitted:
        """Store record and request, or find them. Raises `GenerationExpired` where there is only the record."""
        settings = self._settings
        fields = request.record_fields(tenant, tombstone_seconds=settings.tombstone_seconds)
        if request.thread is not None:
            fields["waits"] = "1"
        unconfirmed_ms = round(settings.unconfirmed_seconds * 1000)
        args: list[Arg] = [request.encode(), unconfirmed_ms, "1" if replayed else "0"]
        for name, value in fields.items():
            args += [name, value]
        state = State.QUEUED
        match await self._confirmer.run(CREATE, self._keys.of(generation), args):
            case [b"created", created]:
                pass
            case [b"exists", found, created, has_log]:
                state = State(found.decode())
                if not has_log:
                    raise GenerationExpired(f"generation {generation}, which this key stands for, is gone")
            case reply:
                raise StoreReplyError(f"create answered {reply[:1]!r}")
        return Submitted(id=generation, created_ms=int(created), state=state, replayed=replayed, interrupted=[])

    async def _place(self, tenant: str, request: Request, made: Submitted, key: str | None) -> Submitted:
        """The hint, or the place in a line, of what is stored and has not ended."""
        if made.state.is_terminal:
            return made
        generation = made.id
        if request.thread is None:
            await self._queue.add(Hint(generation, tenant, request.priority))
            await self._confirm(generation)
            return made
        try:
            return replace(made, interrupted=await self._line_up(tenant, request.thread, generation, request))
        except (ThreadBusy, QueueFull):
            withdrawn = await self._store.run(WITHDRAW, self._keys.of(generation), [])
            if withdrawn == [b"withdrawn"]:  # else the same POST, sent twice, has had it accepted meanwhile
                await self._store.run(UNRESERVE, self._reserved(tenant, key), [generation])
                raise
        return made

    async def _line_up(self, tenant: str, thread: str, generation: str, request: Request) -> list[Record]:
        """Take a place in the thread's line, under the request's policy; the record exists, and waits. Each step may be
        repeated. Those of whom a worker must write the end."""
        alone = request.thread_policy is ThreadPolicy.REJECT
        ahead = await self.threads.join(tenant, thread, generation, alone=alone, ttl_seconds=request.ttl_seconds)
        interrupted: list[Record] = []
        if request.thread_policy is ThreadPolicy.INTERRUPT:
            for other in reversed(ahead):  # those who wait first, or one would begin in between
                record = await self.find(other)
                if record is None or record.state.is_terminal:
                    continue
                if await self.cancel(record, CancelReason.INTERRUPTED) is CancelOutcome.REQUESTED:
                    interrupted.append(record)
        # Here the line is what the queue is to others: from now on it will have its turn, and nothing of it expires.
        if await self._confirmer.run(CONFIRM, self._keys.of(generation), []) == [b"gone"]:
            raise StoreUnavailable("the same submit was refused at the same time; send it again")
        await self.threads.advance(tenant, thread)
        return interrupted

    async def _confirm(self, generation: str) -> None:
        """The queue has the hint, so the job will run: from here on nothing refuses it. What cannot be said to its
        record now is said later, or by the claim."""

        async def confirm() -> None:
            await self._store.run(CONFIRM, self._keys.of(generation), [])

        try:
            await confirm()
        except StoreUnavailable:
            self._background(until_available(confirm), name=f"confirm {generation}")

    async def _take_back(self, generation: str) -> None:
        """Erase what was stored of a job all the same, though its submit was refused and nobody knows its id: it would
        run for nobody. Once more later: what was sent before may arrive after that."""

        async def erase() -> None:
            record = await self.find(generation)
            if record is not None and record.state is not State.DELETED:
                await self.delete(record)

        for pause in (0.0, self._settings.store_timeout_seconds):
            await asyncio.sleep(pause)
            await until_available(erase)

    def _background(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def get(self, tenant: str, generation: str) -> Record:
        """The record. Raises `GenerationUnknown` (another tenant's too) and `GenerationExpired` (deleted)."""
        record = await self.find(generation)
        if record is None or record.tenant != tenant:
            raise GenerationUnknown(f"there is no generation {generation}")
        if record.state is State.DELETED:
            raise GenerationDeleted(f"generation {generation} was deleted")
        return record

    async def asked(self, generation: str) -> Request:
        """What was asked for. Raises `GenerationExpired`: it lives as long as the log. Whose it is, `get` says."""
        found = await self._store.get(self._keys.request(generation))
        if found is None:
            raise GenerationExpired(f"the time of generation {generation} is over")
        return Request.decode(found)

    async def newest(
        self,
        tenant: str,
        *,
        limit: int,
        cursor: str = "",
        state: State | None = None,
        thread: str | None = None,
        failure: FailureCode | None = None,
    ) -> Listing:
        """Records of a tenant, newest first, from below `cursor`. Forgets index entries whose record is gone.

        Looks at a bounded number of entries: a page of a rare state may hold fewer than `limit` and still have a
        `next_cursor`.
        """
        index = self._keys.index(tenant)
        found: list[Record] = []
        looked, below = 0, cursor
        while looked < _LIST_MOST:
            ids = await self._store.range_descending(index, below, _LIST_STEP)
            looked += len(ids)
            records = await asyncio.gather(*(self.find(generation) for generation in ids))
            stale = self.forgettable(ids, records)
            if stale:
                await self._store.remove(index, stale)
            for generation, record in zip(ids, records, strict=True):
                below = generation
                if record is None or record.state is State.DELETED:
                    continue
                if _matches(record, state, thread, failure):
                    found.append(record)
                    if len(found) == limit:
                        return Listing(records=found, next_cursor=below)
            if len(ids) < _LIST_STEP:
                return Listing(records=found, next_cursor=None)
        return Listing(records=found, next_cursor=below)

    async def cancel(self, record: Record, reason: CancelReason) -> CancelOutcome:
        """Cancel, durably: after this returns, `cancelled` is the only end the generation can have, unless it had one.

        With no live lease it ends here. With one, its worker learns of the wish with its next answer from the store;
        when that worker writes no end for `CANCEL_GRACE_MS`, this same call, repeated by anyone, does.
        """
        args: list[Arg] = [reason.value, CANCEL_GRACE_MS, jump(), self._keys.live(record.id)]
        match await self._confirmed_if_possible(CANCEL, record, args):
            case [b"requested"]:
                return CancelOutcome.REQUESTED
            case [b"cancelled", _, upstream]:
                hint = Hint(record.id, record.tenant, record.priority)
                # A provider may still be generating, or somebody is to be told: a worker looks once more.
                if upstream or record.webhooks:
                    await self._queue.look_again([hint], 0)
                else:
                    await self._queue.drop([hint])
                await self._leave_line(record)
                return CancelOutcome.CANCELLED
            case [b"ended", _]:
                await self._leave_line(record)
                return CancelOutcome.ENDED
            case [b"gone"]:
                raise GenerationExpired(f"generation {record.id} is gone")
            case reply:
                raise StoreReplyError(f"cancel answered {reply[:1]!r}")

    async def delete(self, record: Record) -> None:
        """Erase prompt and log. A worker that still writes is fenced; the id answers 410 from here on."""
        args: list[Arg] = [round(self._settings.tombstone_seconds * 1000), self._keys.live(record.id)]
        reply = await self._confirmed_if_possible(DELETE, record, args)
        await self._store.remove(self._keys.index(record.tenant), [record.id])
        await self._leave_line(record)
        hint = Hint(record.id, record.tenant, record.priority)
        match reply:
            case [b"deleted", upstream, left_ms] if upstream:  # a provider may still be generating, and its holder dead
                await self._queue.look_again([hint], int(left_ms))
            case _:
                await self._queue.drop([hint])

    async def _leave_line(self, record: Record) -> None:
        if record.thread is not None:
            await self.threads.leave(record.tenant, record.thread, record.id, ttl_seconds=record.ttl_ms // 1000)

    async def adopt_orphan(self, generation: str, *, sweeping: bool = False) -> bool:
        """Put back the hint of a generation that was accepted, has not ended and is held by nobody, and its place in
        its thread; True if the hint was missing. Of one that has ended, see that those are told who are to be. A sweep
        moves the lines on when it has seen all records."""
        record = await self.find(generation)
        if record is not None and record.state.is_terminal:
            await self.webhooks.schedule(record)
        if record is None or record.state.is_terminal or not record.confirmed:
            return False
        if record.thread is not None:
            ttl_seconds = record.ttl_ms // 1000
            await self.threads.keep_place(record.tenant, record.thread, record.id, ttl_seconds=ttl_seconds)
            if record.waits:
                if not sweeping:
                    await self.threads.advance(record.tenant, record.thread)
                return False
        if record.lease_live:
            return False
        return await self._queue.add(Hint(record.id, record.tenant, record.priority))

    def forgettable(self, ids: Sequence[str], records: Sequence[Record | None]) -> list[str]:
        """Index entries without a record, but for those that may still be in the middle of their submit."""
        horizon = time.time() - self._settings.unconfirmed_seconds
        return [
            generation
            for generation, record in zip(ids, records, strict=True)
            if record is None and created_at(generation) < horizon
        ]

    async def find(self, generation: str) -> Record | None:
        """The record, of whatever tenant and state; None where there is none."""
        now, left_ms, *flat = await self._store.run(RECORD, self._keys.of(generation)[:2], [])
        if not flat:
            return None
        raw = {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}
        return Record.decode(generation, raw, now_ms=int(now), left_ms=int(left_ms))

    async def _confirmed_if_possible(self, script: Script, record: Record, args: Sequence[Arg]) -> Reply:
        """A write that stands even if its confirmation falls short: it is done, and said so in the log."""
        try:
            return await self._confirmer.run(script, self._keys.of(record.id), args)
        except NotReplicated as short:
            _log.warning("not_replicated", generation=record.id, what=script.name, detail=str(short))
            return short.reply


def _matches(record: Record, state: State | None, thread: str | None, failure: FailureCode | None) -> bool:
    return (
        (state is None or record.shown_state is state)
        and (thread is None or record.thread == thread)
        and (failure is None or record.failure is failure)
    )
