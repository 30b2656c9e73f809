"""The tail on real servers: one connection a server, and no way to miss an entry."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack

import pytest

from broker.backoff import unharmed
from broker.errors import StoreUnavailable
from broker.events import Entry
from broker.lease import Lease
from broker.log import Appended
from broker.pace import Pace
from broker.position import BEGINNING
from broker.tail import Tail, Topic
from broker.wire import Address, Wire
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
    async with asyncio.timeout(60):
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
        while tail.connections < len(servers):
            await asyncio.sleep(0.01)
        assert tail.topics == 12
        for lease in leases:
            group.create_task(write(kit, lease, 40, pause=0.005))
    expected = [b"%d" % seq for seq in range(1, 41)]
    assert all(viewer.result() == expected for viewer in viewers)
    assert tail.topics == 0
    assert tail.connections == len(servers)


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


async def test_of_many_quiet_logs_the_check_finds_the_one_that_grew(
    kit: Kit, tail: Tail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where they are looked at in several goes, and some of them are gone or empty."""
    monkeypatch.setattr("broker.tail._CHECKED_AT_ONCE", 3)
    looks, last_ids = Counter[str](), kit.store.last_ids

    async def counted(address: Address, logs: Sequence[str]) -> list[str | None]:
        found = await last_ids(address, logs)
        looks.update(logs)
        return found

    monkeypatch.setattr(kit.store, "last_ids", counted)
    leases = [await kit.claimed() for _ in range(10)]
    logs = [kit.store.keys.log(lease.generation) for lease in leases]
    for lease in leases:
        await write(kit, lease, 5)
    async with AsyncExitStack() as stack:
        topics = [await stack.enter_async_context(tail.follow(lease.generation)) for lease in leases]
        for topic, lease in zip(topics, leases, strict=True):
            topic.window.start(f"5-{lease.epoch}")
        before = [topic.version for topic in topics]
        await kit.raw.xadd(logs[7], {b"d": b"6"}, id="6-1")
        await kit.raw.delete(logs[2])
        await kit.raw.xtrim(logs[4], maxlen=0)
        looks.clear()
        async with asyncio.timeout(60):
            while not all(looks[log] >= 2 for log in logs):  # one may have begun before
                await asyncio.sleep(0.05)
    changed = [topic.version > version for topic, version in zip(topics, before, strict=True)]
    assert [at for at, seen in enumerate(changed) if seen] == [2, 4, 7]


async def test_a_log_that_nobody_serves_does_not_keep_the_others_from_being_looked_at(
    kit: Kit, tail: Tail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster may have lost one slot, and serve all others."""
    unserved, lease = await kit.claimed(), await kit.claimed()
    locate = kit.store.locate

    async def located(key: str) -> Address:
        if unserved.generation in key:
            raise StoreUnavailable("no node of the cluster serves the key")
        return await locate(key)

    async with tail.follow(unserved.generation), tail.follow(lease.generation) as topic, asyncio.TaskGroup() as group:
        monkeypatch.setattr(kit.store, "locate", located)
        reading = group.create_task(read(kit, topic, 6))
        await write(kit, lease, 5)
        await asyncio.sleep(0.1)
        await kit.raw.xadd(kit.store.keys.log(lease.generation), {b"d": b"6"}, id="6-1")
    assert reading.result()[-1] == b"6"


async def test_where_notifications_cannot_be_had_the_check_brings_what_is_written(
    kit: Kit, tail: Tail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No connection more can be had, say; the ones there are still serve."""

    async def refused(address: Address) -> Wire:
        raise StoreUnavailable("max number of clients reached")

    monkeypatch.setattr(tail, "_wire", refused)
    hurried = kit.store.settings.model_copy(update={"store_timeout_seconds": 0.1})
    monkeypatch.setattr(kit.store, "settings", hurried)
    lease = await kit.claimed()
    async with tail.follow(lease.generation) as topic, asyncio.TaskGroup() as group:
        reading = group.create_task(read(kit, topic, 20))
        group.create_task(write(kit, lease, 20, pause=0.1))
    assert reading.result() == [b"%d" % seq for seq in range(1, 21)]


async def test_last_ids_say_what_is_there(kit: Kit) -> None:
    there, empty, missing, other = (
        kit.store.keys.log(f"gen_{name}") for name in ("there", "empty", "missing", "other")
    )
    await kit.raw.xadd(there, {b"d": b"x"}, id="3-1")
    await kit.raw.xadd(empty, {b"d": b"x"}, id="1-1")
    await kit.raw.xtrim(empty, maxlen=0)
    await kit.raw.set(other, b"no stream")
    found = {}
    for log in (there, empty, missing, other):
        (found[log],) = await kit.store.last_ids(await kit.store.locate(log), [log])
    assert found == {there: "3-1", empty: BEGINNING, missing: None, other: None}
    assert await kit.store.last_ids(await kit.store.locate(there), []) == []


async def test_a_viewer_that_comes_while_another_leaves_is_subscribed(kit: Kit, tail: Tail) -> None:
    lease = await kit.claimed()
    for _ in range(20):
        async with tail.follow(lease.generation):
            pass
    async with tail.follow(lease.generation) as topic, asyncio.TaskGroup() as group:
        reading = group.create_task(read(kit, topic, 20))
        group.create_task(write(kit, lease, 20, pause=0.002))
    assert len(reading.result()) == 20


async def test_a_defect_in_the_look_at_quiet_logs_leaves_nobody_without_news(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All loops of the tail end with the one that has it. They start again, and who came in between is subscribed."""
    tail = Tail(kit.store)
    broken = asyncio.Event()

    async def defect(address: Address, logs: Sequence[str]) -> list[str | None]:
        broken.set()
        raise RuntimeError("a defect")

    leases = [await kit.claimed() for _ in range(2)]
    running = asyncio.create_task(unharmed(tail.run))
    try:
        async with asyncio.timeout(60), tail.follow(leases[0].generation) as before:
            with monkeypatch.context() as patched:
                patched.setattr(kit.store, "last_ids", defect)
                await broken.wait()
            monkeypatch.setattr(tail, "_check_loop", asyncio.Event().wait)  # from now on only notifications tell
            async with tail.follow(leases[1].generation) as after:
                for lease, topic in zip(leases, (before, after), strict=True):
                    version = topic.version
                    await write(kit, lease, 1)
                    assert await topic.changed(version, 30)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
