"""The writing side as a process of its own, for W5.

    python -m bench.appender legato|redis_asyncio --redis URL --generations 50 --tokens 2000 --batch 1

`legato` is what a worker does: `worker.writer` over `broker.log`, each generation waiting until its batch is stored
before it has the next. `redis_asyncio` is `await redis.xadd(…)` of each token, or a pipeline of `--batch`. With
`--words` the tokens are words of 5 bytes, as models send them; with `--seal` each log is ended and sealed. Prints one
JSON object; its CPU is counted from the first token on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

import redis.asyncio as redis
import uvloop

from bench.legato import claimed, settings
from broker.events import Completed, FinishReason
from broker.lease import Lease, Leases
from broker.log import Log
from broker.store import Store
from worker.pulse import Pulse
from worker.writer import Writer

#: A token as the other workloads have it: 26 bytes.
TOKEN: Final = "~%07d:%016x;"

#: Tokens as models send them: 5 bytes, on the average.
WORDS: Final = (" the", " of", " token", " a", " stream", ",", " resumes", " where", " it", " was", " left", " so")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is written."""

    generations: int
    tokens: int
    batch: int
    words: bool
    seal: bool

    def texts(self) -> list[str]:
        """The tokens, made before the clock runs."""
        if self.words:
            return [WORDS[number % len(WORDS)] for number in range(self.tokens)]
        return [TOKEN % (number + 1, time.monotonic_ns()) for number in range(self.tokens)]


async def legato(url: str, plan: Plan) -> dict[str, float]:
    """Through the worker's own writer."""
    store = Store(url, settings(url))
    log, leases, pulse = Log(store), Leases(store), Pulse(tolerance=60)
    texts = plan.texts()

    async def one(lease: Lease) -> None:
        writer = Writer(lease, [], log=log, leases=leases, pulse=pulse, heal_seconds=300, on_cancel=lambda: None)
        running = asyncio.create_task(writer.run())
        for seq in range(0, plan.tokens, plan.batch):
            for text in texts[seq : seq + plan.batch]:
                writer.add_text(text)
            await writer.flushed()
        if plan.seal:
            writer.add(Completed(finish_reason=FinishReason.STOP, usage=None, characters=0))
            await running
            assert await writer.seal()
        running.cancel()

    try:
        held = await claimed(store, plan.generations)
        return await _timed([lambda lease=lease: one(lease) for lease in held], plan)  # type: ignore[misc]
    finally:
        await store.aclose()


async def redis_asyncio(url: str, plan: Plan) -> dict[str, float]:
    """Through redis-py."""
    client = redis.from_url(url, max_connections=plan.generations)
    texts = plan.texts()

    async def one(name: str) -> None:
        for seq in range(0, plan.tokens, plan.batch):
            if plan.batch == 1:
                await client.xadd(name, {"d": texts[seq]})
                continue
            async with client.pipeline(transaction=False) as pipeline:
                for text in texts[seq : seq + plan.batch]:
                    pipeline.xadd(name, {"d": text})
                await pipeline.execute()

    try:
        await client.ping()
        return await _timed([lambda n=n: one(f"appender{n}") for n in range(plan.generations)], plan)  # type: ignore[misc]
    finally:
        await client.aclose()


async def _timed(ones: list[Callable[[], Coroutine[Any, Any, None]]], plan: Plan) -> dict[str, float]:
    tokens = plan.generations * plan.tokens
    cpu, began = time.process_time(), time.monotonic()
    await asyncio.gather(*(one() for one in ones))
    spent, seconds = time.process_time() - cpu, time.monotonic() - began
    return {"tokens": tokens, "cpu_us": spent * 1e6, "seconds": seconds, "process_cpu_us": time.process_time() * 1e6}


KINDS: Final = {"legato": legato, "redis_asyncio": redis_asyncio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--redis", required=True)
    parser.add_argument("--generations", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--words", action="store_true")
    parser.add_argument("--seal", action="store_true")
    options = vars(parser.parse_args())
    run, url = KINDS[options.pop("kind")], options.pop("redis")
    print(json.dumps(uvloop.run(run(url, Plan(**options)))))


if __name__ == "__main__":
    main()
