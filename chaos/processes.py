"""The processes under test: `api` and `worker`, started, killed, paused and told to stop.

Every start is an incarnation with a log of its own, so that what a log says can be set against when its process died.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from broker.lifeline import bound_to_us

#: Where the packages are: processes run from here.
ROOT: Final = Path(__file__).resolve().parents[1]

#: How long a process may take to end after SIGTERM before it is killed, which is then a finding.
STOP_SECONDS: Final = 30.0
READY_SECONDS: Final = 90.0
_POLL_SECONDS: Final = 0.02
_LATELY_SECONDS: Final = 3.0
_TCP_STATES: Final = {"01": "established", "08": "close_wait", "0A": "listen"}


@dataclass(slots=True)
class Waits:
    """How long a process's main thread had waited for a processor, in seconds, as told at times (Linux tells)."""

    samples: list[tuple[float, float]] = field(default_factory=list)

    def sample(self, pid: int) -> None:
        """Ask for it now."""
        with suppress(OSError, IndexError, ValueError):
            waited = int(Path(f"/proc/{pid}/schedstat").read_text().split()[1])
            self.samples.append((time.time(), waited / 1e9))

    def between(self, since: float, until: float) -> float:
        """Seconds that it was ready to run and did not, about: by the samples around that time."""
        before = [total for at, total in self.samples if at <= since][-1:] or [0.0]
        behind = [total for at, total in self.samples if at >= until][:1] or [total for _, total in self.samples[-1:]]
        return behind[0] - before[0] if behind else 0.0


@dataclass(slots=True)
class Incarnation:
    """One life of a process. Times are Unix seconds."""

    log: Path
    process: subprocess.Popen[bytes]
    started_at: float
    ended_at: float | None = None
    #: Times it was paused, from … to.
    pauses: list[tuple[float, float]] = field(default_factory=list)
    waits: Waits = field(default_factory=Waits)

    def lines(self) -> Iterator[dict[str, Any]]:
        """The facts it logged."""
        for line in self.log.read_text(errors="replace").splitlines():
            with suppress(ValueError):
                read = json.loads(line)
                if isinstance(read, dict):
                    yield read

    @property
    def tasks_at_stop(self) -> int | None:
        """How many tasks it had when it was told to stop; None where it was not, or not yet able to listen."""
        told = [line["tasks"] for line in self.lines() if line.get("event") == "stopping"]
        return int(told[0]) if told else None

    def complaints(self) -> list[str]:
        """Lines that no process should log: errors, and tracebacks however dressed."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            if "Traceback (most recent call last)" in line or '"level": "error"' in line or '"critical"' in line:
                found.append(f"{self.log.stem}: {line[:600]}")
        return found


@dataclass(frozen=True, slots=True)
class Reading:
    """What a process holds."""

    resident_bytes: int
    descriptors: int
    threads: int


class Child:
    """A process that may die and come back."""

    def __init__(self, name: str, arguments: list[str], environment: Mapping[str, str], directory: Path) -> None:
        self.name = name
        self.lives: list[Incarnation] = []
        self.busy = asyncio.Lock()  # one fault at a time
        self.slow_stops = 0  # had to be killed after SIGTERM
        self._arguments = arguments
        self._environment = dict(environment)
        self._directory = directory

    @property
    def now(self) -> Incarnation:
        return self.lives[-1]

    @property
    def alive(self) -> bool:
        return bool(self.lives) and self.now.process.poll() is None

    @property
    def died_lately(self) -> bool:
        """Whether it is dead, or was a moment ago."""
        ends = [life.ended_at for life in self.lives if life.ended_at is not None]
        return not self.alive or (bool(ends) and time.time() - ends[-1] < _LATELY_SECONDS)

    def start(self) -> None:
        """Begin a life."""
        log = self._directory / f"{self.name}.{len(self.lives)}.log"
        command = bound_to_us([sys.executable, "-m", "cli.main", *self._arguments])
        with log.open("ab") as out:
            process = subprocess.Popen(  # noqa: S603 - our own command
                command,
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.lives.append(Incarnation(log, process, time.time()))

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self.now.process.kill()
        self.now.process.wait()
        self.now.ended_at = time.time()

    async def pause(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after a while."""
        life, since = self.now, time.time()
        life.process.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            life.process.send_signal(signal.SIGCONT)
            life.pauses.append((since, time.time()))

    async def terminate(self) -> None:
        """SIGTERM, and wait for the end."""
        life = self.now
        life.process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        while life.process.poll() is None:
            if time.monotonic() > deadline:
                self.slow_stops += 1
                life.process.kill()
                life.process.wait()
            await asyncio.sleep(_POLL_SECONDS)
        life.ended_at = time.time()

    def reading(self) -> Reading:
        """Memory, descriptors, threads now."""
        at = Path(f"/proc/{self.now.process.pid}")
        status = (at / "status").read_text()
        resident = re.search(r"VmRSS:\s+(\d+) kB", status)
        threads = re.search(r"Threads:\s+(\d+)", status)
        return Reading(
            resident_bytes=int(resident[1]) * 1024 if resident else 0,
            descriptors=len(list((at / "fd").iterdir())),
            threads=int(threads[1]) if threads else 0,
        )

    def peers(self) -> Counter[str]:
        """Its TCP connections, by state and remote port: who they are to, when there are too many."""
        at = Path(f"/proc/{self.now.process.pid}")
        sockets = set()
        for each in (at / "fd").iterdir():
            with suppress(OSError):
                sockets.add(os.readlink(each).removeprefix("socket:[").removesuffix("]"))
        found: Counter[str] = Counter()
        for line in (at / "net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in sockets:
                found[f"{_TCP_STATES.get(fields[3], fields[3])}:{int(fields[2].split(':')[1], 16)}"] += 1
        return found


class Api(Child):
    """An API process on a port of its own, the same in every life."""

    def __init__(self, name: str, port: int, environment: Mapping[str, str], directory: Path) -> None:
        super().__init__(name, ["api", "--port", str(port)], environment, directory)
        self.port = port

    async def wait_ready(self) -> None:
        """Until it takes connections. Raises `TimeoutError`."""
        async with asyncio.timeout(READY_SECONDS):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(_POLL_SECONDS)
                    continue
                writer.close()
                return


@dataclass(frozen=True, slots=True)
class Held:
    """A generation was in one worker's hands, live or kept after its end, from … to (Unix seconds)."""

    generation: str
    since: float
    until: float
    life: Incarnation
    ended_at: float | None  # the end was stored under it


def held(workers: list[Child], *, heal_seconds: float) -> list[Held]:
    """Who held what, by the workers' own logs. A generation that ended stays in its worker's hands for a while."""
    out = []
    for worker in workers:
        for life in worker.lives:
            death = life.ended_at or float("inf")
            since: dict[str, float] = {}
            for line in life.lines():
                generation, at = line.get("generation"), _unix(line.get("timestamp"))
                if line.get("event") == "generation_claimed":
                    since[str(generation)] = at
                elif line.get("event") == "generation_left" and str(generation) in since:
                    ended = line.get("outcome") == "ended"
                    until = min(death, at + heal_seconds) if ended else at
                    out.append(Held(str(generation), since.pop(str(generation)), until, life, at if ended else None))
            out += [Held(generation, at, death, life, None) for generation, at in since.items()]
    return out


def _unix(timestamp: object) -> float:
    return datetime.fromisoformat(str(timestamp)).timestamp() if timestamp else 0.0
