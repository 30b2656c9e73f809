"""Races between a submit, a cancel, a release, readers and listings: each was once lost."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from broker.errors import GenerationDeleted, GenerationExpired, QueueFull, StoreUnavailable
from broker.events import CancelReason, Completed, Entry, FinishReason, encode
from broker.lease import Busy, Lease, Renewed, new_owner
from broker.log import Appended
from broker.position import BEGINNING
from broker.presence import Presence
from broker.queue import Hint
from broker.records import Records
from broker.scripts import CREATE, Script
from broker.settings import Settings
from broker.store import Store
from tests.broker.conftest import Kit, job


async def test_a_listing_in_the_middle_of_a_submit_does_not_hide_it(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index names the generation before its record exists."""
    run = kit.store.run

    async def list_before_create(script: Script, *rest: Any) -> Any:
        if script is CREATE:
            assert (await kit.records.newest("acme", limit=5)).records == []
        return await run(script, *rest)

    monkeypatch.setattr(kit.store, "run", list_before_create)
    generation = await kit.submitted()
    assert [record.id for record in (await kit.records.newest("acme", limit=5)).records] == [generation]


async def test_a_full_queue_refuses_new_jobs_and_nobody_who_comes_back(kit: Kit) -> None:
    full = Store.__new__(Store)
    full.__dict__ = kit.store.__dict__ | {"settings": kit.store.settings.model_copy(update={"max_queued": 1})}
    records = Records(full, kit.queue)
    accepted = await records.submit("acme", job(), key="first", fingerprint="f")
    with pytest.raises(QueueFull):
        await records.submit("acme", job(), key="second", fingerprint="f")
    assert (await records.submit("acme", job(), key="first", fingerprint="f")).id == accepted.id
    # Refused whole: the key is free, and nothing is listed.
    assert [record.id for record in (await records.newest("acme", limit=5)).records] == [accepted.id]
    [hint] = (await kit.queue.take(5)).hints
    await kit.queue.drop([hint])
    assert not (await records.submit("acme", job(), key="second", fingerprint="other")).replayed


