"""The field of a record by which ordinary appends need no closer look: who loses it, and what it never hides."""

from __future__ import annotations

import asyncio

from broker.events import CancelReason, Delta, Entry, encode
from broker.generation import State
from broker.lease import Lease, Paused, new_owner
from broker.log import AppendAnswer, Appended, Behind, Fenced
from broker.position import BEGINNING
from broker.records import CancelOutcome
from tests.broker.conftest import Kit


def delta(lease: Lease, seq: int) -> Entry:
    return Entry(f"{seq}-{lease.epoch}", *encode(Delta(text=f"t{seq}")))


async def append(kit: Kit, lease: Lease, seq: int) -> AppendAnswer:
    """Append the delta `seq` behind the one before."""
    prev = f"{seq - 1}-{lease.epoch}" if seq > 1 else BEGINNING
    return await kit.log.append(lease.generation, lease.epoch, lease.owner, prev, [delta(lease, seq)])


async def passing(kit: Kit, seconds: float | None = None) -> Lease:
    """A lease under which one delta was appended, so that the next one is an ordinary append."""
    lease = await kit.claimed(await kit.submitted(grace_seconds=seconds))
    assert await append(kit, lease, 1) == Appended("1-1", 1, "")
    assert await stored_pass(kit, lease) == f"{lease.epoch} {lease.owner}".encode()
    return lease


async def stored_pass(kit: Kit, lease: Lease) -> bytes | None:
    found: bytes | None = await kit.raw.hget(kit.store.keys.record(lease.generation), "pass")
    return found


async def test_who_gave_the_lease_back_writes_no_more(kit: Kit) -> None:
    lease = await passing(kit)
    assert await kit.leases.release(lease, failed_attempt=False)
    assert await append(kit, lease, 2) == Fenced(lease.epoch)


async def test_who_waits_for_the_client_s_tools_writes_no_more(kit: Kit) -> None:
    lease = await passing(kit)
    asked = {"pending": '["a"]'}
    entry = delta(lease, 2)
    await kit.log.append(lease.generation, lease.epoch, lease.owner, "1-1", [entry], asked)
    assert await append(kit, lease, 3) == Appended("3-1", 1, "")
    assert await kit.leases.pause(lease, seconds=600) is Paused.WAITING
    assert await append(kit, lease, 4) == Fenced(lease.epoch)


async def test_who_was_replaced_writes_no_more(kit: Kit) -> None:
    lease = await passing(kit)
    later = await kit.leases.claim(lease.generation, owner=new_owner(), replacing=lease)
    assert isinstance(later, Lease)
    assert await append(kit, lease, 2) == Fenced(later.epoch)


async def test_nobody_else_writes_under_its_epoch(kit: Kit) -> None:
    """What the record does not know, the pass does not let in."""
    lease = await passing(kit)
    for epoch, owner in ((lease.epoch, "somebody"), (lease.epoch - 1, lease.owner)):
        entry = Entry(f"2-{epoch}", *encode(Delta(text="not mine")))
        answer = await kit.log.append(lease.generation, epoch, owner, f"1-{epoch}", [entry])
        assert answer == Fenced(lease.epoch)
    assert len(await kit.log.read_all(lease.generation)) == 1


async def test_a_stored_cancel_is_told_with_the_next_append(kit: Kit) -> None:
    lease = await passing(kit)
    record = await kit.records.get("acme", lease.generation)
    assert await kit.records.cancel(record, CancelReason.USER) is CancelOutcome.REQUESTED
    assert await append(kit, lease, 2) == Appended("2-1", 1, "user")
    assert await append(kit, lease, 3) == Appended("3-1", 1, "user")


async def test_a_cancel_for_want_of_viewers_is_told_with_the_next_append(kit: Kit) -> None:
    lease = await passing(kit, seconds=0.01)
    while not (await kit.records.get("acme", lease.generation)).cancel_requested:
        await kit.leases.renew(lease)
        await asyncio.sleep(0.1)
    assert await append(kit, lease, 2) == Appended("2-1", 1, "abandoned")


async def test_a_deleted_generation_takes_no_append(kit: Kit) -> None:
    lease = await passing(kit)
    await kit.records.delete(await kit.records.get("acme", lease.generation))
    assert await append(kit, lease, 2) == Fenced(lease.epoch + 1)


async def test_a_log_that_is_not_what_it_was_is_looked_at(kit: Kit) -> None:
    """Lost alone, without the record that still has the pass."""
    lease = await passing(kit)
    await kit.raw.delete(kit.store.keys.log(lease.generation))
    assert await append(kit, lease, 2) == Behind(BEGINNING)


async def test_an_append_that_is_repeated_is_stored_once(kit: Kit) -> None:
    lease = await passing(kit)
    for stored in (1, 0, 0):
        assert await append(kit, lease, 2) == Appended("2-1", stored, "")
    assert [entry.position for entry in await kit.log.read_all(lease.generation)] == ["1-1", "2-1"]


async def test_a_record_that_was_rolled_back_lets_only_the_later_writer_pass(kit: Kit) -> None:
    """The store forgot a claim, with its record as it was before, pass and all; both writers are alive."""
    old = await passing(kit)
    key = kit.store.keys.record(old.generation)
    before = await kit.raw.hgetall(key)
    new = await kit.leases.claim(old.generation, owner=new_owner(), replacing=old)
    assert isinstance(new, Lease)
    await kit.raw.delete(key)
    await kit.raw.hset(key, mapping=before)
    assert await append(kit, old, 2) == Appended("2-1", 1, "")
    entry = delta(new, 2)
    answer = await kit.log.append(new.generation, new.epoch, new.owner, "1-1", [entry])
    assert not isinstance(answer, Appended)
    assert await append(kit, old, 3) == Fenced(new.epoch)


async def test_what_a_client_is_shown_of_the_log_s_end_is_the_log_s_own(kit: Kit) -> None:
    """The record's `head` is behind after ordinary appends."""
    lease = await passing(kit)
    for seq in range(2, 6):
        await append(kit, lease, seq)
    record = await kit.records.get("acme", lease.generation)
    assert (str(record.head), record.state) == ("5-1", State.RUNNING)
    assert await kit.raw.hget(kit.store.keys.record(lease.generation), "head") == b"1-1"
    await kit.leases.renew(lease)
    assert await kit.raw.hget(kit.store.keys.record(lease.generation), "head") == b"5-1"
