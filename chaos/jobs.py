"""Who asks for jobs: users submit one, read it with several clients, run its tools, sometimes cancel, and go on."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from chaos.clients import Reader, client_of, one_request, sni
from chaos.doors import Door, pick
from chaos.processes import ROOT
from chaos.shapes import Draft, Shape, draft

_TIMEOUT_SECONDS: Final = 6.0
_PAUSE_SECONDS: Final = (0.1, 0.8)
_SIM_TEXTS: Final = 3


@dataclass(slots=True)
class Job:
    """One submit, and what became of it. Times are Unix seconds."""

    number: int
    draft: Draft
    key: str | None  # Idempotency-Key
    id: str | None = None
    asked_at: float = 0.0  # first
    accepted_at: float = 0.0
    answers: list[int] = field(default_factory=list)  # statuses; 0: no answer
    answered_at: float = 0.0  # last
    gave_up: bool = False
    cancel_asked_at: float | None = None
    cancel_stored_at: float | None = None
    results_answers: Counter[int] = field(default_factory=Counter)  # to results of its tools
    readers: list[Reader] = field(default_factory=list)
    other_ids: list[tuple[str, float]] = field(default_factory=list)  # the same key gave another one, when

    @property
    def was_refused(self) -> bool:
        """Whether every answer was a refusal, and there was one each time."""
        return self.id is None and bool(self.answers) and set(self.answers) <= {429, 503}

    @property
    def body(self) -> dict[str, Any]:
        return self.draft.body

    @property
    def expected(self) -> str:
        return self.draft.expected

    @property
    def repeat(self) -> tuple[dict[str, Any], str] | None:
        """What a reader that comes back with the same POST sends: body and key."""
        return (self.body, self.key) if self.key is not None else None


def sim_texts() -> list[tuple[dict[str, Any], str]]:
    """Options, and the text that the product itself says they give."""
    out = []
    for seed in range(_SIM_TEXTS):
        tokens = 120 + 150 * seed
        command = [sys.executable, "-m", "cli.main", "sim", "--tokens", str(tokens), "--seed", str(seed)]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=60)  # noqa: S603
        out.append(({"tokens": tokens, "seed": seed}, said.stdout.decode()))
    return out


class Jobs:
    """Draws jobs."""

    def __init__(
        self,
        seed: int,
        texts: list[tuple[dict[str, Any], str]],
        *,
        shapes: Sequence[Shape],
        prefix: str = "chaos",
        ttl_seconds: int | None = None,
    ) -> None:
        self.all: list[Job] = []
        self._seed = seed
        self._texts = texts
        self._shapes = shapes
        self._prefix = prefix  # of the keys
        self._more = {"ttl_seconds": ttl_seconds} if ttl_seconds is not None else {}

    def draw(self, draw: random.Random) -> Job:
        """The next one."""
        number = len(self.all)
        drafted = draft(draw, number, self._texts, self._shapes)
        drafted.body.update(self._more)
        key = None if draw.random() < 0.15 else f"{self._prefix}-{self._seed}-{number}"
        job = Job(number, drafted, key)
        self.all.append(job)
        return job


class User:
    """Submits and reads until told to stop."""

    def __init__(
        self,
        jobs: Jobs,
        *,
        doors: list[Door],
        draw: random.Random,
        reader: Callable[[Job, random.Random], Reader],
        stop: asyncio.Event,
    ) -> None:
        self._jobs = jobs
        self._doors = doors
        self._draw = draw
        self._reader = reader
        self._stop = stop

    async def run(self) -> None:
        """One job after the other."""
        while not self._stop.is_set():
            job = self._jobs.draw(self._draw)
            await self._submit(job)
            if job.id is None:
                continue
            async with asyncio.TaskGroup() as group:
                readers = [
                    group.create_task(self._read(job, delay=self._draw.choice((0, 0, 0.3, 2.0))))
                    for _ in range(self._draw.randrange(1, 5))
                ]
                if job.draft.shape is Shape.INTERACTIVE:
                    for _ in range(self._draw.choice((1, 1, 2))):  # at times from two devices at once
                        group.create_task(self._run_tools(job, readers))
                if self._draw.random() < 0.12:
                    group.create_task(self._cancel(job, delay=self._draw.uniform(0, 4)))
                if job.key is not None and self._draw.random() < 0.15:
                    group.create_task(self._submit_again(job, delay=self._draw.uniform(0, 3)))

    async def _submit(self, job: Job) -> None:
        """Until it is accepted; some give up at a refusal, and those without a key may not ask twice."""
        job.asked_at = time.time()
        while job.id is None:
            status, answer = await self.ask("POST", "/v1/generations", job.body, key=job.key)
            job.answers.append(status)
            job.answered_at = time.time()
            match status:
                case 202:
                    job.id, job.accepted_at = str(answer["id"]), time.time()
                case 0 | 429 | 503:
                    if job.key is None or self._stop.is_set() or (status and self._draw.random() < 0.15):
                        job.gave_up = True
                        return
                    await asyncio.sleep(self._draw.uniform(*_PAUSE_SECONDS))
                case _:
                    job.gave_up = True
                    return

    async def _submit_again(self, job: Job, *, delay: float) -> None:
        await asyncio.sleep(delay)
        status, answer = await self.ask("POST", "/v1/generations", job.body, key=job.key)
        if status == 202 and answer["id"] != job.id:
            job.other_ids.append((str(answer["id"]), time.time()))

    async def _read(self, job: Job, *, delay: float) -> None:
        await asyncio.sleep(delay)
        assert job.id is not None  # noqa: S101 - accepted
        reader = self._reader(job, self._draw)
        job.readers.append(reader)
        await reader.run()

    async def _run_tools(self, job: Job, readers: Sequence[asyncio.Task[None]]) -> None:
        """Give the results that the generation waits for, all or one by one, as often as it is found waiting."""
        singly = self._draw.random() < 0.3
        while not all(reader.done() for reader in readers):
            await asyncio.sleep(self._draw.uniform(*_PAUSE_SECONDS))
            status, body = await self.ask("GET", f"/v1/generations/{job.id}", None)
            if status == 200:
                await self.give_results(job, body, singly=singly)

    async def give_results(self, job: Job, body: Mapping[str, Any], *, singly: bool = False) -> None:
        """What a generation waits for, if it does; `body` is what it looks like."""
        if body["status"] != "waiting_for_tools":
            return
        given = {result["id"] for result in body.get("tool_results", ())}
        wanted = [call["id"] for call in body["tool_calls"] if call["id"] not in given]
        results = [{"tool_call_id": call, "content": job.draft.results[call]} for call in wanted]
        for some in [[result] for result in results] if singly else [results]:
            status, _ = await self.ask("POST", f"/v1/generations/{job.id}/tool_results", {"tool_results": some})
            job.results_answers[status] += 1

    async def _cancel(self, job: Job, *, delay: float) -> None:
        await asyncio.sleep(delay)
        job.cancel_asked_at = time.time()
        while job.cancel_stored_at is None:
            status, _ = await self.ask("POST", f"/v1/generations/{job.id}/cancel", None)
            if status == 202:
                job.cancel_stored_at = time.time()
            elif status not in (0, 503):
                return
            await asyncio.sleep(self._draw.uniform(*_PAUSE_SECONDS))

    async def ask(self, method: str, path: str, body: Any, *, key: str | None = None) -> tuple[int, dict[str, Any]]:
        """A request to any API; status 0 when there was no answer."""
        route = pick(self._doors, self._draw, proxied=0.4)
        headers = {**route.headers, "Host": route.authority} | ({"Idempotency-Key": key} if key else {})
        try:
            with one_request():
                async with client_of(route, timeout=_TIMEOUT_SECONDS) as client:
                    answer = await client.request(method, path, json=body, headers=headers, extensions=sni(route))
        except httpx.HTTPError:
            return 0, {}
        read: dict[str, Any] = {}
        with suppress(ValueError):
            read = json.loads(answer.content) if answer.content else {}
        return answer.status_code, read