async def test_a_refusal_takes_no_key_away_from_who_came_with_it_meanwhile(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two requests under one key finds the queue full, while the other one is accepted: a third must not start a
    second generation."""
    accepted: list[str] = []

    async def full_for_the_first() -> int:
        monkeypatch.undo()
        accepted.append((await kit.records.submit("acme", job(), key="k", fingerprint="f")).id)
        return kit.store.settings.max_queued

    monkeypatch.setattr(kit.queue, "waiting", full_for_the_first)
    with suppress(QueueFull):
        accepted.append((await kit.records.submit("acme", job(), key="k", fingerprint="f")).id)
    accepted.append((await kit.records.submit("acme", job(), key="k", fingerprint="f")).id)
    assert len(set(accepted)) == 1
    assert [record.id for record in (await kit.records.newest("acme", limit=5)).records] == accepted[:1]


async def test_a_submit_that_was_refused_half_way_is_never_run(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 after its record was made: no sweep and no reader makes a job of it."""

    async def away(*_: object, **__: object) -> bool:
        raise StoreUnavailable("the queue's slot is moving")

    monkeypatch.setattr(kit.queue, "add", away)
    with pytest.raises(StoreUnavailable):
        await kit.records.submit("acme", job(), key="k", fingerprint="f")
    monkeypatch.undo()
    [record] = (await kit.records.newest("acme", limit=5)).records
    assert not record.confirmed
    assert not await kit.records.adopt_orphan(record.id)
    assert (await kit.queue.take(5)).hints == []


async def test_a_submit_whose_last_answer_was_lost_is_taken_back_where_nobody_can_ask_for_it(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503, and everything is stored. With a key the same submit finds the job; without one it would run for nobody."""
    add = kit.queue.add

    async def unheard(hint: Hint) -> bool:
        await add(hint)
        raise StoreUnavailable("the answer was lost")

    monkeypatch.setattr(kit.queue, "add", unheard)
    for key in ("k", None):
        with pytest.raises(StoreUnavailable):
            await kit.records.submit("acme", job(), key=key, fingerprint="f")
    monkeypatch.undo()
    async with asyncio.timeout(20):
        while len(found := (await kit.records.newest("acme", limit=5)).records) > 1 or await kit.queue.waiting() > 1:
            await asyncio.sleep(0.02)
    known = await kit.records.submit("acme", job(), key="k", fingerprint="f")
    assert [record.id for record in found] == [known.id]
    assert [hint.generation for hint in (await kit.queue.take(5)).hints] == [known.id]


async def test_a_record_made_again_under_a_known_key_never_repeats_a_position(kit: Kit) -> None:
    """The store lost the record and kept the key."""
    first = (await kit.records.submit("acme", job(), key="k", fingerprint="f")).id
    before = await kit.claimed(first)
    keys = [kit.store.keys.record(first), kit.store.keys.log(first), kit.store.keys.request(first)]
    await kit.raw.delete(*keys)
    assert (await kit.records.submit("acme", job(), key="k", fingerprint="f")).id == first
    assert (await kit.claimed(first)).epoch > before.epoch


async def test_a_cancel_that_meets_a_release_is_told_to_the_holder(kit: Kit) -> None:
    lease = await kit.claimed()
    await kit.records.cancel(await kit.records.get("acme", lease.generation), CancelReason.USER)
    assert await kit.leases.release(lease, failed_attempt=True) == "user"
    cancelled = Entry(f"1-{lease.epoch}", b"cancelled", b'{"reason":"user"}')
    answer = await kit.log.append(lease.generation, lease.epoch, lease.owner, BEGINNING, [cancelled])
    assert isinstance(answer, Appended)


async def test_a_claim_says_where_the_log_ends(kit: Kit) -> None:
    """Whoever holds it need not read an empty log; asked again under the same owner it says the same."""
    generation, owner = await kit.submitted(), new_owner()
    for _ in range(2):
        lease = await kit.leases.claim(generation, owner=owner)
        assert isinstance(lease, Lease)
        assert lease.head == BEGINNING
    first = Entry(f"1-{lease.epoch}", b"d", b"Hello")
    assert isinstance(await kit.log.append(generation, lease.epoch, lease.owner, BEGINNING, [first]), Appended)
    await kit.leases.release(lease, failed_attempt=False)
    again = await kit.claimed(generation)
    assert again.head == first.position
    assert await kit.log.read_all(generation) == [first]


async def test_a_release_may_be_repeated(kit: Kit) -> None:
    lease = await kit.claimed()
    assert await kit.leases.release(lease, failed_attempt=False) is True
    assert await kit.leases.release(lease, failed_attempt=False) is True
    assert isinstance(await kit.leases.claim(lease.generation, owner=new_owner()), Lease)
    assert await kit.leases.release(lease, failed_attempt=False) is False


async def test_deleted_is_told_from_expired(kit: Kit) -> None:
    ended = await kit.claimed()
    done = encode(Completed(finish_reason=FinishReason.STOP, usage=None, characters=0))
    await kit.log.append(ended.generation, ended.epoch, ended.owner, BEGINNING, [Entry("1-1", *done)])
    await kit.raw.delete(kit.store.keys.log(ended.generation))
    with pytest.raises(GenerationExpired) as caught:
        await kit.log.read(ended.generation, BEGINNING, 1)
    assert not isinstance(caught.value, GenerationDeleted)
    erased = await kit.submitted()
    await kit.records.delete(await kit.records.get("acme", erased))
    with pytest.raises(GenerationDeleted):
        await kit.log.read(erased, BEGINNING, 1)


async def test_a_farewell_does_not_overtake_a_greeting(kit: Kit) -> None:
    """One viewer leaves in the same turn of the loop as another comes."""
    presence, generation = Presence(kit.store), await kit.submitted()
    arrived, leave = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        async with presence.attending(generation):
            arrived.set()
            await leave.wait()

    leaving = asyncio.create_task(first())
    await arrived.wait()
    leave.set()
    await asyncio.sleep(0)
    async with presence.attending(generation):
        await leaving
        await asyncio.sleep(0.1)
        assert await kit.raw.zcard(kit.store.keys.viewers(generation)) == 1


async def test_the_time_nobody_held_it_counts_against_no_viewer(kit: Kit) -> None:
    """Unattended before a hand-over, attended during it: the next holder starts to count anew."""
    lease = await kit.claimed(await kit.submitted(grace_seconds=0.2))
    assert await kit.leases.renew(lease) == Renewed("")
    await kit.leases.release(lease, failed_attempt=False)
    await asyncio.sleep(0.3)
    again = await kit.claimed(lease.generation)
    assert await kit.leases.renew(again) == Renewed("")


async def test_nobody_is_taken_over_from_just_after_a_break_or_a_loss(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kit.store, "settings", kit.store.settings.model_copy(update={"lease_seconds": 1}))
    lease = await kit.claimed()
    key = kit.store.keys.record(lease.generation)
    while await kit.store.seconds_since_loss(key) < 1 or not kit.store.steady(1):
        await asyncio.sleep(0.05)
    await kit.raw.hset(key, "lease", 1)
    with monkeypatch.context() as patched:
        later = asyncio.get_running_loop().time() + 600  # however slow the machine, no lease has passed since
        patched.setattr(asyncio.get_running_loop(), "time", lambda: later)
        kit.store.note_break()  # wherever it was: a failover changes addresses
    assert isinstance(await kit.leases.claim(lease.generation, owner=new_owner()), Busy)
    kit.store.note_break()
    while not kit.store.steady(1):
        await asyncio.sleep(0.05)
    for number in range(64):  # and the server was found empty, though no connection broke
        await kit.raw.delete(kit.store.keys.marker(number))
    assert isinstance(await kit.leases.claim(lease.generation, owner=new_owner()), Busy)
    while await kit.store.seconds_since_loss(key) < 1:
        await asyncio.sleep(0.05)
    taken = await kit.leases.claim(lease.generation, owner=new_owner())
    assert isinstance(taken, Lease)
    assert (taken.epoch, taken.attempt) == (lease.epoch + 1, 2)


async def test_a_cluster_that_is_away_is_a_passing_fault() -> None:
    """redis-py says so with exceptions that are none of its own kind."""
    store = Store("cluster://127.0.0.1:1", Settings())
    for call in (store.locate("k"), store.refresh(), store.get("k"), store.facts(), store.losses()):
        with pytest.raises(StoreUnavailable):
            await call
    await store.aclose()
