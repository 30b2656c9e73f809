"""From append to client: how long an event takes through one API process, and what that process pays.

    python -m bench.tail_latency [--generations 100] [--rate 50] [--seconds 10] [--viewers 1] [--idle 1000]

Three real processes besides the server: this one appends through `broker.log` (as a worker does, every event an append
of its own, phases spread) and stamps each delta with the monotonic clock; one `legato api` serves; a reader process
holds all viewers on raw sockets and compares clocks when a frame arrives. `--idle` viewers more only wait, on
generations nobody writes. Prints one row of JSON and a line to read.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import resource
import socket
import statistics
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

import httpx
import uvloop

from broker.embedded import EmbeddedServer
from broker.events import Entry
from broker.generation import Request
from broker.lease import Lease, Leases, new_owner
from broker.log import Appended, Log
from broker.position import BEGINNING
from broker.queue import Queue
from broker.records import Records
from broker.settings import Settings
from broker.store import Store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", type=int, default=100)
    parser.add_argument("--rate", type=float, default=50, help="tokens a second, each generation")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--viewers", type=int, default=1, help="readers of each generation")
    parser.add_argument("--idle", type=int, default=1000, help="viewers that only wait")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536), hard))
    with EmbeddedServer.start() as server:
        print(json.dumps(uvloop.run(run(server, options))))


async def run(server: EmbeddedServer, options: argparse.Namespace) -> dict[str, Any]:
    port = _free_port()
    environment = os.environ | {"LEGATO_REDIS_URL": server.url, "LEGATO_PROVIDERS": "sim"}
    api = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "api", "--port", str(port)], env=environment, stderr=subprocess.DEVNULL
    )
    settings = Settings(redis_url=server.url, lease_seconds=60)
    store = Store(server.url, settings)
    queue = Queue(store)
    records, log, leases = Records(store, queue), Log(store), Leases(store)
    try:
        await _ready(port)
        leased: list[Lease] = []
        for number in range(options.generations + min(options.idle, 100)):
            request = Request(provider="sim", model="bench", messages=[{"role": "user", "content": str(number)}])
            submitted = await records.submit("dev", request)
            lease = await leases.claim(submitted.id, owner=new_owner())
            assert isinstance(lease, Lease)
            leased.append(lease)
        busy, quiet = leased[: options.generations], leased[options.generations :]
        idle = [quiet[n % len(quiet)].generation for n in range(options.idle)] if quiet else []
        live = [lease.generation for lease in busy for _ in range(options.viewers)]
        ours, theirs = multiprocessing.Pipe()
        reader = multiprocessing.get_context("spawn").Process(target=_read, args=(port, live, idle, theirs))
        reader.start()
        assert await asyncio.to_thread(ours.recv) == "attached"
        rss_kib = _rss_kib(api.pid)
        cpu, redis_cpu, began = _cpu(api.pid), _cpu(server.pid), time.monotonic()
        subscriptions = sum("ssub=0" not in line for line in _clients(server) if "ssub=" in line)
        written = await asyncio.gather(*(_write(log, lease, options) for lease in busy))
        elapsed = time.monotonic() - began
        await asyncio.sleep(0.5)
        spent, redis_spent = _cpu(api.pid) - cpu, _cpu(server.pid) - redis_cpu
        ours.send("stop")
        latencies = sorted(await asyncio.to_thread(ours.recv))
        reader.join()
        events = sum(written) * options.viewers
        return {
            "generations": options.generations,
            "viewers": len(live),
            "idle_viewers": len(idle),
            "subscription_connections": subscriptions,
            "events_sent": events,
            "events_received": len(latencies),
            "events_per_second": round(events / elapsed),
            "p50_ms": round(statistics.median(latencies), 3),
            "p99_ms": round(latencies[int(len(latencies) * 0.99)], 3),
            "max_ms": round(latencies[-1], 3),
            "api_us_per_event": round(1e6 * spent / events, 1),
            "redis_us_per_event": round(1e6 * redis_spent / events, 1),
            "api_rss_mib": round(rss_kib / 1024),
        }
    finally:
        api.terminate()
        api.wait()
        await store.aclose()


async def _write(log: Log, lease: Lease, options: argparse.Namespace) -> int:
    """Append one event a tick, phases spread, each stamped when it is sent."""
    pause, count = 1 / options.rate, round(options.rate * options.seconds)
    loop = asyncio.get_running_loop()
    start = loop.time() + random.uniform(0, pause)
    previous = BEGINNING
    for number in range(1, count + 1):
        await asyncio.sleep(start + number * pause - loop.time())
        place = f"{number}-{lease.epoch}"
        entry = Entry(place, b"d", b"@%d@ token" % time.monotonic_ns())
        answer = await log.append(lease.generation, lease.epoch, lease.owner, previous, [entry])
        assert isinstance(answer, Appended), answer
        previous = place
    return count


def _read(port: int, live: list[str], idle: list[str], pipe: Connection) -> None:
    uvloop.run(_read_all(port, live, idle, pipe))


async def _read_all(port: int, live: list[str], idle: list[str], pipe: Connection) -> None:
    latencies: list[float] = []
    attached = 0

    class Reader(asyncio.Protocol):
        def __init__(self, generation: str) -> None:
            self.generation = generation

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            path = f"/v1/generations/{self.generation}/events"
            transport.write(f"GET {path} HTTP/1.1\r\nHost: bench\r\nAccept: text/event-stream\r\n\r\n".encode())  # type: ignore[attr-defined]

        def data_received(self, data: bytes) -> None:
            nonlocal attached
            if b"event: open" in data:
                attached += 1
            if b'"@' in data:
                now = time.monotonic_ns()
                # A frame may join several deltas: every stamp in it counts.
                latencies.extend((now - int(part)) / 1e6 for part in data.split(b"@") if part.isdigit())

    loop = asyncio.get_running_loop()
    for generation in [*live, *idle]:
        await loop.create_connection(lambda generation=generation: Reader(generation), "127.0.0.1", port)  # type: ignore[misc]
    while attached < len(live) + len(idle):
        await asyncio.sleep(0.05)
    await asyncio.sleep(1.5)
    pipe.send("attached")
    await asyncio.to_thread(pipe.recv)
    pipe.send(latencies)


async def _ready(port: int) -> None:
    async with httpx.AsyncClient() as client:
        for _ in range(200):
            try:
                if (await client.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)
    raise SystemExit("the API did not become ready")


def _clients(server: EmbeddedServer) -> list[str]:
    """CLIENT LIST, a line a connection."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(server.socket_path))
        connection.sendall(b"CLIENT LIST\r\n")
        data = b""
        while not data.endswith(b"\r\n"):
            data += connection.recv(1 << 20)
    return data.decode().splitlines()


def _cpu(pid: int) -> float:
    """User and system seconds of a process so far."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss_kib(pid: int) -> int:
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
