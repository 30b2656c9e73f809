"""A whole deployment for black-box tests: API and worker processes of the real command, over one store.

    with Stack.start(redis_url, tmp_path, apis=2, workers=2) as stack:
        generation = stack.submit({"tokens": 50})
        stack.workers[0].kill()

Processes get an environment of their own, log into files and die with the test process. Leaving the block ends all of
them, and fails when one has logged a traceback or an error: what a process survives must not look like a defect.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self, TypeVar
from uuid import uuid4

import redis

from broker.events import Event, decode
from broker.joined import split
from broker.keys import Keys
from broker.lifeline import bound_to_us
from tests.support.servers import wait_until
from tests.support.sse_client import Answer, request

#: Where the packages are: processes run from here.
ROOT = Path(__file__).resolve().parents[2]
#: How long a process may take to be ready, or to end in good order.
READY_SECONDS = 90.0
STOP_SECONDS = 60.0
#: The lease of a stack's workers, unless told otherwise: the least the settings allow is 1.
LEASE_SECONDS = 2.0


class Process:
    """One process of the stack."""

    def __init__(self, name: str, command: list[str], environment: Mapping[str, str], directory: Path) -> None:
        self.name = name
        self.log_path = directory / f"{name}.log"
        self._paused = False
        with self.log_path.open("ab") as out:
            self._popen = subprocess.Popen(
                bound_to_us([sys.executable, "-m", "cli.main", *command]),
                cwd=ROOT,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    @property
    def log(self) -> str:
        """Everything the process has written so far."""
        return self.log_path.read_text(errors="replace")

    def events(self, name: str) -> list[dict[str, Any]]:
        """What it logged under an event name."""
        return [line for line in _json_lines(self.log) if line.get("event") == name]

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self._signal(signal.SIGKILL)
        self._popen.wait(STOP_SECONDS)

    def pause(self) -> None:
        """SIGSTOP; returns when it stands still."""
        self._signal(signal.SIGSTOP)
        self._paused = True
        wait_until(lambda: not self.alive or self._stands_still(), f"{self.name} stands still")

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)
        self._paused = False

    def terminate(self) -> None:
        """SIGTERM; does not wait."""
        self._signal(signal.SIGTERM)

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """Wait for its end; the exit status."""
        return self._popen.wait(seconds)

    def stop(self) -> int:
        """SIGTERM, and wait; the exit status, which is -9 for one that had to be killed."""
        if self.alive:
            if self._paused:
                self.resume()
            self.terminate()
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self.kill()
        return self.wait()

    def resident_bytes(self) -> int:
        """Memory it has now."""
        match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert match is not None
        return int(match[1]) * 1024

    def open_files(self) -> int:
        """How many descriptors it has."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def holds(self, client_port: int) -> bool:
        """Whether it has the connection that a client made from this port; not, where only the kernel has it still."""
        ends = f":{self.port:04X}", f":{client_port:04X}"
        rows = [line.split() for line in Path(f"/proc/{self.pid}/net/tcp").read_text().splitlines()[1:]]
        inodes = [row[9] for row in rows if (row[1][8:], row[2][8:]) == ends]
        return any(inode != "0" for inode in inodes)

    def _stands_still(self) -> bool:
        """Every thread of it; where there is no /proc, that is taken for granted."""
        try:
            threads = [path.read_text() for path in Path(f"/proc/{self.pid}/task").glob("*/stat")]
        except FileNotFoundError:  # a thread that ended meanwhile
            return False
        return all(state.rpartition(")")[2].split()[0] in "TtZX" for state in threads)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self._popen.send_signal(number)


class Api(Process):
    """An API process; `url` once it is ready."""

    url = ""
    port = 0

    def wait_ready(self) -> None:
        """Wait until it has said where it is and `/readyz` answers 200."""

        def has_told() -> bool:
            assert self.alive, f"{self.name} ended:\n{self.log}"
            told = re.search(r"http://127\.0\.0\.1:(\d+)", self.log)
            self.port = int(told[1]) if told else 0
            return bool(self.port)

        wait_until(has_told, f"{self.name} says where it is", seconds=READY_SECONDS)
        self.url = f"http://127.0.0.1:{self.port}"
        wait_until(self._is_ready, f"{self.name} is ready", seconds=READY_SECONDS)

    def _is_ready(self) -> bool:
        with suppress(OSError):
            return request(self.url, "GET", "/readyz").status == 200
        return False


