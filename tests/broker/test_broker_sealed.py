"""A sealed log says what it said before, at every position, to everybody who asks; nothing else is ever sealed."""

from __future__ import annotations

import pytest

from broker.errors import GenerationDeleted, GenerationExpired
from broker.events import CancelReason, Completed, Entry, FinishReason, Started, encode
from broker.lease import Ended, Lease, new_owner
from broker.log import PAGE_BYTES, SEAL_BYTES, SEAL_ROWS, Appended, Behind, Closed
from broker.position import BEGINNING
from broker.records import CancelOutcome
from broker.wire import StoreReplyError
from tests.broker.conftest import Kit

END = encode(Completed(finish_reason=FinishReason.STOP, usage=None, characters=0))


def log_of(lease: Lease, texts: list[bytes]) -> list[Entry]:
    """A whole log: some text, a thought in the middle, more text, the end."""
    stored = [encode(Started(attempt=1, provider="sim", model="m"))]
    stored += [(b"d", text) for text in texts]  # type: ignore[list-item]
    stored[len(stored) // 2 : len(stored) // 2] = [(b"r", "gedacht: für".encode())] * 3  # type: ignore[list-item]
    return [Entry(f"{seq}-{lease.epoch}", *one) for seq, one in enumerate([*stored, END], 1)]


async def ended(kit: Kit, texts: list[bytes] | None = None, **options: int) -> tuple[Lease, list[Entry]]:
    """A generation that has ended, and its log."""
    lease = await kit.claimed(await kit.submitted(**options))
    entries = log_of(lease, texts or [b" w%d" % number for number in range(80)])
    prev = BEGINNING
    for at in range(0, len(entries), 500):
        batch = entries[at : at + 500]
        answer = await kit.log.append(lease.generation, lease.epoch, lease.owner, prev, batch)
        assert isinstance(answer, Appended)
        prev = batch[-1].position
    return lease, entries


async def sealed(kit: Kit, texts: list[bytes] | None = None, **options: int) -> tuple[Lease, list[Entry]]:
    lease, entries = await ended(kit, texts, **options)
    assert await kit.log.seal(lease.generation, entries)
    assert await length(kit, lease) < len(entries) // 10 + 5
    return lease, entries


async def length(kit: Kit, lease: Lease) -> int:
    """How many entries the store holds."""
    found: int = await kit.raw.xlen(kit.store.keys.log(lease.generation))
    return found


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("count", [1, 3, 1000])
async def test_every_position_of_a_sealed_log_resumes_exactly(kit: Kit, count: int, small: bool) -> None:
    lease, entries = await sealed(kit)
    for at, start in enumerate([BEGINNING, *(entry.position for entry in entries)]):
        rest, cursor = list[Entry](), start
        while cursor != entries[-1].position:
            page = await kit.log.read(lease.generation, cursor, count, small=small)
            assert page.held
            assert page.rows
            assert page.last == entries[-1].position
            rest += page.entries
            cursor = page.end(cursor)
        assert rest == entries[at:]
    assert (await kit.log.read(lease.generation, cursor, count, small=small)).is_complete(cursor)


@pytest.mark.parametrize("small", [False, True])
async def test_a_position_that_a_sealed_log_does_not_hold_is_told(kit: Kit, small: bool) -> None:
    """Another epoch's inside of a joined entry, at its end, before it; and one behind the end."""
    lease, entries = await sealed(kit)
    for seq in (1, 2, 17, 40, 41, 60, len(entries) - 1, len(entries)):
        for epoch in (lease.epoch + 1, lease.epoch + 10):
            page = await kit.log.read(lease.generation, f"{seq}-{epoch}", 10, small=small)
            assert (page.held, page.rows) == (False, []), (seq, epoch)
    for seq in (len(entries) + 1, 10_000):
        assert not (await kit.log.read(lease.generation, f"{seq}-{lease.epoch}", 10, small=small)).held


async def test_a_position_whose_entry_is_lost_is_not_held_by_the_joined_one_behind_it(kit: Kit) -> None:
    lease, entries = await sealed(kit)
    await kit.raw.xdel(kit.store.keys.log(lease.generation), entries[0].position)
    assert not (await kit.log.read(lease.generation, entries[0].position, 10)).held
    assert (await kit.log.read(lease.generation, entries[1].position, 10)).held


async def test_a_position_of_an_earlier_epoch_is_not_held_by_a_later_ones_entry(kit: Kit) -> None:
    old = await kit.claimed()
    lease = await kit.leases.claim(old.generation, owner=new_owner(), replacing=old)
    assert isinstance(lease, Lease)
    entries = log_of(lease, [b"x"] * 50)
    await kit.log.append(lease.generation, lease.epoch, lease.owner, BEGINNING, entries)
    assert await kit.log.seal(lease.generation, entries)
    for seq in (1, 2, 10, 24, 40, len(entries)):
        assert not (await kit.log.read(lease.generation, f"{seq}-{old.epoch}", 10)).held


async def test_the_whole_log_is_read_and_folded_as_before(kit: Kit) -> None:
    texts = ["wörd ".encode(), "東京".encode(), "🚀".encode()] * 40
    lease, entries = await ended(kit, texts)
    before, _ = await kit.log.folded(lease.generation)
    assert await kit.log.seal(lease.generation, entries)
    after, _ = await kit.log.folded(lease.generation)
    assert await kit.log.read_all(lease.generation) == entries
    assert after.data("completed") == before.data("completed")
    assert (after.text, after.position, after.end) == (before.text, before.position, before.end)


async def test_a_log_that_is_sealed_between_two_pages_is_read_on_where_it_was_left(kit: Kit) -> None:
    """From the start, from inside of what becomes one entry, whichever way the pages are read."""
    for first in (1, 30, 100):
        for small in (False, True):
            lease, entries = await ended(kit, [b" w%d" % number for number in range(300)])
            before = await kit.log.read(lease.generation, BEGINNING, first)
            assert await kit.log.seal(lease.generation, entries)
            after = await kit.log.read(lease.generation, before.end(BEGINNING), 1000, small=small)
            assert before.entries + after.entries == entries


async def test_pages_of_a_sealed_log_are_bounded(kit: Kit) -> None:
    """Rows of 32 KiB: a page holds two, and not a thousand."""
    lease, entries = await sealed(kit, [b"12345"] * 60_000)
    read: list[Entry] = []
    cursor, small = BEGINNING, False
    while True:
        page = await kit.log.read(lease.generation, cursor, 1000, small=small)
        assert page.size <= PAGE_BYTES
        read += page.entries
        if page.is_complete(cursor):
            break
        cursor, small = page.end(cursor), not small
    assert read == entries


async def test_it_takes_far_less_memory(kit: Kit) -> None:
    lease, entries = await ended(kit, [b" word"] * 2000)
    key = kit.store.keys.log(lease.generation)
    before = await kit.raw.memory_usage(key)
    assert await kit.log.seal(lease.generation, entries)
    after = await kit.raw.memory_usage(key)
    assert before is not None
    assert after is not None
    assert after < before / 2
    assert after <= 8 * len(entries)


async def test_it_lives_as_long_as_it_would_have(kit: Kit) -> None:
    lease, entries = await ended(kit, ttl_seconds=1000)
    key = kit.store.keys.log(lease.generation)
    until = await kit.raw.pexpiretime(key)
    assert until > 0
    assert await kit.log.seal(lease.generation, entries)
    assert abs(await kit.raw.pexpiretime(key) - until) <= 1
    await kit.raw.persist(key)
    copy = await kit.raw.dump(key)
    assert await kit.log.seal(lease.generation, entries)
    assert await kit.raw.pttl(key) == -1
    assert await kit.raw.dump(key) == copy


async def test_one_without_a_time_to_live_keeps_none(kit: Kit) -> None:
    lease, entries = await ended(kit)
    await kit.raw.persist(kit.store.keys.log(lease.generation))
    assert await kit.log.seal(lease.generation, entries)
    assert await kit.raw.pttl(kit.store.keys.log(lease.generation)) == -1


async def test_when_its_time_is_over_it_is_expired_as_any(kit: Kit) -> None:
    lease, entries = await sealed(kit)
    await kit.raw.unlink(kit.store.keys.log(lease.generation))
    with pytest.raises(GenerationExpired):
        await kit.log.read(lease.generation, BEGINNING, 1)
    assert not await kit.log.seal(lease.generation, entries)
    assert await length(kit, lease) == 0


async def test_writers_cancels_claims_and_deletes_find_what_they_would_have_found(kit: Kit) -> None:
    lease, entries = await sealed(kit)
    generation, last = lease.generation, entries[-1].position

    async def append(prev: str, batch: list[Entry]) -> object:
        return await kit.log.append(generation, lease.epoch, lease.owner, prev, batch)

    assert await append(last, []) == Appended(last, 0, "")
    assert await append(entries[-11].position, entries[-10:]) == Appended(last, 0, "")
    more = Entry(f"{len(entries) + 1}-{lease.epoch}", b"d", b"x")
    assert await append(last, [more]) == Closed(last)
    assert await append(entries[20].position, [replace_at(entries[21], lease.epoch)]) == Closed(last)
    record = await kit.records.get("acme", generation)
    assert await kit.records.cancel(record, CancelReason.USER) is CancelOutcome.ENDED
    assert isinstance(await kit.leases.claim(generation, owner=new_owner()), Ended)
    assert await kit.log.read_all(generation) == entries
    await kit.records.delete(record)
    with pytest.raises(GenerationDeleted):
        await kit.log.read(generation, BEGINNING, 1)
    assert not await kit.log.seal(generation, entries)


def replace_at(entry: Entry, epoch: int) -> Entry:
    return Entry(entry.position.partition("-")[0] + f"-{epoch}", entry.field, b"other")


async def test_what_it_has_lost_is_put_back_behind_it(kit: Kit) -> None:
    """A store that fell back to a log as it was before its end, and has its end and its sealing once more."""
    lease = await kit.claimed()
    entries = log_of(lease, [b" w%d" % number for number in range(80)])
    await kit.log.append(lease.generation, lease.epoch, lease.owner, BEGINNING, entries[:50])
    keys = [kit.store.keys.record(lease.generation), kit.store.keys.log(lease.generation)]
    dumps = [await kit.raw.dump(key) for key in keys]
    await kit.log.append(lease.generation, lease.epoch, lease.owner, entries[49].position, entries[50:])
    assert await kit.log.seal(lease.generation, entries)
    for key, dump in zip(keys, dumps, strict=True):
        assert dump is not None
        await kit.raw.restore(key, 0, dump, replace=True)
    assert not await kit.log.seal(lease.generation, entries)
    last = entries[-1].position
    answer = await kit.log.append(lease.generation, lease.epoch, lease.owner, last, [])
    assert answer == Behind(entries[49].position)
    answer = await kit.log.append(lease.generation, lease.epoch, lease.owner, entries[49].position, entries[50:])
    assert answer == Appended(last, len(entries) - 50, "")
    assert await kit.log.seal(lease.generation, entries)
    assert await kit.log.read_all(lease.generation) == entries


async def test_a_log_that_has_not_ended_is_never_sealed(kit: Kit) -> None:
    lease = await kit.claimed()
    entries = log_of(lease, [b"x"] * 100)
    await kit.log.append(lease.generation, lease.epoch, lease.owner, BEGINNING, entries[:-1])
    for meant in (entries, entries[:-1]):
        assert not await kit.log.seal(lease.generation, meant)
    assert await length(kit, lease) == len(entries) - 1


async def test_another_log_than_the_one_that_is_meant_is_never_touched(kit: Kit) -> None:
    lease, entries = await ended(kit)
    of_another_epoch = [Entry(entry.position + "7", *entry.stored) for entry in entries]
    longer = [*entries[:-1], Entry(f"{len(entries)}-{lease.epoch}", b"d", b"x")]
    longer.append(Entry(f"{len(entries) + 1}-{lease.epoch}", *END))
    for meant in (of_another_epoch, longer):
        assert not await kit.log.seal(lease.generation, meant)
    with pytest.raises(StoreReplyError, match="HOLE"):
        await kit.log.seal(lease.generation, entries[1:])
    with pytest.raises(StoreReplyError, match="HOLE"):
        await kit.log.seal(lease.generation, [*entries[:30], *entries[31:]])
    assert await length(kit, lease) == len(entries)
    assert await kit.log.read_all(lease.generation) == entries


async def test_a_log_that_lost_an_entry_is_left_as_it_is(kit: Kit) -> None:
    """Whatever happened to it: nothing is made up, and nothing more is taken away."""
    lease, entries = await ended(kit)
    await kit.raw.xdel(kit.store.keys.log(lease.generation), entries[20].position)
    assert not await kit.log.seal(lease.generation, entries)
    assert await length(kit, lease) == len(entries) - 1


async def test_sealing_may_be_repeated(kit: Kit) -> None:
    lease, entries = await sealed(kit)
    rows = await length(kit, lease)
    assert await kit.log.seal(lease.generation, entries)
    assert await length(kit, lease) == rows
    assert await kit.log.read_all(lease.generation) == entries


async def test_what_is_not_worth_it_or_too_much_is_left_alone(kit: Kit) -> None:
    for texts in ([b"x"] * 20, [b"x" * 300] * 100, [b"x" * 200] * (SEAL_BYTES // 200 + 1)):
        lease, entries = await ended(kit, texts)
        assert not await kit.log.seal(lease.generation, entries)
        assert await length(kit, lease) == len(entries)


async def test_a_log_of_many_events_that_are_no_deltas_is_left_alone(kit: Kit) -> None:
    """Each stays an entry of its own: to write them all again in one step is long, and saves nothing."""
    lease, entries = await ended(kit, [b"x" * 300] * SEAL_ROWS + [b"word "] * 100)
    assert not await kit.log.seal(lease.generation, entries)
    assert await length(kit, lease) == len(entries)


async def test_a_server_that_forgot_the_script_is_given_it(kit: Kit) -> None:
    lease, entries = await ended(kit)
    await kit.raw.script_flush()
    assert await kit.log.seal(lease.generation, entries)


async def test_whoever_lost_the_generation_to_a_later_claim_cannot_seal_it(kit: Kit) -> None:
    """It has another log than the one that ended, though as long."""
    old = await kit.claimed()
    before = log_of(old, [b"x"] * 80)
    await kit.log.append(old.generation, old.epoch, old.owner, BEGINNING, before[:30])
    new = await kit.leases.claim(old.generation, owner=new_owner(), replacing=old)
    assert isinstance(new, Lease)
    after = [*before[:30], *(replace_at(entry, new.epoch) for entry in before[30:-1])]
    after.append(Entry(f"{len(before)}-{new.epoch}", *END))
    await kit.log.append(new.generation, new.epoch, new.owner, before[29].position, after[30:])
    assert not await kit.log.seal(old.generation, before)
    assert await length(kit, new) == len(after)
    assert await kit.log.seal(new.generation, after)
    assert await kit.log.read_all(new.generation) == after
    assert (await kit.log.read(new.generation, f"20-{old.epoch}", 10)).held
    assert not (await kit.log.read(new.generation, f"40-{old.epoch}", 10)).held
