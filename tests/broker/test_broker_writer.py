"""The worker's writer over a real store: its two roads, the text that waits, and what breaks between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from broker.errors import LeaseLost
from broker.events import CancelReason, Completed, Delta, Entry, FinishReason, Started, decode
from broker.lease import Lease, new_owner
from broker.scripts import EXTEND
from tests.broker.conftest import Kit
from worker.pulse import Pulse
from worker.writer import UPSTREAM, Writer


def writer_of(kit: Kit, lease: Lease) -> Writer:
    return Writer(
        lease,
        [],
        log=kit.log,
        leases=kit.leases,
        pulse=Pulse(tolerance=60),
        heal_seconds=300,
        on_cancel=lambda: None,
    )


@asynccontextmanager
async def writing(kit: Kit, lease: Lease) -> AsyncIterator[Writer]:
    """A writer whose task runs, with its first event stored: what follows goes over a lane."""
    writer = writer_of(kit, lease)
    running = asyncio.create_task(writer.run())
    writer.add(Started(attempt=1, provider="sim", model="m"))
    await writer.flushed()
    yield writer
    if not running.done():
        running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def stored(kit: Kit, lease: Lease) -> list[Entry]:
    return await kit.log.read_all(lease.generation)


def text_of(entries: list[Entry]) -> str:
    return "".join(event.text for event in map(decode, entries) if isinstance(event, Delta))


def assert_dense(entries: list[Entry], lease: Lease) -> None:
    assert [entry.position for entry in entries] == [f"{seq}-{lease.epoch}" for seq in range(1, len(entries) + 1)]


async def test_text_that_comes_one_by_one_is_one_delta_each(kit: Kit) -> None:
    lease = await kit.claimed()
    async with writing(kit, lease) as writer:
        for number in range(20):
            writer.add_text(f" {number}")
            await writer.flushed()
    entries = await stored(kit, lease)
    assert [entry.payload.decode() for entry in entries[1:]] == [f" {number}" for number in range(20)]
    assert_dense(entries, lease)


async def test_text_that_waits_becomes_one_delta(kit: Kit) -> None:
    lease = await kit.claimed()
    async with writing(kit, lease) as writer:
        for number in range(500):
            writer.add_text(f" {number}é")
        await writer.flushed()
        assert writer.pieces == 500
        writer.add(Delta(text="by itself"))
        assert writer.pieces == 501
        await writer.flushed()
    entries = await stored(kit, lease)
    assert text_of(entries) == "".join(f" {number}é" for number in range(500)) + "by itself"
    assert len(entries) < 10
    assert_dense(entries, lease)


async def test_what_is_noted_is_stored_with_its_text_and_no_more_is_joined_to_that(kit: Kit) -> None:
    """A mark of where to read on names a position: what comes behind the mark must not get into that entry."""
    lease = await kit.claimed()
    async with writing(kit, lease) as writer:
        writer.add_text("before")
        position = writer.entries[-1].position
        writer.note(UPSTREAM, position)
        writer.add_text(" after")
        await writer.flushed()
        assert await kit.raw.hget(kit.store.keys.record(lease.generation), UPSTREAM) == position.encode()
    assert [entry.payload for entry in (await stored(kit, lease))[1:]] == [b"before", b" after"]


async def test_other_events_keep_their_place_between_texts(kit: Kit) -> None:
    lease = await kit.claimed()
    async with writing(kit, lease) as writer:
        for number in range(30):
            writer.add_text(f"{number},")
            if number % 7 == 3:
                writer.add(Started(attempt=number, provider="sim", model="m"))
        writer.add(Completed(finish_reason=FinishReason.STOP, usage=None, characters=0))
        await writer.flushed()
    entries = await stored(kit, lease)
    assert_dense(entries, lease)
    seen = ""
    for event in map(decode, entries[1:]):
        match event:
            case Delta(text=text):
                seen += text
            case Started(attempt=attempt):
                seen += f"<{attempt}>"
    expected = "".join(f"{n}," + (f"<{n}>" if n % 7 == 3 else "") for n in range(30))
    assert seen == expected
    assert entries[-1].is_terminal


async def test_a_connection_that_breaks_again_and_again_loses_and_doubles_nothing(kit: Kit) -> None:
    lease = await kit.claimed()
    key = kit.store.keys.record(lease.generation)
    async with writing(kit, lease) as writer:
        for number in range(300):
            writer.add_text(f" {number}")
            if number % 30 == 7:
                await asyncio.sleep(0)  # it is sent, and not answered
                (await kit.store.wire_for(EXTEND, key)).close()
            elif number % 30 == 20:
                await kit.raw.script_flush()
            elif number % 3 == 0:
                await writer.flushed()
        await writer.flushed()
    entries = await stored(kit, lease)
    assert text_of(entries) == "".join(f" {number}" for number in range(300))
    assert_dense(entries, lease)


async def test_a_log_that_was_lost_under_way_is_put_back(kit: Kit) -> None:
    lease = await kit.claimed()
    async with writing(kit, lease) as writer:
        for number in range(50):
            writer.add_text(f" {number}")
            await writer.flushed()
        await kit.raw.delete(kit.store.keys.log(lease.generation))
        writer.add_text(" and on")
        await writer.flushed()
    entries = await stored(kit, lease)
    assert text_of(entries) == "".join(f" {number}" for number in range(50)) + " and on"
    assert_dense(entries, lease)


async def test_a_question_while_an_append_is_under_way_is_asked_behind_it(kit: Kit) -> None:
    lease = await kit.claimed()
    async with writing(kit, lease) as writer:
        writer.add_text("text")
        await asyncio.sleep(0)
        await kit.raw.delete(kit.store.keys.log(lease.generation))  # behind what is under way
        writer.ask()
        while await kit.raw.xlen(kit.store.keys.log(lease.generation)) != 2:
            await asyncio.sleep(0.01)
    assert text_of(await stored(kit, lease)) == "text"


async def test_a_stored_cancel_is_heard_of_with_the_next_text(kit: Kit) -> None:
    lease = await kit.claimed()
    async with writing(kit, lease) as writer:
        writer.add_text("one")
        await writer.flushed()
        await kit.records.cancel(await kit.records.get("acme", lease.generation), CancelReason.USER)
        assert writer.cancel_reason is None
        writer.add_text(" two")
        await writer.flushed()
        assert writer.cancel_reason is CancelReason.USER


async def test_who_was_replaced_stops_with_its_next_text(kit: Kit) -> None:
    lease = await kit.claimed()
    writer = writer_of(kit, lease)
    running = asyncio.create_task(writer.run())
    writer.add(Started(attempt=1, provider="sim", model="m"))
    writer.add_text("mine")
    await writer.flushed()
    assert isinstance(await kit.leases.claim(lease.generation, owner=new_owner(), replacing=lease), Lease)
    writer.add_text("late")
    (how,) = await asyncio.gather(running, return_exceptions=True)
    assert isinstance(how, LeaseLost)
    assert text_of(await stored(kit, lease)) == "mine"


async def test_a_backlog_is_full_in_bytes_however_few_deltas_it_becomes(kit: Kit) -> None:
    lease = await kit.claimed()
    async with writing(kit, lease) as writer:
        piece = "x" * 1000
        added = 0
        while not writer.is_full:
            writer.add_text(piece)
            added += 1
            assert added < 5000
        await writer.room()
        await writer.flushed()
    assert text_of(await stored(kit, lease)) == piece * added
