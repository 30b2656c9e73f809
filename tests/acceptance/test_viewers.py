"""Many viewers on one API process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import redis

from tests.support.raw_reader import read_whole
from tests.support.stack import Stack, eventually
from worker.providers.sim import sim_text

VIEWERS = 1000
GENERATIONS = 20


def subscribers(redis_url: str) -> set[str]:
    """Connections that are subscribed to as many channels as there are generations."""
    with redis.Redis.from_url(redis_url, protocol=2) as client:
        return {item["addr"] for item in client.client_list() if int(item.get("ssub", 0)) >= GENERATIONS}


async def test_a_thousand_viewers_share_one_connection_and_all_get_their_text(redis_url: str, tmp_path: Path) -> None:
    """Fifty on each of twenty generations, attached while they run; one subscription connection serves them all."""
    with Stack.start(redis_url, tmp_path) as stack:
        options = {"tokens": 60, "seed": 3, "tokens_per_second": 4}
        generations = [await asyncio.to_thread(stack.submit, options) for _ in range(GENERATIONS)]
        for generation in generations:
            await asyncio.to_thread(stack.wait_entries, generation, 3)
        # They stand still until everybody is attached and has been counted, however slow the machine is.
        stack.workers[0].pause()
        port, attached = stack.apis[0].port, 0

        def attach() -> None:
            nonlocal attached
            attached += 1

        viewers = [
            asyncio.create_task(read_whole("127.0.0.1", port, generations[number % GENERATIONS], attached=attach))
            for number in range(VIEWERS)
        ]
        async with asyncio.timeout(180):
            while attached < VIEWERS:
                await asyncio.sleep(0.05)
            # Headers come before the subscription: a slow machine is still at it.
            await asyncio.to_thread(eventually, lambda: len(subscribers(redis_url)) == 1, "every topic is subscribed")
            metrics = (await asyncio.to_thread(stack.get, "/metrics")).body.decode()
            named = subscribers(redis_url)
            stack.workers[0].resume()
            texts = [seen.text for seen in await asyncio.gather(*viewers)]
        assert "legato_subscription_connections 1\n" in metrics
        assert len(named) == 1
        assert set(texts) == {sim_text(60, 3)}
