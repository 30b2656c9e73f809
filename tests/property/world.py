"""A small world around one generation in a real store, for schedules that no cluster would play twice.

The store, its scripts, `Log`, `Leases`, `Records` and the viewers' `Window` are the real ones. What a test decides here
is what nobody decides in production: whose call arrives next, which reply is lost, which packet arrives again an hour
later, when a lease lapses, and how much a failover forgets. Time stands still: a lease that was given stays live
until the schedule lets it lapse, so that a schedule runs alike on a fast and on a slow machine.

After every single call to the store the world looks at record and log as they are, and holds them against the promises
(`World.look`). It also keeps a copy of what it saw: a failover brings one of these copies back, all keys together.

What the world may not do: write into the log or the record, except to move time (`lease`, `cancel_ms`) and, on a server
that is not ours to reconfigure, to say that the record is of another replication history.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Any, Final, TypeVar

import redis

from broker import notification
from broker.events import DELTA_FIELDS, TERMINAL_FIELDS, CancelReason, Entry, Stored
from broker.generation import Request
from broker.joined import split
from broker.lease import ClaimAnswer, Lease, Leases, RenewAnswer, Renewed
from broker.log import AppendAnswer, Appended, Log
from broker.position import BEGINNING, Position
from broker.queue import Queue
from broker.records import CancelOutcome, Records
from broker.settings import Settings
from broker.store import Store
from worker.writer import UPSTREAM

TENANT: Final = "acme"
#: The shortest there is: a server that is younger than a lease lets nobody be taken over from.
LEASE_SECONDS: Final = 1.0
#: A deadline that no test lives to see, in milliseconds since 1970.
NEVER_MS: Final = 9_999_999_999_999
#: Ends the messages of one look at the subscription.
MARK: Final = b"mark"

#: What was published: the position that entries follow, and they; None: the generation was deleted.
News = tuple[str, list[Entry]] | None
T = TypeVar("T")


class Stage:
    """What all worlds of one test share: connections, and an event loop that runs only while somebody calls."""

    def __init__(self, url: str, prefix: str, *, may_change_history: bool) -> None:
        self.seen: Counter[str] = Counter()  # answers of the store: what the schedules have met
        self.may_change_history = may_change_history
        self.redis = redis.Redis.from_url(url, protocol=2)
        self.subscription = self.redis.pubsub()
        self._loop = asyncio.new_event_loop()
        self.store = self.call(_open(url, Settings(prefix=prefix, lease_seconds=LEASE_SECONDS)))
        self.keys = self.store.keys
        self.log, self.leases = Log(self.store), Leases(self.store)
        self.records = Records(self.store, Queue(self.store))
        while self.redis.info("server")["uptime_in_seconds"] < LEASE_SECONDS:
            time.sleep(0.05)
        # A take-over waits until the store has been whole for a lease, as far as anybody has looked.
        while self.call(self.store.seconds_since_loss(self.keys.record("gen_"))) < LEASE_SECONDS:
            time.sleep(0.05)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)

    def close(self) -> None:
        self.call(self.store.aclose())
        self._loop.close()
        self.subscription.close()
        self.redis.close()


async def _open(url: str, settings: Settings) -> Store:
    return Store(url, settings)


@dataclass(frozen=True, slots=True)
class Moment:
    """Record and log as they stood together at one time, and what had been promised by then."""

    record: dict[str, str]
    entries: list[Entry]
    dumps: list[bytes | None]  # record, log, request: what a failover brings back
    cancel_promised: bool

    @property
    def last(self) -> str:
        return self.entries[-1].position if self.entries else BEGINNING

    @property
    def ended(self) -> bool:
        return bool(self.entries) and self.entries[-1].is_terminal

    @property
    def readable(self) -> bool:
        """Whether there is a log to read: not lost, not deleted."""
        return bool(self.record) and self.record["state"] != "deleted"


@dataclass(frozen=True, slots=True)
class Packet:
    """An append as it went over the network: it may arrive again at any time."""

    epoch: int
    owner: str
    prev: str
    entries: Sequence[Entry]
    notes: Mapping[str, str]


def text_of(entries: Sequence[Entry]) -> list[str]:
    """The pieces of text that a reader of these entries has in front of it."""
    text: list[str] = []
    for entry in entries:
        if entry.field == b"reset":
            text = []
        elif entry.field in DELTA_FIELDS:
            text.append(entry.payload.decode())
    return text


class World:
    """One generation, and all that is known of it."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        request = Request(provider="sim", model="model", messages=[{"role": "user", "content": "hello"}])
        self.generation = stage.call(stage.records.submit(TENANT, request)).id
        keys = stage.keys
        self.keys = [keys.record(self.generation), keys.log(self.generation), keys.request(self.generation)]
        self.channel = keys.live(self.generation)
        stage.subscription.ssubscribe(self.channel)
        self.runs: Iterator[int] = count(1)  # every attempt at the answer writes texts of its own
        self.broken = False
        self.failovers = 0
        self.moments: list[Moment] = []
        self.audience: list[list[News]] = []  # notifications under way, for each process with viewers
        self._contents: dict[str, Stored] = {}
        self._granted: dict[int, str] = {}
        self._appends: list[Packet] = []
        self._claims: list[tuple[str, Lease | None]] = []
        self._cancel_promised = False
        self.look()

    @property
    def now(self) -> Moment:
        return self.moments[-1]

    def close(self) -> None:
        self.stage.subscription.sunsubscribe(self.channel)
        self._hear()
        self.stage.redis.unlink(*self.keys)

    # What workers and clients do: one call to the store each.

    async def claim(self, owner: str, replacing: Lease | None) -> ClaimAnswer:
        """Claim, and hold the answer against the record as it stood."""
        before = self.now.record
        self._claims.append((owner, replacing))
        answer = await self.stage.leases.claim(self.generation, owner=owner, replacing=replacing)
        self.stage.seen[f"claim: {type(answer).__name__}"] += 1
        if isinstance(answer, Lease):
            self.stage.redis.hset(self.keys[0], "lease", NEVER_MS)
            self.promise(
                self._granted.setdefault(answer.epoch, owner) == owner, f"epoch {answer.epoch} was given to two claims"
            )
            own = ("", owner, replacing.owner if replacing else "")
            self.promise(before["owner"] in own or before["lease"] == "0", "a live lease is not taken over")
            repeated = before["owner"] == owner
            given_back = before["owner"] in ("", replacing.owner if replacing else "")
            charged = not repeated and (before["charge"] == "1" or not given_back)
            self.promise(
                answer.attempt == int(before["attempt"]) + charged, "attempts count lapsed leases and failures only"
            )
            self.promise(not repeated or answer.epoch == int(before["epoch"]), "a repeated claim gives the same epoch")
            self.promise(answer.epoch >= int(before["epoch"]), "epochs only rise")
        self.look()
        return answer

    async def append(self, packet: Packet, *, first_time: bool = True) -> AppendAnswer:
        """Append, and hold the answer against the record as it stood and stands."""
        if first_time:
            self._appends.append(packet)
        before = self.now.record
        answer = await self.stage.log.append(
            self.generation, packet.epoch, packet.owner, packet.prev, packet.entries, packet.notes
        )
        self.look()
        self.stage.seen[f"append: {type(answer).__name__}"] += 1
        if isinstance(answer, Appended) and answer.stored:
            self.promise(int(before["epoch"]) <= packet.epoch, "no write of an earlier epoch is accepted")
            holder = (int(self.now.record["epoch"]), self.now.record["owner"])
            self.promise(holder == (packet.epoch, packet.owner), "only the holder of the lease in the record writes")
        return answer

    async def rebuild(self, lease: Lease, entries: Sequence[Entry]) -> bool:
        """Put back what the store has lost. Only where there is nothing."""
        before = self.now
        rebuilt = await self.stage.leases.rebuild(lease, entries)
        if rebuilt:
            self.stage.redis.hset(self.keys[0], "lease", NEVER_MS)
        self.look()
        self.promise(rebuilt != bool(before.record), "a record that is there, a tombstone too, is never replaced")
        self.promise(rebuilt or self.now.entries == before.entries, "a rebuild that is refused changes nothing")
        return rebuilt

    async def seal(self, entries: Sequence[Entry]) -> None:
        """Somebody takes `entries` for the whole log and seals it. It may be another one meanwhile."""
        before = self.now
        sealed = await self.stage.log.seal(self.generation, entries)
        self.stage.seen[f"seal: {sealed}"] += 1
        self.look()
        self.promise(self.now.entries == before.entries, "sealing changes neither an event nor a position")
        self.promise(not sealed or self.now.entries == list(entries), "only the log that is meant is sealed")

    async def release(self, lease: Lease, *, failed_attempt: bool) -> None:
        await self.stage.leases.release(lease, failed_attempt=failed_attempt)
        self.look()

    async def renew(self, lease: Lease) -> RenewAnswer:
        answer = await self.stage.leases.renew(lease)
        if isinstance(answer, Renewed) and self.now.record["owner"] == lease.owner:
            self.stage.redis.hset(self.keys[0], "lease", NEVER_MS)
        self.look()
        return answer

    def cancel(self) -> None:
        """A client cancels. From the answer on, the generation can only end as cancelled."""
        if not self.now.readable:
            return
        epoch = int(self.now.record["epoch"])
        record = self.stage.call(self.stage.records.get(TENANT, self.generation))
        outcome = self.stage.call(self.stage.records.cancel(record, CancelReason.USER))
        self._cancel_promised |= outcome is not CancelOutcome.ENDED
        self.look()
        if outcome is CancelOutcome.CANCELLED:
            self.promise(self.now.ended, "a cancel that ended the generation left its terminal event")
            self.promise(
                Position.parse(self.now.last).epoch > epoch, "a cancel writes under an epoch that no worker ever held"
            )

    def delete(self) -> None:
        if self.now.readable:
            self.stage.call(self.stage.records.delete(self.stage.call(self.stage.records.get(TENANT, self.generation))))
            self.look()

    # What the network does.

    def repeat_append(self, which: int) -> None:
        """An append of any time arrives again; nobody waits for its answer."""
        if self._appends:
            self.stage.call(self.append(self._appends[which % len(self._appends)], first_time=False))

    def repeat_claim(self, which: int) -> None:
        """A claim of any time arrives again; nobody waits for its answer."""
        if self._claims:
            self.stage.call(self.claim(*self._claims[which % len(self._claims)]))

    # What time and misfortune do.

    def lapse(self) -> None:
        """The lease lapses: its holder was silent for too long."""
        if self.now.record:
            self.stage.redis.hset(self.keys[0], "lease", 0)
            self.look()

    def grow_overdue(self) -> None:
        """A worker that was asked to cancel does not answer."""
        if self.now.record.get("cancel"):
            self.stage.redis.hset(self.keys[0], "cancel_ms", 0)
            self.look()

    def fail_over(self, forgotten: int, *, a_claim: bool = False) -> None:
        """The store is as it was `forgotten` moments ago, under another replication history. With `a_claim` it is as
        it was just before one of the claims: then two workers may each take the generation for theirs."""
        moments = self.moments
        if a_claim:
            epochs = [moment.record.get("epoch") for moment in self.moments]
            moments = [self.moments[at] for at in range(len(epochs) - 1) if epochs[at] != epochs[at + 1]] or moments
        self.restore(moments[-1 - forgotten % len(moments)])

    def restore(self, moment: Moment, *, noticed: bool = True) -> None:
        """Record, log and request as they were. `noticed`: with a change of the replication history, as always when a
        server restarts or fails over; without, as when somebody puts keys back by hand."""
        self.failovers += 1
        for key, dump in zip(self.keys, moment.dumps, strict=True):
            if dump is None:
                self.stage.redis.delete(key)
            else:
                self.stage.redis.restore(key, 0, dump, replace=True)
        if not noticed:
            pass
        elif self.stage.may_change_history:
            self.stage.redis.execute_command("DEBUG", "CHANGE-REPL-ID")
        elif moment.record:
            self.stage.redis.hset(self.keys[0], "history", f"forgotten{self.failovers}")
        self._cancel_promised = moment.cancel_promised
        self.look()

    def lose_everything(self) -> None:
        """The store is empty."""
        self.stage.redis.delete(*self.keys)
        self._cancel_promised = False
        self.look()

    # The promises.

    def promise(self, kept: bool, words: str) -> None:
        if not kept:
            self.broken = True
            raise AssertionError(f"{words}; the log is {[tuple(entry) for entry in self.now.entries]}")

    def look(self) -> None:
        """See what is stored now, and what was published; hold it against the promises; remember it."""
        pipeline = self.stage.redis.pipeline(transaction=True)
        pipeline.hgetall(self.keys[0])
        pipeline.xrange(self.keys[1])
        for key in self.keys:
            pipeline.dump(key)
        pipeline.execute_command("SPUBLISH", self.channel, MARK)
        record, rows, *dumps, _ = pipeline.execute()
        moment = Moment(
            record={name.decode(): value.decode() for name, value in record.items()},
            entries=split((place, list(chain(*fields.items()))) for place, fields in rows),
            dumps=dumps,
            cancel_promised=self._cancel_promised,
        )
        self.moments.append(moment)
        messages = self._hear()
        for queue in self.audience:
            queue.extend(messages)
        self._check(moment)

    def name(self, entry: Entry) -> None:
        """Somebody saw this entry: for all times its position names this content."""
        known = self._contents.setdefault(entry.position, entry.stored)
        self.promise(known == entry.stored, f"position {entry.position} names two contents, {known} and {entry.stored}")

    def _check(self, moment: Moment) -> None:
        places = [Position.parse(entry.position) for entry in moment.entries]
        self.promise([place.seq for place in places] == list(range(1, len(places) + 1)), "seqs are dense")
        for entry in moment.entries:
            self.name(entry)
        pieces = [piece.split(".") for piece in text_of(moment.entries)]
        self.promise(all(len(piece) == 2 for piece in pieces), "what was added as one event is stored as one")
        self.promise(len({run for run, _ in pieces}) <= 1, "a text never mixes two runs")
        self.promise([int(at) for _, at in pieces] == list(range(1, len(pieces) + 1)), "a text has no gaps")
        ends = [entry.field.decode() for entry in moment.entries if entry.field in TERMINAL_FIELDS]
        self.promise(len(ends) == moment.ended, "one terminal event, and it is last")
        if not moment.readable:
            self.promise(not moment.entries, "a log that is deleted or lost is empty")
            return
        known, last = (Position.of_entry_id(place).seq for place in (moment.record["head"], moment.last))
        self.promise(known <= last, "the record never remembers more than the log holds")
        noted = moment.record.get(UPSTREAM)
        held = noted is None or any(entry.position == noted for entry in moment.entries)
        self.promise(held, "what is noted of an event is stored only where the event is")
        state = moment.record["state"]
        self.promise((state in ("completed", "failed", "cancelled")) == bool(ends), "the record knows whether it ended")
        if ends:
            self.promise(ends == [state], "the record knows how it ended")
            self.promise(not moment.cancel_promised or state == "cancelled", "after a cancel it ends as cancelled")

    def _hear(self) -> list[News]:
        """Everything published since the last look."""
        heard: list[News] = []
        while (message := self.stage.subscription.get_message(timeout=60.0)) is not None:
            if message["type"] == "sunsubscribe" or message["data"] == MARK:
                return heard
            if message["type"] == "smessage":
                heard.append(notification.decode(message["data"]))
        raise AssertionError("the subscription went silent")
