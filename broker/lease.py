"""Leases: the right to write one generation. Kept in the generation's own record and nowhere else.

A lease is claimed, renewed and given back here; that it is respected is the append script's doing, which compares
epoch and owner in the same step as it writes. A lapsed lease permits a take-over; it does not by itself refuse the
holder's appends.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from broker.errors import StoreError
from broker.generation import Request, State
from broker.scripts import CLAIM, RELEASE, RENEW
from broker.store import Store, jump
from broker.wire import Arg


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
    queued_ms: int  # from submit to the first claim
    running_ms: int  # since the first claim


@dataclass(frozen=True, slots=True)
class Busy:
    """Somebody holds it, or may; look again in `wait_ms`."""

    wait_ms: int


@dataclass(frozen=True, slots=True)
class Ended:
    """It has its terminal event, or was deleted."""

    state: State


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


ClaimAnswer = Lease | Busy | Ended | Missing
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
        attempt stays. A lapsed lease of somebody else is taken over only if this process saw no break of its
        connection to that server for a whole lease, and the server has been up for as long: after an outage the living
        would otherwise lose everything to whoever reconnects first.
        """
        keys = [self._keys.record(generation), self._keys.log(generation), self._keys.request(generation)]
        lease_ms = self._store.settings.lease_ms
        steady = await self._store.steady(keys[0], lease_ms / 1000)
        floor = replacing.epoch if replacing else 0
        args: list[Arg] = [owner, lease_ms, floor, jump(), "1" if steady else "0", replacing.owner if replacing else ""]
        reply = await self._store.pipe(CLAIM, keys, args)
        match reply:
            case [b"claimed", epoch, attempt, cancel, queued, running, tenant, request]:
                return Lease(
                    generation=generation,
                    epoch=int(epoch),
                    owner=owner,
                    attempt=int(attempt),
                    tenant=tenant.decode(),
                    request=replacing.request if replacing else Request.decode(request),
                    cancel=cancel.decode(),
                    queued_ms=int(queued),
                    running_ms=int(running),
                )
            case [b"busy", wait]:
                return Busy(int(wait))
            case [b"ended", state]:
                return Ended(State(state.decode()))
            case [b"gone"]:
                return Missing()
            case _:
                raise StoreError(f"claim answered {reply!r}")

    async def renew(self, lease: Lease) -> RenewAnswer:
        """Hold the lease for another term, and learn of a stored cancel."""
        args: list[Arg] = [lease.epoch, lease.owner, self._store.settings.lease_ms]
        reply = await self._store.pipe(RENEW, [self._keys.record(lease.generation)], args)
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
                raise StoreError(f"renew answered {reply!r}")

    async def release(self, lease: Lease, *, failed_attempt: bool) -> bool:
        """Give the lease back before the end; False when it was not ours any more.

        `failed_attempt` makes the next claim a new attempt; a hand-over does not count as one.
        """
        state = State.RETRYING if failed_attempt else State.QUEUED
        args: list[Arg] = [lease.epoch, lease.owner, state.value, "1" if failed_attempt else "0"]
        reply = await self._store.pipe(RELEASE, [self._keys.record(lease.generation)], args)
        return bool(reply == [b"released"])
