"""One run: start a deployment, let users use it while a schedule breaks it, let it settle, check."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from broker.keys import Keys
from chaos.checks import (
    Final_,
    Verdict,
    check_jobs,
    check_logs,
    check_processes,
    check_promptness,
    check_refused,
    check_stored,
    check_take_overs,
    check_tools,
    generation_of,
)
from chaos.clients import PING_SECONDS, Reader, Seen
from chaos.cluster import Cluster
from chaos.doors import Door
from chaos.faults import Done, Faults, end
from chaos.follower import TERMINAL, Sightings, Violation
from chaos.jobs import Job, Jobs, User, sim_texts
from chaos.leaks import STORE_CONNECTIONS, look_for_leaks, most_tasks
from chaos.losses import Losses
from chaos.processes import Api, Child, Reading, Waits, held
from chaos.proxy import Proxy
from chaos.schedule import Fault, Kind, Profile, plan
from chaos.shapes import DEAD, Shape
from chaos.stores import Replicated, Sentinels, Single, Stores, free_port
from chaos.toolbox import Toolbox

LEASE_SECONDS: Final = 2.0
#: As the worker's setting of that name.
HEAL_SECONDS: Final = 300.0

#: After the last fault everything accepted has to end within this time: the longest job, the 30 s in which a lost one
#: may still come back, and some seconds for a slow machine.
_SETTLE_SECONDS: Final = 90.0

#: How often it is noted how long workers had to wait for a processor.
_SAMPLE_SECONDS: Final = 0.25

#: Violations that are told while they happen, at most so many a second.
_TOLD_AT_ONCE: Final = 3

_APIS: Final = 2
_WORKERS: Final = 3


@dataclass(slots=True)
class Result:
    """What a run was, and what it found."""

    profile: Profile
    seed: int
    seconds: float
    verdict: Verdict
    done: list[Done]
    seen: Seen
    jobs: int = 0
    accepted: int = 0
    refused: int = 0
    readers: int = 0
    resets: int = 0
    positions: int = 0
    shapes: Counter[str] = field(default_factory=Counter)  # of accepted jobs
    readings: dict[str, Reading] = field(default_factory=dict)
    tasks: dict[str, int] = field(default_factory=dict)  # at the end, with nobody there

    @property
    def faults(self) -> Counter[str]:
        return Counter(done.fault.kind.value for done in self.done if not done.problem)

    def count(self, jobs: Sequence[Job], sightings: Sightings) -> None:
        """Take in what was asked for, and by how many."""
        readers = [reader for job in jobs for reader in job.readers]
        self.jobs = len(jobs)
        self.accepted = len({job.id for job in jobs if job.id})
        self.refused = sum(job.id is None for job in jobs)
        self.readers = len(readers)
        self.resets = sum(reader.follower.resets for reader in readers)
        self.positions = len(sightings.at)
        self.shapes = Counter(job.draft.shape.value for job in jobs if job.id)


async def run(
    profile: Profile,
    *,
    seed: int,
    seconds: float,
    users: int,
    directory: Path | None = None,
    kinds: tuple[Kind, ...] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Result:
    """Run a profile under a seed for so long. The logs of all processes stay in `directory` if one is given."""
    keep = directory is not None
    directory = directory or Path(tempfile.mkdtemp(prefix="legato-chaos-"))
    directory.mkdir(parents=True, exist_ok=True)
    stores, toolbox = _stores_of(profile), await Toolbox.start()
    try:
        await stores.start()
        return await _Run(profile, stores, toolbox, directory, seed=seed, seconds=seconds, users=users, say=say).go(
            plan(seed, profile, seconds, kinds=kinds)
        )
    finally:
        await stores.stop()
        await toolbox.aclose()
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)


class _Run:
    def __init__(
        self,
        profile: Profile,
        stores: Stores,
        toolbox: Toolbox,
        directory: Path,
        *,
        seed: int,
        seconds: float,
        users: int,
        say: Callable[[str], None],
    ) -> None:
        self._stores = stores
        self._toolbox = toolbox
        self._users = users
        self._say = say
        self._prefix = f"chaos{seed}"
        self._keys = Keys(self._prefix)
        environment = self._environment()
        self._apis = [Api(f"api-{number}", free_port(), environment, directory) for number in range(_APIS)]
        self._workers = [Child(f"worker-{number}", ["worker"], environment, directory) for number in range(_WORKERS)]
        self._sightings = Sightings()
        self._violations: list[Violation] = []
        self._calm = asyncio.Event()
        self._waits = Waits()  # ours: what everybody says to the store comes through here
        self._seed = seed
        self._verdict = Verdict(violations=self._violations)
        self._result = Result(profile, seed, seconds, self._verdict, [], Seen())

    @property
    def _children(self) -> list[Child]:
        return [*self._apis, *self._workers]

    async def go(self, schedule: list[Fault]) -> Result:
        jobs = Jobs(self._seed, await asyncio.to_thread(sim_texts), shapes=tuple(Shape))
        doors: list[Door] = []
        try:
            for child in self._children:
                child.start()
            for api in self._apis:
                await api.wait_ready()
                doors.append(Door(proxy=await Proxy.start(("127.0.0.1", api.port)), port=api.port, api=api))
            await self._break(jobs, doors, schedule)
            await self._look(jobs, doors)
        finally:
            await end(self._children)
            for door in doors:
                await door.proxy.aclose()
        check_processes(self._children, self._verdict, most_tasks=most_tasks(self._stores))
        self._result.tasks = {child.name: child.now.tasks_at_stop or 0 for child in self._children}
        return self._result

    async def _break(self, jobs: Jobs, doors: list[Door], schedule: list[Fault]) -> None:
        """Users and faults; then only what is left of the users."""
        stop = asyncio.Event()
        faults = Faults(
            stores=self._stores, apis=self._apis, workers=self._workers, doors=doors, keys=self._keys, jobs=jobs
        )

        def reader(job: Job, draw: random.Random) -> Reader:
            return Reader(
                str(job.id),
                repeat=job.repeat,
                doors=doors,
                draw=draw,
                sightings=self._sightings,
                violations=self._violations,
                seen=self._result.seen,
                calm=self._calm,
            )

        users = [
            asyncio.create_task(
                User(jobs, doors=doors, draw=random.Random(f"{self._seed}:{number}"), reader=reader, stop=stop).run()
            )
            for number in range(self._users)
        ]
        breaking = asyncio.create_task(faults.run(schedule))
        sampling = asyncio.create_task(self._sample())
        started, told = asyncio.get_running_loop().time(), 0
        while (elapsed := asyncio.get_running_loop().time() - started) < self._result.seconds or not breaking.done():
            await asyncio.sleep(1.0)
            self._revive()
            for violation in self._violations[told : told + _TOLD_AT_ONCE]:
                self._say(f"{elapsed:.0f} s: {violation.check} {violation.generation}: {violation.detail}")
            told = len(self._violations)
            if int(elapsed) % 30 == 0:
                self._say(f"{elapsed:.0f} s: {len(jobs.all)} jobs, {len(faults.done)} faults, {self._progress()}")
        await breaking
        stop.set()
        self._calm.set()
        await self._stores.settle()
        for door in doors:
            door.proxy.release()
        self._revive()
        self._result.done = faults.done
        self._faults = faults
        _, waiting = await asyncio.wait(users, timeout=_SETTLE_SECONDS)
        for task in waiting:
            task.cancel()
        sampling.cancel()
        for outcome in await asyncio.gather(*users, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome

    async def _sample(self) -> None:
        while True:
            self._waits.sample(os.getpid())
            for worker in self._workers:
                worker.now.waits.sample(worker.now.process.pid)
            await asyncio.sleep(_SAMPLE_SECONDS)

    def _revive(self) -> None:
        """A process that nobody took down must not be down; what comes after is to be tested all the same."""
        for child in self._children:
            if not child.busy.locked() and not child.alive:
                self._verdict.wrong("exit", child.name, f"{child.now.log.name} ended by itself")
                child.start()

    def _progress(self) -> str:
        return f"{self._result.seen.connections} connections, {len(self._violations)} violations"

    async def _look(self, jobs: Jobs, doors: list[Door]) -> None:
        """The checks."""
        verdict, user = self._verdict, self._asker(jobs, doors)
        check_refused(
            jobs.all,
            await asyncio.to_thread(self._records),
            {generation_of(key): entries for key, entries in (await asyncio.to_thread(self._logs)).items()},
            self._faults.done,
            verdict,
        )
        for job in jobs.all:
            if job.id is None and job.key is not None and job.gave_up:
                # Refused, perhaps half-stored: the same submit again has to finish it, or begin anew.
                status, answer = await patiently(partial(user.ask, "POST", "/v1/generations", job.body, key=job.key))
                if status == 202:
                    job.id, job.accepted_at = str(answer["id"]), time.time()
                else:
                    verdict.wrong("submit_again", f"job {job.number}", f"{status} {answer}")
        finals = await self._finals(jobs, user)
        records = await asyncio.to_thread(self._records)
        logs = await asyncio.to_thread(self._logs)
        holdings = held(self._workers, heal_seconds=HEAL_SECONDS)
        losses = Losses(self._faults.losses, holdings, lease_seconds=LEASE_SECONDS)
        check_jobs(jobs.all, finals, self._sightings, losses, verdict)
        check_promptness(jobs.all, finals, self._faults.done, verdict)
        check_take_overs(holdings, losses, self._waits, lease_seconds=LEASE_SECONDS, verdict=verdict)
        check_logs(logs, {job.id for job in jobs.all if job.id}, self._faults.losses, verdict)
        api_ends = [life.ended_at for api in self._apis for life in api.lives if life.ended_at is not None]
        check_stored(jobs.all, records, losses, api_ends, verdict)
        check_tools(self._toolbox.ran_twice(), losses, verdict)
        self._result.count(jobs.all, self._sightings)
        self._result.readings = await look_for_leaks(self._children, self._stores, verdict)

    async def _finals(self, jobs: Jobs, user: User) -> dict[str, Final_]:
        """The last word on every accepted job; waits for those that have not ended."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        return {job.id: await final_of(job, user, deadline) for job in jobs.all if job.id is not None}

    def _asker(self, jobs: Jobs, doors: list[Door]) -> User:
        def nobody(job: Job, draw: random.Random) -> Reader:
            raise AssertionError

        return User(jobs, doors=doors, draw=random.Random(0), reader=nobody, stop=asyncio.Event())

    def _logs(self) -> dict[str, list[tuple[str, str, str]]]:
        return self._stores.logs(f"{self._prefix}:*:log")

    def _records(self) -> dict[str, int | None]:
        """Everything that is stored, tombstones apart: which job it is of."""
        found: dict[str, int | None] = {}
        for key in self._stores.keys(f"{self._prefix}:{{gen_*}}:record"):
            metadata, state = self._stores.fields(key, "metadata", "state")
            if state != "deleted":
                found[self._keys.generation_of_record(key)] = _number(metadata)
        return found

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("LEGATO_")}
        return inherited | {
            "PYTHONUNBUFFERED": "1",
            "LEGATO_REDIS_URL": self._stores.url,
            "LEGATO_PREFIX": self._prefix,
            "LEGATO_PROVIDERS": f"sim,{DEAD}",
            "LEGATO_OPENAI_COMPATIBLE": json.dumps({DEAD: {"base_url": f"http://127.0.0.1:{free_port()}"}}),
            "LEGATO_HTTP_TOOLS": self._toolbox.declared,
            "LEGATO_LEASE_SECONDS": f"{LEASE_SECONDS:g}",
            "LEGATO_DRAIN_SECONDS": "1",
            "LEGATO_STORE_TIMEOUT_SECONDS": "2",
            "LEGATO_STORE_CONNECTIONS": str(STORE_CONNECTIONS),
            "LEGATO_SWEEP_SECONDS": "5",
            "LEGATO_PING_SECONDS": f"{PING_SECONDS:g}",
            "LEGATO_STREAM_MAX_AGE_SECONDS": "20",
            "LEGATO_HEAL_SECONDS": f"{HEAL_SECONDS:g}",
        }


