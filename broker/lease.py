"""Leases: the right to write one generation. Kept in the generation's own record and nowhere else.

A lease is claimed, renewed and given back here; that it is respected is the append script's doing, which compares
epoch and owner in the same step as it writes. A lapsed lease permits a take-over; it does not by itself refuse the
holder's appends.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from broker.events import Entry
from broker.generation import Request, State
from broker.presence import DEAD_MS
from broker.scripts import CLAIM, PAUSE, REBUILD, RELEASE, RENEW
from broker.store import Store, jump
from broker.wire import Arg, StoreReplyError


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A held lease. `epoch` fences; `attempt` counts tries; `cancel` is the reason of a stored cancel or ''."""

    generation: str
    epoch: int
    owner: str
    attempt: int
    tenant: str
    request: Request
    cancel: str
    created_ms: int  # of the store's clock, like the next two
    started_ms: int  # first claim
    claimed_ms: int  # this claim
    head: str  # position of the log's last entry then
    upstream: str = ""  # JSON that the last holder noted: where to read on at the provider
    overdue: bool = False  # the client's time for the results of its tools is over
    owed: Mapping[str, str | None] = field(default_factory=dict)  # calls that the client runs: id, JSON of the result

    @property
    def queued_ms(self) -> int:
        """From submit to the first claim."""
        return self.started_ms - self.created_ms

    @property
    def running_ms(self) -> int:
        """From the first claim to this one."""
        return self.claimed_ms - self.started_ms


@dataclass(frozen=True, slots=True)
class Busy:
    """Somebody holds it, or may; look again in `wait_ms`."""

    wait_ms: int


@dataclass(frozen=True, slots=True)
class Ended:
    """It has its terminal event, or was deleted. `upstream` as in `Lease`, and the name of its thread; a claim tells
    them."""

    state: State
    upstream: str = ""
    thread: str = ""


@dataclass(frozen=True, slots=True)
class Waits:
    """Its turn in its thread has not come."""

    thread: str


@dataclass(frozen=True, slots=True)
class Missing:
    """The store has no record of it."""


@dataclass(frozen=True, slots=True)
class Renewed:
    """The lease is ours for another term; `cancel` is the reason of a stored cancel or ''."""

    cancel: str


@dataclass(frozen=True, slots=True)
class Lost:
    """A later claim or a delete took it."""


class Paused(Enum):
    """What giving a lease back to wait for the client's tools came to."""

    WAITING = "waiting"  # results are owed
    READY = "ready"  # all came in the meantime: it is queued, and may be claimed at once
    LOST = "lost"  # it was not ours any more


ClaimAnswer = Lease | Busy | Waits | Ended | Missing
RenewAnswer = Renewed | Lost | Ended | Missing


def new_owner() -> str:
    """A name for one claim. Repeating a claim under the same owner repeats its answer."""
    return secrets.token_hex(8)


