"""The log on real servers: what an append and a read answer, and what they leave behind."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker.errors import DataLost, GenerationExpired, GenerationUnknown
from broker.events import Cancelled, CancelReason, Completed, Entry, FinishReason, encode
from broker.generation import State
from broker.lease import Ended, Lease, new_owner
from broker.log import Appended, Behind, Closed, Diverged, Fenced, Gone
from broker.log import Cancelled as CancelledAnswer
from broker.position import BEGINNING
from broker.wire import StoreReplyError
from tests.broker.conftest import Kit


def deltas(lease: Lease, first: int, last: int) -> list[Entry]:
    return [Entry(f"{seq}-{lease.epoch}", b"d", b"token %d" % seq) for seq in range(first, last + 1)]


def end(lease: Lease, seq: int) -> Entry:
    return Entry(f"{seq}-{lease.epoch}", *encode(Completed(finish_reason=FinishReason.STOP, usage=None, characters=0)))


async def append(kit: Kit, lease: Lease, prev: str, entries: list[Entry]) -> object:
    return await kit.log.append(lease.generation, lease.epoch, lease.owner, prev, entries)


async def test_an_append_is_read_back_from_every_position(kit: Kit) -> None:
    lease = await kit.claimed()
    entries = deltas(lease, 1, 5)
    assert await append(kit, lease, BEGINNING, entries) == Appended("5-1", 5, "")
    for at, entry in enumerate(entries):
        page = await kit.log.read(lease.generation, entry.position, 10)
        assert page.held
        assert page.entries == entries[at + 1 :]


async def test_an_append_that_is_repeated_is_stored_once(kit: Kit) -> None:
    lease = await kit.claimed()
    first = deltas(lease, 1, 3)
    await append(kit, lease, BEGINNING, first)
    assert await append(kit, lease, BEGINNING, first) == Appended("3-1", 0, "")
    assert await append(kit, lease, BEGINNING, deltas(lease, 1, 5)) == Appended("5-1", 2, "")
    assert await kit.log.read_all(lease.generation) == deltas(lease, 1, 5)


async def test_a_repeated_terminal_append_is_told_that_it_succeeded(kit: Kit) -> None:
    lease = await kit.claimed()
    whole = [*deltas(lease, 1, 2), end(lease, 3)]
    assert await append(kit, lease, BEGINNING, whole) == Appended("3-1", 3, "")
    assert await append(kit, lease, BEGINNING, whole) == Appended("3-1", 0, "")
    assert await append(kit, lease, "3-1", deltas(lease, 4, 4)) == Closed("3-1")


async def test_a_hole_is_refused(kit: Kit) -> None:
    lease = await kit.claimed()
    assert await append(kit, lease, "4-1", deltas(lease, 5, 5)) == Behind(BEGINNING)
    with pytest.raises(StoreReplyError, match="HOLE"):
        await append(kit, lease, BEGINNING, [*deltas(lease, 1, 1), *deltas(lease, 3, 3)])
    with pytest.raises(StoreReplyError, match="HOLE"):
        await append(kit, lease, BEGINNING, [end(lease, 1), *deltas(lease, 2, 2)])
    assert await kit.log.read_all(lease.generation) == []


async def test_a_later_claim_fences_every_earlier_writer(kit: Kit) -> None:
    old = await kit.claimed()
    await append(kit, old, BEGINNING, deltas(old, 1, 2))
    new = await kit.leases.claim(old.generation, owner=new_owner(), replacing=old)
    assert isinstance(new, Lease)
    assert new.epoch == old.epoch + 1
    assert await append(kit, old, "2-1", deltas(old, 3, 3)) == Fenced(new.epoch)
    assert await append(kit, new, "2-1", deltas(new, 3, 3)) == Appended("3-2", 1, "")
    impostor = await kit.log.append(new.generation, new.epoch, "somebody", "3-2", deltas(new, 4, 4))
    assert impostor == Fenced(new.epoch)


async def test_a_claim_that_replaces_a_lease_rises_above_it_whatever_the_record_says(kit: Kit) -> None:
    """The store has forgotten the claim, and shows no other history for it."""
    old = replace(await kit.claimed(), epoch=7)
    new = await kit.leases.claim(old.generation, owner=new_owner(), replacing=old)
    assert isinstance(new, Lease)
    assert new.epoch == 8


async def test_somebody_elses_entry_at_the_same_seq_is_never_joined(kit: Kit) -> None:
    old = await kit.claimed()
    new = await kit.leases.claim(old.generation, owner=new_owner(), replacing=old)
    assert isinstance(new, Lease)
    await append(kit, new, BEGINNING, deltas(new, 1, 3))
    assert await append(kit, new, "3-1", deltas(new, 4, 4)) == Diverged("3-2")


async def test_somebody_elses_entry_is_not_taken_for_one_of_the_batch(kit: Kit) -> None:
    """A later holder's claim was forgotten, and the earlier one went on under the seq that the later one had given."""
    first = await kit.claimed()
    await append(kit, first, BEGINNING, deltas(first, 1, 3))
    later = replace(first, epoch=5, owner="later")
    assert await append(kit, later, "2-1", deltas(later, 3, 4)) == Diverged("3-1")
    assert [entry.position for entry in await kit.log.read_all(first.generation)] == ["1-1", "2-1", "3-1"]