async def final_of(job: Job, user: User, deadline: float) -> Final_:
    """The last word on an accepted job; waits for one that has not ended, until `deadline`, and runs its tools, for
    whoever asked for it may have given it up."""
    while True:
        status, body = await patiently(partial(user.ask, "GET", f"/v1/generations/{job.id}", None))
        if status != 200 or body["status"] in TERMINAL or time.monotonic() > deadline:
            return Final_(status=status, body=body)
        await user.give_results(job, body)
        await asyncio.sleep(0.2)


async def patiently(
    ask: Callable[[], Coroutine[Any, Any, tuple[int, dict[str, Any]]]], *, tries: int = 100
) -> tuple[int, dict[str, Any]]:
    """Ask until there is an answer that is not `come again`."""
    status, body = 0, dict[str, Any]()
    for _ in range(tries):
        status, body = await ask()
        if status not in (0, 429, 503):
            break
        await asyncio.sleep(0.2)
    return status, body


def _number(metadata: str | None) -> int | None:
    number = json.loads(metadata or "{}").get("chaos")
    return number if isinstance(number, int) else None


def _stores_of(profile: Profile) -> Stores:
    """The stores of a profile, not started yet."""
    match profile:
        case Profile.SINGLE:
            return Single()
        case Profile.REPLICA:
            return Replicated()
        case Profile.SENTINEL:
            return Sentinels()
        case Profile.CLUSTER:
            return Cluster()
        case Profile.REMOTE:
            raise ValueError("the stores of that profile are not ours")
