"""Webhooks: telling the operator's endpoints how a generation ended. What is owed, and when it is to be tried.

That something is owed stands in the record, written by the very step that writes the end: the endpoints since the
submit, the terminal event's data with the event. So it can be derived again whatever is lost in between: whoever takes
a generation's hint out of the queue schedules its deliveries before that, and the sweep finds what was forgotten.

An endpoint's deliveries are one sorted set by the time of the next try. Taking one moves that time behind a lease;
nobody else tries meanwhile, and a worker that dies gives it back by doing nothing. At least once, then; the receiver
tells repetitions by the id, which is the generation's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from broker.errors import GenerationExpired
from broker.generation import Record, Request
from broker.scripts import BURY, DUE, HOOK, OWE
from broker.store import Store
from broker.wire import StoreReplyError

#: Note of a delivery that the endpoint has taken.
DELIVERED: Final = "done"


@dataclass(frozen=True, slots=True)
class Due:
    """Generations whose end is to be told now, and the milliseconds until the next one."""

    generations: list[str]
    next_ms: int | None


@dataclass(frozen=True, slots=True)
class Dead:
    """Deliveries that nobody tries any more, newest generation first: generation and endpoint each; and the cursor of
    the next page or None."""

    deliveries: list[tuple[str, str]]
    next_cursor: str | None


class Webhooks:
    """The deliveries of a deployment, over one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._keys = store.keys
        self._endpoints = store.settings.webhooks

    def told_of(self, request: Request) -> dict[str, str]:
        """The endpoints that a generation's end is for, and the URL that was asked for, or '' for their own."""
        asked = request.webhook_url or ""
        own = {name: "" for name, endpoint in self._endpoints.items() if not endpoint.asked}
        return own | {name: asked for name, endpoint in self._endpoints.items() if asked and endpoint.covers(asked)}

    def owed(self, record: Record) -> list[str]:
        """The endpoints that are to be told of the end of this generation and have not been."""
        if not record.webhooks or record.end is None:
            return []
        return [
            name
            for name, hook in record.webhooks.items()
            if not hook.outcome and name in self._endpoints and record.state.value in self._endpoints[name].events
        ]

    async def schedule(self, record: Record) -> list[str]:
        """See that what is owed is tried, by whichever worker; the endpoints. May be repeated, by anyone."""
        names = self.owed(record)
        for name in names:
            await self._store.run(OWE, [self._keys.deliveries(name)], [0, "1", record.id])
        return names

    async def take(self, endpoint: str, most: int, *, lease_ms: int) -> Due:
        """Up to `most` deliveries of an endpoint that are due; for `lease_ms` they are the caller's."""
        next_ms, *due = await self._store.run(DUE, [self._keys.deliveries(endpoint)], [most, lease_ms])
        return Due([generation.decode() for generation in due], None if next_ms == b"-1" else int(next_ms))

    async def put_off(self, endpoint: str, generation: str, delay_ms: int) -> None:
        """Try again in `delay_ms`."""
        await self._store.run(OWE, [self._keys.deliveries(endpoint)], [delay_ms, "0", generation])

    async def drop(self, endpoint: str, generation: str) -> None:
        """There is nothing more to try."""
        await self._store.remove(self._keys.deliveries(endpoint), [generation])

    async def note(self, generation: str, endpoint: str, outcome: str, *, anew: bool = False) -> int:
        """Note in the record how a try went: '' failed, `DELIVERED`, or why it was the last one; how many there were.
        Raises `GenerationExpired`."""
        args = [endpoint, outcome, "1" if anew else "0"]
        match await self._store.run(HOOK, [self._keys.record(generation)], args):
            case [b"noted", tries]:
                return int(tries)
            case [b"gone"]:
                raise GenerationExpired(f"generation {generation} is gone")
            case reply:
                raise StoreReplyError(f"hook answered {reply[:1]!r}")

    async def bury(self, record: Record, endpoint: str) -> None:
        """Put a delivery on the tenant's list of dead ones."""
        most = self._store.settings.webhook_dead_most
        await self._store.run(BURY, [self._keys.dead(record.tenant)], [most, _name(record.id, endpoint)])

    async def dead(self, tenant: str, *, limit: int, cursor: str) -> Dead:
        """A page of the tenant's dead deliveries, from below `cursor`."""
        names = await self._store.range_descending(self._keys.dead(tenant), cursor, limit)
        deliveries = [(generation, endpoint) for generation, _, endpoint in (name.partition(":") for name in names)]
        return Dead(deliveries, names[-1] if len(names) == limit else None)

    async def forget(self, tenant: str, deliveries: Sequence[tuple[str, str]]) -> None:
        """Take deliveries off the list of dead ones."""
        if deliveries:
            await self._store.remove(self._keys.dead(tenant), [_name(*delivery) for delivery in deliveries])

    async def revive(self, record: Record, endpoint: str) -> None:
        """Try a dead delivery again, with all its tries."""
        await self.note(record.id, endpoint, "", anew=True)
        await self.put_off(endpoint, record.id, 0)
        await self.forget(record.tenant, [(record.id, endpoint)])


def is_dead(record: Record, endpoint: str) -> bool:
    """Whether nobody tries any more to tell this endpoint, which was never told."""
    hook = record.webhooks.get(endpoint)
    return hook is not None and hook.outcome not in ("", DELIVERED)


def _name(generation: str, endpoint: str) -> str:
    return f"{generation}:{endpoint}"
