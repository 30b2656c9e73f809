"""How long it takes until things move again: cancel, take-over, hand-over, return of the store.

    python -m bench.recovery [--rounds 20] [--lease 3]

Real processes: an embedded server, one API, two workers. Each figure is wall time as a client sees it, in milliseconds:
`cancel` from the request to the terminal event; `take_over` from SIGKILL of the worker to the first event of the
next attempt; `hand_over` the same from SIGTERM (no time to drain); `store_back` from the moment a killed server
answers again to the next event. Prints a row of JSON each.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from bench.tail_latency import _free_port as free_port
from broker.embedded import EmbeddedServer

Event = tuple[str, float]


class Stack:
    """An API and two workers over one server."""

    def __init__(self, server: EmbeddedServer, lease: float) -> None:
        self.server = server
        self.url = f"http://127.0.0.1:{free_port()}"
        self._environment = os.environ | {
            "LEGATO_REDIS_URL": server.url,
            "LEGATO_PROVIDERS": "sim",
            "LEGATO_LEASE_SECONDS": str(lease),
            "LEGATO_DRAIN_SECONDS": "0",
        }
        self._api = self._launch("api", "--port", self.url.rpartition(":")[2])
        self.workers = [self.worker(), self.worker()]
        for _ in range(200):
            try:
                if httpx.get(self.url + "/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.05)

    def worker(self) -> subprocess.Popen[bytes]:
        return self._launch("worker")

    def submit(self, **options: object) -> str:
        body = {"provider": "sim", "model": "m", "messages": [{"role": "user", "content": "x"}]}
        body["provider_options"] = {"tokens": 100_000, "tokens_per_second": 40} | options  # type: ignore[assignment]
        return str(httpx.post(self.url + "/v1/generations", json=body).json()["id"])

    def holder(self, generation: str) -> int:
        """Which worker runs it: the one whose log says so. Only one runs anything here."""
        for number, worker in enumerate(self.workers):
            if generation in Path(f"/proc/{worker.pid}/fd/2").resolve().read_text(errors="replace"):
                return number
        raise SystemExit("no worker has claimed the generation")

    def events(self, generation: str) -> Iterator[Event]:
        """Event names as they come, with the time of their coming."""
        with httpx.stream("GET", f"{self.url}/v1/generations/{generation}/events", timeout=60) as response:
            for line in response.iter_lines():
                if line.startswith("event: "):
                    yield line[7:], time.monotonic()

    def close(self) -> None:
        for process in [self._api, *self.workers]:
            process.kill()
            process.wait()

    def _launch(self, *command: str) -> subprocess.Popen[bytes]:
        log = Path(self._environment.get("TMPDIR", "/tmp")) / f"legato-bench-{os.getpid()}-{time.monotonic_ns()}.log"
        with log.open("wb") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "cli.main", *command], env=self._environment, stdout=out, stderr=out
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--lease", type=float, default=3)
    options = parser.parse_args()
    with TemporaryDirectory() as directory, EmbeddedServer.start(Path(directory) / "data") as server:
        os.environ["TMPDIR"] = directory
        stack = Stack(server, options.lease)
        try:
            for name, measure in MEASURES.items():
                times = sorted(measure(stack) for _ in range(options.rounds))
                row = {
                    "measure": name,
                    "rounds": len(times),
                    "lease_ms": round(options.lease * 1000),
                    "p50_ms": round(1000 * statistics.median(times)),
                    "p99_ms": round(1000 * times[int(len(times) * 0.99)]),
                    "max_ms": round(1000 * times[-1]),
                }
                print(json.dumps(row), flush=True)
        finally:
            stack.close()


def _cancel(stack: Stack) -> float:
    """A silent provider: the worker learns of the cancel by asking."""
    generation = stack.submit(faults=[{"at_token": 5, "kind": "stall"}])
    events = stack.events(generation)
    while next(events)[0] != "delta":
        pass
    time.sleep(1)
    asked = time.monotonic()
    httpx.post(f"{stack.url}/v1/generations/{generation}/cancel")
    return next(at for name, at in events if name == "cancelled") - asked


def _take_over(stack: Stack) -> float:
    return _replace(stack, signal.SIGKILL)


def _hand_over(stack: Stack) -> float:
    return _replace(stack, signal.SIGTERM)


def _replace(stack: Stack, how: signal.Signals) -> float:
    generation = stack.submit()
    events = stack.events(generation)
    seen = 0
    for name, _ in events:
        seen += name == "delta"
        if seen == 20:
            break
    number = stack.holder(generation)
    asked = time.monotonic()
    stack.workers[number].send_signal(how)
    took = next(at for name, at in events if name == "reset") - asked
    stack.workers[number].wait()
    stack.workers[number] = stack.worker()
    httpx.post(f"{stack.url}/v1/generations/{generation}/cancel")
    time.sleep(1)
    return took


def _store_back(stack: Stack) -> float:
    generation = stack.submit()
    events = stack.events(generation)
    seen = 0
    for name, _ in events:
        seen += name == "delta"
        if seen == 20:
            break
    stack.server.kill()
    time.sleep(1.5)
    stack.server.restart()
    back = time.monotonic()
    took = next(at for _, at in events if at > back) - back
    httpx.post(f"{stack.url}/v1/generations/{generation}/cancel")
    return took


MEASURES: dict[str, Callable[[Stack], float]] = {
    "cancel": _cancel,
    "hand_over": _hand_over,
    "take_over": _take_over,
    "store_back": _store_back,
}

if __name__ == "__main__":
    main()
