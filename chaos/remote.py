"""Chaos for a stack that runs already: jobs, readers and broken connections of ours, and what readers must be shown.

Nothing of the stack is touched: the only faults are those of the connections between its clients and its APIs. Whoever
breaks more of it meanwhile (a worker, a node of its store) sees by the same checks what their readers would have seen.
Jobs are of the `sim` provider, so their texts are known; they expire ten minutes after their end.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

import httpx

from chaos.checks import Verdict, check_jobs, check_promptness
from chaos.clients import ANYWHERE, Reader, Seen
from chaos.doors import Door
from chaos.faults import Done
from chaos.follower import Sightings
from chaos.jobs import Job, Jobs, User, sim_texts
from chaos.losses import Losses
from chaos.paths import break_ways
from chaos.proxy import Proxy
from chaos.run import Result, final_of, patiently
from chaos.schedule import Profile, plan
from chaos.shapes import Shape

#: After the last fault everything accepted has to end within this time.
_SETTLE_SECONDS: Final = 120.0
#: A stream that is silent for this long is dead: three of the keepalives that a stack sends by default.
_SILENCE_SECONDS: Final = 45.0
_TTL_SECONDS: Final = 600
_PORTS: Final = {"http": 80, "https": 443}


class Unfit(Exception):
    """The stack cannot be tested; the message says why."""


async def run_against(
    urls: Sequence[str],
    *,
    headers: Mapping[str, str],
    seed: int,
    seconds: float,
    users: int,
    say: Callable[[str], None] = lambda _: None,
) -> Result:
    """Use the stack behind `urls` for so long, under a seed, over connections that break. `headers` go with every
    request. Raises `Unfit`."""
    async with AsyncExitStack() as opened:
        doors = [await _door(url, headers, opened) for url in urls]
        return await _Remote(doors, seed=seed, seconds=seconds, users=users, say=say).go()


class _Remote:
    def __init__(self, doors: list[Door], *, seed: int, seconds: float, users: int, say: Callable[[str], None]) -> None:
        self._doors = doors
        self._seed = seed
        self._users = users
        self._say = say
        self._calm = asyncio.Event()
        self._sightings = Sightings()
        self._verdict = Verdict()
        self._result = Result(Profile.REMOTE, seed, seconds, self._verdict, [], Seen())

    async def go(self) -> Result:
        shapes = [shape for shape in Shape if not shape.needs_the_deployment]
        prefix = f"chaos-{time.time_ns():x}"  # an earlier run of the same seed used the same stack
        texts = await asyncio.to_thread(sim_texts)
        jobs = Jobs(self._seed, texts, shapes=shapes, prefix=prefix, ttl_seconds=_TTL_SECONDS)
        stop = asyncio.Event()
        asker = self._user(jobs, random.Random(0), stop)
        await _fit(asker)
        users = [
            asyncio.create_task(self._user(jobs, random.Random(f"{self._seed}:{number}"), stop).run())
            for number in range(self._users)
        ]
        await self._break(jobs)
        stop.set()
        self._calm.set()
        _, waiting = await asyncio.wait(users, timeout=_SETTLE_SECONDS)
        for task in waiting:
            task.cancel()
        for outcome in await asyncio.gather(*users, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        deadline = time.monotonic() + _SETTLE_SECONDS
        finals = {job.id: await final_of(job, asker, deadline) for job in jobs.all if job.id is not None}
        losses = Losses([], [], lease_seconds=0)
        check_jobs(jobs.all, finals, self._sightings, losses, self._verdict)
        check_promptness(jobs.all, finals, self._result.done, self._verdict)
        self._result.count(jobs.all, self._sightings)
        return self._result

    def _user(self, jobs: Jobs, draw: random.Random, stop: asyncio.Event) -> User:
        return User(jobs, doors=self._doors, draw=draw, reader=self._reader, stop=stop)

    def _reader(self, job: Job, draw: random.Random) -> Reader:
        return Reader(
            str(job.id),
            repeat=job.repeat,
            doors=self._doors,
            draw=draw,
            sightings=self._sightings,
            violations=self._verdict.violations,
            seen=self._result.seen,
            calm=self._calm,
            transports=ANYWHERE,
            silence_seconds=_SILENCE_SECONDS,
        )

    async def _break(self, jobs: Jobs) -> None:
        """The schedule, to its end."""
        loop = asyncio.get_running_loop()
        start, done = loop.time(), self._result.done
        proxies = [door.proxy for door in self._doors]
        for fault in plan(self._seed, Profile.REMOTE, self._result.seconds):
            await asyncio.sleep(max(0.0, start + fault.at - loop.time()))
            since = time.time()
            await break_ways(fault, proxies)
            done.append(Done(fault=fault, since=since, until=time.time(), problem="", target=""))
            if len(done) % 10 == 0:
                seen = f"{self._result.seen.connections} connections, {len(self._verdict.violations)} violations"
                self._say(f"{loop.time() - start:.0f} s: {len(jobs.all)} jobs, {len(done)} faults, {seen}")
        await asyncio.sleep(max(0.0, start + self._result.seconds - loop.time()))


async def _door(url: str, headers: Mapping[str, str], opened: AsyncExitStack) -> Door:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as exc:
        raise Unfit(f"{url!r} is no URL: {exc}") from None
    if parsed.scheme not in _PORTS or not parsed.host:
        raise Unfit(f"{url!r} is no URL of an API; one reads http://127.0.0.1:8700")
    port = parsed.port or _PORTS[parsed.scheme]
    proxy = await Proxy.start((parsed.host, port))
    opened.push_async_callback(proxy.aclose)
    return Door(
        proxy=proxy,
        host=parsed.host,
        port=port,
        authority=parsed.netloc.decode(),
        tls=ssl.create_default_context() if parsed.scheme == "https" else None,
        path=parsed.path.rstrip("/"),
        headers=headers,
    )


async def _fit(asker: User) -> None:
    """One job, to see that the stack takes what this wants to give it."""
    messages = [{"role": "user", "content": "x"}]
    body = {"provider": "sim", "model": "m", "messages": messages, "provider_options": {"tokens": 1}, "ttl_seconds": 60}
    status, answer = await patiently(partial(asker.ask, "POST", "/v1/generations", body), tries=10)
    if status == 0:
        raise Unfit("nobody answers there")
    if status != 202:
        why = "; ".join(f"{item['field']}: {item['message']}" for item in answer.get("errors", ()))
        raise Unfit(
            f"it answered {status} to a job of the `sim` provider ({why or answer.get('detail', 'no reason given')}); "
            "the stack must have it among its LEGATO_PROVIDERS"
        )
