"""What is asked for, and by whom: users submit a job, read it with several clients, sometimes cancel, and go on.

Every job's text is known beforehand: numbered words given verbatim, or one of a few that `legato sim` printed.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from chaos.clients import Reader
from chaos.doors import Door, pick
from chaos.processes import ROOT

_TIMEOUT_SECONDS: Final = 6.0
_PAUSE_SECONDS: Final = (0.1, 0.8)
_MOST_ATTEMPTS: Final = 20
_SIM_TEXTS: Final = 3


@dataclass(slots=True)
class Job:
    """One submit, and what became of it. Times are Unix seconds."""

    number: int
    body: dict[str, Any]
    expected: str
    key: str | None  # Idempotency-Key
    may_fail: bool
    id: str | None = None
    asked_at: float = 0.0  # first
    accepted_at: float = 0.0
    answers: list[int] = field(default_factory=list)  # statuses; 0: no answer
    gave_up: bool = False
    cancel_asked_at: float | None = None
    cancel_stored_at: float | None = None
    ends_at: float | None = None
    readers: list[Reader] = field(default_factory=list)
    other_ids: list[tuple[str, float]] = field(default_factory=list)  # the same key gave another one, when


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

    def __init__(self, seed: int, texts: list[tuple[dict[str, Any], str]]) -> None:
        self.all: list[Job] = []
        self._seed = seed
        self._texts = texts

    def draw(self, draw: random.Random) -> Job:
        """The next one."""
        number = len(self.all)
        speed = draw.choice((0, 20, 30, 40, 60))
        if draw.random() < 0.4:
            options, expected = draw.choice(self._texts)
            options = dict(options)
        else:
            words = draw.randrange(40, 400)
            expected = " ".join(f"{number}.{word}" for word in range(words))
            options = {"text": expected, "chunk_chars": draw.randrange(4, 12)}
        options["tokens_per_second"] = speed
        recovery = draw.choice(("restart", "restart", "restart", "continue", "fail"))
        if draw.random() < 0.1:
            kind = draw.choice(("error", "truncate", "rate_limit"))
            options["faults"] = [{"at_token": draw.randrange(0, 30), "kind": kind, "attempt": 1}]
        body: dict[str, Any] = {
            "provider": "sim",
            "model": "sim-1",
            "messages": [{"role": "user", "content": "Say something."}],
            "provider_options": options,
            "recovery": recovery,
            "max_attempts": _MOST_ATTEMPTS,
            "metadata": {"chaos": number},
        }
        if draw.random() < 0.15:
            body["on_disconnect"] = {"policy": "cancel", "grace_seconds": 60}
        key = None if draw.random() < 0.15 else f"chaos-{self._seed}-{number}"
        job = Job(number, body, expected, key, may_fail=recovery == "fail")
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
        reader: Callable[[str, random.Random], Reader],
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
                for _ in range(self._draw.randrange(1, 5)):
                    group.create_task(self._read(job, delay=self._draw.choice((0, 0, 0.3, 2.0))))
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
        reader = self._reader(job.id, self._draw)
        job.readers.append(reader)
        await reader.run()

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
        port = pick(self._doors, self._draw, proxied=0.4)
        headers = {"Idempotency-Key": key} if key else {}
        try:
            async with httpx.AsyncClient(timeout=_TIMEOUT_SECONDS, trust_env=False) as client:
                answer = await client.request(method, f"http://127.0.0.1:{port}{path}", json=body, headers=headers)
        except httpx.HTTPError:
            return 0, {}
        try:
            read = json.loads(answer.content) if answer.content else {}
        except ValueError:
            read = {}
        return answer.status_code, read