_P = TypeVar("_P", bound=Process)


class Stack:
    """See the module. `tolerated` are regular expressions of log lines that are no fault in this test."""

    def __init__(self, url: str, directory: Path, *, environment: Mapping[str, str], tolerated: Iterable[str]) -> None:
        self.url = url
        self.prefix = f"a{uuid4().hex[:8]}"
        self.apis: list[Api] = []
        self.workers: list[Process] = []
        self.tolerated = list(tolerated)
        self._shown_faults: Counter[str] = Counter()
        self._directory = directory
        self._processes: list[Process] = []
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("LEGATO_", "COV_"))},
            "PYTHONUNBUFFERED": "1",
            "LEGATO_REDIS_URL": url,
            "LEGATO_PREFIX": self.prefix,
            "LEGATO_PROVIDERS": "sim",
            "LEGATO_LEASE_SECONDS": f"{LEASE_SECONDS:g}",
            "LEGATO_DRAIN_SECONDS": "0.5",
            "LEGATO_STORE_TIMEOUT_SECONDS": "2",
            **environment,
        }

    @classmethod
    def start(
        cls,
        url: str,
        directory: Path,
        *,
        apis: int = 1,
        workers: int = 1,
        environment: Mapping[str, str] | None = None,
        tolerated: Iterable[str] = (),
    ) -> Self:
        """Start everything and wait until every API is ready."""
        stack = cls(url, directory, environment=environment or {}, tolerated=tolerated)
        try:
            started = [stack._launch_api({}) for _ in range(apis)]
            for _ in range(workers):
                stack.add_worker()
            for api in started:
                api.wait_ready()
        except BaseException:
            stack.close(check=False)
            raise
        return stack

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.close(check=kind is None)

    @property
    def urls(self) -> list[str]:
        """Of the APIs that are to be asked."""
        return [api.url for api in self.apis]

    def add_api(self, environment: Mapping[str, str] | None = None, *, port: int = 0) -> Api:
        """One more API, ready."""
        api = self._launch_api(environment or {}, port=port)
        api.wait_ready()
        return api

    def add_dev(self, data: Path) -> Api:
        """All in one process, ready, with a store of its own on `data`, unless the stack has one."""
        if not self.url:
            self._environment.pop("LEGATO_REDIS_URL", None)
        api = self._launch(Api, "dev", ["dev", "--port", "0", "--data", str(data)], {})
        self.apis.append(api)
        api.wait_ready()
        return api

    def add_worker(self, environment: Mapping[str, str] | None = None) -> Process:
        """One more worker. It takes work as soon as it is up, which nobody needs to wait for."""
        worker = self._launch(Process, "worker", ["worker"], environment or {})
        self.workers.append(worker)
        return worker

    def remove(self, process: Process) -> None:
        """Forget a process that was ended, or that the next test shall not meet. Its log is still checked."""
        process.stop()
        if isinstance(process, Api):
            self.apis.remove(process)
        else:
            self.workers.remove(process)

    def submit(self, options: Mapping[str, Any], **fields: Any) -> str:
        """Submit a job to the simulated provider; its id."""
        answer = self.post("/v1/generations", job(options, **fields))
        assert answer.status == 202, (answer.status, answer.body)
        return str(answer.json()["id"])

    def post(self, path: str, body: object = None, *, headers: Mapping[str, str] | None = None) -> Answer:
        """POST to the first API, JSON in and out."""
        data = b"" if body is None else json.dumps(body).encode()
        return request(self.urls[0], "POST", path, body=data, headers=headers)

    def get(self, path: str, *, headers: Mapping[str, str] | None = None) -> Answer:
        """GET from the first API. Not for streams."""
        return request(self.urls[0], "GET", path, headers=headers)

    def delete(self, path: str) -> Answer:
        """DELETE at the first API."""
        return request(self.urls[0], "DELETE", path)

    def status(self, generation: str) -> str:
        """What `GET /v1/generations/{id}` says."""
        return str(self.get(f"/v1/generations/{generation}").json()["status"])

    def log(self, generation: str) -> list[tuple[str, Event]]:
        """The log as the store has it, sealed or not: position and event of each entry."""
        key = Keys(self.prefix).log(generation)
        with redis.Redis.from_url(self.url, protocol=2, socket_timeout=10) as client:
            client.response_callbacks.clear()
            rows: Any = client.execute_command("XRANGE", key, "-", "+")
        return [(entry.position, decode(entry)) for entry in split(rows)]

    def holder(self, generation: str) -> Process:
        """The worker that claimed the generation last. Waits until one has."""
        found: list[Process] = []

        def is_claimed() -> bool:
            claims = [
                (line["epoch"], number)
                for number, worker in enumerate(self.workers)
                for line in worker.events("generation_claimed")
                if line["generation"] == generation
            ]
            if claims:
                found.append(self.workers[max(claims)[1]])
            return bool(claims)

        wait_until(is_claimed, f"{generation} is claimed")
        return found[-1]

    def entries(self, generation: str) -> int:
        """How many entries the log is stored in."""
        with redis.Redis.from_url(self.url, protocol=2, socket_timeout=10) as client:
            found: int = client.xlen(Keys(self.prefix).log(generation))
        return found

    def wait_entries(self, generation: str, count: int, *, seconds: float = 90.0) -> None:
        """Wait until the log has this many entries."""
        wait_until(lambda: len(self.log(generation)) >= count, f"{count} entries", seconds=seconds)

    def wait_sealed(self, generation: str) -> None:
        """Wait until a generation has ended and the worker has sealed its log."""
        self.wait_status(generation, "completed", "failed", "cancelled")  # one that grows is longer at the second look
        wait_until(
            lambda: 0 < self.entries(generation) < len(self.log(generation)), f"{generation} is sealed", seconds=90
        )

    def wait_status(self, generation: str, *wanted: str, seconds: float = 90.0) -> str:
        """Wait until the status is one of these; the one it is."""
        wait_until(lambda: self.status(generation) in wanted, f"status {wanted}", seconds=seconds)
        return self.status(generation)

    def faults(self) -> list[str]:
        """Lines that no process should have logged."""
        tolerated = [re.compile(pattern) for pattern in self.tolerated]
        return [
            f"{process.name}: {line}"
            for process in self._processes
            for line in process.log.splitlines()
            if _is_fault(line) and not any(pattern.search(line) for pattern in tolerated)
        ]

    def new_faults(self) -> list[str]:
        """Those that were not asked for before: each is shown once, by the test that left it."""
        found = Counter(self.faults())
        fresh = found - self._shown_faults
        self._shown_faults = found
        return list(fresh.elements())

    def close(self, *, check: bool = True) -> None:
        """End every process, and see what they logged."""
        for process in self._processes:
            if process.alive:
                process.resume()
                process.terminate()
        for process in self._processes:
            process.stop()
        if check:
            faults = self.new_faults()
            assert not faults, "\n".join(faults)

    def _launch_api(self, environment: Mapping[str, str], *, port: int = 0) -> Api:
        api = self._launch(Api, "api", ["api", "--port", str(port)], environment)
        self.apis.append(api)
        return api

    def _launch(self, kind: type[_P], name: str, command: list[str], environment: Mapping[str, str]) -> _P:
        number = sum(process.name.startswith(name) for process in self._processes)
        process = kind(f"{name}-{number}", command, {**self._environment, **environment}, self._directory)
        self._processes.append(process)
        return process


#: The `delivery` of a job whose tokens are a delta each: where it is said how long a delta may be, those that wait are
#: not joined.
ONE_BY_ONE: Final = {"max_chars": 100}


def job(options: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """The body of a submit to the simulated provider."""
    messages = [{"role": "user", "content": "Say something."}]
    return {"provider": "sim", "model": "sim-1", "messages": messages, "provider_options": dict(options), **fields}


def eventually(look: Callable[[], object], what: str, *, seconds: float = 60.0) -> float:
    """Wait until `look` returns something true; how long that took."""
    since = time.monotonic()
    wait_until(lambda: bool(look()), what, seconds=seconds)
    return time.monotonic() - since


def _json_lines(log: str) -> Iterable[dict[str, Any]]:
    for line in log.splitlines():
        with suppress(ValueError):
            read = json.loads(line)
            if isinstance(read, dict):
                yield read


def _is_fault(line: str) -> bool:
    """A traceback, however it is dressed, or anything logged as an error."""
    if "Traceback (most recent call last)" in line or "exc_info" in line:
        return True
    for read in _json_lines(line):
        return read.get("level") in ("error", "critical")
    return False
