"""Pages of small entries are read beside the verdict, in one transaction: the answers are those of the script alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from broker.errors import GenerationDeleted, GenerationUnknown
from broker.events import Delta, Entry, encode
from broker.lease import Lease, new_owner
from broker.log import PAGE_BYTES, Appended, Page
from broker.position import BEGINNING
from tests.broker.conftest import Kit


async def written(kit: Kit, texts: Sequence[str]) -> Lease:
    lease = await kit.claimed()
    entries = [Entry(f"{seq}-{lease.epoch}", *encode(Delta(text=text))) for seq, text in enumerate(texts, 1)]
    answer = await kit.log.append(lease.generation, lease.epoch, lease.owner, BEGINNING, entries)
    assert answer == Appended(entries[-1].position, len(texts), "")
    return lease


async def both(kit: Kit, lease: Lease, cursor: str, count: int) -> Page:
    """The page, read either way; there must be no difference."""
    small = await kit.log.read(lease.generation, cursor, count, small=True)
    assert small == await kit.log.read(lease.generation, cursor, count)
    return small


@pytest.mark.parametrize("count", [1, 7, 100, 1000])
async def test_a_page_from_any_place_is_the_same_either_way(kit: Kit, count: int) -> None:
    lease = await written(kit, [f"t{seq} " for seq in range(1, 41)])
    for cursor in (BEGINNING, "1-1", "20-1", "39-1", "40-1"):
        page = await both(kit, lease, cursor, count)
        start = int(cursor.partition("-")[0])
        assert [entry.position for entry in page.entries] == [f"{seq}-1" for seq in range(start + 1, 41)][:count]


async def test_a_position_that_the_log_does_not_hold_is_told_either_way(kit: Kit) -> None:
    lease = await written(kit, ["a", "b"])
    for cursor in ("2-2", "3-1", "9-9"):
        page = await both(kit, lease, cursor, 10)
        assert (page.held, page.entries) == (False, [])


async def test_a_page_of_large_entries_ends_where_it_would_have(kit: Kit) -> None:
    """They were thought to be small."""
    text = "x" * (PAGE_BYTES // 3)
    lease = await written(kit, [text] * 8)
    page = await both(kit, lease, BEGINNING, 100)
    assert (len(page.entries), page.is_small) == (3, False)
    lease = await written(kit, ["y" * (2 * PAGE_BYTES), "z"])
    assert [len(entry.payload) for entry in (await both(kit, lease, BEGINNING, 100)).entries] == [2 * PAGE_BYTES]


async def test_what_is_not_there_is_told_either_way(kit: Kit) -> None:
    for small in (True, False):
        with pytest.raises(GenerationUnknown):
            await kit.log.read("gen_" + "0" * 32, BEGINNING, 1, small=small)
        lease = await written(kit, ["a"])
        with pytest.raises(GenerationUnknown):
            await kit.log.read(lease.generation, BEGINNING, 1, tenant="another", small=small)
        await kit.records.delete(await kit.records.get("acme", lease.generation))
        with pytest.raises(GenerationDeleted):
            await kit.log.read(lease.generation, BEGINNING, 1, small=small)


async def test_a_server_that_forgot_the_script_is_asked_otherwise(kit: Kit) -> None:
    lease = await written(kit, ["a", "b", "c"])
    await kit.raw.script_flush()
    page = await kit.log.read(lease.generation, "1-1", 10, small=True)
    assert [entry.payload for entry in page.entries] == [b"b", b"c"]
    await both(kit, lease, "1-1", 10)


async def test_reads_and_appends_that_are_under_way_together_get_their_own_answers(kit: Kit) -> None:
    """Transactions and scripts share one connection, in the order in which they were asked."""
    lease = await written(kit, [f"t{seq} " for seq in range(1, 101)])
    other = await kit.leases.claim(await kit.submitted(), owner=new_owner())
    assert isinstance(other, Lease)

    async def append(seq: int) -> None:
        prev = f"{seq - 1}-1" if seq > 1 else BEGINNING
        entry = Entry(f"{seq}-1", *encode(Delta(text="o")))
        answer = await kit.log.append(other.generation, other.epoch, other.owner, prev, [entry])
        assert answer == Appended(f"{seq}-1", 1, "")

    async def appends() -> None:
        for seq in range(1, 51):
            await append(seq)

    async with asyncio.TaskGroup() as group:
        group.create_task(appends())
        pages = [
            group.create_task(kit.log.read(lease.generation, f"{1 + at}-1", 20, small=at % 2 == 0)) for at in range(50)
        ]
    for at, page in enumerate(pages):
        assert page.result().entries[0].position == f"{2 + at}-1"
