"""The queue as workers find it: what stands in front of whom."""

from __future__ import annotations

import asyncio

from broker.generation import Priority
from broker.queue import Hint
from broker.totals import Total, Totals
from tests.broker.conftest import Kit

CROWD = 10_000


async def test_ten_thousand_jobs_of_one_tenant_delay_nobody_elses_next_one(kit: Kit) -> None:
    """Two others come last, one of them with less urgent work: each is served within its next turn."""
    crowd = [Hint(f"gen_{number:032x}", "crowd", Priority.INTERACTIVE) for number in range(CROWD)]
    for start in range(0, CROWD, 500):
        await asyncio.gather(*(kit.queue.add(hint) for hint in crowd[start : start + 500]))
    assert await kit.queue.waiting() == CROWD
    await kit.queue.take(3)
    late = Hint("gen_late", "late", Priority.INTERACTIVE)
    batch = Hint("gen_batch", "late", Priority.BATCH)
    await kit.queue.add(late)
    await kit.queue.add(batch)
    taken = (await kit.queue.take(16)).hints
    assert taken.index(late) <= 2
    assert batch in taken


async def test_an_end_is_counted_as_its_hint_is_dropped(kit: Kit) -> None:
    """By who says so, and in the same step."""
    hint = Hint(await kit.submitted(), "acme", Priority.INTERACTIVE)
    await kit.queue.drop([hint], total=Total.ENDED_FAILED)
    await kit.queue.drop([hint])
    assert await kit.queue.waiting() == 0
    counted = await Totals(kit.store).read()
    assert {total: number for total, number in counted.items() if number} == {Total.ENDED_FAILED: 1}
