"""The keeper seals what it found whole. Nothing waits for that, and nothing is lost where it fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from broker.errors import StoreUnavailable
from broker.events import Completed, Delta, Entry, FinishReason, Started
from broker.log import Log
from tests.broker.conftest import Kit
from worker import keeper as keepers
from worker.keeper import Keeper
from worker.pulse import Pulse
from worker.writer import Writer

#: What is waited for here takes a moment, or never comes.
pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks follow one another as fast as they go."""
    monkeypatch.setattr(keepers, "_CHECKS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(keepers, "_TICK_SECONDS", 0.01)


@asynccontextmanager
async def keeping(kit: Kit) -> AsyncIterator[Keeper]:
    keeper = Keeper(heal_seconds=300, heal_bytes=10**9)
    running = asyncio.create_task(keeper.run())
    yield keeper
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def ended(kit: Kit, words: int = 100) -> Writer:
    """The writer of a generation that has just ended."""
    lease = await kit.claimed()
    pulse = Pulse(tolerance=60)
    writer = Writer(lease, [], log=kit.log, leases=kit.leases, pulse=pulse, heal_seconds=300, on_cancel=lambda: None)
    writer.add(Started(attempt=1, provider="sim", model="m"))
    for number in range(words):
        writer.add(Delta(text=f" w{number}"))
    writer.add(Completed(finish_reason=FinishReason.STOP, usage=None, characters=0))
    await writer.run()
    return writer


async def length(kit: Kit, writer: Writer) -> int:
    found: int = await kit.raw.xlen(kit.store.keys.log(writer.lease.generation))
    return found


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Ends with the test's time-out where it never does."""
    while not await holds():
        await asyncio.sleep(0.01)


async def test_a_log_is_sealed_once_it_was_found_whole(kit: Kit) -> None:
    writer, short = await ended(kit), await ended(kit, words=5)
    async with keeping(kit) as keeper:
        keeper.keep(writer)
        keeper.keep(short)
        await until(lambda: _is(kit, writer, 3))
        await keeper.first_checks()
    assert await kit.log.read_all(writer.lease.generation) == writer.entries
    assert await length(kit, short) == 7


async def _is(kit: Kit, writer: Writer, rows: int) -> bool:
    return await length(kit, writer) == rows


async def test_a_sealing_that_fails_is_tried_again_with_the_next_look(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tries = Log.seal, list[str]()

    async def seal(self: Log, generation: str, entries: list[Entry]) -> bool:
        tries.append(generation)
        if len(tries) == 1:
            raise StoreUnavailable("the outcome is unknown")
        return await real(self, generation, entries)

    monkeypatch.setattr(Log, "seal", seal)
    writer = await ended(kit)
    async with keeping(kit) as keeper:
        keeper.keep(writer)
        await until(lambda: _is(kit, writer, 3))
    assert len(tries) == 2
    assert await kit.log.read_all(writer.lease.generation) == writer.entries


async def test_who_leaves_does_not_wait_for_a_sealing(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = asyncio.Event()
    monkeypatch.setattr(keepers, "_LOOK_SECONDS", 1000.0)

    async def seal(self: Log, generation: str, entries: list[Entry]) -> bool:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError("it never comes to this")

    monkeypatch.setattr(Log, "seal", seal)
    writer = await ended(kit)
    async with keeping(kit) as keeper:
        keeper.keep(writer)
        await begun.wait()
        await keeper.first_checks()
    assert await kit.log.read_all(writer.lease.generation) == writer.entries


async def test_what_was_put_back_is_sealed_again(kit: Kit) -> None:
    writer = await ended(kit)
    keys = [kit.store.keys.record(writer.lease.generation), kit.store.keys.log(writer.lease.generation)]
    async with keeping(kit) as keeper:
        keeper.keep(writer)
        await until(lambda: _is(kit, writer, 3))
        for key in keys:
            await kit.raw.unlink(key)
        keeper.store_returned()
        await until(lambda: _is(kit, writer, 3))
    assert await kit.log.read_all(writer.lease.generation) == writer.entries
