"""The tail on real servers: one connection a server, and no way to miss an entry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from broker.events import Entry
from broker.lease import Lease
from broker.log import Appended
from broker.pace import Pace
from broker.position import BEGINNING
from broker.tail import Tail, Topic
from tests.broker.conftest import Kit


class Unhurried(Pace):
    """That of a loop which is always busy."""

    def pause(self, messages: int) -> float:
        return 0.01


@pytest.fixture(params=[Pace, Unhurried])
async def tail(kit: Kit, request: pytest.FixtureRequest) -> AsyncIterator[Tail]:
    tail = Tail(kit.store, request.param())
    running = asyncio.create_task(tail.run())
    yield tail
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def write(kit: Kit, lease: Lease, count: int, *, pause: float = 0.0) -> None:
    prev = BEGINNING
    for seq in range(1, count + 1):
        place = f"{seq}-{lease.epoch}"
        answer = await kit.log.append(
            lease.generation, lease.epoch, lease.owner, prev, [Entry(place, b"d", b"%d" % seq)]
        )
        assert isinstance(answer, Appended)
        prev = place
        await asyncio.sleep(pause)


async def read(kit: Kit, topic: Topic, count: int) -> list[bytes]:
    """What a viewer would read: from the window by position, from the log where the window does not know."""
    cursor, got = BEGINNING, []
    async with asyncio.timeout(20):
        while len(got) < count:
            version = topic.version
            notices = topic.window.after(cursor)
            if notices is None:
                page = await kit.log.read(topic.generation, cursor, 50)
                assert page.held
                entries = page.entries
                if not entries:
                    topic.window.start(page.last)
            else:
                entries = [notice.entry for notice in notices]
            for entry in entries:
                got.append(entry.payload)
                cursor = entry.position
            if not entries:
                await topic.changed(version, 5)
    return got


async def test_viewers_of_many_generations_share_one_connection_a_server(kit: Kit, tail: Tail) -> None:
    leases = [await kit.claimed() for _ in range(12)]
    servers = {await kit.store.locate(kit.store.keys.log(lease.generation)) for lease in leases}

    async def view(lease: Lease) -> list[bytes]:
        async with tail.follow(lease.generation) as topic:
            return await read(kit, topic, 40)

    async with asyncio.TaskGroup() as group:
        viewers = [group.create_task(view(lease)) for lease in leases for _ in range(3)]
        await asyncio.sleep(0.2)
        assert tail.topics == 12
        assert tail.connections == len(servers)
        for lease in leases:
            group.create_task(write(kit, lease, 40, pause=0.005))
    expected = [b"%d" % seq for seq in range(1, 41)]
    assert all(viewer.result() == expected for viewer in viewers)
    assert tail.topics == 0


async def test_a_killed_subscription_costs_nothing(kit: Kit, tail: Tail) -> None:
    lease = await kit.claimed()

    async def cut() -> None:
        for _ in range(8):
            await asyncio.sleep(0.06)
            for wire in list(tail._wires.values()):
                wire.close()

    async with tail.follow(lease.generation) as topic, asyncio.TaskGroup() as group:
        reading = group.create_task(read(kit, topic, 100))
        group.create_task(write(kit, lease, 100, pause=0.005))
        group.create_task(cut())
    assert reading.result() == [b"%d" % seq for seq in range(1, 101)]


async def test_an_entry_whose_notification_was_lost_is_found_by_the_check(kit: Kit, tail: Tail) -> None:
    lease = await kit.claimed()
    async with tail.follow(lease.generation) as topic, asyncio.TaskGroup() as group:
        reading = group.create_task(read(kit, topic, 6))
        await write(kit, lease, 5)
        await asyncio.sleep(0.1)
        # Stored behind the back of the script: nobody is told.
        await kit.raw.xadd(kit.store.keys.log(lease.generation), {b"d": b"6"}, id="6-1")
    assert reading.result()[-1] == b"6"


async def test_a_viewer_that_comes_while_another_leaves_is_subscribed(kit: Kit, tail: Tail) -> None:
    lease = await kit.claimed()
    for _ in range(20):
        async with tail.follow(lease.generation):
            pass
    async with tail.follow(lease.generation) as topic, asyncio.TaskGroup() as group:
        reading = group.create_task(read(kit, topic, 20))
        group.create_task(write(kit, lease, 20, pause=0.002))
    assert len(reading.result()) == 20
