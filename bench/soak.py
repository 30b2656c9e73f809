"""Hours at half load: does anything grow?

    python -m bench.soak [--minutes 60] [--running 150] [--rate 40] [--json soak.json]

One API, one worker and an embedded server, with jobs that come and go: so many run at any time, each 4 to 20 s long and
read by one client, which compares every character with what the provider said. A part of the clients drop their
connection now and then and come back with their position, a part read slowly, a part cancel. Logs live for a minute.

Every five seconds the memory of each process is noted, and Redis' own account of what it holds. Printed is what each
grew by an hour, by a line fitted to the time behind the first fifth, and beside it what the records of ended jobs take,
which Redis keeps for seven days (measured in the same run, of those whose log has gone).
Exits 1 if a text was not whole.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import httpx
import redis
import uvloop

from bench.machine import cpu_us, free_port, rss_kib
from broker.embedded import EmbeddedServer
from worker.providers.sim import sim_text

_SAMPLE_SECONDS: Final = 5.0
_TTL_SECONDS: Final = 60
_PATIENCE_SECONDS: Final = 60.0
_TOKENS: Final = (160, 800)
#: Shares of the clients.
_DROPS, _SLOW, _CANCELS = 0.3, 0.1, 0.05


@dataclass(slots=True)
class Sample:
    """One look at everything."""

    seconds: float
    api_kib: float
    worker_kib: float
    redis_kib: float
    used_kib: float  # what Redis says it uses, without its buffers
    keys: int
    jobs: int  # ended so far
    api_cpu: float  # seconds so far
    worker_cpu: float
    redis_cpu: float


@dataclass(slots=True)
class Tally:
    """What the clients saw."""

    jobs: int = 0
    cancelled: int = 0
    deltas: int = 0
    characters: int = 0
    returns: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)


class Client:
    """Submits jobs and reads each to its end, one after the other, over a connection of its own."""

    def __init__(self, host: str, port: int, number: int, rate: float, tally: Tally, until: float) -> None:
        self._where = host, port
        self._draw = random.Random(number)
        self._rate = rate
        self._tally = tally
        self._until = until
        self._seeds = count(number * 1_000_003)

    async def run(self) -> None:
        await asyncio.sleep(self._draw.uniform(0, 10))
        while time.monotonic() < self._until:
            try:
                await self._job(next(self._seeds))
            except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as exc:
                self._tally.wrong.append(f"{type(exc).__name__}: {exc}")

    async def _job(self, seed: int) -> None:
        tokens = self._draw.randint(*_TOKENS)
        options = {"tokens": tokens, "seed": seed, "tokens_per_second": self._rate}
        body = {
            "provider": "sim",
            "model": "soak",
            "messages": [{"role": "user", "content": "go on"}],
            "provider_options": options,
            "ttl_seconds": _TTL_SECONDS,
        }
        status, answer = await self._ask("POST", "/v1/generations", json.dumps(body).encode())
        if status != 202:
            self._tally.refused += 1
            await asyncio.sleep(1)
            return
        generation = json.loads(answer)["id"]
        kind = self._draw.random()
        text, how = await self._read(
            generation,
            drops=kind < _DROPS,
            slow=_DROPS <= kind < _DROPS + _SLOW,
            cancels=_DROPS + _SLOW <= kind < _DROPS + _SLOW + _CANCELS,
        )
        whole = sim_text(tokens, seed)
        if how == "completed" and text == whole:
            self._tally.jobs += 1
        elif how == "cancelled" and whole.startswith(text):
            self._tally.jobs += 1
            self._tally.cancelled += 1
        else:
            self._tally.wrong.append(f"{generation} {how}: {len(text)} of {len(whole)} characters")
        self._tally.characters += len(text)

    async def _read(self, generation: str, *, drops: bool, slow: bool, cancels: bool) -> tuple[str, str]:
        """The text and the terminal event."""
        text, cursor, cancel_at = "", "", self._draw.randint(5, 40) if cancels else 0
        deltas = 0
        while True:
            reader, writer = await asyncio.open_connection(*self._where, limit=1 << 20)
            head = f"GET /v1/generations/{generation}/events HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n"
            writer.write((head + (f"Last-Event-ID: {cursor}\r\n" if cursor else "") + "\r\n").encode())
            leave_at = self._draw.randint(1, 60) if drops else 0
            try:
                await reader.readuntil(b"\r\n\r\n")
                event, data = "", ""
                while True:
                    size = int((await reader.readuntil(b"\r\n"))[:-2], 16)
                    chunk = (await reader.readexactly(size + 2))[:-2].decode()
                    for line in chunk.split("\n"):
                        name, _, value = line.partition(": ")
                        if name == "event":
                            event = value
                        elif name == "id":
                            cursor = value
                        elif name == "data":
                            data = value
                        elif line == "" and event:
                            if event == "delta":
                                text += json.loads(data)["text"]
                                deltas += 1
                                self._tally.deltas += 1
                            elif event in ("reset", "snapshot"):
                                text = json.loads(data).get("text", "")
                            elif event in ("completed", "cancelled", "failed"):
                                return text, event
                            event = ""
                    if cancel_at and deltas >= cancel_at:
                        cancel_at = 0
                        await self._ask("POST", f"/v1/generations/{generation}/cancel", b"")
                    if slow:
                        await asyncio.sleep(0.02)
                    if leave_at:
                        leave_at -= 1
                        if not leave_at:
                            break
            except (OSError, asyncio.IncompleteReadError):
                await asyncio.sleep(0.2)
            finally:
                writer.close()
            self._tally.returns += 1

    async def _ask(self, verb: str, path: str, body: bytes) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection(*self._where)
        try:
            head = f"{verb} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = await reader.read()
        finally:
            writer.close()
        status, _, rest = answer.partition(b"\r\n\r\n")
        return int(status.split(maxsplit=2)[1]), rest


def slope(samples: Sequence[tuple[float, float]]) -> float:
    """What the second grew by an hour, by a line through all, where the first are seconds."""
    if len(samples) < 2:
        return 0.0
    fit = statistics.linear_regression([at for at, _ in samples], [value for _, value in samples])
    return fit.slope * 3600


async def _soak(options: argparse.Namespace, url: str, port: int, pids: dict[str, int]) -> tuple[list[Sample], Tally]:
    tally, samples = Tally(), []
    began = time.monotonic()
    until = began + options.minutes * 60
    store = redis.Redis.from_url(url)
    clients = [
        asyncio.create_task(Client("127.0.0.1", port, number, options.rate, tally, until).run())
        for number in range(options.running)
    ]
    while (pause := until - time.monotonic()) > 0:
        await asyncio.sleep(min(_SAMPLE_SECONDS, pause))
        memory = store.info("memory")
        samples.append(
            Sample(
                seconds=time.monotonic() - began,
                api_kib=rss_kib([pids["api"]]),
                worker_kib=rss_kib([pids["worker"]]),
                redis_kib=rss_kib([pids["redis"]]),
                used_kib=(memory["used_memory"] - memory["mem_clients_normal"] - memory["mem_aof_buffer"]) / 1024,
                keys=store.dbsize(),
                jobs=tally.jobs,
                api_cpu=cpu_us([pids["api"]]) / 1e6,
                worker_cpu=cpu_us([pids["worker"]]) / 1e6,
                redis_cpu=cpu_us([pids["redis"]]) / 1e6,
            )
        )
    await asyncio.gather(*clients)
    return samples, tally


def _kept_a_job(url: str) -> float:
    """Bytes of Redis that an ended job keeps when its log has gone: its record, by the account of Redis."""
    store = redis.Redis.from_url(url)
    found = []
    for key in store.scan_iter(match="*:record", count=1000):
        log = key.removesuffix(b"record") + b"log"
        if not store.exists(log) and (size := store.memory_usage(key)):
            found.append(size + 100)  # and about that for its place in the keyspace, its TTL and its tenant's index
            if len(found) == 200:
                break
    return statistics.mean(found) if found else 0.0


def _report(samples: list[Sample], tally: Tally, kept: float, minutes: float) -> dict[str, object]:
    steady = samples[len(samples) // 5 :]
    first, last = steady[0], steady[-1]
    seconds = last.seconds - first.seconds
    hourly = {
        name: round(slope([(sample.seconds, getattr(sample, name)) for sample in steady]))
        for name in ("api_kib", "worker_kib", "redis_kib", "used_kib")
    }
    jobs = slope([(sample.seconds, sample.jobs) for sample in steady])
    return {
        "minutes": minutes,
        "jobs": tally.jobs,
        "cancelled": tally.cancelled,
        "tokens_a_second": round(tally.deltas / (minutes * 60)),
        "characters": tally.characters,
        "reconnects": tally.returns,
        "refused": tally.refused,
        "wrong": tally.wrong[:20],
        "core_share": {
            name: round((getattr(last, f"{name}_cpu") - getattr(first, f"{name}_cpu")) / seconds, 3)
            for name in ("api", "worker", "redis")
        },
        "first_mib": {name: round(getattr(first, name) / 1024, 1) for name in hourly},
        "last_mib": {name: round(getattr(last, name) / 1024, 1) for name in hourly},
        "growth_kib_an_hour": hourly,
        "records_of_ended_jobs_kib_an_hour": round(jobs * kept / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--running", type=int, default=150, help="jobs at any time")
    parser.add_argument("--rate", type=float, default=40.0, help="tokens a second of each")
    parser.add_argument("--json", type=Path, help="write samples and report here")
    options = parser.parse_args()
    port = free_port()
    with (
        TemporaryDirectory(prefix="legato-soak-") as directory,
        EmbeddedServer.start(Path(directory) / "store") as server,
    ):
        environment = os.environ | {
            "LEGATO_REDIS_URL": server.url,
            "LEGATO_PROVIDERS": "sim",
            "LEGATO_LOG_LEVEL": "warning",
            "LEGATO_WORKER_CONCURRENCY": str(2 * options.running),
        }
        with (Path(directory) / "log").open("wb") as log:
            api, worker = (
                subprocess.Popen([sys.executable, "-m", "cli.main", *command], env=environment, stdout=log, stderr=log)
                for command in (("api", "--port", str(port)), ("worker",))
            )
        try:
            _wait(port)
            pids = {"api": api.pid, "worker": worker.pid, "redis": server.pid}
            samples, tally = uvloop.run(_soak(options, server.url, port, pids))
            report = _report(samples, tally, _kept_a_job(server.url), options.minutes)
        finally:
            for process in (api, worker):
                process.terminate()
            for process in (api, worker):
                process.wait()
    print(json.dumps(report, indent=2))
    if options.json:
        options.json.write_text(json.dumps({"report": report, "samples": [asdict(sample) for sample in samples]}))
    sys.exit(bool(tally.wrong))


def _wait(port: int) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                return
        time.sleep(0.1)
    raise SystemExit("the API does not come up")


if __name__ == "__main__":
    main()