async def test_a_stored_cancel_lets_only_cancelled_end_the_log(kit: Kit) -> None:
    lease = await kit.claimed()
    await append(kit, lease, BEGINNING, deltas(lease, 1, 1))
    await kit.records.cancel(await kit.records.get("acme", lease.generation), CancelReason.USER)
    assert await append(kit, lease, "1-1", deltas(lease, 2, 2)) == Appended("2-1", 1, "user")
    assert await append(kit, lease, "2-1", [end(lease, 3)]) == CancelledAnswer("2-1", "user")
    cancelled = Entry("3-1", *encode(Cancelled(reason=CancelReason.USER)))
    assert await append(kit, lease, "2-1", [cancelled]) == Appended("3-1", 1, "user")
    assert (await kit.records.get("acme", lease.generation)).state is State.CANCELLED


async def test_unknown_deleted_expired_and_lost_never_look_alike_nor_empty(kit: Kit) -> None:
    with pytest.raises(GenerationUnknown):
        await kit.log.read("gen_" + "0" * 32, BEGINNING, 1)
    lease = await kit.claimed()
    assert (await kit.log.read(lease.generation, BEGINNING, 1)).entries == []
    await append(kit, lease, BEGINNING, deltas(lease, 1, 2))
    await kit.raw.delete(kit.store.keys.log(lease.generation))
    with pytest.raises(DataLost):
        await kit.log.read(lease.generation, BEGINNING, 1)
    await kit.records.delete(await kit.records.get("acme", lease.generation))
    with pytest.raises(GenerationExpired):
        await kit.log.read(lease.generation, BEGINNING, 1)
    assert await append(kit, lease, "2-1", deltas(lease, 3, 3)) == Fenced(2)
    done = await kit.claimed()
    await append(kit, done, BEGINNING, [end(done, 1)])
    await kit.raw.delete(kit.store.keys.log(done.generation))
    with pytest.raises(GenerationExpired):
        await kit.log.read(done.generation, BEGINNING, 1)


async def test_an_append_without_a_record_is_told_so(kit: Kit) -> None:
    lease = await kit.claimed()
    await kit.raw.delete(kit.store.keys.record(lease.generation))
    assert await append(kit, lease, BEGINNING, deltas(lease, 1, 1)) == Gone()


async def test_nothing_of_a_generation_expires_before_its_end(kit: Kit) -> None:
    lease = await kit.claimed()
    keys = [kit.store.keys.record(lease.generation), kit.store.keys.log(lease.generation)]
    keys.append(kit.store.keys.request(lease.generation))
    assert [await kit.raw.pttl(key) for key in keys] == [-1, -1, -1]
    await append(kit, lease, BEGINNING, [end(lease, 1)])
    record, log, request = [await kit.raw.pttl(key) for key in keys]
    assert 3_590_000 < log <= 3_600_000
    assert 3_590_000 < request <= 3_600_000
    assert record > 7 * 86_400_000


async def test_a_claim_that_is_repeated_gives_the_same_epoch(kit: Kit) -> None:
    generation, owner = await kit.submitted(), new_owner()
    first = await kit.leases.claim(generation, owner=owner)
    again = await kit.leases.claim(generation, owner=owner)
    assert isinstance(first, Lease)
    assert isinstance(again, Lease)
    assert (first.epoch, first.attempt) == (again.epoch, again.attempt) == (1, 1)


async def test_an_ended_generation_cannot_be_claimed(kit: Kit) -> None:
    lease = await kit.claimed()
    await append(kit, lease, BEGINNING, [end(lease, 1)])
    assert await kit.leases.claim(lease.generation, owner=new_owner()) == Ended(State.COMPLETED)


async def test_an_epoch_jumps_when_the_store_may_have_forgotten_claims(kit: Kit) -> None:
    generation = await kit.submitted()
    await kit.raw.hset(kit.store.keys.record(generation), "history", "0" * 40)
    lease = await kit.claimed(generation)
    assert lease.epoch > 1 << 20