class Leases:
    """Claim, renew and give back, over one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._keys = store.keys

    async def claim(self, generation: str, *, owner: str, replacing: Lease | None = None) -> ClaimAnswer:
        """Claim a generation under a new, higher epoch. Atomic, and repeatable with the same `owner`.

        `replacing` is a lease of the caller's own that the store rolled back: the new epoch rises above it and the
        attempt stays. A lapsed lease of somebody else is taken over only if for a whole lease this process saw no break
        of a connection, and the server lost nothing, changed its role or started: after an outage the living would
        otherwise lose everything to whoever reconnects first. Until then the answer is `Busy`.
        """
        answer = await self._claim(generation, owner, replacing, take_over=False)
        if answer is not None:
            return answer
        lease_seconds = self._store.settings.lease_seconds
        key = self._keys.record(generation)
        if not self._store.steady(lease_seconds) or await self._store.seconds_since_loss(key) < lease_seconds:
            return Busy(self._store.settings.lease_ms)
        answer = await self._claim(generation, owner, replacing, take_over=True)
        return answer if answer is not None else Busy(self._store.settings.lease_ms)

    async def _claim(
        self, generation: str, owner: str, replacing: Lease | None, *, take_over: bool
    ) -> ClaimAnswer | None:
        """One call of the script; None for a lapsed lease that was not to be, or could not be, taken over."""
        floor, old = (replacing.epoch, replacing.owner) if replacing else (0, "")
        args: list[Arg] = [owner, self._store.settings.lease_ms, floor, jump(), "1" if take_over else "0", old]
        reply = await self._store.pipe(CLAIM, self._keys.of(generation), args)
        match reply:
            case [b"claimed", epoch, attempt, cancel, created, started, now, tenant, asked, mark, overdue, calls, head]:
                return Lease(
                    generation=generation,
                    epoch=int(epoch),
                    owner=owner,
                    attempt=int(attempt),
                    tenant=tenant.decode(),
                    request=replacing.request if replacing else Request.decode(asked),
                    cancel=cancel.decode(),
                    created_ms=int(created),
                    started_ms=int(started),
                    claimed_ms=int(now),
                    upstream=mark.decode(),
                    overdue=overdue == b"1",
                    owed={
                        call.decode(): result.decode() if result else None
                        for call, result in zip(calls[::2], calls[1::2], strict=True)
                    },
                    head=head.decode(),
                )
            case [b"busy", wait]:
                return Busy(int(wait))
            case [b"lapsed", _]:
                return None
            case [b"waits", thread]:
                return Waits(thread.decode())
            case [b"ended", state, upstream, thread]:
                return Ended(State(state.decode()), upstream.decode(), thread.decode())
            case [b"gone"]:
                return Missing()
            case _:
                raise StoreReplyError(f"claim answered {reply[:1]!r}")

    async def renew(self, lease: Lease) -> RenewAnswer:
        """Hold the lease for another term, and learn of a stored cancel. Where nobody reading cancels, this is also
        the check: only the holder makes it, and not across a break of its connection, for which all viewers
        look gone."""
        names, of = self._keys, lease.generation
        keys = [names.record(of), names.viewers(of), names.log(of)]
        steady = self._store.steady(DEAD_MS / 1000)
        args: list[Arg] = [lease.epoch, lease.owner, self._store.settings.lease_ms, DEAD_MS, "1" if steady else "0"]
        reply = await self._store.pipe(RENEW, keys, args)
        match reply:
            case [b"renewed", cancel]:
                return Renewed(cancel.decode())
            case [b"ended", state]:
                return Ended(State(state.decode()))
            case [b"fenced", _]:
                return Lost()
            case [b"gone"]:
                return Missing()
            case _:
                raise StoreReplyError(f"renew answered {reply[:1]!r}")

    async def release(self, lease: Lease, *, failed_attempt: bool) -> bool | str:
        """Give the lease back before the end; False when it was not ours any more. Where a cancel is stored nothing is
        given back, and the answer is its reason: the holder writes the end.

        `failed_attempt` makes the next claim a new attempt; a hand-over does not count as one.
        """
        state = State.RETRYING if failed_attempt else State.QUEUED
        args: list[Arg] = [lease.epoch, lease.owner, state.value, "1" if failed_attempt else "0"]
        reply = await self._store.pipe(RELEASE, [self._keys.record(lease.generation)], args)
        match reply:
            case [b"released"]:
                return True
            case [b"cancelled", reason]:
                return str(reason.decode())
            case _:
                return False

    async def pause(self, lease: Lease, *, seconds: float) -> Paused | str:
        """Give the lease back until the client has sent the results of the calls that are noted as `pending`, or
        `seconds` are over. Where a cancel is stored nothing is given back, and the answer is its reason."""
        args: list[Arg] = [lease.epoch, lease.owner, round(seconds * 1000)]
        match await self._store.pipe(PAUSE, [self._keys.record(lease.generation)], args):
            case [b"paused"]:
                return Paused.WAITING
            case [b"ready"]:
                return Paused.READY
            case [b"cancelled", reason]:
                return str(reason.decode())
            case _:
                return Paused.LOST

    async def rebuild(self, lease: Lease, entries: Sequence[Entry]) -> bool:
        """Put back a generation that the store has lost: record, request and the first events, none of them terminal.

        False when there is a record after all (a tombstone too): append again, and learn what it says. Only for the
        holder, under the conditions of `worker.writer`.
        """
        settings = self._store.settings
        fields = lease.request.record_fields(lease.tenant, tombstone_seconds=settings.tombstone_seconds) | {
            "epoch": str(lease.epoch),
            "owner": lease.owner,
            "attempt": str(lease.attempt),
            "created_ms": str(lease.created_ms),
            "started_ms": str(lease.started_ms),
        }
        args: list[Arg] = [lease.request.encode(), self._keys.live(lease.generation), settings.lease_ms, len(fields)]
        for name, value in fields.items():
            args += [name, value]
        for entry in entries:
            args += entry
        await self._store.add_to_index(self._keys.index(lease.tenant), lease.generation)
        return bool(await self._store.pipe(REBUILD, self._keys.of(lease.generation), args) == [b"rebuilt"])
