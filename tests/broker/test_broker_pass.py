"""The field of a record by which ordinary appends need no closer look: who loses it, and what it never hides."""

from __future__ import annotations

import asyncio

from broker.errors import StoreUnavailable
from broker.events import CancelReason, Completed, Delta, Entry, FinishReason, encode
from broker.generation import State
from broker.lane import STORED
from broker.lease import Lease, Paused, new_owner
from broker.log import AppendAnswer, Appended, Behind, Fenced
from broker.position import BEGINNING
from broker.records import CancelOutcome
from broker.scripts import EXTEND
from broker.wire import ScriptUnknown, StoreReplyError
from tests.broker.conftest import Kit


def delta(lease: Lease, seq: int) -> Entry:
    return Entry(f"{seq}-{lease.epoch}", *encode(Delta(text=f"t{seq}")))


async def extend(kit: Kit, lease: Lease, seq: int, *, epoch: int | None = None, owner: str | None = None) -> object:
    """What comes back when the delta `seq` is sent over a lane."""
    answered: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    lane = await kit.log.lane(
        lease.generation, lease.epoch if epoch is None else epoch, owner or lease.owner, answered.set_result
    )
    assert lane is not None
    assert lane.extend(seq - 1, delta(lease, seq))
    return await answered


async def append(kit: Kit, lease: Lease, seq: int) -> AppendAnswer:
    """Append the delta `seq` behind the one before as a writer does: over a lane, and where that does not store it, by
    the long way."""
    if seq > 1 and await extend(kit, lease, seq) == STORED:
        return Appended(f"{seq}-{lease.epoch}", 1, "")
    prev = f"{seq - 1}-{lease.epoch}" if seq > 1 else BEGINNING
    return await kit.log.append(lease.generation, lease.epoch, lease.owner, prev, [delta(lease, seq)])


async def passing(kit: Kit, seconds: float | None = None) -> Lease:
    """A lease under which one delta was appended, so that the next one is an ordinary append."""
    lease = await kit.claimed(await kit.submitted(grace_seconds=seconds))
    assert await append(kit, lease, 1) == Appended("1-1", 1, "")
    assert await stored_pass(kit, lease) == f"{lease.epoch} {lease.owner}".encode()
    return lease


async def test_the_next_delta_goes_over_the_lane(kit: Kit) -> None:
    lease = await passing(kit)
    for seq in range(2, 5):
        assert await extend(kit, lease, seq) == STORED
    assert await kit.log.read_all(lease.generation) == [delta(lease, seq) for seq in range(1, 5)]


async def test_a_hole_is_refused_on_the_lane(kit: Kit) -> None:
    lease = await passing(kit)
    assert await extend(kit, lease, 3) == 0
    assert len(await kit.log.read_all(lease.generation)) == 1


async def test_a_lane_takes_deltas_only(kit: Kit) -> None:
    """An end must be looked at: a stored cancel admits of `cancelled` only."""
    lease = await passing(kit)
    answered: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    lane = await kit.log.lane(lease.generation, lease.epoch, lease.owner, answered.set_result)
    assert lane is not None
    end = encode(Completed(finish_reason=FinishReason.STOP, usage=None, characters=2))
    assert lane.extend(1, Entry("2-1", *end))
    assert isinstance(await answered, StoreReplyError)
    assert len(await kit.log.read_all(lease.generation)) == 1


async def test_a_server_that_has_forgotten_its_scripts_is_told_again(kit: Kit) -> None:
    lease = await passing(kit)
    assert await extend(kit, lease, 2) == STORED
    await kit.raw.script_flush()
    assert isinstance(await extend(kit, lease, 3), ScriptUnknown)
    assert await extend(kit, lease, 3) == STORED


async def test_a_lane_whose_connection_has_gone_takes_nothing(kit: Kit) -> None:
    lease = await passing(kit)
    answered: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    lane = await kit.log.lane(lease.generation, lease.epoch, lease.owner, answered.set_result)
    assert lane is not None
    assert lane.extend(1, delta(lease, 2))
    (await kit.store.wire_for(EXTEND, kit.store.keys.record(lease.generation))).close()
    assert isinstance(await answered, StoreUnavailable), "its outcome is unknown"
    assert not lane.extend(2, delta(lease, 3))
    assert isinstance(await append(kit, lease, 2), Appended)


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
        assert await extend(kit, lease, 2, epoch=epoch, owner=owner) != STORED
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
    for answer in (STORED, 0, 0):
        assert await extend(kit, lease, 2) == answer
    assert await append(kit, lease, 2) == Appended("2-1", 0, "")
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
